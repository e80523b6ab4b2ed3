"""What flow matching over trajectories learns: a transformer on normalised states."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from galvanax.networks.dit import DiT1d
from galvanax.networks.normalizer import Normalizer, Statistic


class TrajectoryFlow(nnx.Module):
    """Sees a noisy trajectory, says something of each of its steps.

    Args:
      state_dim: entries of a state.
      out_dim: entries of what is said of a step.
      change_dim: entries of a difference of two states.
      condition_dim: entries of the condition, 0 for none.
      d_model: width.
      num_heads: of the attention; divides `d_model`.
      depth: blocks.
      dropout: share of activations dropped in training.
      rngs: for the weights.
    """

    def __init__(
        self,
        state_dim: int,
        out_dim: int,
        change_dim: int,
        condition_dim: int,
        *,
        d_model: int,
        num_heads: int,
        depth: int,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        self.states = Normalizer(state_dim)
        self.conditions = Normalizer(condition_dim) if condition_dim else None
        self.change_std = Statistic(jnp.ones(change_dim))
        self.transformer = DiT1d(
            state_dim,
            out_dim,
            d_model=d_model,
            num_heads=num_heads,
            depth=depth,
            condition_dim=condition_dim,
            dropout=dropout,
            rngs=rngs,
        )

    def __call__(
        self,
        noisy: jax.Array,
        time: jax.Array,
        condition: jax.Array | None = None,
        condition_mask: jax.Array | None = None,
        *,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Maps normalised states to one output a step.

        Args:
          noisy: `(batch, steps, state_dim)`, normalised.
          time: of the flow, 0 for noise, 1 for data `(batch,)`.
          condition: in its own units `(batch, condition_dim)`.
          condition_mask: 0 where the condition is to be ignored `(batch,)`.
          rng: keys `(batch,)` of the dropout; None for none.

        Returns:
          `(batch, steps, out_dim)`.
        """
        if self.conditions is not None:
            assert condition is not None
            condition = self.conditions.normalize(condition)
        return self.transformer(noisy, time, condition, condition_mask, rng=rng)

    def set_statistics(self, states: np.ndarray, changes: np.ndarray, conditions: np.ndarray | None) -> None:
        """Sets the normalisers from data `(rows, ...)`: states, differences of states from their mean, conditions."""
        rows = np.asarray(states, np.float64)
        self.states.set(rows.mean(0), rows.std(0))
        deviation = np.sqrt(np.mean(np.asarray(changes, np.float64) ** 2, axis=0))
        self.change_std[...] = jnp.asarray(np.where(deviation > 1e-6, deviation, 1.0), jnp.float32)
        if self.conditions is not None and conditions is not None:
            rows = np.asarray(conditions, np.float64)
            self.conditions.set(rows.mean(0), rows.std(0))
