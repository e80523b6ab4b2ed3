"""A pendulum whose motor is too weak to lift it at once."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from galvanax.envs.environment import MJXEnvironment, State, is_broken, where_finite
from galvanax.errors import ConfigError
from galvanax.physics.quiet_mjx import mjx

_STARTS = ("anywhere", "hanging")


@dataclasses.dataclass(frozen=True)
class Pendulum(MJXEnvironment):
    """Swing up and balance: 1 action (the torque), 3 observations (cosine and sine of the angle, rate).

    The reward is in [0, 1]: how far up the pole is, times a little less for torque and speed.

    Attributes:
      start: `"anywhere"` on the circle, or `"hanging"`.
    """

    default_model: ClassVar[str] = "pendulum"

    control_dt: float = 0.04
    episode_length: int = 250
    start: str = "anywhere"

    def check(self) -> None:
        """Raises ConfigError for an unknown start."""
        super().check()
        if self.start not in _STARTS:
            raise ConfigError(f"Pendulum.start={self.start!r}: expected one of {', '.join(_STARTS)}.")

    def reset(self, rng: jax.Array) -> State:
        """A random angle, nearly at rest."""
        angle_rng, rate_rng = jax.random.split(rng)
        spread = jnp.pi if self.start == "anywhere" else 0.1
        angle = jax.random.uniform(angle_rng, (1,), minval=-spread, maxval=spread)
        rate = jax.random.uniform(rate_rng, (1,), minval=-0.1, maxval=0.1)
        data = self.blank_data.replace(qpos=angle, qvel=rate)
        zero = jnp.zeros(())
        return State(data, _observe(data), zero, zero, {"upright": zero, "broken": zero})

    def step(self, state: State, action: jax.Array) -> State:
        """One control step."""
        self.check_action(action)
        action = jnp.clip(action, -1, 1)
        data = self.hold(self.mjx_model, state.pipeline_state, action * self.mj_model.actuator_ctrlrange[:, 1])
        # The angle is zero where the pole hangs.
        upright = (1 - jnp.cos(data.qpos[0])) / 2
        reward = upright * (1 - 0.1 * jnp.sum(action**2)) * (0.5 + 0.5 * jnp.exp(-0.1 * data.qvel[0] ** 2))
        broken = is_broken(data)
        metrics = {**state.metrics, "upright": where_finite(upright), "broken": broken}
        obs, reward = where_finite((_observe(data), reward))
        return state.replace(pipeline_state=data, obs=obs, reward=reward, done=broken, metrics=metrics)


def _observe(data: mjx.Data) -> jax.Array:
    angle = data.qpos[0]
    return jnp.stack([jnp.cos(angle), jnp.sin(angle), data.qvel[0]])
