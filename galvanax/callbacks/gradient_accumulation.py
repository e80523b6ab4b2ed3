"""Batches that do not fit in memory at once."""

import dataclasses

import optax

from galvanax.callbacks.callback import Callback
from galvanax.errors import ConfigError


@dataclasses.dataclass
class GradientAccumulation(Callback):
    """Updates the weights once in `steps` training steps, by the mean of their gradients.

    For a loss that is a mean over its batch, this is one step on a batch `steps` times as large, in the memory of one.
    Learning-rate schedules count updates. All else counts training steps: `max_steps`, `log_every`, checkpoints (a run
    resumes between two updates too), and `EMA`, whose average moves at each of them: `EMA(decay ** (1 / steps))`
    forgets as much from one update to the next as `EMA(decay)` does without accumulation. Gradients that are left over
    when the run ends are dropped.

    Gradients pass the callbacks in list order: a `GradientClipping` before this one clips the gradients of each step,
    one after it their mean, as on the larger batch. A `Freeze` belongs before it, and frozen parameters need no memory.

    In PPO each minibatch gives gradients, so let `steps` divide `num_epochs * num_minibatches`: else an update mixes
    two iterations. An adaptive learning rate still adapts after each minibatch.

    Attributes:
      steps: training steps to one update; 1 changes nothing.
    """

    steps: int

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ConfigError(f"GradientAccumulation.steps={self.steps!r}: expected a whole number of at least 1.")

    def wrap_optimizer(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """See `Callback`."""
        if self.steps == 1:
            return optimizer
        return optax.MultiSteps(optimizer, self.steps).gradient_transformation()

    def optimizer_steps(self, num_steps: int) -> int:
        """See `Callback`."""
        return num_steps // self.steps
