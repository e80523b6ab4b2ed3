"""MJX's step with exact gradients through contact, at any number of solver iterations.

MJX's constraint solver minimises a convex cost over accelerations in a loop that reverse mode can't enter. It need not:
by the implicit function theorem the minimum's derivative follows from the cost's gradient and Hessian there. All that
touches what MJX keeps private is in this file.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import mujoco
from jax.ad_checkpoint import checkpoint_name
from mujoco.mjx._src import smooth as mjx_smooth
from mujoco.mjx._src import solver as mjx_solver

from galvanax.errors import ConfigError
from galvanax.physics.integrators import integrate_positions
from galvanax.physics.layout import StateLayout
from galvanax.physics.quiet_mjx import mjx

# What has this name is small, and to find it again in the backward pass would cost as much as all else in a step.
SOLUTION = "constraint_solution"
KEEP_SOLUTIONS = jax.checkpoint_policies.save_only_these_names(SOLUTION)

_INTEGRATORS = {
    mujoco.mjtIntegrator.mjINT_EULER: "Euler",
    mujoco.mjtIntegrator.mjINT_RK4: "RK4",
    mujoco.mjtIntegrator.mjINT_IMPLICITFAST: "implicitfast",
}
_SOLVERS = {mujoco.mjtSolver.mjSOL_CG: "CG", mujoco.mjtSolver.mjSOL_NEWTON: "Newton"}


def implicit_step(model: mjx.Model, data: mjx.Data, *, external_forces: bool = True) -> mjx.Data:
    """One physics step, as `mjx.step`, with gradients by the implicit function theorem.

    The solver runs on constants and finds accelerations `a`. With `g(a, θ)` the gradient of its cost, which depends on
    positions, velocities, controls and the model's parameters `θ`, and `H = ∂g/∂a`, the derivative is
    `da/dθ = -H⁻¹ ∂g/∂θ` (Blondel et al., 2022, arXiv:2105.15183, section 2). Where the solver has converged, `g = 0`,
    this is the derivative of the step. Where it was cut off before, it is the derivative of the accelerations at
    which `g` keeps the value that it has: not that of the unfinished iterations.

    Reverse and forward mode, `vmap` and `jit` all work; second derivatives don't, since `H` counts as a constant.
    Where the step has a kink (a contact that just begins, a joint exactly at its limit), it is the derivative of
    the side that MJX's solver takes. Derivatives of quaternions are right at zero angular velocity too, where
    MJX's are zero.

    Args:
      model: of MJX's JAX implementation, with any cone and solver. Its parameters have gradients too.
      data: the state before the step; `qacc_warmstart` has no gradient.
      external_forces: False where `xfrc_applied` is zero. MJX maps these forces into joint space all the same, and the
        derivative of that takes a seventh of a gradient's time.

    Returns:
      The data after the step, equal to that of `mjx.step`.

    Raises:
      ConfigError: an option of the model is not supported; names it.
    """
    check_supported(model)
    forward = functools.partial(_forward, model, external_forces)
    if model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
        return _runge_kutta(model, data, forward)
    data = forward(data)
    euler = model.opt.integrator == mujoco.mjtIntegrator.mjINT_EULER
    after = (mjx.euler if euler else mjx.implicit)(model, data)
    return _integrate(model, data.qpos, after, after.qvel)


def num_constraints(model: mjx.Model) -> int:
    """Rows of the constraint Jacobian, active or not."""
    return int(jax.eval_shape(lambda: mjx.make_data(model))._impl.efc_J.shape[0])


def check_supported(model: mjx.Model) -> None:
    """Raises ConfigError where `implicit_step` can't step a model."""
    if model.impl != mjx.Impl.JAX:
        raise ConfigError(f"The model's impl is {model.impl.value!r}; expected 'jax': Warp's steps have no gradients.")
    for name, known in (("integrator", _INTEGRATORS), ("solver", _SOLVERS)):
        value = getattr(model.opt, name)
        if value not in known:
            raise ConfigError(
                f"The model's option {name} is {getattr(value, 'name', value)}; expected {', '.join(known.values())}."
            )


