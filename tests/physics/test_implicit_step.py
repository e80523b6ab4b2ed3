"""Gradients of a physics step beside MJX's forward mode and central differences, in float64.

Whoever moves or changes what MJX keeps private breaks these first.
"""

import functools
import types

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from galvanax import ConfigError
from galvanax.physics import implicit_step
from galvanax.physics.implicit_step import num_constraints
from galvanax.physics.quiet_mjx import mjx
from galvanax.physics.solver_step import solver_step

# A leg in the plane: it stands on its knee's limit and slides. Pyramidal cone, friction loss, joint damping.
LEG = """
<mujoco>
  <compiler autolimits="true" angle="radian"/>
  <option timestep="0.005" {option}><flag {flag}/></option>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 .1"/>
    <body pos="0 0 .5">
      <joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>
      <geom size=".1" mass="2" contype="0" conaffinity="0"/>
      <body>
        <joint name="knee" axis="0 1 0" range="-.5 .5" damping="2" frictionloss=".3" armature=".1"/>
        <geom name="foot" pos="0 0 -.4" size=".1" mass="1" friction=".6"/>
      </body>
    </body>
  </worldbody>
  <actuator><position joint="knee" kp="20" kv="3"/></actuator>
</mujoco>
"""
LEG_STATE = [0.1, -0.0535, 0.502], [0.4, -0.2, 0.3], [0.7]
# A ball, off its centre of mass, on a bigger one, not spinning: a quaternion at zero angular velocity.
BALL = """
<mujoco>
  <option timestep="0.005" cone="elliptic" integrator="implicitfast"/>
  <worldbody>
    <geom size=".9" pos="0 0 -.9"/>
    <body>
      <freejoint/><inertial pos=".02 .01 0" mass="1" diaginertia=".01 .02 .03"/>
      <geom size=".1" friction=".7" condim="4"/>
    </body>
  </worldbody>
</mujoco>
"""
BALL_STATE = [0.01, 0.0, 0.095, 0.8, 0.2, -0.4, 0.4], [0.3, -0.1, -0.5, 0.0, 0.0, 0.0], []
# A bead that lands, pushed through a filter: the method of Runge and Kutta, and an activation.
BEAD = """
<mujoco>
  <option timestep="0.01" integrator="RK4"/>
  <worldbody>
    <geom type="plane" size="1 1 .1"/>
    <body>
      <joint type="slide" axis="1 0 0"/><joint name="z" type="slide" axis="0 0 1" damping="1"/>
      <geom size=".1" friction=".5" mass="1"/>
    </body>
  </worldbody>
  <actuator><general joint="z" dyntype="filter" dynprm=".1" gainprm="5"/></actuator>
</mujoco>
"""
BEAD_STATE = [0.0, 0.0984], [0.5, -0.3], [0.8]
# Its solver needs more than one iteration.
UNFINISHED = [0.0776, -0.0582, 0.5084], [0.37, -0.08, 1.64], [-2.6]
COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def leg(iterations=30, option="", flag=""):
    return model_of(LEG.format(option=option, flag=flag), iterations)


def model_of(xml, iterations=30):
    model = mujoco.MjModel.from_xml_string(xml)
    model.opt.iterations, model.opt.ls_iterations, model.opt.tolerance = iterations, 50, 0
    return mjx.put_model(model)


def simulate(model, step=implicit_step, steps=1, force=0.0):
    """A function of all that a step depends on, as one array: qpos, qvel, ctrl, and a factor of the masses.

    It returns qpos and qvel, and the constraints' forces.
    """

    def run(inputs):
        qpos, qvel, ctrl, factor = jnp.split(inputs, np.cumsum([model.nq, model.nv, model.nu]))
        heavier = model.replace(body_mass=model.body_mass * factor, body_inertia=model.body_inertia * factor)
        data = mjx.make_data(model).replace(qpos=qpos, qvel=qvel, ctrl=ctrl, qfrc_applied=jnp.zeros(model.nv) + force)
        data, _ = jax.lax.scan(lambda data, _: (step(heavier, data), None), data, length=steps)
        return jnp.concatenate([data.qpos, data.qvel, data.act]), data._impl.efc_force

    return run


def inputs_of(state):
    return jnp.concatenate([*(jnp.asarray(part, float) for part in state), jnp.ones(1)])


def reverse(run):
    """Makes a function that returns the Jacobians by reverse mode, and the values."""

    def jacobians(inputs):
        values = run(inputs)
        return jax.jacrev(run)(inputs), values

    return jax.jit(jacobians, compiler_options=COMPILE)


def forward(run):
    """Makes a function that returns the Jacobians by forward mode."""
    return jax.jit(jax.jacfwd(run), compiler_options=COMPILE)


def differences(run, nudge=1e-6):
    """Makes a function that returns the Jacobians by central differences, and the values."""
    many = jax.jit(jax.vmap(run), compiler_options=COMPILE)

    def jacobians(inputs):
        nudges = nudge * jnp.concatenate([jnp.eye(inputs.size), -jnp.eye(inputs.size), jnp.zeros((1, inputs.size))])
        values = many(inputs + nudges)
        slopes = [(part[: inputs.size] - part[inputs.size : -1]).T / (2 * nudge) for part in values]
        return tuple(slopes), tuple(part[-1] for part in values)

    return jacobians


