"""`galvanax evaluate RUN_DIR`: the figures and plots of a run."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from galvanax.cli.runs import load_run
from galvanax.datamodules.datamodule import DataModule
from galvanax.errors import ConfigError
from galvanax.experiments.experiment import find_experiment
from galvanax.experiments.registry import EXPERIMENTS
from galvanax.trainer.checkpoints import CheckpointFolder, read_meta
from galvanax.trainer.run import CONFIG, FitResult
from galvanax.trainer.trainer import Trainer


@dataclasses.dataclass
class EvaluateCommand:
    """Measure a run again: test metrics and the task's own figures, to evaluation.json and plots/.

    Attributes:
      run_dir: the run's folder.
      checkpoint: the weights: "best", "last", a step or a path.
      data: evaluate on the test part of these files (a folder, a glob) instead of the run's own.
      num_examples: how many examples the task's figures look at.
      output_dir: where evaluation.json and plots/ go; by default the run's folder.
      beside: folders of other runs of the same task, to set beside this one.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    checkpoint: str = "best"
    data: str | None = None
    num_examples: int | None = None
    output_dir: Path | None = None
    beside: tuple[Path, ...] = ()


def evaluate(arguments: list[str]) -> None:
    """Parses the flags, rebuilds the run's data from its config.json, and evaluates."""
    command = tyro.cli(EvaluateCommand, args=arguments, prog="galvanax evaluate")
    _, data, _ = load_run(command.run_dir)
    if command.data is not None:
        if not any(field.name == "data" for field in dataclasses.fields(data)):
            raise ConfigError(f"--data {command.data}: {type(data).__name__} takes no files.")
        data = dataclasses.replace(data, data=command.data)  # type: ignore[call-arg]
    evaluate_run(
        command.run_dir,
        data,
        checkpoint=command.checkpoint,
        num_examples=command.num_examples,
        output_dir=command.output_dir,
        beside=command.beside,
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
) -> dict[str, Any]:
    """Writes `evaluation.json` and `plots/`, and prints the figures.

    Args:
      run_dir: the run's folder.
      data: the run's data.
      checkpoint: the weights; not looked at where a run without checkpoints has just ended.
      result: of the fit that has just ended.
      num_examples: how many examples the task's figures look at.
      output_dir: where files go; by default the run's folder.
      beside: folders of other runs of the same task.
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
        task, model = task_type.load(run_dir, checkpoint)
    trainer = Trainer(max_steps=1, seed=config["trainer"]["seed"])
    data.setup()
    if data.test_dataset() is not None:
        figures |= trainer.test(task, data, model=model)
    others = {other.name: type(task).load(other, checkpoint)[1] for other in beside}
    figures |= task.report(model, data, plots, num_examples=num_examples, beside=others)
    if (run_dir / "metrics.csv").is_file():
        plot_loss_curves(run_dir / "metrics.csv", plots / "loss_curves.png")
    (output_dir / "evaluation.json").write_text(json.dumps(figures, indent=1))
    _print(figures, output_dir)
    return figures


def _print(figures: dict[str, Any], output_dir: Path) -> None:
    table = Table("figure", "value", title=f"{output_dir}/evaluation.json")
    for name, value in figures.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4g}" if math.isfinite(value) else str(value))
        elif not isinstance(value, list | dict):
            table.add_row(name, str(value))
    Console().print(table)
