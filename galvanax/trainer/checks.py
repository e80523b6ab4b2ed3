"""What a run is given: the right kinds of things, by the right names."""

import inspect
import itertools
from collections.abc import Sequence
from typing import Any

from galvanax.callbacks.callback import Callback
from galvanax.datamodules.datamodule import DataModule
from galvanax.errors import ConfigError, nearest
from galvanax.runs import config
from galvanax.tasks.task import Task
from galvanax.trainer.settings import TrainerSettings

LARGEST_SEED = 2**32 - 1  # of Grain's shuffles


def check_parts(trainer: TrainerSettings, task: Any, data: Any) -> None:
    """Raises ConfigError where a part of the run is of another kind than it must be, or names a hook that is none."""
    _check_kind("task", task, Task, data)
    _check_kind("data", data, DataModule, task)
    config.check_dataclass(task)
    seed = trainer.seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise ConfigError(f"Trainer.seed={seed!r}: expected a whole number from 0 to {LARGEST_SEED}.")
    for callback in trainer.callbacks:
        if isinstance(callback, type) and issubclass(callback, Callback):
            raise ConfigError(
                f"Trainer.callbacks holds the class {callback.__name__}; expected {callback.__name__}(...)."
            )
        if not isinstance(callback, Callback):
            raise ConfigError(f"Trainer.callbacks holds {callback!r}; expected gx.Callback objects.")
        _check_hooks(callback)
    _check_single(trainer.callbacks)
    if trainer.run_dir is not None and trainer.checkpoint:
        _check_stored(task)


def _check_kind(name: str, value: Any, kind: type, other: Any) -> None:
    if isinstance(value, kind):
        return
    if isinstance(value, type) and issubclass(value, kind):
        raise ConfigError(
            f"Trainer.fit was given the class {value.__name__} as {name}; expected {value.__name__}(...)."
        )
    swapped = " Task and data seem to be swapped." if isinstance(other, kind) else ""
    raise ConfigError(
        f"Trainer.fit was given {type(value).__name__} as {name}; expected a gx.{kind.__name__}.{swapped}"
    )


def _check_single(callbacks: Sequence[Callback]) -> None:
    kinds = [type(callback) for callback in callbacks]
    for first, second in itertools.combinations(kinds, 2):
        kind = first if issubclass(second, first) else second
        if kind.one_of_a_kind and issubclass(first, kind):
            raise ConfigError(
                f"Trainer.callbacks holds two of {kind.__name__}, which would write the same files: use one."
            )


def _check_hooks(callback: Callback) -> None:
    """A name that begins as a hook's does, and is none, would never be called."""
    known = [name for name, _ in inspect.getmembers(Callback, callable) if not name.startswith("_")]
    for name in dir(type(callback)):
        if name.startswith("on_") and name not in known and callable(getattr(type(callback), name)):
            raise ConfigError(f"{type(callback).__name__}.{name} is no hook of a callback.{nearest(name, known)}")


def _check_stored(task: Task) -> None:
    """A run's folder must tell its task's fields, or the weights could not be loaded."""
    fields = config.to_json(task)
    try:
        config.from_json(type(task), fields, type(task).__name__)
    except Exception as error:
        raise ConfigError(
            f"{type(task).__name__} could not be loaded again from run_dir: {str(error).rstrip('.')}. Its fields hold "
            "plain values: numbers, strings, tuples, dataclasses of those."
        ) from error
