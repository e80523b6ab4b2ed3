"""What a fit gives back."""

import dataclasses
from pathlib import Path

from flax import nnx

from galvanax.tasks.task import Task
from galvanax.trainer.state import TrainState


@dataclasses.dataclass
class FitResult:
    """What `Trainer.fit` returns.

    Attributes:
      task: the task with the fields that the data decided.
      model: the model at the end, with evaluation weights (averaged ones where a callback averages).
      metrics: the last value of every metric, `{"train/loss": ..., "val/loss": ...}`.
      history: what was logged, a row for each step with any: `{"step": 50, "epoch": 0.5, "train/loss": ...}`, of
        training and validation; of a resumed run from its first step on. `pandas.DataFrame(result.history)`.
      state: the final train state.
      best_checkpoint: the folder of the best checkpoint, or None.
      stop_reason: why the run ended before its last step, or None.
    """

    task: Task
    model: nnx.Module
    metrics: dict[str, float]
    history: list[dict[str, float]]
    state: TrainState
    best_checkpoint: Path | None
    stop_reason: str | None
