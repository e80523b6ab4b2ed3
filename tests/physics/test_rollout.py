import jax
import jax.numpy as jnp
import numpy as np
import pytest

from galvanax import ConfigError, DataError
from galvanax.physics import MJXSystem, PendulumSystem, mujoco_rollout, rollout
from galvanax.physics.implicit_step import SOLUTION
from galvanax.physics.rollout import CHECKPOINTS

SYSTEM = PendulumSystem()


def random_inputs(*lead, horizon=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*lead, 2)).astype(np.float32), rng.uniform(-1, 1, (*lead, horizon, 1)).astype(np.float32)


def test_rows_are_the_start_and_then_the_steps():
    x0, actions = random_inputs()
    states = rollout(SYSTEM, x0, actions)
    assert states.shape == (8, 2)
    np.testing.assert_array_equal(states[0], x0)
    state = x0
    for action, expected in zip(actions, states[1:], strict=True):
        state = SYSTEM.step(state, action)
        np.testing.assert_allclose(state, expected, rtol=1e-6, atol=1e-6)


def test_leading_axes():
    x0, actions = random_inputs(3, 4)
    states = jax.jit(lambda x0, actions: rollout(SYSTEM, x0, actions))(x0, actions)
    assert states.shape == (3, 4, 8, 2)
    for i, j in ((0, 0), (2, 3)):
        np.testing.assert_allclose(states[i, j], rollout(SYSTEM, x0[i, j], actions[i, j]), rtol=1e-5, atol=1e-6)
    # One start for many sequences, one sequence for many starts, and under vmap.
    np.testing.assert_allclose(rollout(SYSTEM, x0[0, 0], actions)[0, 0], states[0, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rollout(SYSTEM, x0, actions[2, 3])[2, 3], states[2, 3], rtol=1e-5, atol=1e-6)
    inner = jax.vmap(lambda x0, actions: rollout(SYSTEM, x0, actions))
    np.testing.assert_allclose(inner(x0, actions), states, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("horizon", [1, 2, 3, 7, 9, 16])
def test_checkpoints_change_no_value(horizon):
    x0, actions = random_inputs(2, horizon=horizon)

    def evaluate(checkpoint):
        loss = lambda x0, actions: jnp.sum(rollout(SYSTEM, x0, actions, checkpoint=checkpoint) ** 2)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, (0, 1)))(x0, actions)

    results = [evaluate(checkpoint) for checkpoint in CHECKPOINTS]
    for result in results[1:]:
        for found, expected in zip(jax.tree.leaves(result), jax.tree.leaves(results[0]), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_central_differences():
    with jax.enable_x64(True):
        x0, actions = (jnp.asarray(part, float) for part in random_inputs())
        target = lambda x0, actions: rollout(SYSTEM, x0, actions, checkpoint="segment")[-1] @ jnp.array([1.0, 0.3])  # noqa: E731
        gradients = jax.grad(target, (0, 1))(x0, actions)
        for index in range(7):
            nudge = jnp.zeros_like(actions).at[index, 0].set(1e-6)
            slope = (target(x0, actions + nudge) - target(x0, actions - nudge)) / 2e-6
            np.testing.assert_allclose(gradients[1][index, 0], slope, rtol=1e-7)
        for index in range(2):
            nudge = jnp.zeros(2).at[index].set(1e-6)
            slope = (target(x0 + nudge, actions) - target(x0 - nudge, actions)) / 2e-6
            np.testing.assert_allclose(gradients[0][index], slope, rtol=1e-7)


def test_types():
    x0, actions = random_inputs()
    assert rollout(SYSTEM, np.zeros(2, int), actions).dtype == jnp.float32
    assert rollout(SYSTEM, x0, jnp.asarray(actions, jnp.bfloat16)).dtype == jnp.float32
    assert rollout(SYSTEM, jnp.asarray(x0, jnp.bfloat16), actions).dtype == jnp.bfloat16


def test_the_backward_pass_solves_no_contact_again():
    """MJX's solver is in the forward pass alone: what it found is kept."""
    system = MJXSystem("cart-pole", 0.02, iterations=2)

    def loops(checkpoint):
        loss = lambda actions: rollout(system, jnp.zeros(4), actions, checkpoint=checkpoint).sum()  # noqa: E731
        text = str(jax.make_jaxpr(jax.grad(loss))(jnp.zeros((4, 1))))
        assert f"name[name={SOLUTION}]" in text
        return text.count(" while[")

    assert loops("step") == loops("none") == 1


def test_a_rollout_is_mujocos():
    system = MJXSystem("cart-pole", 0.02)
    rng = np.random.default_rng(0)
    x0, actions = rng.normal(size=(3, 4)) * 0.5, rng.uniform(-1, 1, (3, 6, 1))
    states = jax.jit(lambda x0, actions: rollout(system, x0, actions))(x0, actions)
    assert system.mj_model.actuator_ctrlrange[0, 1] == 1
    np.testing.assert_allclose(states, mujoco_rollout(system.mj_model, x0, actions, 0.02), atol=1e-4)


@pytest.mark.parametrize(
    ("x0", "actions", "message"),
    [
        ((3,), (4, 1), r"x0 has shape \(3,\); expected \(..., 2\), the system's state_dim"),
        ((2,), (4, 2), r"actions have shape \(4, 2\); expected \(..., horizon, 1\)"),
        ((2,), (1,), r"actions have shape \(1,\)"),
        ((5, 2), (3, 4, 1), r"leading axes \(5,\) and \(3,\) differ"),
    ],
)
def test_errors(x0, actions, message):
    with pytest.raises(DataError, match=message):
        rollout(SYSTEM, np.zeros(x0), np.zeros(actions))


def test_unknown_checkpoint():
    with pytest.raises(ConfigError, match=r"checkpoint='all'; expected one of none, step, segment"):
        rollout(SYSTEM, np.zeros(2), np.zeros((4, 1)), checkpoint="all")
