"""Observations of the legged robots, part by part, against numpy by hand; and their mirror image."""

import dataclasses

import jax
import mujoco
import numpy as np
import pytest
from envs.robots_under_test import (
    ROBOTS,
    N,
    by_joint,
    observation_parts,
    quat_of,
    random_states,
    robot,
    rotation,
)

from galvanax.envs.legged.settings import Gait
from galvanax.envs.registry import load
from galvanax.errors import ConfigError

SIZES = {"go2": 48, "g1": 47, "h1": 41, "h1_2": 47}
ACTIONS = {"go2": 12, "g1": 12, "h1": 10, "h1_2": 12}
PRIVILEGED = {"g1": 50, "h1": 44, "h1_2": 50}
# The facts' amplitudes, times the observation's scales.
NOISE = {"lin_vel": 0.1 * 2, "ang_vel": 0.2 * 0.25, "gravity": 0.05, "joint_pos": 0.01, "joint_vel": 1.5 * 0.05}


@pytest.fixture(scope="module", params=ROBOTS)
def this(request):
    return robot(request.param)


@pytest.fixture(scope="module")
def stepped(this):
    """N states after a step from anywhere, under any action."""
    rng = np.random.default_rng(2)
    qpos, qvel = random_states(this, seed=3)
    state = this.place(qpos, qvel, step=rng.integers(0, 200, N), heading=rng.uniform(-np.pi, np.pi, N))
    action = rng.uniform(-1, 1, (N, this.env.action_size))
    return jax.device_get(this.step(state, action)), action


def parts_of(this, state, row):
    info, data = state.info, state.pipeline_state
    return observation_parts(
        this, data.qpos[row], data.qvel[row], info["command"][row], info["last_action"][row], info["step"][row]
    )


def test_sizes(this):
    assert this.quiet.observation_size == SIZES[this.name]
    assert this.quiet.action_size == ACTIONS[this.name]
    if this.name in PRIVILEGED:
        assert this.env.observation_size == {"state": (SIZES[this.name],), "privileged_state": (PRIVILEGED[this.name],)}


def test_layout(this):
    """The order of the parts, each right after the one before it."""
    layout, joints = this.quiet.observation_layout, ACTIONS[this.name]
    sizes = {name: part.stop - part.start for name, part in layout.items()}
    wanted = {"ang_vel": 3, "gravity": 3, "command": 3, "joint_pos": joints, "joint_vel": joints, "last_action": joints}
    wanted = {"lin_vel": 3} | wanted if this.name == "go2" else wanted | {"phase": 2}
    assert list(sizes.items()) == list(wanted.items())
    starts = np.cumsum([0, *wanted.values()])
    assert [part.start for part in layout.values()] == list(starts[:-1])
    assert starts[-1] == SIZES[this.name]


@pytest.mark.behaviour("reports 28")
@pytest.mark.parametrize(
    "part", ["lin_vel", "ang_vel", "gravity", "command", "joint_pos", "joint_vel", "last_action", "phase"]
)
def test_part(this, stepped, part):
    """Without noise (as the critic sees it), after a step from a tilted, turned, moving state."""
    state, action = stepped
    if part not in this.env.observation_layout:
        pytest.skip("not observed")
    clean = state.obs["privileged_state"][:, 3:]
    for row in range(N):
        wanted = parts_of(this, state, row)[part]
        np.testing.assert_allclose(clean[row, this.env.observation_layout[part]], wanted, atol=2e-5)
    spread = np.ptp(clean[:, this.env.observation_layout[part]], axis=0)
    assert (spread > 1e-3).all()  # else this test would show little
    if part == "last_action":
        np.testing.assert_allclose(clean[:, this.env.observation_layout[part]], action, atol=1e-6)


def test_the_critic_sees_the_true_velocity_first(this, stepped):
    state, _ = stepped
    for row in range(N):
        qpos, qvel = state.pipeline_state.qpos[row], state.pipeline_state.qvel[row]
        matrix = np.zeros(9)
        mujoco.mju_quat2Mat(matrix, np.asarray(qpos[3:7], float) / np.linalg.norm(qpos[3:7]))
        velocity = matrix.reshape(3, 3).T @ qvel[:3]
        np.testing.assert_allclose(state.obs["privileged_state"][row, :3], 2 * velocity, atol=2e-5)


