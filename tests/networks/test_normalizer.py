import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from galvanax.networks import Normalizer, Statistic


def test_identity_until_set():
    np.testing.assert_array_equal(Normalizer(2).normalize(jnp.array([3.0, -4.0])), [3, -4])


def test_whitens_and_comes_back():
    data = np.random.default_rng(0).normal([1e3, -2.0], [5.0, 1e-3], (1000, 2))
    normalizer = Normalizer(2)
    normalizer.set(data.mean(0), data.std(0))
    white = normalizer.normalize(jnp.asarray(data, jnp.float32))
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(white.std(0), 1, atol=1e-3)
    np.testing.assert_allclose(normalizer.denormalize(white), data, rtol=1e-5)


@pytest.mark.behaviour("reports 32")
@pytest.mark.parametrize("rounding", [0.0, 1e-5])
def test_constant_dimension_neither_divides_by_zero_nor_explodes(rounding):
    normalizer = Normalizer(2)
    normalizer.set(np.array([100.0, 0.0]), np.array([rounding, 1.0]))
    seen, later = normalizer.normalize(jnp.array([[100.0, 0.0], [100.5, 0.0]]))
    np.testing.assert_allclose(seen, 0)
    np.testing.assert_allclose(later, [0.5, 0])
    assert np.all(np.isfinite(jax.jacobian(normalizer.normalize)(jnp.ones(2))))


def test_statistics_are_saved_but_not_trained():
    normalizer = Normalizer(2)
    normalizer.set(np.ones(2), np.ones(2))
    assert not jax.tree.leaves(nnx.state(normalizer, nnx.Param))
    statistics = jax.tree.leaves(nnx.state(normalizer, Statistic))
    assert [leaf.dtype for leaf in statistics] == [jnp.float32, jnp.float32]


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (np.zeros(3), np.ones(2), r"mean has shape \(3,\); expected \(2,\)"),
        (np.zeros(2), np.array([1.0, np.nan]), r"std\[1\]=nan"),
        (np.zeros(2), np.array([-1.0, 1.0]), r"std\[0\]=-1.0"),
    ],
)
def test_bad_statistics(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Normalizer(2).set(mean, std)
