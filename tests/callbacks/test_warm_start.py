"""Starting from another run's weights: what is taken, what is not, and what is said about it."""

import dataclasses
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import LineTask, NetTask, assert_same_state, line_data, net_data

import galvanax as gx
from galvanax.runs.checkpoints import CheckpointFolder

GUIDE = Path(__file__).parent.parent.parent / "docs" / "fine-tuning.md"


@dataclasses.dataclass(frozen=True)
class MLPTask(NetTask):
    """NetTask without anything random or running, so that a rate of zero changes nothing at all."""

    outputs: int = 2
    noise: float = 0.0

    def build_model(self, rngs):
        return gx.networks.MLP(3, (self.width,), self.outputs, rngs=rngs)

    def loss(self, model, batch, rng):
        error = model(batch["x"])[:, :2] - batch["y"]
        return jnp.mean(error**2), {}

    def evaluate(self, model, batch, rng):
        return {"loss": self.loss(model, batch, rng)[0]}


class StatisticsTask(NetTask):
    """NetTask whose `set_statistics` leaves a mark."""

    def set_statistics(self, model, datamodule):
        model.norm.mean[...] = jnp.full(self.width, 7.0)


class Start(gx.Callback):
    """Copies of the state before the first step."""

    def on_fit_start(self, run):
        self.state = jax.tree.map(np.array, run.state)
        self.shardings = {leaf.sharding for leaf in jax.tree.leaves(run.state)}
        self.replicated = run.devices.replicated


def train(folder, task, callbacks=(), **settings):
    saving = gx.Checkpoint(monitor="val/loss", mode="min", keep_last=2)
    trainer = gx.Trainer(**{"max_epochs": 4, "run_dir": folder, **settings}, callbacks=[*callbacks, saving])
    return trainer.fit(task, net_data())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An averaged run of NetTask, and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "source"
    return folder, train(folder, NetTask(), [gx.EMA(0.9)])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An averaged run of MLPTask, and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    return folder, train(folder, MLPTask(), [gx.EMA(0.9)])


def start(task, *callbacks, **settings):
    at_start = Start()
    gx.Trainer(max_steps=1, seed=1, callbacks=[*callbacks, at_start], **settings).fit(task, net_data())
    return at_start


def test_starts_from_the_averaged_weights_and_their_statistics(source):
    folder, result = source
    ema = gx.EMA(0.99)
    begin = start(StatisticsTask(), ema, warm := gx.WarmStart(folder, "last"))
    averaged, raw = result.state.slots["EMA"], result.state.params
    for name, value in begin.state.params.items():
        np.testing.assert_array_equal(value, averaged[name])
        # Slots and the optimizer are made from the warm weights, not before.
        np.testing.assert_array_equal(begin.state.slots["EMA"][name], averaged[name])
    assert (begin.state.params["second/kernel"] != raw["second/kernel"]).any()
    for name in ("norm/mean", "norm/var"):
        np.testing.assert_array_equal(begin.state.variables[name], result.state.variables[name])
    assert begin.state.step == 0
    moments = [leaf for leaf in jax.tree.leaves(begin.state.opt_state) if leaf.ndim]
    assert moments
    assert all((leaf == 0).all() for leaf in moments)
    assert set(warm.report.loaded) == {*averaged, "norm/mean", "norm/var"}
    assert begin.shardings == {begin.replicated}


def test_best_is_the_default(source):
    folder, result = source
    _, best = NetTask.load(folder, result.best_checkpoint)
    for place, checkpoint in ((folder, "best"), (result.best_checkpoint, "last")):
        begin = start(NetTask(), gx.WarmStart(place, checkpoint))
        np.testing.assert_array_equal(begin.state.params["first/kernel"], best.first.kernel[...])


def test_a_source_that_does_not_average(tmp_path):
    result = train(tmp_path, NetTask(), max_epochs=1)
    begin = start(NetTask(), gx.WarmStart(tmp_path))
    for name, value in begin.state.params.items():
        np.testing.assert_array_equal(value, result.state.params[name])


def test_begins_with_the_sources_validation_loss(plain):
    folder, _ = plain
    expected = gx.Trainer(max_steps=1, run_dir=folder).validate(MLPTask(), net_data())["val/loss"]
    trainer = gx.Trainer(max_steps=3, seed=1, callbacks=[gx.WarmStart(folder), gx.EMA(0.9)])
    tuned = trainer.fit(MLPTask(learning_rate=0.0), net_data())
    assert tuned.metrics["val/loss"] == expected
    fresh = gx.Trainer(max_steps=3, seed=1).fit(MLPTask(learning_rate=0.0), net_data())
    assert fresh.metrics["val/loss"] > 2 * expected


