"""DynaFlow: flow matching through the simulator (Lee et al., 2025, arXiv:2509.19804)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from galvanax.networks.flow_model import TrajectoryFlow
from galvanax.physics.frames import from_start_frame
from galvanax.physics.rollout import Checkpoint, rollout
from galvanax.physics.system import action_limits_of, unit_quaternions
from galvanax.tasks.flow_matching import Denoised, FlowMatchingTask
from galvanax.trainer.data_axis import over_data_axis


@dataclasses.dataclass(frozen=True)
class DynaFlowTask(FlowMatchingTask):
    """The network says actions U; physics says where they lead: X̂₁ = Φ(x₀, U). Learns from states alone.

    Whatever the network says, a sample is a motion that the system can make, and its actions make it.

    Attributes:
      checkpointing: what the gradient keeps of a rollout; see `physics.rollout`.
    """

    checkpointing: Checkpoint = "step"

    @property
    def out_dim(self) -> int:
        """An action for each step."""
        return self.physics.action_dim

    def denoise(self, model: TrajectoryFlow, noisy: jax.Array, output: jax.Array, start: jax.Array) -> Denoised:
        """See `FlowMatchingTask`: the output of all steps but the last is squashed into actions."""
        actions = squash(output[:, :-1], *action_limits_of(self.physics))
        roll = functools.partial(rollout, self.physics, checkpoint=self.checkpointing)
        return Denoised(over_data_axis(roll)(start, actions), actions)


@dataclasses.dataclass(frozen=True)
class StateFlowTask(FlowMatchingTask):
    """The comparator: the network says states, and nothing makes sure that the system can follow them."""

    @property
    def out_dim(self) -> int:
        """A state for each step."""
        return self.state_dim

    def denoise(self, model: TrajectoryFlow, noisy: jax.Array, output: jax.Array, start: jax.Array) -> Denoised:
        """See `FlowMatchingTask`: the output is the normalised states less the noisy ones."""
        states = model.states.denormalize(noisy + output)
        if self._layout is not None:
            states = unit_quaternions(self._layout, states)
        if self.start_frame:
            states = from_start_frame(self._layout, states, start)
        return Denoised(states.at[:, 0].set(start), None)


def squash(values: jax.Array, low: np.ndarray, high: np.ndarray) -> jax.Array:
    """Maps any number smoothly into (low, high), with slope 1 at 0; where a limit is infinite, nothing is changed.

    A clip would do it too, but no gradient leads back from behind it.
    """
    limit = jnp.where(values > 0, high, -low)
    bounded = jnp.isfinite(limit)
    scale = jnp.where(bounded, jnp.maximum(limit, 1e-6), 1.0)
    return jnp.where(bounded, scale * jnp.tanh(values / scale), values)
