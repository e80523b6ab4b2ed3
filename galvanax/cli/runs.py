"""What commands on a run's folder have in common: its experiment and data again, and where their own files may go.

A run folder is data. Of the experiments that config.json may name, only those of the package are made; a file with an
experiment is run where the user names it: `--experiment path/to/file.py:name`.
"""

import contextlib
import dataclasses
import logging
import math
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from galvanax.datamodules.datamodule import DataModule
from galvanax.datamodules.environment import EnvironmentDataModule
from galvanax.envs.registry import register_own
from galvanax.errors import ConfigError, DataError, GalvanaxError, RunDirError, nearest
from galvanax.experiments.experiment import Experiment, find_experiment
from galvanax.experiments.own_code import from_file, names_file
from galvanax.experiments.registry import EXPERIMENTS
from galvanax.files import check_plain, describe_os_error
from galvanax.networks.actor_critic import ActorCritic
from galvanax.runs.arrays import parse
from galvanax.runs.checkpoints import CheckpointFolder
from galvanax.runs.config import replace_from_json, to_json
from galvanax.runs.run_folder import CONFIG, find_run, read_config
from galvanax.tasks.policy_rollout import Command, with_command
from galvanax.tasks.ppo import PPOTask
from galvanax.tasks.task import Task

log = logging.getLogger("galvanax")

LONGEST = 500  # characters that an error quotes from a file


def load_run(run_dir: Path, experiment: str | None = None) -> tuple[Experiment, DataModule, dict[str, Any]]:
    """A run's experiment, its data with the settings of the run, and its config.json.

    Args:
      run_dir: the run's folder.
      experiment: `"path/to/file.py:name"`, or a registered name, as the user gave it; by default the registered one
        that config.json names. Where that was run on an environment of the user's file, it is that file's.

    Raises:
      RunDirError: the folder holds no run, a damaged config.json, or one whose experiment the user must name.
      ConfigError: the experiment is not there, is of another task, or has changed beyond the settings.
    """
    run_dir = find_run(run_dir)
    config, path = read_config(run_dir), run_dir / CONFIG
    own = _own_environment(config)
    if own is not None and (experiment is None or names_file(experiment)):
        if experiment is None:
            raise _refusal(path, "on the environment", own)
        register_own(own, from_file(experiment, object, "environment"))
        made = _registered(config, path)
    elif experiment is None:
        made = _registered(config, path)
    else:
        made = find_experiment(experiment)
    _check_types(config, made, path)
    return made, _with_settings(made.data, config["data"], path), config


def task_type(run_dir: Path, experiment: Experiment | None) -> type[Task]:
    """The task's class of a run: of the registered experiment that it names, else of this one, which the user named.

    Raises:
      RunDirError, ConfigError: as `load_run`.
    """
    config, path = read_config(find_run(run_dir)), run_dir / CONFIG
    own = experiment is not None and not _is_registered(config["trainer"].get("name"))
    made = experiment if own and experiment is not None else _registered(config, path)
    _check_type(config, "task", made.task, path)
    return type(made.task)


def load_policy(
    run_dir: Path, checkpoint: str, command: Command | None = None, experiment: str | None = None
) -> tuple[ActorCritic, EnvironmentDataModule, Any, Path]:
    """A PPO run's policy, its data (set up), the environment that it is judged in, and the checkpoint's folder.

    Args:
      run_dir: the run's folder.
      checkpoint: "best", "last", a step or a path.
      command: what a legged robot is asked to do, instead of random commands.
      experiment: see `load_run`.

    Raises:
      ConfigError: the run is of another task, or the environment takes no command.
      RunDirError, CheckpointError: there is no such run or checkpoint.
    """
    run_dir = find_run(run_dir)
    made, data, _ = load_run(run_dir, experiment)
    if not isinstance(made.task, PPOTask) or not isinstance(data, EnvironmentDataModule):
        task = type(made.task).__name__
        raise ConfigError(f"{run_dir} is a run of {task}; expected one with a policy (PPOTask).")
    folder = CheckpointFolder(run_dir).find(checkpoint)
    _, model = type(made.task).load(run_dir, folder)
    assert isinstance(model, ActorCritic)
    set_up(data, run_dir)
    env = data.eval_env
    return model, data, env if command is None else with_command(env, command), folder


def set_up(data: DataModule, run_dir: Path) -> None:
    """Sets a run's data up. Raises what that raises, and says which run's settings they are."""
    try:
        data.setup()
    except GalvanaxError as error:
        raise type(error)(f"{run_dir / CONFIG}: data: {error}") from error


def whole_number(config: dict[str, Any], name: str, path: Path, least: int | None = None) -> int:
    """A setting of the Trainer in config.json.

    Raises:
      RunDirError: it is no whole number, or less than `least`.
    """
    value = config["trainer"].get(name)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63 or value < (least or value):
        expected = "a whole number" if least is None else f"a whole number of at least {least}"
        raise RunDirError(f"{path} is damaged: trainer.{name} is {value!r:.80}; expected {expected}.")
    return value


