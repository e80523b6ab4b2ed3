"""Saving the run, by step, by time, and when it is told to go."""

import dataclasses
import signal
import threading
import time
from types import FrameType
from typing import Any, ClassVar, Literal

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.run_view import RunView
from galvanax.errors import ConfigError, NonFiniteError, Preempted
from galvanax.runs.checkpoint_meta import Monitor, Monitored, check_mode
from galvanax.runs.checkpoint_writer import CheckpointWriter, Snapshot
from galvanax.runs.checkpoints import CheckpointFolder
from galvanax.terminal import say
from galvanax.trainer import processes
from galvanax.trainer.schedule import Epochs, Minutes, Steps, check_interval, next_multiple

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
WITHOUT_VALIDATION = Minutes(10)


@dataclasses.dataclass
class Checkpoint(Callback):
    """Saves everything that the run needs to go on, bit for bit, while training continues.

    A Trainer with a `run_dir` has one by itself, `Checkpoint()`, unless it is given another or `checkpoint=False`.

    Only weights that are finite are ever saved: others end the run before (`gx.NonFiniteError`).

    SIGTERM and SIGUSR1 save at the next dispatch boundary and end the process with status 75 (`gx.Preempted`);
    Ctrl-C saves, says where, and ends with KeyboardInterrupt; a second Ctrl-C ends at once. A handler of one's own for
    SIGTERM or SIGUSR1 is called once it is saved. With several processes, a signal to one is a signal to all; training
    waits while they save, and an exception leaves no checkpoint.

    Attributes:
      monitor: the metric that ranks checkpoints, of validation, or of training ("train/loss": each row of the log, of
        `Trainer.log_every` steps); a value that is NaN or infinite ranks nowhere. None ranks none, and "best" is the
        last.
      mode: whether less ("min") or more ("max") of it is better; required with a monitor.
      keep_best: best checkpoints to keep; a validation (or row) among the best is always saved.
      keep_last: newest checkpoints to keep; None keeps all.
      every: when to save; None saves after every validation, and where there is no validation data every ten minutes.
        The end of the run is always saved.
      keep_every: steps or epochs whose checkpoints are saved and kept for good.
      save_on_exception: whether to save when the run ends by an exception.
      on_save_error: whether a checkpoint that cannot be written stops the run, or is a warning.
    """

    writes_files: ClassVar[bool] = True
    one_of_a_kind: ClassVar[bool] = True
    runs_last: ClassVar[bool] = True

    monitor: str | None = None
    mode: Literal["min", "max"] | None = None
    keep_best: int = 1
    keep_last: int | None = 1
    every: Steps | Epochs | Minutes | None = None
    keep_every: Steps | Epochs | None = None
    save_on_exception: bool = True
    on_save_error: Literal["stop", "continue"] = "stop"

    def __post_init__(self) -> None:
        if self.monitor is not None:
            check_mode(self.mode, "Checkpoint")
        if self.keep_best < 0 or (self.keep_last is not None and self.keep_last < 1):
            raise ConfigError(
                f"Checkpoint(keep_best={self.keep_best}, keep_last={self.keep_last}): expected at least 0 and 1."
            )
        check_interval("Checkpoint.every", self.every, (Steps, Epochs, Minutes), optional=True)
        check_interval("Checkpoint.keep_every", self.keep_every, (Steps, Epochs), optional=True)
        if self.on_save_error not in ("stop", "continue"):
            raise ConfigError(f'Checkpoint.on_save_error={self.on_save_error!r}: expected "stop" or "continue".')

    def on_fit_start(self, run: RunView) -> None:
        """See `Callback`."""
        assert run.run_dir is not None
        self._folder = CheckpointFolder(run.run_dir)
        self._monitor = None
        if self.monitor is not None and self.mode is not None:
            self._monitor = Monitor(self.monitor, self.mode)
        self._every = self.every
        if self.every is None and run.evaluator is None:
            self._every = WITHOUT_VALIDATION
        self._writer = CheckpointWriter(
            self._folder, self._monitor, self.keep_last, self.keep_best, stop_on_error=self.on_save_error == "stop"
        )
        self._run = run
        self._saved = run.step if run.resumed and run.step in self._folder.steps() else -1
        self._last_time = time.monotonic()
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def next_step(self, step: int) -> int | None:
        """See `Callback`."""
        steps = [
            next_multiple(step, interval.in_steps(self._run.steps_per_epoch))
            for interval in (self._every, self.keep_every)
            if isinstance(interval, Steps | Epochs)
        ]
        validation = self._run.next_validation(step)
        if validation is not None and (self._every is None or self.monitor is not None):
            steps.append(validation)
        if self._of_training:
            steps.append(next_multiple(step, self._run.log_every))
        return min(steps, default=None)

    def due(self, run: RunView) -> bool:
        """See `Callback`."""
        overdue = isinstance(self._every, Minutes) and time.monotonic() - self._last_time > 60 * self._every.minutes
        return overdue or self._signal is not None or self._writer.failed()

    def on_step(self, run: RunView) -> None:
        """See `Callback`."""
        self._writer.raise_error()
        overdue = run.is_due(self)
        told = self._told() if overdue else None
        if overdue or self._is_rolling(run.step) or self._is_permanent(run.step) or self._is_best(run):
            self._save(run)
        if told is not None:
            self._leave(run, told)

    def on_train_end(self, run: RunView) -> None:
        """See `Callback`."""
        self._restore_handlers()
        self._save(run)
        self._writer.close()

    def on_exception(self, run: RunView, error: BaseException) -> None:
        """See `Callback`."""
        self._restore_handlers()
        leaving = isinstance(error, Preempted | KeyboardInterrupt | NonFiniteError)
        # With several processes, the others may be somewhere else, and none can save without them.
        if self.save_on_exception and run.settled and not leaving and processes.count() == 1:
            self._save(run)
        self._writer.close()

    def _is_rolling(self, step: int) -> bool:
        if self._every is None:
            return self._run.validated_at == step
        return isinstance(self._every, Steps | Epochs) and step % self._every.in_steps(self._run.steps_per_epoch) == 0

    def _is_permanent(self, step: int) -> bool:
        return self.keep_every is not None and step % self.keep_every.in_steps(self._run.steps_per_epoch) == 0

    def _is_best(self, run: RunView) -> bool:
        value = self._value(run)
        return value is not None and self._writer.is_among_best(run.step, value)

    def _value(self, run: RunView) -> float | None:
        measured_at = run.logged_at if self._of_training else run.validated_at
        if self.monitor is None or measured_at != run.step:
            return None
        return run.metrics.get(self.monitor)

    @property
    def _of_training(self) -> bool:
        return self.monitor is not None and self.monitor.startswith("train/")

    def _save(self, run: RunView) -> None:
        self._last_time = time.monotonic()
        if self._saved == run.step:
            return
        self._saved = run.step
        arrays, meta = run.snapshot()
        monitor = None
        if self._monitor is not None:
            monitor = Monitored(self._monitor.metric, self._monitor.mode, self._value(run))
        meta = dataclasses.replace(meta, permanent=self._is_permanent(run.step), monitor=monitor)
        self._writer.submit(Snapshot(arrays, meta))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
        if number == signal.SIGINT:
            say("\nCtrl-C: saving at the next step; press it again to stop at once.")

    def _told(self) -> int | None:
        """The signal that this process, or another one, was sent."""
        return next((number for number in processes.gather("signals", self._signal) if number is not None), None)

    def _leave(self, run: RunView, number: int) -> None:
        self._writer.close()
        name = signal.Signals(number).name
        steps = self._folder.steps()
        if run.step in steps:
            what = f'saved to {self._folder.path / str(run.step)}; go on with resume="last" (--resume)'
        else:
            what = f"not saved; the newest checkpoint is {self._folder.path / str(steps[-1]) if steps else 'none'}"
        if processes.is_main():
            say(f"{name} at step {run.step}: {what}.")
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        own = self._handlers.get(number)
        if callable(own) and self._signal == number:
            own(number, None)
        raise Preempted(name, run.step)

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
