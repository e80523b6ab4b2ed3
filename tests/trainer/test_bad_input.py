"""What a user gets wrong is told by name, before anything is compiled or written."""

import dataclasses
import logging

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
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


@pytest.mark.behaviour("peers 22", "peers 23", "peers 46")
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"data": changed(y=np.zeros((63, 1)))}, gx.DataError, ["'x'] has 64", "'y'] has 63"]),
        ({"data": changed(y=np.float32(1))}, gx.DataError, ["'y']", "scalar"]),
        ({"data": changed(y=np.array(["a"] * 64))}, gx.DataError, ["'y']", "<U1", "expected numbers"]),
        ({"data": gx.ArrayDataModule({}, batch_size=8)}, gx.DataError, ["no array"]),
        ({"data": line_data(rows=5)}, gx.DataError, ["batch_size=8", "5 rows"]),
        ({"data": line_data(batch_size=0)}, gx.ConfigError, ["batch_size=0"]),
        ({"data": line_data(batch_size="8")}, gx.ConfigError, ["batch_size='8'", "whole number"]),
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


@pytest.mark.behaviour("peers 61")
def test_settings_that_contradict_themselves():
    with pytest.raises(gx.ConfigError, match=r"Steps\(0\)"):
        gx.Steps(0)
    with pytest.raises(gx.ConfigError, match="whole number"):
        gx.Epochs(0.5)
    with pytest.raises(gx.ConfigError, match=r"mode=None.*min.*max"):
        gx.Checkpoint(monitor="val/loss")
    with pytest.raises(gx.ConfigError, match="decay=1"):
        gx.EMA(1.0)
    for threshold in (-1, 0, (1.0, 2.0), "1", float("nan"), True):
        with pytest.raises(gx.ConfigError, match=r"GradientClipping\.threshold=.*: expected a number in \(0, inf\]"):
            gx.GradientClipping(threshold)
    with pytest.raises(gx.ConfigError, match=r"GradientClipping\.by='global'.*norm, value"):
        gx.GradientClipping(by="global")


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


def reporting(metrics, where):
    """A task whose loss, step or evaluation returns these metrics of the batch."""

    class OddTask(LineTask):
        def loss(self, model, batch, rng):
            loss, _ = super().loss(model, batch, rng)
            return loss, metrics(batch) if where == "loss" else {}

        def train_step(self, state, batch, rng):
            state, found = super().train_step(state, batch, rng)
            return state, {**found, **(metrics(batch) if where == "train_step" else {})}

        def evaluate(self, model, batch, rng):
            found = super().evaluate(model, batch, rng)
            return {**found, **(metrics(batch) if where == "evaluate" else {})}

    return OddTask()


@pytest.mark.behaviour("peers 164")
@pytest.mark.parametrize("where", ["loss", "train_step", "evaluate"])
@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (lambda x: jnp.ones((len(x), 10)), r"float32\[{rows}, 10\]"),
        (lambda x: x, r"float32\[{rows}, 1\]"),
        (lambda x: jnp.ones((2, 3)), r"float32\[2, 3\]"),
        (lambda x: np.ones(7), r"float64\[7\]"),
        (lambda x: {"a": jnp.ones(())}, "dict"),
        (lambda x: "high", "str"),
        (lambda x: None, "NoneType"),
        (lambda x: [1.0, 2.0], "list"),
        (lambda x: jnp.ones(()) * 1j, r"complex64\[\]"),
        (lambda x: np.array("high"), r"<U4\[\]"),
        (lambda x: jax.random.key(0), r"key<fry>\[\]"),
    ],
)
@pytest.mark.usefixtures("nothing_compiled")
def test_a_metric_that_is_neither_a_scalar_nor_a_number_an_example(where, value, seen):
    rows = 1 if where == "evaluate" else 8
    match = (
        rf"OddTask.{where}.* returned the metric 'odd' as {seen.format(rows=rows)}; expected a scalar, or .*\[{rows}\]"
    )
    with pytest.raises(TypeError, match=match):
        fit(reporting(lambda batch: {"odd": value(batch["x"])}, where))


@pytest.mark.parametrize("where", ["loss", "train_step", "evaluate"])
def test_metrics_of_every_form(where):
    task = reporting(
        lambda batch: {
            "rows": 10 + jnp.arange(len(batch["x"])),
            "large": batch["x"][:, 0] > -2,
            "float": 2.5,
            "int": 3,
            "numpy": np.float64(4.5),
            "array": jnp.bfloat16(5),
        },
        where,
    )
    found = fit(task, log_every=1).metrics
    split = "val" if where == "evaluate" else "train"
    expected = {"large": 1, "float": 2.5, "int": 3, "numpy": 4.5, "array": 5}
    expected["rows"] = 10 if where == "evaluate" else 10 + np.arange(8).mean()
    assert {name: found[f"{split}/{name}"] for name in expected} == expected


