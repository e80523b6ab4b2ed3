"""`--callbacks.NAME`: callbacks added, changed and taken away on the command line."""

import json

import numpy as np
import pytest

import galvanax as gx
from galvanax.cli.callback_flags import SHIPPED
from galvanax.cli.main import main
from galvanax.runs.weights import read_weights

FILE = '''
import dataclasses
import galvanax as gx
from support import LineTask, line_data

@dataclasses.dataclass
class Mine(gx.Callback):
    """Counts."""
    every: int
    word: str = "hello"

    def next_step(self, step):
        return (step // self.every + 1) * self.every

    def on_step(self, run):
        print(self.word, run.step)

mine = Mine(3, "ready-made")

def line():
    callbacks = {"clip": gx.GradientClipping(1.0), "checkpoint": gx.Checkpoint(), "csv": gx.CSVLogger()}
    return gx.Experiment(LineTask(), line_data(), gx.Trainer(max_steps=8, run_dir="run", log_every=1), callbacks)
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "line.py").write_text(FILE)


def fit(*flags):
    main(["fit", "line.py:line", "--no-evaluate", "--overwrite", *flags])


def callbacks():
    with open("run/config.json") as file:
        return list(json.load(file)["callbacks"].values())


def fails(capsys, *flags):
    with pytest.raises(SystemExit) as caught:
        fit(*flags)
    assert caught.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_added_as_in_python():
    """The weights are those of the same callbacks in a list."""
    fit("--callbacks.accumulate", "4", "--callbacks.ema", "0.9", "--callbacks.clip=0.01", "--callbacks.csv", "none")
    assert [callback["type"] for callback in callbacks()] == [
        "GradientAccumulation",
        "GradientClipping",
        "EMA",
        "Checkpoint",
    ]
    assert [callbacks()[0]["steps"], callbacks()[1]["threshold"], callbacks()[2]["decay"]] == [4, 0.01, 0.9]
    from support import LineTask, line_data

    same = [gx.GradientAccumulation(4), gx.GradientClipping(0.01), gx.EMA(0.9)]
    gx.Trainer(max_steps=8, log_every=1, callbacks=same, run_dir="same").fit(LineTask(), line_data())
    found, expected = read_weights("run").params, read_weights("same").params
    np.testing.assert_array_equal(found["kernel"], expected["kernel"])


def test_with_fields_of_their_own():
    stop = ["--callbacks.early-stopping", "train/loss", "--callbacks.early-stopping.mode", "max"]
    fit(*stop, "--callbacks.early-stopping.patience", "2", "--callbacks.clip.by", "value")
    assert callbacks()[0]["by"] == "value"
    early = next(callback for callback in callbacks() if callback["type"] == "EarlyStopping")
    assert (early["monitor"], early["mode"], early["patience"]) == ("train/loss", "max", 2)


def test_ones_own(capsys):
    fit("--callbacks.mine", "line.py:Mine", "--callbacks.mine.every", "4")
    assert "hello 4\nhello 8\n" in capsys.readouterr().out
    fit("--callbacks.mine", "line.py:mine", "--callbacks.mine.every", "8")
    assert "ready-made 8\n" in capsys.readouterr().out
    assert callbacks()[-1]["type"] == "Checkpoint"  # which runs behind all others
    assert callbacks()[-2]["every"] == 8


def test_no_checkpoint(tmp_path):
    fit("--callbacks.checkpoint", "none")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_is_wrong(capsys, tmp_path):
    assert "--callbacks.acumulate: there is no such callback. Nearest: accumulate." in fails(
        capsys, "--callbacks.acumulate", "4"
    )
    assert "--callbacks.clpi.threshold: there is no such callback. Nearest: clip." in fails(
        capsys, "--callbacks.clpi.threshold", "4"
    )
    assert "--callbacks.ema none: the experiment has no such callback." in fails(capsys, "--callbacks.ema", "none")
    assert "CSVLogger has no setting that goes without a name" in fails(capsys, "--callbacks.csv", "4")
    assert "contradict each other" in fails(capsys, "--callbacks.clip", "none", "--callbacks.clip.threshold", "1")
    assert "contradict each other" in fails(capsys, "--callbacks.clip.by", "value", "--callbacks.clip", "none")
    assert "--callbacks.early-stopping.mode" in fails(capsys, "--callbacks.early-stopping", "val/loss")
    assert "--callbacks.accumulate.steps" in fails(capsys, "--callbacks.accumulate", "four")
    assert "GradientAccumulation.steps=0" in fails(capsys, "--callbacks.accumulate", "0")
    assert "holds no gx.Callback named 'mnie'. Nearest: mine" in fails(capsys, "--callbacks.mine", "line.py:mnie")
    assert "There is no file lines.py" in fails(capsys, "--callbacks.mine", "lines.py:Mine")
    assert "--callbacks.mine.every" in fails(capsys, "--callbacks.mine", "line.py:Mine")
    assert not (tmp_path / "run").exists()


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        fit("--help")
    assert caught.value.code == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    names = ", ".join(name.replace("_", "-") for name in SHIPPED)
    assert f"adds a callback ({names}, or NAME" in out
    with pytest.raises(SystemExit) as caught:
        fit("--callbacks.early-stopping", "--help")
    assert caught.value.code == 0
    assert "--callbacks.early-stopping.patience" in capsys.readouterr().out
