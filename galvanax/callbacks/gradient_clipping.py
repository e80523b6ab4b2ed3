"""Gradient clipping."""

import dataclasses
from typing import Literal

import optax

from galvanax.callbacks.callback import Callback
from galvanax.settings import check_choice, check_ranges


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
        check_ranges(self, threshold="(0, inf]")
        check_choice(self, "by", ("norm", "value"))

    def wrap_optimizer(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """See `Callback`."""
        clip = optax.clip_by_global_norm if self.by == "norm" else optax.clip
        return optax.chain(clip(self.threshold), optimizer)
