"""`galvanax tune`, and `gx.tune`."""

import csv
import dataclasses
import json
import shlex
from pathlib import Path

import pytest
from support import LineTask, line_data

import galvanax as gx
from galvanax.cli.main import main

FILE = """
import galvanax as gx
from support import LineTask, line_data

def line():
    checkpoint = gx.Checkpoint(monitor="val/loss", mode="min")
    trainer = gx.Trainer(max_steps=6, run_dir="run", val_every=gx.Steps(2))
    return gx.Experiment(LineTask(), line_data(), trainer, {"checkpoint": checkpoint, "csv": gx.CSVLogger()})
"""
RATES = ("--search", "task.learning-rate", "1e-3..0.3", "log")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "line.py").write_text(FILE)


def tune(*flags):
    main(["tune", "line.py:line", "--output", "found", *flags])


def fails(capsys, *flags):
    with pytest.raises(SystemExit) as caught:
        tune(*flags)
    assert caught.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def losses(run):
    """Of its validations, by step, as its CSV has them."""
    with open(Path(run) / "metrics.csv") as file:
        return {int(row["step"]): float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]}


def experiment(values, callbacks=None):
    trainer = gx.Trainer(max_steps=20, val_every=gx.Steps(2))
    checkpoint = gx.Checkpoint(monitor="val/loss", mode="min", keep_last=None)
    task = LineTask(learning_rate=values["rate"])
    return gx.Experiment(
        task, line_data(), trainer, {"checkpoint": checkpoint, "csv": gx.CSVLogger(), **(callbacks or {})}
    )


def test_the_best_is_a_command_to_train_with(capsys):
    tune(*RATES, "--num-trials", "3", "--trainer.seed", "7")
    runs = sorted(Path("found/trials").iterdir())
    assert [run.name for run in runs] == ["0000", "0001", "0002"]
    best = min(runs, key=lambda run: min(losses(run).values()))
    found = json.loads(Path("found/best.json").read_text())
    assert (found["best_run"], found["num_trials"], found["num_pruned"]) == (str(best), 3, 0)
    assert found["best_value"] == pytest.approx(min(losses(best).values()), rel=1e-6)
    flags = shlex.split(Path("found/best.flags").read_text())
    assert f"--trainer.seed 7 {' '.join(flags)}" in capsys.readouterr().out
    main(["fit", "line.py:line", "--trainer.seed", "7", *flags, "--no-evaluate"])
    assert losses("run") == losses(best)
    for name in ("history.png", "importance.png"):
        assert Path("found", name).read_bytes()[:4] == b"\x89PNG"
    # A trial is a run like any other.
    capsys.readouterr()
    main(["evaluate", str(best), "--experiment", "line.py:line", "--checkpoint", "last"])
    assert "checkpoints/6" in capsys.readouterr().out
    # And more trials come on top of these.
    tune(*RATES, "--num-trials", "4", "--trainer.seed", "7")
    assert len(list(Path("found/trials").iterdir())) == 4


def test_values_of_all_kinds():
    """Whole numbers, several words, callbacks' and data's fields: whatever is a flag."""
    words = ["--search", "trainer.limit-train-batches", "1..3", "--search", "callbacks.ema", "0.5", "0.9"]
    tune(*RATES, *words, "--num-trials", "2")
    for run in Path("found/trials").iterdir():
        config = json.loads((run / "config.json").read_text())
        assert config["trainer"]["limit_train_batches"] in (1, 2, 3)
        assert config["callbacks"]["EMA"]["decay"] in (0.5, 0.9)


@dataclasses.dataclass
class Killed(gx.Callback):
    """Ends the process, as far as a test can."""

    after: int

    def next_step(self, step):
        return self.after if step < self.after else None

    def on_step(self, run):
        raise SystemExit(9)


