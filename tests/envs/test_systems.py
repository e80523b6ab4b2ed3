import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from envs.robots_under_test import N, batched, random_states, robot

import galvanax as gx
from galvanax import ConfigError
from galvanax.envs import Drive, load, load_system, system_of, systems
from galvanax.physics import MJXSystem, PendulumSystem, action_limits_of, rollout


@pytest.mark.slow
def test_go2s_step_is_the_environments():
    """Within the joints' ranges, from the same states, on the ground."""
    this, system, rng = robot("go2"), load_system("go2"), np.random.default_rng(4)
    qpos, qvel = random_states(this, seed=5)
    actions = rng.uniform(-1, 1, (N, 12))
    low, high = action_limits_of(system)
    assert ((low < -1) & (high > 1)).all()
    expected = this.step(this.place(qpos, qvel), actions).pipeline_state
    assert (expected._impl.efc_force != 0).any(axis=1).mean() > 0.5
    states = jnp.asarray(np.concatenate([qpos, qvel], axis=1), jnp.float32)
    found = batched(system.step)(states, jnp.asarray(actions, jnp.float32))
    np.testing.assert_allclose(found[:, :19], expected.qpos, atol=2e-6)
    np.testing.assert_allclose(found[:, 19:], expected.qvel, atol=2e-4)


def test_cart_poles_step_is_the_environments():
    env, system = load("cart-pole-swing-up"), load_system("cart-pole")
    state = env.reset(jax.random.key(0))
    # At the end of its rail too.
    for qpos in ([0.1, 3.0], [2.01, 0.5]):
        data = state.pipeline_state.replace(qpos=jnp.array(qpos), qvel=jnp.array([1.0, -2.0]))
        for action in ([0.3], [-5.0]):
            after = jax.jit(env.step)(state.replace(pipeline_state=data), jnp.array(action)).pipeline_state
            found = jax.jit(system.step)(jnp.concatenate([data.qpos, data.qvel]), jnp.array(action))
            np.testing.assert_allclose(found, [*after.qpos, *after.qvel], rtol=1e-5, atol=1e-6)


def test_systems_by_name(tmp_path):
    assert load_system("pendulum") == PendulumSystem()
    assert load_system("pendulum", control_dt=0.1).control_dt == 0.1
    sizes = {"double-cart-pole": (6, 1), "hopper": (12, 3), "g1": (37, 12), "h1": (37, 10), "h1_2": (39, 12)}
    for name, size in sizes.items():
        system = load_system(name)
        assert isinstance(system, MJXSystem)
        assert system.action_dim == size[1]
        assert system.state_dim == system.mj_model.nq + system.mj_model.nv
    assert load_system("hopper", control_dt=0.02, iterations=7).substeps == 4
    path = tmp_path / "ball.xml"
    path.write_text(
        "<mujoco><option timestep='0.004'/><worldbody><body><freejoint/><geom size='.1'/></body></worldbody></mujoco>"
    )
    ball = load_system(str(path))
    assert (ball.state_dim, ball.action_dim, ball.control_dt) == (13, 0, 0.004)
    fall = rollout(load_system(str(path), control_dt=0.02), jnp.eye(13)[3], jnp.zeros((2, 0)))
    np.testing.assert_allclose(fall[-1, 9], -9.81 * 0.04, rtol=1e-5)


def test_a_system_of_any_settings():
    env = load("go2", {"action_scale": 0.5, "control_dt": 0.04, "kp": {"joint": 40.0}})
    system = system_of(env)
    assert (system.substeps, system.targets.action_scale, system.targets.kp[0]) == (8, 0.5, 40.0)


def test_a_robot_of_a_file(tmp_path, capsys):
    """A Go2's own file, under a payload: the model is the file's, pose and gains are the Go2's."""
    text = Path(systems.__file__).with_name("robots").joinpath("go2.xml").read_text()
    path = tmp_path / "my_go2.xml"
    payload = '<body name="payload"><geom type="sphere" size=".1" mass="3" contype="0" conaffinity="0"/></body>'
    path.write_text(re.sub(r'(<body name="base"[^>]*>)', rf"\1{payload}", text, count=1))
    system, ours = load_system(str(path)), load_system("go2")
    assert f"{path}: driven as a Go2 with its gains, by joint targets" in capsys.readouterr().out
    assert system.targets == ours.targets
    assert system.control_dt == ours.control_dt
    assert system.mj_model.body_mass.sum() == pytest.approx(ours.mj_model.body_mass.sum() + 3)
    stiffer = load_system(str(path), 0.02, drive=Drive(kp={"joint": 40.0}, action_scale=0.5))
    assert stiffer.targets == dataclasses.replace(ours.targets, kp=(40.0,) * 12, action_scale=0.5)
    assert load_system(str(path), 0.02, drive=Drive("actuators")).targets is None
    task = gx.DynaFlowTask(system=str(path), drive=Drive(kd={"joint": 1.0}), dt=0.02)
    assert set(task.build_system().targets.kd) == {1.0}
    # The humanoids share joints' names: which one it is, is a matter of weight.
    for name, expected in (("g1", "G1"), ("h1_2", "H1_2")):
        load_system(str(Path(systems.__file__).with_name("robots") / f"{name}.xml"))
        assert f"driven as a {expected} " in capsys.readouterr().out


ARM = """
<mujoco><option timestep="0.005" integrator="Euler"/><worldbody><body><joint name="elbow" axis="0 1 0"/>
<geom type="capsule" fromto="0 0 0 0 0 -.5" size=".02" mass="1"/></body></worldbody>
<actuator><motor joint="elbow" ctrlrange="-3 3"/></actuator><keyframe><key name="home" qpos="0.4"/></keyframe></mujoco>
"""


def test_joint_targets_of_any_file(tmp_path, capsys):
    """A step is C MuJoCo's under PD torques that are written out here."""
    path = tmp_path / "arm.xml"
    path.write_text(ARM)
    system = load_system(str(path), 0.02, drive=Drive("joint-targets", kp={"elbow": 30.0}, kd={"elbow": 0.5}))
    assert "joint targets around its keyframe 'home'" in capsys.readouterr().out
    model = mujoco.MjModel.from_xml_string(ARM)
    data = mujoco.MjData(model)
    data.qpos, data.qvel, action = 0.1, 0.7, 0.8
    for _ in range(4):
        data.ctrl = np.clip(30.0 * (0.4 + 0.25 * action - data.qpos) - 0.5 * data.qvel, -3, 3)
        mujoco.mj_step(model, data)
    found = jax.jit(system.step)(jnp.array([0.1, 0.7]), jnp.array([action]))
    np.testing.assert_allclose(found, [*data.qpos, *data.qvel], rtol=1e-4)
    with pytest.raises(ConfigError, match=r"arm.xml is no robot whose gains we know; expected kp and kd"):
        load_system(str(path), 0.02, drive=Drive("joint-targets"))
    with pytest.raises(ConfigError, match=r"gains and a scale are of joint targets"):
        load_system(str(path), 0.02, drive=Drive(kp={"elbow": 30.0}))
    with pytest.raises(ConfigError, match=r"drive=.*is of a file's model; system='go2'"):
        load_system("go2", drive=Drive("actuators"))
    with pytest.raises(ConfigError, match="joint-targets"):
        Drive("joint-target")


def test_errors():
    with pytest.raises(ConfigError, match=r"Unknown system 'go'.*Nearest: go2"):
        load_system("go")
    with pytest.raises(ConfigError, match=r"system_of got object; expected a LeggedEnvironment"):
        system_of(object())
