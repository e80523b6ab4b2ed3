"""Unitree H1-2, its twelve leg joints: 47 observations, the rewards and numbers of unitree_rl_gym."""

import dataclasses
from typing import ClassVar

from galvanax.envs.legged.humanoid import Humanoid, both_legs


@dataclasses.dataclass(frozen=True)
class H1_2(Humanoid):
    """A humanoid of 67 kg that walks by a clock: 12 actions, 47 observations (50 privileged)."""

    default_model: ClassVar[str] = "h1_2"
    joints: ClassVar[tuple[str, ...]] = both_legs(
        "hip_yaw", "hip_pitch", "hip_roll", "knee", "ankle_pitch", "ankle_roll"
    )
    default_pose: ClassVar[tuple[float, ...]] = (0.0, -0.16, 0.0, 0.36, -0.2, 0.0) * 2
    hip_joints: ClassVar[tuple[int, ...]] = (0, 2, 6, 8)

    kp: dict[str, float] = dataclasses.field(default_factory=lambda: {"hip": 200.0, "knee": 300.0, "ankle": 40.0})
    kd: dict[str, float] = dataclasses.field(default_factory=lambda: {"hip": 2.5, "knee": 4.0, "ankle": 2.0})
    initial_height: float = 1.05
    height_target: float = 1.0
