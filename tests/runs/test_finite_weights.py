"""Weights that are NaN or infinite end the run, are never saved, and never take the place of good ones."""

import dataclasses
from pathlib import Path

import grain
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import LineTask, line_data

import galvanax as gx


@dataclasses.dataclass(frozen=True)
class Breaks(LineTask):
    """Its weights become NaN or infinite at a step, and no metric shows it."""

    at: int = 15
    value: float = float("nan")

    def train_step(self, state, batch, rng):
        state, _ = super().train_step(state, batch, rng)
        params = {name: jnp.where(state.step + 1 >= self.at, self.value, array) for name, array in state.params.items()}
        return state.replace(params=params), {"loss": jnp.float32(1.0)}

    def evaluate(self, model, batch, rng):
        return {"loss": jnp.float32(1.0)}


def fit(folder, task, steps=40, every=5, k=4, **settings):
    saving = gx.Checkpoint(every=gx.Steps(every), **settings)
    trainer = gx.Trainer(max_steps=steps, run_dir=folder, steps_per_dispatch=k, callbacks=[gx.EMA(0.9), saving])
    return trainer.fit(task, line_data())


def saved(folder):
    return sorted(int(path.name) for path in Path(folder, "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.behaviour("reports 2")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("every", [1, 5])
def test_the_last_good_one_stands(tmp_path, value, every):
    with pytest.raises(gx.NonFiniteError, match=r"params/kernel became NaN or infinite .*15; the loss was 1\."):
        fit(tmp_path, Breaks(value=value), every=every)
    last = 14 if every == 1 else 10
    assert saved(tmp_path) == [last]
    assert np.isfinite(Breaks.load(tmp_path)[1].kernel[...]).all()


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("k", [1, 7])
def test_at_the_very_last_step(tmp_path, folder, k):
    with pytest.raises(gx.NonFiniteError, match="params/kernel became NaN"):
        fit(tmp_path, Breaks(at=20), steps=20, k=k) if folder else gx.Trainer(max_steps=20, steps_per_dispatch=k).fit(
            Breaks(at=20), line_data()
        )
    if folder:
        assert saved(tmp_path) == [15]


@pytest.mark.behaviour("reports 2")
def test_a_gradient_that_is_nan_while_the_loss_is_finite(tmp_path):
    """The step is named by the gradients' norm; the checkpoint of the step before stands."""

    @dataclasses.dataclass(frozen=True)
    class Task(LineTask):
        def loss(self, model, batch, rng):
            loss, metrics = super().loss(model, batch, rng)
            # A root's slope at 0 is infinite, and times 0 NaN; its value is 0. Where it is of 1, all is well.
            weight = model.kernel[0, 0] * 0
            return loss + weight * jnp.sqrt(weight + batch["safe"].min()), metrics

    def batch(step):
        x = np.ones((8, 1), np.float32)
        return {"x": x, "y": x, "safe": np.full(8, step != 13, np.float32)}

    class InOrder(gx.DataModule):
        def train_dataset(self, seed):
            return grain.MapDataset.source([batch(step) for step in range(1, 21)])

    saving = gx.Checkpoint(every=gx.Steps(1), keep_last=1)
    trainer = gx.Trainer(max_steps=20, run_dir=tmp_path, callbacks=[saving])
    with pytest.raises(gx.NonFiniteError, match="params/kernel became NaN or infinite at step 13;"):
        trainer.fit(Task(1e-3), InOrder())
    assert saved(tmp_path) == [12]
    assert np.isfinite(Task.load(tmp_path)[1].kernel[...]).all()


def test_statistics_of_the_model_count_as_weights(tmp_path):
    class Count(nnx.Variable):
        pass

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.line = nnx.Linear(1, 1, rngs=rngs)
            self.seen, self.least = Count(jnp.zeros(())), Count(jnp.full((), jnp.inf))

        def __call__(self, x):
            self.seen.set_value(self.seen.get_value() * 1e10 + 1)
            self.least.set_value(jnp.minimum(self.least.get_value(), x.min()))
            return self.line(x)

    @dataclasses.dataclass(frozen=True)
    class Task(LineTask):
        def build_model(self, rngs):
            return Model(rngs)

        def evaluate(self, model, batch, rng):
            return {"loss": jnp.float32(1.0)}

    # 1e40 is past float32; that `least` is infinite before the first step is as it should be.
    with pytest.raises(gx.NonFiniteError, match="variables/seen became NaN or infinite at step 5;"):
        fit(tmp_path, Task(), every=1, k=1)
    assert saved(tmp_path) == [4]


def test_what_the_optimizer_holds_back_is_no_error(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Task(LineTask):
        def build_optimizer(self, num_steps):
            return optax.apply_if_finite(optax.sgd(1e-3), 10**6)

        def train_step(self, state, batch, rng):
            grads = {name: jnp.where(state.step == 7, jnp.nan, array) for name, array in state.params.items()}
            return state.apply_gradients(grads), {"loss": jnp.float32(1.0)}

    assert int(fit(tmp_path, Task(), steps=20).state.step) == 20
