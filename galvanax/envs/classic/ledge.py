"""A cart that must stop before an edge which it can only see."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from galvanax.envs.environment import MJXEnvironment, State, is_broken, where_finite
from galvanax.envs.vision import Vision
from galvanax.errors import ConfigError
from galvanax.physics.quiet_mjx import mjx

_AHEAD = Vision("ahead", width=8, height=16, see_own_body=False)


@dataclasses.dataclass(frozen=True)
class Ledge(MJXEnvironment):
    """Drive up to where the platform ends and stand there: 1 action (the drive), `state` (place, velocity), `depth`.

    Where the edge is, is random, and in no observation but the image. The reward is in [0, 1]: 1 at the edge, a half
    0.2 m before it. Beyond it the cart has fallen: the end of the episode. `metrics["at_edge"]` is 1.0 where the cart
    stands within `near` of the edge.

    Attributes:
      edge: least and greatest distance of the edge from the start (m).
      near: how near is near enough (m), for the metric.
      vision: the camera on the cart. None for no `depth`: the observation is the vector alone.
    """

    default_model: ClassVar[str] = "ledge"

    control_dt: float = 0.05
    episode_length: int = 100
    edge: tuple[float, float] = (1.0, 3.0)
    near: float = 0.25
    vision: Vision | None = _AHEAD

    def check(self) -> None:
        """Raises ConfigError where the edge's range is none, or the camera isn't there."""
        super().check()
        if not 0 < self.edge[0] <= self.edge[1]:
            raise ConfigError(f"Ledge.edge={self.edge}: expected (least, greatest) with 0 < least <= greatest (m).")
        if self.vision is not None:
            self.vision.check_for_one(self.mj_model, "Ledge.vision")

    def reset(self, rng: jax.Array) -> State:
        """At rest, an edge somewhere ahead."""
        edge = jax.random.uniform(rng, minval=self.edge[0], maxval=self.edge[1])
        data = self.blank_data.replace(qpos=jnp.stack([jnp.zeros(()), edge]))
        zero = jnp.zeros(())
        return State(data, self._observe(data), zero, zero, {"at_edge": zero, "broken": zero})

    def step(self, state: State, action: jax.Array) -> State:
        """One control step."""
        self.check_action(action)
        data = self.hold(self.mjx_model, state.pipeline_state, jnp.clip(action, -1, 1))
        gap, speed = data.qpos[1] - data.qpos[0], jnp.abs(data.qvel[0])
        fell = (gap < 0).astype(jnp.float32)
        broken = is_broken(data)
        at_edge = (gap >= 0) & (gap <= self.near) & (speed < 0.1)
        metrics = {**state.metrics, "at_edge": at_edge.astype(jnp.float32), "broken": broken}
        obs, reward = where_finite((self._observe(data), (1 - fell) / (1 + (gap / 0.2) ** 2)))
        return state.replace(
            pipeline_state=data, obs=obs, reward=reward, done=jnp.maximum(fell, broken), metrics=metrics
        )

    def _observe(self, data: mjx.Data) -> Any:
        state = jnp.stack([data.qpos[0], data.qvel[0]])
        if self.vision is None:
            return state
        return {"state": state, "depth": self.vision.depth_now(self.mjx_model, data)}
