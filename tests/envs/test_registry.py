"""Environments by name, their overrides, and what is said where a name, a file or a setting is wrong."""

import dataclasses
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from envs.robots_under_test import N, batched, random_states, robot

import galvanax as gx
from galvanax.envs import registry
from galvanax.envs.classic.pendulum import Pendulum
from galvanax.errors import ConfigError, DataError
from galvanax.physics.models import bundled_models


def test_names():
    assert gx.envs.list() == sorted(gx.envs.list())
    assert {"pendulum", "cart-pole-balance", "cart-pole-swing-up", "double-cart-pole", "hopper"} <= set(gx.envs.list())
    assert {"go2", "g1", "h1", "h1_2"} <= set(gx.envs.list())


@pytest.mark.behaviour("peers 132")
def test_every_environment_loads():
    for name in gx.envs.list():
        env = gx.envs.load(name)
        assert isinstance(env, gx.envs.Environment)
        assert env.action_size > 0
        assert env.unwrapped is env
        assert env.backend == "mjx"
        assert env.n_substeps * env.sim_dt == pytest.approx(env.dt)


@pytest.mark.behaviour("peers 131")
def test_register():
    gx.envs.register("slow-pendulum", lambda: Pendulum(control_dt=0.08))
    try:
        assert "slow-pendulum" in gx.envs.list()
        assert gx.envs.load("slow-pendulum", {"start": "hanging"}) == Pendulum(control_dt=0.08, start="hanging")
        with pytest.raises(ConfigError, match="'slow-pendulum' is taken"):
            gx.envs.register("slow-pendulum", Pendulum)
    finally:
        del registry._BUILDERS["slow-pendulum"]
    with pytest.raises(ConfigError, match=r"'my:pendulum'.*colon"):
        gx.envs.register("my:pendulum", Pendulum)


def test_a_users_object_needs_no_dataclass():
    class Mine:
        pass

    gx.envs.register("mine", Mine)
    try:
        assert isinstance(gx.envs.load("mine"), Mine)
        with pytest.raises(ConfigError, match="Mine has no setting 'speed'"):
            gx.envs.load("mine", {"speed": 3})
    finally:
        del registry._BUILDERS["mine"]


@pytest.mark.behaviour("peers 131")
def test_overrides():
    """Fields, fields of fields, entries of dicts; the rest stays."""
    plain = gx.envs.load("g1")
    env = gx.envs.load(
        "g1", {"action_scale": 0.5, "rewards.alive": 0.2, "kp.knee": 120.0, "terrain.kind": "rough", "noise.level": 0}
    )
    assert (env.action_scale, env.rewards.alive, env.terrain.kind, env.noise.level) == (0.5, 0.2, "rough", 0)
    assert env.kp == {**plain.kp, "knee": 120.0}
    assert env.gains[0][3] == 120
    assert dataclasses.replace(env.rewards, alive=0.15) == plain.rewards
    assert plain.kp["knee"] == 150  # untouched
    assert gx.envs.load("g1") == plain


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("g2", {}, r"'g2'\. Nearest: .*g1"),
        ("pendulm", {}, r"'pendulm'\. Nearest: pendulum"),
        ("gym:hopper", {}, r"Unknown prefix 'gym' in 'gym:hopper'.*brax, playground"),
        ("brax:fats", {}, r"brax has no environment 'fats'\. Nearest: fast"),
        ("g1", {"action_scal": 1}, r"G1 has no setting 'action_scal'\. Nearest: action_scale"),
        ("g1", {"rewards.alife": 1}, r"RewardScales has no setting 'rewards\.alife'\. Nearest: alive"),
        ("g1", {"kp.kneee": 1.0}, r"no setting 'kp\.kneee'\. Nearest: knee"),
        ("g1", {"height_scan.x": (0, 1, 2)}, r"no setting 'height_scan\.x'"),
        ("go2", {"control_dt": 0.013}, r"Go2\.control_dt=0\.013 s.*go2, 0\.005 s\. Nearest: 0\.015 s"),
        ("go2", {"control_dt": 0.001}, r"control_dt=0\.001.*Nearest: 0\.005 s"),
        ("pendulum", {"control_dt": 0.03}, r"Pendulum\.control_dt=0\.03.*Nearest: 0\.04 s|0\.02 s"),
        ("g1", {"gait.offset": (0.0, 0.5, 0.2)}, r"G1\.gait\.offset has 3 entries; expected 2"),
        ("go2", {"randomization.action_delay": (0.0, 0.1)}, r"action_delay=\(0\.0, 0\.1\).*0\.02 s"),
        ("g1", {"commands.lin_vel_x": (1.0, -1.0)}, r"Commands\.lin_vel_x=\(1\.0, -1\.0\)"),
        ("g1", {"commands.resampling_time": 0.0}, r"resampling_time=0\.0"),
        ("g1", {"kp": {"hip": 1.0}}, r"G1\.kp has no value for the joint 'left_knee_joint'"),
        ("cart-pole-balance", {"start": "up"}, r"CartPole\.start='up': expected one of hanging, upright"),
        ("pendulum", {"start": "up"}, r"Pendulum\.start='up': expected one of anywhere, hanging"),
        ("go2", {"terrain.kind": "stairways"}, r"Terrain\.kind='stairways'.*stairs"),
    ],
)
def test_wrong_settings(name, overrides, message):
    with pytest.raises(ConfigError if "kp has" not in message else DataError, match=message):
        gx.envs.load(name, overrides)


