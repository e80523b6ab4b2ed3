"""Random properties and uneven ground in a whole environment: what a reset draws, what the next episode keeps."""

import dataclasses

import jax
import mujoco
import numpy as np
import pytest
from envs.robots_under_test import N, batched, quat_of, robot

from galvanax.envs.height_scan import HeightScan
from galvanax.envs.registry import load

SCAN = HeightScan(x=(-0.4, 0.8, 4), y=(-0.3, 0.3, 3), offset=0.3)
GROUND = {"terrain.kind": "rough", "terrain.levels": 2, "terrain.columns": 2, "terrain.roughness": (0.05, 0.1)}
ORIGINS = {(level, column): (6 * level - 3, 6 * column - 3) for level in (0, 1) for column in (0, 1)}


def keys(seed: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), N)


@pytest.fixture(scope="module")
def env():
    """Go2 on rough ground that it sees, with random friction and trunk mass."""
    return load("go2", {**GROUND, "height_scan": SCAN, "randomization.added_trunk_mass": (-1.0, 3.0), "noise.level": 0})


@pytest.fixture(scope="module")
def resets(env):
    return batched(env.reset)(keys(0))


@pytest.fixture(scope="module")
def next_episode(env):
    return batched(env.next_episode)


def properties(state) -> tuple[np.ndarray, np.ndarray]:
    """Friction of a foot, and added mass."""
    model, trunk = state.info["drawn"].model, robot("go2").env.layout.trunk
    return np.asarray(model["pair_friction"][:, 0, 0]), np.asarray(model["body_mass"][:, trunk]) - 6.921


def test_each_environment_has_its_own_properties(resets):
    friction, mass = properties(resets)
    assert len(np.unique(friction)) == len(np.unique(mass)) == N
    for values, low, high in (friction, 0.5, 1.25), (mass, -1, 3):
        assert low <= values.min() < values.max() <= high
        assert np.ptp(values) > 0.6 * (high - low)


def test_the_next_episode_has_others(resets, next_episode):
    new = next_episode(resets, keys(1))
    for before, after in zip(properties(resets), properties(new), strict=True):
        assert (before != after).all()
        assert len(np.unique(after)) == N


def test_properties_of_an_environment_stay(env, resets):
    """`resample="environment"`: drawn once."""
    random = dataclasses.replace(env.randomization, resample="environment")
    new = batched(dataclasses.replace(env, randomization=random).next_episode)(resets, keys(1))
    for before, after in zip(properties(resets), properties(new), strict=True):
        np.testing.assert_array_equal(before, after)
    assert (np.asarray(new.info["drawn"].kp_scale) == 1).all()
    assert not np.array_equal(new.pipeline_state.qpos[:, 7:], resets.pipeline_state.qpos[:, 7:])  # the start is new


def test_evaluation_draws_nothing():
    assert robot("go2").resets.info["drawn"].model == {}


def test_robots_start_on_their_tiles(env, resets):
    """The curriculum begins at the easiest level; columns are random."""
    level, column = np.asarray(resets.info["terrain_level"]), np.asarray(resets.info["terrain_column"])
    assert (level == 0).all()
    assert set(column) == {0, 1}
    places = np.asarray(resets.pipeline_state.qpos[:, :3])
    ground = [np.asarray(env.terrain.heights())[0, 0]] * N  # platforms lie at the rim's height, 0
    for row in range(N):
        wanted = [*ORIGINS[level[row], column[row]], 0.42 + ground[row]]
        np.testing.assert_allclose(places[row], wanted, atol=1e-5)
        np.testing.assert_allclose(resets.info["origin"][row, :2], ORIGINS[level[row], column[row]])


def test_without_a_curriculum_levels_are_random(env):
    judged = env.evaluation()
    state = batched(judged.reset)(keys(2))
    level = np.asarray(state.info["terrain_level"])
    assert set(level) == {0, 1}
    np.testing.assert_allclose(state.pipeline_state.qpos[:, 0], 6 * level - 3, atol=1e-6)


