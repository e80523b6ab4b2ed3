"""Stopping when a metric no longer improves."""

import dataclasses
import logging
import math
from typing import Any, Literal

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.run_view import RunView
from galvanax.errors import ConfigError
from galvanax.runs.checkpoint_meta import check_mode

log = logging.getLogger("galvanax")


@dataclasses.dataclass
class EarlyStopping(Callback):
    """Ends the run after `patience` validations without improvement.

    A training metric, such as "train/loss", is looked at in every row of the log (each `Trainer.log_every` steps), and
    `patience` counts those.

    Attributes:
      monitor: the metric, such as "val/loss".
      mode: whether less ("min") or more ("max") is better.
      patience: validations in a row without improvement after which the run ends; 0 is as 1.
      min_delta: what counts as an improvement.
      threshold: end also as soon as the metric is this good.
      divergence_threshold: end also as soon as it is worse than this.
      check_finite: end also when it is NaN or infinite; else that counts as no improvement.
    """

    monitor: str
    mode: Literal["min", "max"]
    patience: int = 3
    min_delta: float = 0.0
    threshold: float | None = None
    divergence_threshold: float | None = None
    check_finite: bool = True

    def __post_init__(self) -> None:
        check_mode(self.mode, "EarlyStopping")
        if self.patience < 0:
            raise ConfigError(f"EarlyStopping.patience={self.patience!r}: expected at least 0.")

    def on_fit_start(self, run: RunView) -> None:
        """See `Callback`."""
        self._run = run
        self._reason: str | None = None
        self._best, self._waited = math.inf, 0

    def on_train_log(self, run: RunView, step: int, metrics: dict[str, float]) -> None:
        """See `Callback`."""
        if self.monitor in metrics:
            self._look(metrics[self.monitor], "rows of the log")

    def on_validation_end(self, run: RunView, metrics: dict[str, float]) -> None:
        """See `Callback`."""
        if self.monitor in metrics:
            self._look(metrics[self.monitor], "validations")

    def _look(self, value: float, looks: str) -> None:
        sign = 1 if self.mode == "min" else -1
        if not math.isfinite(value) and self.check_finite:
            self._stop(f"{self.monitor} is {value}")
        elif self.threshold is not None and sign * value <= sign * self.threshold:
            self._stop(f"{self.monitor} is {value:.6g}, as good as the threshold {self.threshold:.6g}")
        elif self.divergence_threshold is not None and sign * value > sign * self.divergence_threshold:
            limit = f"{self.divergence_threshold:.6g}"
            self._stop(f"{self.monitor} is {value:.6g}, worse than the divergence threshold {limit}")
        elif sign * value < self._best - self.min_delta:
            self._best, self._waited = sign * value, 0
        else:
            self._waited += 1
            if self._waited >= self.patience:
                self._stop(f"{self.monitor} has not improved on {sign * self._best:.6g} in {self._waited} {looks}")

    def host_state(self) -> dict[str, Any]:
        """See `Callback`."""
        return {"best": self._best, "waited": self._waited, "reason": self._reason}

    def restore_host_state(self, state: dict[str, Any]) -> None:
        """See `Callback`."""
        self._best, self._waited = state["best"], state["waited"]
        if state["reason"] is None:
            return
        if self._run.prolonged:
            log.warning("the run was stopped at step %d (%s), and goes on", self._run.step, state["reason"])
        else:
            log.warning(
                "the run has ended at step %d: %s. More steps, another patience or resume=\"last\" go on.",
                self._run.step, state["reason"],
            )  # fmt: skip
            self._stop(state["reason"])

    def _stop(self, reason: str) -> None:
        self._reason = reason
        self._run.stop(reason)
