"""Generalized advantage estimation."""

import jax
import jax.numpy as jnp


def generalized_advantages(
    rewards: jax.Array, values: jax.Array, next_values: jax.Array, done: jax.Array, discount: float, gae_lambda: float
) -> jax.Array:
    """Advantages (Schulman et al., 2016, eq. 16) over a rollout in which episodes end and begin, `(steps, envs)`.

    A truncated episode would have gone on: its last `next_values` is the value of the true last observation. A
    terminated one has no future, so its is 0. Either way nothing flows back over the border between episodes.
    (brax's estimator masks truncated steps out instead, and leaves λ out of the first step.)

    Args:
      rewards: `(steps, envs)`.
      values: of the observation before each step.
      next_values: of the observation that the step led to: 0 where the episode terminated.
      done: 1.0 where the episode ended with the step, either way.
      discount: γ.
      gae_lambda: λ.
    """
    errors = rewards + discount * next_values - values

    def back(advantage: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        error, done = step
        advantage = error + discount * gae_lambda * (1 - done) * advantage
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(errors[0]), (errors, done), reverse=True)[1]
