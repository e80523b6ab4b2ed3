"""`FitResult.history`: every row that was logged, with a folder or without, resumed or not, and in each checkpoint."""

import csv
import json
import math
import shutil

import pytest
from support import LineTask, line_data

import galvanax as gx
from galvanax.cli.evaluate import evaluate_run
from galvanax.runs.history import HISTORY, read_history
from galvanax.runs.integrity import DamagedError, write_manifest


def train(run_dir=None, steps=30, every=7, resume=None, **settings):
    callbacks = [gx.CSVLogger(), gx.Checkpoint(every=gx.Steps(every), keep_last=None)] if run_dir else []
    trainer = gx.Trainer(
        max_steps=steps, log_every=4, val_every=gx.Steps(10), run_dir=run_dir, callbacks=callbacks, **settings
    )
    return trainer.fit(LineTask(), line_data(), resume=resume)


def table(run_dir):
    """The rows of metrics.csv, those of a step in one."""
    rows = {}
    with (run_dir / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            rows.setdefault(int(row["step"]), {}).update({name: float(cell) for name, cell in row.items() if cell})
    return list(rows.values())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("history") / "run"
    return folder, train(folder)


def test_is_what_was_logged(whole):
    folder, result = whole
    assert result.history == table(folder)
    assert [row["step"] for row in result.history] == [4, 8, 10, 12, 16, 20, 24, 28, 30]
    assert {name for row in result.history for name in row} >= {"epoch", "train/loss", "val/loss", "train/grad_norm"}
    assert train().history == result.history


@pytest.mark.parametrize("cut", [7, 10, 14, 20, 28])
def test_of_a_resumed_run_from_its_first_step_on(whole, tmp_path, cut):
    _, result = whole
    train(tmp_path / "run", steps=cut)
    resumed = train(tmp_path / "run", resume="last")
    assert resumed.history == result.history == table(tmp_path / "run")


def test_each_checkpoint_has_its_curves(whole, tmp_path):
    folder, result = whole
    for step in (7, 14, 21, 28, 30):
        assert read_history(folder / "checkpoints" / str(step)) == [
            row for row in result.history if row["step"] <= step
        ]
    # A copy of the checkpoint, and of nothing else but what the run was made of.
    shutil.copytree(folder / "checkpoints" / "28", tmp_path / "run" / "checkpoints" / "28")
    shutil.copy(folder / "config.json", tmp_path / "run")
    evaluate_run(
        tmp_path / "run", line_data(), experiment=gx.Experiment(LineTask(), line_data(), gx.Trainer(max_steps=1))
    )
    assert (tmp_path / "run" / "evaluations" / "28" / "plots" / "loss_curves.png").is_file()


def test_values_that_are_not_finite(tmp_path):
    class Odd(LineTask):
        def loss(self, model, batch, rng):
            loss, metrics = super().loss(model, batch, rng)
            return loss, {**metrics, "ratio": loss / 0}

    result = gx.Trainer(max_steps=8, log_every=4, run_dir=tmp_path).fit(Odd(), line_data())
    assert [row["train/ratio"] for row in result.history if "train/ratio" in row] == [math.inf, math.inf]
    assert read_history(tmp_path / "checkpoints" / "8") == result.history


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no object"),
        ({"step": [4, 4], "train/loss": [1.0, 2.0]}, "no steps in order"),
        ({"step": [4, 8.5]}, "no steps in order"),
        ({"train/loss": [1.0]}, "no steps in order"),
        ({"step": [4, 8], "train/loss": [1.0]}, r"'train/loss' is no list of 2 numbers"),
        ({"step": [4], "train/loss": ["1.0"]}, r"'train/loss' holds something else"),
    ],
)
def test_a_file_that_holds_something_else(whole, tmp_path, content, message):
    shutil.copytree(whole[0] / "checkpoints" / "30", tmp_path / "30")
    (tmp_path / "30" / HISTORY).write_text(json.dumps(content))
    write_manifest(tmp_path / "30")
    with pytest.raises(DamagedError, match=message):
        read_history(tmp_path / "30")


def test_a_read_error_is_no_damage(whole, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("galvanax.runs.history.read_json", fail)
    with pytest.raises(gx.CheckpointError, match=r"can't be read at the moment: history\.json: Input/output") as caught:
        read_history(whole[0] / "checkpoints" / "30")
    assert not isinstance(caught.value, DamagedError)
