"""What a transformer is told beside its tokens: place, time and condition, as vectors."""

import jax
import jax.numpy as jnp
from flax import nnx

from galvanax.errors import ConfigError

_TOKEN_DIM = 128  # of each entry of a condition
_NUM_HEADS = 2
_LONGEST_PERIOD = 10_000.0


def sinusoidal_features(values: jax.Array, dim: int) -> jax.Array:
    """Sines, then cosines, of a value at `dim / 2` frequencies from 1 down to nearly 1/10000 (rad for each unit).

    Source: Vaswani et al., 2017 (arXiv:1706.03762), section 3.5, with sines and cosines side by side.

    Args:
      values: `(...)`.
      dim: even.

    Returns:
      `(..., dim)`, float32.
    """
    frequencies = jnp.exp(-jnp.log(_LONGEST_PERIOD) * jnp.arange(dim // 2) / (dim // 2))
    phases = jnp.asarray(values, jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)


class TimeEmbedding(nnx.Module):
    """The time of a flow as sinusoidal features; has no parameters.

    Time 1 counts as 1000 units: the steps that the frequencies were made for in diffusion models (Ho et al., 2020,
    arXiv:2006.11239). At frequencies of at most 1 rad, times between 0 and 1 would look alike.

    Args:
      dim: entries of the embedding.

    Raises:
      ConfigError: `dim` is odd or less than 2.
    """

    def __init__(self, dim: int) -> None:
        _check_even("TimeEmbedding: dim", dim)
        self.dim = dim

    def __call__(self, t: jax.Array) -> jax.Array:
        """Maps times `(...)` between 0 and 1 to `(..., dim)`."""
        return sinusoidal_features(1000.0 * jnp.asarray(t), self.dim)


class ContinuousCondEmbedder(nnx.Module):
    """A vector of numbers as an embedding: each entry becomes a token, and the tokens attend to one another.

    A linear map to 128 numbers an entry, attention of 2 heads over the entries, and a linear map of all that. Source:
    the conditions of CleanDiffuser (Dong et al., 2024, arXiv:2406.09509). There a mask sets tokens to zero and leaves
    the biases behind them; here what it switches off adds nothing.

    Args:
      condition_dim: entries of a condition.
      dim: entries of the embedding.
      rngs: for the weights: Xavier-uniform, with zero biases.

    Raises:
      ConfigError: a size is less than 1.
    """

    def __init__(self, condition_dim: int, dim: int, *, rngs: nnx.Rngs) -> None:
        for name, value in (("condition_dim", condition_dim), ("dim", dim)):
            if value < 1:
                raise ConfigError(f"ContinuousCondEmbedder: {name}={value}; expected at least 1.")
        init = nnx.initializers.xavier_uniform()
        width = _TOKEN_DIM * condition_dim
        self.condition_dim = condition_dim
        self.tokens = nnx.Linear(condition_dim, width, kernel_init=init, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            _NUM_HEADS, _TOKEN_DIM, kernel_init=init, decode=False, keep_rngs=False, rngs=rngs
        )
        self.out = nnx.Linear(width, dim, kernel_init=init, rngs=rngs)

    def __call__(self, condition: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Embeds conditions.

        Args:
          condition: `(..., condition_dim)`.
          mask: `(...)`, 1 where the condition counts and 0 where the embedding is to be zero; None for 1.

        Returns:
          `(..., dim)`.

        Raises:
          ConfigError: the condition has another number of entries, or the mask another shape.
        """
        if condition.shape[-1] != self.condition_dim:
            raise ConfigError(f"condition has shape {condition.shape}; expected (..., {self.condition_dim}).")
        batch = condition.shape[:-1]
        if mask is not None:
            mask = jnp.asarray(mask)
            if mask.shape != batch:
                raise ConfigError(f"condition_mask has shape {mask.shape}; expected {batch}, as many as conditions.")
            # Not a product, and before as after: 0 times NaN is NaN, in gradients too.
            condition = jnp.where(mask[..., None] != 0, condition, 0.0)
        tokens = self.tokens(condition).reshape(*batch, self.condition_dim, _TOKEN_DIM)
        embedding = self.out(self.attention(tokens).reshape(*batch, -1))
        return embedding if mask is None else jnp.where(mask[..., None] != 0, embedding, 0.0)


def _check_even(name: str, value: int) -> None:
    if value < 2 or value % 2:
        raise ConfigError(f"{name}={value}; expected an even number, at least 2: half are sines, half are cosines.")
