"""Unitree H1, its ten leg joints: 41 observations, the rewards and numbers of unitree_rl_gym."""

import dataclasses
from typing import ClassVar

from galvanax.envs.legged.legged import LeggedEnvironment
from galvanax.envs.legged.settings import RewardScales
from galvanax.envs.randomization import Randomization

_LEG = ("hip_yaw_joint", "hip_roll_joint", "hip_pitch_joint", "knee_joint", "ankle_joint")


@dataclasses.dataclass(frozen=True)
class H1(LeggedEnvironment):
    """A humanoid of 52 kg that walks by a clock: 10 actions, 41 observations (44 privileged)."""

    default_model: ClassVar[str] = "h1"
    trunk: ClassVar[str] = "pelvis"
    joints: ClassVar[tuple[str, ...]] = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _LEG)
    default_pose: ClassVar[tuple[float, ...]] = (0.0, 0.0, -0.1, 0.3, -0.2) * 2
    feet: ClassVar[tuple[str, ...]] = ("left_ankle_link", "right_ankle_link")
    hip_joints: ClassVar[tuple[int, ...]] = (0, 1, 5, 6)
    terminate_on: ClassVar[tuple[str, ...]] = ("pelvis",)
    penalise: ClassVar[tuple[str, ...]] = ("hip", "knee")

    kp: dict[str, float] = dataclasses.field(default_factory=lambda: {"hip": 150.0, "knee": 200.0, "ankle": 40.0})
    kd: dict[str, float] = dataclasses.field(default_factory=lambda: {"hip": 2.0, "knee": 4.0, "ankle": 2.0})
    initial_height: float = 1.0
    height_target: float = 1.05
    rewards: RewardScales = RewardScales(
        orientation=-1.0,
        base_height=-10.0,
        joint_pos_limits=-5.0,
        collision=-1.0,
        alive=0.15,
        hip_pos=-1.0,
        contact=0.18,
        contact_no_vel=-0.2,
        feet_swing_height=-20.0,
    )
    randomization: Randomization = Randomization(
        friction=(0.1, 1.25), added_trunk_mass=(-1.0, 3.0), push_interval=5.0, push_velocity=1.5
    )
