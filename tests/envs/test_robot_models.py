"""The legged robots' files against the numbers of the real ones (`robot_facts.json`), in C MuJoCo."""

import json
from pathlib import Path

import mujoco
import numpy as np
import pytest

from galvanax.physics import load_model

FACTS = json.loads((Path(__file__).parent / "robot_facts.json").read_text())
HUMANOIDS = ("g1", "h1", "h1_2")
FEET = {name: ("left_foot", "right_foot") for name in HUMANOIDS} | {"go2": ("FL_foot", "FR_foot", "RL_foot", "RR_foot")}


@pytest.fixture(scope="module", params=FACTS)
def robot(request):
    """A robot's name, its model and its facts."""
    return request.param, load_model(request.param), FACTS[request.param]


def foot_geoms(name: str) -> list[str]:
    """The spheres that touch the ground: one a foot for Go2, four for a humanoid."""
    return [
        foot if name == "go2" else f"{foot}_{i}" for foot in FEET[name] for i in range(1, 2 if name == "go2" else 5)
    ]


def at_default(model: mujoco.MjModel) -> mujoco.MjData:
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("default").id)
    mujoco.mj_forward(model, data)
    return data


def inertia_matrix(quat, moments) -> np.ndarray:
    """The inertia about the centre of mass, in the body's frame."""
    axes = np.zeros(9)
    mujoco.mju_quat2Mat(axes, np.asarray(quat) / np.linalg.norm(quat))
    axes = axes.reshape(3, 3)
    return axes @ np.diag(moments) @ axes.T


def stand(model: mujoco.MjModel, facts: dict, seconds: float, kp=None, kd=None, balance: bool = False):
    """Holds the default pose with PD torques, recomputed every timestep and clipped to the motors' ranges.

    With `balance` the ankles' pitch motors put the centre of pressure where it catches the centre of mass (a capture
    point controller; the gain of 2 is above 1, so that it converges), instead of holding their angle.

    Returns the last state, the deepest that a foot got into the ground (m), and the largest tilt on the way (rad).
    """
    data = at_default(model)
    joints = [model.joint(i) for i in model.actuator_trnid[:, 0]]
    positions = np.concatenate([joint.qposadr for joint in joints])
    velocities = np.concatenate([joint.dofadr for joint in joints])
    kp = np.array([kp or facts["kp"][joint.name] for joint in joints])
    kd = np.array([kd or facts["kd"][joint.name] for joint in joints])
    reference = data.qpos[positions].copy()
    limits = model.actuator_ctrlrange
    ankles = [i for i, joint in enumerate(joints) if joint.name.endswith(("ankle_joint", "ankle_pitch_joint"))]
    trunk, depth, tilt = 1, 0.0, 0.0
    for _ in range(round(seconds / model.opt.timestep)):
        torques = kp * (reference - data.qpos[positions]) - kd * data.qvel[velocities]
        if balance:
            mujoco.mj_subtreeVel(model, data)
            feet = (data.site("left_foot").xpos + data.site("right_foot").xpos)[0] / 2
            com, speed = data.subtree_com[trunk], data.subtree_linvel[trunk][0]
            pressure = feet + 2 * (com[0] + speed * np.sqrt(com[2] / 9.81) - feet)
            ankle = data.xpos[joints[ankles[0]].bodyid[0]][0]
            torques[ankles] = model.body_subtreemass[trunk] * 9.81 * (pressure - ankle) / 2
        data.ctrl = np.clip(torques, limits[:, 0], limits[:, 1])
        mujoco.mj_step(model, data)
        depth = max(depth, -data.contact.dist.min(initial=0))
        tilt = max(tilt, np.arccos(np.clip(data.xmat[trunk][8], -1, 1)))
    return data, depth, tilt


def test_total_mass(robot):
    _, model, facts = robot
    np.testing.assert_allclose(model.body_mass.sum(), facts["total_mass"], rtol=1e-3)


def test_total_masses_are_these():
    found = {name: facts["total_mass"] for name, facts in FACTS.items()}
    assert found == {"go2": 15.206, "g1": 32.107, "h1": 51.65, "h1_2": 67.368}


