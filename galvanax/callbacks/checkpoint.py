"""Saving the run."""

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar, Literal

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.early_stopping import check_mode
from galvanax.errors import ConfigError
from galvanax.trainer.checkpoints import CheckpointFolder
from galvanax.trainer.schedule import Epochs, Steps, next_multiple

if TYPE_CHECKING:
    from galvanax.trainer.run import FitResult, Run


@dataclasses.dataclass
class Checkpoint(Callback):
    """Saves everything that the run needs to go on, bit for bit, while training continues.

    Attributes:
      monitor: the validation metric that ranks checkpoints; None ranks none, and "best" is the last.
      mode: whether less ("min") or more ("max") of it is better; required with a monitor.
      keep_best: best checkpoints to keep.
      keep_last: newest checkpoints to keep.
      every: when to save; None saves after every validation. The end of the run is always saved.
    """

    writes_files: ClassVar[bool] = True
    runs_last: ClassVar[bool] = True

    monitor: str | None = None
    mode: Literal["min", "max"] | None = None
    keep_best: int = 1
    keep_last: int = 1
    every: Steps | Epochs | None = None

    def __post_init__(self) -> None:
        if self.monitor is not None:
            check_mode(self.mode, "Checkpoint")
        if self.keep_best < 0 or self.keep_last < 1:
            raise ConfigError(
                f"Checkpoint(keep_best={self.keep_best}, keep_last={self.keep_last}): expected at least 0 and 1."
            )

    def on_fit_start(self, run: "Run") -> None:
        """See `Callback`."""
        assert run.run_dir is not None
        self._run = run
        self._folder = CheckpointFolder(run.run_dir)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._saved = run.step if run.resumed else -1
        for step in self._folder.steps():
            if step > run.step:  # of a future that this run, resumed further back, will not have
                self._folder.remove(step)

    def next_step(self, step: int) -> int | None:
        """See `Callback`."""
        if self.every is not None:
            return next_multiple(step, self.every.in_steps(self._run.steps_per_epoch))
        return self._run.next_validation(step)

    def on_step(self, run: "Run") -> None:
        """See `Callback`."""
        self._save(run)

    def on_fit_end(self, run: "Run", result: "FitResult") -> None:
        """See `Callback`."""
        if self._saved != run.step:
            self._save(run)
        self._wait()
        self._writer.shutdown()

    def on_exception(self, run: "Run", error: BaseException) -> None:
        """See `Callback`."""
        self._writer.shutdown()

    def _save(self, run: "Run") -> None:
        self._wait()  # for the one before: none is skipped, and they end in order
        arrays, meta = run.snapshot()
        meta["monitor"] = None
        if self.monitor is not None:
            fresh = run.validated_at == run.step
            value = run.metrics.get(self.monitor) if fresh else None
            meta["monitor"] = {"metric": self.monitor, "mode": self.mode, "value": value}
        self._saved = run.step
        self._pending = self._writer.submit(self._write, run.step, arrays, meta)

    def _write(self, step: int, arrays: dict, meta: dict) -> None:
        self._folder.save(step, arrays, meta)
        steps = self._folder.steps()
        keep = set(steps[-self.keep_last :]) | set(self._folder.ranked()[: self.keep_best])
        for old in steps:
            if old not in keep:
                self._folder.remove(old)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None
