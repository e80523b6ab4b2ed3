import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from galvanax.physics import StateLayout, integrate_positions, semi_implicit_euler


def random_positions(model, seed):
    rng = np.random.default_rng(seed)
    qpos = rng.normal(size=model.nq)
    for place in (3, 7):
        qpos[place : place + 4] /= np.linalg.norm(qpos[place : place + 4])
    return qpos, rng.normal(size=model.nv), rng.normal(size=model.nv)


@pytest.mark.behaviour("reports 15")
def test_positions_move_as_in_mujoco(mixed):
    layout = StateLayout.from_model(mixed)
    cases = [random_positions(mixed, seed) for seed in range(4)]
    qpos, qvel, _ = (np.stack(parts) for parts in zip(*cases, strict=True))
    qvel[0] = 0
    expected = qpos.copy()
    for row, rates in zip(expected, qvel, strict=True):
        mujoco.mj_integratePos(mixed, row, rates, 0.7)
    moved = integrate_positions(layout, jnp.asarray(qpos), jnp.asarray(qvel), 0.7)
    np.testing.assert_allclose(moved, expected, atol=2e-6)


def test_positions_move_with_the_new_velocity(mixed):
    layout = StateLayout.from_model(mixed)
    qpos, qvel, acceleration = random_positions(mixed, 7)
    expected = qpos.copy()
    mujoco.mj_integratePos(mixed, expected, qvel + 0.1 * acceleration, 0.1)
    state = semi_implicit_euler(layout, jnp.concatenate([qpos, qvel]), jnp.asarray(acceleration), 0.1)
    np.testing.assert_allclose(state, np.concatenate([expected, qvel + 0.1 * acceleration]), atol=2e-6)


@pytest.mark.behaviour("reports 15")
def test_gradient_at_rest(mixed):
    """A turning rate ω moves an upright quaternion by (0, ω dt / 2): at rest, too, the gradient must say so."""
    layout = StateLayout.from_model(mixed)
    qpos = jnp.asarray(mixed.qpos0, jnp.float32)
    jacobian = jax.jacobian(lambda qvel: integrate_positions(layout, qpos, qvel, 0.5))(jnp.zeros(mixed.nv))
    assert np.all(np.isfinite(jacobian))
    np.testing.assert_allclose(jacobian[3:7, 3:6], np.vstack([np.zeros(3), 0.25 * np.eye(3)]), atol=1e-6)


def test_gradient_of_difference_at_zero(mixed):
    layout = StateLayout.from_model(mixed)
    state = jnp.concatenate([jnp.asarray(mixed.qpos0, jnp.float32), jnp.zeros(mixed.nv)])
    jacobian = jax.jacobian(layout.difference)(state, state)
    assert np.all(np.isfinite(jacobian))
    np.testing.assert_allclose(jacobian[3:6, 4:7], 2 * np.eye(3), atol=1e-6)


def test_gradient_is_the_slope(mixed):
    layout = StateLayout.from_model(mixed)
    qpos, qvel, acceleration = (jnp.asarray(part, jnp.float32) for part in random_positions(mixed, 3))
    state, direction = jnp.concatenate([qpos, qvel]), jnp.cos(jnp.arange(11.0))

    def moved(amount):
        return semi_implicit_euler(layout, state, acceleration + amount * direction, 0.3)

    slope = jax.jvp(moved, (0.0,), (1.0,))[1]
    np.testing.assert_allclose(slope, (moved(0.05) - moved(-0.05)) / 0.1, atol=2e-4)
