"""The legged robots' dynamics: a control step and a physics step beside C MuJoCo's, joint orders, contact forces."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from envs.robots_under_test import (
    FEET,
    HUMANOIDS,
    ROBOTS,
    N,
    batched,
    by_joint,
    contact_forces,
    random_states,
    robot,
    simulate,
)

from galvanax.physics.contacts import forces_on_bodies, lowest_points, point_motion
from galvanax.physics.quiet_mjx import mjx

STATES = 200


@pytest.mark.behaviour("peers 132", "peers 160")
@pytest.mark.parametrize("name", ROBOTS)
def test_a_step_is_a_plain_loop(name):
    """PD torques anew in each timestep, clipped: as C MuJoCo under numpy's PD, with gentle and wild actions."""
    this, rng = robot(name), np.random.default_rng(21)
    qpos, qvel = random_states(this, seed=22)
    action = rng.uniform(-1, 1, (N, len(this.joints))) * np.where(np.arange(N) < N // 2, 1, 20)[:, None]
    state = jax.device_get(this.step(this.place(qpos, qvel), action))
    limits = np.array(list(this.facts["effort"].values()))
    clipped = 0
    for row in range(N):
        data, torques = simulate(this, qpos[row], qvel[row], action[row])
        np.testing.assert_allclose(state.pipeline_state.qpos[row], data.qpos, atol=1e-4)
        np.testing.assert_allclose(state.pipeline_state.qvel[row], data.qvel, atol=1e-2)
        np.testing.assert_allclose(state.pipeline_state.ctrl[row], data.ctrl, atol=0.02)
        clipped += np.sum(np.abs(torques) == limits)
        if row < N // 2:
            assert (np.abs(torques) < limits).mean() > 0.9
    assert clipped > N
    assert (np.abs(state.pipeline_state.ctrl) <= np.abs(this.model.actuator_ctrlrange[:, 1]) * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", ROBOTS)
def test_orders(name):
    """Joints by name to qpos, qvel and actuators, and back."""
    this = robot(name)
    layout, model = this.env.layout, this.model
    assert list(layout.joints) == this.joints == list(this.env.joints)
    positions, velocities = by_joint(model, this.joints)
    np.testing.assert_array_equal(layout.qpos, positions)
    np.testing.assert_array_equal(layout.qvel, velocities)
    assert [f"{layout.actuators[i]}_joint" for i in range(model.nu)] == [layout.joints[i] for i in layout.torque_of]
    np.testing.assert_array_equal(np.sort(layout.torque_of), np.arange(model.nu))
    for field, key in (("limits", "effort"), ("kp", "kp"), ("kd", "kd")):
        values = layout.limits if field == "limits" else this.env.gains[field == "kd"]
        assert dict(zip(layout.joints, values, strict=True)) == this.facts[key], field
    if name == "go2":
        assert list(layout.torque_of) == [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]
    else:
        assert list(layout.torque_of) == list(range(model.nu))


def test_an_action_moves_its_own_joint():
    """Go2 in the air, action i alone: the joint of that name turns, and the motor of that name does it."""
    this = robot("go2")
    qpos = this.standing
    qpos[2] = 2.0
    data = jax.device_get(this.step(this.place(qpos), np.eye(N, 12) * 0.5)).pipeline_state
    for index, name in enumerate(this.joints):
        joint, motor = this.model.joint(name), this.model.actuator(name.removesuffix("_joint")).id
        moved = data.qpos[index, 7:] - qpos[7:]
        assert np.abs(moved).argmax() == joint.qposadr[0] - 7
        assert moved.max() > 0.01
        assert np.abs(data.ctrl[index]).argmax() == motor
        assert data.ctrl[index, motor] > 0.5


@pytest.mark.behaviour("peers 160")
@pytest.mark.parametrize("name", ROBOTS)
def test_standing(name):
    """From the keyframe, with action zero: as in C MuJoCo. Go2 sags and stands; humanoids tip over slowly (0.5 s)."""
    this = robot(name)
    steps = 100 if name == "go2" else 25
    state, zero = this.place(), np.zeros((N, len(this.joints)))
    for _ in range(steps):
        state = this.step(state, zero)
        assert not np.any(state.done)
    data, _ = simulate(this, this.standing, np.zeros(this.model.nv), zero[0], steps)
    height = np.asarray(state.pipeline_state.qpos[:, 2])
    np.testing.assert_allclose(height, data.qpos[2], atol=0.01)
    if name == "go2":
        np.testing.assert_allclose(height, 0.27, atol=0.01)
    else:
        np.testing.assert_allclose(height, this.facts["standing_height"], atol=0.03)
    np.testing.assert_allclose(state.pipeline_state.qpos[0], data.qpos, atol=0.01)


def physics_step(model: mujoco.MjModel, feet: np.ndarray):
    device_model, blank = mjx.put_model(model), mjx.make_data(model)

    def step(qpos, qvel, ctrl):
        data = mjx.step(device_model, blank.replace(qpos=qpos, qvel=qvel, ctrl=ctrl))
        points = point_motion(device_model, data, feet, (0.01, 0.02, -0.03))
        lowest = lowest_points(model, data, np.flatnonzero(model.geom_bodyid > 0))
        forces = forces_on_bodies(device_model, data, feet)
        return {"qpos": data.qpos, "qvel": data.qvel, "qacc": data.qacc, "forces": forces, "points": points}, lowest

    return batched(step)


def c_step(model: mujoco.MjModel, qpos, qvel, ctrl) -> mujoco.MjData:
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:], data.ctrl[:] = qpos, qvel, ctrl
    mujoco.mj_step(model, data)
    return data


@pytest.fixture(scope="module", params=["go2", "g1"])
def physics(request):
    """One physics step of 200 random states in contact: the robot, inputs, MJX's results, C MuJoCo's."""
    this = robot(request.param)
    model = this.model
    feet = np.array([model.body(name).id for name in FEET[this.name]])
    qpos, qvel = random_states(this, seed=31, count=STATES)
    ctrl = np.random.default_rng(32).uniform(-0.3, 0.3, (STATES, model.nu)) * model.actuator_ctrlrange[:, 1]
    inputs = list(zip(qpos, qvel, ctrl, strict=True))
    arrays = (jnp.asarray(array, jnp.float32) for array in (qpos, qvel, ctrl))
    found, lowest = jax.device_get(physics_step(this.env.mj_model, feet)(*arrays))
    return this, inputs, found, lowest, [c_step(model, *row) for row in inputs]


def relative_errors(found, datas, name: str) -> np.ndarray:
    """Of each state, by its norm."""
    wanted = np.array([getattr(data, name) for data in datas])
    return np.linalg.norm(found[name] - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)


def test_one_physics_step(physics):
    """MJX (float32) beside C MuJoCo (float64), as many solver iterations: all states agree.

    Measured on a CPU: qacc within 4e-5 of its norm (median 3e-6), velocities as well, positions within 2e-6.
    """
    this, _, found, _, datas = physics
    contacts = [data.ncon for data in datas]
    assert min(contacts) >= 1
    assert max(contacts) >= 3
    for name, tolerance in (("qpos", 1e-5), ("qvel", 2e-4), ("qacc", 2e-4)):
        error = relative_errors(found, datas, name)
        figures = f"{this.name} {name}: median {np.median(error):.1e}, largest {error.max():.1e}"
        print(figures)
        assert np.median(error) < tolerance / 20, figures
        assert error.max() < tolerance, figures


def test_one_physics_step_with_the_files_own_line_search(physics):
    """At 5 iterations a search, C stops short in a state or two of a hundred."""
    this, inputs, found, _, _ = physics
    model = this.env.mj_model
    assert (model.opt.iterations, model.opt.ls_iterations) == (3, 5)
    error = relative_errors(found, [c_step(model, *row) for row in inputs], "qacc")
    print(f"{this.name} qacc, 5 line search iterations: {np.sum(error > 2e-4)} of {STATES}, largest {error.max():.1e}")
    assert np.mean(error < 2e-4) > 0.97


def test_contact_forces(physics):
    """What `forces_on_bodies` says is the sum of `mj_contactForce`, in the world's frame (N)."""
    this, _, found, _, datas = physics
    feet = [this.model.body(name).id for name in FEET[this.name]]
    wanted = np.array([contact_forces(this.model, data, feet) for data in datas])
    error = np.abs(found["forces"] - wanted).max((1, 2))
    print(f"{this.name} forces: median {np.median(error):.1e} N, largest {error.max():.1e} N")
    np.testing.assert_allclose(found["forces"], wanted, atol=0.2, rtol=1e-3)
    assert wanted[..., 2].max() > 50
    assert np.abs(wanted[..., :2]).max() > 5
    assert (wanted[..., 2] >= 0).all()  # the ground doesn't pull


def test_points_on_bodies(physics):
    """Position and velocity of a point that is fixed on a foot."""
    this, _, found, _, datas = physics
    positions, velocities = found["points"]
    for row in range(0, STATES, 10):
        for foot, name in enumerate(FEET[this.name]):
            body, data = this.model.body(name).id, datas[row]
            arm = data.xmat[body].reshape(3, 3) @ [0.01, 0.02, -0.03]
            velocity = np.zeros(6)
            mujoco.mj_objectVelocity(this.model, data, mujoco.mjtObj.mjOBJ_XBODY, body, velocity, 0)
            np.testing.assert_allclose(positions[row, foot], data.xpos[body] + arm, atol=1e-5)
            np.testing.assert_allclose(velocities[row, foot], velocity[3:] + np.cross(velocity[:3], arm), atol=1e-4)


def test_lowest_points(physics):
    """Of spheres and capsules exactly, of others the corner of their box: found by sampling surfaces."""
    this, _, _, lowest, datas = physics
    model = this.model
    geoms = np.flatnonzero(model.geom_bodyid > 0)
    rng = np.random.default_rng(33)
    directions = rng.normal(size=(4000, 3))
    directions = np.concatenate([directions / np.linalg.norm(directions, axis=1, keepdims=True), [[0, 0, -1.0]]])
    for row in range(0, STATES, 50):
        data = datas[row]
        for place, geom in enumerate(geoms):
            matrix, centre, size = data.geom_xmat[geom].reshape(3, 3), data.geom_xpos[geom], model.geom_size[geom]
            kind = model.geom_type[geom]
            if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
                z = centre[2] - size[0]
            elif kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
                ends = centre + np.outer([-1, 1], matrix[:, 2] * size[1])
                z = (ends[:, None] + size[0] * directions)[..., 2].min()
            else:
                half = size if kind != mujoco.mjtGeom.mjGEOM_CYLINDER else [size[0], size[0], size[1]]
                z = centre[2] - np.abs(matrix[2]) @ half
            np.testing.assert_allclose(lowest[row, place, 2], z, atol=1e-5)


@pytest.mark.parametrize(("cone", "dims"), [("pyramidal", (1, 4, 6)), ("elliptic", (4, 6))])
def test_contact_forces_of_every_kind(cone, dims):
    """Contacts with no, sliding, twisting and rolling friction, in either order of geoms; a body on a body."""
    geoms = {dim: ("s4", "floor") if dim == 4 else ("floor", f"s{dim}") for dim in dims}
    pairs = "".join(
        f'<pair geom1="{first}" geom2="{second}" condim="{dim}" friction="0.8 0.6 0.02 0.01 0.01"/>'
        for dim, (first, second) in geoms.items()
    )
    bodies = "".join(
        f'<body pos="{dim} 0 0.098"><freejoint/><geom name="s{dim}" size="0.1" contype="0" conaffinity="0"/></body>'
        for dim in dims
    )
    model = mujoco.MjModel.from_xml_string(
        f"""<mujoco><option cone="{cone}"/><worldbody>
        <geom name="floor" type="plane" size="9 9 1" euler="5 0 0" contype="0" conaffinity="0"/>{bodies}
        <body pos="6 0 0.297"><freejoint/><geom name="top" size="0.1" contype="0" conaffinity="0"/></body>
        </worldbody><contact>{pairs}<pair geom1="s6" geom2="top" condim="3"/></contact></mujoco>"""
    )
    data = mujoco.MjData(model)
    data.qvel[:] = np.random.default_rng(34).uniform(-0.5, 0.5, model.nv)
    data.qvel[2::6] = -0.3
    device_model = mjx.put_model(model)
    spheres = np.arange(1, model.nbody)

    def forward(qvel):
        new = mjx.forward(device_model, mjx.make_data(model).replace(qvel=qvel))
        return forces_on_bodies(device_model, new, spheres), new.qacc

    forces, qacc = batched(forward)(jnp.asarray(data.qvel, jnp.float32)[None])
    mujoco.mj_forward(model, data)
    assert data.ncon == len(dims) + 1
    wanted = contact_forces(model, data, list(spheres))
    assert np.linalg.norm(wanted, axis=1).min() > 1
    np.testing.assert_allclose(forces[0], wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())
    # Without MuJoCo's own sums: a sphere is moved by its contacts and gravity, and by nothing else.
    free = model.body_mass[1:, None] * (np.asarray(qacc[0]).reshape(-1, 6)[:, :3] + [0, 0, 9.81])
    np.testing.assert_allclose(forces[0], free, rtol=1e-3, atol=1e-4 * np.abs(free).max())


@pytest.mark.parametrize("name", HUMANOIDS)
def test_the_sole_bears_the_weight(name):
    """Standing still, the feet carry the robot: contact forces in the environment are in newtons, upwards."""
    this = robot(name)
    state, zero = this.place(), np.zeros((N, len(this.joints)))
    for _ in range(10):
        state = this.step(state, zero)
    feet = np.array([this.model.body(foot).id for foot in FEET[name]])
    forces = jax.vmap(lambda data: forces_on_bodies(this.env.mjx_model, data, feet))(state.pipeline_state)
    weight = this.facts["total_mass"] * 9.81
    np.testing.assert_allclose(np.asarray(forces[:, :, 2]).sum(1), weight, rtol=0.1)