def _forward(model: mjx.Model, external_forces: bool, data: mjx.Data) -> mjx.Data:
    """`mjx.forward`, around our `_solve`."""
    data = mjx.sensor_pos(model, mjx.fwd_position(model, data))
    data = mjx.sensor_vel(model, mjx.fwd_velocity(model, data))
    data = mjx.fwd_actuation(model, data)
    force = data.qfrc_passive - data.qfrc_bias + data.qfrc_actuator + data.qfrc_applied
    if external_forces:
        force = force + mjx.xfrc_accumulate(model, data)
    data = data.replace(qfrc_smooth=force, qacc_smooth=mjx_smooth.solve_m(model, data, force))
    if data._impl.efc_J.size == 0:
        return data.replace(qacc=data.qacc_smooth)
    return mjx.sensor_acc(model, _solve(model, data))


def _solve(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """`mjx.solve`, whose accelerations and forces have the derivatives of the solution."""
    fixed_model, fixed = _stop_gradient(model), _stop_gradient(data)
    solved = mjx.solve(fixed_model, fixed)
    qacc = checkpoint_name(solved.qacc, SOLUTION)
    # The Hessian is Newton's, whichever solver came here.
    newton = {"opt.solver": mujoco.mjtSolver.mjSOL_NEWTON}
    model, fixed_model = model.tree_replace(newton), fixed_model.tree_replace(newton)
    at_solution = mjx_solver.Context.create(model, data.replace(qacc=qacc), grad=False)
    at_solution = at_solution.replace(active=_stop_gradient(at_solution.active), h=_stop_gradient(at_solution.h))
    step = mjx_solver._update_gradient(fixed_model, fixed.replace(qfrc_smooth=data.qfrc_smooth), at_solution)
    qacc = _with_derivative(qacc, -step.Mgrad)
    moved = mjx_solver.Context.create(model, data.replace(qacc=qacc), grad=False)
    force = checkpoint_name(solved.qfrc_constraint, SOLUTION)
    return data.tree_replace(
        {
            "qacc": qacc,
            # Euler's implicit damping and implicitfast read the force, not the acceleration.
            "qfrc_constraint": _with_derivative(force, moved.qfrc_constraint),
            "_impl.efc_force": _with_derivative(solved._impl.efc_force, moved.efc_force),
        }
    )


def _integrate(model: mjx.Model, qpos: jax.Array, after: mjx.Data, qvel: jax.Array) -> mjx.Data:
    """Gives positions that MJX has integrated from `qpos` with `qvel` the right derivatives of quaternions."""
    layout = StateLayout.from_model(model)
    if not layout.quaternions:
        return after
    moved = integrate_positions(layout, qpos, qvel, model.opt.timestep)
    return after.replace(qpos=_with_derivative(after.qpos, moved))


def _runge_kutta(model: mjx.Model, data: mjx.Data, forward: Callable[[mjx.Data], mjx.Data]) -> mjx.Data:
    """The classical fourth-order method, as `mjx.rungekutta4`: its stages would call MJX's own solver."""
    layout, dt = StateLayout.from_model(model), model.opt.timestep
    start = data = forward(data)
    weights, fractions = (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.5, 0.5, 1.0)
    rates = [(data.qvel, data.qacc, data.act_dot)]
    for fraction in fractions:
        qvel, qacc, act_dot = (fraction * rate for rate in rates[-1])
        data = data.replace(
            qpos=integrate_positions(layout, start.qpos, qvel, dt),
            qvel=start.qvel + qacc * dt,
            act=start.act + act_dot * dt,
        )
        qvel = data.qvel
        data = forward(data)
        rates.append((qvel, data.qacc, data.act_dot))
    qvel, qacc, act_dot = (
        sum(w * rate for w, rate in zip(weights, kind, strict=True)) for kind in zip(*rates, strict=True)
    )
    # Explicit Euler's update of everything but positions: those move with the stages' mean velocity.
    undamped = model.tree_replace({"opt.disableflags": model.opt.disableflags | mujoco.mjtDisableBit.mjDSBL_EULERDAMP})
    data = data.replace(qpos=start.qpos, qvel=start.qvel, act=start.act, time=start.time, act_dot=act_dot)
    after = mjx.euler(undamped, data.replace(qacc=qacc))
    return after.replace(qpos=integrate_positions(layout, start.qpos, qvel, dt), qacc_warmstart=data.qacc)


@jax.custom_jvp
def _with_derivative(value: jax.Array, source: jax.Array) -> jax.Array:
    """`value`, to the last bit, with the derivative of `source`."""
    return value


@_with_derivative.defjvp
def _with_derivative_jvp(primals: Any, tangents: Any) -> Any:
    return _with_derivative(*primals), tangents[1]


def _stop_gradient(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf, tree)
