"""Unitree Go2: 48 observations, the rewards and numbers of unitree_rl_gym (where not: docs/environments.md)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from galvanax.envs.environment import State
from galvanax.envs.legged.legged import LeggedEnvironment
from galvanax.envs.legged.settings import RewardScales
from galvanax.envs.randomization import Randomization

_LEGS = ("FL", "FR", "RL", "RR")


@dataclasses.dataclass(frozen=True)
class Go2(LeggedEnvironment):
    """A quadruped of 15 kg: 12 actions, 48 observations.

    Actions, joints in observations and `qpos` run through the legs as FL, FR, RL, RR, in each hip, thigh, calf: index 0
    is FL's hip. The motors of the model, as of the real robot, run FR, FL, RR, RL; they are matched by name. Actions
    from elsewhere that are in the motors' order must be reordered by
    `actions[..., [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]]`.
    """

    default_model: ClassVar[str] = "go2"
    trunk: ClassVar[str] = "base"
    joints: ClassVar[tuple[str, ...]] = tuple(
        f"{leg}_{part}_joint" for leg in _LEGS for part in ("hip", "thigh", "calf")
    )
    default_pose: ClassVar[tuple[float, ...]] = (
        *(0.1, 0.8, -1.5),
        *(-0.1, 0.8, -1.5),
        *(0.1, 1.0, -1.5),
        *(-0.1, 1.0, -1.5),
    )
    feet: ClassVar[tuple[str, ...]] = tuple(f"{leg}_calf" for leg in _LEGS)
    terminate_on: ClassVar[tuple[str, ...]] = ("base",)
    foot_point: ClassVar[tuple[float, float, float]] = (-0.002, 0.0, -0.213)
    penalise: ClassVar[tuple[str, ...]] = ("thigh", "calf")
    observes_lin_vel: ClassVar[bool] = True
    observes_phase: ClassVar[bool] = False

    kp: dict[str, float] = dataclasses.field(default_factory=lambda: {"joint": 20.0})
    kd: dict[str, float] = dataclasses.field(default_factory=lambda: {"joint": 0.5})
    initial_height: float = 0.42
    height_target: float = 0.25
    rewards: RewardScales = RewardScales(torques=-2e-4, joint_pos_limits=-10.0, collision=-1.0, feet_air_time=1.0)
    randomization: Randomization = Randomization(friction=(0.5, 1.25), push_interval=15.0, push_velocity=1.0)

    def motion_state(self, state: State) -> jax.Array:
        """`[qpos, qvel]` `(37,)`: the state of motion data, as DynaFlow has it."""
        return jnp.concatenate([state.pipeline_state.qpos, state.pipeline_state.qvel])
