import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from galvanax import ConfigError, DataError
from galvanax.physics import (
    JointTargets,
    MJXSystem,
    PendulumSystem,
    StateLayout,
    action_limits_of,
    layout_of,
    model_of,
    mujoco_rollout,
    state_difference,
)

# A free base with two joints whose motors come in the other order, one of them with a gear, and a third joint.
ARM = """
<mujoco>
  <compiler autolimits="true" angle="radian"/>
  <option timestep="0.005"><flag contact="disable" eulerdamp="disable"/></option>
  <worldbody>
    <body>
      <freejoint/><geom type="box" size=".2 .1 .1"/>
      <body pos=".2 0 0">
        <joint name="shoulder" axis="0 1 0" range="-1 2" armature=".1"/>
        <geom type="capsule" fromto="0 0 0 .3 0 0" size=".03"/>
        <body pos=".3 0 0">
          <joint name="elbow" axis="0 0 1" armature=".1"/>
          <geom type="capsule" fromto="0 0 0 .3 0 0" size=".03"/>
          <body pos=".3 0 0"><joint name="wrist" axis="0 1 0" ref=".4" armature=".1"/><geom size=".05"/></body>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <{kind} name="c" joint="wrist" {wrist}/>
    <{kind} name="a" joint="elbow" gear="3" {elbow}/>
    <{kind} name="b" joint="shoulder" {shoulder}/>
  </actuator>
</mujoco>
"""
MOTORS = ARM.format(kind="motor", wrist='ctrlrange="-2 2"', elbow='ctrlrange="-9 9"', shoulder='ctrlrange="-5 5"')
SERVOS = ARM.format(kind="position", wrist='kp="20"', elbow='kp="5" kv=".2"', shoulder='kp="30"')
TARGETS = JointTargets(
    joints=("shoulder", "elbow"),
    default=(0.5, -0.3),
    action_scale=0.5,
    kp=(30.0, 45.0),
    kd=(1.0, 2.0),
    torque_limits=(4.0, 6.0),
)
COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.fixture(scope="module")
def arm():
    return MJXSystem(mujoco.MjModel.from_xml_string(MOTORS), 0.02, targets=TARGETS)


def random_state(seed=0):
    rng = np.random.default_rng(seed)
    quaternion = rng.normal(size=4)
    return np.concatenate([rng.normal(size=3), 3 * quaternion, rng.uniform(-0.5, 0.5, 3), rng.normal(size=9)])


def simulate(model, state, controls, substeps=4):
    """C MuJoCo, `controls(data)` anew in each timestep; the quaternion put to length one first."""
    data = mujoco.MjData(model)
    data.qpos, data.qvel = state[: model.nq], state[model.nq :]
    mujoco.mj_normalizeQuat(model, data.qpos)
    for _ in range(substeps):
        controls(data)
        mujoco.mj_step(model, data)
    return np.concatenate([data.qpos, data.qvel])


@pytest.mark.behaviour("reports 23")
def test_motors_get_torques_by_name(arm):
    model = arm.mj_model
    assert (arm.state_dim, arm.action_dim, arm.substeps) == (19, 2, 4)
    step = jax.jit(arm.step, compiler_options=COMPILE)
    for seed, action in ((0, [0.2, 0.4]), (1, [1.0, -6.0]), (2, [50.0, 0.0])):

        def torques(data, action=action):
            target = np.array([0.5, -0.3]) + 0.5 * np.array(action)
            target[0] = np.clip(target[0], -1, 2)  # the elbow has no range
            pull = []
            for name, goal, kp, kd, limit in (
                ("shoulder", target[0], 30, 1, 4),
                ("elbow", target[1], 45, 2, 6),
                ("wrist", 0.4, 45, 2, 2),  # the largest gains, at qpos0
            ):
                torque = kp * (goal - data.joint(name).qpos[0]) - kd * data.joint(name).qvel[0]
                pull.append(np.clip(torque, -limit, limit))
            data.actuator("b").ctrl, data.actuator("a").ctrl, data.actuator("c").ctrl = pull[0], pull[1] / 3, pull[2]

        state = random_state(seed)
        expected = simulate(model, state, torques)
        np.testing.assert_allclose(step(jnp.asarray(state), jnp.asarray(action)), expected, atol=2e-4)


@pytest.mark.behaviour("reports 23")
def test_servos_get_targets_by_name():
    model = mujoco.MjModel.from_xml_string(SERVOS)
    system = MJXSystem(model, 0.02, targets=JointTargets(("shoulder", "elbow"), (0.5, -0.3), 0.5))

    def targets(data):
        data.actuator("b").ctrl, data.actuator("a").ctrl, data.actuator("c").ctrl = 2.0, 3 * -0.1, 0.4

    state = random_state(3)
    found = jax.jit(system.step, compiler_options=COMPILE)(jnp.asarray(state), jnp.array([9.0, 0.4]))
    np.testing.assert_allclose(found, simulate(model, state, targets), atol=2e-4)


