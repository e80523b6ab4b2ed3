"""Validation, test and prediction see every example once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import LineTask, NetTask, Recorder, line_data, net_data, regression

import galvanax as gx


def plain_evaluation(model, rows):
    """Numpy, in float64, without batches."""
    error = np.asarray(model(jnp.asarray(rows["x"])), np.float64) - rows["y"]
    return {"loss": np.mean(error**2), "mae": np.abs(error).mean()}


@pytest.fixture(scope="module")
def fitted():
    return gx.Trainer(max_steps=40).fit(NetTask(), net_data())


@pytest.mark.behaviour("peers 77", "reports 20")
@pytest.mark.parametrize("batch_size", [1003, 128, 10])
def test_a_metric_does_not_depend_on_the_batch_size(fitted, batch_size):
    rows = regression(1003, seed=5)
    data = gx.ArrayDataModule(rows, val=rows, batch_size=batch_size)
    found = gx.Trainer(max_steps=1).validate(NetTask(), data, model=fitted.model)
    for name, value in plain_evaluation(fitted.model, rows).items():
        assert found[f"val/{name}"] == pytest.approx(value, rel=1e-6)


@pytest.mark.behaviour("peers 77")
def test_a_loss_that_is_a_mean_is_exact_without_an_evaluate_of_its_own():
    rows = {"x": np.arange(11, dtype=np.float32)[:, None], "y": np.zeros((11, 1), np.float32)}
    data = gx.ArrayDataModule(rows, val=rows, batch_size=4)
    result = gx.Trainer(max_steps=1).fit(LineTask(0.0), data)
    weight = result.state.params["kernel"].item()
    assert result.metrics["val/loss"] == pytest.approx(np.mean((weight * np.arange(11)) ** 2), rel=1e-6)


@pytest.mark.behaviour("peers 90")
def test_predictions_come_in_order_and_without_padding(fitted):
    data = net_data(val=50, batch_size=32)
    found = gx.Trainer(max_steps=1).predict(NetTask(), data, model=fitted.model)["y"]
    np.testing.assert_allclose(found, fitted.model(data.test["x"]), rtol=1e-5, atol=1e-6)


@pytest.mark.behaviour("peers 34", "peers 154")
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


@pytest.mark.behaviour("peers 13", "peers 14")
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


@pytest.mark.behaviour("peers 16")
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


@pytest.mark.behaviour("peers 32")
def test_fast_dev_run_tries_everything_and_leaves_no_file(tmp_path):
    recorder = Recorder()
    callbacks = [recorder, gx.Checkpoint(), gx.CSVLogger()]
    trainer = gx.Trainer(max_epochs=100, run_dir=tmp_path / "run", fast_dev_run=True, callbacks=callbacks)
    trainer.fit(NetTask(), net_data())
    assert sorted(recorder.train) == [1]
    assert sorted(recorder.validations) == [1]
    assert not (tmp_path / "run").exists()


@pytest.mark.behaviour("peers 32")
def test_fast_dev_run_takes_one_batch_of_any_split(fitted):
    data = net_data(val=50, batch_size=16)
    trainer = gx.Trainer(fast_dev_run=True, limit_val_batches=2)
    for run, split in ((trainer.validate, "val"), (trainer.test, "test")):
        first = {name: rows[:16] for name, rows in getattr(data, split).items()}
        found = run(NetTask(), data, model=fitted.model)[f"{split}/loss"]
        assert found == pytest.approx(plain_evaluation(fitted.model, first)["loss"], rel=1e-5)
    assert len(trainer.predict(NetTask(), data, model=fitted.model)["y"]) == 16


@pytest.mark.behaviour("peers 165")
@pytest.mark.parametrize(
    ("result", "seen"),
    [
        (lambda y: jnp.ones((5, 2)), r"float32\[5, 2\] for"),
        (lambda y: jnp.sum(y), r"float32\[\] for"),
        (lambda y: {"y": y, "sum": y.sum(0)}, r"float32\[2\] at \['sum'\] for"),
        (lambda y: {"y": y, "name": "net"}, r"str at \['name'\] for"),
        (lambda y: None, "None; expected arrays"),
    ],
)
def test_predictions_are_a_row_for_each_example(fitted, result, seen):
    class OddTask(NetTask):
        def predict(self, model, batch, rng):
            return result(model(batch["x"]))

    with pytest.raises(TypeError, match=rf"OddTask.predict returned {seen}"):
        gx.Trainer().predict(OddTask(), net_data(), model=fitted.model)


@pytest.mark.behaviour("reports 33")
def test_infinities_of_both_signs_have_no_mean_and_end_no_run():
    class RatioTask(LineTask):
        def loss(self, model, batch, rng):
            sign = jnp.where(batch["x"].mean() > 0, jnp.inf, -jnp.inf)
            return super().loss(model, batch, rng)[0], {"ratio": sign, "high": jnp.abs(sign), "odd": sign * 0}

    x = np.array([1, -1] * 8, np.float32)[:, None]
    data = gx.ArrayDataModule({"x": x, "y": 3 * x}, {"x": x, "y": 3 * x}, batch_size=1)
    result = gx.Trainer(max_epochs=1).fit(RatioTask(), data)
    for split in ("train", "val"):
        assert np.isnan(result.metrics[f"{split}/ratio"])
        assert np.isnan(result.metrics[f"{split}/odd"])
        assert result.metrics[f"{split}/high"] == np.inf
    assert result.metrics["val/loss"] == pytest.approx((result.state.params["kernel"].item() - 3) ** 2, rel=1e-5)


class PairTask(NetTask):
    """Contrastive (InfoNCE): each input's output must be nearer to its own target than to the others of the batch."""

    def loss(self, model, batch, rng):
        logits = model(batch["x"]) @ batch["y"].T
        chosen = jnp.diag(jax.nn.log_softmax(logits))
        return -chosen.mean(), {"rmse": jnp.sqrt(jnp.mean(batch["y"] ** 2)), "size": jnp.abs(batch["y"]).mean(-1)}

    def evaluate(self, model, batch, rng):
        return gx.Task.evaluate(self, model, batch, rng)


