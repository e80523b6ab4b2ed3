"""Poles on a cart: balance, or swing up and balance."""

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from galvanax.envs.environment import MJXEnvironment, State, is_broken, where_finite
from galvanax.errors import ConfigError
from galvanax.physics.quiet_mjx import mjx

_STARTS = ("hanging", "upright")


@dataclasses.dataclass(frozen=True)
class CartPole(MJXEnvironment):
    """One pole: 1 action (the push on the cart), 5 observations (cart, cosine, sine, cart's velocity, rate).

    The reward is in [0, 1], the product of how upright, centred, gentle and slow the system is, in the manner of the
    DeepMind Control Suite (Tassa et al., 2018, section 4). `metrics["upright"]` is in [0, 1].

    Attributes:
      start: `"hanging"` (swing up) or `"upright"` (balance).
      fall: angle (rad) from the vertical at which an upright start has failed; the end of the episode.
      random_starts: the share of episodes that start at any angle instead, turning at up to 5 rad/s either way, so that
        who is to swing up sees early what it is to be up. `evaluation()` has none.
    """

    default_model: ClassVar[str] = "cart-pole"
    hanging: ClassVar[tuple[float, ...]] = (np.pi,)

    start: str = "hanging"
    fall: float = 0.8
    random_starts: float = 0.0

    def check(self) -> None:
        """Raises ConfigError for an unknown start."""
        super().check()
        if self.start not in _STARTS:
            raise ConfigError(f"{type(self).__name__}.start={self.start!r}: expected one of {', '.join(_STARTS)}.")
        if not 0 <= self.random_starts <= 1:
            raise ConfigError(f"{type(self).__name__}.random_starts={self.random_starts}: expected a share, 0 to 1.")

    def evaluation(self) -> Self:
        """With the start's pose in every episode."""
        return dataclasses.replace(self, random_starts=0.0)

    def reset(self, rng: jax.Array) -> State:
        """Near the start's pose, nearly at rest, but for the share of `random_starts`."""
        qpos_rng, qvel_rng, random_rng = jax.random.split(rng, 3)
        poles = len(self.hanging)
        pose = jnp.array([0.0, *(self.hanging if self.start == "hanging" else (0.0,) * poles)])
        spread = 0.1 if self.start == "hanging" else 0.05
        qpos = pose + jax.random.uniform(qpos_rng, (poles + 1,), minval=-spread, maxval=spread)
        qvel = jax.random.uniform(qvel_rng, (poles + 1,), minval=-spread, maxval=spread)
        if self.random_starts:
            draw_rng, angle_rng, rate_rng = jax.random.split(random_rng, 3)
            anywhere = jax.random.uniform(draw_rng) < self.random_starts
            angles = jax.random.uniform(angle_rng, (poles,), minval=-np.pi, maxval=np.pi)
            rates = jax.random.uniform(rate_rng, (poles,), minval=-5.0, maxval=5.0)
            qpos = jnp.where(anywhere, jnp.concatenate([qpos[:1], angles]), qpos)
            qvel = jnp.where(anywhere, jnp.concatenate([qvel[:1], rates]), qvel)
        data = self.blank_data.replace(qpos=qpos, qvel=qvel)
        zero = jnp.zeros(())
        return State(data, _observe(data), zero, zero, {"upright": zero, "broken": zero})

    def step(self, state: State, action: jax.Array) -> State:
        """One control step."""
        self.check_action(action)
        action = jnp.clip(action, -1, 1)
        data = self.hold(self.mjx_model, state.pipeline_state, action * self.mj_model.actuator_ctrlrange[:, 1])
        # Angles from the vertical: a pole's own is relative to the one below it.
        angles = jnp.cumsum(data.qpos[1:])
        upright = jnp.mean((1 + jnp.cos(angles)) / 2)
        # 2 m is where the rail ends: a narrower bell would be flat there, and a policy that got there would stay.
        centred = (1 + jnp.exp(-((data.qpos[0] / 2) ** 2) * 2)) / 2
        gentle = (4 + jnp.maximum(0, 1 - action[0] ** 2)) / 5
        slow = (1 + jnp.exp(-((jnp.max(jnp.abs(data.qvel[1:])) / 5) ** 2) * 2)) / 2
        reward = upright * centred * gentle * slow
        broken = is_broken(data)
        fallen = jnp.max(jnp.abs(angles)) > self.fall if self.start == "upright" else jnp.zeros((), bool)
        metrics = {**state.metrics, "upright": where_finite(upright), "broken": broken}
        obs, reward = where_finite((_observe(data), reward))
        done = jnp.maximum(broken, fallen.astype(jnp.float32))
        return state.replace(pipeline_state=data, obs=obs, reward=reward, done=done, metrics=metrics)


@dataclasses.dataclass(frozen=True)
class DoubleCartPole(CartPole):
    """Two poles, one on the other: 1 action, 8 observations. As `CartPole` otherwise."""

    default_model: ClassVar[str] = "double-cart-pole"
    hanging: ClassVar[tuple[float, ...]] = (np.pi, 0.0)


def _observe(data: mjx.Data) -> jax.Array:
    angles = data.qpos[1:]
    return jnp.concatenate([data.qpos[:1], jnp.cos(angles), jnp.sin(angles), data.qvel])
