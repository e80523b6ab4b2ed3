"""Presets: the documents' own values as the starting point of flags."""

import json

import pytest

import galvanax as gx
from galvanax.cli.fit import parse
from galvanax.cli.main import main
from galvanax.experiments.registry import EXPERIMENTS
from galvanax.runs.config import to_json

OWN = """
import galvanax as gx
from galvanax.experiments.pendulum import pendulum

made = pendulum()
experiment = gx.Experiment(
    made.task, made.data, made.trainer, made.callbacks, presets={"slow": {"task.learning_rate": 1e-5}}
)
"""


def test_a_run_has_its_values_and_flags_change_them(tmp_path):
    small = ["--data.num-rollouts", "10", "--data.rollout-length", "60", "--trainer.max-epochs", "2", "--no-evaluate"]
    where = ["--trainer.run-dir", str(tmp_path / "run")]
    main(["fit", "pendulum", *where, "--preset", "paper", "--task.weight-decay", "0.01", *small])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    task, data, callbacks = config["task"], config["data"], {entry["class"] for entry in config["callbacks"].values()}
    assert (task["learning_rate"], task["learning_rate_schedule"], task["weight_decay"]) == (1e-3, "constant", 0.01)
    assert (data["batch_size"], config["trainer"]["max_epochs"]) == (256, 2)
    assert any("GradientClipping" in name for name in callbacks)
    assert not any("EMA" in name for name in callbacks)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_preset_changes_what_is_there(name):
    """Its values arrive, on the command line as in Python, and nothing else does."""
    plain = EXPERIMENTS[name]()
    for preset, changes in plain.presets.items():
        made = gx.load_experiment(name, preset)
        command = parse(name, EXPERIMENTS[name](), ["--preset", preset]).experiment
        for part in ("task", "data", "trainer"):
            before, after = to_json(getattr(plain, part)), to_json(getattr(made, part))
            values = {key.partition(".")[2]: to_json(value) for key, value in changes.items() if key.startswith(part)}
            assert after == {**before, **values}
            assert to_json(getattr(command, part)) == after
        left_out = {key.partition(".")[2] for key, value in changes.items() if value is None}
        assert set(made.callbacks) == set(command.callbacks) == set(plain.callbacks) - left_out
        assert {key: to_json(value) for key, value in made.callbacks.items()} == {
            key: to_json(value) for key, value in command.callbacks.items()
        }


def test_later_presets_go_over_earlier_ones():
    task = parse("go2-dynaflow", EXPERIMENTS["go2-dynaflow"](), ["--preset", "paper", "small", "--trainer.seed", "3"])
    assert (task.experiment.task.d_model, task.experiment.task.loss_units) == (128, "natural")
    assert task.experiment.trainer.seed == 3
    other = parse("go2-dynaflow", EXPERIMENTS["go2-dynaflow"](), ["--preset=small", "--preset=paper"])
    assert other.experiment.task.d_model == 384
    assert gx.load_experiment("go2-dynaflow", "guide", "medium").task.learning_rate == 1e-4


def test_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    assert gx.load_experiment(f"{tmp_path}/mine.py:experiment", "slow").task.learning_rate == 1e-5
    assert gx.load_experiment(f"{tmp_path}/mine.py:experiment").task.learning_rate == 3e-3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "fit go2-dynaflow --preset papre",
            "no preset 'papre'. Nearest: paper, large. Known: paper, guide, small, medium, large.",
        ),
        ("fit pendulum --preset xyz", "no preset 'xyz'. Known: paper."),
        ("fit hopper-ppo --preset=paper", "no preset 'paper'. Known: none."),
        ("fit pendulum --preset", "--preset names none. Known: paper."),
    ],
)
def test_one_that_there_is_not(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task.learnin_rate": 1.0}, "task.learnin_rate, which there is not. Nearest: learning_rate"),
        ({"task.dropout.rate": 1.0}, "task.dropout.rate, which there is not"),
        ({"callbacks.emma.decay": 0.5}, "callbacks.emma.decay, which there is not. Nearest: ema"),
        ({"callbacks.emma": None}, "callbacks.emma, which there is not. Nearest: ema"),
    ],
)
def test_a_preset_that_changes_what_is_not_there(changes, said):
    plain = EXPERIMENTS["double-cart-pole-gru"]()
    experiment = gx.Experiment(plain.task, plain.data, plain.trainer, plain.callbacks, presets={"mine": changes})
    with pytest.raises(gx.ConfigError, match=said):
        experiment.with_preset("mine")


def test_they_are_listed(capsys):
    main(["list"])
    lines = {line.split()[0]: line.rstrip() for line in capsys.readouterr().out.splitlines()}
    assert lines["go2-dynaflow"].endswith("Presets: paper, guide, small, medium, large.")
    assert "Presets" not in lines["hopper-ppo"]
