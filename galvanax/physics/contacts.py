"""Contact forces and heights of bodies, from MJX data."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from galvanax.physics.quiet_mjx import mjx

_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)


def contact_forces(model: mjx.Model, data: mjx.Data) -> jax.Array:
    """Force (N) of each contact in the world frame, on the second of its geoms, `(contacts, 3)`.

    They are of the last `mjx.step` or `mjx.forward`. In a pyramidal cone a contact's rows are the edges' forces
    (MuJoCo's documentation, "Computation": friction cones).
    """
    contact, forces = data._impl.contact, data._impl.efc_force
    pyramidal = model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL
    local = []
    for index, (address, dim) in enumerate(zip(contact.efc_address, contact.dim, strict=True)):
        if dim == 1 or not pyramidal:
            rows = forces[address : address + min(dim, 3)]
            local.append(jnp.pad(rows, (0, 3 - rows.shape[0])))
        else:
            edges = forces[address : address + 4].reshape(2, 2)
            tangents = (edges[:, 0] - edges[:, 1]) * contact.friction[index, :2]
            normal = forces[address : address + 2 * (dim - 1)].sum()
            local.append(jnp.concatenate([normal[None], tangents]))
    if not local:
        return jnp.zeros((0, 3))
    # Rows of a contact's frame are its axes, the normal first.
    return jnp.einsum("ci,cij->cj", jnp.stack(local), contact.frame)


def forces_on_bodies(model: mjx.Model, data: mjx.Data, bodies: np.ndarray) -> jax.Array:
    """Total contact force (N) on each of `bodies` `(n,)` (ids), in the world frame, `(n, 3)`."""
    forces = contact_forces(model, data)
    owners = jnp.asarray(model.geom_bodyid)[data._impl.contact.geom]  # (contacts, 2)
    signs = (owners[:, 1] == bodies[:, None]).astype(forces.dtype) - (owners[:, 0] == bodies[:, None])
    return signs @ forces


def point_motion(
    model: mjx.Model, data: mjx.Data, bodies: np.ndarray, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> tuple[jax.Array, jax.Array]:
    """Position (m) and linear velocity (m/s), in the world frame, of a point fixed on each of `bodies`.

    Args:
      model: the model.
      data: after a step or `mjx.forward`.
      bodies: ids `(n,)`.
      offset: of the point in each body's frame (m).

    Returns:
      `(positions (n, 3), velocities (n, 3))`.
    """
    points = data.xpos[bodies] + data.xmat[bodies] @ jnp.asarray(offset)
    # cvel is the velocity of the body as if it extended to its tree's centre of mass.
    centres = data.subtree_com[np.asarray(model.body_rootid)[bodies]]
    angular, linear = data.cvel[bodies, :3], data.cvel[bodies, 3:]
    return points, linear + jnp.cross(angular, points - centres)


def lowest_points(model: mujoco.MjModel, data: mjx.Data, geoms: np.ndarray) -> jax.Array:
    """The lowest point (m, world) of each of `geoms` `(n,)` (ids), `(n, 3)`. Meshes count as their bounding boxes."""
    points = []
    for geom in geoms:
        position, matrix = data.geom_xpos[geom], data.geom_xmat[geom]
        kind, size = model.geom_type[geom], model.geom_size[geom]
        if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
            points.append(position - jnp.array([0, 0, size[0]]))
        elif kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
            axis = matrix[:, 2] * size[1]
            points.append(position - jnp.sign(axis[2]) * axis - jnp.array([0, 0, size[0]]))
        else:
            centre, half = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
            corners = position + (centre + _CORNERS * half) @ matrix.T
            points.append(corners[jnp.argmin(corners[:, 2])])
    return jnp.stack(points) if points else jnp.zeros((0, 3))
