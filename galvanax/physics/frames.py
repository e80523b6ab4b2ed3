"""The frame of a window of motion: where it starts, and which way its trunk looks then.

Gravity and flat ground look the same from everywhere, so a motion there is the same motion here, and who learns one
has learned the other. But not to the last digit: friction pyramids have their sides along the world's axes.
"""

import jax
import jax.numpy as jnp

from galvanax.physics import quaternions
from galvanax.physics.layout import StateLayout


def has_floating_base(layout: StateLayout | None) -> bool:
    """Whether a state begins with a free joint: position (3), quaternion (4), and (3) + (3) velocities in `qvel`."""
    return layout is not None and (3, 3) in layout.quaternions


def to_start_frame(layout: StateLayout | None, states: jax.Array, start: jax.Array) -> jax.Array:
    """States seen from above a start: its x and y become 0, its heading becomes +x.

    A quaternion q and its negative are one rotation; the one with w >= 0 is returned. States without a floating base
    come back as they are.

    Args:
      layout: of the states.
      states: `(..., steps, nq + nv)`.
      start: `(..., nq + nv)`, whose place and heading are taken.
    """
    if not has_floating_base(layout):
        return states
    turn = quaternions.conjugate(_heading(start[..., 3:7]))[..., None, :]
    shift = start[..., None, :2]
    states = states.at[..., :2].add(-shift)
    return _turn(layout, states, turn)


def from_start_frame(layout: StateLayout | None, states: jax.Array, start: jax.Array) -> jax.Array:
    """The inverse of `to_start_frame`, up to the quaternions' signs."""
    if not has_floating_base(layout):
        return states
    turned = _turn(layout, states, _heading(start[..., 3:7])[..., None, :])
    return turned.at[..., :2].add(start[..., None, :2])


def _turn(layout: StateLayout | None, states: jax.Array, turn: jax.Array) -> jax.Array:
    """Turns the world under the states; a free joint's angular velocity is in the body's frame and stays."""
    assert layout is not None
    position = quaternions.rotate(turn, states[..., :3])
    attitude = quaternions.normalize(quaternions.multiply(turn, states[..., 3:7]))
    attitude = jnp.where(attitude[..., :1] < 0, -attitude, attitude)
    velocity = quaternions.rotate(turn, states[..., layout.nq : layout.nq + 3])
    states = states.at[..., :3].set(position).at[..., 3:7].set(attitude)
    return states.at[..., layout.nq : layout.nq + 3].set(velocity)


def _heading(quaternion: jax.Array) -> jax.Array:
    """The turn about the vertical that takes +x to where the body's x axis points, seen from above."""
    forward = quaternions.rotate(quaternions.normalize(quaternion), jnp.array([1.0, 0.0, 0.0], quaternion.dtype))
    half = jnp.arctan2(forward[..., 1], forward[..., 0]) / 2
    zero = jnp.zeros_like(half)
    return jnp.stack([jnp.cos(half), zero, zero, jnp.sin(half)], axis=-1)
