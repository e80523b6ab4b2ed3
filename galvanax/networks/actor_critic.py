"""The policy and the value function of PPO."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from galvanax.errors import ConfigError
from galvanax.networks.depth_encoder import DepthEncoder, Sight
from galvanax.networks.mlp import MLP
from galvanax.networks.normalizer import Statistic

DISTRIBUTIONS = ("tanh_normal", "normal")
_MIN_STD = 1e-3  # brax's, added to it
_STD_FLOOR = 1e-6  # rsl_rl's, for "normal"


class RunningNormalizer(nnx.Module):
    """Shifts and scales observations by the mean and deviation of all that were seen; the identity until `update`.

    Args:
      dim: entries of an observation.
      limit: normalised values are clipped at ± this.
    """

    def __init__(self, dim: int, limit: float = 10.0):
        self.limit = limit
        self.count = Statistic(jnp.zeros(()))
        self.mean = Statistic(jnp.zeros(dim))
        self.squares = Statistic(jnp.zeros(dim))  # sum of squared distances from the mean

    def __call__(self, values: jax.Array) -> jax.Array:
        """Normalises `(..., dim)`."""
        # Before anything was seen: unit deviation.
        variance = jnp.where(self.count[...] > 0, self.squares[...] / jnp.maximum(self.count[...], 1), 1.0)
        scaled = (values - self.mean[...]) / jnp.sqrt(jnp.maximum(variance, 1e-6))
        return jnp.clip(scaled, -self.limit, self.limit)

    def update(self, values: jax.Array, axis_name: str | None = None) -> None:
        """Takes in observations `(..., dim)` (Chan et al., 1983, eq. 2.1), of all devices of `axis_name`, if given."""
        rows = values.reshape(-1, values.shape[-1])
        count = jnp.float32(rows.shape[0])
        total = jnp.sum(rows, axis=0)
        if axis_name is not None:
            count, total = jax.lax.psum((count, total), axis_name)
        mean = total / count
        squares = jnp.sum((rows - mean) ** 2, axis=0)
        if axis_name is not None:
            squares = jax.lax.psum(squares, axis_name)
        before, after = self.count[...], self.count[...] + count
        delta = mean - self.mean[...]
        self.squares[...] = self.squares[...] + squares + delta**2 * before * count / after
        self.mean[...] = self.mean[...] + delta * count / after
        self.count[...] = after


class ActorCritic(nnx.Module):
    """A Gaussian policy and a value function, each an MLP on normalised observations.

    Observations are arrays `(..., dim)`, or dicts: the policy sees `state`, the value function `privileged_state` where
    there is one. With a sight they see `depth` too, `(..., height, width)`: features of it stand beside the rest, from
    an encoder for each of the two.

    Args:
      observation_size: entries, or a dict of them.
      action_size: entries of an action.
      policy_hidden: widths of the policy's hidden layers.
      value_hidden: widths of the value function's hidden layers.
      activation: a function of `flax.nnx`.
      distribution: `"tanh_normal"`: actions in (-1, 1), deviations depend on the observation (brax's);
        `"normal"`: unbounded actions, one learned deviation per entry (rsl_rl's), of at least 1e-6.
      initial_std: deviation of the policy at the start, for `"normal"`.
      memory_size: units of a GRU before the policy's MLP, 0 for none.
      normalize: whether observations are normalised.
      actor_sight: the depth images that the policy sees, or None.
      critic_sight: likewise, the value function.
      rngs: for the weights.

    Raises:
      ConfigError: an unknown distribution or activation, observations without `state`, or an `initial_std` that is no
        deviation.
    """

    def __init__(
        self,
        observation_size: int | Mapping[str, int],
        action_size: int,
        *,
        policy_hidden: tuple[int, ...],
        value_hidden: tuple[int, ...],
        activation: str = "swish",
        distribution: str = "tanh_normal",
        initial_std: float = 1.0,
        memory_size: int = 0,
        normalize: bool = True,
        actor_sight: Sight | None = None,
        critic_sight: Sight | None = None,
        rngs: nnx.Rngs,
    ):
        if distribution not in DISTRIBUTIONS:
            raise ConfigError(f"distribution={distribution!r}: expected one of {', '.join(DISTRIBUTIONS)}.")
        if distribution == "normal" and not _STD_FLOOR <= initial_std < math.inf:
            raise ConfigError(f"initial_std={initial_std}: expected a standard deviation of at least {_STD_FLOOR}.")
        self.privileged = isinstance(observation_size, Mapping) and "privileged_state" in observation_size
        sizes = observation_size if isinstance(observation_size, Mapping) else {"state": observation_size}
        if "state" not in sizes:
            known = ", ".join(map(repr, sizes)) or "nothing"
            raise ConfigError(f"Observations hold {known}; expected 'state', which the policy sees.")
        self.action_size, self.memory_size, self.distribution = action_size, memory_size, distribution
        state_size = int(sizes["state"])
        critic_size = int(sizes["privileged_state"]) if self.privileged else state_size
        self.normalizer = RunningNormalizer(state_size) if normalize else None
        self.value_normalizer = RunningNormalizer(critic_size) if normalize and self.privileged else None
        self.actor_sight, self.critic_sight = actor_sight, critic_sight
        self.depth_encoder = _encoder(actor_sight, activation, rngs)
        self.value_depth_encoder = _encoder(critic_sight, activation, rngs)
        state_size += actor_sight.features if actor_sight else 0
        critic_size += critic_sight.features if critic_sight else 0
        self.memory = nnx.GRUCell(state_size, memory_size, rngs=rngs) if memory_size else None
        outputs = 2 * action_size if distribution == "tanh_normal" else action_size
        self.policy = MLP(memory_size or state_size, policy_hidden, outputs, activation=activation, rngs=rngs)
        self.value_function = MLP(critic_size, value_hidden, 1, activation=activation, rngs=rngs)
        self.log_std = nnx.Param(jnp.full(action_size, jnp.log(initial_std))) if distribution == "normal" else None

    def act(self, obs: Any, memory: jax.Array) -> tuple["ActionDistribution", jax.Array]:
        """The policy's distribution at `obs`, and the memory `(..., memory_size)` after it."""
        features = policy_observation(obs)
        if self.normalizer is not None:
            features = self.normalizer(features)
        if self.depth_encoder is not None:
            features = jnp.concatenate([features, self.depth_encoder(_depth(obs))], axis=-1)
        if self.memory is not None:
            memory, features = self.memory(memory, features)
        outputs = _by_rows(self.policy, features)
        if self.log_std is None:
            loc, scale = jnp.split(outputs, 2, axis=-1)
            return ActionDistribution(loc, jax.nn.softplus(scale) + _MIN_STD, squashed=True), memory
        # At 0 a density, and so the loss, would be NaN. Under exp, since XLA makes log(exp(x)) x.
        scale = jnp.broadcast_to(jnp.exp(jnp.maximum(self.log_std[...], math.log(_STD_FLOOR))), outputs.shape)
        return ActionDistribution(outputs, scale, squashed=False), memory

    def value(self, obs: Any) -> jax.Array:
        """The expected return from `obs`, `(...,)`."""
        features = obs["privileged_state"] if self.privileged else policy_observation(obs)
        normalizer = self.value_normalizer if self.privileged else self.normalizer
        if normalizer is not None:
            features = normalizer(features)
        if self.value_depth_encoder is not None:
            features = jnp.concatenate([features, self.value_depth_encoder(_depth(obs))], axis=-1)
        return _by_rows(self.value_function, features)[..., 0]

    def initial_memory(self, *batch: int) -> jax.Array:
        """The memory at the start of an episode, `(*batch, memory_size)`."""
        return jnp.zeros((*batch, self.memory_size))

    def update_statistics(self, obs: Any, axis_name: str | None = None) -> None:
        """Takes observations into the normalisers."""
        if self.normalizer is not None:
            self.normalizer.update(policy_observation(obs), axis_name)
        if self.value_normalizer is not None:
            self.value_normalizer.update(obs["privileged_state"], axis_name)


@jax.tree_util.register_pytree_node_class
class ActionDistribution:
    """A normal distribution of independent entries; `squashed` ones are sent through tanh to become actions.

    Samples stay unsquashed ("raw") until `action`, since tanh can't be inverted near its ends.

    Args:
      loc: mean of the raw sample `(..., action_size)`.
      scale: its deviation.
      squashed: whether an action is the tanh of the sample.
    """

    def __init__(self, loc: jax.Array, scale: jax.Array, squashed: bool):
        self.loc, self.scale, self.squashed = loc, scale, squashed

    def sample(self, noise: jax.Array) -> jax.Array:
        """A raw sample from standard normal noise `(..., action_size)`."""
        return self.loc + self.scale * noise

    def action(self, raw: jax.Array) -> jax.Array:
        """What the environment gets."""
        return jnp.tanh(raw) if self.squashed else raw

    def mode(self) -> jax.Array:
        """The action without noise."""
        return self.action(self.loc)

    def log_prob(self, raw: jax.Array) -> jax.Array:
        """Log density of the action of a raw sample, `(...,)`."""
        density = -0.5 * ((raw - self.loc) / self.scale) ** 2 - jnp.log(self.scale) - 0.5 * jnp.log(2 * jnp.pi)
        return jnp.sum(density - self._log_slope(raw), axis=-1)

    def entropy(self, noise: jax.Array) -> jax.Array:
        """Entropy `(...,)`; of a squashed one, an estimate from standard normal noise."""
        entropy = 0.5 + 0.5 * jnp.log(2 * jnp.pi) + jnp.log(self.scale)
        return jnp.sum(entropy + self._log_slope(self.sample(noise)), axis=-1)

    def kl(self, old: "ActionDistribution") -> jax.Array:
        """KL divergence from `old` to this one, `(...,)`: the same before and after tanh."""
        ratio = (old.scale**2 + (old.loc - self.loc) ** 2) / (2 * self.scale**2)
        return jnp.sum(jnp.log(self.scale / old.scale) + ratio - 0.5, axis=-1)

    def _log_slope(self, raw: jax.Array) -> jax.Array:
        """Log of tanh's slope, written so that it doesn't underflow."""
        return 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw)) if self.squashed else jnp.zeros_like(raw)

    def tree_flatten(self) -> tuple[tuple[jax.Array, jax.Array], bool]:
        """For JAX."""
        return (self.loc, self.scale), self.squashed

    @classmethod
    def tree_unflatten(cls, squashed: bool, leaves: tuple[jax.Array, jax.Array]) -> "ActionDistribution":
        """For JAX."""
        return cls(*leaves, squashed)


