"""Averaged weights."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from galvanax.callbacks.callback import Callback
from galvanax.errors import ConfigError
from galvanax.trainer.state import Arrays, TrainState


@dataclasses.dataclass
class EMA(Callback):
    """Keeps an exponential moving average of the parameters, which evaluation, the best model and `Task.load` use.

    The decay warms up, min(decay, (1 + t) / (10 + t)) at step t (as in TensorFlow's ExponentialMovingAverage), so the
    average forgets the untrained weights at once and an early evaluation is of trained ones. The raw parameters stay in
    the train state and in the checkpoint.

    Attributes:
      decay: of the average, each step, in [0, 1). Averages of 16-bit parameters are kept in float32: a step's share
        is below what 16 bits can tell apart.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"EMA.decay={self.decay!r}: expected a number in [0, 1).")

    def init_slot(self, params: Arrays) -> Arrays:
        """See `Callback`."""
        self._dtypes = {name: leaf.dtype for name, leaf in params.items()}
        return {name: jnp.array(leaf, _wide(leaf.dtype)) for name, leaf in params.items()}

    def update_slot(self, slot: Arrays, state: TrainState) -> Arrays:
        """See `Callback`."""
        step = state.step.astype(jnp.float32)
        keep = jnp.minimum(self.decay, (1 + step) / (10 + step))
        # In this form the average of equal values is that value, exactly.
        return {
            name: average + (1 - keep).astype(average.dtype) * (state.params[name].astype(average.dtype) - average)
            for name, average in slot.items()
        }

    def eval_params(self, slot: Arrays) -> Arrays:
        """See `Callback`."""
        if all(average.dtype == self._dtypes[name] for name, average in slot.items()):
            return slot
        return {name: average.astype(self._dtypes[name]) for name, average in slot.items()}


def _wide(dtype: Any) -> Any:
    return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32 else dtype
