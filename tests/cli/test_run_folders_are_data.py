"""A run folder is data: reading one runs no code that it names, writes nothing outside, and has errors for all else."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import galvanax as gx
from galvanax.cli.main import main
from galvanax.cli.runs import task_type

OWN = '''
import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import galvanax as gx

Path(__file__).with_suffix(".ran").touch()

@dataclasses.dataclass(frozen=True)
class LineTask(gx.Task):
    """A line."""
    rate: float = 0.1

    def build_model(self, rngs):
        return gx.networks.MLP(1, (), 1, rngs=rngs)

    def build_optimizer(self, num_steps):
        return optax.sgd(self.rate)

    def loss(self, model, batch, rng):
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2), {}

@dataclasses.dataclass(frozen=True)
class OtherTask(LineTask):
    """Another."""

x = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
data = {"x": x, "y": 3 * x}
callbacks = {"checkpoint": gx.Checkpoint(monitor="val/loss", mode="max"), "csv": gx.CSVLogger()}  # best is the first
experiment = gx.Experiment(
    LineTask(), gx.ArrayDataModule(data, data, data, 16), gx.Trainer(max_epochs=3, seed=1), callbacks
)
other = dataclasses.replace(experiment, task=OtherTask())
rollouts = dataclasses.replace(experiment, data=gx.RolloutDataModule())
'''
COMMANDS = {
    "evaluate": [],
    "play": ["--formats"],
    "collect": ["--num-episodes", "1", "--output", "out.npz"],
    "sample": ["--output", "out.npz"],
    "export": ["--output", "out.onnx"],
}


def fails(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


def record(run, step):
    return json.loads((run / "evaluations" / str(step) / "test.json").read_text())


def edit(run, **parts):
    """Changes config.json: some entries of its parts."""
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(
        json.dumps({**config, **{name: config[name] | new for name, new in parts.items()}})
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the user's own file, with the checkpoints 2 (best) and 6 (last)."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(OWN)
    main(["fit", f"{folder / 'own.py'}:experiment", "--trainer.run-dir", str(folder / "run"), "--no-evaluate"])
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """Its folder, from someone else: beside it lies the file that it names, as yet not run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copy(trained / "own.py", tmp_path / "own.py")
    edit(Path("run"), trainer={"name": str(tmp_path / "own.py:experiment")})
    return Path("run")


def ran():
    return Path("own.ran").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_a_file_that_config_json_names(run, capsys, command):
    for name in (f"{Path.cwd()}/own.py:experiment", "own.py:experiment", "./own.py:experiment"):
        edit(run, trainer={"name": name})
        error = fails(capsys, command, run, *COMMANDS[command])
        assert "run/config.json" in error
        assert error.endswith(f"Name it yourself: --experiment {name}\n")
    assert not ran()
    assert not list(Path().glob("out*"))
    assert fails(capsys, command, run, *COMMANDS[command], "--experiment", "own.py:other").count("Task") == 2
    assert ran()


def test_nor_does_a_run_beside_another(run):
    run.rename("stranger")
    with pytest.raises(gx.RunDirError, match=r"stranger/config.json.*--experiment"):
        task_type(Path("stranger"), None)
    assert not ran()


def test_what_is_to_be_pasted_is_quoted_and_can_be_seen(run, capsys):
    edit(run, trainer={"name": "my own.py:it; touch x"})
    assert fails(capsys, "evaluate", run).endswith("--experiment 'my own.py:it; touch x'\n")
    edit(run, trainer={"name": "a.py:\x1b[2J\nb"})
    error = fails(capsys, "evaluate", run)
    assert "\x1b" not in error
    assert "\\x1b[2J\\nb" in error


def test_weights_are_exported_without_an_experiment(run):
    main(["export", str(run), "--output", "weights.safetensors"])
    assert Path("weights.safetensors").exists()
    assert not ran()


