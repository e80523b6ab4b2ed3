"""What a person sees while it runs."""

import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from galvanax.callbacks.callback import Callback
from galvanax.terminal import Terminal

if TYPE_CHECKING:
    from galvanax.trainer.run import FitResult, Run


@dataclasses.dataclass
class ProgressBar(Callback):
    """A bar with speed and latest metrics on a terminal; a plain line now and then elsewhere.

    Attributes:
      metrics: names to show; empty shows the training and validation loss.
      seconds: between two lines, where the output is no terminal.
    """

    main_process_only: ClassVar[bool] = True

    metrics: tuple[str, ...] = ()
    seconds: float = 10.0

    def on_fit_start(self, run: "Run") -> None:
        """See `Callback`."""
        self._console = Terminal()
        self._started = self._printed = time.monotonic()
        self._first, self._compiling = run.step, True
        self._reported = run.step
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Progress(TextColumn("{task.description}"), *columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("steps", total=run.num_steps, completed=run.step, text="compiling")

    def on_train_metrics(self, run: "Run", steps: range, metrics: dict[str, np.ndarray]) -> None:
        """See `Callback`."""
        self._latest = {name: float(rows[-1]) for name, rows in metrics.items()}
        self._reported = steps[-1]
        first, self._compiling = self._compiling, False
        if first:
            # The first dispatch holds the compilation; speed is counted from here.
            self._first, self._started = self._reported, time.monotonic()
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.update(self._task, completed=self._reported, text=self._text(run))
        elif first or time.monotonic() - self._printed > self.seconds:
            self._line(run)

    def on_validation_end(self, run: "Run", metrics: dict[str, float]) -> None:
        """See `Callback`."""
        if self._bar is None and time.monotonic() - self._printed > self.seconds / 5:
            self._line(run)

    def on_fit_end(self, run: "Run", result: "FitResult") -> None:
        """See `Callback`."""
        self._close(run, result.stop_reason)

    def on_exception(self, run: "Run", error: BaseException) -> None:
        """See `Callback`."""
        self._close(run, type(error).__name__)

    def _close(self, run: "Run", reason: str | None) -> None:
        with contextlib.suppress(OSError):
            if self._bar is not None:
                self._bar.update(self._task, text=self._text(run))
                self._bar.stop()
            else:
                self._line(run)
            if reason:
                self._console.print(f"stopped at step {run.step}: {reason}", highlight=False)

    def _line(self, run: "Run") -> None:
        self._printed = time.monotonic()
        with contextlib.suppress(OSError):
            self._console.print(
                f"step {self._reported}/{run.num_steps}  {self._text(run)}", highlight=False, soft_wrap=True
            )

    def _text(self, run: "Run") -> str:
        latest = run.metrics | getattr(self, "_latest", {})
        latest |= {name: value for name, value in run.metrics.items() if name.startswith("val/")}
        names = self.metrics or ("train/loss", "val/loss")
        shown = [f"{name} {latest[name]:.4g}" for name in names if name in latest]
        elapsed = time.monotonic() - self._started
        if self._reported > self._first and elapsed > 0:
            shown.append(f"{(self._reported - self._first) / elapsed:,.0f} steps/s")
        return "  ".join(shown)
