"""Where random rollouts start: samplers `(model, rng) -> mjx.Data`."""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from galvanax.errors import ConfigError
from galvanax.physics import quaternions
from galvanax.physics.integrators import integrate_positions
from galvanax.physics.layout import StateLayout
from galvanax.physics.quiet_mjx import mjx


@dataclasses.dataclass(frozen=True)
class NarrowStart:
    """Near the model's reference pose `qpos0`, nearly at rest.

    Attributes:
      position_noise: each degree of freedom is moved by up to this much (rad or m), uniformly.
      velocity_noise: velocities are uniform up to this much (rad/s or m/s) either way.
    """

    position_noise: float = 0.1
    velocity_noise: float = 0.1

    def __call__(self, model: mjx.Model, rng: jax.Array) -> mjx.Data:
        """Draws one start."""
        shift_rng, velocity_rng = jax.random.split(rng)
        shift = self.position_noise * jax.random.uniform(shift_rng, (model.nv,), minval=-1.0)
        qvel = self.velocity_noise * jax.random.uniform(velocity_rng, (model.nv,), minval=-1.0)
        qpos = integrate_positions(StateLayout.from_model(model), jnp.asarray(model.qpos0), shift, 1.0)
        return mjx.make_data(model).replace(qpos=qpos, qvel=qvel)


@dataclasses.dataclass(frozen=True)
class WideStart:
    """Anywhere the joints can be, at any speed of a range.

    Hinges are uniform over the circle and rotations over all rotations. A hinge or slide with limits is uniform
    between them. A slide without limits and the position of a free body stay at `qpos0`.

    Attributes:
      velocity_min: lowest velocity (rad/s or m/s), one number or one for each degree of freedom.
      velocity_max: highest velocity, likewise.

    Raises:
      ConfigError: the velocity range is empty or doesn't fit the model.
    """

    velocity_min: float | tuple[float, ...] = -8.0
    velocity_max: float | tuple[float, ...] = 8.0

    def __call__(self, model: mjx.Model, rng: jax.Array) -> mjx.Data:
        """Draws one start."""
        slowest = broadcast_limit("WideStart.velocity_min", self.velocity_min, model.nv)
        fastest = broadcast_limit("WideStart.velocity_max", self.velocity_max, model.nv)
        if np.any(slowest > fastest):
            raise ConfigError(f"WideStart: velocity_min={self.velocity_min} is above velocity_max={self.velocity_max}")
        position_rng, velocity_rng, rotation_rng = jax.random.split(rng, 3)
        low = high = jnp.asarray(model.qpos0)
        for joint in range(model.njnt):
            kind, place = mujoco.mjtJoint(int(model.jnt_type[joint])), int(model.jnt_qposadr[joint])
            if kind in (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE) and model.jnt_limited[joint]:
                low = low.at[place].set(model.jnt_range[joint, 0])
                high = high.at[place].set(model.jnt_range[joint, 1])
            elif kind == mujoco.mjtJoint.mjJNT_HINGE:
                low, high = low.at[place].add(-jnp.pi), high.at[place].add(jnp.pi)
        qpos = low + (high - low) * jax.random.uniform(position_rng, (model.nq,))
        for place, _ in StateLayout.from_model(model).quaternions:
            # A normal vector in four dimensions has no preferred direction.
            direction = jax.random.normal(jax.random.fold_in(rotation_rng, place), (4,))
            qpos = qpos.at[place : place + 4].set(quaternions.normalize(direction))
        qvel = slowest + (fastest - slowest) * jax.random.uniform(velocity_rng, (model.nv,))
        return mjx.make_data(model).replace(qpos=qpos, qvel=qvel)


def broadcast_limit(name: str, limit: float | tuple[float, ...] | np.ndarray | jax.Array, size: int) -> np.ndarray:
    """A limit given once or for each of `size` entries, as an array `(size,)`.

    Raises:
      ConfigError: it has another shape or isn't finite; names it.
    """
    array = np.asarray(limit, np.float32)
    if array.shape not in ((), (size,)):
        raise ConfigError(f"{name} has shape {array.shape}; expected one number or ({size},), the model's")
    if not np.all(np.isfinite(array)):
        raise ConfigError(f"{name}={array.tolist()}; expected finite numbers")
    return np.broadcast_to(array, (size,))
