"""`--callbacks.NAME [VALUE]`: each shipped callback, and one's own, added, changed and taken away by flags."""

import copy
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.csv_logger import CSVLogger
from galvanax.callbacks.early_stopping import EarlyStopping
from galvanax.callbacks.ema import EMA
from galvanax.callbacks.freeze import Freeze
from galvanax.callbacks.gradient_accumulation import GradientAccumulation
from galvanax.callbacks.gradient_clipping import GradientClipping
from galvanax.callbacks.model_summary import ModelSummary
from galvanax.callbacks.progress_bar import ProgressBar
from galvanax.callbacks.tensorboard_logger import TensorBoardLogger
from galvanax.callbacks.video_recorder import VideoRecorder
from galvanax.callbacks.wandb_logger import WandBLogger
from galvanax.callbacks.warm_start import WarmStart
from galvanax.errors import ConfigError, nearest
from galvanax.experiments.experiment import Experiment
from galvanax.experiments.own_code import from_file, names_file
from galvanax.runs.checkpoint import Checkpoint

PREFIX = "--callbacks."
NONE = "none"
HELP = ("-h", "--help")

# By their flags' names, in the order that an added one takes its place in: what passes gradients on comes first.
SHIPPED: dict[str, type[Callback]] = {
    "summary": ModelSummary,
    "freeze": Freeze,
    "warm_start": WarmStart,
    "accumulate": GradientAccumulation,
    "clip": GradientClipping,
    "ema": EMA,
    "early_stopping": EarlyStopping,
    "checkpoint": Checkpoint,
    "csv": CSVLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandBLogger,
    "video": VideoRecorder,
    "progress": ProgressBar,
}
# The field that `--callbacks.NAME VALUE` sets.
MAIN_FIELD: dict[type[Callback], str] = {
    Freeze: "patterns",
    WarmStart: "source",
    GradientAccumulation: "steps",
    GradientClipping: "threshold",
    EMA: "decay",
    EarlyStopping: "monitor",
    WandBLogger: "mode",
    VideoRecorder: "every",
}


def choose_callbacks(
    experiment: Experiment, flags: Sequence[str], prog: str, registry: tyro.constructors.ConstructorRegistry
) -> tuple[Experiment, list[str]]:
    """The experiment with callbacks added and taken away, and the flags that are left: those change what it has.

    Args:
      experiment: whose callbacks.
      flags: words of the command line.
      prog: the command, for messages.
      registry: how intervals and the like are written.

    Raises:
      ConfigError: a name, a file or a value means no callback; says what is near.
      SystemExit: of tyro: a setting of an added one is missing or wrong, or its help was asked for.
    """
    callbacks = dict(experiment.callbacks)
    added: dict[str, Any] = {}  # classes, or instances to be changed
    removed: dict[str, str] = {}
    left: list[str] = []
    of_added: list[str] = []
    words = list(_grouped(flags))
    for flag, values in words:
        name, key = _names(flag)
        if key is None or "." in name:
            continue
        if values == [NONE]:
            if key not in callbacks:
                raise ConfigError(f"{flag} none: the experiment has no such callback.{_near(name, callbacks)}")
            removed[key] = flag
        elif len(values) == 1 and names_file(values[0]):
            added[key] = from_file(values[0], Callback, "gx.Callback")
    for flag, values in words:
        name, key = _names(flag)
        if key is None:
            left += [flag, *values]
            continue
        if key in removed:
            if values != [NONE] or "." in name:
                raise ConfigError(f"{' '.join([flag, *values])} and {removed[key]} none contradict each other.")
            continue
        if key not in callbacks and key not in added:
            if key not in SHIPPED:
                raise ConfigError(f"{flag}: there is no such callback.{_near(name, {**SHIPPED, **callbacks})}")
            added[key] = SHIPPED[key]
        words_of_it = of_added if key in added else left
        if "." in name:
            words_of_it += [flag, *values]
        elif values and not (key in added and names_file(values[0])):
            words_of_it += [f"{flag}.{_main_field(flag, values, added.get(key, callbacks.get(key)))}", *values]
    for key in removed:
        del callbacks[key]
    if added:
        wants_help = any(word in HELP for word in left)
        made = _parse(added, of_added + ["--help"] * wants_help, prog, registry)
        for key, callback in made.items():
            callbacks = _insert(callbacks, key, callback)
    trainer = experiment.trainer
    if "checkpoint" in removed:  # else a run with a folder has one by itself
        trainer = dataclasses.replace(trainer, checkpoint=False)
    return dataclasses.replace(experiment, callbacks=callbacks, trainer=trainer), left


def _grouped(flags: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Flags with the words behind them; `--flag=value` is two words."""
    group: tuple[str, list[str]] | None = None
    for word in flags:
        if word.startswith("--") or word in HELP:
            if group is not None:
                yield group
            flag, equals, value = word.partition("=") if word.startswith(PREFIX) else (word, "", "")
            group = flag, [value] if equals else []
        elif group is None:
            yield word, []
        else:
            group[1].append(word)
    if group is not None:
        yield group


def _names(flag: str) -> tuple[str, str | None]:
    """What follows `--callbacks.`, and the callback's key; None for another flag."""
    if not flag.startswith(PREFIX):
        return flag, None
    name = flag.removeprefix(PREFIX)
    return name, name.partition(".")[0].replace("-", "_")


def _main_field(flag: str, values: list[str], callback: Any) -> str:
    kind = callback if isinstance(callback, type) else type(callback)
    field = next((MAIN_FIELD[base] for base in kind.__mro__ if base in MAIN_FIELD), None)
    if field is None:
        raise ConfigError(
            f"{' '.join([flag, *values])}: {kind.__name__} has no setting that goes without a name; expected {flag} "
            f'alone, "{NONE}", or {flag}.FIELD VALUE.'
        )
    return field.replace("_", "-")


def _parse(
    added: dict[str, Any], flags: list[str], prog: str, registry: tyro.constructors.ConstructorRegistry
) -> dict[str, Callback]:
    classes = [(key, one) for key, one in added.items() if isinstance(one, type)]
    instances = [
        (key, type(one), dataclasses.field(default_factory=functools.partial(copy.copy, one)))
        for key, one in added.items()
        if not isinstance(one, type)
    ]
    group = dataclasses.make_dataclass("callbacks", [*classes, *instances])
    command = dataclasses.make_dataclass("command", [("callbacks", group)])
    parsed: Any = tyro.cli(command, args=flags, prog=prog, description="Callbacks to add.", registry=registry)
    return {key: getattr(parsed.callbacks, key) for key in added}


def _insert(callbacks: dict[str, Callback], key: str, callback: Callback) -> dict[str, Callback]:
    """In `SHIPPED`'s order; one's own behind all others."""
    order = list(SHIPPED)
    if key not in order:
        return {**callbacks, key: callback}
    later = order[order.index(key) + 1 :]
    place = next((index for index, name in enumerate(callbacks) if name in later), len(callbacks))
    items = list(callbacks.items())
    return dict([*items[:place], (key, callback), *items[place:]])


def _near(name: str, known: dict[str, Any]) -> str:
    return nearest(name.partition(".")[0], [key.replace("_", "-") for key in known])