def assert_close(found, expected, tolerance):
    """Relative to the largest entry of states and of forces."""
    for part, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(part, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.fixture(scope="module")
def leg_jacobians():
    """Of two steps at 30 iterations."""
    return reverse(simulate(leg(), steps=2))


@pytest.fixture(scope="module")
def leg_by_forward_mode():
    return forward(simulate(leg(), mjx.step, steps=2))(inputs_of(LEG_STATE))


def test_gradients_are_forward_modes_and_central_differences(leg_jacobians, leg_by_forward_mode):
    found, values = leg_jacobians(inputs_of(LEG_STATE))
    expected, plain = differences(simulate(leg(), mjx.step, steps=2))(inputs_of(LEG_STATE))
    assert_close(values, plain, 1e-14)
    assert (values[1] != 0).sum() >= 4  # contact, limit, friction loss
    assert_close(found, leg_by_forward_mode, 1e-10)
    assert_close(found, expected, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("iterations", "option"), [(4, ""), (200, 'solver="CG" jacobian="sparse"')])
def test_any_way_to_the_solution_has_its_gradient(leg_by_forward_mode, iterations, option):
    found, _ = reverse(simulate(leg(iterations, option), steps=2))(inputs_of(LEG_STATE))
    assert_close(found, leg_by_forward_mode, 1e-8)


@pytest.mark.parametrize(
    ("xml", "state"),
    [
        pytest.param(BALL, BALL_STATE, id="implicitfast", marks=pytest.mark.slow),
        pytest.param(BEAD, BEAD_STATE, id="RK4", marks=pytest.mark.slow),  # four contact solves a step to compile
    ],
)
def test_other_cones_and_integrators(xml, state):
    model = model_of(xml)
    jacobians = reverse(simulate(model))
    found, values = jacobians(inputs_of(state))
    expected, plain = differences(simulate(model, mjx.step))(inputs_of(state))
    assert_close(values, plain, 1e-14)
    assert (values[1] != 0).sum() >= 3
    assert_close(found, expected, 1e-6)
    # Exactly touching, at rest.
    touching = [0.0, 0.0, 0.1, 1.0, 0.0, 0.0, 0.0] if model.nq == 7 else [0.0, 0.1]
    assert all_finite(jacobians(inputs_of((touching, np.zeros(model.nv), np.zeros(model.nu)))))


@pytest.mark.slow
def test_an_unfinished_solution_keeps_its_residual():
    """After one iteration forces don't balance; the gradient is that of the step with what is missing as a force."""
    model, exact = (leg(iterations, flag='eulerdamp="disable"') for iterations in (1, 30))
    inputs = inputs_of(UNFINISHED)

    @functools.partial(jax.jit, compiler_options=COMPILE)
    def residual():
        qpos, qvel, ctrl = (jnp.asarray(part) for part in UNFINISHED)
        data = mjx.forward(model, mjx.make_data(model).replace(qpos=qpos, qvel=qvel, ctrl=ctrl))
        return mjx.mul_m(model, data, data.qacc) - data.qfrc_smooth - data.qfrc_constraint

    missing = residual()
    assert np.abs(missing).max() > 1
    found, values = reverse(simulate(model))(inputs)
    expected, balanced = differences(simulate(exact, mjx.step, force=missing))(inputs)
    assert_close(values, balanced, 1e-12)
    assert_close(found, expected, 1e-6)


@pytest.mark.parametrize(
    ("qpos", "qvel"),
    [
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),  # qpos0: the foot exactly touches, at rest
        ([0.0, 0.0, 0.5], [0.0, 0.0, 0.0]),  # exactly at a limit, in the air
        ([0.0, -0.01, -0.5], [0.0, 0.0, 0.0]),
        ([0.0, -0.01, 0.0], [0.0, 0.0, 0.0]),  # in contact without sliding
    ],
)
def test_gradients_at_special_states_are_finite(leg_jacobians, qpos, qvel):
    assert all_finite(leg_jacobians(inputs_of((qpos, qvel, [0.0]))))


def all_finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_the_solvers_own_gradient():
    one, many, free = leg(1), leg(4), leg(4, flag='constraint="disable"')
    assert num_constraints(many) > 0
    assert num_constraints(free) == 0
    inputs = inputs_of(LEG_STATE)

    def trace(model, transform, *args):
        run = simulate(model, solver_step)
        jax.make_jaxpr(transform(lambda inputs: run(inputs)[0].sum()))(*args)

    for model in (one, free):
        trace(model, jax.grad, inputs)
    trace(many, lambda run: lambda x, v: jax.jvp(run, (x,), (v,)), inputs, inputs)
    trace(many, jax.vmap, inputs[None])
    for transform in (jax.grad, lambda run: jax.grad(lambda x: jax.vmap(run)(x[None]).sum())):
        with pytest.raises(ConfigError, match=r"gradient='solver' with iterations=4.*iterations=1"):
            trace(many, transform, inputs)


def test_errors():
    model = leg()
    data = mjx.make_data(model)
    discrete = model.tree_replace({"opt.integrator": mujoco.mjtIntegrator.mjINT_IMPLICIT})
    with pytest.raises(ConfigError, match=r"option integrator is mjINT_IMPLICIT; expected Euler, RK4, implicitfast"):
        implicit_step(discrete, data)
    with pytest.raises(ConfigError, match=r"impl is 'warp'; expected 'jax'"):
        implicit_step(types.SimpleNamespace(impl=mjx.Impl.WARP), data)