def check_output(folder: Path, run_dir: Path | None = None) -> Path:
    """Sees to it, before any work, that files can be written to a folder that may not be there yet; returns it.

    Raises:
      DataError: they can't; or the folder is within `run_dir` and holds a link, which might lead out of it.
    """
    path = folder.absolute()
    above = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not above.is_dir():
        raise DataError(f"{folder} can't be written to: {above} is no folder.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise DataError(f"{folder} can't be written to: {above} is not yours to write to.")
    if run_dir is not None and run_dir.absolute() in path.parents:
        between = path.parents[: path.parents.index(run_dir.absolute())]
        try:
            for one in (path, *between, *path.rglob("*")):
                check_plain(one)
        except ValueError as error:
            raise DataError(f"{folder} can't be written to: {error}.") from None
    return folder


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Names a folder in the system's errors about files in it.

    Raises:
      DataError: one can't be written.
    """
    try:
        yield
    except OSError as error:
        elsewhere = isinstance(error.filename, str) and not Path(error.filename).is_relative_to(folder)
        if elsewhere or isinstance(error, GalvanaxError):
            raise
        raise DataError(f"{error.filename or folder} can't be written: {describe_os_error(error, folder)}.") from error


def _is_registered(name: Any) -> bool:
    return isinstance(name, str) and name in EXPERIMENTS


def _registered(config: dict[str, Any], path: Path) -> Experiment:
    """The package's experiment that config.json names; its name is all that is taken from there."""
    name = config["trainer"].get("name")
    if name is None:
        raise RunDirError(
            f"{path} names no experiment: the run was not started by `galvanax fit`. Where a gx.Experiment has its "
            "task and data, name that: --experiment path/to/file.py:name."
        )
    if not isinstance(name, str):
        raise RunDirError(f"{path} is damaged: trainer.name is {name!r:.80}; expected a string or null.")
    if _is_registered(name):
        return EXPERIMENTS[name]()
    if not names_file(name):
        raise ConfigError(f"{path} names the experiment {name!r:.80}, which is none of this version's.{_near(name)}")
    raise _refusal(path, "by the experiment", name)


def _own_environment(config: dict[str, Any]) -> str | None:
    """The environment of a user's file that a registered experiment was run on, if it was one."""
    environment = config["data"].get("environment")
    own = _is_registered(config["trainer"].get("name")) and isinstance(environment, str) and names_file(environment)
    return environment if own else None


def _refusal(path: Path, what: str, name: str) -> RunDirError:
    # What could not be seen in the line that is to be pasted, is not offered for it.
    said = shlex.quote(name) if name.isprintable() and len(name) <= LONGEST else f"{name!r:.{LONGEST}}"
    return RunDirError(
        f"{path}: this run was made {what} {said}. A run folder is data, and reading one runs no code that it names. "
        f"Name it yourself: --experiment {said}"
    )


def _near(name: str) -> str:
    return nearest(name[:80], EXPERIMENTS)


def _check_types(config: dict[str, Any], experiment: Experiment, path: Path) -> None:
    _check_type(config, "task", experiment.task, path)
    _check_type(config, "data", experiment.data, path)


def _check_type(config: dict[str, Any], part: str, value: Any, path: Path) -> None:
    """Raises where config.json describes another class than that of an experiment's part."""
    stored, expected = config[part].get("type"), type(value).__name__
    if not isinstance(stored, str):
        raise RunDirError(f"{path} is damaged: {part}.type is {stored!r:.80}; expected the name of a class.")
    if stored != expected:
        raise ConfigError(f"{path} is of a run whose {part} is a {stored:.80}; the experiment's is a {expected}.")


def _with_settings(data: DataModule, stored: dict[str, Any], path: Path) -> DataModule:
    """Data with the settings of a run. What JSON can't hold is the experiment's own."""
    own = to_json(data)
    settings = {}
    for name, value in stored.items():
        arrays = _describes_arrays(value) and (own.get(name) is None or _describes_arrays(own[name]))
        if not (arrays or _only_described(data, name, value)):
            settings[name] = value
        elif arrays and own.get(name) not in (None, value):
            log.warning("%s: data.%s was %.200s, and is now %.200s", path, name, value, own[name])
    try:
        made = replace_from_json(data, settings, str(path))
        found = to_json(made)
    except ConfigError as error:
        raise ConfigError(f"{error!s:.{LONGEST}}") from error
    except Exception as error:  # a setting of the wrong type can raise anything in a converter, or in the class
        text = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path} does not describe a {type(data).__name__}: {text:.{LONGEST}}") from error
    for name, value in settings.items():
        # The converter takes "32" for 32, and "no" for True.
        if not _agree(found.get(name), value):
            raise ConfigError(
                f"{path} is damaged: data.{name} is {value!r:.80}, which would become {found.get(name)!r:.80}."
            )
    return made


def _only_described(data: DataModule, name: str, stored: Any) -> bool:
    """Whether config.json has no more of a field than an object's `repr`."""
    value = getattr(data, name, None)
    plain = value is None or type(value).__module__ == "builtins" or isinstance(value, Path)
    return isinstance(stored, str) and not plain and not dataclasses.is_dataclass(value)


def _describes_arrays(stored: Any) -> bool:
    """Whether JSON data are `"float32[8, 2]"`, or a tree of such and nothing else."""
    if isinstance(stored, dict | list):
        children = list(stored.values()) if isinstance(stored, dict) else stored
        return bool(children) and all(map(_describes_arrays, children))
    try:
        return isinstance(stored, str) and parse(stored) is not None
    except ValueError:
        return False


def _agree(found: Any, stored: Any) -> bool:
    """Whether what was read is what is stored; a field that is not stored may have come with a newer version."""
    if isinstance(stored, dict):
        return isinstance(found, dict) and all(
            name in found and _agree(found[name], value) for name, value in stored.items()
        )
    if isinstance(stored, list):
        return isinstance(found, list) and len(found) == len(stored) and all(map(_agree, found, stored))
    both_nan = all(isinstance(value, float) and math.isnan(value) for value in (found, stored))
    return both_nan or found == stored
