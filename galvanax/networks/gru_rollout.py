"""Predictions of an ensemble of recurrent models, fed back: what planners and reports look at."""

from typing import Literal

import jax
import jax.numpy as jnp

from galvanax.networks.gru_dynamics import GRUEnsemble, History
from galvanax.physics.dynamics import unroll
from galvanax.physics.integrators import integrate_positions

Propagation = Literal["moment", "member"]


def read_history(model: GRUEnsemble, states: jax.Array, actions: jax.Array) -> History:
    """What the model keeps of the past, with the members behind the batch axes: `(..., members)`.

    So that vmap over a batch of histories is what anyone expects.

    Args:
      model: the network.
      states: `(..., history, state_dim)`, the last one present.
      actions: `(..., history - 1 or more, action_dim)`; the one at the present is not looked at.
    """
    return _members_last(model.encode(states, actions), states.ndim - 2)


def step_with_variance(
    model: GRUEnsemble, history: History, action: jax.Array, propagation: Propagation
) -> tuple[History, jax.Array, jax.Array]:
    """The history, the state and its variance after `action (..., action_dim)`; see `GRUDynamics`."""
    batch_axes = jnp.ndim(action) - 1
    history, (state, variance) = model.step(_members_first(history, batch_axes), jnp.asarray(action, jnp.float32))
    if propagation == "moment":
        state, variance = _moments(model, state, variance)
        history = history._replace(state=jnp.broadcast_to(state, history.state.shape))
    return _members_last(history, batch_axes), state, variance


def rollout(model: GRUEnsemble, history: History, actions: jax.Array, propagation: Propagation) -> jax.Array:
    """The states after each of the actions `(..., horizon, action_dim)`: `(..., horizon, state_dim)`."""

    def step(history: History, action: jax.Array) -> tuple[History, jax.Array]:
        return step_with_variance(model, history, action, propagation)[:2]

    return unroll(step, history, actions)


def _moments(model: GRUEnsemble, states: jax.Array, variances: jax.Array) -> tuple[jax.Array, jax.Array]:
    layout, nv = model.layout, model.layout.nv
    apart = layout.difference(states, jnp.broadcast_to(states[:1], states.shape))
    shift = apart.mean(0)
    qpos = integrate_positions(layout, states[0, ..., : layout.nq], shift[..., :nv], 1.0)
    mean = jnp.concatenate([qpos, states[0, ..., layout.nq :] + shift[..., nv:]], axis=-1)
    return mean, variances.mean(0) + apart.var(0)


def _members_last(history: History, batch_axes: int) -> History:
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, batch_axes), history)


def _members_first(history: History, batch_axes: int) -> History:
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, batch_axes, 0), history)
