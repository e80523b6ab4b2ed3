"""A diffusion transformer over sequences."""

import jax
import jax.numpy as jnp
from flax import nnx

from galvanax.errors import ConfigError
from galvanax.networks.embeddings import ContinuousCondEmbedder, TimeEmbedding, sinusoidal_features

# Heads of 64 entries each, as in the transformers that this one descends from. Use: DiT1d(..., **DIT_SIZES["small"]).
DIT_SIZES: dict[str, dict[str, int]] = {
    "small": {"d_model": 128, "num_heads": 2, "depth": 2},
    "medium": {"d_model": 256, "num_heads": 4, "depth": 3},
    "large": {"d_model": 384, "num_heads": 6, "depth": 3},
}

_EPSILON = 1e-6


class DiTBlock(nnx.Module):
    """Self-attention and a perceptron, each shifted, scaled and gated by an embedding (adaLN-Zero).

    With s, c, g for shift, scale and gate, all linear in SiLU(embedding), and N for normalisation without parameters:
    `x ← x + g₁ · attention((1 + c₁) · N(x) + s₁)`, then `x ← x + g₂ · perceptron((1 + c₂) · N(x) + s₂)`. Gates start at
    zero, so a fresh block is the identity. Source: Peebles & Xie, 2023 (arXiv:2212.09748), section 3.2.

    Args:
      d_model: entries of a token and of the embedding.
      num_heads: attention heads; divides `d_model`.
      dropout: share of attention weights, and of the perceptron's hidden units, left out where a key is given.
      rngs: for the weights.

    Raises:
      ConfigError: a setting is impossible; names it.
    """

    def __init__(self, d_model: int, num_heads: int, *, dropout: float = 0.0, rngs: nnx.Rngs) -> None:
        _check_at_least_one(d_model=d_model, num_heads=num_heads)
        if d_model % num_heads:
            divisors = [heads for heads in range(1, d_model + 1) if d_model % heads == 0]
            near = min(divisors, key=lambda heads: abs(heads - num_heads))
            raise ConfigError(
                f"num_heads={num_heads} doesn't divide d_model={d_model}; the nearest that does is {near}."
            )
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout={dropout}; expected 0 or more and less than 1.")
        init = nnx.initializers.xavier_uniform()
        self.norm = _layer_norm(d_model, rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads, d_model, dropout_rate=dropout, broadcast_dropout=False, kernel_init=init, decode=False,
            keep_rngs=False, rngs=rngs,
        )  # fmt: skip
        self.expand = nnx.Linear(d_model, 4 * d_model, kernel_init=init, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.contract = nnx.Linear(4 * d_model, d_model, kernel_init=init, rngs=rngs)
        self.modulation = _zero_linear(d_model, 6 * d_model, rngs)

    def __call__(self, x: jax.Array, embedding: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Maps tokens.

        Args:
          x: `(..., tokens, d_model)`.
          embedding: `(..., d_model)`.
          rng: one key for the dropout of all that is given; None for no dropout.

        Returns:
          `(..., tokens, d_model)`.
        """
        modulation = self.modulation(nnx.silu(embedding))[..., None, :]
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)
        # Flax's layers draw from streams: a fresh one holds no more than the key.
        rngs = None if rng is None else nnx.Rngs(dropout=rng)
        still = rng is None
        attended = self.attention(_modulate(self.norm(x), shift1, scale1), deterministic=still, rngs=rngs)
        x = x + gate1 * attended
        hidden = nnx.gelu(self.expand(_modulate(self.norm(x), shift2, scale2)), approximate=True)
        hidden = self.dropout(hidden, deterministic=still, rngs=rngs)
        return x + gate2 * self.contract(hidden)


class DiT1d(nnx.Module):
    """A transformer from a sequence of tokens, a time and perhaps a condition to a sequence of outputs.

    Tokens get their place as sinusoidal features. Time and condition, each an embedding, are added and go through
    Linear-Mish-Linear-Mish into every block (`DiTBlock`) and into the last layer. Weights start Xavier-uniform, biases
    at zero, the map of the embeddings with deviation 0.02, and all modulation and the last layer at zero: a fresh
    network's output is exactly 0. Source: DiT (Peebles & Xie, 2023, arXiv:2212.09748), in one dimension as in
    CleanDiffuser (Dong et al., 2024, arXiv:2406.09509), from where DynaFlow has it (arXiv:2509.19804).

    Randomness is a function of the key that a call is given. The noise of an example depends on its own key alone, or
    on the one key and its place in the batch: never on its neighbours.

    Args:
      in_dim: entries of a token.
      out_dim: entries of an output.
      d_model: width; even, and a multiple of `num_heads`.
      num_heads: attention heads.
      depth: blocks.
      condition_dim: entries of a condition; 0 for a network that knows none.
      dropout: see `DiTBlock`.
      rngs: for the weights.

    Raises:
      ConfigError: a setting is impossible; names it.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        d_model: int,
        num_heads: int,
        depth: int,
        condition_dim: int = 0,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        _check_at_least_one(in_dim=in_dim, out_dim=out_dim, d_model=d_model, depth=depth)
        if d_model % 2:
            raise ConfigError(f"d_model={d_model}; expected an even number: half of the features of time are sines.")
        if condition_dim < 0:
            raise ConfigError(f"condition_dim={condition_dim}; expected 0 for no condition, or more.")
        self.in_dim, self.condition_dim, self.d_model, self.dropout = in_dim, condition_dim, d_model, dropout
        init, small = nnx.initializers.xavier_uniform(), nnx.initializers.normal(0.02)
        self.project = nnx.Linear(in_dim, d_model, kernel_init=init, rngs=rngs)
        self.time = TimeEmbedding(d_model)
        self.condition = ContinuousCondEmbedder(condition_dim, d_model, rngs=rngs) if condition_dim else None
        self.map = nnx.List(nnx.Linear(d_model, d_model, kernel_init=small, rngs=rngs) for _ in range(2))
        self.blocks = nnx.List(DiTBlock(d_model, num_heads, dropout=dropout, rngs=rngs) for _ in range(depth))
        self.norm = _layer_norm(d_model, rngs)
        self.modulation = _zero_linear(d_model, 2 * d_model, rngs)
        self.out = _zero_linear(d_model, out_dim, rngs)

    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        condition: jax.Array | None = None,
        condition_mask: jax.Array | None = None,
        *,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Maps a batch of sequences.

        Args:
          x: `(batch, tokens, in_dim)`.
          t: times between 0 and 1 `(batch,)`, or one for all.
          condition: `(batch, condition_dim)`; None for no condition.
          condition_mask: `(batch,)`; where it is 0, the result is that without condition. None for 1.
          rng: a key, or one for each example `(batch,)`, for dropout; None for none. Where a batch is cut over devices,
            give each example its own.

        Returns:
          `(batch, tokens, out_dim)`.

        Raises:
          ConfigError: a shape is not as above; names the argument.
        """
        if x.ndim != 3 or x.shape[-1] != self.in_dim:
            raise ConfigError(f"x has shape {x.shape}; expected (batch, tokens, {self.in_dim}).")
        embedding = self._embed(len(x), jnp.asarray(t), condition, condition_mask)
        if rng is None or not self.dropout:
            return self._transform(x, embedding)
        return jax.vmap(self._transform)(x, embedding, _example_keys(rng, len(x)))

    def _embed(
        self, batch: int, t: jax.Array, condition: jax.Array | None, condition_mask: jax.Array | None
    ) -> jax.Array:
        """Of times and conditions, `(batch, d_model)`."""
        if t.shape not in ((), (batch,)):
            raise ConfigError(f"t has shape {t.shape}; expected ({batch},), as many as x, or () for one time for all.")
        embedding = self.time(jnp.broadcast_to(t, (batch,)))
        if condition is not None:
            if self.condition is None:
                raise ConfigError(f"condition of shape {condition.shape} for a network with condition_dim=0.")
            if condition.shape != (batch, self.condition_dim):
                raise ConfigError(f"condition has shape {condition.shape}; expected {(batch, self.condition_dim)}.")
            embedding = embedding + self.condition(condition, condition_mask)
        for layer in self.map:
            embedding = jax.nn.mish(layer(embedding))
        return embedding

    def _transform(self, x: jax.Array, embedding: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        """Of `(..., tokens, in_dim)` and embeddings `(..., d_model)`, with one key for all."""
        x = self.project(x) + sinusoidal_features(jnp.arange(x.shape[-2]), self.d_model)
        for index, block in enumerate(self.blocks):
            x = block(x, embedding, rng=None if rng is None else jax.random.fold_in(rng, index))
        shift, scale = jnp.split(self.modulation(nnx.silu(embedding))[..., None, :], 2, axis=-1)
        return self.out(_modulate(self.norm(x), shift, scale))


def _example_keys(rng: jax.Array, batch: int) -> jax.Array:
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key) or rng.shape not in ((), (batch,)):
        raise ConfigError(f"rng is {rng.dtype}{list(rng.shape)}; expected jax.random.key(...), or ({batch},) of them.")
    return rng if rng.ndim else jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(batch))


def _modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    return x * (1 + scale) + shift


def _layer_norm(dim: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance, E[x²] - E[x]², cancels in float32.
    return nnx.LayerNorm(dim, epsilon=_EPSILON, use_bias=False, use_scale=False, use_fast_variance=False, rngs=rngs)


def _zero_linear(in_dim: int, out_dim: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(in_dim, out_dim, kernel_init=nnx.initializers.zeros, rngs=rngs)


def _check_at_least_one(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name}={value}; expected at least 1.")