@pytest.mark.usefixtures("nothing_compiled")
def test_names_of_metrics():
    with pytest.raises(
        ValueError, match=r'OddTask.loss returned a metric named "grad_norm", the name of the gradients'
    ):
        fit(reporting(lambda _: {"grad_norm": 1.0}, "loss"))
    with pytest.raises(ValueError, match=r'OddTask.loss returned a metric named "loss"'):
        fit(reporting(lambda _: {"loss": 1.0}, "loss"))
    with pytest.raises(TypeError, match=r"OddTask.loss returned a metric named 3; expected a string"):
        fit(reporting(lambda _: {3: 1.0}, "loss"))
    with pytest.raises(TypeError, match=r"OddTask.evaluate.* returned a metric named 3; expected a string"):
        fit(reporting(lambda _: {3: 1.0}, "evaluate"))


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (
            lambda state, metrics: (state, {"mse": metrics["loss"]}),
            'no metric "loss", .*it returned mse. Return the loss',
        ),
        (lambda state, metrics: (state, {}), 'no metric "loss", .*it returned none'),
        (lambda state, metrics: (state, {"loss": jnp.int32(1)}), r'a "loss" of int32\[\]; expected a float scalar'),
        (lambda state, metrics: (state, {"loss": jnp.ones(8)}), r'a "loss" of float32\[8\]; expected a float scalar'),
        (lambda state, metrics: state, r"TrainState; expected \(state, \{name: metric\}\)"),
        (lambda state, metrics: (metrics, state), r"tuple; expected \(state"),
    ],
)
@pytest.mark.usefixtures("nothing_compiled")
def test_what_a_step_must_return(result, words):
    class OwnStep(LineTask):
        def train_step(self, state, batch, rng):
            return result(*super().train_step(state, batch, rng))

    with pytest.raises(gx.ConfigError, match=f"OwnStep.train_step returned {words}"):
        fit(OwnStep())


class Attribute(nnx.Module):
    """A line that leaves something beside its weights."""

    def __init__(self, leave, rngs):
        self.line, self.leave, self.calls = nnx.Linear(1, 1, use_bias=False, rngs=rngs), leave, 0
        self.count = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x):
        self.leave(self, x)
        return self.line(x)


def leaving(leave):
    class LeavingTask(LineTask):
        def build_model(self, rngs):
            return Attribute(leave, rngs)

    return LeavingTask()


def set_to(name, value):
    return lambda model, x: setattr(model, name, value(model, x))


@pytest.mark.parametrize(
    ("leave", "path"),
    [
        (set_to("calls", lambda model, x: model.calls + 1), "calls"),
        (set_to("mean", lambda model, x: x.mean()), "mean"),
        (set_to("note", lambda model, x: "seen"), "note"),
        (lambda model, x: setattr(model.line, "note", x.shape), "line.note"),
        (lambda model, x: delattr(model, "calls"), "calls"),
        (set_to("count", lambda model, x: x.mean()), "count"),
    ],
)
@pytest.mark.usefixtures("nothing_compiled")
def test_what_a_loss_leaves_on_the_model_beside_variables(leave, path):
    match = rf"LeavingTask.loss changed the model's attribute {path}, which is lost .* nnx.Variable"
    with pytest.raises(gx.ConfigError, match=match):
        fit(leaving(leave))


def test_what_it_leaves_in_variables_lasts():
    def count(model, x):
        model.count.set_value(model.count.get_value() + len(x))
        model.calls = 0  # as it was

    result = fit(leaving(count), max_steps=5)
    assert result.state.variables["count"] == 5 * 8


@pytest.mark.behaviour("peers 33")
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


@pytest.mark.behaviour("peers 14", "peers 15")
@pytest.mark.parametrize("bad", [0, -3, 0.5, True, "all"])
@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_settings_are_checked_where_nothing_is_trained(method, bad):
    limit = f"limit_{'val' if method == 'validate' else method}_batches"
    for settings, words in (
        ({limit: bad}, f"{limit}={bad!r}: expected a whole"),
        ({"precision": "half"}, "precision='half'"),
    ):
        with pytest.raises(gx.ConfigError, match=words):
            getattr(gx.Trainer(**settings), method)(LineTask(), line_data(), model=LineTask().build_model(nnx.Rngs(0)))
