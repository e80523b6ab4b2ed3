"""Unitree H1-2, its twelve leg joints: 47 observations, the rewards and numbers of unitree_rl_gym."""

import dataclasses
from typing import ClassVar

from galvanax.envs.legged.legged import LeggedEnvironment
from galvanax.envs.legged.settings import RewardScales
from galvanax.envs.randomization import Randomization

_LEG = ("hip_yaw_joint", "hip_pitch_joint", "hip_roll_joint", "knee_joint", "ankle_pitch_joint", "ankle_roll_joint")


@dataclasses.dataclass(frozen=True)
class H1_2(LeggedEnvironment):
    """A humanoid of 67 kg that walks by a clock: 12 actions, 47 observations (50 privileged)."""

    default_model: ClassVar[str] = "h1_2"
    trunk: ClassVar[str] = "pelvis"
    joints: ClassVar[tuple[str, ...]] = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _LEG)
    default_pose: ClassVar[tuple[float, ...]] = (0.0, -0.16, 0.0, 0.36, -0.2, 0.0) * 2
    feet: ClassVar[tuple[str, ...]] = ("left_ankle_roll_link", "right_ankle_roll_link")
    hip_joints: ClassVar[tuple[int, ...]] = (0, 2, 6, 8)
    terminate_on: ClassVar[tuple[str, ...]] = ("pelvis",)
    penalise: ClassVar[tuple[str, ...]] = ("hip", "knee")

    kp: dict[str, float] = dataclasses.field(default_factory=lambda: {"hip": 200.0, "knee": 300.0, "ankle": 40.0})
    kd: dict[str, float] = dataclasses.field(default_factory=lambda: {"hip": 2.5, "knee": 4.0, "ankle": 2.0})
    initial_height: float = 1.05
    height_target: float = 1.0
    rewards: RewardScales = RewardScales(
        orientation=-1.0,
        base_height=-10.0,
        torques=-1e-5,
        joint_vel=-1e-3,
        joint_pos_limits=-5.0,
        alive=0.15,
        hip_pos=-1.0,
        contact=0.18,
        contact_no_vel=-0.2,
        feet_swing_height=-20.0,
    )
    randomization: Randomization = Randomization(
        friction=(0.1, 1.25), added_trunk_mass=(-1.0, 3.0), push_interval=5.0, push_velocity=1.5
    )
