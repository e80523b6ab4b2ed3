"""An experiment: everything that a run is made of, in one record."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import tyro

from galvanax.callbacks.callback import Callback
from galvanax.datamodules.datamodule import DataModule
from galvanax.errors import ConfigError, nearest
from galvanax.experiments.own_code import from_file, names_file
from galvanax.experiments.presets import Preset, replaced
from galvanax.experiments.registry import EXPERIMENTS, check_known
from galvanax.tasks.task import Task
from galvanax.trainer.result import FitResult
from galvanax.trainer.trainer import Trainer


@dataclasses.dataclass
class Experiment:
    """A task, its data, the trainer's settings and the callbacks. Each field of each is a flag of `galvanax fit`.

    Attributes:
      task: what is learned.
      data: from what.
      trainer: the loop's settings.
      callbacks: what else happens, by a short name that becomes the flag's; gradients pass them in this order.
      presets: settings that belong together, by a name that `--preset` takes: `{"slow": {"task.learning_rate": 1e-4,
        "callbacks.ema": None}}`, where None leaves a callback out.
    """

    task: Task
    data: DataModule
    trainer: Trainer
    callbacks: dict[str, Callback] = dataclasses.field(default_factory=dict)
    presets: tyro.conf.Suppress[Mapping[str, Preset]] = dataclasses.field(default_factory=dict)

    def with_preset(self, *names: str) -> Self:
        """The experiment with the settings of presets, the later ones over the earlier ones.

        Raises:
          ConfigError: there is no such preset, or it changes what is not there.
        """
        made = self
        for name in names:
            if name not in self.presets:
                near = nearest(name, self.presets)
                known = "" if near.startswith(" Known") else f" Known: {', '.join(self.presets)}."
                raise ConfigError(f"The experiment has no preset {name!r}.{near}{known}")
            made = replaced(made, self.presets[name])
        return made

    def fit(self, resume: str | Path | None = None) -> FitResult:
        """`Trainer.fit` with all of it."""
        trainer = dataclasses.replace(self.trainer, callbacks=list(self.callbacks.values()))
        return trainer.fit(self.task, self.data, resume=resume)


def find_experiment(reference: str) -> Experiment:
    """Makes the experiment of a registered name, or of `"path/to/file.py:name"`.

    In a file, `name` is an `Experiment` or a function that returns one.

    Raises:
      ConfigError: there is no such name, file, or experiment in the file.
    """
    check_known(reference)
    if not names_file(reference):
        return EXPERIMENTS[reference]()
    found = from_file(reference, Experiment, "gx.Experiment")
    if isinstance(found, type):
        raise ConfigError(f"{reference} is the class gx.Experiment itself; expected one that is made.")
    return found


def load_experiment(name: str, *presets: str) -> Experiment:
    """An experiment as `galvanax fit` makes it: `load_experiment("pendulum", "paper").fit()`.

    Args:
      name: of `galvanax list`, or `"path/to/file.py:name"` of your own.
      presets: what `--preset` takes, the later ones over the earlier ones.

    Raises:
      ConfigError: there is no such experiment or preset.
    """
    return find_experiment(name).with_preset(*presets)