def test_noise(this, stepped):
    """Within the facts' amplitudes and filling them, around zero; none on command, last action and phase."""
    state, _ = stepped
    noise = state.obs["state"] - state.obs["privileged_state"][:, 3:]
    for name, part in this.env.observation_layout.items():
        amplitude, values = NOISE.get(name, 0.0), noise[:, part]
        assert np.abs(values).max() <= amplitude * (1 + 1e-4) + 1e-6, name
        if amplitude:
            assert np.abs(values).max() > 0.85 * amplitude, name
            assert len(np.unique(values)) > 0.9 * values.size, name
            assert np.abs(values.mean()) < 0.35 * amplitude, name


def test_a_fresh_episode(this):
    """Plain and without noise: the parts in order; the facts' start."""
    state = jax.device_get(this.resets)
    assert state.obs.shape == (N, SIZES[this.name])
    for row in range(N):
        wanted = np.concatenate(list(parts_of(this, state, row).values()))
        np.testing.assert_allclose(state.obs[row], wanted, atol=2e-5)
    qpos, qvel = state.pipeline_state.qpos, state.pipeline_state.qvel
    heights = {"go2": 0.42, "g1": 0.8, "h1": 1.0, "h1_2": 1.05}
    np.testing.assert_allclose(qpos[:, :7], np.tile([0, 0, heights[this.name], 1, 0, 0, 0], (N, 1)), atol=1e-6)
    moving = this.default_pose != 0
    ratio = qpos[:, 7:][:, moving] / this.default_pose[moving]
    assert ratio.min() >= 0.5 - 1e-5
    assert ratio.max() <= 1.5 + 1e-5
    assert np.ptp(ratio) > 0.8
    np.testing.assert_array_equal(qpos[:, 7:][:, ~moving], 0)
    assert np.abs(qvel[:, :6]).max() <= 0.5
    assert np.ptp(qvel[:, :6]) > 0.8
    np.testing.assert_array_equal(qvel[:, 6:], 0)
    assert not state.done.any()
    for name in ("step", "last_action", "air_time"):
        np.testing.assert_array_equal(state.info[name], 0)


def test_observations_are_clipped():
    this = robot("go2")
    state = this.place(qvel=np.full(18, 2.5e3))
    obs = jax.jit(jax.vmap(this.quiet._observe))(
        state.pipeline_state, state.info, jax.random.split(jax.random.key(0), N)
    )
    np.testing.assert_array_equal(obs[:, this.quiet.observation_layout["joint_vel"]], 100)  # 125 before


def mirrored(this, qpos, qvel):
    """The robot in the mirror of the x-z plane, by the names of its joints."""
    positions, velocities = by_joint(this.model, this.joints)
    swap = {"left": "right", "right": "left", "FL": "FR", "FR": "FL", "RL": "RR", "RR": "RL"}
    other, signs = [], []
    for name in this.joints:
        side, _, rest = name.partition("_")
        other.append(this.joints.index(f"{swap[side]}_{rest}"))
        pitch = "pitch" in rest or rest in ("knee_joint", "thigh_joint", "calf_joint", "ankle_joint")
        signs.append(1.0 if pitch else -1.0)
    new_qpos, new_qvel = qpos.copy(), qvel.copy()
    new_qpos[:7] *= [1, -1, 1, 1, -1, 1, -1]
    new_qvel[:6] *= [1, -1, 1, -1, 1, -1]
    new_qpos[positions] = qpos[positions][other] * signs
    new_qvel[velocities] = qvel[velocities][other] * signs
    return new_qpos, new_qvel, np.array(other), np.array(signs)


