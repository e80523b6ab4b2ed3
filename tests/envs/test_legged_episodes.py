"""What happens in an episode of a legged robot: falls, commands, pushes, feet's air time, broken physics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from envs.robots_under_test import (
    DT,
    PUSH_INTERVAL,
    ROBOTS,
    N,
    contact_forces,
    quat_of,
    random_states,
    robot,
    simulate,
)

from galvanax.envs.legged.legged import LeggedEnvironment
from galvanax.envs.legged.settings import Commands
from galvanax.envs.registry import load

IN_THE_AIR = 2.0  # m
# Go2's legs over its back; one leg kneeling; by hip, thigh and calf.
UP, KNEEL = [0, 3.4, -2.7], [0, 0.8, -2.7]


def pose(this, z: float, joints=None, **turn) -> np.ndarray:
    qpos = this.standing
    qpos[2], qpos[3:7] = z, quat_of(**turn)
    if joints is not None:
        qpos[7:] = joints
    return qpos


def hold(this, joints) -> np.ndarray:
    """The action whose target is this pose."""
    return np.broadcast_to((np.asarray(joints) - this.default_pose) / 0.25, (N, len(this.joints)))


@pytest.mark.parametrize("name", ["go2", "g1"])
def test_tilt_is_a_fall(name):
    """Roll above 0.8 rad or pitch above 1.0, either way, whatever the heading."""
    this, rng = robot(name), np.random.default_rng(41)
    turns = [({"roll": sign * roll}, roll > 0.8) for sign in (1, -1) for roll in (0.78, 0.82)]
    turns += [({"pitch": sign * pitch}, pitch > 1.0) for sign in (1, -1) for pitch in (0.98, 1.02)]
    turns += [({"roll": 0.78, "pitch": 0.98}, False), ({"roll": 0.5, "pitch": 1.1}, True), ({"roll": np.pi}, True)]
    turns += [({}, False)] * (N - len(turns))
    qpos = [pose(this, IN_THE_AIR, yaw=rng.uniform(-np.pi, np.pi), **turn) for turn, _ in turns]
    state = this.step(this.place(qpos), np.zeros((N, len(this.joints))))
    np.testing.assert_array_equal(state.done, [fallen for _, fallen in turns])


def test_the_trunk_on_the_ground_is_a_fall():
    """Go2 with its legs up in the air: the trunk's lower side is 5.7 cm below its middle."""
    this = robot("go2")
    heights = np.linspace(0.03, 0.09, N)
    qpos = [pose(this, z, UP * 4) for z in heights]
    state = this.step(this.place(qpos), hold(this, UP * 4))
    fall = 9.81 * DT**2 / 2
    sure = np.abs(heights - 0.057) > 2 * fall
    np.testing.assert_array_equal(np.asarray(state.done)[sure], (heights < 0.057)[sure])
    assert set(np.asarray(state.done)[sure]) == {0.0, 1.0}
    assert (np.asarray(state.metrics["reward/collision"]) == 0).all()  # no leg touches


