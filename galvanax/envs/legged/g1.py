"""Unitree G1, its twelve leg joints: 47 observations, the rewards and numbers of unitree_rl_gym."""

import dataclasses
from typing import ClassVar

from galvanax.envs.legged.legged import LeggedEnvironment
from galvanax.envs.legged.settings import RewardScales
from galvanax.envs.randomization import Randomization

_LEG = ("hip_pitch_joint", "hip_roll_joint", "hip_yaw_joint", "knee_joint", "ankle_pitch_joint", "ankle_roll_joint")


@dataclasses.dataclass(frozen=True)
class G1(LeggedEnvironment):
    """A humanoid of 32 kg that walks by a clock: 12 actions, 47 observations (50 privileged)."""

    default_model: ClassVar[str] = "g1"
    trunk: ClassVar[str] = "pelvis"
    joints: ClassVar[tuple[str, ...]] = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _LEG)
    default_pose: ClassVar[tuple[float, ...]] = (-0.1, 0.0, 0.0, 0.3, -0.2, 0.0) * 2
    feet: ClassVar[tuple[str, ...]] = ("left_ankle_roll_link", "right_ankle_roll_link")
    hip_joints: ClassVar[tuple[int, ...]] = (1, 2, 7, 8)
    terminate_on: ClassVar[tuple[str, ...]] = ("pelvis",)
    penalise: ClassVar[tuple[str, ...]] = ("hip", "knee")

    kp: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"hip_yaw": 100.0, "hip_roll": 100.0, "hip_pitch": 100.0, "knee": 150.0, "ankle": 40.0}
    )
    kd: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"hip_yaw": 2.0, "hip_roll": 2.0, "hip_pitch": 2.0, "knee": 4.0, "ankle": 2.0}
    )
    initial_height: float = 0.8
    height_target: float = 0.78
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