def _encoder(sight: Sight | None, activation: str, rngs: nnx.Rngs) -> DepthEncoder | None:
    return None if sight is None else DepthEncoder(sight, activation=activation, rngs=rngs)


def _by_rows(network: MLP, features: jax.Array) -> jax.Array:
    # One matrix of all steps and environments: XLA's CPU backend multiplies that a sixth faster than a stack of them.
    rows = features.reshape(-1, features.shape[-1]) if features.ndim > 2 else features
    return network(rows).reshape(*features.shape[:-1], -1)


def _depth(obs: Any) -> jax.Array:
    if not isinstance(obs, Mapping) or "depth" not in obs:
        found = ", ".join(map(repr, obs)) if isinstance(obs, Mapping) else "a vector"
        raise ConfigError(f"The network sees 'depth' beside 'state', and the observation is {found}.")
    return obs["depth"]


def observed_size(policy: ActorCritic) -> int:
    """Entries of the vector that the policy sees."""
    if policy.normalizer is not None:
        return int(policy.normalizer.mean[...].shape[-1])
    entries = policy.policy.layers[0].in_features if policy.memory is None else policy.memory.in_features
    return int(entries) - (policy.actor_sight.features if policy.actor_sight is not None else 0)


def policy_observation(obs: Any) -> jax.Array:
    """The vector that the policy sees of an observation."""
    return obs["state"] if isinstance(obs, Mapping) else obs