def test_a_killed_search_goes_on(tmp_path):
    """The interrupted trial continues its run; nothing is trained twice, and the numbers are those of a whole one."""
    search = {"rate": gx.Range(0.01, 0.2)}
    trials = []

    def make(values):
        trials.append(values["rate"])
        return experiment(
            values, {"killed": Killed(7)} if len(trials) == 3 else None
        )  # the second; the first is a look

    with pytest.raises(SystemExit):
        gx.tune(make, search, "killed", num_trials=3, prune=False)
    assert max(losses("killed/trials/0001")) == 6
    found = gx.tune(make, search, "killed", num_trials=3, prune=False)
    assert found.num_trials == 3
    interrupted = trials[2]
    assert trials.count(interrupted) == 2
    runs = sorted(path.name for path in Path("killed/trials").iterdir())
    assert runs == ["0000", "0001", "0003"]  # 0002 was Optuna's number for the rest of 0001
    whole = dataclasses.replace(experiment({"rate": interrupted}).trainer, run_dir="whole")
    dataclasses.replace(experiment({"rate": interrupted}), trainer=whole).fit()
    assert losses("killed/trials/0001") == losses("whole")
    assert found.best_value == pytest.approx(
        min(min(losses(f"killed/trials/{run}").values()) for run in runs), rel=1e-6
    )


@pytest.mark.slow
def test_what_falls_behind_is_pruned():
    """After five whole trials, rates that learn slower than the median end early; their runs are there all the same."""
    found = gx.tune(experiment, {"rate": gx.Range(1e-6, 0.2, log=True)}, "some", num_trials=9)
    steps = [max(losses(run)) for run in sorted(Path("some/trials").iterdir())]
    assert steps[:5] == [20] * 5
    assert found.num_pruned == sum(step < 20 for step in steps[5:]) > 0
    assert losses(found.best_run)[20] == pytest.approx(found.best_value, rel=1e-6)


def test_what_explodes_is_passed_over():
    found = gx.tune(experiment, {"rate": gx.Choice((1e30, 0.1))}, "some", num_trials=4)
    assert found.best_values == {"rate": 0.1}
    assert (found.num_trials, 0 < found.num_pruned < 4) == (4, True)
    with pytest.raises(gx.ConfigError, match="All 1 trials in all became NaN"):
        gx.tune(experiment, {"rate": gx.Choice((1e30, 1e31))}, "all", num_trials=1)


def test_what_is_wrong(capsys, tmp_path):
    assert "--task.learning-rat" in fails(capsys, "--search", "task.learning-rat", "1e-3..1e-2")
    assert "expected a flag and LOW..HIGH" in fails(capsys, "--search", "task.learning-rate", "0.1")
    assert "the lower one first" in fails(capsys, "--search", "task.learning-rate", "0.2..0.1")
    assert "expected a low end above 0" in fails(capsys, "--search", "task.learning-rate", "0..0.1", "log")
    assert "two or more values that differ" in fails(capsys, "--search", "trainer.seed", "3", "3")
    assert "--trainer.seed" in fails(capsys, "--search", "trainer.seed", "3", "four")
    assert "tune goes on by itself" in fails(capsys, *RATES, "--resume")
    assert "num_trials=0: expected at least 1" in fails(capsys, *RATES, "--num-trials", "0")
    assert "Unknown experiment 'pendlum'. Nearest: pendulum" in fails_with(capsys, "pendlum")
    assert not (tmp_path / "found").exists()
    assert "metric='val/los' is none of the run's validation: val/loss" in fails(
        capsys, *RATES, "--metric", "val/los", "--mode", "min"
    )
    assert "holds a study of metric=val/los; expected the same" in fails(capsys, *RATES)
    with pytest.raises(gx.ConfigError, match="the experiment monitors none"):
        gx.tune(
            lambda values: gx.Experiment(LineTask(), line_data(), gx.Trainer(max_steps=1)), {"a": gx.Range(1, 2)}, "x"
        )
    with pytest.raises(gx.ConfigError, match="nothing to search"):
        gx.tune(experiment, {}, "x")


def fails_with(capsys, name):
    with pytest.raises(SystemExit) as caught:
        main(["tune", name, "--output", "found", *RATES])
    assert caught.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_without_optuna(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(gx.ConfigError, match=r"pip install \"galvanax\[tune\]\""):
        gx.tune(experiment, {"rate": gx.Range(0.1, 0.2)}, "x")
