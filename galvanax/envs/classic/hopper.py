"""A one-legged hopper in the plane."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from galvanax.envs.environment import MJXEnvironment, State, is_broken, where_finite
from galvanax.physics.quiet_mjx import mjx


@dataclasses.dataclass(frozen=True)
class Hopper(MJXEnvironment):
    """Hop forward: 3 actions (hip, knee, ankle), 11 observations (positions but x, then velocities).

    The reward is the forward velocity (m/s), plus 1 while it has not fallen, less a little for the controls, as in
    Gymnasium's Hopper.

    Attributes:
      healthy_reward: for a step without a fall.
      control_cost: times the actions, squared.
      lowest: height of the hip below its standing height (m) that is a fall.
      steepest: pitch of the torso (rad) that is a fall.
    """

    default_model: ClassVar[str] = "hopper"

    control_dt: float = 0.01
    healthy_reward: float = 1.0
    control_cost: float = 1e-3
    lowest: float = 0.45
    steepest: float = 0.6

    def reset(self, rng: jax.Array) -> State:
        """Near standing, nearly at rest."""
        qpos_rng, qvel_rng = jax.random.split(rng)
        qpos = jax.random.uniform(qpos_rng, (6,), minval=-0.005, maxval=0.005)
        qvel = jax.random.uniform(qvel_rng, (6,), minval=-0.005, maxval=0.005)
        data = self.blank_data.replace(qpos=qpos, qvel=qvel)
        zero = jnp.zeros(())
        return State(data, _observe(data), zero, zero, {"velocity": zero, "height": zero, "broken": zero})

    def step(self, state: State, action: jax.Array) -> State:
        """One control step."""
        self.check_action(action)
        action = jnp.clip(action, -1, 1)
        before = state.pipeline_state.qpos[0]
        data = self.hold(self.mjx_model, state.pipeline_state, action)
        velocity = (data.qpos[0] - before) / self.control_dt
        broken = is_broken(data)
        fallen = (data.qpos[1] < -self.lowest) | (jnp.abs(data.qpos[2]) > self.steepest)
        done = jnp.maximum(broken, fallen.astype(jnp.float32))
        reward = velocity + self.healthy_reward * (1 - done) - self.control_cost * jnp.sum(action**2)
        metrics = {"velocity": velocity, "height": data.qpos[1]}
        metrics = {**state.metrics, **where_finite(metrics), "broken": broken}
        obs, reward = where_finite((_observe(data), reward))
        return state.replace(pipeline_state=data, obs=obs, reward=reward, done=done, metrics=metrics)


def _observe(data: mjx.Data) -> jax.Array:
    return jnp.concatenate([data.qpos[1:], jnp.clip(data.qvel, -10, 10)])