def test_a_wider_head_is_left_out_and_the_list_says_so(plain, capsys):
    folder, _ = plain
    _, model = MLPTask.load(folder)
    fresh = start(MLPTask(outputs=5)).state.params
    with pytest.raises(gx.CheckpointError, match=r"2 of the 4 arrays .*float32\[5\] here.*partial=True \(--partial\)"):
        start(MLPTask(outputs=5), gx.WarmStart(folder))
    heads = start(MLPTask(outputs=5), gx.WarmStart(folder, exclude=("layers/1/*",))).state.params
    np.testing.assert_array_equal(heads["layers/1/kernel"], fresh["layers/1/kernel"])
    begin = start(MLPTask(outputs=5), warm := gx.WarmStart(folder, partial=True)).state.params
    np.testing.assert_array_equal(begin["layers/0/kernel"], model.layers[0].kernel[...])
    np.testing.assert_array_equal(begin["layers/0/bias"], model.layers[0].bias[...])
    for name in ("layers/1/kernel", "layers/1/bias"):
        np.testing.assert_array_equal(begin[name], fresh[name])
    assert warm.report.loaded == ("layers/0/bias", "layers/0/kernel")
    assert warm.report.different == {
        "layers/1/bias": ("float32[5]", "float32[2]"),
        "layers/1/kernel": ("float32[16, 5]", "float32[16, 2]"),
    }
    out = capsys.readouterr().out
    assert f"warm start from {folder / 'checkpoints'}" in out
    assert ": 2 of 4 arrays" in out
    assert "layers/1/kernel: float32[16, 5] here, float32[16, 2] in the source" in out


@pytest.mark.behaviour("peers 143")
def test_patterns_choose(source):
    folder, result = source
    fresh = start(NetTask()).state
    warm = gx.WarmStart(folder, "last", include=("first/*", "norm/*"), exclude=("*/mean", "first/bias"))
    begin = start(NetTask(), warm).state
    assert warm.report.loaded == ("first/kernel", "norm/bias", "norm/scale", "norm/var")
    assert warm.report.excluded == ("first/bias", "norm/mean", "second/bias", "second/kernel")
    assert (warm.report.absent, warm.report.different, warm.report.unused) == ((), {}, ())
    np.testing.assert_array_equal(begin.params["first/kernel"], result.state.slots["EMA"]["first/kernel"])
    np.testing.assert_array_equal(begin.params["second/kernel"], fresh.params["second/kernel"])
    np.testing.assert_array_equal(begin.variables["norm/var"], result.state.variables["norm/var"])
    np.testing.assert_array_equal(begin.variables["norm/mean"], fresh.variables["norm/mean"])


def test_a_model_with_other_parts(source):
    folder, result = source

    class Stacked(nnx.Module):
        """The first layer of `Net` and another head."""

        def __init__(self, rngs):
            self.first = nnx.Linear(3, 16, rngs=rngs)
            self.head = nnx.Linear(16, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.first(x))

    class StackedTask(MLPTask):
        def build_model(self, rngs):
            return Stacked(rngs)

    with pytest.raises(gx.CheckpointError, match=r"2 of the 4 arrays.*head/bias is not there"):
        start(StackedTask(), gx.WarmStart(folder, "last"))
    warm = gx.WarmStart(folder, "last", partial=True)
    begin = start(StackedTask(), warm)
    assert warm.report.loaded == ("first/bias", "first/kernel")
    assert warm.report.absent == ("head/bias", "head/kernel")
    assert warm.report.unused == (
        "norm/bias", "norm/mean", "norm/scale", "norm/var", "second/bias", "second/kernel"
    )  # fmt: skip
    assert "head/kernel: absent in the source" in str(warm.report)
    assert "second/kernel: only in the source" in str(warm.report)
    np.testing.assert_array_equal(begin.state.params["first/kernel"], result.state.slots["EMA"]["first/kernel"])


def test_a_resumed_run_takes_nothing(source, tmp_path, capsys):
    folder, _ = source
    copy = tmp_path / "source"
    shutil.copytree(folder, copy)
    whole = train(tmp_path / "whole", NetTask(), [gx.WarmStart(copy), gx.EMA(0.9)], max_steps=30)
    train(tmp_path / "cut", NetTask(), [gx.WarmStart(copy), gx.EMA(0.9)], max_steps=30, limit_train_batches=10)
    cut = tmp_path / "cut"
    for step in (20, 30):
        shutil.rmtree(cut / "checkpoints" / str(step), ignore_errors=True)
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "20", cut / "checkpoints" / "20")
    shutil.rmtree(copy)  # its weights are in the checkpoint, so nobody misses it
    capsys.readouterr()
    warm = gx.WarmStart(copy)
    saving = gx.Checkpoint(monitor="val/loss", mode="min", keep_last=2)
    trainer = gx.Trainer(max_epochs=4, max_steps=30, run_dir=cut, callbacks=[warm, gx.EMA(0.9), saving])
    resumed = trainer.fit(NetTask(), net_data(), resume="last")
    assert_same_state(resumed.state, whole.state)
    assert warm.report is None
    assert "warm start" not in capsys.readouterr().out