def test_mirrored_joints_make_a_mirrored_robot(this):
    """What the next test takes for granted: the links are where the mirror shows them."""
    model = this.model
    states, data = random_states(this, seed=4), [mujoco.MjData(model), mujoco.MjData(model)]
    qpos, qvel = states[0][0], states[1][0]
    data[0].qpos[:], data[1].qpos[:] = qpos, mirrored(this, qpos, qvel)[0]
    for one in data:
        mujoco.mj_kinematics(model, one)
    swap = str.maketrans({"L": "R", "R": "L"})
    for body in range(1, model.nbody):
        name = model.body(body).name
        if this.name == "go2":
            side, _, rest = name.partition("_")
            twin = f"{side[0]}{side[1].translate(swap)}_{rest}" if rest else name
        else:
            twin = name.replace("left", "@").replace("right", "left").replace("@", "right")
        np.testing.assert_allclose(data[1].body(twin).xpos, data[0].xpos[body] * [1, -1, 1], atol=1e-5)


def test_symmetry(this):
    """The mirrored state, mirrored action, mirrored command and a clock half a stride on: the mirrored observation."""
    symmetry = this.quiet.symmetry
    rng = np.random.default_rng(5)
    qpos, qvel = random_states(this, seed=6)
    for row in range(N):
        command, action, step = rng.uniform(-1, 1, 3), rng.uniform(-1, 1, ACTIONS[this.name]), rng.integers(100)
        new_qpos, new_qvel, other, signs = mirrored(this, qpos[row], qvel[row])
        new_action = action[other] * signs
        new_command = command * [1, -1, -1]
        np.testing.assert_allclose(symmetry.mirror_action(action), new_action, atol=1e-6)
        obs = np.concatenate(list(observation_parts(this, qpos[row], qvel[row], command, action, step).values()))
        new = observation_parts(this, new_qpos, new_qvel, new_command, new_action, step + 20)
        np.testing.assert_allclose(symmetry.mirror_obs(obs), np.concatenate(list(new.values())), atol=1e-6)
        np.testing.assert_allclose(symmetry.mirror_obs(symmetry.mirror_obs(obs)), obs, atol=1e-7)
        np.testing.assert_allclose(symmetry.mirror_action(symmetry.mirror_action(action)), action, atol=1e-7)


def test_a_mirrored_robot_moves_in_the_mirror(this):
    """One step of dynamics: what is learned in the mirror is true."""
    rng = np.random.default_rng(7)
    qpos, qvel = random_states(this, seed=8)
    action = rng.uniform(-1, 1, (N, ACTIONS[this.name]))
    symmetry = this.env.symmetry
    images = [mirrored(this, *pair) for pair in zip(qpos, qvel, strict=True)]
    one = this.step(this.place(qpos, qvel, heading=0.3, step=3), action)
    two = this.step(
        this.place([image[0] for image in images], [image[1] for image in images], heading=-0.3, step=23),
        symmetry.mirror_action(action),
    )
    layout = this.env.observation_layout
    wanted = symmetry.mirror_obs(np.asarray(one.obs["privileged_state"][:, 3:]))
    found = np.asarray(two.obs["privileged_state"][:, 3:])
    for name in ("gravity", "joint_pos", "joint_vel", "phase"):
        if name in layout:
            # The links of the real robots are not quite mirror images.
            np.testing.assert_allclose(found[:, layout[name]], wanted[:, layout[name]], atol=0.05, err_msg=name)


def test_an_uneven_gait_has_no_mirror():
    env = dataclasses.replace(load("g1"), gait=Gait(offset=(0.0, 0.4)))
    with pytest.raises(ConfigError, match=r"gait\.offset=\(0\.0, 0\.4\).*\(0, 0\.5\)"):
        _ = env.symmetry


def test_quaternions_of_these_tests():
    """Yaw turns x to y; pitch forward lets gravity point ahead."""
    np.testing.assert_allclose(rotation(quat_of(yaw=np.pi / 2)) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation(quat_of(pitch=0.3)).T @ [0, 0, -1], [np.sin(0.3), 0, -np.cos(0.3)], atol=1e-12)
    np.testing.assert_allclose(rotation(quat_of(roll=0.3)).T @ [0, 0, -1], [0, -np.sin(0.3), -np.cos(0.3)], atol=1e-12)
