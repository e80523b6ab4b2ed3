"""`galvanax fit ppo`: any environment, by name or of a file, for so many steps of it."""

import json

import pytest

import galvanax as gx
from galvanax.cli.main import main
from galvanax.envs import registry

FILE = '''
import dataclasses
import jax
import jax.numpy as jnp
from galvanax.envs.environment import State

@dataclasses.dataclass(frozen=True)
class Drift:
    """A point on a line: the reward is high at 0."""
    speed: float = 0.1
    action_size = 1
    observation_size = 1
    episode_length = 10

    def reset(self, rng):
        place = jax.random.uniform(rng, (1,))
        return State(place, place, jnp.float32(0), jnp.float32(0))

    def step(self, state, action):
        place = state.pipeline_state + self.speed * jnp.clip(action, -1, 1)
        return state.replace(pipeline_state=place, obs=place, reward=-jnp.abs(place[0]))

fast = Drift(speed=0.5)

def made():
    return Drift(speed=0.2)

class Needy(Drift):
    def __init__(self, size):
        pass
'''
SMALL = (
    *("--data.num-envs", "8", "--task.unroll-length", "5", "--task.num-minibatches", "2", "--task.num-epochs", "1"),
    *("--data.num-eval-episodes", "4", "--trainer.val-every", "steps:100", "--no-evaluate"),
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drift.py").write_text(FILE)


@pytest.fixture(scope="module")
def drift(tmp_path_factory):
    """The class in that file, made once: what a user registers."""
    names = {}
    exec(FILE, names)
    return names["Drift"]


def fit(*flags):
    main(["fit", "ppo", *SMALL, *flags])


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in arguments])
    assert caught.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def config(run="runs/ppo"):
    with open(f"{run}/config.json") as file:
        return json.load(file)


def test_steps_of_the_environments(capsys):
    """40 control steps an iteration: 100 of them take three."""
    fit("--data.env", "drift.py:fast", "--env-steps", "1_00", "--trainer.log-every", "1")
    assert config()["trainer"]["max_steps"] == 3
    with open("runs/ppo/metrics.csv") as file:
        names, *rows = (line.strip().split(",") for line in file)
    assert float(dict(zip(names, rows[-2], strict=True))["train/env_steps"]) == 120
    assert "AccelerationTask makes none" in fails(capsys, "fit", "pendulum", "--env-steps", "100")
    both = ["--env-steps", "100", "--trainer.max-steps", "2"]
    assert "contradict each other" in fails(capsys, "fit", "ppo", "--overwrite", *both)
    assert "--env-steps 0: expected at least 1" in fails(capsys, "fit", "ppo", "--overwrite", "--env-steps", "0")


def test_an_environment_by_name(drift, capsys, monkeypatch):
    monkeypatch.setitem(registry._BUILDERS, "drift", drift)
    fit("--data.env", "drift", "--data.overrides", "speed", "0.3", "--trainer.max-steps", "1")
    assert (config()["data"]["environment"], config()["data"]["overrides"]) == ("drift", {"speed": 0.3})
    capsys.readouterr()
    main(["evaluate", "runs/ppo"])  # by its name and settings alone
    assert "test/episode_return" in capsys.readouterr().out
    data = gx.EnvironmentDataModule("drift", overrides={"speed": 0.3})
    assert data.train_env == drift(speed=0.3)
    assert "Unknown environment 'drfit'. Nearest: drift" in fails(capsys, "fit", "ppo", "--data.env", "drfit")
    wrong = ["--data.env", "drift", "--data.overrides", "sped", "1.0", "--trainer.run-dir", "new"]
    assert "Drift has no setting 'sped'. Nearest: speed" in fails(capsys, "fit", "ppo", *wrong)
    with pytest.raises(gx.ConfigError, match=r"overrides=.*expected none beside a Drift"):
        gx.EnvironmentDataModule(drift(), overrides={"speed": 0.3}).setup()


def test_an_environment_of_ones_own_file(tmp_path, capsys):
    fit("--data.env", "drift.py:made", "--trainer.max-steps", "1")
    whole = str(tmp_path / "drift.py:made")
    assert config()["data"]["environment"] == whole
    # A run folder is data.
    registry._BUILDERS.pop(whole)
    assert f"Name it yourself: --experiment {whole}" in fails(capsys, "evaluate", "runs/ppo")
    main(["evaluate", "runs/ppo", "--experiment", "drift.py:made"])
    assert "test/episode_return" in capsys.readouterr().out
    registry._BUILDERS.pop(whole)
    with pytest.raises(gx.ConfigError, match="whose code is run only where you name it"):
        gx.EnvironmentDataModule(whole).setup()
    new = ["fit", "ppo", "--trainer.run-dir", "new", "--data.env"]
    assert "holds no environment named 'slow'" in fails(capsys, *new, "drift.py:slow")
    assert "There is no file drfit.py" in fails(capsys, *new, "drfit.py:Drift")
    assert "can't be made without arguments" in fails(capsys, *new, "drift.py:Needy")
    assert "is no environment: it has no reset, step" in fails(capsys, *new, "drift.py:jnp")
    assert not (tmp_path / "new").exists()
