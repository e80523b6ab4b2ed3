"""`galvanax tune EXPERIMENT`: good settings, found by training with many."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.markup import escape
from rich.table import Table

from galvanax.cli.fit import build
from galvanax.errors import ConfigError
from galvanax.experiments.experiment import Experiment
from galvanax.experiments.tuning import Choice, Range
from galvanax.experiments.tuning import tune as search_settings
from galvanax.terminal import print_table, say

FLAGS = "best.flags"
_END = r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


@dataclasses.dataclass
class TuneCommand:
    """Look for good settings of an experiment, by Optuna: a run for each trial, pruned where it falls behind.

    Other flags are those of `galvanax fit EXPERIMENT`, and hold for every trial. The command goes on with what is in
    its folder: what was interrupted, and more trials. The best flags are in best.flags: galvanax fit EXPERIMENT
    $(cat DIR/best.flags).

    Attributes:
      experiment: a name of `galvanax list`, or path/to/file.py:name.
      search: a flag to vary, without its dashes, and what to try: LOW..HIGH, with log behind it for a logarithmic scale
        (whole numbers where both ends are), or two or more values. A value of several words goes in quotes. Once for
        each flag.
      output: the folder for the study, its runs (trials/0003), plots and best.json.
      num_trials: trials in all, those of earlier calls too.
      metric: of validation; by default what the experiment's checkpoints are ranked by.
      mode: whether less or more of it is better.
      prune: end trials that are worse than the median of the earlier ones.
      seed: of the choices.
    """

    experiment: Annotated[str, tyro.conf.Positional]
    output: Path
    search: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]
    num_trials: int = 20
    metric: str | None = None
    mode: Literal["min", "max"] | None = None
    prune: bool = True
    seed: int = 0


def tune(arguments: list[str]) -> None:
    """Parses the flags, tries each value, searches, and says what is best."""
    command, flags = tyro.cli(TuneCommand, args=arguments, prog="galvanax tune", return_unknown_args=True)
    search = dict(map(_space, command.search))

    def make(values: dict[str, Any]) -> Experiment:
        fit = build(command.experiment, [*flags, *_flags(values)])
        if fit.resume or fit.experiment.trainer.overwrite or fit.dry_run:
            raise ConfigError("--resume, --overwrite and --dry-run are of galvanax fit; tune goes on by itself.")
        return fit.experiment

    start = {name: space.ends[0] for name, space in search.items()}
    for name, space in search.items():
        for value in space.ends:
            make({**start, name: value})  # what is no setting is said before anything is trained
    found = search_settings(
        make,
        search,
        command.output,
        num_trials=command.num_trials,
        metric=command.metric,
        mode=command.mode,
        prune=command.prune,
        seed=command.seed,
    )
    best = shlex.join(_flags(found.best_values))
    (command.output / FLAGS).write_text(best + "\n")
    table = Table("setting", "best", title=escape(f"{found.metric} {found.best_value:.4g}, {found.best_run}"))
    for name, value in found.best_values.items():
        table.add_row(name, str(value))
    print_table(table)
    say(f"{found.num_trials} trials, {found.num_pruned} of them pruned. To train with the best:")
    say(f"galvanax fit {' '.join([shlex.quote(command.experiment), *map(shlex.quote, flags), best])}")


def _space(words: tuple[str, ...]) -> tuple[str, Range | Choice]:
    """`("task.depth", "1..4")` to a name and a Range."""
    name, *values = words or ("",)
    if values and (ends := re.fullmatch(rf"({_END})\.\.({_END})", values[0])) and values[1:] in ([], ["log"]):
        return name, Range(_number(ends[1]), _number(ends[2]), log=values[1:] == ["log"])
    if len(values) < 2:
        raise ConfigError(
            f"--search {' '.join(words)}: expected a flag and LOW..HIGH, LOW..HIGH log, or two or more values."
        )
    return name, Choice(tuple(values))


def _number(text: str) -> float:
    return int(text) if re.fullmatch(r"[+-]?[\d_]+", text) else float(text)


def _flags(values: dict[str, Any]) -> list[str]:
    """As words of a command line; a choice of several words is several."""
    words = []
    for name, value in values.items():
        words += [f"--{name}", *(shlex.split(value) if isinstance(value, str) else [repr(value)])]
    return words
