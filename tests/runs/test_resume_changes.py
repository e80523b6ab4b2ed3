"""A run that goes on with other settings than before: what can be carried over is, and what is otherwise is named."""

import dataclasses
import json
import logging

import jax
import numpy as np
import optax
import pytest
from support import LineTask, NetTask, line_data, net_data

import galvanax as gx
from galvanax.runs.arrays import name_leaves
from galvanax.trainer.resume import match_arrays, match_callbacks


def fit(folder, *callbacks, steps=10, resume=None, task=None, saving=None, **settings):
    saving = saving or gx.Checkpoint()
    trainer = gx.Trainer(max_steps=steps, run_dir=folder, callbacks=[*callbacks, saving], **settings)
    return trainer.fit(task or NetTask(), net_data(), resume=resume)


def warned(caplog):
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


@dataclasses.dataclass
class Scale(gx.Callback):
    """Scales gradients, and keeps its factor's own sum in a slot and on the host."""

    factor: float = 1.0

    def on_fit_start(self, run):
        self.sum = 0.0

    def on_train_metrics(self, run, steps, metrics):
        self.sum += self.factor * len(steps)

    def host_state(self):
        return {"sum": self.sum}

    def restore_host_state(self, state):
        self.sum = state["sum"]

    def wrap_optimizer(self, optimizer):
        return optax.chain(optax.scale(self.factor), optimizer)


@dataclasses.dataclass(frozen=True)
class SteadyTask(NetTask):
    """With a learning rate that does not depend on the number of steps."""

    def build_optimizer(self, num_steps):
        return optax.sgd(self.learning_rate)


@pytest.mark.behaviour("peers 10", "peers 99", "peers 135")
def test_callbacks_of_a_class_keep_their_state_whatever_their_order(tmp_path):
    averages = [gx.EMA(0.5), gx.EMA(0.99)]
    scales = [Scale(1.0), Scale(2.0)]
    whole = fit(tmp_path / "whole", *averages, *scales, steps=20, task=SteadyTask())
    fit(tmp_path / "run", *averages, *scales, task=SteadyTask())
    turned = [Scale(2.0), Scale(1.0)]
    result = fit(tmp_path / "run", *averages[::-1], *turned, steps=20, resume="last", task=SteadyTask())
    for name, other in (("EMA", "EMA_2"), ("EMA_2", "EMA")):
        for path, array in whole.state.slots[name].items():
            np.testing.assert_allclose(result.state.slots[other][path], array, rtol=1e-6)
    assert [scale.sum for scale in turned] == [40.0, 20.0]


@pytest.mark.behaviour("peers 85", "peers 98")
def test_classes_of_one_name(tmp_path):
    """Both run, and each keeps its own state."""
    mine, theirs = Scale(2.0), dataclasses.make_dataclass("Scale", [], bases=(Scale,), frozen=False)(5.0)
    assert type(mine) is not type(theirs)
    result = gx.Trainer(max_steps=1, callbacks=[mine, theirs]).fit(LineTask(0.01), line_data())
    plain = gx.Trainer(max_steps=1).fit(LineTask(0.1), line_data())
    np.testing.assert_allclose(result.state.params["kernel"], plain.state.params["kernel"], rtol=1e-6)
    assert (mine.sum, theirs.sum) == (2.0, 5.0)


def test_matching():
    one = {"class": "a.Scale", "type": "Scale", "factor": 1.0}
    two = {"class": "b.Scale", "type": "Scale", "factor": 1.0}
    ema = {"class": "galvanax.EMA", "type": "EMA", "decay": 0.9}
    assert match_callbacks({"Scale": one, "Scale_2": two}, {"Scale": two, "Scale_2": one}) == {
        "Scale": "Scale_2",
        "Scale_2": "Scale",
    }
    assert match_callbacks({"EMA": ema}, {"EMA": {**ema, "decay": 0.5}, "Scale": one}) == {"EMA": "EMA"}
    moved = {**one, "class": "elsewhere.Scale"}
    assert match_callbacks({"Scale": one}, {"Scale": moved, "EMA": ema}) == {"Scale": "Scale"}
    assert match_callbacks({}, {"EMA": ema}) == {}
    wanted = {"slots/EMA/w": "f[3]", "opt_state/1/task/0/mu/w": "f[3]", "opt_state/0/count": "i[]", "params/w": "f[3]"}
    saved = {"slots/EMA_2/w": "f[3]", "opt_state/task/0/mu/w": "f[3]", "params/w": "f[4]", "slots/EMA/w": "f[3]"}
    assert match_arrays(wanted, saved, {"EMA": "EMA_2"}) == {
        "slots/EMA/w": "slots/EMA_2/w",
        "opt_state/1/task/0/mu/w": "opt_state/task/0/mu/w",
    }


