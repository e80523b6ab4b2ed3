"""Random rollouts of any MuJoCo model in MJX, as training data for dynamics models."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from galvanax.errors import ConfigError, DataError
from galvanax.physics.quiet_mjx import mjx
from galvanax.physics.starts import NarrowStart, broadcast_limit

InitialStateSampler = Callable[[mjx.Model, jax.Array], mjx.Data]


class Rollouts(NamedTuple):
    """Transitions, each array `(num_rollouts, rollout_length, dim)`."""

    states: jax.Array
    actions: jax.Array
    next_states: jax.Array
    accelerations: jax.Array


def extract_state_features(data: mjx.Data) -> jax.Array:
    """The state `[qpos, qvel]` of simulation data, `(..., nq + nv)`."""
    return jnp.concatenate([data.qpos, data.qvel], axis=-1)


def collect_random_rollouts(
    model: mujoco.MjModel | mjx.Model,
    num_rollouts: int,
    rollout_length: int,
    action_min: float | np.ndarray | jax.Array,
    action_max: float | np.ndarray | jax.Array,
    rng: jax.Array,
    initial_state_sampler: InitialStateSampler | None = None,
    control_dt: float | None = None,
    correlation_time: float = 0.0,
) -> Rollouts:
    """Simulates rollouts under random actions, each held for one control step.

    An action is uniform between its limits. Over `correlation_time` seconds actions resemble each other: pushes that
    last take a system further than pushes that cancel. (A first-order autoregressive normal series, mapped to the
    uniform distribution by the normal cumulative distribution.)

    `accelerations[i, t]` is the mean acceleration over the control step from `states[i, t]` under
    `actions[i, t]`: with it a semi-implicit Euler step leads to the velocities of `next_states[i, t]`. (The `qacc`
    that MuJoCo's data holds before a step belongs to the action before, and leaves out implicit damping.)

    Rollout `i` depends on `rng` and `i` alone, however many there are.

    Args:
      model: any model; without actuators the actions have no entries.
      num_rollouts: number of rollouts.
      rollout_length: control steps in each.
      action_min: lowest control, one number or `(nu,)`, in the actuators' units.
      action_max: highest control, likewise.
      rng: a JAX random key.
      initial_state_sampler: draws a start; by default `NarrowStart()`, near `qpos0` and nearly at rest.
      control_dt: seconds that each action is held, a multiple of the timestep; by default one timestep.
      correlation_time: seconds in which the correlation of actions falls to 1/e; 0 for independent actions.

    Returns:
      `(states, actions, next_states, accelerations)`, each `(num_rollouts, rollout_length, dim)`.

    Raises:
      GalvanaxError: an action limit or `control_dt` doesn't fit the model, or a rollout diverged.
    """
    for name, count in (("num_rollouts", num_rollouts), ("rollout_length", rollout_length)):
        if count < 1:
            raise ConfigError(f"{name}={count}; expected at least 1")
    low = broadcast_limit("action_min", action_min, model.nu)
    high = broadcast_limit("action_max", action_max, model.nu)
    if np.any(low > high):
        first = int(np.argmax(low > high))
        raise ConfigError(f"action_min[{first}]={low[first]} is above action_max[{first}]={high[first]}")
    if not (np.isfinite(correlation_time) and correlation_time >= 0):
        raise ConfigError(f"correlation_time={correlation_time}; expected seconds, 0 or more")
    substeps = count_substeps(model, control_dt)
    seconds = substeps * float(model.opt.timestep)
    if isinstance(model, mujoco.MjModel):
        model = mjx.put_model(model, jax.local_devices()[0])
    memory = float(np.exp(-seconds / correlation_time)) if correlation_time else 0.0
    simulate = functools.partial(_simulate, initial_state_sampler or NarrowStart(), rollout_length, substeps, memory)
    states, actions = simulate(model, low, high, jnp.arange(num_rollouts), rng)
    _check_finite(states)
    qvel = states[..., model.nq :]
    return Rollouts(states[:, :-1], actions, states[:, 1:], (qvel[:, 1:] - qvel[:, :-1]) / seconds)


def control_range(model: mujoco.MjModel, action_limit: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest control, `(nu,)` each: an actuator's limits, or `action_limit` either way if it has none."""
    limited = model.actuator_ctrllimited.astype(bool)
    low, high = model.actuator_ctrlrange.T
    return np.where(limited, low, -action_limit), np.where(limited, high, action_limit)


def count_substeps(model: mujoco.MjModel | mjx.Model, control_dt: float | None) -> int:
    """Simulation steps in one control step.

    Raises:
      GalvanaxError: `control_dt` is no multiple of the timestep; names the nearest one that is.
    """
    if control_dt is None:
        return 1
    timestep = float(model.opt.timestep)
    ratio = control_dt / timestep
    substeps = max(round(ratio), 1) if np.isfinite(ratio) else 1
    # MJX keeps the timestep in float32.
    if not abs(ratio - substeps) < 1e-5 * substeps:
        raise ConfigError(
            f"control_dt={control_dt} s is no multiple of the model's timestep {timestep:.6g} s; "
            f"the nearest is {substeps * timestep:.6g} s"
        )
    return substeps


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _simulate(
    sampler: InitialStateSampler,
    rollout_length: int,
    substeps: int,
    memory: float,
    model: mjx.Model,
    low: jax.Array,
    high: jax.Array,
    indices: jax.Array,
    rng: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """States `(rollouts, length + 1, nq + nv)` and actions `(rollouts, length, nu)`."""

    def uniform_series(length: int, rng: jax.Array) -> jax.Array:
        rngs = jax.vmap(lambda step: jax.random.fold_in(rng, step))(jnp.arange(length))
        if not memory:
            return jax.vmap(lambda rng: jax.random.uniform(rng, (model.nu,)))(rngs)

        def advance(value: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
            value = memory * value + (1 - memory**2) ** 0.5 * noise
            return value, value

        noise = jax.vmap(lambda rng: jax.random.normal(rng, (model.nu,)))(rngs)
        _, series = jax.lax.scan(advance, noise[0], noise[1:])
        return jax.scipy.stats.norm.cdf(jnp.concatenate([noise[:1], series]))

    def rollout(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        start_rng, action_rng = jax.random.split(jax.random.fold_in(rng, index))
        data = sampler(model, start_rng)

        def control_step(data: mjx.Data, uniform: jax.Array) -> tuple[mjx.Data, tuple[jax.Array, jax.Array]]:
            action = low + (high - low) * uniform
            data = data.replace(ctrl=action)
            data = jax.lax.fori_loop(0, substeps, lambda _, data: mjx.step(model, data), data)
            return data, (extract_state_features(data), action)

        first = extract_state_features(data)
        _, (states, actions) = jax.lax.scan(control_step, data, uniform_series(rollout_length, action_rng))
        return jnp.concatenate([first[None], states]), actions

    return jax.vmap(rollout)(indices)


def _check_finite(states: jax.Array) -> None:
    bad = ~np.isfinite(np.asarray(states)).all(axis=-1)
    if bad.any():
        rollout = int(np.argmax(bad.any(axis=1)))
        raise DataError(
            f"{int(bad.any(axis=1).sum())} of {len(bad)} rollouts diverged, first rollout {rollout} at step "
            f"{int(np.argmax(bad[rollout]))}: expected finite states; use a smaller timestep, weaker actions "
            "or gentler starts"
        )
