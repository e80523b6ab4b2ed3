"""From accelerations to states."""

import jax
import jax.numpy as jnp
import numpy as np

from galvanax.physics import quaternions
from galvanax.physics.layout import StateLayout


def integrate_positions(layout: StateLayout, qpos: jax.Array, qvel: jax.Array, dt: float | jax.Array) -> jax.Array:
    """Moves positions with constant velocities for `dt` seconds, as MuJoCo's `mj_integratePos`.

    A rotation follows its angular velocity, given in the body's frame, through the exponential map.

    Args:
      layout: What the entries mean.
      qpos: `(..., nq)`.
      qvel: `(..., nv)`, per second.
      dt: Seconds.

    Returns:
      `(..., nq)`, quaternions at length one.
    """
    if not layout.quaternions:
        return qpos + qvel * dt
    index, rates = np.array(layout.scalar_positions, int), np.array(layout.scalar_velocities, int)
    moved = qpos.at[..., index].add(qvel[..., rates] * dt)
    for q, v in layout.quaternions:
        turn = quaternions.from_rotation_vector(qvel[..., v : v + 3] * dt)
        turned = quaternions.multiply(qpos[..., q : q + 4], turn)
        moved = moved.at[..., q : q + 4].set(quaternions.normalize(turned))
    return moved


def semi_implicit_euler(
    layout: StateLayout, state: jax.Array, acceleration: jax.Array, dt: float | jax.Array
) -> jax.Array:
    """One semi-implicit Euler step: `v' = v + a dt`, then `q' = q ⊕ v' dt`.

    MuJoCo's own order ("Numerical integration" in the chapter Computation of its documentation): positions move
    with the new velocities, which keeps the energy of undamped motion bounded.

    Args:
      layout: What the entries mean.
      state: `(..., nq + nv)`.
      acceleration: `(..., nv)`, per second squared.
      dt: Seconds.

    Returns:
      The next state `(..., nq + nv)`.
    """
    qpos, qvel = state[..., : layout.nq], state[..., layout.nq :]
    qvel = qvel + acceleration * dt
    return jnp.concatenate([integrate_positions(layout, qpos, qvel, dt), qvel], axis=-1)
