"""When a run ends, validates and saves, and what its callbacks are told in which order: counted by hand."""

import dataclasses
import json

import numpy as np
import optax
import pytest
from flax import nnx
from support import LineTask, Recorder, assert_same_state

import galvanax as gx


def data_of(batches, val=1):
    """So many training batches an epoch, of one row each."""
    x = np.linspace(-1, 1, max(batches, val), dtype=np.float32)[:, None]
    rows = {"x": x, "y": 3 * x}
    return gx.ArrayDataModule(
        {name: array[:batches] for name, array in rows.items()},
        {name: array[:val] for name, array in rows.items()} if val else None,
        batch_size=1,
    )


def fit(batches, *callbacks, val=1, **settings):
    """`(result, steps of the validations)`."""
    recorder = Recorder()
    trainer = gx.Trainer(callbacks=[recorder, *callbacks], **settings)
    return trainer.fit(LineTask(1e-3), data_of(batches, val)), sorted(recorder.validations)


def checkpoints(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.behaviour("peers 21")
@pytest.mark.parametrize(
    ("settings", "end"),
    [
        ({"max_epochs": 3, "max_steps": 42}, 42),
        ({"max_epochs": 2, "max_steps": 192}, 64),
        ({"max_steps": 3}, 3),
        ({"max_epochs": 1}, 32),
    ],
)
def test_it_ends_at_whichever_comes_first(settings, end):
    assert int(fit(32, val=0, **settings)[0].state.step) == end


@pytest.mark.behaviour("peers 13")
def test_a_limit_beyond_the_data_is_the_data():
    result, _ = fit(64, val=64, max_epochs=1, limit_train_batches=100, limit_val_batches=100)
    assert int(result.state.step) == 64
    weight, x = result.state.params["kernel"].item(), np.linspace(-1, 1, 64)
    assert result.metrics["val/loss"] == pytest.approx(np.mean((weight - 3) ** 2 * x**2), rel=1e-5)
    result, _ = fit(64, val=64, max_epochs=1, limit_train_batches=7, limit_val_batches=7)
    assert int(result.state.step) == 7
    weight = result.state.params["kernel"].item()
    assert result.metrics["val/loss"] == pytest.approx(np.mean((weight - 3) ** 2 * x[:7] ** 2), rel=1e-5)


@pytest.mark.behaviour("peers 16", "peers 18", "peers 19")
@pytest.mark.parametrize(
    ("batches", "epochs", "every", "expected"),
    [
        *((12, epochs, gx.Steps(n), [*range(n, 12 * epochs + 1, n)]) for epochs in (1, 3) for n in (3, 4, 12)),
        (2, 1, gx.Epochs(2), [2]),  # the last step always is
        (2, 4, gx.Epochs(2), [4, 8]),
        (2, 5, gx.Epochs(2), [4, 8, 10]),
        (10, 1, gx.Steps(100), [10]),
    ],
)  # fmt: skip
def test_validations(batches, epochs, every, expected):
    assert fit(batches, max_epochs=epochs, val_every=every)[1] == expected


@pytest.mark.behaviour("peers 17", "peers 65")
def test_validations_inside_an_accumulation_change_nothing():
    """Every third step, over epochs of four, two steps to an update: they fall in the middle of updates."""
    often, steps = fit(4, gx.GradientAccumulation(2), max_steps=12, val_every=gx.Steps(3))
    assert steps == [3, 6, 9, 12]
    never, steps = fit(4, gx.GradientAccumulation(2), max_steps=12, val=0)
    assert steps == []
    assert_same_state(often.state, never.state)


@pytest.mark.behaviour("peers 63")
def test_an_accumulation_goes_on_over_the_end_of_an_epoch():
    """Two epochs of five steps, three steps to an update; the tenth step's gradient is dropped."""
    recorder = Recorder(tuple(range(1, 11)))
    trainer = gx.Trainer(max_epochs=2, callbacks=[gx.GradientAccumulation(3), recorder])
    trainer.fit(LineTask(), data_of(5, val=0))
    weights = [recorder.states[step]["kernel"].item() for step in range(1, 11)]
    assert [step for step in range(2, 11) if weights[step - 1] != weights[step - 2]] == [3, 6, 9]


@pytest.mark.behaviour("peers 40", "peers 41", "peers 42")
@pytest.mark.parametrize(
    ("settings", "val_every", "expected"),
    [
        ({"every": gx.Epochs(1)}, gx.Epochs(1), [2, 4, 6, 8, 10]),
        ({"every": gx.Epochs(2)}, gx.Epochs(1), [4, 8, 10]),  # the end always is
        ({"every": gx.Epochs(3)}, gx.Epochs(1), [6, 10]),
        ({}, gx.Steps(2), [2, 4, 6, 8, 10]),
        ({"monitor": "val/loss", "mode": "min", "keep_best": 9}, gx.Epochs(2), [4, 8, 10]),
    ],
)
def test_checkpoints(tmp_path, settings, val_every, expected):
    saving = gx.Checkpoint(keep_last=None, **settings)
    fit(2, saving, max_epochs=5, val_every=val_every, run_dir=tmp_path)
    assert checkpoints(tmp_path) == expected


@pytest.mark.behaviour("peers 43")
def test_a_checkpoint_between_two_validations_has_no_rank(tmp_path):
    recorder = Recorder()
    saving = gx.Checkpoint("val/loss", "min", every=gx.Steps(1), keep_last=None)
    trainer = gx.Trainer(max_steps=4, val_every=gx.Steps(2), run_dir=tmp_path, callbacks=[recorder, saving])
    trainer.fit(LineTask(), data_of(8))
    metas = [json.loads((tmp_path / f"checkpoints/{step}/meta.json").read_text()) for step in range(1, 5)]
    losses = [recorder.validations.get(step, {}).get("val/loss") for step in range(1, 5)]
    assert [meta["monitor"]["value"] for meta in metas] == losses
    assert [loss is None for loss in losses] == [True, False, True, False]


@pytest.mark.behaviour("peers 46", "peers 47")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gx.Checkpoint("val/los", "min"), "'val/los'.*Nearest: val/loss"),
        (lambda: gx.Checkpoint("val/loss", "lowest"), "mode='lowest'"),
        (lambda: gx.Checkpoint("val/loss"), "mode=None"),
        (lambda: gx.Checkpoint(keep_best=-1), "keep_best=-1"),
        (lambda: gx.Checkpoint(keep_last=0), "keep_last=0"),
    ],
)
def test_a_checkpoint_that_makes_no_sense(tmp_path, make, words):
    with pytest.raises(gx.ConfigError, match=words):
        fit(2, make(), max_epochs=1, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.behaviour("peers 27", "peers 28", "peers 136")
def test_order_of_a_run_and_of_one_that_goes_on(tmp_path):
    told = []

    class Tells(gx.Callback):
        def next_step(self, step):
            return step + 1

        def host_state(self):
            return {"told": len(told)}

    def tell(name):
        def hook(self, *arguments):
            told.append(name)

        return hook

    hooks = ("fit_start", "step", "save", "train_metrics", "train_log", "validation_end", "train_end", "fit_end")
    for name in hooks:
        setattr(Tells, f"on_{name}", tell(name))
    Tells.restore_host_state = tell("restore")

    def fit(epochs, resume=None):
        callbacks = [gx.Checkpoint(), Tells()]  # it is called last, all the same
        settings = {"log_every": 1, "steps_per_dispatch": 1, "run_dir": tmp_path, "callbacks": callbacks}
        gx.Trainer(max_epochs=epochs, **settings).fit(LineTask(), data_of(2), resume=resume)

    fit(1)
    step = ["train_metrics", "train_log"]
    end = ["validation_end", "step", "save", "train_end", "fit_end"]  # it saves after a validation
    assert told == ["fit_start", *step, "step", *step, *end]
    told.clear()
    fit(2, resume="last")
    assert told == ["fit_start", "restore", *step, "step", *step, *end]


class Count(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(np.zeros((), np.float32))


PEAK, LAST, WARM_UP = 1e-2, 1e-4, 5


@dataclasses.dataclass(frozen=True)
class UnitTask(LineTask):
    """Its gradient is -1, so after each update the weight is the sum of all rates."""

    def build_model(self, rngs):
        return Count()

    def build_optimizer(self, num_steps):
        return optax.sgd(optax.warmup_cosine_decay_schedule(0.0, PEAK, WARM_UP, num_steps, LAST))

    def loss(self, model, batch, rng):
        return -model.w[...], {}


def rate(update, of):
    """Warm-up and cosine in closed form."""
    if update < WARM_UP:
        return PEAK * update / WARM_UP
    return LAST + (PEAK - LAST) * (1 + np.cos(np.pi * (update - WARM_UP) / (of - WARM_UP))) / 2


@pytest.mark.behaviour("peers 72", "peers 73", "peers 76", "reports 17")
@pytest.mark.parametrize(("accumulate", "resumed"), [(1, 0), (1, 14), (2, 7)])
def test_the_learning_rate_is_its_schedules(tmp_path, accumulate, resumed):
    """Over all of a run, or behind an error: also between two updates."""
    steps = 24
    recorder = Recorder(tuple(range(1, steps + 1)))
    callbacks = [gx.GradientAccumulation(accumulate), gx.Checkpoint(every=gx.Steps(1000))]

    class Crash(gx.Callback):
        def next_step(self, step):
            return resumed

        def on_step(self, run):
            raise RuntimeError("crash")

    def fit(*more, resume=None):
        trainer = gx.Trainer(max_steps=steps, run_dir=tmp_path, callbacks=[*callbacks, *more])
        trainer.fit(UnitTask(), data_of(steps), resume=resume)

    if resumed:
        with pytest.raises(RuntimeError, match="crash"):
            fit(Crash())
    fit(recorder, resume="last" if resumed else None)
    rates = np.cumsum([rate(update, steps // accumulate) for update in range(steps // accumulate)])
    for step in range(resumed + 1, steps + 1):
        updates = step // accumulate
        expected = rates[updates - 1] if updates else 0.0
        assert recorder.states[step]["w"].item() == pytest.approx(expected, rel=1e-5, abs=1e-9), step
