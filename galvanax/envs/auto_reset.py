"""Many environments side by side, each with a fresh random episode when one ends."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from galvanax.envs.environment import MJXEnvironment, cast_like, strong
from galvanax.envs.unwrap import time_limit, unwrap

# Environments that are reset in one go: a share of the batch, since few end at the same step.
_RESET_SHARE = 8

# What an ended episode leaves in `info`, and what else of it is AutoReset's.
_KEPT = ("final_observation", "truncation", "steps", "episode_return", "episode_metrics")
_NAMES = (*_KEPT, "auto_reset_rng", "time_limit")
# What the environment itself keeps under these names, beside them.
_OWN = "auto_reset_own"


@dataclasses.dataclass(frozen=True)
class AutoReset:
    """A batch of `env`, of brax's convention, whose episodes end and begin by themselves.

    Where an episode ends, the next one starts from a *new* random state (brax starts every one from the first), and
    the returned state holds the new episode's observation. What the policy would have seen next is kept:

      `info["final_observation"]`: the true last observation of the step, before any reset. Bootstrap from it.
      `info["truncation"]`: 1.0 where the episode was only cut off: by the time limit and nothing else, or by the
        environment, where it says so: `done` with a `info["truncation"]` of its own (brax's convention).
      `info["steps"]`: control steps of the running episode so far; of the ended one where `done`.
      `info["episode_return"]`, `info["episode_metrics"]`: sums over the same steps.

    `done` is 1.0 for both kinds of end. An environment may define `next_episode(state, rng)` to carry something over
    from the ended episode (a curriculum's level, properties drawn once per environment); otherwise `reset(rng)` is
    called. An `MJXEnvironment` has the time limit as its `episode_length`, whoever set it.

    An environment's own entries of these names are its own: it gets them back in the next step. Training wrappers of
    brax and Playground are taken off, see `unwrap`.

    Attributes:
      env: one environment.
      episode_length: the time limit in control steps; by default the environment's own, else 1000.
      stagger: the first episodes get random time limits, so that the batch does not time out, and start anew, in step:
        a learner would see beginnings alone at one time, and ends alone at another.
    """

    env: Any
    episode_length: int = 0
    stagger: bool = False

    def __post_init__(self) -> None:
        env, wrappers = unwrap(self.env)
        limit = time_limit(env, wrappers, self.episode_length or None, "AutoReset.episode_length")
        if isinstance(env, MJXEnvironment) and env.episode_length != limit:
            env = dataclasses.replace(env, episode_length=limit)
        object.__setattr__(self, "env", env)
        object.__setattr__(self, "episode_length", limit)

    def reset(self, rng: jax.Array) -> Any:
        """Fresh episodes for keys `(num_envs,)`."""
        keys = jax.vmap(jax.random.split)(rng)
        state = jax.vmap(self.env.reset)(keys[:, 0])
        zeros = jnp.zeros(rng.shape[0])
        limits = zeros + self.episode_length
        if self.stagger:
            shares = jax.vmap(lambda key: 1 - jax.random.uniform(jax.random.fold_in(key, 0)))(keys[:, 1])
            limits = jnp.ceil(shares * limits)
        # Arrays of the carry's final types, so that a scan can carry the state.
        info = {
            **state.info,
            "auto_reset_rng": keys[:, 1],
            "final_observation": state.obs,
            "truncation": zeros,
            "steps": zeros,
            "time_limit": limits,
            "episode_return": zeros,
            "episode_metrics": {name: zeros for name in state.metrics},
        }
        if own := {name: state.info[name] for name in _NAMES if name in state.info}:
            info[_OWN] = own
        return strong(state.replace(info=info, reward=zeros, done=zeros))

    def step(self, state: Any, action: jax.Array) -> Any:
        """One control step of every environment under actions `(num_envs, action_size)`."""
        running = 1 - state.done
        own = state.info.get(_OWN, {})
        # Environments may hand the old `done` and `truncation` on: a step starts with 0.
        info = {**state.info, "truncation": jnp.zeros_like(state.info["truncation"]), **own}
        stepped = jax.vmap(self.env.step)(state.replace(done=jnp.zeros_like(state.done), info=info), action)
        cut_off = (stepped.info["truncation"] > 0) & (stepped.done > 0)
        steps = state.info["steps"] * running + 1
        timed_out = (steps >= state.info["time_limit"]).astype(stepped.done.dtype)
        done = jnp.maximum(stepped.done, timed_out)
        info = {
            **stepped.info,
            "auto_reset_rng": state.info["auto_reset_rng"],
            "final_observation": stepped.obs,
            "truncation": jnp.where(cut_off, 1, timed_out * (1 - stepped.done)),
            "steps": steps,
            "time_limit": state.info["time_limit"],
            "episode_return": state.info["episode_return"] * running + stepped.reward,
            "episode_metrics": {
                name: state.info["episode_metrics"][name] * running + value for name, value in stepped.metrics.items()
            },
        }
        if own:
            info[_OWN] = {name: stepped.info[name] for name in own}
        ended = stepped.replace(done=done, info=info)
        return cast_like(self._restart(ended), state)

    def _restart(self, state: Any) -> Any:
        """Replaces ended episodes by fresh ones, a share of the batch at a time, as many shares as needed."""
        num_envs = state.done.shape[0]
        share = -(-num_envs // _RESET_SHARE)
        count = jnp.sum(state.done > 0)
        order = jnp.argsort(state.done <= 0, stable=True)  # ended ones first
        order = jnp.concatenate([order, jnp.full(share, num_envs, order.dtype)])

        def restart_some(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
            start, state = carry
            rows = jax.lax.dynamic_slice(order, (start,), (share,))
            # Rows past the ended ones are aimed outside the batch, where scatters drop them.
            rows = jnp.where(start + jnp.arange(share) < count, rows, num_envs)
            old = jax.tree.map(lambda leaf: leaf.at[rows].get(mode="clip"), state)
            keys = jax.vmap(jax.random.split)(old.info["auto_reset_rng"])
            fresh = self._next_episodes(old, keys[:, 0])
            limits = jnp.full_like(old.info["time_limit"], self.episode_length)
            info = {**fresh.info, **{name: old.info[name] for name in _KEPT}}
            info |= {"auto_reset_rng": keys[:, 1], "time_limit": limits}
            info[_OWN] = {name: fresh.info[name] for name in old.info.get(_OWN, {})}
            # Keys of wrappers around or inside pass through.
            info = {name: info.get(name, value) for name, value in old.info.items()}
            new = fresh.replace(reward=old.reward, done=old.done, metrics=old.metrics, info=info)
            new = cast_like(new, old)
            put = jax.tree.map(lambda leaf, value: leaf.at[rows].set(value, mode="drop"), state, new)
            return start + share, put

        state = strong(state)
        return jax.lax.while_loop(lambda carry: carry[0] < count, restart_some, (jnp.int32(0), state))[1]

    def _next_episodes(self, old: Any, keys: jax.Array) -> Any:
        next_episode = getattr(self.env, "next_episode", None)
        return jax.vmap(self.env.reset)(keys) if next_episode is None else jax.vmap(next_episode)(old, keys)
