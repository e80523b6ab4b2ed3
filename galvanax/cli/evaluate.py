"""`galvanax evaluate RUN_DIR`: the figures and plots of a run."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from galvanax.cli.runs import load_run
from galvanax.datamodules.datamodule import DataModule
from galvanax.errors import ConfigError
from galvanax.experiments.experiment import find_experiment
from galvanax.experiments.registry import EXPERIMENTS
from galvanax.tasks.task import Task
from galvanax.trainer import processes
from galvanax.trainer.checkpoints import CheckpointFolder, read_meta
from galvanax.trainer.run import CONFIG, FitResult
from galvanax.trainer.trainer import Trainer

T = TypeVar("T")
SETTINGS = ("num_samples", "ode_steps")  # of tasks, that a flag may change


@dataclasses.dataclass
class EvaluateCommand:
    """Measure a run again: test metrics and the task's own figures, to evaluation.json and plots/.

    Attributes:
      run_dir: the run's folder.
      checkpoint: the weights: "best", "last", a step or a path.
      data: evaluate on the test part of these files (a folder, a glob) instead of the run's own.
      num_examples: how many examples the task's figures look at.
      output_dir: where evaluation.json and plots/ go; by default the run's folder.
      beside: folders of other runs on the same system, to set beside this one.
      num_samples: samples for each start, where the task draws any.
      batch: examples at a time; the run's own by default.
      ode_steps: of a flow from noise to sample.
      use_ema: take averaged weights, where the run has them.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    checkpoint: str = "best"
    data: str | None = None
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
    _, data, _ = load_run(command.run_dir)
    for flag, field, value in (("data", "data", command.data), ("batch", "batch_size", command.batch)):
        if value is not None:
            data = _replace(data, flag, field, value)
    evaluate_run(
        command.run_dir,
        data,
        checkpoint=command.checkpoint,
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
    num_examples: int | None = None,
    output_dir: Path | None = None,
    beside: Sequence[Path] = (),
    averaged: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes `evaluation.json` and `plots/`, and prints the figures.

    Args:
      run_dir: the run's folder.
      data: the run's data.
      checkpoint: the weights; not looked at where a run without checkpoints has just ended.
      result: of the fit that has just ended.
      num_examples: how many examples the task's figures look at.
      output_dir: where files go; by default the run's folder.
      beside: folders of other runs, of the same task or of one that is judged alike.
      averaged: take averaged weights, where there are any.
      settings: of the task, to be used instead of the run's; None among them changes nothing.
    """
    # Here, since matplotlib takes a second to import and training has no use for it.
    from galvanax.cli.loss_curves import plot_loss_curves

    run_dir = Path(run_dir)
    config = json.loads((run_dir / CONFIG).read_text())
    output_dir = Path(output_dir or run_dir)
    plots = output_dir / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    if result is not None and result.best_checkpoint is None:
        task, model = result.task, result.model
    else:
        folder = CheckpointFolder(run_dir).find(checkpoint)
        figures |= {"checkpoint": str(folder.relative_to(run_dir)), "step": read_meta(folder)["step"]}
        task_type = type(result.task) if result else type(find_experiment(config["trainer"]["name"], EXPERIMENTS).task)
        task, model = task_type.load(run_dir, checkpoint, averaged=averaged)
    task = _with_settings(task, settings)
    then = config["trainer"]
    limit, local = then["limit_test_batches"], processes.local_devices()
    trainer = Trainer(max_steps=1, seed=then["seed"], limit_test_batches=limit, devices=local)
    data.setup()
    if data.test_dataset() is not None:
        figures |= trainer.test(task, data, model=model)
    others = {}
    for other in beside:
        other_task, other_model = type(load_run(other)[0].task).load(other, checkpoint, averaged=averaged)
        others[other.name] = _with_settings(other_task, settings), other_model
    figures |= task.report(model, data, plots, num_examples=num_examples, beside=others)
    if (run_dir / "metrics.csv").is_file():
        plot_loss_curves(run_dir / "metrics.csv", plots / "loss_curves.png")
    (output_dir / "evaluation.json").write_text(json.dumps(figures, indent=1))
    _print(figures, output_dir)
    return figures


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


def _print(figures: dict[str, Any], output_dir: Path) -> None:
    table = Table("figure", "value", title=f"{output_dir}/evaluation.json")
    for name, value in figures.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4g}" if math.isfinite(value) else str(value))
        elif not isinstance(value, list | dict):
            table.add_row(name, str(value))
    Console().print(table)
