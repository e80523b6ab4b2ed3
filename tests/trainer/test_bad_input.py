"""What a user gets wrong is told by name, before anything is compiled or written."""

import dataclasses
import logging

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import LineTask, NetTask, line_data, net_data

import galvanax as gx


@pytest.fixture
def nothing_compiled(caplog):
    """Fails if the train program was compiled."""
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        yield
    assert not [r for r in caplog.records if "XLA compilation of jit(run_steps)" in r.message]


def fit(task=None, data=None, **settings):
    return gx.Trainer(**{"max_steps": 3, **settings}).fit(task or LineTask(), data or line_data())


def changed(**arrays):
    return gx.ArrayDataModule({**line_data().train, **arrays}, batch_size=8)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"data": changed(y=np.zeros((63, 1)))}, gx.DataError, ["'x'] has 64", "'y'] has 63"]),
        ({"data": changed(y=np.float32(1))}, gx.DataError, ["'y']", "scalar"]),
        ({"data": changed(y=np.array(["a"] * 64))}, gx.DataError, ["'y']", "<U1", "expected numbers"]),
        ({"data": gx.ArrayDataModule({}, batch_size=8)}, gx.DataError, ["no array"]),
        ({"data": line_data(rows=5)}, gx.DataError, ["batch_size=8", "5 rows"]),
        ({"data": line_data(batch_size=0)}, gx.DataError, ["batch_size=0"]),
        ({"max_steps": None}, gx.ConfigError, ["max_epochs", "max_steps"]),
        ({"max_steps": 0}, gx.ConfigError, ["max_steps=0", "at least 1"]),
        ({"limit_val_batches": 0.5}, gx.ConfigError, ["limit_val_batches=0.5", "whole number"]),
        ({"precision": "float16"}, gx.ConfigError, ["float16", "bfloat16"]),
        ({"devices": 99}, gx.ConfigError, ["devices=99", "there are 1"]),
        ({"callbacks": [3]}, gx.ConfigError, ["callbacks holds 3"]),
        ({"callbacks": [gx.CSVLogger()]}, gx.ConfigError, ["CSVLogger", "run_dir"]),
        (
            {"callbacks": [gx.EarlyStopping("val/los", mode="min")]},
            gx.ConfigError,
            ["EarlyStopping", "'val/los'", "Nearest: val/loss"],
        ),
    ],
)
@pytest.mark.usefixtures("nothing_compiled")
def test_errors_before_compilation(arguments, error, words):
    with pytest.raises(error) as caught:
        fit(**arguments)
    for word in words:
        assert word in str(caught.value)


def test_settings_that_contradict_themselves():
    with pytest.raises(gx.ConfigError, match=r"Steps\(0\)"):
        gx.Steps(0)
    with pytest.raises(gx.ConfigError, match="whole number"):
        gx.Epochs(0.5)
    with pytest.raises(gx.ConfigError, match=r"mode=None.*min.*max"):
        gx.Checkpoint(monitor="val/loss")
    with pytest.raises(gx.ConfigError, match="decay=1"):
        gx.EMA(1.0)
    with pytest.raises(gx.ConfigError, match="threshold=-1"):
        gx.GradientClipping(-1)


@pytest.mark.usefixtures("nothing_compiled")
def test_a_loss_that_is_no_scalar():
    class VectorTask(LineTask):
        def loss(self, model, batch, rng):
            return (model(batch["x"]) - batch["y"]) ** 2, {}

    class BareTask(LineTask):
        def loss(self, model, batch, rng):
            return jnp.mean(model(batch["x"]))

    with pytest.raises(TypeError, match=r"VectorTask.loss returned a loss of float32\[8, 1\]; expected a float scalar"):
        fit(VectorTask())
    with pytest.raises(TypeError, match=r"BareTask.loss returned"):
        fit(BareTask())


@pytest.mark.parametrize("k", [1, 16])
def test_a_loss_that_is_not_finite_names_step_and_metric(k):
    x = np.ones((400, 1), np.float32)
    data = gx.ArrayDataModule({"x": x, "y": x}, batch_size=8)
    # Steps of (1 - 2 lr)^n: 1e30 is past after a known number of doublings.
    steps = []

    class Watch(gx.Callback):
        def on_train_metrics(self, run, rows, metrics):
            steps.extend(rows)

    with pytest.raises(gx.NonFiniteError, match=r"train/loss is (inf|nan) at step (\d+)") as caught:
        fit(LineTask(learning_rate=1e10), data, max_steps=50, steps_per_dispatch=k, callbacks=[Watch()])
    # |1 - w| grows by 2e10 a step; its square passes 3.4e38 at the third step.
    assert "at step 3." in str(caught.value)


def test_a_validation_loss_that_is_not_finite():
    data = line_data()
    data.val = {"x": data.val["x"], "y": np.where(np.arange(64)[:, None] == 17, np.nan, data.val["y"])}
    with pytest.raises(gx.NonFiniteError, match=r"val/loss is nan at step 3 for 1 of 64 examples; first: 17"):
        fit(data=data)


def test_a_task_without_the_dataclass_decorator():
    class WiderTask(NetTask):
        width: int = 99

    with pytest.raises(gx.ConfigError, match=r"WiderTask declares width but is no dataclass.*@dataclasses.dataclass"):
        fit(WiderTask(), net_data())


def test_a_step_that_changes_the_state():
    class HalfTask(LineTask):
        def train_step(self, state, batch, rng):
            state, metrics = super().train_step(state, batch, rng)
            return state.replace(params={n: p.astype(jnp.bfloat16) for n, p in state.params.items()}), metrics

    with pytest.raises(gx.ConfigError, match=r"HalfTask.train_step changed state.*kernel.* from float32.* to bfloat16"):
        fit(HalfTask())


def test_batches_of_several_shapes():
    @dataclasses.dataclass
    class RaggedData(gx.DataModule):
        def train_dataset(self, seed):
            rows = [{"x": np.ones((n, 1), np.float32), "y": np.ones((n, 1), np.float32)} for n in (8, 8, 3)]
            return grain.MapDataset.source(rows)

    with pytest.raises(gx.DataError, match=r"shape \[3, 1\].*\[8, 1\].*drop_remainder"):
        fit(data=RaggedData())


def test_a_stream_needs_a_number_of_steps():
    @dataclasses.dataclass
    class Stream(gx.DataModule):
        length: int | None = None

        def train_dataset(self, seed):
            ones = np.ones((8, 1), np.float32)
            dataset = grain.MapDataset.source([{"x": ones, "y": ones}]).repeat(self.length)
            return dataset.to_iter_dataset()

    assert int(fit(data=Stream()).state.step) == 3
    with pytest.raises(gx.ConfigError, match=r"max_epochs.*stream"):
        fit(data=Stream(), max_steps=None, max_epochs=1)
    with pytest.raises(gx.DataError, match="ended 1 batches before"):
        fit(data=Stream(length=2))


def test_methods_that_are_missing():
    with pytest.raises(NotImplementedError, match="Task must define build_model"):
        fit(gx.Task())
    model, data = fit().model, line_data()
    with pytest.raises(gx.ConfigError, match="no test_dataset"):
        gx.Trainer(max_steps=1).test(LineTask(), data, model=model)
    data.test = data.val
    with pytest.raises(NotImplementedError, match="LineTask defines no predict"):
        gx.Trainer(max_steps=1).predict(LineTask(), data, model=model)
