"""The constants that MuJoCo derives from masses, inertias and armatures when it compiles a model.

Who changes `body_mass` of a compiled model leaves them stale, and MJX has no `mj_setConst`: contacts then take the
stiffness of the old masses.
"""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from galvanax.physics.quiet_mjx import mjx

# A GPU's default multiplies in TF32: three digits.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def refresh_constants(model: mjx.Model) -> mjx.Model:
    """What `mujoco.mj_setConst` does, in JAX: jit it, vmap it.

    Call it after a change of `body_mass`, `body_inertia`, `body_ipos`, `body_iquat` or `dof_armature`. With `M` the
    inertia matrix at `qpos0` and `J` a Jacobian there, it sets (equations of MuJoCo's `engine_setconst.c`):

    - `body_subtreemass` (kg);
    - `dof_M0`, the diagonal of `M` (kg or kg·m²), without the tendons' armature;
    - `body_invweight0`: the means of the diagonal of `J M⁻¹ Jᵀ` at the centre of mass, of translation (1/kg) and of
      rotation (1/(kg·m²)), 0 for what can't move;
    - `dof_invweight0`, the diagonal of `M⁻¹`, averaged over a ball joint's dofs and over either half of a free joint's;
    - `tendon_invweight0`, the diagonal of `J M⁻¹ Jᵀ`, and `actuator_acc0`, the norm of `M⁻¹ Jᵀ`.

    What depends on lengths and positions alone stays. So do the offsets of cameras and lights that track a centre of
    mass, and `stat`: MJX doesn't read it, and `mj_setConst` leaves it alone too.

    Args:
      model: a model of MJX's JAX implementation, with at least one dof.
    """
    data = mjx.make_data(model).replace(qpos=model.qpos0)
    data = mjx.tendon(model, mjx.com_pos(model, mjx.kinematics(model, data)))
    # Both (nbody, nv, 3), of the centres of mass.
    translation, rotation = jax.vmap(mjx.jac, (None, None, 0, 0))(model, data, data.xipos, jnp.arange(model.nbody))
    spin = _einsum("bik,bkl->bil", rotation, data.ximat)  # about the principal axes
    inertia = _einsum("bik,b,bjk->ij", translation, model.body_mass, translation)
    inertia += _einsum("bik,bk,bjk->ij", spin, model.body_inertia, spin) + jnp.diag(model.dof_armature)
    dof_inertia = jnp.diagonal(inertia)  # MuJoCo takes it before the tendons are added
    # MJX keeps the Jacobians of tendons and actuators to itself; no public function returns them.
    tendons = data._impl.ten_J if model.ntendon else jnp.zeros((0, model.nv))
    moments = mjx.transmission(model, data)._impl.actuator_moment if model.nu else jnp.zeros((0, model.nv))
    inertia += _einsum("ti,t,tj->ij", tendons, model.tendon_armature, tendons)

    factor = jnp.linalg.cholesky(inertia)  # L, with M = L Lᵀ: the diagonal of J M⁻¹ Jᵀ is the squared norm of L⁻¹ Jᵀ

    def whiten(columns: jax.Array) -> jax.Array:
        return jax.scipy.linalg.solve_triangular(factor, columns, lower=True)

    def weights(jacobian: jax.Array) -> jax.Array:
        """The diagonal of `J M⁻¹ Jᵀ`, of `(rows, nv)`."""
        return jnp.square(whiten(jacobian.T)).sum(0)

    bodies = jnp.stack([translation, rotation], axis=1).swapaxes(2, 3)  # (nbody, 2, 3, nv)
    body_weights = weights(bodies.reshape(-1, model.nv)).reshape(model.nbody, 2, 3).mean(-1)
    dof_weights = _average_joints(model, weights(jnp.eye(model.nv)))
    # MuJoCo's shortcut for single bodies that only slide, which leaves their armature out.
    slides = model.body_simple == 2
    inverse_mass = 1 / jnp.maximum(model.body_mass, mujoco.mjMINVAL)
    body_weights = jnp.where(slides[:, None], inverse_mass[:, None] * jnp.array([1.0, 0.0]), body_weights)
    dof_weights = jnp.where(slides[model.dof_bodyid], inverse_mass[model.dof_bodyid], dof_weights)

    accelerations = jax.scipy.linalg.solve_triangular(factor, whiten(moments.T), lower=True, trans="T")
    return model.replace(
        body_subtreemass=jnp.where(_subtrees(model.body_parentid), model.body_mass, 0.0).sum(-1),
        dof_M0=dof_inertia,
        body_invweight0=jnp.where((model.body_weldid == 0)[:, None], 0.0, body_weights),
        dof_invweight0=dof_weights,
        tendon_invweight0=weights(tendons),
        actuator_acc0=jnp.linalg.norm(accelerations, axis=0),
    )


def _subtrees(parents: np.ndarray) -> np.ndarray:
    """`(nbody, nbody)`: whether the column's body is in the subtree of the row's."""
    inside = np.eye(len(parents), dtype=bool)
    for body in range(len(parents) - 1, 0, -1):  # a child comes after its parent
        inside[parents[body]] |= inside[body]
    return inside


def _average_joints(model: mjx.Model, values: jax.Array) -> jax.Array:
    """Means over the three dofs of a ball joint and over either three of a free joint; other dofs as they are."""
    starts = []
    for kind, start in zip(model.jnt_type, model.jnt_dofadr, strict=True):
        if kind == mujoco.mjtJoint.mjJNT_FREE:
            starts += [start, start + 3]
        elif kind == mujoco.mjtJoint.mjJNT_BALL:
            starts += [start]
    for start in starts:
        values = values.at[start : start + 3].set(values[start : start + 3].mean())
    return values
