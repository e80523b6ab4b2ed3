"""Rules 1 to 3 of the compiled step: one program, exact hooks, no host sync; and rule 4, randomness."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import LineTask, NetTask, Recorder, arrays_of, assert_same_state, line_data, net_data

import galvanax as gx

STEPS = 43
HOOKS = (1, 5, 6, 20, 33)


def train(steps_per_dispatch, seed=0, callbacks=(), run_dir=None):
    recorder = Recorder(HOOKS)
    trainer = gx.Trainer(
        max_steps=STEPS,
        seed=seed,
        run_dir=run_dir,
        steps_per_dispatch=steps_per_dispatch,
        val_every=gx.Steps(13),
        callbacks=[gx.GradientClipping(1.0), gx.EMA(0.9), recorder, *callbacks],
    )
    return trainer.fit(NetTask(), net_data()), recorder


@pytest.fixture(scope="module")
def unfused():
    return train(1)


@pytest.mark.parametrize("steps_per_dispatch", [7, 32, None])
def test_fused_and_unfused_runs_are_the_same_bits(unfused, steps_per_dispatch):
    result, recorder = train(steps_per_dispatch)
    assert_same_state(result.state, unfused[0].state)
    assert recorder.train == unfused[1].train
    assert recorder.validations == unfused[1].validations
    for step, params in recorder.states.items():
        for name, value in params.items():
            np.testing.assert_array_equal(value, unfused[1].states[step][name])


@pytest.mark.parametrize("steps_per_dispatch", [1, 32])
def test_hooks_see_exactly_their_steps(steps_per_dispatch):
    _, recorder = train(steps_per_dispatch)
    assert recorder.seen == list(HOOKS)
    assert sorted(recorder.train) == list(range(1, STEPS + 1))
    assert sorted(recorder.validations) == [13, 26, 39, STEPS]


def test_one_train_program_in_the_whole_fit(caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        _, recorder = train(None)
    compiled = [r.message for r in caplog.records if "Finished XLA compilation of jit(run_steps)" in r.message]
    assert len(compiled) == 1
    assert recorder.run.program._cache_size() == 1


def test_the_loop_is_clean_under_a_transfer_guard(tmp_path):
    class Guard(gx.Callback):
        """From the first dispatch to the last, logging and validation included."""

        def on_fit_start(self, run):
            jax.config.update("jax_transfer_guard", "disallow")

        def next_step(self, step):
            return STEPS

        def on_step(self, run):
            # The guard is awake: this is what it forbids.
            with pytest.raises(Exception, match="Disallowed"):
                jax.jit(jnp.sin)(np.ones(3))
            jax.config.update("jax_transfer_guard", "allow")

    logging_callbacks = [gx.CSVLogger(), gx.TensorBoardLogger(), gx.ProgressBar(), gx.EarlyStopping("val/loss", "min")]
    try:
        result, _ = train(8, callbacks=[*logging_callbacks, Guard()], run_dir=tmp_path)
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    assert int(result.state.step) == STEPS


@pytest.mark.behaviour("peers 34")
def test_seed_decides_everything(unfused):
    assert_same_state(train(32)[0].state, unfused[0].state)
    other = train(32, seed=1)[0].state
    assert any((a != b).any() for a, b in zip(arrays_of(other), arrays_of(unfused[0].state), strict=True))


def test_a_fit_is_gradient_descent_as_numpy_does_it():
    recorder = Recorder((1, 2, 10))
    gx.Trainer(max_steps=10, callbacks=[recorder], steps_per_dispatch=4).fit(LineTask(), line_data())
    batches = line_data().train_dataset(seed=0).repeat()
    # The first weight is a random number; all the others follow from it.
    first = recorder.states[1]["kernel"].item()
    w = first
    for index in range(1, 10):
        batch = batches[index]
        w -= 0.1 * np.mean(2 * (w * batch["x"] - batch["y"]) * batch["x"])
        if index + 1 in recorder.states:
            assert recorder.states[index + 1]["kernel"].item() == pytest.approx(w, rel=1e-5)
    assert w != pytest.approx(first, rel=0.1)


def test_noise_depends_on_seed_and_step_alone():
    class NoiseTask(LineTask):
        def loss(self, model, batch, rng):
            return jnp.mean(model(batch["x"]) * 0) + jax.random.normal(rng), {}

    recorders = [Recorder(), Recorder()]
    for recorder, k in zip(recorders, (1, 5), strict=True):
        gx.Trainer(max_steps=12, callbacks=[recorder], steps_per_dispatch=k).fit(NoiseTask(), line_data())
    assert recorders[0].train == recorders[1].train
    assert len(set(recorders[0].train.values())) == 12


@pytest.mark.behaviour("peers 156")
def test_bfloat16_computes_in_layers_and_keeps_float32_parameters():
    seen = []

    class DtypeTask(LineTask):
        def loss(self, model, batch, rng):
            prediction = model(batch["x"])
            seen.append((prediction.dtype, batch["x"].dtype))
            return jnp.mean((prediction - batch["y"]) ** 2), {}

    result = gx.Trainer(max_steps=200, precision="bfloat16").fit(DtypeTask(), line_data())
    assert set(seen) == {(jnp.dtype("bfloat16"), jnp.dtype("float32"))}
    assert result.state.params["kernel"].dtype == jnp.float32
    assert float(result.state.params["kernel"][0, 0]) == pytest.approx(3, abs=0.05)


@pytest.mark.behaviour("peers 142")
def test_batch_statistics_are_state():
    result = gx.Trainer(max_steps=1000).fit(NetTask(noise=0.0, dropout=0.0), net_data())
    variables = result.state.variables
    assert set(variables) == {"norm/mean", "norm/var"}
    # The running mean of tanh's input is that of the data under the last weights, roughly.
    x = net_data().train["x"]
    inputs = x @ result.state.params["first/kernel"] + result.state.params["first/bias"]
    np.testing.assert_allclose(variables["norm/var"], np.asarray(inputs).var(0), rtol=0.15)


def test_a_batch_is_any_pytree():
    class TupleTask(LineTask):
        def loss(self, model, batch, rng):
            (x, (y,)), index = batch
            return jnp.mean((model(x) - y) ** 2), {"index": index.astype(jnp.float32)}

    line = line_data().train
    arrays = ((line["x"], (line["y"],)), np.arange(64))
    result = gx.Trainer(max_steps=80).fit(TupleTask(), gx.ArrayDataModule(arrays, arrays, batch_size=8))
    assert result.metrics["val/loss"] < 1e-3
    assert result.metrics["val/index"] == 31.5


def test_a_task_may_own_its_step_and_its_carry():
    class CountingTask(LineTask):
        def init_carry(self, rng, datamodule):
            return {"rows": jnp.int32(0)}

        def train_step(self, state, batch, rng):
            state, metrics = super().train_step(state, batch, rng)
            rows = state.carry["rows"] + batch["x"].shape[0]
            return state.replace(carry={"rows": rows}), metrics | {"rows": rows}

    result = gx.Trainer(max_steps=10, log_every=1).fit(CountingTask(), line_data())
    assert int(result.state.carry["rows"]) == 80
    assert result.metrics["train/rows"] == 80


def test_optimizer_sees_the_number_of_steps():
    seen = []

    class ScheduleTask(LineTask):
        def build_optimizer(self, num_steps):
            seen.append(num_steps)
            return optax.sgd(0.1)

    gx.Trainer(max_epochs=3).fit(ScheduleTask(), line_data())
    gx.Trainer(max_epochs=3, max_steps=5).fit(ScheduleTask(), line_data())
    gx.Trainer(max_epochs=3, limit_train_batches=2).fit(ScheduleTask(), line_data())
    assert set(seen) == {24, 5, 6}
