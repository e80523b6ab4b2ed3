import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from galvanax.networks import BaseDynamicsModel, MLPDynamicsModel
from galvanax.physics import StateLayout

# One angle and one free rotation: nq = 5, nv = 4.
LAYOUT = StateLayout(nq=5, nv=4, angles=(0,), quaternions=((1, 1),))


class Falling(BaseDynamicsModel):
    def __call__(self, state, action):
        return jnp.zeros_like(state[..., self.layout.nq :]) + action


def statistics(dim):
    return np.arange(dim) + 1.0, np.arange(dim) + 2.0


def test_step_integrates_the_prediction():
    model = Falling(StateLayout(nq=2, nv=2), action_dim=1, dt=0.1)
    state = model.step(jnp.array([[1.0, 2.0, 3.0, 4.0]]), jnp.array([[10.0]]))
    np.testing.assert_allclose(state, [[1.4, 2.5, 4.0, 5.0]], rtol=1e-6)


def test_inputs_are_normalised_except_bounded_ones():
    model = Falling(LAYOUT, action_dim=2, dt=0.1)
    model.set_statistics(statistics(9), statistics(2), statistics(4))
    state = np.array([0.5, 1.0, 0, 0, 0, 6, 7, 8, 9], np.float32)
    velocities = (np.array([6, 7, 8, 9]) - np.array([6, 7, 8, 9])) / np.array([7, 8, 9, 10])
    expected = [np.cos(0.5), np.sin(0.5), *np.eye(3).ravel(), *velocities, (5 - 1) / 2, (8 - 2) / 3]
    inputs = model.inputs(jnp.asarray(state), jnp.array([5.0, 8.0]))
    np.testing.assert_allclose(inputs, expected, atol=1e-6)
    assert model.input_dim == len(expected)


def test_mlp_predicts_in_natural_units():
    model = MLPDynamicsModel(LAYOUT, 2, 0.1, (8,), rngs=nnx.Rngs(0))
    state, action = jnp.ones((3, 7, 9)), jnp.ones((3, 7, 2))
    before = model(state, action)
    assert before.shape == (3, 7, 4)
    assert model.step(state, action).shape == (3, 7, 9)
    model.acceleration.set(*statistics(4))
    mean, std = statistics(4)
    np.testing.assert_allclose(model(state, action), before * std + mean, rtol=1e-5)


def test_call_must_be_defined():
    with pytest.raises(NotImplementedError, match="BaseDynamicsModel must define __call__"):
        BaseDynamicsModel(LAYOUT, 1, 0.1)(jnp.zeros(9), jnp.zeros(1))
