"""Gradient clipping."""

import dataclasses
from typing import Literal

import optax

from galvanax.callbacks.callback import Callback
from galvanax.errors import ConfigError


@dataclasses.dataclass
class GradientClipping(Callback):
    """Limits the gradients before the optimizer sees them.

    Attributes:
      threshold: the largest global norm, or the largest absolute value of an entry.
      by: "norm" scales all gradients together; "value" cuts each entry.
    """

    threshold: float = 1.0
    by: Literal["norm", "value"] = "norm"

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ConfigError(f"GradientClipping.threshold={self.threshold!r}: expected a positive number.")
        if self.by not in ("norm", "value"):
            raise ConfigError(f'GradientClipping.by={self.by!r}: expected "norm" or "value".')

    def wrap_optimizer(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """See `Callback`."""
        clip = optax.clip_by_global_norm if self.by == "norm" else optax.clip
        return optax.chain(clip(self.threshold), optimizer)