def test_the_curriculum(resets, next_episode):
    """Up a level after half a tile, down after less than half of what is asked for in a whole episode; else it stays.

    The fourth has fallen after 0.2 s, in which it went as far as it should; the fifth after a second, upstairs.
    """
    rest = [0] * (N - 7)
    walked = np.array([3.1, 2.9, 2.9, 0.2, 3.1, 3.1, 0.1, *rest])
    level = np.array([0, 1, 1, 1, 0, 1, 0] + [1] * len(rest))
    speed = np.array([1, 0.25, 0.5, 1, 1, 1, 1, *rest])  # m/s; for the 20 s of an episode
    steps = np.array([1000, 1000, 1000, 10, 50, 1000, 1000, *rest])
    wanted = [1, 1, 0, 0, 1, None, 0] + [1] * len(rest)
    column = np.asarray(resets.info["terrain_column"])
    origin = np.array([[*ORIGINS[at], 0.0] for at in zip(level, column, strict=True)], np.float32)
    qpos = np.asarray(resets.pipeline_state.qpos).copy()
    qpos[:, :2] = origin[:, :2] + walked[:, None] * [0.6, -0.8]
    command = np.asarray(resets.info["command"]).copy()
    command[:, :2] = speed[:, None] * [0.8, 0.6]
    info = {
        **resets.info,
        "origin": jax.numpy.asarray(origin),
        "terrain_level": jax.numpy.asarray(level, resets.info["terrain_level"].dtype),
        "command": jax.numpy.asarray(command),
        "step": jax.numpy.asarray(steps, np.int32),
    }
    data = resets.pipeline_state.replace(qpos=jax.numpy.asarray(qpos))
    new = next_episode(resets.replace(pipeline_state=data, info=info), keys(3))
    found = np.asarray(new.info["terrain_level"])
    for row in range(N):
        assert wanted[row] is None or found[row] == wanted[row], row
        assert found[row] in (0, 1)
        place = ORIGINS[int(found[row]), int(column[row])]
        np.testing.assert_allclose(new.pipeline_state.qpos[row, :2], place, atol=1e-5)
    np.testing.assert_array_equal(new.info["terrain_column"], column)
    np.testing.assert_array_equal(new.info["step"], 0)


@pytest.fixture(scope="module")
def stepped(env, resets):
    """One step from slopes and bumps away from the platform, turned."""
    rng = np.random.default_rng(51)
    qpos = np.asarray(resets.pipeline_state.qpos).copy()
    qpos[:, :2] = rng.uniform(-5.5, 5.5, (N, 2))
    ground = np.asarray(env.terrain.height_at(qpos[:, :2]))
    qpos[:, 2] = 0.36 + ground
    qpos[:, 7:] = robot("go2").standing[7:]
    qpos[:, 3:7] = [quat_of(yaw=angle) for angle in rng.uniform(-np.pi, np.pi, N)]
    data = resets.pipeline_state.replace(qpos=jax.numpy.asarray(qpos))
    return jax.device_get(batched(env.step)(resets.replace(pipeline_state=data), jax.numpy.zeros((N, 12))))


def test_a_step_on_rough_ground(stepped):
    for leaf in jax.tree.leaves((stepped.obs, stepped.reward, stepped.metrics, stepped.pipeline_state.qpos)):
        assert np.isfinite(leaf).all()
    assert not stepped.metrics["broken"].any()
    assert not stepped.done.any()


def test_the_height_scan_is_the_ground_below(env, stepped):
    """Against rays that C MuJoCo casts down onto the same ground, in the robot's heading."""
    part = env.observation_layout["height_scan"]
    assert (part.start, part.stop) == (48, 60)
    assert env.observation_size == 60
    data = mujoco.MjData(env.mj_model)
    floors = np.array([1, 0, 0, 0, 0, 0], np.uint8)  # the floor's group alone
    xs, ys = np.linspace(-0.4, 0.8, 4), np.linspace(-0.3, 0.3, 3)
    unclipped = 0
    for row in range(N):
        qpos = stepped.pipeline_state.qpos[row]
        data.qpos[:] = qpos
        mujoco.mj_forward(env.mj_model, data)
        forward = np.array([1 - 2 * (qpos[5] ** 2 + qpos[6] ** 2), 2 * (qpos[4] * qpos[5] + qpos[3] * qpos[6])])
        forward /= np.linalg.norm(forward)
        left = np.array([-forward[1], forward[0]])
        wanted, geom = [], np.zeros(1, np.int32)
        for x in xs:
            for y in ys:
                start = np.array([*(qpos[:2] + x * forward + y * left), 5.0])
                distance = mujoco.mj_ray(env.mj_model, data, start, np.array([0, 0, -1.0]), floors, 1, -1, geom, None)
                wanted.append(np.clip(qpos[2] - 0.3 - (5.0 - distance), -1, 1) * 5)
        unclipped += np.sum(np.abs(wanted) < 5)
        np.testing.assert_allclose(stepped.obs[row, part], wanted, atol=2e-3)
    assert unclipped == 12 * N
    assert np.ptp(stepped.obs[:, part]) > 0.2
    # All else is as on flat ground.
    assert list(env.observation_layout)[:-1] == list(load("go2").observation_layout)


def test_the_scan_is_mirrored_left_to_right(env):
    obs = np.zeros(60)
    obs[48:] = np.arange(12)
    np.testing.assert_array_equal(env.symmetry.mirror_obs(obs)[48:], [2, 1, 0, 5, 4, 3, 8, 7, 6, 11, 10, 9])


def test_the_critic_alone_may_see_the_ground(env):
    privileged = dataclasses.replace(env, privileged=True)
    assert privileged.observation_size == {"state": (48,), "privileged_state": (3 + 48 + 12,)}
