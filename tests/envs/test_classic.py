"""Classic systems: observations and rewards at states known by hand, falls, and steps beside C MuJoCo's."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from envs.robots_under_test import N, batched

from galvanax.envs.registry import load

SIZES = {
    "pendulum": (1, 3),
    "cart-pole-balance": (1, 5),
    "cart-pole-swing-up": (1, 5),
    "double-cart-pole": (1, 8),
    "hopper": (3, 11),
}


class Classic:
    """An environment and its functions on N states."""

    def __init__(self, name):
        self.name, self.env = name, load(name)
        self.reset = batched(self.env.reset)
        self._step = batched(self.env.step)
        self.fresh = self.reset(jax.random.split(jax.random.key(0), N))

    def step(self, qpos, qvel, action):
        """From the first states given; the others are at zero."""
        model = self.env.mj_model

        def fill(rows, width):
            rows = np.atleast_2d(np.asarray(rows, float))
            return jnp.asarray(np.concatenate([rows, np.zeros((N - len(rows), width))]), jnp.float32)

        data = self.fresh.pipeline_state.replace(qpos=fill(qpos, model.nq), qvel=fill(qvel, model.nv))
        return jax.device_get(self._step(self.fresh.replace(pipeline_state=data), fill(action, model.nu)))


@pytest.fixture(scope="module")
def systems():
    return {name: Classic(name) for name in SIZES}


def known(name: str, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    """The observation, by hand."""
    if name == "pendulum":
        return np.array([np.cos(qpos[0]), np.sin(qpos[0]), qvel[0]])
    if name == "hopper":
        return np.concatenate([qpos[1:], np.clip(qvel, -10, 10)])
    return np.concatenate([qpos[:1], np.cos(qpos[1:]), np.sin(qpos[1:]), qvel])


@pytest.mark.parametrize("name", SIZES)
def test_sizes(systems, name):
    env = systems[name].env
    assert (env.action_size, env.observation_size) == SIZES[name]


@pytest.mark.behaviour("peers 132")
@pytest.mark.parametrize("name", SIZES)
def test_a_step_beside_mujoco(systems, name):
    """From random states under random, also too large, actions: the state, and its observation by hand."""
    system, rng = systems[name], np.random.default_rng(71)
    model = system.env.mj_model
    qpos, qvel = rng.uniform(-1, 1, (N, model.nq)), rng.uniform(-3, 3, (N, model.nv))
    if name == "hopper":
        qpos, qvel = qpos * 0.1, qvel * 0.3
    action = rng.uniform(-1.5, 1.5, (N, model.nu))
    state = system.step(qpos, qvel, action)
    for row in range(N):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = qpos[row], qvel[row]
        data.ctrl[:] = np.clip(action[row], -1, 1) * (2 if name == "pendulum" else 1)
        for _ in range(round(system.env.control_dt / model.opt.timestep)):
            mujoco.mj_step(model, data)
        np.testing.assert_allclose(state.pipeline_state.qpos[row], data.qpos, atol=1e-4)
        np.testing.assert_allclose(state.pipeline_state.qvel[row], data.qvel, atol=5e-3)
        np.testing.assert_allclose(state.obs[row], known(name, data.qpos, data.qvel), atol=5e-3)
        if name != "hopper":
            assert 0 <= state.reward[row] <= 1
    np.testing.assert_array_equal(state.metrics["broken"], 0)


@pytest.mark.parametrize("name", SIZES)
def test_resets(systems, name):
    state = jax.device_get(systems[name].fresh)
    qpos, qvel = state.pipeline_state.qpos, state.pipeline_state.qvel
    for row in range(N):
        np.testing.assert_allclose(state.obs[row], known(name, qpos[row], qvel[row]), atol=1e-6)
    assert (np.ptp(qpos, axis=0) > 0).all()
    assert not state.done.any()
    assert not state.reward.any()
    middle = {"cart-pole-swing-up": [0, np.pi], "double-cart-pole": [0, np.pi, 0]}.get(name, 0)
    spread = {"pendulum": np.pi, "cart-pole-balance": 0.05, "hopper": 0.005}.get(name, 0.1)
    assert np.abs(qpos - middle).max() <= spread + 1e-6
    assert np.abs(qvel).max() <= min(spread, 0.1) + 1e-6


def test_pendulum_reward(systems):
    """Up at rest 1, hanging 0; a full torque costs a tenth; a fast pole up to half."""
    state = systems["pendulum"].step([[np.pi], [0], [np.pi]], [[0], [0], [30]], [[0], [0], [0]])
    np.testing.assert_allclose(state.reward[:2], [1, 0], atol=1e-4)
    angle, rate = state.pipeline_state.qpos[2, 0], state.pipeline_state.qvel[2, 0]
    assert abs(rate) > 20
    np.testing.assert_allclose(state.reward[2], (1 - np.cos(angle)) / 2 * 0.5, atol=1e-4)
    np.testing.assert_allclose(state.metrics["upright"][:2], [1, 0], atol=1e-4)
    pushed = systems["pendulum"].step([[np.pi]], [[0]], [[1]])
    q, v = pushed.pipeline_state.qpos[0, 0], pushed.pipeline_state.qvel[0, 0]
    wanted = (1 - np.cos(q)) / 2 * 0.9 * (0.5 + 0.5 * np.exp(-0.1 * v**2))
    np.testing.assert_allclose(pushed.reward[0], wanted, rtol=1e-5)


@pytest.mark.parametrize("name", ["cart-pole-balance", "cart-pole-swing-up", "double-cart-pole"])
def test_cart_pole_reward(systems, name):
    """Upright, centred, at rest: 1. Hanging: 0. A full push costs a fifth; off the middle, or fast, up to half."""
    poles = systems[name].env.mj_model.nq - 1
    up, hanging = [0.0] * poles, [np.pi] + [0.0] * (poles - 1)
    qpos = [[0, *up], [0, *hanging], [1.0, *up], [0, *up]]
    state = systems[name].step(qpos, np.zeros((4, poles + 1)), [[0], [0], [0], [1]])
    np.testing.assert_allclose(state.reward[:2], [1, 0], atol=1e-4)
    np.testing.assert_allclose(state.reward[2], (1 + np.exp(-0.5)) / 2, atol=1e-3)
    q, v = state.pipeline_state.qpos[3], state.pipeline_state.qvel[3]
    upright = np.mean((1 + np.cos(np.cumsum(q[1:]))) / 2)
    centred, slow = (1 + np.exp(-0.5 * q[0] ** 2)) / 2, (1 + np.exp(-2 * (np.abs(v[1:]).max() / 5) ** 2)) / 2
    np.testing.assert_allclose(state.reward[3], upright * centred * slow * 0.8, rtol=1e-4)
    if poles == 2:  # one up, one down: half
        mixed = systems[name].step([[0, 0, np.pi]], np.zeros((1, 3)), [[0]])
        np.testing.assert_allclose(mixed.metrics["upright"][0], 0.5, atol=1e-3)


def test_only_balancing_can_fail(systems):
    qpos = [[0, 0.7], [0, -0.7], [0, 0.9], [0, -0.9]]
    state = systems["cart-pole-balance"].step(qpos, np.zeros((4, 2)), np.zeros((4, 1)))
    np.testing.assert_array_equal(state.done[:4], [0, 0, 1, 1])
    state = systems["cart-pole-swing-up"].step(qpos, np.zeros((4, 2)), np.zeros((4, 1)))
    assert not state.done.any()


def test_hopper_reward_and_falls(systems):
    """Forward velocity, 1 for being up, less a thousandth of the squared actions."""
    qpos = np.zeros((6, 6))
    qpos[1, 1], qpos[2, 1] = -0.46, -0.42  # a fall by height, or not, in the air with a bent leg below
    qpos[1:3, 3:5] = [0.9, -1.8]
    qpos[3:5, 1] = 1.0  # in the air
    qpos[3, 2], qpos[4, 2] = 0.65, -0.65  # falls by pitch
    qvel = np.zeros((6, 6))
    qvel[5, 0] = 1.5
    qpos[5, 1] = 1.0
    action = np.zeros((6, 3))
    action[5] = [0.0, 0.0, 0.5]
    state = systems["hopper"].step(qpos, qvel, action)
    np.testing.assert_array_equal(state.done[:6], [0, 1, 0, 1, 1, 0])
    moved = (state.pipeline_state.qpos[:6, 0] - qpos[:, 0]) / 0.01
    healthy = 1 - state.done[:6]
    np.testing.assert_allclose(state.reward[:6], moved + healthy - 1e-3 * (action**2).sum(1), atol=1e-3)
    assert state.reward[5] > 2
    np.testing.assert_allclose(state.metrics["velocity"][:6], moved, atol=1e-3)


@pytest.mark.parametrize("name", SIZES)
def test_broken_physics(systems, name):
    system = systems[name]
    nq, nv, nu = system.env.mj_model.nq, system.env.mj_model.nv, system.env.mj_model.nu
    qpos = np.zeros((2, nq))
    qpos[1, 0] = np.nan
    state = system.step(qpos, np.zeros((2, nv)), np.zeros((2, nu)))
    np.testing.assert_array_equal(state.metrics["broken"][:2], [0, 1])
    assert state.done[1] == 1
    for leaf in jax.tree.leaves((state.obs, state.reward, state.done, state.metrics)):
        assert np.isfinite(leaf).all()
