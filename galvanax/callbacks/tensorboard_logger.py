"""Metrics for TensorBoard."""

import dataclasses
import time
from typing import TYPE_CHECKING, ClassVar

from tensorboardX import SummaryWriter

from galvanax.callbacks.callback import Callback

if TYPE_CHECKING:
    from galvanax.trainer.run import FitResult, Run


@dataclasses.dataclass
class TensorBoardLogger(Callback):
    """Writes event files to `run_dir/tensorboard`: all metrics, and the speed in steps a second."""

    writes_files: ClassVar[bool] = True

    def on_fit_start(self, run: "Run") -> None:
        """See `Callback`."""
        assert run.run_dir is not None
        # TensorBoard itself hides events at and after the purge step that an earlier, killed process wrote.
        self._writer = SummaryWriter(str(run.run_dir / "tensorboard"), purge_step=run.step + 1 if run.resumed else None)
        self._last = (run.step, time.monotonic())

    def on_train_log(self, run: "Run", step: int, metrics: dict[str, float]) -> None:
        """See `Callback`."""
        self._write(step, metrics)
        (last_step, last_time), self._last = self._last, (step, time.monotonic())
        self._write(step, {"speed/steps_per_second": (step - last_step) / max(1e-9, self._last[1] - last_time)})

    def on_validation_end(self, run: "Run", metrics: dict[str, float]) -> None:
        """See `Callback`."""
        self._write(run.step, metrics)

    def on_fit_end(self, run: "Run", result: "FitResult") -> None:
        """See `Callback`."""
        self._writer.close()

    def on_exception(self, run: "Run", error: BaseException) -> None:
        """See `Callback`."""
        self._writer.close()

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
