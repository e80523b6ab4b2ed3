"""What planners ask of a dynamics model, and the true simulator in that shape."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import mujoco

from galvanax.errors import DataError
from galvanax.physics.collect import count_substeps, extract_state_features
from galvanax.physics.implicit_step import implicit_step
from galvanax.physics.quiet_mjx import mjx

History = Any  # A pytree of arrays: what a dynamics model remembers.


class Dynamics(Protocol):
    """Dynamics that may remember more than the present state.

    A step is one control step, over which the action is held. A state is `[qpos, qvel]`. All three are pure: they can
    be traced, vmapped and differentiated, and they take any leading axes.
    """

    def init_history(self, states: jax.Array, actions: jax.Array) -> History:
        """What the model remembers of a past.

        Args:
          states: `(..., history, state_dim)`, the last one being the present state.
          actions: `(..., history, action_dim)`, each taken at the state beside it. The last one is still to be taken
            and is not looked at.

        Returns:
          A pytree whose arrays have the leading axes `...`.
        """
        ...

    def step(self, history: History, action: jax.Array) -> tuple[History, jax.Array]:
        """Holds an action `(..., action_dim)` for one control step; returns the next state `(..., state_dim)` too."""
        ...

    def rollout(self, history: History, actions: jax.Array) -> jax.Array:
        """The states after each of the actions `(..., horizon, action_dim)`: `(..., horizon, state_dim)`."""
        ...


def unroll(
    step: Callable[[History, jax.Array], tuple[History, jax.Array]], history: History, actions: jax.Array
) -> jax.Array:
    """Applies a `Dynamics.step` along a sequence of actions.

    Args:
      step: the dynamics.
      history: where to start, with leading axes `...`.
      actions: `(..., horizon, action_dim)`.

    Returns:
      The states after each action, `(..., horizon, state_dim)`.
    """
    _, states = jax.lax.scan(step, history, jnp.moveaxis(actions, -2, 0))
    return jnp.moveaxis(states, 0, -2)


class MJXHistory(NamedTuple):
    """All that MuJoCo carries from one step to the next."""

    state: jax.Array
    activation: jax.Array
    warm_start: jax.Array
    time: jax.Array


class MJXDynamics:
    """The true simulator: `control_dt` seconds of MJX for each action.

    It can be differentiated through contact, at any number of solver iterations: see `implicit_step`. (On Warp's
    implementation it only runs forward.)
    """

    def __init__(self, model: mujoco.MjModel | mjx.Model, control_dt: float | None = None):
        """Takes a model.

        Args:
          model: any model that MJX can simulate.
          control_dt: seconds that each action is held, a multiple of the timestep; by default one timestep.

        Raises:
          GalvanaxError: `control_dt` is no multiple of the timestep.
        """
        self.substeps = count_substeps(model, control_dt)
        self.model = mjx.put_model(model, jax.local_devices()[0]) if isinstance(model, mujoco.MjModel) else model
        self._advance = implicit_step if self.model.impl == mjx.Impl.JAX else mjx.step

    def init_history(self, states: jax.Array, actions: jax.Array) -> MJXHistory:
        """The last of the states `(..., history, nq + nv)`; activations of actuators start at zero.

        Raises:
          DataError: the arrays don't fit the model.
        """
        state = jnp.asarray(states, float)[..., -1, :]
        if state.shape[-1] != self.model.nq + self.model.nv or actions.shape[-1] != self.model.nu:
            raise DataError(
                f"states have {state.shape[-1]} entries and actions {actions.shape[-1]}; "
                f"expected {self.model.nq + self.model.nv} and {self.model.nu}, the model's nq + nv and nu"
            )
        lead = state.shape[:-1]
        return MJXHistory(
            state, jnp.zeros((*lead, self.model.na)), jnp.zeros((*lead, self.model.nv)), jnp.zeros((*lead,))
        )

    def step(self, history: MJXHistory, action: jax.Array) -> tuple[MJXHistory, jax.Array]:
        """See `Dynamics.step`."""
        if action.ndim > 1:
            return jax.vmap(self.step)(history, action)
        # The rest of mjx.Data follows from these; carrying it through a scan would only move memory.
        data = mjx.make_data(self.model).replace(
            qpos=history.state[: self.model.nq],
            qvel=history.state[self.model.nq :],
            act=history.activation,
            qacc_warmstart=history.warm_start,
            time=history.time,
            ctrl=action,
        )
        data = jax.lax.fori_loop(0, self.substeps, lambda _, data: self._advance(self.model, data), data)
        state = extract_state_features(data)
        return MJXHistory(state, data.act, data.qacc_warmstart, data.time), state

    def rollout(self, history: MJXHistory, actions: jax.Array) -> jax.Array:
        """See `Dynamics.rollout`."""
        return unroll(self.step, history, actions)