def test_limits_of_joint_targets(arm):
    low, high = action_limits_of(arm)
    np.testing.assert_allclose(low, [-3, -np.inf], rtol=1e-6)
    np.testing.assert_allclose(high, [3, np.inf], rtol=1e-6)
    free = MJXSystem(arm.mj_model, 0.02, targets=dataclasses.replace(TARGETS, clip=False))
    assert np.isinf(free.action_limits).all()


@pytest.mark.behaviour("reports 23")
def test_actions_span_control_ranges():
    """With an activation in the state, and a control that has no range."""
    xml = """
    <mujoco>
      <option timestep="0.01"/>
      <worldbody><body>
        <joint name="x" type="slide" axis="1 0 0"/><joint name="y" type="slide" axis="0 1 0"/><geom size=".1"/>
      </body></worldbody>
      <actuator>
        <general joint="x" dyntype="filter" dynprm="0.2" gainprm="50" ctrllimited="true" ctrlrange="1 5"/>
        <motor joint="y"/>
      </actuator>
    </mujoco>
    """
    model = mujoco.MjModel.from_xml_string(xml)
    system = MJXSystem(model, 0.02)
    assert (system.state_dim, system.action_dim) == (5, 2)
    np.testing.assert_array_equal(action_limits_of(system), [[-1, -np.inf], [1, np.inf]])
    state = jnp.zeros(5)
    for action, control in (([0.5, 7.0], [4, 7]), ([-3.0, -7.0], [1, -7])):
        expected = mujoco_rollout(model, np.zeros((1, 4)), np.array([[control]]), 0.02)[0, -1]
        data = mujoco.MjData(model)
        data.ctrl = control
        mujoco.mj_step(model, data, 2)
        found = system.step(state, jnp.array(action))
        np.testing.assert_allclose(found, [*expected, *data.act], atol=1e-5)


def test_a_step_is_a_function_of_state_and_action(arm):
    """Of the rotation, not of the quaternion that says it."""
    state, action = jnp.asarray(random_state()), jnp.zeros(2)
    step = jax.jit(arm.step, compiler_options=COMPILE)
    after = step(state, action)
    np.testing.assert_array_equal(step(state, action), after)
    for factor in (-1, 0.5):
        other = step(state.at[3:7].multiply(factor), action)
        np.testing.assert_allclose(state_difference(arm, other, after), 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(after[3:7]), 1, rtol=1e-6)


def test_differences(arm):
    a, b = jnp.asarray(random_state(0)), jnp.asarray(random_state(1))
    difference = state_difference(arm, a, b)
    unit = [state.at[3:7].divide(jnp.linalg.norm(state[3:7])) for state in (a, b)]
    expected = np.zeros(9)
    mujoco.mj_differentiatePos(arm.mj_model, expected, 1.0, *(np.asarray(s[:10], float) for s in reversed(unit)))
    np.testing.assert_allclose(difference[:9], expected, atol=1e-5)
    np.testing.assert_allclose(difference[9:], a[10:] - b[10:], atol=1e-6)
    for factor in (-1, 0.1):
        same = state_difference(arm, a.at[3:7].multiply(factor), b)
        np.testing.assert_allclose(same, difference, atol=1e-5)
    pendulum = PendulumSystem()
    np.testing.assert_allclose(state_difference(pendulum, jnp.array([7.0, 1.0]), jnp.zeros(2)), [7, 1])


def test_gradients_of_differences_where_states_are_equal(arm):
    """The derivative of where a small turn leads is the turn."""
    state = jnp.asarray(random_state())
    jacobian = jax.jacobian(lambda a: state_difference(arm, a, state))(state)
    assert np.isfinite(jacobian).all()
    numbers = StateLayout.from_model(arm.mj_model)
    assert layout_of(arm) == numbers
    for entry in range(9):
        velocity, qpos = np.zeros(9), np.asarray(state[:10], float)
        velocity[entry] = 1
        mujoco.mj_normalizeQuat(arm.mj_model, qpos)
        moved = qpos.copy()
        mujoco.mj_integratePos(arm.mj_model, moved, velocity, 1e-6)
        tangent = np.concatenate([(moved - qpos) / 1e-6, np.zeros(9)])
        tangent[3:7] *= np.linalg.norm(state[3:7])
        np.testing.assert_allclose((jacobian @ tangent)[:9], velocity, atol=1e-4)
    zero = jnp.zeros_like(state)
    assert np.isfinite(jax.jacobian(lambda a: state_difference(arm, a, zero))(zero)).all()


def test_a_system_without_extras():
    class Drift:
        state_dim, action_dim, control_dt = 2, 2, 0.1

        def step(self, state, action):
            return state + action

    system = Drift()
    assert layout_of(system) is None
    assert model_of(system) is None
    np.testing.assert_array_equal(action_limits_of(system), [[-np.inf] * 2, [np.inf] * 2])
    np.testing.assert_array_equal(state_difference(system, jnp.ones(2), jnp.zeros(2)), [1, 1])