@pytest.mark.parametrize("fit", [True, False])
def test_a_loss_over_the_whole_batch_is_told(caplog, fit):
    data = net_data(val=50, batch_size=16)
    trainer = gx.Trainer(max_epochs=3)
    if fit:
        trainer = gx.Trainer(max_steps=1, val_every=gx.Steps(1), callbacks=[gx.EMA(0.0)])
        result = trainer.fit(PairTask(noise=0.0), data)
        model, found = result.model, result.metrics
    else:
        model = NetTask().build_model(nnx.Rngs(0))
        model.eval()
        found = trainer.validate(PairTask(noise=0.0), data, model=model)
    x, y = (np.asarray(data.val[name][:16], np.float64) for name in "xy")
    logits = np.asarray(model(jnp.asarray(x, jnp.float32)), np.float64) @ y.T
    loss = -np.mean(np.diag(logits) - np.log(np.exp(logits).sum(1)))
    (message,) = [record.getMessage() for record in caplog.records if "as a batch" in record.getMessage()]
    assert f"val/loss is 0 ({loss:.4g} as a batch)" in message
    alone, together = np.sqrt(np.mean(y**2, 1)).mean(), np.sqrt(np.mean(y**2))
    assert f"val/rmse is {alone:.4g} ({together:.4g} as a batch)" in message
    assert "PairTask.evaluate" in message
    assert "val/size" not in message
    assert found["val/loss"] == 0
    rows = np.asarray(data.val["y"], np.float64)
    assert found["val/rmse"] == pytest.approx(np.sqrt(np.mean(rows**2, 1)).mean(), rel=1e-6)


def first_row(task, model, batch, rng):
    return {"loss": jnp.mean((model(batch["x"])[0] - batch["y"][0]) ** 2)}


def one_example(task, model, batch, rng):
    assert len(batch["x"]) == 1
    return NetTask.evaluate(task, model, batch, rng)


def noise(task, model, batch, rng):
    return {"loss": jax.random.normal(rng)}


def signed(task, model, batch, rng):  # differences that nearly cancel
    return {"loss": jnp.mean(batch["x"]), "zero": jnp.mean(batch["y"] * 0)}


@pytest.mark.parametrize("evaluate", [NetTask.evaluate, gx.Task.evaluate, first_row, one_example, noise, signed])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_means_over_examples_raise_no_alarm(caplog, evaluate, precision):
    class QuietTask(NetTask):
        pass

    QuietTask.evaluate = evaluate
    data = net_data(val=500, batch_size=100)
    gx.Trainer(max_steps=3, precision=precision).fit(QuietTask(noise=0.0), data)
    assert not [record for record in caplog.records if "as a batch" in record.getMessage()]


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
