"""Rollouts of a policy: the collecting half of a PPO iteration, and whole episodes for evaluation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from galvanax.envs.environment import cast_like, strong
from galvanax.networks.actor_critic import ActionDistribution, ActorCritic


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transitions:
    """What one rollout yields, each `(steps, envs, ...)`.

    Attributes:
      obs: before each step.
      raw_action: the policy's sample before squashing.
      policy: the distribution that it was drawn from.
      log_prob: of the sample.
      value: of `obs`.
      next_value: of the observation that the step led to, before any reset; 0 where the episode terminated.
      reward: unscaled.
      done: 1.0 where the episode ended.
      first: 1.0 where `obs` is an episode's first.
      episode_return: of the running episode so far, this step included.
      episode_length: likewise, control steps.
      metrics: the environment's.
    """

    obs: Any
    raw_action: jax.Array
    policy: ActionDistribution
    log_prob: jax.Array
    value: jax.Array
    next_value: jax.Array
    reward: jax.Array
    done: jax.Array
    first: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array
    metrics: dict[str, jax.Array]


def collect(
    envs: Any, model: ActorCritic, state: Any, memory: jax.Array, ids: jax.Array, rng: jax.Array, steps: int
) -> tuple[Any, jax.Array, Transitions]:
    """Steps a batch of environments under the stochastic policy.

    Args:
      envs: an `AutoReset`.
      model: policy and value function.
      state: the environments' `(envs, ...)`.
      memory: the policy's `(envs, memory_size)`.
      ids: the environments' numbers `(envs,)`: noise depends on them, not on which device holds them.
      rng: of this rollout.
      steps: control steps.

    Returns:
      the environments' states and memory after it, and what happened.
    """

    def step(carry: tuple[Any, jax.Array], index: jax.Array) -> tuple[tuple[Any, jax.Array], Transitions]:
        state, memory = carry
        first = state.done
        memory = jnp.where(first[:, None] > 0, 0.0, memory)
        policy, next_memory = model.act(state.obs, memory)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(rng, index), ids)
        noise = jax.vmap(lambda key: jax.random.normal(key, policy.loc.shape[1:]))(keys)
        raw = policy.sample(noise)
        after = envs.step(state, policy.action(raw))
        truncation = after.info["truncation"]
        # The value of a truncated episode's last observation; looked at only where there is one.
        cut_off = jax.lax.cond(
            jnp.any(truncation > 0),
            lambda obs: model.value(obs) * truncation,
            lambda obs: jnp.zeros_like(truncation),
            after.info["final_observation"],
        )
        transition = Transitions(
            obs=state.obs,
            raw_action=raw,
            policy=policy,
            log_prob=policy.log_prob(raw),
            value=jnp.zeros_like(truncation),  # of all steps at once, below
            next_value=cut_off,
            reward=after.reward,
            done=after.done,
            first=first,
            episode_return=after.info["episode_return"],
            episode_length=after.info["steps"],
            metrics=after.metrics,
        )
        return (after, next_memory), transition

    (state, memory), transitions = jax.lax.scan(step, (state, memory), jnp.arange(steps))
    value = model.value(transitions.obs)
    following = jnp.concatenate([value[1:], model.value(state.obs)[None]])
    next_value = jnp.where(transitions.done > 0, transitions.next_value, following)
    return state, memory, dataclasses.replace(transitions, value=value, next_value=next_value)


def episode(env: Any, model: ActorCritic, rng: jax.Array, length: int) -> dict[str, jax.Array]:
    """One episode under the deterministic policy, from its start to its end: exact sums, whatever its length.

    Returns:
      `episode_return`, `episode_length` (control steps), and each of the environment's metrics as `env/NAME`, averaged
      over the episode's steps.
    """
    state = strong(env.reset(rng))
    totals = {name: jnp.zeros(()) for name in state.metrics}
    start = (state, model.initial_memory(), jnp.int32(0), jnp.zeros(()), totals)

    def running(carry: Any) -> jax.Array:
        return (carry[2] < length) & (carry[0].done < 0.5)

    def step(carry: Any) -> Any:
        state, memory, steps, returned, totals = carry
        policy, memory = model.act(state.obs, memory)
        # A copy: some environments write into the dicts of the state that they are given.
        after = cast_like(env.step(jax.tree.map(lambda leaf: leaf, state), policy.mode()), state)
        totals = {name: total + after.metrics[name] for name, total in totals.items()}
        returned = returned + after.reward
        return after, memory, steps + 1, returned, totals

    _, _, steps, returned, totals = jax.lax.while_loop(running, step, start)
    means = {f"env/{name}": value / steps for name, value in totals.items()}
    return {"episode_return": returned, "episode_length": steps.astype(jnp.float32), **means}
