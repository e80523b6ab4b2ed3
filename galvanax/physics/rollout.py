"""Trajectories of a system under sequences of actions, with gradients."""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

from galvanax.errors import ConfigError, DataError
from galvanax.physics.implicit_step import KEEP_SOLUTIONS
from galvanax.physics.system import System

Checkpoint = Literal["none", "step", "segment"]
CHECKPOINTS = ("none", "step", "segment")


def rollout(system: System, x0: jax.Array, actions: jax.Array, *, checkpoint: Checkpoint = "none") -> jax.Array:
    """Applies actions one after another, each for one control step.

    Pure: it can be jitted, vmapped and differentiated. What is kept for the backward pass over a horizon of H steps:

    - `"none"`: what the system's own steps keep. Of an `MJXSystem` that is little, a state and a solution of the
      constraint solver for each physics step; of a system in plain JAX, every intermediate.
    - `"step"`: a state, and the solver's solutions, for each control step; the rest of it is computed again.
    - `"segment"`: 2 √H states; steps are computed again twice. For long horizons.

    Args:
      system: what moves.
      x0: the states to start from, `(..., state_dim)`.
      actions: `(..., horizon, action_dim)`; leading axes as `x0`'s, or fewer on either side, which are broadcast.
      checkpoint: what to keep; changes no value.

    Returns:
      States `(..., horizon + 1, state_dim)`, of `x0`'s type; the first row is `x0` itself.

    Raises:
      DataError: an array has the wrong size; names it.
      ConfigError: `checkpoint` is none of the above.
    """
    if checkpoint not in CHECKPOINTS:
        raise ConfigError(f"rollout: checkpoint={checkpoint!r}; expected one of {', '.join(CHECKPOINTS)}")
    x0, actions = jnp.asarray(x0), jnp.asarray(actions)
    if not jnp.issubdtype(x0.dtype, jnp.floating):
        x0 = x0.astype(jnp.zeros(()).dtype)
    lead = _leading_axes(system, x0, actions)
    x0 = jnp.broadcast_to(x0, (*lead, *x0.shape[-1:]))
    actions = jnp.broadcast_to(actions, (*lead, *actions.shape[-2:])).astype(x0.dtype)
    run = functools.partial(_rollout, system, checkpoint)
    for _ in lead:
        run = jax.vmap(run)
    return run(x0, actions)


def _rollout(system: System, checkpoint: Checkpoint, x0: jax.Array, actions: jax.Array) -> jax.Array:
    """One trajectory `(horizon + 1, state_dim)`."""

    def advance(state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = system.step(state, action).astype(state.dtype)
        return state, state

    if checkpoint != "none":
        # What `prevent_cse` prevents can't happen in a loop.
        advance = jax.checkpoint(advance, policy=KEEP_SOLUTIONS, prevent_cse=False)
    horizon = actions.shape[0]
    if checkpoint != "segment" or horizon < 4:
        _, states = jax.lax.scan(advance, x0, actions)
        return jnp.concatenate([x0[None], states])

    length = math.isqrt(horizon - 1) + 1
    segments = horizon // length

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def segment(state: jax.Array, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.scan(advance, state, actions)

    head = actions[: segments * length].reshape(segments, length, -1)
    state, states = jax.lax.scan(segment, x0, head)
    _, rest = jax.lax.scan(advance, state, actions[segments * length :])
    return jnp.concatenate([x0[None], states.reshape(segments * length, -1), rest])


def _leading_axes(system: System, x0: jax.Array, actions: jax.Array) -> tuple[int, ...]:
    if x0.ndim < 1 or x0.shape[-1] != system.state_dim:
        raise DataError(f"x0 has shape {x0.shape}; expected (..., {system.state_dim}), the system's state_dim")
    if actions.ndim < 2 or actions.shape[-1] != system.action_dim:
        raise DataError(
            f"actions have shape {actions.shape}; expected (..., horizon, {system.action_dim}), the last of them the "
            "system's action_dim"
        )
    try:
        return jnp.broadcast_shapes(x0.shape[:-1], actions.shape[:-2])
    except ValueError:
        raise DataError(
            f"x0 {x0.shape} and actions {actions.shape}: leading axes {x0.shape[:-1]} and {actions.shape[:-2]} differ; "
            "expected (..., state_dim) and (..., horizon, action_dim)"
        ) from None
