"""Where a run ends: what it logs and measures there, and what becomes of that when it goes on."""

import pytest
from stress.test_kill import scalars
from support import LineTask, Recorder, line_data

import galvanax as gx


def fit(folder, *callbacks, steps=None, resume=None, val=True, **settings):
    data = line_data() if val else gx.ArrayDataModule(train=line_data().train, batch_size=8)
    logs = [gx.CSVLogger(), gx.TensorBoardLogger()]
    settings = {"max_steps": steps, "run_dir": folder, "log_every": 5, "val_every": gx.Steps(6), **settings}
    return gx.Trainer(**settings, callbacks=[*callbacks, *logs]).fit(LineTask(1e-3), data, resume=resume)


def rows(folder):
    """Steps of `metrics.csv`'s rows, of training and of validation."""
    lines = (folder / "metrics.csv").read_text().splitlines()
    train = lines[0].split(",").index("train/loss")
    table = [line.split(",") for line in lines[1:]]
    return [int(row[0]) for row in table if row[train]], [int(row[0]) for row in table if not row[train]]


class StopAt(gx.Callback):
    def __init__(self, hook, step):
        def stop(run, at):
            if at >= step:
                run.stop("enough")

        hooks = {
            "on_train_metrics": lambda run, steps, metrics: stop(run, steps[-1]),
            "on_train_log": lambda run, at, metrics: stop(run, at),
            "on_validation_end": lambda run, metrics: stop(run, run.step),
        }
        setattr(self, hook, hooks[hook])


@pytest.mark.behaviour("peers 24", "peers 25")
@pytest.mark.parametrize("val", [True, False])
@pytest.mark.parametrize("hook", ["on_train_metrics", "on_train_log"])
def test_a_stop_takes_effect_before_the_next_dispatch(tmp_path, hook, val):
    """Not at the next boundary, which may be far."""
    result = fit(tmp_path, StopAt(hook, 10), steps=20_000, val=val, val_every=gx.Steps(20_000), steps_per_dispatch=4)
    reached = int(result.state.step)
    assert 12 <= reached <= 20  # seen one dispatch late, while the next is on its way
    assert result.stop_reason == "enough"
    assert {"train/loss", *(["val/loss"] if val else [])} <= result.metrics.keys()
    train, measured = rows(tmp_path)
    assert train[-1] == reached
    assert measured == [reached] * val


@pytest.mark.behaviour("peers 87")
def test_a_short_run_that_is_stopped_has_its_training_loss(tmp_path):
    recorder = Recorder()
    result = fit(tmp_path, StopAt("on_validation_end", 12), recorder, steps=100, log_every=50)
    assert int(result.state.step) == 12
    assert result.metrics["train/loss"] == pytest.approx(sum(recorder.train.values()) / 12, rel=1e-6)
    assert rows(tmp_path) == ([12], [6, 12])


@pytest.mark.behaviour("peers 24")
def test_the_checkpoint_of_a_stop_is_ranked(tmp_path):
    saving = gx.Checkpoint("val/loss", "min", keep_best=2)
    result = fit(tmp_path, StopAt("on_train_metrics", 8), saving, steps=100, steps_per_dispatch=1)
    assert int(result.best_checkpoint.name) == int(result.state.step)  # the loss falls all the time


@pytest.mark.behaviour("peers 157")
@pytest.mark.parametrize("end", [7, 10, 12, 13])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_goes_on_has_the_rows_of_one_that_was_longer(tmp_path, end, stopped):
    """Whether its end was a multiple of anything or not: what it logged there as its last is not what that logs."""
    whole = fit(tmp_path / "whole", steps=25)
    stop = [StopAt("on_train_metrics", end - 1)] if stopped else []
    first = fit(tmp_path / "run", *stop, steps=25 if stopped else end, steps_per_dispatch=1)
    assert stopped or rows(tmp_path / "run")[0][-1] == end
    assert stopped or rows(tmp_path / "run")[1][-1] == end
    assert int(first.state.step) < 25
    result = fit(tmp_path / "run", steps=25, resume="last")
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
    assert scalars(tmp_path / "run") == scalars(tmp_path / "whole")
    assert result.metrics == whole.metrics


@pytest.mark.behaviour("peers 59")
def test_a_finished_run_that_is_started_again_keeps_its_rows(tmp_path):
    fit(tmp_path, steps=13)
    before = (tmp_path / "metrics.csv").read_bytes(), scalars(tmp_path)
    fit(tmp_path, steps=13, resume="auto")
    assert ((tmp_path / "metrics.csv").read_bytes(), scalars(tmp_path)) == before


def test_a_stopped_run_that_stays_stopped_keeps_its_rows(tmp_path):
    def stopping():
        return gx.EarlyStopping("val/loss", "max", patience=0)

    first = fit(tmp_path, stopping(), steps=100)
    before = (tmp_path / "metrics.csv").read_bytes(), scalars(tmp_path)
    again = fit(tmp_path, stopping(), steps=100, resume="auto")
    assert int(again.state.step) == int(first.state.step) == 12
    assert ((tmp_path / "metrics.csv").read_bytes(), scalars(tmp_path)) == before
