"""How well a learned step predicts: one step and open loop, beside predicting no change."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import mujoco.rollout
import numpy as np

from galvanax.errors import ConfigError, DataError
from galvanax.physics.collect import count_substeps
from galvanax.physics.layout import StateLayout

Array = np.ndarray | jax.Array
Step = Callable[[jax.Array, jax.Array], jax.Array]  # (..., state_dim), (..., action_dim) -> (..., state_dim)


class PredictionError(NamedTuple):
    """Mean squared errors of a model and of persistence, which predicts that nothing changes."""

    model: np.ndarray
    persistence: np.ndarray

    @property
    def ratio(self) -> float:
        """Model over persistence, each averaged first: below 1 the model knows something."""
        return float(np.mean(self.model) / np.mean(self.persistence))


def one_step_velocity_error(step: Step, layout: StateLayout, states: Array, actions: Array) -> PredictionError:
    """Errors of the velocities one step ahead, over all transitions.

    Args:
      step: the learned dynamics.
      layout: what the entries of a state mean.
      states: trajectories `(trajectories, length + 1, state_dim)`.
      actions: `(trajectories, length, action_dim)`.

    Returns:
      Two scalars, in squared units of velocity.
    """
    states, actions = _check(states, actions, layout)
    before, after = states[:, :-1], states[:, 1:]
    # A new function each time: of the same one, jit would remember the model's old weights.
    predicted = jax.jit(lambda state, action: step(state, action))(before, actions)
    squared = [jnp.mean((guess - after)[..., layout.nq :] ** 2) for guess in (predicted, before)]
    return PredictionError(*jax.device_get(squared))


def open_loop_error(step: Step, layout: StateLayout, states: Array, actions: Array, horizon: int) -> PredictionError:
    """Errors of predictions fed back for `horizon` steps from each trajectory's first state.

    The error is the mean square of `layout.difference` over trajectories and entries: positions (rad, m) and
    velocities (per second) count alike.

    Args:
      step: the learned dynamics.
      layout: what the entries of a state mean.
      states: true trajectories `(trajectories, length + 1, state_dim)`.
      actions: `(trajectories, length, action_dim)`.
      horizon: number of steps, at most `length`.

    Returns:
      Two arrays `(horizon,)`: after 1, 2, ... steps.

    Raises:
      GalvanaxError: the arrays don't fit, or are shorter than `horizon`.
    """
    states, actions = _check(states, actions, layout)
    if not 1 <= horizon <= actions.shape[1]:
        raise ConfigError(f"horizon={horizon}; expected 1 to {actions.shape[1]}, the trajectories' length")
    predicted = predict_open_loop(step, states[:, 0], actions[:, :horizon])
    truth = states[:, 1 : horizon + 1]
    squared = [
        jnp.mean(layout.difference(guess, truth) ** 2, axis=(0, 2))
        for guess in (predicted, jnp.broadcast_to(states[:, :1], truth.shape))
    ]
    return PredictionError(*jax.device_get(squared))


def predict_open_loop(step: Step, initial_states: Array, actions: Array) -> jax.Array:
    """Feeds predictions back.

    Args:
      step: the learned dynamics.
      initial_states: `(trajectories, state_dim)`.
      actions: `(trajectories, horizon, action_dim)`.

    Returns:
      The states after each action, `(trajectories, horizon, state_dim)`.
    """

    def advance(state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = step(state, action)
        return state, state

    _, predicted = jax.jit(lambda first, actions: jax.lax.scan(advance, first, actions))(
        jnp.asarray(initial_states, jnp.float32), jnp.swapaxes(jnp.asarray(actions, jnp.float32), 0, 1)
    )
    return jnp.swapaxes(predicted, 0, 1)


def mujoco_rollout(
    model: mujoco.MjModel, initial_states: np.ndarray, actions: np.ndarray, control_dt: float | None = None
) -> np.ndarray:
    """Reference trajectories from C MuJoCo in float64.

    Args:
      model: the model.
      initial_states: `(trajectories, nq + nv)`.
      actions: `(trajectories, length, nu)`, each held for one control step.
      control_dt: seconds a control step, a multiple of the timestep; by default one timestep.

    Returns:
      States `(trajectories, length + 1, nq + nv)`.

    Raises:
      GalvanaxError: the arrays or `control_dt` don't fit the model.
    """
    substeps = count_substeps(model, control_dt)
    initial_states, actions = np.asarray(initial_states, np.float64), np.asarray(actions, np.float64)
    trajectories, length = actions.shape[:2]
    if initial_states.shape != (trajectories, model.nq + model.nv) or actions.shape[2:] != (model.nu,):
        raise DataError(
            f"initial_states {initial_states.shape} and actions {actions.shape} don't fit the model: expected "
            f"(n, {model.nq + model.nv}) and (n, length, {model.nu})"
        )
    data, spec = mujoco.MjData(model), mujoco.mjtState.mjSTATE_FULLPHYSICS
    full = np.empty((trajectories, mujoco.mj_stateSize(model, spec)))
    for row, state in zip(full, initial_states, strict=True):
        data.qpos, data.qvel = state[: model.nq], state[model.nq :]
        mujoco.mj_getState(model, data, row, spec)
    controls = np.repeat(actions, substeps, axis=1) if model.nu else None
    history, _ = mujoco.rollout.rollout(model, data, full, controls, nstep=length * substeps)
    # A full state starts with the time.
    states = history[:, substeps - 1 :: substeps, 1 : 1 + model.nq + model.nv]
    return np.concatenate([initial_states[:, None], states], axis=1)


def max_contacts(model: mujoco.MjModel, states: np.ndarray) -> int:
    """The most contacts in any of the states `(..., nq + nv)`."""
    data, most = mujoco.MjData(model), 0
    for qpos in np.asarray(states, np.float64).reshape(-1, model.nq + model.nv)[:, : model.nq]:
        data.qpos = qpos
        mujoco.mj_fwdPosition(model, data)
        most = max(most, data.ncon)
    return most


def _check(states: Array, actions: Array, layout: StateLayout) -> tuple[jax.Array, jax.Array]:
    states, actions = jnp.asarray(states, jnp.float32), jnp.asarray(actions, jnp.float32)
    expected = (actions.shape[0], actions.shape[1] + 1, layout.state_dim)
    if states.shape != expected:
        raise DataError(
            f"states have shape {states.shape}; expected {expected}: [qpos, qvel], at one time more than the actions"
        )
    return states, actions