def test_each_checkpoint_has_its_record(run, capsys):
    own = ["--experiment", "own.py:experiment"]
    main(["evaluate", str(run), *own])
    assert "run/evaluations/2/test.json" in capsys.readouterr().out
    best = record(run, 2)
    main(["evaluate", str(run), *own, "--checkpoint", "last"])
    assert record(run, 2) == best
    last = record(run, 6)
    assert (best["checkpoint"], best["step"], best["split"]) == ("checkpoints/2", 2, "test")
    assert (last["checkpoint"], last["step"], last["split"]) == ("checkpoints/6", 6, "test")
    assert last["test/loss"] < best["test/loss"]
    for step in (2, 6):
        assert (run / "evaluations" / str(step) / "plots" / "loss_curves.png").is_file()
    assert not list(run.glob("*.png"))
    main(["evaluate", str(run), *own, "--output-dir", "there"])
    assert json.loads(Path("there/test.json").read_text()) == best
    assert Path("there/plots/loss_curves.png").is_file()


def test_a_checkpoint_from_elsewhere_is_not_recorded_as_the_runs_own(run, trained, capsys):
    own = ["--experiment", "own.py:experiment", "--checkpoint", str(trained / "run" / "checkpoints" / "6")]
    assert "--output-dir" in fails(capsys, "evaluate", run, *own)
    assert not (run / "evaluations").exists()
    main(["evaluate", str(run), *own, "--output-dir", "there"])
    assert json.loads(Path("there/test.json").read_text())["checkpoint"] == own[-1]
    (run / "checkpoints" / "superseded").mkdir()
    shutil.copytree(run / "checkpoints" / "6", run / "checkpoints" / "superseded" / "6")
    main(["evaluate", str(run), *own[:3], "run/checkpoints/superseded/6"])
    assert record(run, "superseded/6")["step"] == 6
    assert not (run / "evaluations" / "6").exists()


def test_a_run_that_python_started(run, capsys):
    edit(run, trainer={"name": None})
    error = fails(capsys, "evaluate", run)
    assert "not started by `galvanax fit`" in error
    assert "--experiment path/to/file.py:name" in error
    main(["evaluate", str(run), "--experiment", "own.py:experiment"])
    assert record(run, 2)["step"] == 2


def test_without_checkpoints_the_record_is_of_the_last_step(trained, tmp_path):
    flags = ["--trainer.run-dir", str(tmp_path / "run"), "--trainer.no-checkpoint", "--trainer.max-steps", "3"]
    file = trained / "plain.py"
    file.write_text(OWN + "\nplain = dataclasses.replace(experiment, callbacks={})\n")
    main(["fit", f"{file}:plain", *flags])
    found = record(tmp_path / "run", 3)
    assert (found["checkpoint"], found["step"]) == (None, 3)


def test_another_task_or_other_data_are_refused(run, capsys):
    error = fails(capsys, "evaluate", run, "--experiment", "own.py:other")
    assert "LineTask" in error
    assert "OtherTask" in error
    error = fails(capsys, "evaluate", run, "--experiment", "own.py:rollouts")
    assert "ArrayDataModule" in error
    assert "RolloutDataModule" in error
    error = fails(capsys, "play", run, "--experiment", "cartpole-ppo")
    assert "LineTask" in error
    assert "PPOTask" in error
    assert "expected one with a policy" in fails(capsys, "play", run, "--experiment", "own.py:experiment")
    assert "draws trajectories" in fails(
        capsys, "sample", run, "--experiment", "own.py:experiment", "--output", "out.npz"
    )


# What else config.json can be.


