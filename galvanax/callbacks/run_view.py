"""What a callback sees of a fit in progress."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from flax import nnx

from galvanax.datamodules.datamodule import DataModule
from galvanax.runs.checkpoint_meta import CheckpointMeta
from galvanax.tasks.task import Task
from galvanax.trainer.state import TrainState


class RunView(Protocol):
    """A fit, between its first and its last step, as callbacks may rely on it."""

    metrics: dict[str, float]
    """The last value of every metric, `{"train/loss": ..., "val/loss": ...}`."""

    @property
    def task(self) -> Task:
        """The task, with the fields that the data decided."""

    @property
    def datamodule(self) -> DataModule:
        """Where the data come from."""

    @property
    def run_dir(self) -> Path | None:
        """Where files go, or None."""

    @property
    def config(self) -> Mapping[str, Any]:
        """JSON of task, data, trainer and callbacks, as config.json has it."""

    @property
    def step(self) -> int:
        """Steps dispatched, an int on the host."""

    @property
    def num_steps(self) -> int:
        """The step at which the run ends."""

    @property
    def log_every(self) -> int:
        """Steps over which training metrics are averaged for the loggers."""

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps an epoch; None for a stream."""

    @property
    def epoch(self) -> float:
        """Epochs done, with the fraction; 0 for a stream."""

    @property
    def state(self) -> TrainState:
        """The current train state. Its buffers are donated to the next dispatch: read it in `on_step`, keep copies."""

    @property
    def metric_names(self) -> list[str]:
        """Every metric that training and validation will give."""

    @property
    def evaluator(self) -> Any:
        """What validates, or None where there is no validation data."""

    @property
    def resumed(self) -> bool:
        """Whether the state came from a checkpoint."""

    @property
    def prolonged(self) -> bool:
        """Whether a resumed run was asked to go on although it may have been stopped."""

    @property
    def validated_at(self) -> int:
        """The step of the last validation, or -1."""

    @property
    def logged_at(self) -> int:
        """The step of the last row of training metrics, or -1."""

    @property
    def settled(self) -> bool:
        """Whether state, position and what callbacks have been told agree, so that a save would be of this step."""

    def model(self) -> nnx.Module:
        """The model with evaluation weights, in evaluation mode, for this process alone; all processes must ask."""

    def stop(self, reason: str) -> None:
        """Ends the run before the next dispatch; a callback's way to say that it has seen enough."""

    def is_due(self, callback: Any) -> bool:
        """Whether a callback must see the state now, for what depends on time or signals; the same on all processes."""

    def snapshot(self) -> tuple[dict[str, Any], CheckpointMeta]:
        """What a checkpoint holds: copies of all arrays by path, and JSON data. Does not wait for the devices."""

    def next_validation(self, step: int) -> int | None:
        """The first step after `step` with a validation, or None where there is no validation data."""

    def logged_again(self) -> tuple[str, ...]:
        """Prefixes of the metrics of this step that a resumed run logs again, or not at all: loggers drop them."""
