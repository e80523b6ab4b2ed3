"""Reward terms of the legged environments, by name: pure functions of what happened in a step.

Their formulas are unitree_rl_gym's, which follow Rudin et al., "Learning to Walk in Minutes Using Massively Parallel
Deep Reinforcement Learning" (2022, table 5).
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Motion:
    """What the terms see of one control step; n joints, f feet, all in SI units.

    Attributes:
      lin_vel: of the trunk in its frame (3,).
      ang_vel: of the trunk in its frame (3,).
      gravity: direction of gravity in the trunk's frame (3,); (0, 0, -1) when upright.
      height: of the trunk above the ground.
      joint_pos: (n,).
      default_joint_pos: (n,).
      soft_limits: the joints' ranges, narrowed (n, 2).
      joint_vel: (n,).
      last_joint_vel: one control step ago (n,).
      torques: of the last substep (n,).
      action: (n,).
      last_action: (n,).
      command: forward, left (m/s) and yaw rate (rad/s) (3,).
      foot_forces: on each foot in the world frame (f, 3).
      foot_heights: of the feet's reference points above the ground (f,); the ankle's origin on bipeds.
      foot_velocities: of the same points in the world frame (f, 3).
      air_time: since each foot last stood, this step included (f,).
      first_contact: 1.0 for feet that touch down after a flight (f,).
      stance: 1.0 for feet that should stand, by the gait's clock (f,).
      collisions: number of penalised bodies that touch the ground.
      fallen: 1.0 when the episode ends by a fall.
      control_dt: seconds.
      tracking_sigma: m²/s² and rad²/s²: width of the tracking terms.
      height_target: m.
      swing_height: m.
      hip_joints: indices of the hip joints that should stay straight (h,).
    """

    lin_vel: jax.Array
    ang_vel: jax.Array
    gravity: jax.Array
    height: jax.Array
    joint_pos: jax.Array
    default_joint_pos: jax.Array
    soft_limits: jax.Array
    joint_vel: jax.Array
    last_joint_vel: jax.Array
    torques: jax.Array
    action: jax.Array
    last_action: jax.Array
    command: jax.Array
    foot_forces: jax.Array
    foot_heights: jax.Array
    foot_velocities: jax.Array
    air_time: jax.Array
    first_contact: jax.Array
    stance: jax.Array
    collisions: jax.Array
    fallen: jax.Array
    control_dt: float
    tracking_sigma: float
    height_target: float
    swing_height: float
    hip_joints: tuple[int, ...] = dataclasses.field(metadata={"static": True})


RewardTerm = Callable[[Motion], jax.Array]

CONTACT_FORCE = 1.0  # N; a foot stands above this
_MOVING = 0.1  # m/s; slower commands ask to stand


def loaded(motion: Motion) -> jax.Array:
    """Feet on which the ground pushes up, 1.0 or 0.0 (f,)."""
    return (motion.foot_forces[:, 2] > CONTACT_FORCE).astype(jnp.float32)


def touching(motion: Motion) -> jax.Array:
    """Feet on which the ground acts in any direction, 1.0 or 0.0 (f,)."""
    return (jnp.linalg.norm(motion.foot_forces, axis=-1) > CONTACT_FORCE).astype(jnp.float32)


def tracking_lin_vel(motion: Motion) -> jax.Array:
    """exp(-|planar velocity error|²/σ)."""
    return jnp.exp(-jnp.sum((motion.command[:2] - motion.lin_vel[:2]) ** 2) / motion.tracking_sigma)


def tracking_ang_vel(motion: Motion) -> jax.Array:
    """exp(-(yaw rate error)²/σ)."""
    return jnp.exp(-((motion.command[2] - motion.ang_vel[2]) ** 2) / motion.tracking_sigma)


def lin_vel_z(motion: Motion) -> jax.Array:
    """Vertical velocity, squared."""
    return motion.lin_vel[2] ** 2


def ang_vel_xy(motion: Motion) -> jax.Array:
    """Roll and pitch rates, squared."""
    return jnp.sum(motion.ang_vel[:2] ** 2)


def orientation(motion: Motion) -> jax.Array:
    """Tilt: gravity's horizontal part in the trunk's frame, squared."""
    return jnp.sum(motion.gravity[:2] ** 2)


def base_height(motion: Motion) -> jax.Array:
    """Trunk's height beside its target, squared."""
    return (motion.height - motion.height_target) ** 2


def torques(motion: Motion) -> jax.Array:
    """Torques, squared."""
    return jnp.sum(motion.torques**2)


def joint_vel(motion: Motion) -> jax.Array:
    """Joint velocities, squared."""
    return jnp.sum(motion.joint_vel**2)


def joint_acc(motion: Motion) -> jax.Array:
    """Joint accelerations over the control step, squared."""
    return jnp.sum(((motion.last_joint_vel - motion.joint_vel) / motion.control_dt) ** 2)


def action_rate(motion: Motion) -> jax.Array:
    """Change of action, squared."""
    return jnp.sum((motion.last_action - motion.action) ** 2)


def joint_pos_limits(motion: Motion) -> jax.Array:
    """How far joints are beyond their narrowed ranges (rad)."""
    below = jnp.maximum(motion.soft_limits[:, 0] - motion.joint_pos, 0)
    above = jnp.maximum(motion.joint_pos - motion.soft_limits[:, 1], 0)
    return jnp.sum(below + above)


def collision(motion: Motion) -> jax.Array:
    """Penalised bodies that touch the ground."""
    return motion.collisions


def feet_air_time(motion: Motion) -> jax.Array:
    """Long steps: (flight - 0.5 s) at each touch-down, while asked to move."""
    moving = jnp.linalg.norm(motion.command[:2]) > _MOVING
    return jnp.sum((motion.air_time - 0.5) * motion.first_contact) * moving


def stand_still(motion: Motion) -> jax.Array:
    """Distance of the joints from the default pose (rad), while asked to stand."""
    standing = jnp.linalg.norm(motion.command[:2]) < _MOVING
    return jnp.sum(jnp.abs(motion.joint_pos - motion.default_joint_pos)) * standing


def termination(motion: Motion) -> jax.Array:
    """1 at a fall."""
    return motion.fallen


def alive(motion: Motion) -> jax.Array:
    """1 at every step."""
    return jnp.ones(())


def hip_pos(motion: Motion) -> jax.Array:
    """Hip roll and yaw angles, squared."""
    return jnp.sum(motion.joint_pos[jnp.array(motion.hip_joints, int)] ** 2)


def contact(motion: Motion) -> jax.Array:
    """Feet that stand when they should stand and fly when they should fly."""
    return jnp.sum(loaded(motion) == motion.stance).astype(jnp.float32)


def contact_no_vel(motion: Motion) -> jax.Array:
    """Slip: velocities of feet that touch, squared."""
    return jnp.sum(motion.foot_velocities**2 * touching(motion)[:, None])


def feet_swing_height(motion: Motion) -> jax.Array:
    """Height of flying feet beside the gait's, squared."""
    return jnp.sum((motion.foot_heights - motion.swing_height) ** 2 * (1 - touching(motion)))


TERMS: Mapping[str, RewardTerm] = {
    term.__name__: term
    for term in (
        tracking_lin_vel,
        tracking_ang_vel,
        lin_vel_z,
        ang_vel_xy,
        orientation,
        base_height,
        torques,
        joint_vel,
        joint_acc,
        action_rate,
        joint_pos_limits,
        collision,
        feet_air_time,
        stand_still,
        termination,
        alive,
        hip_pos,
        contact,
        contact_no_vel,
        feet_swing_height,
    )
}