@pytest.fixture
def pendulum(tmp_path, monkeypatch):
    """A folder with the config.json of a run that never was, of a registered experiment."""
    monkeypatch.chdir(tmp_path)
    folder = Path("stranger")
    folder.mkdir()
    parts = {
        "task": {"type": "AccelerationTask"},
        "data": {"type": "RolloutDataModule", "system": "pendulum"},
        "trainer": {"name": "pendulum", "seed": 0, "limit_test_batches": None},
    }
    (folder / "config.json").write_text(json.dumps(parts))
    return folder


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"trainer": {"name": 3}}, "trainer.name is 3"),
        ({"trainer": {"name": ["own.py:experiment"]}}, "trainer.name is"),
        ({"trainer": {"name": "pendulm"}}, "Nearest: pendulum"),
        ({"trainer": {"seed": "0"}}, "trainer.seed is '0'"),
        ({"trainer": {"seed": 0.5}}, "trainer.seed is 0.5"),
        ({"trainer": {"seed": None}}, "trainer.seed is None"),
        ({"trainer": {"seed": 2**70}}, "trainer.seed is"),
        ({"trainer": {"limit_test_batches": 0}}, "at least 1"),
        ({"trainer": {"limit_test_batches": {}}}, "trainer.limit_test_batches is {}"),
        ({"task": {"type": None}}, "task.type is None"),
        ({"task": {"type": "PPOTask"}}, "PPOTask"),
        ({"data": {"type": 7}}, "data.type is 7"),
        ({"data": {"num_rollouts": "many"}}, "'many'"),
        ({"data": {"num_rollouts": "32"}}, "data.num_rollouts is '32'"),
        ({"data": {"num_rollouts": 32.5}}, "data.num_rollouts is 32.5"),
        ({"data": {"num_rollouts": {"a": 1}}}, "num_rollouts"),
        ({"data": {"system": ["pendulum"]}}, "data.system is"),
        ({"data": {"system": {"a": 1}}}, "data.system is"),
        ({"data": {"angles": "12"}}, "angles"),
        ({"data": {"angles": nested(90)}}, "angles"),
        ({"data": {"velocity_min": nested(90)}}, "velocity_min"),
        ({"data": {"control_dt": True, "seed": [1]}}, "seed"),
        ({"data": {"sistem": "pendulum"}}, "sistem"),
        ({"data": {"train": {"x": 1}}}, "train"),
        ({"data": {"__class__": "x"}}, "__class__"),
    ],
)
def test_config_json_of_wrong_values(pendulum, capsys, parts, said):
    edit(pendulum, **parts)
    error = fails(capsys, "evaluate", pendulum)
    assert "stranger/config.json" in error
    assert said in error
    assert len(error) < 1000
    assert not (pendulum / "evaluations").exists()


@pytest.mark.parametrize("part", ["task", "data", "trainer"])
@pytest.mark.parametrize("value", [None, 3, [], "text"])
def test_config_json_without_its_parts(pendulum, capsys, part, value):
    config = json.loads((pendulum / "config.json").read_text())
    (pendulum / "config.json").write_text(json.dumps(config | {part: value}))
    assert "stranger/config.json" in fails(capsys, "evaluate", pendulum)


@pytest.mark.parametrize("key", ["name", "seed"])
def test_config_json_without_settings_of_the_trainer(pendulum, capsys, key):
    config = json.loads((pendulum / "config.json").read_text())
    del config["trainer"][key]
    (pendulum / "config.json").write_text(json.dumps(config))
    assert "stranger/config.json" in fails(capsys, "evaluate", pendulum)


def brackets(path):
    path.write_text('{"task": ' + "[" * 100_000 + "]" * 100_000 + "}")


def huge(path):
    path.touch()
    os.truncate(path, 2**40)


def link(path):
    other = path.with_name("other.json")
    other.write_text("{}")
    path.symlink_to(other.name)


FILES = {
    "brackets": brackets,
    "huge": huge,
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link": link,
    "folder": Path.mkdir,
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00{"),
    "empty": Path.touch,
    "list": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize("kind", FILES)
def test_config_json_that_is_none(pendulum, capsys, kind):
    (pendulum / "config.json").unlink()
    FILES[kind](pendulum / "config.json")
    for command in COMMANDS:
        error = fails(capsys, command, pendulum, *COMMANDS[command])
        assert "config.json" in error
        assert "stranger" in error


def test_arrays_are_the_experiments_own_whatever_config_json_says_of_them(run, caplog):
    edit(run, data={"train": {"x": "float32[9, 1]", "y": "float32[9, 1]"}})
    main(["evaluate", str(run), "--experiment", "own.py:experiment"])
    assert record(run, 2)["step"] == 2
    assert "data.train was {'x': 'float32[9, 1]'" in caplog.text


# Where files go.


@pytest.mark.parametrize("name", ["evaluations", "evaluations/2", "evaluations/2/plots"])
def test_a_link_does_not_lead_an_evaluation_out_of_the_folder(run, tmp_path, capsys, name):
    (tmp_path / "precious").mkdir()
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).symlink_to(tmp_path / "precious")
    error = fails(capsys, "evaluate", run, "--experiment", "own.py:experiment")
    assert "is a link" in error
    assert f"{run}/evaluations/2" in error
    assert not list((tmp_path / "precious").iterdir())


@pytest.mark.parametrize("name", ["test.json", ".partial-test.json", "plots/loss_curves.png"])
def test_nor_does_a_link_in_the_place_of_a_file(run, tmp_path, capsys, name):
    (tmp_path / "precious").write_text("mine")
    path = run / "evaluations" / "2" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "precious")
    assert "is a link" in fails(capsys, "evaluate", run, "--experiment", "own.py:experiment")
    assert (tmp_path / "precious").read_text() == "mine"


