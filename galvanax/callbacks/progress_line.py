"""What a line of progress says, and what it leaves out where there is little room."""

import dataclasses
from collections.abc import Iterator, Mapping

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BAR, WIDEST_BAR = 10, 40  # columns, with the space behind it
VALUE = 9  # columns of -1.23e-05: the line's parts stay where they are while numbers change

Part = tuple[str, str]  # a text and its style


@dataclasses.dataclass(frozen=True)
class ProgressLine:
    """How far a run has come. On a terminal it is one row, whatever the terminal's width.

    Attributes:
      step: the last one that is known of.
      total: the step at which the run ends.
      elapsed: since the start (s).
      rate: steps a second; None while it is not known.
      left: until the end (s); None while it is not known.
      metrics: by name, the most important one first.
      ended: whether the run has.
    """

    step: int
    total: int
    elapsed: float
    rate: float | None = None
    left: float | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    ended: bool = False

    def text(self) -> str:
        """All of it, with the metrics' full names: a line of a log."""
        metrics = [f"{name} {value:.4g}" for name, value in self.metrics.items()]
        return "  ".join([f"step {self.step}/{self.total}", *_texts(self._time(), self._speed(" steps/s")), *metrics])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The first layout that fits, and a bar in what is left."""
        parts: list[Part] = []
        for parts, bar in self._layouts():
            if _width(parts) + bar <= options.max_width:
                break
        line = Text("  ").join(Text(text, style) for text, style in parts)
        room = min(WIDEST_BAR, options.max_width - _width(parts))
        row = Table.grid()
        if room >= BAR:
            line.pad_left(1)
            row.add_row(ProgressBar(self.total, self.step, width=room - 1), line)
        else:
            line.truncate(options.max_width)
            row.add_row(line)
        row.columns[-1].no_wrap = True
        yield row

    def _layouts(self) -> Iterator[tuple[list[Part], int]]:
        """Parts and the least room for a bar, in the order in which they are given up. The step goes last."""
        count = (f"{self.step:{len(str(self.total))}}/{self.total}", "progress.download")
        metrics = [(f"{name.removeprefix('train/')} {value:<{VALUE}.4g}", "") for name, value in self.metrics.items()]
        time, speed, loss = self._time(), self._speed(" steps/s"), metrics[:1]
        yield [count, *self._clock(), *time, *speed, *metrics], BAR
        yield [count, *time, *speed, *metrics], BAR
        for shown in range(len(metrics), 0, -1):
            yield [count, *time, *speed, *metrics[:shown]], 0
        yield [count, *time, *self._speed("/s"), *loss], 0
        yield [count, *time, *loss], 0
        yield [count, *loss], 0
        yield [count], 0

    def _clock(self) -> list[Part]:
        return [] if self.ended else [(_clock(self.elapsed), "progress.elapsed")]

    def _time(self) -> list[Part]:
        if self.ended:
            return [(f"in {_clock(self.elapsed)}", "progress.elapsed")]
        if self.left is not None:
            return [(f"{_clock(self.left)} left", "progress.remaining")]
        return [] if self.metrics else [("compiling", "")]

    def _speed(self, unit: str) -> list[Part]:
        if self.rate is None:
            return []
        return [(f"{self.rate:,.0f}{unit}" if self.rate >= 100 else f"{self.rate:.3g}{unit}", "")]


def _texts(*parts: list[Part]) -> list[str]:
    return [text for part in parts for text, _ in part]


def _width(parts: list[Part]) -> int:
    return sum(len(text) for text, _ in parts) + 2 * (len(parts) - 1)


def _clock(seconds: float) -> str:
    """`1:05`, `2:03:04`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
