"""Validation, test and prediction see every example once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import LineTask, NetTask, Recorder, line_data, net_data, regression

import galvanax as gx


def plain_evaluation(model, rows):
    """Numpy, in float64, without batches."""
    error = np.asarray(model(jnp.asarray(rows["x"])), np.float64) - rows["y"]
    return {"loss": np.mean(error**2), "mae": np.abs(error).mean()}


@pytest.fixture(scope="module")
def fitted():
    return gx.Trainer(max_steps=40).fit(NetTask(), net_data())


@pytest.mark.parametrize("batch_size", [1003, 128, 10])
def test_a_metric_does_not_depend_on_the_batch_size(fitted, batch_size):
    rows = regression(1003, seed=5)
    data = gx.ArrayDataModule(rows, val=rows, batch_size=batch_size)
    found = gx.Trainer(max_steps=1).validate(NetTask(), data, model=fitted.model)
    for name, value in plain_evaluation(fitted.model, rows).items():
        assert found[f"val/{name}"] == pytest.approx(value, rel=1e-6)


def test_a_loss_that_is_a_mean_is_exact_without_an_evaluate_of_its_own():
    rows = {"x": np.arange(11, dtype=np.float32)[:, None], "y": np.zeros((11, 1), np.float32)}
    data = gx.ArrayDataModule(rows, val=rows, batch_size=4)
    result = gx.Trainer(max_steps=1).fit(LineTask(0.0), data)
    weight = result.state.params["kernel"].item()
    assert result.metrics["val/loss"] == pytest.approx(np.mean((weight * np.arange(11)) ** 2), rel=1e-6)


def test_predictions_come_in_order_and_without_padding(fitted):
    data = net_data(val=50, batch_size=32)
    found = gx.Trainer(max_steps=1).predict(NetTask(), data, model=fitted.model)["y"]
    np.testing.assert_allclose(found, fitted.model(data.test["x"]), rtol=1e-5, atol=1e-6)


def test_evaluation_has_no_dropout_and_no_effect_on_training():
    every, never = Recorder(), Recorder()
    often = gx.Trainer(max_steps=20, val_every=gx.Steps(1), callbacks=[every]).fit(NetTask(), net_data())
    data = net_data()
    data.val = None
    rarely = gx.Trainer(max_steps=20, callbacks=[never]).fit(NetTask(), data)
    assert every.train == never.train
    assert len(every.validations) == 20
    assert not never.validations
    expected = plain_evaluation(often.model, net_data().val)["loss"]
    assert often.metrics["val/loss"] == pytest.approx(expected, rel=1e-5)
    assert "val/loss" not in rarely.metrics


def test_limits():
    data = net_data(val=50, batch_size=16)
    trainer = gx.Trainer(max_steps=2, limit_val_batches=2, limit_test_batches=1, limit_predict_batches=1)
    result = trainer.fit(NetTask(), data)
    first = {name: rows[:32] for name, rows in data.val.items()}
    assert result.metrics["val/loss"] == pytest.approx(plain_evaluation(result.model, first)["loss"], rel=1e-5)
    first = {name: rows[:16] for name, rows in data.test.items()}
    found = trainer.test(NetTask(), data, model=result.model)
    assert found["test/loss"] == pytest.approx(plain_evaluation(result.model, first)["loss"], rel=1e-5)
    assert len(trainer.predict(NetTask(), data, model=result.model)["y"]) == 16


def test_val_every_is_typed():
    counts = {}
    for every in (gx.Steps(5), gx.Epochs(1), gx.Epochs(2)):
        recorder = Recorder()
        gx.Trainer(max_epochs=4, val_every=every, callbacks=[recorder]).fit(LineTask(), line_data())
        counts[every] = sorted(recorder.validations)
    assert counts == {
        gx.Steps(5): [5, 10, 15, 20, 25, 30, 32],
        gx.Epochs(1): [8, 16, 24, 32],
        gx.Epochs(2): [16, 32],
    }


def test_fast_dev_run_tries_everything_and_leaves_no_file(tmp_path):
    recorder = Recorder()
    callbacks = [recorder, gx.Checkpoint(), gx.CSVLogger()]
    trainer = gx.Trainer(max_epochs=100, run_dir=tmp_path / "run", fast_dev_run=True, callbacks=callbacks)
    trainer.fit(NetTask(), net_data())
    assert sorted(recorder.train) == [1]
    assert sorted(recorder.validations) == [1]
    assert not (tmp_path / "run").exists()


def test_statistics_are_those_of_numpy():
    rng = np.random.default_rng(0)
    # Far from zero: single-precision sums of squares would cancel.
    rows = {"x": (1e4 + rng.normal(size=(1000, 3))).astype(np.float32), "one": np.ones(1000, np.float32)}
    found = gx.ArrayDataModule(rows, batch_size=50).statistics()
    exact = rows["x"].astype(np.float64)
    np.testing.assert_allclose(found["x"].mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["x"].std, exact.std(0), rtol=1e-9)
    np.testing.assert_array_equal(found["x"].max, exact.max(0))
    assert found["one"].std == 0
    assert found["x"].count == 1000


@pytest.mark.parametrize("batch_size", [50, 7])
def test_an_examples_noise_depends_on_its_place_alone(fitted, batch_size):
    class NoiseTask(NetTask):
        def evaluate(self, model, batch, rng):
            return {"noise": jax.random.normal(rng)}

        def predict(self, model, batch, rng):
            return jax.random.normal(rng, (1,))

    data = net_data(val=50, batch_size=batch_size)
    trainer = gx.Trainer(max_steps=1)
    found = trainer.predict(NoiseTask(), data, model=fitted.model)
    again = trainer.predict(NoiseTask(), net_data(val=50), model=fitted.model)
    np.testing.assert_array_equal(found, again)
    assert len(set(found.tolist())) == 50
    mean = trainer.test(NoiseTask(), data, model=fitted.model)["test/noise"]
    assert mean == pytest.approx(np.mean(found, dtype=np.float64))