def test_what_can_not_be_written_is_named_before_any_work(run, tmp_path, capsys):
    own = ("--experiment", "own.py:experiment")
    (run / "evaluations").write_text("")
    assert "run/evaluations is no folder" in fails(capsys, "evaluate", run, *own)
    Path("file").write_text("")
    assert "file is no folder" in fails(capsys, "evaluate", run, *own, "--output-dir", "file/there")
    assert "file is no folder" in fails(capsys, "play", run, *own, "--output", "file")
    (run / "play").symlink_to(tmp_path)
    assert "play is a link" in fails(capsys, "play", run, *own)
    for command in ("collect", "sample", "export"):
        suffix = ".onnx" if command == "export" else ".npz"
        flags = ["--num-episodes", "1"] if command == "collect" else []
        assert "file is no folder" in fails(capsys, command, run, *flags, "--output", f"file/out{suffix}")


def test_a_plot_that_can_not_be_written(run, capsys, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    error = fails(capsys, "evaluate", run, "--experiment", "own.py:experiment")
    assert "run/evaluations/2/plots/loss_curves.png can't be written: No space left on device" in error
    assert record(run, 2)["step"] == 2
    Path("report.py").write_text(
        OWN + "\nLineTask.report = lambda self, model, data, folder, **_: (folder / 'no' / 'plot.png').write_text('')\n"
    )
    error = fails(capsys, "evaluate", run, "--experiment", "report.py:experiment", "--output-dir", "there")
    assert "there/plots/no/plot.png can't be written: No such file" in error
    assert not Path("there/test.json").exists()


@pytest.mark.parametrize(
    "damage", [b"step,train/loss\n1,x\n", b"\xff\xfe", b"step,train/loss\n1,1.0\n2,0.5,7\n\0", "link", "folder"]
)
def test_damaged_logs_cost_a_warning_and_nothing_else(run, caplog, damage):
    path = run / "metrics.csv"
    path.unlink()
    if damage == "link":
        path.symlink_to("../own.py")
    elif damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(damage)
    main(["evaluate", str(run), "--experiment", "own.py:experiment"])
    assert np.isfinite(record(run, 2)["test/loss"])
    # The checkpoint has curves of its own.
    assert (run / "evaluations" / "2" / "plots" / "loss_curves.png").is_file()
    assert "metrics.csv can't be read" in caplog.text


def test_a_figure_that_would_hide_the_records_own(run, capsys):
    Path("report.py").write_text(OWN + "\nLineTask.report = lambda self, *arguments, **options: {'step': 1}\n")
    error = fails(capsys, "evaluate", run, "--experiment", "report.py:experiment")
    assert "LineTask.report returned a figure 'step'" in error


def test_runs_beside_it(run, capsys):
    shutil.copytree(run, "beside")
    shutil.copytree(run, "more/beside")
    Path("report.py").write_text(
        OWN + "\nLineTask.report = lambda self, *arguments, beside, **options: {'beside': sorted(beside)}\n"
    )
    own = ("--experiment", "report.py:experiment")
    main(["evaluate", str(run), *own, "--beside", "beside"])
    assert record(run, 2)["beside"] == ["beside"]
    assert "two folders 'beside'" in fails(capsys, "evaluate", run, *own, "--beside", "beside", "more/beside")
    path = "run/checkpoints/6"
    assert 'expected "best"' in fails(capsys, "evaluate", run, *own, "--beside", "beside", "--checkpoint", path)
    assert "Nearest: beside" in fails(capsys, "evaluate", run, *own, "--beside", "besid")
