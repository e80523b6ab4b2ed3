"""Averages of parameters of 16 bits."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import LineTask, casts_to_float16, line_data

import galvanax as gx


@dataclasses.dataclass(frozen=True)
class Jump(LineTask):
    """Its weight is 1 for 200 steps, and 1.5 afterwards."""

    dtype: str = "float32"

    def build_model(self, rngs):
        return nnx.Linear(1, 1, use_bias=False, param_dtype=jnp.dtype(self.dtype), rngs=rngs)

    def build_optimizer(self, num_steps):
        return optax.sgd(0.0)

    def train_step(self, state, batch, rng):
        params = {
            name: jnp.where(state.step < 200, 1.0, 1.5).astype(a.dtype) + 0 * a for name, a in state.params.items()
        }
        return state.replace(params=params), {"loss": jnp.float32(0)}


@pytest.mark.behaviour("reports 14")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_average_moves(tmp_path, dtype):
    """By a thousandth of half a unit a step: less than 16 bits tell apart. Against the recurrence in float64."""
    if dtype == "float16" and not casts_to_float16():
        pytest.skip("XLA can't cast to float16 with these instructions")
    trainer = gx.Trainer(max_steps=600, run_dir=tmp_path, callbacks=[gx.EMA(0.999)])
    result = trainer.fit(Jump(dtype=dtype), line_data())
    expected = None
    for step in range(1, 601):
        weight, keep = 1.0 if step <= 200 else 1.5, min(0.999, (1 + step) / (10 + step))
        expected = weight if expected is None else keep * expected + (1 - keep) * weight
    average = result.state.slots["EMA"]["kernel"]
    assert average.dtype == jnp.float32
    np.testing.assert_allclose(average, expected, rtol=1e-5)
    # What evaluates is of the model's own type.
    kernel = result.model.kernel[...]
    assert kernel.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(kernel.astype(np.float32), expected, rtol=4e-3)
    loaded = Jump.load(tmp_path)[1].kernel[...]
    np.testing.assert_array_equal(loaded, kernel)