def test_links(robot):
    """Every link's place in the tree, mass, centre of mass and inertia, and nothing beside them."""
    _, model, facts = robot
    assert [model.body(i).name for i in range(1, model.nbody)] == [link["body"] for link in facts["links"]]
    for link in facts["links"]:
        body = model.body(link["body"])
        assert model.body(body.parentid[0]).name == link["parent"]
        np.testing.assert_allclose(body.pos, link["pos"], atol=1e-6)
        np.testing.assert_allclose(body.quat, link["quat"], atol=1e-5)
        np.testing.assert_allclose(body.mass, link["mass"], rtol=1e-5)
        np.testing.assert_allclose(body.ipos, link["com"], atol=1e-6)
        wanted = inertia_matrix(link["inertia_quat"], link["diaginertia"])
        np.testing.assert_allclose(inertia_matrix(body.iquat, body.inertia), wanted, atol=2e-5 * np.abs(wanted).max())


def test_joints(robot):
    """Names, order, axes and ranges; and no damping or friction that would add to the controller's."""
    _, model, facts = robot
    assert model.joint(0).name == "root"
    assert model.joint(0).type == mujoco.mjtJoint.mjJNT_FREE
    jointed = [link for link in facts["links"] if "joint" in link]
    assert [model.joint(i).name for i in range(1, model.njnt)] == [link["joint"]["name"] for link in jointed]
    for link in jointed:
        joint = model.joint(link["joint"]["name"])
        assert model.body(joint.bodyid[0]).name == link["body"]
        np.testing.assert_array_equal(joint.axis, link["joint"]["axis"])
        np.testing.assert_allclose(joint.range, link["joint"]["range"], atol=1e-6)
        assert joint.limited
        assert joint.armature == 0.01
        assert joint.damping[0] == joint.frictionloss == joint.stiffness[0] == 0


def test_motors(robot):
    """One a joint, found by the joint's name, with its torque as the control and its limit as the range."""
    _, model, facts = robot
    assert model.nu == len(facts["effort"])
    for joint, effort in facts["effort"].items():
        motor = model.actuator(joint.removesuffix("_joint"))
        assert model.joint(motor.trnid[0]).name == joint
        np.testing.assert_allclose(motor.ctrlrange, [-effort, effort])
        np.testing.assert_array_equal(motor.gear, [1, 0, 0, 0, 0, 0])
        data = at_default(model)
        data.ctrl[motor.id] = 1.5
        mujoco.mj_fwdActuation(model, data)
        wanted = np.zeros(model.nv)
        wanted[model.joint(joint).dofadr] = 1.5
        np.testing.assert_allclose(data.qfrc_actuator, wanted)


def test_motor_order(robot):
    """The joints' order; but Go2's motors come in the order of the real robot."""
    name, model, facts = robot
    motors = [model.actuator(i).name for i in range(model.nu)]
    if name == "go2":
        assert motors == [f"{leg}_{part}" for leg in ("FR", "FL", "RR", "RL") for part in ("hip", "thigh", "calf")]
    else:
        assert motors == [joint.removesuffix("_joint") for joint in facts["effort"]]


def test_default_pose(robot):
    """The keyframe is the standing pose: the lowest feet are on the ground."""
    name, model, facts = robot
    key = model.key("default")
    np.testing.assert_allclose(key.qpos[:7], [0, 0, facts["standing_height"], 1, 0, 0, 0])
    np.testing.assert_allclose(key.qpos[7:], list(facts["default_joint_pos"].values()))
    np.testing.assert_array_equal(key.ctrl, 0)
    data = at_default(model)
    spheres = [(data.geom(geom), model.geom(geom).size[0]) for geom in foot_geoms(name)]
    soles = np.array([geom.xpos[2] - radius for geom, radius in spheres])
    np.testing.assert_allclose(soles.min(), 0, atol=1e-4)
    assert soles.max() < (0.0097 if name == "go2" else 1e-4)  # Go2's rear legs are bent less than its front legs
    ranges = model.jnt_range[1:]
    assert ((ranges[:, 0] < key.qpos[7:]) & (key.qpos[7:] < ranges[:, 1])).all()


