"""`galvanax evaluate RUN_DIR`: the figures and plots of a run."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from flax import nnx
from rich.markup import escape
from rich.table import Table

from galvanax.cli.runs import check_output, load_run, set_up, task_type, whole_number, writing
from galvanax.datamodules.datamodule import DataModule
from galvanax.errors import ConfigError
from galvanax.experiments.experiment import Experiment
from galvanax.files import write_json
from galvanax.runs.checkpoints import CheckpointFolder
from galvanax.runs.history import read_history
from galvanax.runs.integrity import read_meta
from galvanax.runs.run_folder import CONFIG, find_run, read_config
from galvanax.tasks.task import Task
from galvanax.terminal import print_table
from galvanax.trainer import rendezvous
from galvanax.trainer.result import FitResult
from galvanax.trainer.trainer import Trainer

T = TypeVar("T")
SETTINGS = ("num_samples", "ode_steps")  # of tasks, that a flag may change
SPLIT = "test"


@dataclasses.dataclass
class EvaluateCommand:
    """Measure a run again: test metrics and the task's own figures, to evaluations/STEP/test.json and plots/ beside it.

    There is one such record for each checkpoint; it is replaced when that one is evaluated again.

    Attributes:
      run_dir: the run's folder.
      checkpoint: the weights: "best", "last", a step or a path.
      experiment: path/to/file.py:name of the gx.Experiment that made the run, where that is not one of the package. A
        run folder is data: no code that it names is run.
      data: evaluate on these files (a folder, a glob), on all of them, instead of the test part of the run's own.
      part: "test": what the run's settings would hold out for testing; "all": everything, also what was trained on.
      num_examples: how many examples the task's figures look at.
      output_dir: where test.json and plots/ go instead.
      beside: folders of other runs on the same system, to set beside this one.
      num_samples: samples for each start, where the task draws any.
      batch: examples at a time; the run's own by default.
      ode_steps: of a flow from noise to sample.
      use_ema: take averaged weights, where the run has them.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    checkpoint: str = "best"
    experiment: str | None = None
    data: str | None = None
    part: Literal["test", "all"] | None = None
    num_examples: int | None = None
    output_dir: Path | None = None
    beside: tuple[Path, ...] = ()
    num_samples: int | None = None
    batch: int | None = None
    ode_steps: int | None = None
    use_ema: bool = True


def evaluate(arguments: list[str]) -> None:
    """Parses the flags, rebuilds the run's data from its config.json, and evaluates."""
    command = tyro.cli(EvaluateCommand, args=arguments, prog="galvanax evaluate")
    experiment, data, _ = load_run(command.run_dir, command.experiment)
    for flag, field, value in (("data", "data", command.data), ("batch", "batch_size", command.batch)):
        if value is not None:
            data = _replace(data, flag, field, value)
    data = _choose_part(data, command)
    evaluate_run(
        command.run_dir,
        data,
        checkpoint=command.checkpoint,
        experiment=experiment,
        num_examples=command.num_examples,
        output_dir=command.output_dir,
        beside=command.beside,
        averaged=command.use_ema,
        settings={name: getattr(command, name) for name in SETTINGS},
    )