WRAPPERS = {
    "clipping": lambda: [gx.GradientClipping(1.0)],
    "average": lambda: [gx.EMA(0.9)],
    "accumulation": lambda: [gx.GradientAccumulation(2)],
    "freeze": lambda: [gx.Freeze(("first/*",))],
}


@pytest.mark.behaviour("peers 56", "peers 76", "peers 80", "peers 81")
@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("added", [True, False])
def test_added_and_removed(tmp_path, caplog, kind, added):
    with_, without = WRAPPERS[kind](), []
    fit(tmp_path, *(without if added else with_))
    result = fit(tmp_path, *(with_ if added else without), steps=20, resume="last")
    assert int(result.state.step) == 20
    name = type(with_[0]).__name__
    assert f"resumed with{' another' if added else 'out the'} callback {name}" in warned(caplog)
    # AdamW's count goes on, wherever it is now; with accumulation it counts updates.
    named = name_leaves(result.state.opt_state)
    count = next(leaf for path, leaf in named.items() if path.endswith("task/0/count"))
    assert int(count) == (15 if kind == "accumulation" else 20)
    words = {"average": "slots/EMA (6 arrays)", "accumulation": "opt_state", "freeze": "opt_state"}
    assert words.get(kind, "callback") in warned(caplog)


def test_an_average_that_is_added_starts_from_the_weights_of_then(tmp_path):
    fit(tmp_path)
    seen = {}

    class Look(gx.Callback):
        def on_fit_start(self, run):
            seen.update(jax.tree.map(np.array, {"average": run.state.slots["EMA"], "params": run.state.params}))

    fit(tmp_path, gx.EMA(0.9), Look(), steps=12, resume="last")
    for path, array in seen["params"].items():
        np.testing.assert_array_equal(seen["average"][path], array)


def test_another_optimizer(tmp_path, caplog):
    @dataclasses.dataclass(frozen=True)
    class Task(NetTask):
        rule: str = "adamw"

        def build_optimizer(self, num_steps):
            return optax.adamw(1e-3) if self.rule == "adamw" else optax.sgd(1e-3, momentum=0.9)

    fit(tmp_path, task=Task())
    result = fit(tmp_path, task=Task(rule="sgd"), steps=12, resume="last")
    assert int(result.state.step) == 12
    assert "task.rule: was adamw, is sgd" in warned(caplog)
    assert "made anew, since" in warned(caplog)
    assert "not taken over" in warned(caplog)


@pytest.mark.behaviour("peers 56", "peers 161")
def test_what_changed_is_named(tmp_path, caplog):
    fit(tmp_path, gx.EMA(0.9), gx.GradientClipping(1.0))
    with caplog.at_level(logging.WARNING, "galvanax"):
        fit(tmp_path, gx.EMA(0.95), steps=12, seed=1, precision="bfloat16", log_every=7, resume="last")
    for words in (
        "trainer.seed: was 0, is 1",
        "trainer.precision: was float32, is bfloat16",
        "trainer.log_every: was 50, is 7",
        "EMA.decay: was 0.9, is 0.95",
        "without the callback GradientClipping",
    ):
        assert words in warned(caplog)
    caplog.clear()
    fit(tmp_path, gx.EMA(0.95), steps=14, seed=1, precision="bfloat16", log_every=7, resume="last")
    assert warned(caplog) == ""


@dataclasses.dataclass(frozen=True)
class Scripted(LineTask):
    """Validates to `val/score` = the next of its values and `val/step` = the number of the validation."""

    values: tuple[float, ...] = (5.0, 4.0, 3.0, 2.0, 1.0)

    def build_optimizer(self, num_steps):
        return optax.sgd(0.0)

    def train_step(self, state, batch, rng):
        state, metrics = super().train_step(state, batch, rng)
        params = {name: array * 0 + (state.step + 1) / 8 for name, array in state.params.items()}
        return state.replace(params=params), metrics

    def evaluate(self, model, batch, rng):
        number = model.kernel[0, 0]  # an epoch is eight steps
        values = jax.numpy.array(self.values)
        return {"loss": number * 0, "score": values[number.astype(int) - 1], "step": number}


def scripted(folder, epochs, values, monitor, mode, resume=None, **settings):
    saving = gx.Checkpoint(monitor, mode, **settings)
    return gx.Trainer(max_epochs=epochs, run_dir=folder, callbacks=[saving]).fit(
        Scripted(values=values), line_data(), resume=resume
    )


