"""What commands on a finished run have in common: its experiment and data again, from config.json."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from galvanax.datamodules.datamodule import DataModule
from galvanax.datamodules.environment import EnvironmentDataModule
from galvanax.errors import ConfigError, RunDirError, nearest
from galvanax.experiments.experiment import Experiment, find_experiment
from galvanax.experiments.registry import EXPERIMENTS
from galvanax.networks.actor_critic import ActorCritic
from galvanax.tasks.policy_rollout import Command, with_command
from galvanax.tasks.ppo import PPOTask
from galvanax.trainer.checkpoints import CheckpointFolder
from galvanax.trainer.config import replace_from_json
from galvanax.trainer.run import CONFIG


def load_run(run_dir: Path) -> tuple[Experiment, DataModule, dict[str, Any]]:
    """A run's experiment, its data with the settings of the run, and its config.json.

    Raises:
      RunDirError: the folder holds no run, or one that `galvanax fit` did not start.
      ConfigError: the experiment is not there any more, or has changed beyond the settings.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        runs = [str(entry.parent) for entry in run_dir.parent.glob(f"*/{CONFIG}")]
        raise RunDirError(f"{run_dir} holds no run: there is no {CONFIG} in it.{nearest(str(run_dir), runs)}")
    config = json.loads(path.read_text())
    name = config["trainer"]["name"]
    if name is None:
        raise RunDirError(
            f"{path} names no experiment: the run was not started by `galvanax fit`. Use Trainer.test instead."
        )
    experiment = find_experiment(name, EXPERIMENTS)
    settings = {key: value for key, value in config["data"].items() if not _only_described(experiment.data, key, value)}
    return experiment, replace_from_json(experiment.data, settings, str(path)), config


def load_policy(
    run_dir: Path, checkpoint: str, command: Command | None = None
) -> tuple[ActorCritic, EnvironmentDataModule, Any, Path]:
    """A PPO run's policy, its data (set up), the environment that it is judged in, and the checkpoint's folder.

    Args:
      run_dir: the run's folder.
      checkpoint: "best", "last", a step or a path.
      command: what a legged robot is asked to do, instead of random commands.

    Raises:
      ConfigError: the run is of another task, or the environment takes no command.
      RunDirError, CheckpointError: there is no such run or checkpoint.
    """
    experiment, data, _ = load_run(run_dir)
    if not isinstance(experiment.task, PPOTask) or not isinstance(data, EnvironmentDataModule):
        task = type(experiment.task).__name__
        raise ConfigError(f"{run_dir} is a run of {task}; expected one with a policy (PPOTask).")
    folder = CheckpointFolder(run_dir).find(checkpoint)
    _, model = type(experiment.task).load(run_dir, checkpoint)
    assert isinstance(model, ActorCritic)
    data.setup()
    env = data.eval_env
    return model, data, env if command is None else with_command(env, command), folder


def _only_described(data: DataModule, name: str, stored: Any) -> bool:
    """Whether a field holds an object whose `repr` alone is in config.json: the experiment's own is taken."""
    value = getattr(data, name, None)
    plain = value is None or type(value).__module__ == "builtins" or isinstance(value, Path)
    return isinstance(stored, str) and not plain and not dataclasses.is_dataclass(value)
