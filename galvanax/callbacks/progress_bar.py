"""What a person sees while it runs."""

import contextlib
import dataclasses
import time
from typing import ClassVar

import numpy as np
from rich.live import Live

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.progress_line import ProgressLine
from galvanax.callbacks.run_view import RunView
from galvanax.terminal import Terminal
from galvanax.trainer.result import FitResult

SHOWN = ("train/loss", "val/loss", "train/episode_return", "val/episode_return")


@dataclasses.dataclass
class ProgressBar(Callback):
    """Step, time left, speed and latest metrics: a row that is kept up to date on a terminal, now and then a line
    elsewhere.

    On a narrow terminal the bar and the later metrics give way: the step, the time left, the speed and the first metric
    have room in 80 columns.

    Attributes:
      metrics: names to show, the most important one first; empty shows the loss, and the return of episodes.
      seconds: between two lines, where the output is no terminal.
    """

    main_process_only: ClassVar[bool] = True

    metrics: tuple[str, ...] = ()
    seconds: float = 10.0

    def on_fit_start(self, run: RunView) -> None:
        """See `Callback`."""
        self._console = Terminal()
        self._started = self._printed = time.monotonic()
        self._step, self._latest = run.step, dict[str, float]()
        # The first dispatch holds the compilation; speed is counted from its end.
        self._first: tuple[int, float] | None = None
        self._ended = False
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(get_renderable=lambda: self._line(run), console=self._console)
            self._live.start(refresh=True)

    def on_train_metrics(self, run: RunView, steps: range, metrics: dict[str, np.ndarray]) -> None:
        """See `Callback`."""
        self._latest = {name: float(rows[-1]) for name, rows in metrics.items()}
        self._step, self._heard = steps[-1], time.monotonic()
        compiled = self._first is None
        self._first = self._first or (self._step, self._heard)
        if self._live is None and (compiled or time.monotonic() - self._printed > self.seconds):
            self._print(run)

    def on_validation_end(self, run: RunView, metrics: dict[str, float]) -> None:
        """See `Callback`."""
        if self._live is None and time.monotonic() - self._printed > self.seconds / 5:
            self._print(run)

    def on_fit_end(self, run: RunView, result: FitResult) -> None:
        """See `Callback`."""
        self._close(run, result.stop_reason)

    def on_exception(self, run: RunView, error: BaseException) -> None:
        """See `Callback`."""
        self._close(run, type(error).__name__)

    def _close(self, run: RunView, reason: str | None) -> None:
        self._ended = True
        with contextlib.suppress(OSError):
            if self._live is not None:
                self._live.stop()
            else:
                self._print(run)
            if reason:
                self._console.print(f"stopped at step {run.step}: {reason}", highlight=False)

    def _print(self, run: RunView) -> None:
        self._printed = time.monotonic()
        with contextlib.suppress(OSError):
            self._console.print(self._line(run).text(), highlight=False, soft_wrap=True)

    def _line(self, run: RunView) -> ProgressLine:
        now, rate, left = time.monotonic(), None, None
        if self._first is not None and self._step > self._first[0]:
            rate = (self._step - self._first[0]) / max(1e-9, self._heard - self._first[1])
            left = max(0.0, (run.num_steps - self._step) / rate - (now - self._heard))
        latest = {**run.metrics, **self._latest} if self._first is not None else {}
        metrics = {name: latest[name] for name in self.metrics or SHOWN if name in latest}
        return ProgressLine(self._step, run.num_steps, now - self._started, rate, left, metrics, self._ended)
