"""Layers as users of flax put them together: a run goes on with the same bits, and what is loaded computes the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import LineTask, assert_same_state

import galvanax as gx


class Model(nnx.Module):
    """Shared layers and kernels, a list, LoRA, spectral norm, a recurrent layer, 16 bits, and an ensemble by vmap."""

    def __init__(self, rngs: nnx.Rngs):
        def linear(**settings):
            return nnx.Linear(2, 2, rngs=rngs, **settings)

        self.shared, self.half = linear(), linear(param_dtype=jnp.bfloat16)
        self.also_shared = self.shared
        self.same_kernel = linear()
        self.same_kernel.kernel = self.shared.kernel
        self.layers = nnx.List([linear(), nnx.Dropout(0.5, rngs=rngs)])
        self.lora = nnx.LoRA(2, 1, 2, base_module=linear(), rngs=rngs)
        self.spectral = nnx.SpectralNorm(linear(), rngs=rngs)
        self.recurrent = nnx.RNN(nnx.GRUCell(2, 2, rngs=rngs))
        self.members = nnx.vmap(lambda rngs: nnx.Linear(2, 1, rngs=rngs), in_axes=0)(rngs.split(3))

    def __call__(self, x: jax.Array) -> jax.Array:
        other = (self.lora, self.spectral, self.half)
        for layer in (self.shared, self.also_shared, self.same_kernel, *self.layers, *other):
            x = layer(x)
        x = self.recurrent(x[:, None])[:, 0]
        return nnx.vmap(lambda member, x: member(x), in_axes=(0, None))(self.members, x).mean(0)


@dataclasses.dataclass(frozen=True)
class ManyLayersTask(LineTask):
    def build_model(self, rngs):
        return Model(rngs)

    def build_optimizer(self, num_steps):
        return optax.adam(self.learning_rate)


@pytest.mark.behaviour("reports 10", "peers 146")
def test_it_goes_on_and_loads(tmp_path):
    x = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    data = gx.ArrayDataModule({"x": x, "y": x[:, :1]}, batch_size=4)

    def fit(steps, folder=None, resume=None):
        trainer = gx.Trainer(max_steps=steps, run_dir=folder, steps_per_dispatch=2, callbacks=[gx.EMA(0.9)])
        return trainer.fit(ManyLayersTask(), data, resume=resume)

    whole = fit(6)
    fit(4, tmp_path)
    result = fit(6, tmp_path, "last")
    assert_same_state(result.state, whole.state)
    model = ManyLayersTask.load(tmp_path)[1]
    np.testing.assert_array_equal(model(x), result.model(x))
    # What is shared is one array, not two.
    assert model.shared.kernel is model.also_shared.kernel
    assert model.shared.kernel is model.same_kernel.kernel
    assert sum("shared" in name or "same" in name for name in result.state.params) == 3  # a kernel and two biases
    assert result.state.params["members/kernel"].shape == (3, 2, 1)
    assert {"lora/lora_a", "lora/lora_b", "lora/base_module/kernel"} <= set(result.state.params)
    assert any(name.startswith("spectral/") for name in result.state.variables)
