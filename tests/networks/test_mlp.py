import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from galvanax.networks import MLP


def test_is_its_formula():
    network = MLP(2, (3,), 1, activation="tanh", rngs=nnx.Rngs(0))
    first, last = network.layers
    inputs = np.random.default_rng(0).normal(size=(4, 5, 2)).astype(np.float32)
    hidden = np.tanh(inputs @ first.kernel[...] + first.bias[...])
    np.testing.assert_allclose(network(inputs), hidden @ last.kernel[...] + last.bias[...], atol=1e-6)


def test_without_hidden_layers_it_is_affine():
    network = MLP(2, (), 3, rngs=nnx.Rngs(0))
    zero, one = network(jnp.zeros(2)), network(jnp.ones(2))
    np.testing.assert_allclose(network(3 * jnp.ones(2)), zero + 3 * (one - zero), atol=1e-5)


def test_unknown_activation():
    with pytest.raises(ValueError, match=r"activation='swich'.*did you mean 'swish'"):
        MLP(2, (3,), 1, activation="swich", rngs=nnx.Rngs(0))