def best_epoch(result):
    return int(result.best_checkpoint.name) // 8


def kept(folder):
    return sorted(int(path.name) // 8 for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


nan, inf = float("nan"), float("inf")


@pytest.mark.behaviour("peers 37", "peers 38", "peers 128", "reports 13")
@pytest.mark.parametrize(
    ("mode", "values", "best", "keep"),
    [
        ("min", (nan, 8.0, 7.0, 5.0, 6.0), 4, {4, 5}),
        ("max", (nan, 5.0, 7.0, 8.0, 6.0), 4, {4, 5}),
        ("min", (-inf, 8.0, 7.0, inf, 9.0), 3, {3, 5}),
        ("max", (inf, 8.0, nan, 5.0, 6.0), 2, {2, 5}),
        ("min", (nan, nan, nan, nan, nan), 5, {5}),
    ],
)
def test_the_best_is_among_the_finite(tmp_path, mode, values, best, keep):
    result = scripted(tmp_path, 5, values, "val/score", mode)
    assert best_epoch(result) == best
    assert set(kept(tmp_path)) == keep
    # So that any other program can read it.
    for path in tmp_path.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.mark.behaviour("peers 149")
def test_another_monitor_ranks_by_its_own_metric(tmp_path, caplog):
    values = (5.0, 4.0, 3.0, 2.0, 1.0)
    scripted(tmp_path, 2, values, "val/step", "max")
    result = scripted(tmp_path, 5, values, "val/score", "min", resume="last")
    assert best_epoch(result) == 5
    assert kept(tmp_path) == [5]
    assert "Checkpoint.monitor: was val/step, is val/score" in warned(caplog)
    # And a value that an older checkpoint has of the new metric counts.
    folder = tmp_path / "other"
    scripted(folder, 2, (0.5, 4.0, 3.0, 2.0, 1.0), "val/step", "max", keep_last=None)
    assert best_epoch(scripted(folder, 5, (0.5, 4.0, 3.0, 2.0, 1.0), "val/score", "min", resume="last")) == 1


@pytest.mark.behaviour("peers 150")
def test_a_mode_that_was_a_slip(tmp_path):
    values = (1.0, 2.0, 3.0, 4.0, 5.0)
    scripted(tmp_path, 2, values, "val/score", "min", keep_last=None)
    assert best_epoch(scripted(tmp_path, 5, values, "val/score", "max", resume="last", keep_last=None)) == 5


def stopping(folder, epochs, resume=None, patience=2):
    callbacks = [gx.EarlyStopping("val/loss", "min", patience=patience), gx.Checkpoint()]
    trainer = gx.Trainer(max_epochs=epochs, run_dir=folder, callbacks=callbacks)
    return trainer.fit(LineTask(0.0), line_data(), resume=resume)


@pytest.mark.behaviour("peers 151")
def test_a_stopped_run_goes_on_when_it_is_asked_to(tmp_path, caplog):
    assert int(stopping(tmp_path, 9).state.step) == 24
    ended = stopping(tmp_path, 9, "auto")
    assert (int(ended.state.step), ended.stop_reason is None) == (24, False)
    assert "the run has ended at step 24: val/loss has not improved" in warned(caplog)
    assert int(stopping(tmp_path, 30, "auto").state.step) == 32  # more epochs: until the next look
    assert "the run was stopped at step 24" in warned(caplog)
    assert int(stopping(tmp_path, 30, "last").state.step) == 40
    assert int(stopping(tmp_path, 30, "auto", patience=9).state.step) > 60


@pytest.mark.behaviour("peers 151")
def test_a_budget_of_ones_own_is_spent_anew_each_time(tmp_path):
    @dataclasses.dataclass
    class Budget(gx.Callback):
        steps: int = 4

        def on_fit_start(self, run):
            self.end = run.step + self.steps

        def next_step(self, step):
            return self.end if step < self.end else None

        def on_step(self, run):
            run.stop("budget spent")

    reached = [int(fit(tmp_path, Budget(), steps=14, resume="auto").state.step) for _ in range(5)]
    assert reached == [4, 8, 12, 14, 14]


@pytest.mark.behaviour("peers 96")
def test_a_time_budget(tmp_path):
    class Timer(gx.Callback):
        def on_fit_start(self, run):
            self.first = run.step

        def due(self, run):
            return run.step >= self.first + 2

        def on_step(self, run):
            run.stop("time")

    first = fit(tmp_path, Timer(), steps=10**6, steps_per_dispatch=2)
    second = fit(tmp_path, Timer(), steps=10**6, steps_per_dispatch=2, resume="last")
    assert int(second.state.step) > int(first.state.step)
