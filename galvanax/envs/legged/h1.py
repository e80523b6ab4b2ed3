"""Unitree H1, its ten leg joints: 41 observations, the rewards and numbers of unitree_rl_gym."""

import dataclasses
from typing import ClassVar

from galvanax.envs.legged.humanoid import REWARDS, Humanoid, both_legs
from galvanax.envs.legged.settings import RewardScales


@dataclasses.dataclass(frozen=True)
class H1(Humanoid):
    """A humanoid of 52 kg that walks by a clock: 10 actions, 41 observations (44 privileged)."""

    default_model: ClassVar[str] = "h1"
    joints: ClassVar[tuple[str, ...]] = both_legs("hip_yaw", "hip_roll", "hip_pitch", "knee", "ankle")
    default_pose: ClassVar[tuple[float, ...]] = (0.0, 0.0, -0.1, 0.3, -0.2) * 2
    feet: ClassVar[tuple[str, ...]] = ("left_ankle_link", "right_ankle_link")
    hip_joints: ClassVar[tuple[int, ...]] = (0, 1, 5, 6)

    kp: dict[str, float] = dataclasses.field(default_factory=lambda: {"hip": 150.0, "knee": 200.0, "ankle": 40.0})
    kd: dict[str, float] = dataclasses.field(default_factory=lambda: {"hip": 2.0, "knee": 4.0, "ankle": 2.0})
    initial_height: float = 1.0
    height_target: float = 1.05
    rewards: RewardScales = dataclasses.replace(REWARDS, torques=0.0, joint_vel=0.0, collision=-1.0)
