"""Settings of the legged environments, part by part."""

import dataclasses

from galvanax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Commands:
    """What the robot is asked to do: a velocity of the trunk, drawn anew from time to time.

    Attributes:
      lin_vel_x: range (m/s), forward, in the trunk's frame.
      lin_vel_y: range (m/s), to the left.
      ang_vel_yaw: range (rad/s), counter-clockwise.
      heading: draw a heading in the world instead of a yaw rate; the rate is then half the heading's error (rad),
        within `ang_vel_yaw`.
      resampling_time: seconds (s) between draws.
      dead_zone: a planar command (m/s) no faster than this is zero.
    """

    lin_vel_x: tuple[float, float] = (-1.0, 1.0)
    lin_vel_y: tuple[float, float] = (-1.0, 1.0)
    ang_vel_yaw: tuple[float, float] = (-1.0, 1.0)
    heading: bool = True
    resampling_time: float = 10.0
    dead_zone: float = 0.2

    def __post_init__(self) -> None:
        for name in ("lin_vel_x", "lin_vel_y", "ang_vel_yaw"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ConfigError(f"Commands.{name}=({low}, {high}): the lower end is above the higher one.")
        if self.resampling_time <= 0:
            raise ConfigError(f"Commands.resampling_time={self.resampling_time}: expected seconds, above 0.")


@dataclasses.dataclass(frozen=True)
class Gait:
    """The clock by which a biped's feet should step.

    Attributes:
      period: of one stride (s).
      offset: of each foot in the stride, as a part of it, in the order of the environment's feet.
      stance: a foot should stand while its phase is below this part.
      swing_height: of the foot body's origin above the ground in the swing (m).
    """

    period: float = 0.8
    offset: tuple[float, ...] = (0.0, 0.5)
    stance: float = 0.55
    swing_height: float = 0.08


@dataclasses.dataclass(frozen=True)
class ObservationNoise:
    """Uniform noise on observations, ± these amplitudes before the observation's scaling, times `level`.

    Attributes:
      level: of all; 0 for none.
      joint_pos: rad.
      joint_vel: rad/s.
      lin_vel: m/s.
      ang_vel: rad/s.
      gravity: of the unit vector's entries.
    """

    level: float = 1.0
    joint_pos: float = 0.01
    joint_vel: float = 1.5
    lin_vel: float = 0.1
    ang_vel: float = 0.2
    gravity: float = 0.05


@dataclasses.dataclass(frozen=True)
class ObservationScales:
    """What quantities are multiplied by in the observation; the result is clipped at ± `clip`."""

    lin_vel: float = 2.0
    ang_vel: float = 0.25
    joint_pos: float = 1.0
    joint_vel: float = 0.05
    clip: float = 100.0


@dataclasses.dataclass(frozen=True)
class Termination:
    """When the robot has fallen.

    Attributes:
      roll: of the trunk (rad), at most, either way.
      pitch: of the trunk (rad), at most, either way.
      contact: end too when a body named by the environment's `terminate_on` touches the ground.
    """

    roll: float = 0.8
    pitch: float = 1.0
    contact: bool = True


@dataclasses.dataclass(frozen=True)
class RewardScales:
    """The weight of each reward term of `rewards.TERMS`, by its name; 0 leaves it out.

    A step's reward is the weighted sum times `control_dt`. Terms of your own: a subclass with more fields, and an
    environment whose `reward_terms` knows them.
    """

    tracking_lin_vel: float = 1.0
    tracking_ang_vel: float = 0.5
    lin_vel_z: float = -2.0
    ang_vel_xy: float = -0.05
    orientation: float = 0.0
    base_height: float = 0.0
    torques: float = 0.0
    joint_vel: float = 0.0
    joint_acc: float = -2.5e-7
    action_rate: float = -0.01
    joint_pos_limits: float = 0.0
    collision: float = 0.0
    feet_air_time: float = 0.0
    stand_still: float = 0.0
    termination: float = 0.0
    alive: float = 0.0
    hip_pos: float = 0.0
    contact: float = 0.0
    contact_no_vel: float = 0.0
    feet_swing_height: float = 0.0
