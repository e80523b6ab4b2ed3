"""Learned dynamics: a network predicts accelerations, an integrator makes them states."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from galvanax.networks.mlp import MLP
from galvanax.networks.normalizer import Normalizer
from galvanax.physics.integrators import semi_implicit_euler
from galvanax.physics.layout import StateLayout


class BaseDynamicsModel(nnx.Module):
    """Subclass it and define `__call__`; override `step` for another integration.

    `inputs` and `self.acceleration.denormalize` give a network normalised inputs and outputs.

    Args:
      layout: what the entries of a state mean.
      action_dim: entries of an action.
      dt: seconds from a state to the next.
    """

    def __init__(self, layout: StateLayout, action_dim: int, dt: float) -> None:
        self.layout = layout
        self.action_dim = action_dim
        self.dt = dt
        self.features = Normalizer(layout.num_features)
        self.actions = Normalizer(action_dim)
        self.acceleration = Normalizer(layout.nv)

    @property
    def input_dim(self) -> int:
        """Entries of `inputs`."""
        return self.layout.num_features + self.action_dim

    def inputs(self, state: jax.Array, action: jax.Array) -> jax.Array:
        """What the network sees: normalised features of the state, and the normalised action, `(..., input_dim)`."""
        features = self.features.normalize(self.layout.features(state))
        return jnp.concatenate([features, self.actions.normalize(action)], axis=-1)

    def __call__(self, state: jax.Array, action: jax.Array) -> jax.Array:
        """The mean acceleration over a step.

        Args:
          state: `(..., nq + nv)`.
          action: `(..., action_dim)`.

        Returns:
          `(..., nv)`, in rad/s² or m/s².
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, state, action).")

    def step(self, state: jax.Array, action: jax.Array) -> jax.Array:
        """The next state `(..., nq + nv)`, by a semi-implicit Euler step with the predicted acceleration."""
        return semi_implicit_euler(self.layout, state, self(state, action), self.dt)

    def set_statistics(
        self,
        state: tuple[np.ndarray, np.ndarray],
        action: tuple[np.ndarray, np.ndarray],
        acceleration: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Stores the `(mean, std)` of a dataset's states, actions and accelerations.

        Cosines, sines and rotation matrices are left as they are.

        Raises:
          DataError: wrong shape or not finite.
        """
        self.features.set(*self.layout.feature_statistics(*state))
        self.actions.set(*action)
        self.acceleration.set(*acceleration)


class MLPDynamicsModel(BaseDynamicsModel):
    """Accelerations from a multilayer perceptron.

    Args:
      layout: what the entries of a state mean.
      action_dim: entries of an action.
      dt: seconds from a state to the next.
      hidden_dims: width of each hidden layer.
      activation: name of a function of `flax.nnx`.
      rngs: streams of random numbers for the weights.
    """

    def __init__(
        self,
        layout: StateLayout,
        action_dim: int,
        dt: float,
        hidden_dims: Sequence[int] = (128, 128),
        activation: str = "swish",
        *,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(layout, action_dim, dt)
        self.network = MLP(self.input_dim, hidden_dims, layout.nv, activation=activation, rngs=rngs)

    def __call__(self, state: jax.Array, action: jax.Array) -> jax.Array:
        """See `BaseDynamicsModel`."""
        return self.acceleration.denormalize(self.network(self.inputs(state, action)))