def test_sites(robot):
    """The trunk's origin, and the middle of every sole."""
    name, model, _ = robot
    data = at_default(model)
    np.testing.assert_array_equal(data.site("imu").xpos, data.xpos[1])
    for foot in FEET[name]:
        spheres = [model.geom(geom) for geom in foot_geoms(name) if geom.startswith(foot)]
        site = model.site(foot)
        assert all(sphere.bodyid == site.bodyid for sphere in spheres)
        middle = np.mean([sphere.pos for sphere in spheres], axis=0) - [0, 0, spheres[0].size[0]]
        np.testing.assert_allclose(site.pos, middle, atol=1e-6)


def test_only_feet_collide(robot):
    """No geom collides by its type. The pairs are a foot's sphere and the floor: all that touches, deep in it."""
    name, model, _ = robot
    assert not model.geom_contype.any()
    assert not model.geom_conaffinity.any()
    floor = model.geom("floor")
    assert floor.type == mujoco.mjtGeom.mjGEOM_PLANE
    np.testing.assert_array_equal(floor.pos, 0)
    pairs = [model.pair(i) for i in range(model.npair)]
    assert [pair.name for pair in pairs] == [f"{geom}_floor" for geom in foot_geoms(name)]
    for pair, foot in zip(pairs, foot_geoms(name), strict=True):
        assert {pair.geom1[0], pair.geom2[0]} == {floor.id, model.geom(foot).id}
        assert model.geom(foot).type == mujoco.mjtGeom.mjGEOM_SPHERE
        assert pair.dim == 3
        np.testing.assert_array_equal(pair.friction[:2], 1)
    data = at_default(model)
    data.qpos[2] = -1
    mujoco.mj_forward(model, data)
    assert data.ncon == len(pairs)


def test_every_link_has_a_shape_of_its_name(robot):
    _, model, facts = robot
    for link in facts["links"]:
        assert model.body(model.geom(link["body"]).bodyid[0]).name == link["body"]


def test_go2_stands():
    """On all feet and level; with Unitree's soft kp of 20 it sags by 5 cm, with a stiff one by less than 2."""
    model, facts = load_model("go2"), FACTS["go2"]
    for gains, sag in ({}, 0.07), ({"kp": 150, "kd": 3}, 0.02):
        data, depth, tilt = stand(model, facts, 2, **gains)
        assert data.ncon == 4
        assert facts["standing_height"] - sag < data.qpos[2] < facts["standing_height"]
        assert depth < 2e-3
        assert tilt < 0.15
        np.testing.assert_allclose(data.qpos[:2], 0, atol=0.07)


@pytest.mark.parametrize("name", HUMANOIDS)
def test_humanoids_stand(name):
    """On both whole feet at their height, when the ankles balance them within their limits."""
    model, facts = load_model(name), FACTS[name]
    data, depth, tilt = stand(model, facts, 2, balance=True)
    assert data.ncon == 8
    np.testing.assert_allclose(data.qpos[2], facts["standing_height"], atol=0.02)
    np.testing.assert_allclose(data.qpos[:2], 0, atol=0.05)
    assert depth < 5e-3
    assert tilt < 0.2
    assert np.abs(data.qvel).max() < 0.05


@pytest.mark.parametrize("name", HUMANOIDS)
def test_humanoids_tip_over_slowly_on_springs_alone(name):
    """Unitree's gains hold the pose, not the balance: two ankles of 40 N·m/rad are softer than gravity (m g h).

    The robot is up for half a second and down after two: what a policy has to prevent.
    """
    model, facts = load_model(name), FACTS[name]
    data = at_default(model)
    height = data.subtree_com[1][2] - data.xpos[model.body("left_knee_link").id + 1][2]
    assert model.body_subtreemass[1] * 9.81 * height > 2 * 40
    data, _, tilt = stand(model, facts, 0.5)
    assert tilt < 0.2
    assert data.qpos[2] > facts["standing_height"] - 0.03
    data, _, tilt = stand(model, facts, 2)
    assert np.isfinite(data.qpos).all()
    assert tilt > 0.5