@pytest.mark.parametrize("size", [11, 13])
def test_a_wrong_action_size(size):
    """Said while tracing, before anything is compiled."""
    env = gx.envs.load("go2")
    state = jax.eval_shape(env.reset, jax.random.key(0))
    with pytest.raises(ConfigError, match=rf"Go2\.step got an action of shape \[{size}\]; expected \[12\].*go2"):
        jax.eval_shape(env.step, state, jnp.zeros(size))


def test_a_batch_without_vmap():
    env = gx.envs.load("pendulum")
    state = jax.eval_shape(env.reset, jax.random.key(0))
    with pytest.raises(ConfigError, match=r"shape \[8, 1\]; expected \[1\].*use vmap"):
        jax.eval_shape(env.step, state, jnp.zeros((8, 1)))


# Files of a user's own.


def write(tmp_path: Path, name: str, change) -> str:
    """A bundled model, changed."""
    tree = ET.parse(bundled_models()[name])
    change(tree.getroot())
    path = tmp_path / f"my_{name}.xml"
    tree.write(path)
    return str(path)


def without_motor(root):
    actuators = root.find("actuator")
    actuators.remove(actuators.find("motor[@name='left_knee']"))
    sizes = root.find("keyframe")
    root.remove(sizes)


def without_trunk_joint(root):
    pelvis = root.find(".//body[@name='pelvis']")
    pelvis.remove(pelvis.find("freejoint"))
    root.remove(root.find("keyframe"))


def renamed(kind: str, old: str, new: str):
    def change(root):
        for element in root.iter():
            for key in ("name", kind):
                if element.tag in (kind, "motor", "freejoint") and element.get(key) == old:
                    element.set(key, new)

    return change


def second_motor(root):
    ET.SubElement(root.find("actuator"), "motor", name="extra", joint="left_knee_joint", ctrlrange="-1 1")
    root.remove(root.find("keyframe"))


def tendon_motor(root):
    fixed = ET.SubElement(ET.SubElement(root, "tendon"), "fixed", name="cable")
    ET.SubElement(fixed, "joint", joint="left_knee_joint", coef="1")
    ET.SubElement(root.find("actuator"), "motor", name="winch", tendon="cable")
    root.remove(root.find("keyframe"))