def evaluate_run(
    run_dir: str | Path,
    data: DataModule,
    *,
    checkpoint: str = "best",
    result: FitResult | None = None,
    experiment: Experiment | None = None,
    num_examples: int | None = None,
    output_dir: Path | None = None,
    beside: Sequence[Path] = (),
    averaged: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a checkpoint's `evaluations/STEP/test.json` and `plots/` beside it, and prints the figures.

    Args:
      run_dir: the run's folder.
      data: the run's data.
      checkpoint: the weights; not looked at where a run without checkpoints has just ended.
      result: of the fit that has just ended; it says what the task is.
      experiment: of the run, where there is no `result`; runs beside it that name no registered one are of it too.
      num_examples: how many examples the task's figures look at.
      output_dir: where the files go instead.
      beside: folders of other runs, of the same task or of one that is judged alike.
      averaged: take averaged weights, where there are any.
      settings: of the task, to be used instead of the run's; None among them changes nothing.

    Raises:
      RunDirError, ConfigError: a run's folder or its config.json is none, or names code to be run; see `load_run`.
      CheckpointError: there is no such checkpoint, or it is damaged.
      DataError: the files can't be written there.
    """
    # Here, since matplotlib takes a second to import and training has no use for it.
    from galvanax.cli.loss_curves import plot_loss_curves, read_log

    run_dir = find_run(run_dir)
    config, path = read_config(run_dir), run_dir / CONFIG
    seed = whole_number(config, "seed", path)
    limited = config["trainer"].get("limit_test_batches") is not None
    limit = whole_number(config, "limit_test_batches", path, least=1) if limited else None
    if result is not None and result.best_checkpoint is None:
        name, step, task, model = None, int(result.state.step), result.task, result.model
        history = result.history
        folder = run_dir / "evaluations" / str(step) if output_dir is None else output_dir
        folder = check_output(folder, run_dir)
    else:
        found = CheckpointFolder(run_dir).find(checkpoint)
        name, step = _name(found, run_dir), read_meta(found).step
        folder = check_output(_record_folder(found, run_dir) if output_dir is None else output_dir, run_dir)
        known = result or experiment
        kind = type(known.task) if known else task_type(run_dir, None)
        task, model = kind.load(run_dir, found, averaged=averaged)
        history = result.history if result else read_history(found)
    task = _with_settings(task, settings)
    others = _load_beside(beside, checkpoint, averaged, experiment, settings)
    trainer = Trainer(max_steps=1, seed=seed, limit_test_batches=limit, devices=rendezvous.local_devices())
    set_up(data, run_dir)
    about = {"checkpoint": name, "step": step, "split": SPLIT}
    figures: dict[str, Any] = dict(about)
    if data.test_dataset() is not None:
        figures |= trainer.test(task, data, model=model)
    record, plots = folder / f"{SPLIT}.json", folder / "plots"
    with writing(folder):
        plots.mkdir(parents=True, exist_ok=True)
        reported = task.report(model, data, plots, num_examples=num_examples, beside=others)
    if taken := reported.keys() & about.keys():
        raise ConfigError(
            f"{type(task).__name__}.report returned a figure {min(taken)!r}, which the record has of its own; give it "
            "another name."
        )
    figures |= reported
    write_json(record, figures)
    # The log goes on behind the checkpoint; where there is none, the checkpoint has its own curves.
    rows = read_log(run_dir / "metrics.csv") if os.path.lexists(run_dir / "metrics.csv") else []
    if rows := rows or history:
        plot_loss_curves(rows, plots / "loss_curves.png")
    _print(figures, record)
    return figures


def _choose_part(data: DataModule, command: EvaluateCommand) -> DataModule:
    """The data with everything in its test part, where that is wanted: by default of files that were named."""
    fields = {field.name for field in dataclasses.fields(data)}
    if {"val_ratio", "test_ratio"} <= fields:
        everything = command.part == "all" or (command.part is None and command.data is not None)
        whole: dict[str, Any] = {"val_ratio": 0.0, "test_ratio": 1.0}
        return dataclasses.replace(data, **whole) if everything else data
    if command.part == "all":
        raise ConfigError(f"--part all: {type(data).__name__} splits nothing; its test part is measured.")
    return data


def _record_folder(checkpoint: Path, run_dir: Path) -> Path:
    """`evaluations/STEP` for `checkpoints/STEP`."""
    home = CheckpointFolder(run_dir).path.resolve()
    if not checkpoint.resolve().is_relative_to(home):
        raise ConfigError(f"{checkpoint} is no checkpoint of {run_dir}: say where its record goes, --output-dir DIR.")
    return run_dir / "evaluations" / checkpoint.resolve().relative_to(home)


def _name(checkpoint: Path, run_dir: Path) -> str:
    """As seen from the run's folder, where it is in there."""
    inside = checkpoint.resolve().is_relative_to(run_dir.resolve())
    return str(checkpoint.resolve().relative_to(run_dir.resolve()) if inside else checkpoint)


def _load_beside(
    beside: Sequence[Path],
    checkpoint: str,
    averaged: bool,
    experiment: Experiment | None,
    settings: Mapping[str, Any] | None,
) -> dict[str, tuple[Task, nnx.Module]]:
    others: dict[str, tuple[Task, nnx.Module]] = {}
    if beside and not (checkpoint in ("best", "last") or checkpoint.isdecimal()):
        raise ConfigError(
            f'checkpoint={checkpoint}: with runs beside it, expected "best", "last" or a step of them all.'
        )
    for other in map(find_run, beside):
        if other.name in others:
            raise ConfigError(f"beside names two folders {other.name!r}; expected names that differ.")
        task, model = task_type(other, experiment).load(other, checkpoint, averaged=averaged)
        others[other.name] = _with_settings(task, settings), model
    return others


def _with_settings(task: Task, settings: Mapping[str, Any] | None) -> Task:
    for name, value in (settings or {}).items():
        if value is not None:
            task = _replace(task, name, name, value)
    return task


def _replace(record: T, flag: str, field: str, value: Any) -> T:
    """A task or data module with a field changed, if it has that one."""
    if not any(known.name == field for known in dataclasses.fields(record)):  # type: ignore[arg-type]
        raise ConfigError(f"--{flag.replace('_', '-')} {value}: {type(record).__name__} has no {field}.")
    return dataclasses.replace(record, **{field: value})  # type: ignore[type-var]


def _print(figures: dict[str, Any], record: Path) -> None:
    table = Table("figure", "value", title=escape(str(record)))
    steps: dict[int, dict[str, str]] = {}
    for name, value in figures.items():
        if isinstance(value, list | dict):
            continue
        shown = f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)
        if of_step := re.fullmatch(r"(.+)_step_(\d+)", name):
            steps.setdefault(int(of_step[2]), {})[of_step[1]] = shown
        else:
            table.add_row(name, shown)
    print_table(table)
    if steps:
        names = list(dict.fromkeys(name for row in steps.values() for name in row))
        table = Table("step", *names)
        for step, row in sorted(steps.items()):
            table.add_row(str(step), *(row.get(name, "") for name in names))
        print_table(table)
