"""The `galvanax` command, from the first help page to a finished run's folder."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from galvanax.cli.main import main

OWN = '''
import dataclasses
import jax.numpy as jnp
import numpy as np
import optax
import galvanax as gx

@dataclasses.dataclass(frozen=True)
class SpringTask(gx.Task):
    """A spring.

    Attributes:
      hidden: width of the hidden layer.
    """
    hidden: int = 8
    learning_rate: float = 1e-2

    def build_model(self, rngs):
        return gx.networks.MLP(2, (self.hidden,), 1, rngs=rngs)

    def build_optimizer(self, num_steps):
        return optax.adamw(self.learning_rate)

    def loss(self, model, batch, rng):
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2), {}

@dataclasses.dataclass
class SpringData(gx.ArrayDataModule):
    train: object = None
    rows: int = 64
    batch_size: int = 16

    def setup(self):
        x = np.random.default_rng(0).normal(size=(self.rows, 2)).astype(np.float32)
        self.train = self.val = self.test = {"x": x, "y": -x[:, :1]}
        super().setup()

experiment = gx.Experiment(
    SpringTask(), SpringData(), gx.Trainer(max_epochs=2, run_dir="spring"),
    {"ema": gx.EMA(0.9), "checkpoint": gx.Checkpoint(monitor="val/loss", mode="min"), "csv": gx.CSVLogger()},
)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's file in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spring.py").write_text(OWN)
    return "spring.py:experiment"


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_pendulum_end_to_end(tmp_path):
    """The main job, made short: still a pendulum learned from MJX and judged by C MuJoCo."""
    run = tmp_path / "pendulum"
    main(["fit", "pendulum", "--trainer.run-dir", str(run), "--trainer.max-epochs", "8"])
    (record,) = (run / "evaluations").glob("*/test.json")
    figures = json.loads(record.read_text())
    assert figures["checkpoint"] == f"checkpoints/{record.parent.name}"
    assert (figures["step"], figures["split"]) == (int(record.parent.name), "test")
    assert figures["one_step_velocity_mse_over_persistence"] < 1e-3
    assert figures["open_loop_50_mse_over_persistence"] < 0.02
    assert figures["max_contacts"] == 0
    assert len(figures["open_loop_mse"]) == 50
    for plot in ("loss_curves", "predicted_vs_true", "open_loop_error"):
        assert (record.parent / "plots" / f"{plot}.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").iterdir())
    assert json.loads((run / "config.json").read_text())["trainer"]["name"] == "pendulum"
    with (run / "metrics.csv").open() as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert losses[-1] < losses[0] / 10
    record.unlink()
    main(["evaluate", str(run)])
    again = json.loads(record.read_text())
    assert again.keys() == figures.keys()
    np.testing.assert_allclose(again["open_loop_mse"], figures["open_loop_mse"], rtol=1e-6)


def test_a_users_own_file_with_flags(own, tmp_path, capsys):
    main(["fit", own, "--task.hidden", "5", "--data.batch-size", "32", "--trainer.val-every", "steps:1"])
    config = json.loads((tmp_path / "spring" / "config.json").read_text())
    assert config["task"] == {"type": "SpringTask", "hidden": 5, "learning_rate": 0.01}
    assert config["data"]["batch_size"] == 32
    assert config["trainer"]["val_every"] == {"steps": 1}
    with (tmp_path / "spring" / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["val/loss"]] == ["1", "2", "3", "4"]
    (record,) = (tmp_path / "spring" / "evaluations").glob("*/test.json")
    assert "test/loss" in json.loads(record.read_text())
    main(["evaluate", "spring", "--experiment", own, "--checkpoint", "last"])
    assert json.loads((tmp_path / "spring" / "evaluations" / "4" / "test.json").read_text())["step"] == 4


def test_resume_and_overwrite(own, tmp_path, capsys):
    main(["fit", own])
    assert "holds another run" in fails(capsys, "fit", own)
    assert "contradict" in fails(capsys, "fit", own, "--resume", "--overwrite")
    main(["fit", own, "--resume", "--trainer.max-epochs", "3"])
    assert (tmp_path / "spring" / "checkpoints" / "12").is_dir()
    main(["fit", own, "--overwrite"])
    assert not (tmp_path / "spring" / "checkpoints" / "12").exists()


def test_help_names_every_field(own, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["fit", own, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--task.hidden INT", "--data.batch-size INT", "--trainer.max-epochs", "--callbacks.ema.decay FLOAT"):
        assert flag in out
    assert "width of the hidden layer" in out
    assert "--callbacks.checkpoint.every steps:N|epochs:N" in out


def test_list_and_usage(capsys):
    main(["list"])
    assert capsys.readouterr().out.startswith("pendulum")
    main([])
    assert "galvanax COMMAND" in capsys.readouterr().out


def test_what_is_unknown(own, tmp_path, capsys):
    assert "unknown command 'fitt'. Nearest: fit" in fails(capsys, "fitt")
    assert "Unknown experiment 'pendulm'. Nearest: pendulum" in fails(capsys, "fit", "pendulm")
    assert "There is no file sprin.py" in fails(capsys, "fit", "sprin.py:experiment")
    assert "named 'experimen'. Nearest: experiment" in fails(capsys, "fit", "spring.py:experimen")
    assert "fit needs an experiment" in fails(capsys, "fit")
    error = fails(capsys, "fit", own, "--task.hiden", "5")
    assert "--task.hiden" in error
    assert "--task.hidden" in error
    assert "none" not in fails(capsys, "fit", own, "--trainer.val-every", "epoch:1").lower()
    assert "holds no run" in fails(capsys, "evaluate", str(tmp_path))
    assert not (tmp_path / "spring").exists()


def test_a_model_file_that_does_not_compile(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.xml").write_text("<mujoco><worldbody><body><joint type='hinge'/></body></worldbody></mujoco>")
    error = fails(capsys, "fit", "pendulum", "--data.system", "bad.xml")
    assert "bad.xml" in error
    assert "mass" in error
    assert "Traceback" not in error
    assert "pendulum" in fails(capsys, "fit", "pendulum", "--data.system", "pendulm")
    assert not (tmp_path / "runs").exists()


def test_compile_cache_is_on_by_default_and_can_be_chosen(tmp_path):
    code = "import jax, galvanax.trainer.compile_cache as c; c.enable_compile_cache(); "
    code += "jax.jit(lambda x: x * 3 + 1)(2.0).block_until_ready(); print(jax.config.jax_compilation_cache_dir)"
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin", "HOME": str(tmp_path)}

    def cache_dir(**more):
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, env=environment | more, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert cache_dir() == str(tmp_path / "galvanax" / "xla")
    assert list((tmp_path / "galvanax" / "xla").iterdir())
    assert cache_dir(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) == str(tmp_path / "mine")
