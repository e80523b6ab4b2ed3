"""Quaternions (w, x, y, z) as in MuJoCo, batched over leading axes.

MJX and `jax.scipy` have these too, but with gradients at zero rotation that are zero or not a number, and a body
at rest is exactly there.
"""

import jax
import jax.numpy as jnp

# Below this squared angle the series is exact in float32.
_SMALL = 1e-6


def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """The Hamilton product `(..., 4)`: first the rotation `b`, then `a`."""
    aw, av, bw, bv = a[..., :1], a[..., 1:], b[..., :1], b[..., 1:]
    scalar = aw * bw - jnp.sum(av * bv, axis=-1, keepdims=True)
    return jnp.concatenate([scalar, aw * bv + bw * av + jnp.cross(av, bv)], axis=-1)


def conjugate(quaternion: jax.Array) -> jax.Array:
    """The inverse of a unit quaternion `(..., 4)`."""
    return quaternion * jnp.array([1, -1, -1, -1], quaternion.dtype)


def normalize(quaternion: jax.Array) -> jax.Array:
    """A quaternion `(..., 4)` at length one."""
    return quaternion / jnp.linalg.norm(quaternion, axis=-1, keepdims=True)


def rotate(quaternion: jax.Array, vector: jax.Array) -> jax.Array:
    """A vector `(..., 3)` turned by a unit quaternion `(..., 4)`."""
    scalar, axis = quaternion[..., :1], quaternion[..., 1:]
    twice = 2 * jnp.cross(axis, vector)
    return vector + scalar * twice + jnp.cross(axis, twice)


def from_rotation_vector(vector: jax.Array) -> jax.Array:
    """The exponential map: axis times angle (rad) `(..., 3)` to a unit quaternion `(..., 4)`."""
    squared = jnp.sum(vector**2, axis=-1, keepdims=True)
    small = squared < _SMALL
    angle = jnp.sqrt(jnp.where(small, 1.0, squared))
    scale = jnp.where(small, 0.5 - squared / 48, jnp.sin(angle / 2) / angle)
    scalar = jnp.where(small, 1 - squared / 8, jnp.cos(angle / 2))
    return jnp.concatenate([scalar, scale * vector], axis=-1)


def to_rotation_vector(quaternion: jax.Array) -> jax.Array:
    """The logarithm: a unit quaternion `(..., 4)` to axis times angle `(..., 3)`, at most π rad long."""
    # q and -q are one rotation; w >= 0 is the short way round.
    quaternion = jnp.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    scalar, vector = quaternion[..., :1], quaternion[..., 1:]
    squared = jnp.sum(vector**2, axis=-1, keepdims=True)
    small = squared < _SMALL
    sine = jnp.sqrt(jnp.where(small, 1.0, squared))
    return vector * jnp.where(small, 2 + squared / 3, 2 * jnp.arctan2(sine, scalar) / sine)


def to_matrix(quaternion: jax.Array) -> jax.Array:
    """The rotation matrix `(..., 3, 3)` of a quaternion `(..., 4)`, normalised on the way."""
    w, x, y, z = jnp.moveaxis(normalize(quaternion), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