def test_pendulum():
    """Energy without friction and torque, its period of small swings, and its torque."""
    free = PendulumSystem(control_dt=0.05, damping=0.0)
    state = jnp.array([2.0, 0.5])
    energy = lambda s: 0.5 * s[1] ** 2 - 9.81 * jnp.cos(s[0])  # noqa: E731
    start = energy(state)
    step = jax.jit(free.step)
    for _ in range(200):
        state = step(state, jnp.zeros(1))
    np.testing.assert_allclose(energy(state), start, atol=2e-2)
    period = 2 * np.pi / np.sqrt(9.81)
    small = PendulumSystem(control_dt=period / 40, damping=0.0)
    state = jnp.array([0.01, 0.0])
    for _ in range(40):
        state = small.step(state, jnp.zeros(1))
    np.testing.assert_allclose(state, [0.01, 0], atol=1e-5)
    pushed = PendulumSystem(control_dt=1e-3, mass=2.0, length=0.5, max_torque=3.0)
    for action, torque in ((0.5, 1.5), (7.0, 3.0), (-7.0, -3.0)):
        np.testing.assert_allclose(pushed.step(jnp.zeros(2), jnp.array([action]))[1], torque / 0.5 * 1e-3, rtol=1e-3)


@pytest.mark.behaviour("reports 23")
def test_errors(arm):
    model = arm.mj_model
    cases = [
        (lambda: MJXSystem(model, 0.013), r"control_dt=0.013 s is no multiple"),
        (lambda: MJXSystem(model, 0.02, gradient="exact"), r"gradient='exact'; expected one of implicit, solver"),
        (lambda: MJXSystem(model, 0.02, iterations=0), r"iterations=0; expected 1 or more"),
        (lambda: MJXSystem(model, 0.02, targets=JointTargets(("elbo",), (0.0,))), r"no joint 'elbo'. Nearest: elbow"),
        (
            lambda: MJXSystem(model, 0.02, targets=JointTargets(("elbow",), (0.0,))),
            r"kp is empty; the joint 'elbow' has a torque",
        ),
        (lambda: JointTargets(("elbow",), ()), r"JointTargets.default has 0 entries; expected 1"),
        (lambda: JointTargets(("elbow",), (0.0,), kp=(1.0, 2.0)), r"JointTargets.kp has 2 entries; expected 1"),
        (lambda: JointTargets(("a", "a"), (0.0, 0.0)), r"expected one or more different names"),
        (lambda: JointTargets(("a",), (0.0,), action_scale=0.0), r"action_scale=0.0; expected more than 0"),
        (lambda: PendulumSystem(mass=0.0), r"PendulumSystem.mass=0.0; expected more than 0"),
    ]
    for make, message in cases:
        with pytest.raises(ConfigError, match=message):
            make()
    with pytest.raises(DataError, match=r"the state has shape \(3,\); expected \(19,\)"):
        arm.step(jnp.zeros(3), jnp.zeros(2))
    with pytest.raises(DataError, match=r"the action has shape \(4, 2\); expected \(2,\). For a batch: vmap"):
        arm.step(jnp.zeros(19), jnp.zeros((4, 2)))


@pytest.mark.parametrize(
    "actuators",
    [
        '<motor joint="x"/><motor name="twice" joint="x"/>',
        '<velocity name="speed" joint="x" kv="1"/>',
        '<general name="slow" joint="x" dyntype="filter" dynprm="1"/>',
        '<motor joint="x"/><motor name="turn" joint="ball" gear="1 0 0"/>',
    ],
)
def test_joint_targets_need_motors_or_servos(actuators):
    xml = f"""
    <mujoco><worldbody>
      <body><joint name="x" axis="0 1 0"/><geom size=".1"/></body>
      <body><joint name="ball" type="ball"/><geom size=".1"/></body>
    </worldbody><actuator>{actuators}</actuator></mujoco>
    """
    with pytest.raises(ConfigError, match=r"actuator '(twice|speed|slow|turn)' is not the only <motor> or <position>"):
        MJXSystem(mujoco.MjModel.from_xml_string(xml), 0.002, targets=JointTargets(("x",), (0.0,)))


def test_the_solvers_own_gradient():
    """Through more than one iteration it is refused, wherever the derivative is taken."""
    for iterations, refused in ((1, False), (2, True)):
        system = MJXSystem("cart-pole", 0.02, gradient="solver", iterations=iterations)
        trace = jax.make_jaxpr(jax.grad(lambda action, s=system: s.step(jnp.zeros(4), action).sum()))
        if refused:
            with pytest.raises(ConfigError, match=r"gradient='solver' with iterations=2"):
                trace(jnp.zeros(1))
        else:
            trace(jnp.zeros(1))


def test_iterations_leave_the_callers_model_alone(arm):
    before = arm.mj_model.opt.iterations
    assert MJXSystem(arm.mj_model, 0.02, iterations=before + 3).model.opt.iterations == before + 3
    assert arm.mj_model.opt.iterations == before