def test_a_tilted_trunk_touches_with_its_corner():
    """Nose down: the head is lower than the middle of the trunk by far."""
    this = robot("go2")
    qpos = [pose(this, 0.18, UP * 4, pitch=pitch) for pitch in (0.0, 0.9)] * (N // 2)
    state = this.step(this.place(qpos), hold(this, UP * 4))
    np.testing.assert_array_equal(state.done, [0.0, 1.0] * (N // 2))


def test_the_pelvis_on_the_ground_is_a_fall():
    """G1 sits: legs up before it; the pelvis reaches 14.5 cm down."""
    this = robot("g1")
    sitting = [-2.4, 0, 0, 0.3, -0.2, 0] * 2
    qpos = [pose(this, z, sitting) for z in (0.12, 0.17)] * (N // 2)
    state = this.step(this.place(qpos), hold(this, sitting))
    np.testing.assert_array_equal(state.done, [1.0, 0.0] * (N // 2))


def test_contacts_may_be_no_fall():
    env = load("go2", {"termination.contact": False})
    assert env.layout.fatal.size == 0
    assert load("go2").layout.fatal.size > 0


def test_collisions_are_counted():
    """A kneeling leg touches with its thigh and its calf: two bodies each; feet don't count."""
    this = robot("go2")
    legs = [[UP] * 4, [KNEEL] + [UP] * 3, [UP, KNEEL, UP, KNEEL], [KNEEL] * 4] * (N // 4)
    joints = np.array([np.concatenate(row) for row in legs])
    state = this.step(this.place([pose(this, 0.155, row) for row in joints]), (joints - this.default_pose) / 0.25)
    np.testing.assert_allclose(state.metrics["reward/collision"], -0.02 * np.array([0, 2, 4, 8] * (N // 4)), atol=1e-6)
    standing = this.step(this.place(), np.zeros((N, 12)))
    np.testing.assert_array_equal(standing.metrics["reward/collision"], 0)


def test_commands_are_drawn_anew_when_due():
    """Every 10 s: at step 500, and only there."""
    this = robot("go2")
    command = np.tile([0.5, -0.4, 0.0], (N, 1))
    for before, due in (498, False), (499, True), (500, False), (999, True):
        state = this.step(this.place(step=before, command=command, heading=0.7), np.zeros((N, 12)))
        new = np.asarray(state.info["command"][:, :2])
        assert (np.abs(new - command[:, :2]) > 1e-6).all(1).mean() == (1.0 if due else 0.0)
        assert (np.asarray(state.info["heading"]) != np.float32(0.7)).all() == due
        assert len(np.unique(state.info["heading"])) == (N if due else 1)
        assert (np.asarray(state.info["step"]) == before + 1).all()


@pytest.fixture(scope="module")
def draws():
    """Many commands, at rest at the origin."""
    env = load("go2").evaluation()
    return jax.device_get(jax.jit(jax.vmap(env._draw_command))(jax.random.split(jax.random.key(0), 4000)))


def test_commands_fill_their_ranges_outside_the_dead_zone(draws):
    commands, headings = draws
    speeds = np.linalg.norm(commands[:, :2], axis=1)
    zero = speeds == 0
    assert speeds[~zero].min() > 0.2
    np.testing.assert_allclose(zero.mean(), np.pi * 0.2**2 / 4, atol=0.012)  # a circle in a square
    for axis in range(3):
        assert commands[:, axis].min() < -0.98
        assert commands[:, axis].max() > 0.98
        assert np.abs(commands[:, axis]).max() <= 1
    assert headings.min() < -3.1 < 3.1 < headings.max()


def test_a_heading_is_steered_to(draws):
    """Half the error, the short way round, at most 1 rad/s."""
    this, rng = robot("g1"), np.random.default_rng(42)
    yaw, heading = rng.uniform(-np.pi, np.pi, (2, N))
    yaw[:3], heading[:3] = [3.0, -3.0, 0.0], [-3.0, 3.0, 0.4]
    qpos = [pose(this, IN_THE_AIR, yaw=angle) for angle in yaw]
    state = this.step(this.place(qpos, heading=heading), np.zeros((N, 12)))
    error = np.angle(np.exp(1j * (heading - yaw)))
    np.testing.assert_allclose(state.info["command"][:, 2], np.clip(0.5 * error, -1, 1), atol=1e-4)
    np.testing.assert_allclose(state.info["command"][:3, 2], [0.1416, -0.1416, 0.2], atol=1e-3)


def test_yaw_rates_without_a_heading():
    """The command stays as drawn, whichever way the robot looks."""
    this = robot("go2")
    env = dataclasses.replace(this.quiet, commands=Commands(heading=False, ang_vel_yaw=(-0.3, 0.2)))
    turned = this.place([pose(this, 0.3, yaw=angle) for angle in np.linspace(-3, 3, N)])
    commands = jax.vmap(env._draw_command)(jax.random.split(jax.random.key(0), N))[0]
    assert ((commands[:, 2] >= -0.3) & (commands[:, 2] <= 0.2)).all()
    steered = jax.vmap(env._steer)({**turned.info, "command": commands}, turned.pipeline_state)
    np.testing.assert_array_equal(steered, commands)


def test_pushes_come_when_due():
    """At once, the trunk's velocity alone is set to a draw within their bounds, another one in each environment."""
    this = robot("g1")
    due = round(PUSH_INTERVAL / DT)
    qpos, qvel = random_states(this, seed=43)
    plain, pushed = (
        jax.device_get(this.step(this.place(qpos, qvel, step=step), np.zeros((N, 12))).pipeline_state)
        for step in (due - 2, due - 1)
    )
    np.testing.assert_array_equal(pushed.qpos, plain.qpos)
    drawn = [0, 1, 3, 4, 5]
    others = np.setdiff1d(np.arange(plain.qvel.shape[1]), drawn)
    np.testing.assert_array_equal(pushed.qvel[:, others], plain.qvel[:, others])
    assert (pushed.qvel[:, drawn] != plain.qvel[:, drawn]).all()
    assert np.abs(pushed.qvel[:, :2]).max() <= 1.5
    assert np.abs(pushed.qvel[:, 3:6]).max() <= 0.5
    assert np.abs(pushed.qvel[:, :2]).max() > 1
    assert len(np.unique(pushed.qvel[:, 0])) == N
    # Whatever the velocity was before: the same draws from the same keys at three times the speed.
    faster = this.step(this.place(qpos, 3 * qvel, step=due - 1), np.zeros((N, 12))).pipeline_state.qvel
    np.testing.assert_array_equal(faster[:, drawn], pushed.qvel[:, drawn])
    assert np.abs(faster[:, 2] - pushed.qvel[:, 2]).max() > 0.1
    after = this.step(this.place(qpos, qvel, step=due), np.zeros((N, 12))).pipeline_state
    np.testing.assert_array_equal(after.qvel, plain.qvel)


def test_air_time():
    """Three steps in the air, one on the ground, three in the air: each foot by its own clock."""
    this = robot("go2")
    zero = np.zeros((N, 12))
    air, ground = pose(this, IN_THE_AIR), this.standing
    data, _ = simulate(this, ground, np.zeros(18), zero[0])
    feet = [this.model.body(name).id for name in this.env.feet]
    stands = contact_forces(this.model, data, feet)[:, 2] > 1
    assert 0 < stands.sum() < 4  # the default pose is not quite level

    state = this.place(air, command=[1.0, 0, 0], heading=0.0)

    def then(state, qpos):
        return this.step(state.replace(pipeline_state=this.place(qpos).pipeline_state), zero)

    def check(state, air_time, reward=0.0):
        np.testing.assert_allclose(state.info["air_time"], np.tile(air_time, (N, 1)), atol=1e-6)
        np.testing.assert_allclose(state.metrics["reward/feet_air_time"], reward, atol=1e-6)

    for steps in (1, 2, 3):
        state = then(state, air)
        check(state, [DT * steps] * 4)
    state = then(state, ground)  # touch-down, after 0.08 s
    check(state, np.where(stands, 0, 0.08), 0.02 * stands.sum() * (0.08 - 0.5))
    np.testing.assert_array_equal(state.info["last_loaded"], np.tile(stands, (N, 1)))
    state = then(state, air)  # a contact counts for one more step, and touches down no second time
    check(state, np.where(stands, 0, 0.10))
    state = then(state, air)
    check(state, np.where(stands, 0.02, 0.12))
    state = then(state, air)
    check(state, np.where(stands, 0.04, 0.14))


@pytest.mark.parametrize("name", ["go2", "g1"])
def test_broken_physics_ends_the_episode(name):
    """NaN or infinite: done, said in the metrics, and nothing but numbers for whoever learns from it."""
    this = robot(name)
    qpos, qvel = random_states(this, seed=44)
    action = np.random.default_rng(45).uniform(-1, 1, (N, len(this.joints)))
    whole = jax.device_get(this.step(this.place(qpos, qvel), action))
    qpos[3, 9], qvel[5, 8], qpos[7, 4], qvel[9, 2] = np.nan, np.inf, np.nan, 1e30
    broken = jax.device_get(this.step(this.place(qpos, qvel), action))
    bad = np.isin(np.arange(N), [3, 5, 7, 9])
    np.testing.assert_array_equal(broken.metrics["broken"], bad)
    assert (broken.done[bad] == 1).all()
    for leaf in jax.tree.leaves((broken.obs, broken.reward, broken.done, broken.metrics)):
        assert np.isfinite(leaf).all()
    for name in ("last_action", "last_joint_vel", "air_time", "last_loaded", "heading"):
        assert np.isfinite(broken.info[name]).all(), name
    for found, wanted in zip(jax.tree.leaves((broken.obs, broken.reward, broken.done)),
                             jax.tree.leaves((whole.obs, whole.reward, whole.done)), strict=True):  # fmt: skip
        np.testing.assert_allclose(found[~bad], wanted[~bad], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(whole.metrics["broken"], 0)


def test_a_nan_action_breaks_one_environment():
    this = robot("go2")
    action = np.zeros((N, 12))
    action[2, 4] = np.nan
    state = this.step(this.place(), action)
    np.testing.assert_array_equal(state.metrics["broken"], np.arange(N) == 2)
    assert np.isfinite(state.obs["state"]).all()
    assert np.isfinite(state.reward).all()


def test_actions_are_clipped():
    """At ± 100, so that a policy gone wild doesn't blow up the observation."""
    this = robot("go2")
    state = this.step(this.place(), np.full((N, 12), 1e6))
    np.testing.assert_array_equal(state.info["last_action"], 100)


@pytest.mark.parametrize("name", ROBOTS)
def test_evaluation_turns_everything_off(name):
    env = load(name, {"randomization.action_delay": (0.0, 0.02), "terrain.curriculum": True})
    judged = env.evaluation()
    assert judged.randomization.is_off
    assert judged.noise.level == 0
    assert not judged.terrain.curriculum
    changes = {name: getattr(env, name) for name in ("randomization", "noise", "terrain")}
    assert dataclasses.replace(judged, **changes) == env  # nothing else
    assert isinstance(env, LeggedEnvironment)


def test_motion_state():
    this = robot("go2")
    qpos, qvel = random_states(this, seed=46)
    found = jax.vmap(this.env.motion_state)(this.place(qpos, qvel))
    np.testing.assert_allclose(found, np.concatenate([qpos, qvel], axis=1), rtol=1e-6, atol=1e-7)
    assert found.shape == (N, 37)


def test_info_passes_through():
    """Keys of wrappers survive a step."""
    this = robot("go2")
    state = this.place()
    info = {**state.info, "mine": jnp.arange(N)}
    new = jax.eval_shape(jax.vmap(this.env.step), state.replace(info=info), jnp.zeros((N, 12)))
    assert set(new.info) == set(info)
    assert new.info["mine"].shape == (N,)
