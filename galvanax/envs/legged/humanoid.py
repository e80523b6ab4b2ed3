"""What Unitree's humanoids have in common: a pelvis, two legs that step by a clock, and most reward weights."""

import dataclasses
from typing import ClassVar

from galvanax.envs.legged.legged import LeggedEnvironment
from galvanax.envs.legged.settings import RewardScales
from galvanax.envs.randomization import Randomization

REWARDS = RewardScales(
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
RANDOMIZATION = Randomization(friction=(0.1, 1.25), added_trunk_mass=(-1.0, 3.0), push_interval=5.0, push_velocity=1.5)


def both_legs(*joints: str) -> tuple[str, ...]:
    """The joints of the left leg, then those of the right one."""
    return tuple(f"{side}_{joint}_joint" for side in ("left", "right") for joint in joints)


@dataclasses.dataclass(frozen=True)
class Humanoid(LeggedEnvironment):
    """A base for G1, H1 and H1-2, by the numbers of unitree_rl_gym."""

    trunk: ClassVar[str] = "pelvis"
    feet: ClassVar[tuple[str, ...]] = ("left_ankle_roll_link", "right_ankle_roll_link")
    terminate_on: ClassVar[tuple[str, ...]] = ("pelvis",)
    penalise: ClassVar[tuple[str, ...]] = ("hip", "knee")

    rewards: RewardScales = REWARDS
    randomization: Randomization = RANDOMIZATION
