"""Things of the wrong kind, and names that are none: told before anything is compiled, with the right ones."""

import dataclasses
import sys

import jax
import pytest
from flax import nnx
from support import LineTask, line_data

import galvanax as gx
from galvanax.experiments.experiment import find_experiment


class Misspelt(gx.Callback):
    def on_train_metric(self, run, steps, metrics):
        pass


@dataclasses.dataclass(frozen=True)
class Complex(LineTask):
    impedance: complex = 1j


def model():
    return nnx.Linear(1, 1, rngs=nnx.Rngs(0))


@pytest.mark.behaviour("peers 35")
@pytest.mark.parametrize(
    ("task", "data", "words"),
    [
        (model, line_data, r"given Linear as task; expected a gx\.Task\.$"),
        (line_data, LineTask, r"given ArrayDataModule as task; expected a gx\.Task\. Task and data seem to be swapped"),
        (lambda: LineTask, line_data, r"given the class LineTask as task; expected LineTask\(\.\.\.\)"),
        (
            LineTask,
            lambda: gx.ArrayDataModule,
            r"the class ArrayDataModule as data; expected ArrayDataModule\(\.\.\.\)",
        ),
        (LineTask, lambda: line_data().train, r"given dict as data; expected a gx\.DataModule"),
    ],
)
def test_arguments(task, data, words):
    with pytest.raises(gx.ConfigError, match=words):
        gx.Trainer(max_steps=1).fit(task(), data())


@pytest.mark.behaviour("reports 12")
@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 1.5, None, True, "0"])
def test_seeds(seed):
    with pytest.raises(gx.ConfigError, match=r"Trainer\.seed=.*: expected a whole number from 0 to 4294967295"):
        gx.Trainer(max_steps=1, seed=seed).fit(LineTask(), line_data())


def test_the_largest_seed():
    assert int(gx.Trainer(max_steps=1, seed=2**32 - 1).fit(LineTask(), line_data()).state.step) == 1


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (gx.ProgressBar, r"holds the class ProgressBar; expected ProgressBar\(\.\.\.\)"),
        (Misspelt(), r"Misspelt\.on_train_metric is no hook of a callback\. Nearest: on_train_metrics"),
        (gx.Freeze(("kernl",)), r"'kernl', which matches none of the model's 1 arrays\. Nearest: kernel"),
    ],
)
def test_callbacks(callback, words):
    with pytest.raises(gx.ConfigError, match=words):
        gx.Trainer(max_steps=1, callbacks=[callback]).fit(LineTask(), line_data())


@pytest.mark.behaviour("reports 24")
def test_a_field_that_a_runs_folder_cannot_tell(tmp_path):
    with pytest.raises(
        gx.ConfigError, match=r"Complex could not be loaded again from run_dir: .*complex.*plain values"
    ):
        gx.Trainer(max_steps=1, run_dir=tmp_path / "run").fit(Complex(), line_data())
    assert not (tmp_path / "run").exists()
    assert gx.Trainer(max_steps=1).fit(Complex(), line_data())


@pytest.mark.parametrize("flag", ["jax_debug_nans", "jax_disable_jit"])
def test_jax_tools_work_inside(flag):
    plain = gx.Trainer(max_steps=2).fit(LineTask(), line_data())
    jax.config.update(flag, True)
    try:
        result = gx.Trainer(max_steps=2).fit(LineTask(), line_data())
    finally:
        jax.config.update(flag, False)
    assert result.metrics["train/loss"] == pytest.approx(plain.metrics["train/loss"], rel=1e-5)


@pytest.mark.behaviour("reports 36")
def test_an_experiment_file_imports_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "my exp"
    folder.mkdir()
    (folder / "neighbour_of_mine.py").write_text("STEPS = 3\n")
    (folder / "my-task.py").write_text(
        "import galvanax as gx\nfrom neighbour_of_mine import STEPS\nfrom support import LineTask, line_data\n"
        "experiment = gx.Experiment(LineTask(), line_data(), gx.Trainer(max_steps=STEPS))\n"
    )
    assert find_experiment(f"{folder}/my-task.py:experiment").trainer.max_steps == 3