def no_limit(root):
    motor = root.find("actuator/motor[@name='left_knee']")
    motor.attrib.pop("class")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_motor, r"no actuator drives the joint 'left_knee_joint'\. Nearest: "),
        (
            renamed("joint", "left_knee_joint", "left_knee_jiont"),
            r"has no joint named 'left_knee_joint'\. Nearest: left_knee_jiont",
        ),
        (
            renamed("body", "left_ankle_roll_link", "left_foot"),
            r"has no body named 'left_ankle_roll_link'\. Nearest: .*ankle_roll_link",
        ),
        (renamed("body", "pelvis", "torso"), r"has no body named 'pelvis'"),
        (without_trunk_joint, r"the trunk 'pelvis' has no free joint at the start of qpos; expected <freejoint/>"),
        (second_motor, r"'left_knee' and 'extra' both drive the joint 'left_knee_joint'"),
        (tendon_motor, r"the actuator 'winch' drives no joint directly"),
        (no_limit, r"no torque limit for the joint 'left_knee_joint'.*ctrlrange"),
    ],
)
def test_a_model_that_does_not_fit(tmp_path, change, message):
    """The file is named, and what is missing."""
    path = write(tmp_path, "g1", change)
    with pytest.raises(DataError, match=message) as error:
        gx.envs.load("g1", {"xml_path": path})
    assert path in str(error.value)


def test_no_body_to_fall_on(tmp_path):
    path = write(tmp_path, "go2", renamed("body", "base", "trunk"))
    with pytest.raises(DataError, match=r"my_go2\.xml has no body named 'base'"):
        gx.envs.load("go2", {"xml_path": path})


def test_a_broken_file(tmp_path):
    path = tmp_path / "broken.xml"
    for text, said in (("<mujoco><worldbody>", "XML"), ("<mujoco><worldbody><bdy/></worldbody></mujoco>", "bdy")):
        path.write_text(text)
        with pytest.raises(DataError, match=rf"(?s)broken\.xml: MuJoCo can't compile this model: .*{said}"):
            gx.envs.load("g1", {"xml_path": str(path)})


def test_no_such_file():
    with pytest.raises(DataError, match=re.escape("'robots/g1.xml'")):
        gx.envs.load("g1", {"xml_path": "robots/g1.xml"})


def test_another_timestep(tmp_path):
    path = write(tmp_path, "g1", lambda root: root.find("option").set("timestep", "0.003"))
    with pytest.raises(ConfigError, match=r"control_dt=0\.02 s.*my_g1\.xml, 0\.003 s\. Nearest: 0\.021 s"):
        gx.envs.load("g1", {"xml_path": path})
    assert gx.envs.load("g1", {"xml_path": path, "control_dt": 0.021}).n_substeps == 7


# A user's whole model of the same robot.

SERVO_GAIN = 500.0


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    """G1 as another author would write it.

    An arm of almost no mass with a motor, before the legs; the right leg before the left; actuators in another order,
    half of them position servos with a force range, and some motors with a gear; damped joints.
    """
    spec = mujoco.MjSpec.from_file(str(bundled_models()["g1"]))
    limits = {}
    model = spec.compile()
    for index in range(model.nu):
        limits[model.joint(model.actuator_trnid[index, 0]).name] = model.actuator_ctrlrange[index, 1]
    for key in list(spec.keys):
        spec.delete(key)
    for actuator in list(spec.actuators):
        spec.delete(actuator)
    arm = spec.body("pelvis").add_body(name="left_arm", pos=[0, 0.2, 0.3])
    arm.add_geom(name="left_arm", size=[0.02, 0, 0], type=mujoco.mjtGeom.mjGEOM_SPHERE, mass=1e-5, contype=0,
                 conaffinity=0)  # fmt: skip
    arm.add_joint(name="left_shoulder_joint", axis=[0, 1, 0], armature=0.01, damping=[0.3, 0, 0])
    names = [*limits, "left_shoulder_joint"]
    limits["left_shoulder_joint"] = 25.0
    np.random.default_rng(0).shuffle(names)
    for place, joint in enumerate(names):
        spec.joint(joint).damping = [1.5, 0, 0]
        actuator = spec.add_actuator(
            name=f"drive_{place}", target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT, ctrllimited=1
        )
        limit, gear = limits[joint], (1.0, 4.0, -2.0)[place % 3]
        actuator.gear[0] = gear
        if place % 2:
            actuator.set_to_position(SERVO_GAIN)
            actuator.ctrlrange = [-1.5, 1.5]  # rad
            actuator.forcelimited, actuator.forcerange = 1, [-limit / abs(gear), limit / abs(gear)]
        else:
            actuator.set_to_motor()
            actuator.ctrlrange = [-limit / abs(gear), limit / abs(gear)]
    root = ET.fromstring(spec.to_xml())
    pelvis = root.find(".//body[@name='pelvis']")
    links = [
        pelvis.find(f"body[@name='{name}']") for name in ("left_arm", "right_hip_pitch_link", "left_hip_pitch_link")
    ]
    for link in links:
        pelvis.remove(link)
    pelvis.extend(links)
    path = tmp_path_factory.mktemp("models") / "full_g1.xml"
    ET.ElementTree(root).write(path)
    env = gx.envs.load("g1", {"xml_path": str(path), "noise.level": 0.0}).evaluation()
    return env, names, limits


