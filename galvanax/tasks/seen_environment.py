"""An environment as a policy looks at it: depth images in 8 bits, or none at all where no network sees."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from galvanax.networks.actor_critic import ActorCritic
from galvanax.networks.depth_encoder import Sight, depth_levels, depth_metres


@dataclasses.dataclass(frozen=True)
class SeenEnvironment:
    """`env` with its `obs["depth"]` made compact, or left out.

    An image that is left out is no part of any state, so that a compiled step doesn't contain its rays; one that is
    seen takes a quarter of the memory in states, rollouts and checkpoints. The environment's own step gets the depth
    back in metres, or zeros where nobody looks.

    Attributes:
      env: one environment, whose observations are dicts with `depth`.
      sight: what the networks see, or None where they see nothing.
    """

    env: Any
    sight: Sight | None

    def reset(self, rng: Any) -> Any:
        """A fresh episode."""
        return self._show(self.env.reset(rng))

    def step(self, state: Any, action: Any) -> Any:
        """One control step."""
        return self._show(self.env.step(self._own(state), action))

    @property
    def next_episode(self) -> Any:
        """The environment's, where it has one."""
        following = self.env.next_episode
        return lambda state, rng: self._show(following(self._own(state), rng))

    def _show(self, state: Any) -> Any:
        obs = {name: value for name, value in state.obs.items() if name != "depth"}
        if self.sight is not None:
            obs["depth"] = depth_levels(state.obs["depth"], self.sight.far)
        return state.replace(obs=obs)

    def _own(self, state: Any) -> Any:
        if self.sight is None:
            depth = jnp.zeros(self.env.observation_size["depth"])
        else:
            depth = depth_metres(state.obs["depth"], self.sight.far)
        return state.replace(obs={**state.obs, "depth": depth})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)


def as_seen(env: Any, sight: Sight | None) -> Any:
    """The environment as networks with this sight look at it; as it is, where it gives no depth."""
    size = getattr(env, "observation_size", None)
    return SeenEnvironment(env, sight) if isinstance(size, Mapping) and "depth" in size else env


def as_seen_by(env: Any, model: ActorCritic) -> Any:
    """The environment as this policy looks at it; what its value function sees is left out."""
    return as_seen(env, model.actor_sight)
