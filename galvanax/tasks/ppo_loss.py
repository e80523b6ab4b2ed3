"""PPO's loss on one minibatch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from galvanax.envs.symmetry import Symmetry
from galvanax.networks.actor_critic import ActionDistribution, ActorCritic, policy_observation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Minibatch:
    """What the loss needs of some environments' rollouts, each `(steps, envs, ...)`.

    Attributes:
      obs: before each step.
      raw_action: what was sampled, before squashing.
      policy: the distribution that it was drawn from.
      log_prob: of the sample, then.
      value: of `obs`, then.
      advantage: normalised.
      target: what the value function should say.
      first: 1.0 where `obs` is an episode's first.
      memory: the policy's before the first step `(envs, memory_size)`.
    """

    obs: Any
    raw_action: jax.Array
    policy: ActionDistribution
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array
    first: jax.Array
    memory: jax.Array


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """The terms' weights and limits, as in `PPOTask`; `value` multiplies the mean square, as in rsl_rl."""

    clip: float
    value: float
    entropy: jax.Array | float
    clip_value: bool
    symmetry: float


def replay_policy(model: ActorCritic, batch: Minibatch) -> ActionDistribution:
    """The policy's distributions at a rollout's observations `(steps, envs)`, its memory replayed from the start."""
    if not model.memory_size:
        return model.act(batch.obs, model.initial_memory(*batch.log_prob.shape))[0]

    def step(memory: jax.Array, now: tuple[Any, jax.Array]) -> tuple[jax.Array, ActionDistribution]:
        obs, first = now
        policy, memory = model.act(obs, jnp.where(first[:, None] > 0, 0.0, memory))
        return memory, policy

    return jax.lax.scan(step, batch.memory, (batch.obs, batch.first))[1]


def ppo_loss(
    model: ActorCritic,
    batch: Minibatch,
    noise: jax.Array,
    weights: LossWeights,
    symmetry: Symmetry | None = None,
    own: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The clipped surrogate (Schulman et al., 2017, eq. 7 and 9), value loss, entropy bonus and mirror loss.

    Args:
      model: policy and value function.
      batch: a minibatch.
      noise: standard normal, shaped like the actions, for the entropy's estimate.
      weights: of the terms.
      symmetry: of the robot; with it, the policy should treat both sides alike.
      own: how many environments' samples are the policy's own: the first ones. The rest are mirror images, on which
        the policy differs from its mirror image, whatever the step: `kl` and `clip_fraction` leave them out.

    Returns:
      `(loss, metrics)`, means over the minibatch. `kl` is the exact divergence from the old policy to the new one.
    """
    policy = replay_policy(model, batch)
    ratio = jnp.exp(policy.log_prob(batch.raw_action) - batch.log_prob)
    clipped = jnp.clip(ratio, 1 - weights.clip, 1 + weights.clip)
    policy_loss = -jnp.mean(jnp.minimum(ratio * batch.advantage, clipped * batch.advantage))

    value = model.value(batch.obs)
    squared = (value - batch.target) ** 2
    if weights.clip_value:
        near = batch.value + jnp.clip(value - batch.value, -weights.clip, weights.clip)
        squared = jnp.maximum(squared, (near - batch.target) ** 2)
    value_loss = jnp.mean(squared)

    entropy = jnp.mean(policy.entropy(noise))
    loss = policy_loss + weights.value * value_loss - weights.entropy * entropy
    metrics = {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "kl": jnp.mean(policy.kl(batch.policy)[:, :own]),
        "clip_fraction": jnp.mean(jnp.abs(ratio - 1)[:, :own] > weights.clip),
        "action_std": jnp.mean(policy.scale),
    }
    if symmetry is not None:
        mirrored = model.act(symmetry.mirror_obs(policy_observation(batch.obs)), jnp.zeros((*batch.log_prob.shape, 0)))[
            0
        ]
        wanted = symmetry.mirror_action(policy.loc)
        metrics["mirror_loss"] = jnp.mean(jnp.sum((mirrored.loc - jax.lax.stop_gradient(wanted)) ** 2, axis=-1))
        loss = loss + weights.symmetry * metrics["mirror_loss"]
    return loss, metrics


def mirror_minibatch(batch: Minibatch, symmetry: Symmetry) -> Minibatch:
    """The batch, and its mirror image behind it along the environments: twice the data (Mittal et al., 2024, 3.2)."""
    obs: Any = symmetry.mirror_obs(policy_observation(batch.obs))
    if isinstance(batch.obs, Mapping):  # what only the value function sees has no known mirror image, nor needs one
        obs = {**batch.obs, "state": obs}
    policy = ActionDistribution(
        symmetry.mirror_action(batch.policy.loc),
        batch.policy.scale[..., symmetry.action],
        batch.policy.squashed,
    )
    image = dataclasses.replace(batch, obs=obs, raw_action=symmetry.mirror_action(batch.raw_action), policy=policy)
    sides = [dataclasses.replace(side, memory=side.memory[None]) for side in (batch, image)]
    double = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *sides)
    return dataclasses.replace(double, memory=double.memory[0])
