"""The cart before the edge: what it sees by plain geometry, what it is paid, when it falls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import galvanax as gx
from galvanax.envs.classic.ledge import Ledge


@pytest.fixture(scope="module")
def env():
    return gx.envs.load("ledge")


def image(cart, edge):
    """Depth by hand: each ray meets the platform before its edge, or the floor 1 m below it, or nothing within 5 m."""
    angle, half = np.radians(35), np.tan(np.radians(35))
    forward, up = np.array([np.cos(angle), 0, -np.sin(angle)]), np.array([np.sin(angle), 0, np.cos(angle)])
    eye, seen = np.array([cart - 0.2, 0, 0.5]), np.full((16, 8), 5.0)
    for row in range(16):
        for column in range(8):
            across, along = (2 * column + 1) / 8 - 1, 1 - (2 * row + 1) / 16
            ray = forward + half * along * up + half * 8 / 16 * across * np.array([0, -1, 0])
            for height, end in ((0.0, edge), (-1.0, np.inf)):
                depth = (eye[2] - height) / -ray[2] if ray[2] < 0 else np.inf
                x, y = eye[:2] + depth * ray[:2]
                if x <= end and (np.isinf(end) or abs(y) <= 1):
                    seen[row, column] = min(seen[row, column], depth)
    return seen


@pytest.fixture(scope="module")
def step(env):
    return jax.jit(env.step)


@pytest.fixture(scope="module")
def start(env):
    return jax.jit(env.reset)(jax.random.key(0))


def at(start, cart, edge, speed=0.0):
    qpos, qvel = jnp.array([cart, edge]), jnp.array([speed, 0.0])
    return start.replace(pipeline_state=start.pipeline_state.replace(qpos=qpos, qvel=qvel))


@pytest.mark.parametrize(("cart", "edge"), [(0.0, 1.0), (0.0, 3.0), (0.8, 1.05)])
def test_what_it_sees(start, step, cart, edge):
    """A step without a push leaves it where it is."""
    after = step(at(start, cart, edge), jnp.zeros(1))
    expected = image(cart, edge)
    off = np.abs(np.asarray(after.obs["depth"]) - expected) > 0.01
    assert off.mean() < 0.02  # a ray at the very edge may fall on either side
    assert np.ptp(expected) > 3
    np.testing.assert_allclose(after.obs["state"], [cart, 0.0], atol=1e-6)


def test_rewards_and_falls(start, step):
    near = step(at(start, 1.8, 2.0), jnp.zeros(1))
    assert (near.reward, near.done, near.metrics["at_edge"]) == (pytest.approx(0.5, rel=1e-4), 0, 1)
    far = step(at(start, 0.0, 2.0), jnp.zeros(1))
    assert (far.reward, far.metrics["at_edge"]) == (pytest.approx(1 / 101, rel=1e-4), 0)
    assert step(at(start, 1.8, 2.0, speed=0.5), jnp.zeros(1)).metrics["at_edge"] == 0  # it doesn't stand
    fallen = step(at(start, 1.99, 2.0, speed=2.0), jnp.zeros(1))
    assert (fallen.reward, fallen.done) == (0, 1)


def test_the_edge_is_anywhere_in_its_range_and_stays(env, start, step):
    edges = np.asarray(jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(1), 300)).data.qpos[:, 1])
    assert 1.0 <= edges.min() < 1.1 < 2.9 < edges.max() <= 3.0
    state = start
    for _ in range(10):
        state = step(state, jnp.ones(1))
    assert state.data.qpos[1] == start.data.qpos[1]
    assert state.data.qpos[0] > 0.3


def test_settings():
    blind = Ledge(vision=None)
    assert blind.observation_size == 2
    for changes, told in (({"edge": (2.0, 1.0)}, r"Ledge.edge=\(2.0, 1.0\)"), ({"camera": "ahed"}, "Nearest: ahead")):
        env = Ledge()
        if "camera" in changes:
            changes = {"vision": dataclasses.replace(env.vision, **changes)}
        with pytest.raises(gx.ConfigError, match=told):
            dataclasses.replace(env, **changes).check()