def test_a_users_model_is_read_by_name(variant):
    env, names, limits = variant
    layout, plain = env.layout, robot("g1").env
    model = env.mj_model
    assert env.action_size == 12
    assert env.observation_size == 47
    assert layout.joints == (*plain.joints, "left_shoulder_joint")
    assert [layout.joints[index] for index in layout.torque_of] == names
    np.testing.assert_array_equal(layout.qpos, [model.joint(name).qposadr[0] for name in layout.joints])
    assert not np.array_equal(np.sort(layout.qpos), layout.qpos)
    assert list(layout.limits) == pytest.approx([limits[name] for name in layout.joints])
    np.testing.assert_array_equal(env.gains[0][:12], plain.gains[0])
    np.testing.assert_array_equal(model.dof_damping, 0)  # kd is the environment's
    assert model.body(layout.trunk).name == "pelvis"
    assert [model.body(foot).name for foot in layout.feet] == list(plain.feet)


@pytest.mark.slow
def test_a_users_model_moves_as_ours(variant):
    """The same step within 1e-3: torques find their joints, servos and dampers of the file act no second time."""
    env, _, _ = variant
    this, model = robot("g1"), env.mj_model
    qpos, qvel = random_states(this, seed=61)
    action = np.random.default_rng(62).uniform(-3, 3, (N, 12))
    start = batched(env.reset)(jax.random.split(jax.random.key(0), N))
    mine_q = np.array(np.broadcast_to(model.qpos0, (N, model.nq)))
    mine_v = np.zeros((N, model.nv))
    mine_q[:, :7], mine_v[:, :6] = qpos[:, :7], qvel[:, :6]
    mine_q[:, env.layout.qpos[:12]], mine_v[:, env.layout.qvel[:12]] = qpos[:, 7:], qvel[:, 6:]
    data = start.pipeline_state.replace(qpos=jnp.asarray(mine_q, jnp.float32), qvel=jnp.asarray(mine_v, jnp.float32))
    heading = jnp.full(N, 0.2)
    mine = batched(env.step)(
        start.replace(pipeline_state=data, info={**start.info, "heading": heading, "command": jnp.zeros((N, 3))}),
        jnp.asarray(action, jnp.float32),
    )
    ours = this.step(this.place(qpos, qvel, heading=0.2, command=0.0), action)
    data, wanted = mine.pipeline_state, ours.pipeline_state
    np.testing.assert_allclose(data.qpos[:, :7], wanted.qpos[:, :7], atol=1e-3)
    np.testing.assert_allclose(data.qpos[:, env.layout.qpos[:12]], wanted.qpos[:, 7:], atol=1e-3)
    np.testing.assert_allclose(data.qvel[:, env.layout.qvel[:12]], wanted.qvel[:, 6:], atol=2e-2, rtol=1e-3)
    np.testing.assert_allclose(mine.obs, ours.obs["privileged_state"][:, 3:], atol=2e-3)
    np.testing.assert_allclose(mine.reward, ours.reward, atol=1e-3)
    torque = np.asarray(data.qfrc_actuator)[:, env.layout.qvel[:12]]
    np.testing.assert_allclose(torque, np.asarray(wanted.ctrl), atol=0.05)
    np.testing.assert_allclose(np.abs(data.qpos[:, env.layout.qpos[12]]).max(), 0, atol=0.1)  # the arm is held
