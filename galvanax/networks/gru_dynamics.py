"""A recurrent model of a system's dynamics that predicts many steps ahead."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from galvanax.networks.mlp import MLP
from galvanax.networks.normalizer import Normalizer
from galvanax.physics.integrators import integrate_positions
from galvanax.physics.layout import StateLayout


class History(NamedTuple):
    """What a recurrent model keeps of the past.

    Attributes:
      hidden: the GRU's state `(..., hidden_size)`.
      anchor: the history's first state, from which coordinates are measured, `(..., state_dim)`.
      state: the present state `(..., state_dim)`.
    """

    hidden: jax.Array
    anchor: jax.Array
    state: jax.Array


class Prediction(NamedTuple):
    """One step ahead.

    Attributes:
      state: the next state `(..., state_dim)`.
      variance: of the next state about its mean, in the space of `StateLayout.difference`, `(..., 2 nv)`; zero
        without a Gaussian head.
    """

    state: jax.Array
    variance: jax.Array


class GRUDynamicsModel(nnx.Module):
    """State and action of each past step into a GRU; out of it, by how much the state changes.

    The network sees coordinates relative to the history's first point or z-scored, angles as cosine and sine,
    quaternions as rotation matrices, and z-scored velocities and actions. Of an angle it predicts the rotation
    (1 + δc, δs), so that an output of zero, where training starts, means no change. Changes are in units of their
    deviation in the data.

    Args:
      layout: what the entries of a state mean.
      action_dim: entries of an action.
      hidden_size: of the GRU, and of the layer behind it.
      relative: places in qpos of the coordinates that are relative to the history's first point; by default all of
        `layout.coordinates`.
      absolute: whether the network sees relative coordinates as they are too: where a joint's range ends, it must.
      gaussian: whether to predict the variance of the next state too, between learned bounds (PETS, Chua et al.
        2018, appendix A.1).
      rngs: for the weights.
    """

    def __init__(
        self,
        layout: StateLayout,
        action_dim: int,
        hidden_size: int = 128,
        *,
        relative: tuple[int, ...] | None = None,
        absolute: bool = False,
        gaussian: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.layout, self.absolute = layout, absolute
        self.relative = layout.coordinates if relative is None else relative
        self.hidden_size = hidden_size
        inputs = layout.num_features + action_dim + len(self.relative) * absolute
        changes = 2 * layout.nv
        self.features = Normalizer(layout.num_features)
        self.positions = Normalizer(len(self.relative))
        self.actions = Normalizer(action_dim)
        self.changes = Normalizer(changes)
        self.cell = nnx.GRUCell(inputs, hidden_size, rngs=rngs)
        outputs = changes + len(layout.angles)
        self.head = MLP(hidden_size + inputs, (hidden_size,), outputs + changes * gaussian, rngs=rngs)
        last = self.head.layers[-1].kernel
        last[...] = jnp.zeros_like(last[...])
        self.gaussian = gaussian
        if gaussian:
            self.max_log_variance = nnx.Param(jnp.full(changes, 0.5))
            self.min_log_variance = nnx.Param(jnp.full(changes, -10.0))

    def set_statistics(
        self,
        states: tuple[np.ndarray, np.ndarray],
        actions: tuple[np.ndarray, np.ndarray],
        changes: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Means and deviations of states, actions, and the change of the state in a step `(2 nv,)`."""
        mean, std = self.layout.feature_statistics(*states)
        # What is measured from the history's first point has no mean to subtract.
        mean[np.array([self.layout.coordinates.index(place) for place in self.relative], int)] = 0.0
        self.features.set(mean, std)
        self.positions.set(*(values[list(self.relative)] for values in states))
        self.actions.set(*actions)
        self.changes.set(np.zeros_like(changes[0]), np.sqrt(changes[1] ** 2 + changes[0] ** 2))

    def encode(self, states: jax.Array, actions: jax.Array) -> History:
        """Reads a history.

        Args:
          states: `(..., history, state_dim)`; the last is the present.
          actions: `(..., history - 1 or more, action_dim)`; the one at the present is not looked at.
        """
        anchor = states[..., 0, :]
        inputs = self._inputs(anchor[..., None, :], states[..., :-1, :], actions[..., : states.shape[-2] - 1, :])
        hidden = jnp.zeros((*anchor.shape[:-1], self.hidden_size), inputs.dtype)
        # A scan: unrolled, XLA's CPU compiler makes a program that is several times slower.
        hidden, _ = jax.lax.scan(
            lambda hidden, row: (self.cell(hidden, row)[0], None), hidden, jnp.moveaxis(inputs, -2, 0)
        )
        return History(hidden, anchor, states[..., -1, :])

    def step(self, history: History, action: jax.Array, keep: jax.Array | None = None) -> tuple[History, Prediction]:
        """One step: `action (..., action_dim)` at the present state.

        Args:
          history: the past.
          action: to take.
          keep: factors of what the GRU says to the layer behind it `(..., hidden_size)`: a mask of dropout.
        """
        inputs = self._inputs(history.anchor, history.state, action)
        hidden, _ = self.cell(history.hidden, inputs)
        said = hidden if keep is None else hidden * keep
        outputs = self.head(jnp.concatenate([said, inputs], axis=-1))
        state, variance = self._apply(history.state, outputs)
        return History(hidden, history.anchor, state), Prediction(state, variance)

    def _inputs(self, anchor: jax.Array, state: jax.Array, action: jax.Array) -> jax.Array:
        index = np.array(self.relative, int)
        relative = state.at[..., index].add(-anchor[..., index])
        features = [self.features.normalize(self.layout.features(relative)), self.actions.normalize(action)]
        if self.absolute:
            features.append(self.positions.normalize(state[..., index]))
        return jnp.concatenate(features, axis=-1)

    def _apply(self, state: jax.Array, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        layout, count = self.layout, 2 * self.layout.nv
        scale = self.changes.std[...]
        change = outputs[..., :count] * scale
        if layout.angles:
            dofs = angle_dofs(layout)
            cosine = outputs[..., count : count + len(dofs)] * scale[dofs]
            # The rotation (1 + δc, δs): trigonometric addition, normalised.
            change = change.at[..., dofs].set(jnp.arctan2(change[..., dofs], 1 + cosine))
        qpos = integrate_positions(layout, state[..., : layout.nq], change[..., : layout.nv], 1.0)
        following = jnp.concatenate([qpos, state[..., layout.nq :] + change[..., layout.nv :]], axis=-1)
        if not self.gaussian:
            return following, jnp.zeros_like(change)
        low, high = self.min_log_variance[...], self.max_log_variance[...]
        log_variance = high - jax.nn.softplus(high - outputs[..., -count:])
        log_variance = low + jax.nn.softplus(log_variance - low)
        return following, jnp.exp(log_variance) * scale**2


class GRUEnsemble(nnx.Module):
    """Models that differ in their first weights, as one program: every array has a leading axis `(members, ...)`.

    Args:
      members: how many.
      arguments: as of `GRUDynamicsModel`.
    """

    def __init__(
        self,
        members: int,
        layout: StateLayout,
        action_dim: int,
        hidden_size: int = 128,
        *,
        relative: tuple[int, ...] | None = None,
        absolute: bool = False,
        gaussian: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.layout, self.size = layout, members

        @nnx.split_rngs(splits=members)
        @nnx.vmap(in_axes=0, out_axes=0)
        def create(rngs: nnx.Rngs) -> GRUDynamicsModel:
            return GRUDynamicsModel(
                layout, action_dim, hidden_size, relative=relative, absolute=absolute, gaussian=gaussian, rngs=rngs
            )

        self.members = create(rngs)

    def set_statistics(self, *statistics: tuple[np.ndarray, np.ndarray]) -> None:
        """As of `GRUDynamicsModel`, for every member."""
        graphdef, state = nnx.split(self.members)
        one = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], state))
        one.set_statistics(*statistics)
        for name in ("features", "positions", "actions", "changes"):
            stacked, single = getattr(self.members, name), getattr(one, name)
            stacked.mean[...] = jnp.broadcast_to(single.mean[...], stacked.mean.shape)
            stacked.std[...] = jnp.broadcast_to(single.std[...], stacked.std.shape)

    def encode(self, states: jax.Array, actions: jax.Array) -> History:
        """As of `GRUDynamicsModel`; each leaf gets a leading axis `(members, ...)`."""
        return self._each(lambda member: member.encode(states, actions))

    def step(self, history: History, actions: jax.Array, keep: jax.Array | None = None) -> tuple[History, Prediction]:
        """As of `GRUDynamicsModel`, each member from a history (and with a mask) of its own under the same action."""
        return self._each(lambda member, own, mask: member.step(own, actions, mask), history, keep)

    def _each(self, function: Callable[..., Any], *arguments: Any) -> Any:
        # jax.vmap over the members' arrays: nnx.vmap cannot be used inside lax.scan, where rollouts happen.
        graphdef, state = nnx.split(self.members)

        def apply(own: Any, *args: Any) -> Any:
            return function(nnx.merge(graphdef, own, copy=True), *args)

        if self.size > 1:
            return jax.vmap(apply)(state, *arguments)
        # A matrix product with a batch of one is a fifth slower than one without.
        state, arguments = jax.tree.map(lambda leaf: leaf[0], (state, arguments))
        return jax.tree.map(lambda leaf: leaf[None], apply(state, *arguments))


def angle_dofs(layout: StateLayout) -> np.ndarray:
    """Places of the angles' velocities in qvel, and of their turns in `StateLayout.difference`."""
    places: Sequence[int] = layout.scalar_positions
    return np.array([layout.scalar_velocities[places.index(angle)] for angle in layout.angles], int)
