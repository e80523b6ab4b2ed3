"""Which entries of a MuJoCo state are angles, quaternions or plain coordinates."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from galvanax.errors import ConfigError
from galvanax.physics import quaternions
from galvanax.physics.quiet_mjx import mjx


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """The meaning of each entry of a state `[qpos, qvel]`.

    Holds integers only, so that it can be written as JSON, compared and hashed. A rotation has four entries in
    `qpos` and three in `qvel`. Every other entry of `qpos` has one in `qvel`, in the same order, as in MuJoCo.

    Attributes:
      nq: entries of qpos.
      nv: entries of qvel.
      angles: places in qpos of angles (rad), which networks see as cosine and sine.
      quaternions: `(place in qpos, place in qvel)` of each rotation (w, x, y, z).

    Raises:
      ConfigError: the places overlap, lie outside the state, or don't account for `nq` and `nv`.
    """

    nq: int
    nv: int
    angles: tuple[int, ...] = ()
    quaternions: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        # JSON hands back lists; tuples keep the layout hashable.
        object.__setattr__(self, "angles", tuple(int(i) for i in self.angles))
        object.__setattr__(self, "quaternions", tuple((int(q), int(v)) for q, v in self.quaternions))
        turns = len(self.quaternions)
        if self.nq - self.nv != turns:
            raise ConfigError(
                f"StateLayout: nq={self.nq} and nv={self.nv} differ by {self.nq - self.nv}; expected {turns}, the "
                "number of quaternions, each of which adds one entry to qpos"
            )
        places = len(self.scalar_positions), len(self.scalar_velocities)
        if places != (self.nq - 4 * turns, self.nv - 3 * turns):
            raise ConfigError(
                f"StateLayout.quaternions: {self.quaternions} overlap or leave the state of nq={self.nq}, nv={self.nv}"
            )
        stray = sorted(set(self.angles) - set(self.scalar_positions))
        if stray or len(set(self.angles)) != len(self.angles):
            raise ConfigError(
                f"StateLayout.angles: got {self.angles}; expected different places out of {self.scalar_positions}"
            )

    @classmethod
    def from_model(cls, model: mujoco.MjModel | mjx.Model, angles: Sequence[int] | None = None) -> Self:
        """Reads the layout from the joint types of a model.

        Args:
          model: any MuJoCo or MJX model.
          angles: places in qpos to treat as angles; by default every hinge.

        Raises:
          ConfigError: `angles` names a place that is not a single coordinate.
        """
        types = np.asarray(model.jnt_type)
        position, velocity = np.asarray(model.jnt_qposadr), np.asarray(model.jnt_dofadr)
        rotations = [
            # A free joint starts with three entries of translation.
            (int(q) + 3 * free, int(v) + 3 * free)
            for kind, q, v in zip(types, position, velocity, strict=True)
            if (free := int(kind == mujoco.mjtJoint.mjJNT_FREE)) or kind == mujoco.mjtJoint.mjJNT_BALL
        ]
        if angles is None:
            angles = position[types == mujoco.mjtJoint.mjJNT_HINGE]
        return cls(int(model.nq), int(model.nv), tuple(angles), tuple(rotations))

    @functools.cached_property
    def scalar_positions(self) -> tuple[int, ...]:
        """Places in qpos outside quaternions."""
        taken = {q + k for q, _ in self.quaternions for k in range(4)}
        return tuple(i for i in range(self.nq) if i not in taken)

    @functools.cached_property
    def scalar_velocities(self) -> tuple[int, ...]:
        """Places in qvel of the entries of `scalar_positions`, in the same order."""
        taken = {v + k for _, v in self.quaternions for k in range(3)}
        return tuple(i for i in range(self.nv) if i not in taken)

    @functools.cached_property
    def coordinates(self) -> tuple[int, ...]:
        """Places in qpos of plain coordinates: neither angles nor quaternions."""
        return tuple(i for i in self.scalar_positions if i not in self.angles)

    @property
    def state_dim(self) -> int:
        """Entries of a state: `nq + nv`."""
        return self.nq + self.nv

    @property
    def num_features(self) -> int:
        """Entries of `features`."""
        return len(self.coordinates) + 2 * len(self.angles) + 9 * len(self.quaternions) + self.nv

    def features(self, state: jax.Array) -> jax.Array:
        """What a network should see of a state, the same for states that are the same.

        A turn by 2π and the change of a quaternion's sign change nothing.

        Args:
          state: `(..., nq + nv)`.

        Returns:
          `(..., num_features)`: coordinates, cosines of angles, their sines, nine rotation-matrix entries for
          each quaternion, velocities.
        """
        qpos, qvel = state[..., : self.nq], state[..., self.nq :]
        angles = _take(qpos, self.angles)
        matrices = [quaternions.to_matrix(qpos[..., q : q + 4]) for q, _ in self.quaternions]
        return jnp.concatenate(
            [
                _take(qpos, self.coordinates),
                jnp.cos(angles),
                jnp.sin(angles),
                *(matrix.reshape(*matrix.shape[:-2], 9) for matrix in matrices),
                qvel,
            ],
            axis=-1,
        )

    def feature_statistics(self, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation by which to normalise `features`.

        Cosines, sines and rotation matrices have a fixed scale already: they get mean 0 and deviation 1.

        Args:
          mean: Mean state, `(nq + nv,)`.
          std: Standard deviation of each state entry, `(nq + nv,)`.

        Returns:
          Two arrays `(num_features,)`.
        """
        plain, bounded = list(self.coordinates), 2 * len(self.angles) + 9 * len(self.quaternions)
        mean, std = np.asarray(mean), np.asarray(std)
        return (
            np.concatenate([mean[plain], np.zeros(bounded), mean[self.nq :]]),
            np.concatenate([std[plain], np.ones(bounded), std[self.nq :]]),
        )

    def difference(self, a: np.ndarray | jax.Array, b: np.ndarray | jax.Array) -> jax.Array:
        """How far state `a` is from state `b`, in the space of velocities.

        As MuJoCo's `mj_differentiatePos` over one second, with differences of angles wrapped to [-π, π): the
        velocity that leads from `b` to `a`, and the difference of velocities.

        Args:
          a: `(..., nq + nv)`.
          b: `(..., nq + nv)`.

        Returns:
          `(..., 2 * nv)`.
        """
        a, b = jnp.asarray(a), jnp.asarray(b)
        moved = a[..., : self.nq] - b[..., : self.nq]
        if self.angles:
            index = np.array(self.angles)
            moved = moved.at[..., index].set(jnp.mod(moved[..., index] + jnp.pi, 2 * jnp.pi) - jnp.pi)
        if self.quaternions:
            scalars = _take(moved, self.scalar_positions)
            moved = jnp.zeros((*moved.shape[:-1], self.nv), moved.dtype)
            moved = moved.at[..., np.array(self.scalar_velocities, int)].set(scalars)
            for q, v in self.quaternions:
                turn = quaternions.multiply(quaternions.conjugate(b[..., q : q + 4]), a[..., q : q + 4])
                moved = moved.at[..., v : v + 3].set(quaternions.to_rotation_vector(turn))
        return jnp.concatenate([moved, a[..., self.nq :] - b[..., self.nq :]], axis=-1)


def _take(array: Any, index: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(array)[..., np.array(index, int)]
