"""Rays against a model's geoms, in JAX: `mjx.ray`, and the two types that it passes over without a word."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from galvanax.envs.terrain_shapes import triangulated
from galvanax.physics.quiet_mjx import mjx

GROUPS = 6  # geom groups of MuJoCo
BISECTIONS = 12  # a ray's step into a height field is cut in two this often: 1/4096 of half a cell
MOST_STEPS = 256  # along a ray over a height field
UNSEEN = {int(mujoco.mjtGeom.mjGEOM_SDF): "sdf"}  # types without a ray here


def cast_ray(
    model: mjx.Model,
    data: mjx.Data,
    point: jax.Array,
    direction: jax.Array,
    *,
    farthest: float,
    groups: tuple[int, ...],
    exclude_body: int = -1,
) -> jax.Array:
    """How far a ray gets, in lengths of `direction`.

    Height fields are searched in steps of half a cell (longer ones where `farthest` is beyond 128 cells): of a bump
    that a ray only grazes, the tip can be missed.

    Args:
      model: the model, without signed-distance geoms.
      data: with the poses of geoms.
      point: `(3,)` (m, world).
      direction: `(3,)`, of any length.
      farthest: what is returned where nothing is met before.
      groups: the geom groups that are seen.
      exclude_body: number of a body whose geoms aren't seen, -1 for none.

    Returns:
      Scalar in [0, farthest].
    """
    if model.nmat == 0:  # mjx.ray looks materials up even where there are none, and JAX refuses
        model = model.replace(mat_rgba=jnp.ones((1, 4)))
    seen = [group in groups for group in range(GROUPS)]
    nearest, _ = mjx.ray(model, data, point, direction, geomgroup=seen, bodyexclude=exclude_body)
    nearest = jnp.where(nearest < 0, farthest, nearest)
    body = np.asarray(model.geom_bodyid)
    open_to = np.isin(np.asarray(model.geom_group), groups) & ((exclude_body < 0) | (body != exclude_body))
    for kind, ray in ((mujoco.mjtGeom.mjGEOM_CYLINDER, _ray_cylinder), (mujoco.mjtGeom.mjGEOM_HFIELD, _ray_hfield)):
        for geom in np.flatnonzero(open_to & (np.asarray(model.geom_type) == int(kind))).tolist():
            turn = data.geom_xmat[geom].T
            met = ray(model, geom, turn @ (point - data.geom_xpos[geom]), turn @ direction, farthest)
            nearest = jnp.minimum(nearest, jnp.where(_alpha(model, geom) > 0, met, farthest))
    return jnp.clip(nearest, 0.0, farthest)


def _alpha(model: mjx.Model, geom: int) -> jax.Array:
    material = model.geom_matid[geom]
    return jnp.where(material < 0, model.geom_rgba[geom, 3], model.mat_rgba[material, 3])


def _ray_cylinder(model: mjx.Model, geom: int, point: jax.Array, direction: jax.Array, farthest: float) -> jax.Array:
    radius, half = model.geom_size[geom, 0], model.geom_size[geom, 1]
    # The round side.
    a = direction[:2] @ direction[:2] + 1e-12
    b = point[:2] @ direction[:2]
    under_root = b * b - a * (point[:2] @ point[:2] - radius**2)
    root = jnp.sqrt(jnp.maximum(under_root, 0.0))
    side = jnp.stack([-b - root, -b + root]) / a
    met = (under_root >= 0) & (side >= 0) & (jnp.abs(point[2] + side * direction[2]) <= half)
    # The flat ends.
    ends = (jnp.stack([half, -half]) - point[2]) / jnp.where(direction[2] == 0, 1e-12, direction[2])
    across = point[:2] + ends[:, None] * direction[:2]
    hit = (ends >= 0) & ((across**2).sum(-1) <= radius**2)
    return jnp.concatenate([jnp.where(met, side, farthest), jnp.where(hit, ends, farthest)]).min()


def _ray_hfield(model: mjx.Model, geom: int, point: jax.Array, direction: jax.Array, farthest: float) -> jax.Array:
    field = int(model.geom_dataid[geom])
    rows, columns = int(model.hfield_nrow[field]), int(model.hfield_ncol[field])
    size = np.asarray(model.hfield_size[field])  # half x, half y, top, base (m)
    start = int(model.hfield_adr[field])
    heights = model.hfield_data[start : start + rows * columns].reshape(rows, columns) * size[2]
    per_metre = np.array([columns - 1, rows - 1]) / (2 * size[:2])

    def above(t: jax.Array) -> jax.Array:
        at = point + t[..., None] * direction
        return at[..., 2] - triangulated(heights, (at[..., :2] + size[:2]) * per_metre)

    # The part of the ray inside the box around the field.
    slope = jnp.where(direction == 0, 1e-12, direction)
    corners = (jnp.stack([jnp.array([-size[0], -size[1], -size[3]]), jnp.array(size[:3])]) - point) / slope
    enter = jnp.maximum(corners.min(0).max(), 0.0)
    leave = jnp.minimum(corners.max(0).min(), farthest)
    steps = int(np.clip(np.ceil(2 * farthest * per_metre.max()), 2, MOST_STEPS))
    t = enter + (leave - enter) * jnp.linspace(0.0, 1.0, steps + 1)
    below = above(t) <= 0
    first = jnp.argmax(below)

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        middle = (ends[0] + ends[1]) / 2
        inside = above(middle) <= 0
        return jnp.where(inside, ends[0], middle), jnp.where(inside, middle, ends[1])

    _, met = jax.lax.fori_loop(0, BISECTIONS, halve, (t[jnp.maximum(first - 1, 0)], t[first]))
    return jnp.where((leave > enter) & below.any(), met, farthest)