def test_what_is_wrong(source, tmp_path):
    folder, _ = source

    def fails(error, match, warm, task=None, data=None):
        run_dir = tmp_path / "new"
        with pytest.raises(error, match=match):
            gx.Trainer(max_steps=1, run_dir=run_dir, callbacks=[warm]).fit(task or NetTask(), data or net_data())
        assert not run_dir.exists()

    fails(
        gx.ConfigError,
        r"include has the pattern 'frist/\*'.* 8 arrays. Nearest: first/",
        gx.WarmStart(folder, include=("frist/*",)),
    )
    fails(gx.ConfigError, r"exclude has the pattern 'head'", gx.WarmStart(folder, exclude=("head",)))
    fails(gx.ConfigError, r"leaves none of the model's 8 arrays", gx.WarmStart(folder, exclude=("*",)))
    fails(
        gx.CheckpointError, r"There is no .*sourc.Nearest|There is no .*Nearest: .*source", gx.WarmStart(f"{folder}s")
    )
    fails(gx.CheckpointError, "No checkpoint of step 7", gx.WarmStart(folder, "7"))
    fails(
        gx.CheckpointError,
        r"first/kernel is float32\[3, 9\] here and float32\[3, 16\] there",
        gx.WarmStart(folder, include=("first/kernel",)),
        NetTask(width=9),
    )
    fails(
        gx.CheckpointError,
        r"Nothing of .* fits.*kernel is not there \(nearest: first/kernel\)",
        gx.WarmStart(folder),
        LineTask(),
        line_data(),
    )
    with pytest.raises(gx.ConfigError, match=r"WarmStart.include='first/\*': expected a tuple"):
        gx.WarmStart(folder, include="first/*")


def test_a_damaged_source(source, tmp_path):
    shutil.copytree(source[0], tmp_path / "source")
    folder = CheckpointFolder(tmp_path / "source").find("best")
    victim = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(gx.CheckpointError, match=f"is damaged: .*{victim.name} altered"):
        start(NetTask(), gx.WarmStart(tmp_path / "source"))
    (folder / "meta.json").unlink()
    with pytest.raises(gx.CheckpointError, match=r"is damaged: .*meta.json missing"):
        start(NetTask(), gx.WarmStart(folder))


def test_a_run_may_start_from_what_it_overwrites(plain, tmp_path):
    folder, _ = plain
    _, model = MLPTask.load(folder)
    shutil.copytree(folder, tmp_path / "run")
    warm = gx.WarmStart(tmp_path / "run")
    result = train(tmp_path / "run", MLPTask(learning_rate=0.0), [warm], overwrite=True, max_steps=1)
    np.testing.assert_array_equal(result.state.params["layers/0/kernel"], model.layers[0].kernel[...])
    # What fails beforehand clears nothing.
    with pytest.raises(gx.ConfigError, match="exclude has the pattern"):
        train(tmp_path / "run", MLPTask(), [gx.WarmStart(folder, exclude=("nothing",))], overwrite=True)
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()


class Double(gx.Callback):
    """Doubles the weights, and keeps what it returned."""

    def init_params(self, params, variables):
        self.given = {name: 2 * value for name, value in params.items()}
        return self.given, variables


def test_callbacks_pass_the_weights_on_in_list_order(plain):
    folder, _ = plain
    _, model = MLPTask.load(folder)
    kernel = np.asarray(model.layers[0].kernel[...])
    last, first = Double(), Double()
    doubled = start(MLPTask(), gx.WarmStart(folder), last).state.params["layers/0/kernel"]
    np.testing.assert_array_equal(doubled, 2 * kernel)
    warm = start(MLPTask(), first, gx.WarmStart(folder)).state.params["layers/0/kernel"]
    np.testing.assert_array_equal(warm, kernel)
    # What a callback gave is not donated with the state.
    np.testing.assert_array_equal(last.given["layers/0/kernel"], 2 * kernel)


def test_a_callback_must_keep_the_form():
    class Cast(gx.Callback):
        def init_params(self, params, variables):
            return jax.tree.map(lambda value: value.astype(jnp.bfloat16), params), variables

    class Drop(gx.Callback):
        def init_params(self, params, variables):
            return params, {}

    with pytest.raises(gx.ConfigError, match=r"Cast.init_params changed .* from float32\[\d.*to bfloat16"):
        start(NetTask(), Cast())
    with pytest.raises(gx.ConfigError, match=r"Drop.init_params changed which weights there are: norm/mean, norm/var"):
        start(NetTask(), Drop())


def test_an_optimizer_that_keeps_the_weights_starts_from_the_warm_ones(plain):
    folder, _ = plain
    _, model = MLPTask.load(folder)

    class Lookahead(MLPTask):
        def build_optimizer(self, num_steps):
            return optax.contrib.schedule_free_adamw(1e-3)

    begin = start(Lookahead(), gx.WarmStart(folder)).state
    np.testing.assert_array_equal(begin.opt_state.task.z["layers/0/kernel"], model.layers[0].kernel[...])


def test_the_guide_runs_as_it_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {"__name__": "guide"}
    exec(code, names)
    assert names["stiffer"].metrics["val/loss"] < 1e-2
    _, model = names["SpringTask"].load("runs/spring")
    np.testing.assert_array_equal(names["two"].state.params["layers/1/kernel"], model.layers[1].kernel[...])
    assert names["path"].is_file()
    (printed,) = re.findall(r"```\n(warm start.*?)```", text, re.DOTALL)
    assert printed in capsys.readouterr().out
