"""Unitree G1, its twelve leg joints: 47 observations, the rewards and numbers of unitree_rl_gym."""

import dataclasses
from typing import ClassVar

from galvanax.envs.legged.humanoid import Humanoid, both_legs


@dataclasses.dataclass(frozen=True)
class G1(Humanoid):
    """A humanoid of 32 kg that walks by a clock: 12 actions, 47 observations (50 privileged)."""

    default_model: ClassVar[str] = "g1"
    joints: ClassVar[tuple[str, ...]] = both_legs(
        "hip_pitch", "hip_roll", "hip_yaw", "knee", "ankle_pitch", "ankle_roll"
    )
    default_pose: ClassVar[tuple[float, ...]] = (-0.1, 0.0, 0.0, 0.3, -0.2, 0.0) * 2
    hip_joints: ClassVar[tuple[int, ...]] = (1, 2, 7, 8)

    kp: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"hip_yaw": 100.0, "hip_roll": 100.0, "hip_pitch": 100.0, "knee": 150.0, "ankle": 40.0}
    )
    kd: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"hip_yaw": 2.0, "hip_roll": 2.0, "hip_pitch": 2.0, "knee": 4.0, "ankle": 2.0}
    )
    initial_height: float = 0.8
    height_target: float = 0.78
