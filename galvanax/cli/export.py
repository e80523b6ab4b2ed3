"""`galvanax export RUN_DIR`: a run's weights as one file."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from galvanax.trainer.export import export_safetensors


@dataclasses.dataclass
class ExportCommand:
    """Write the weights that evaluation uses, and the model's statistics, to a safetensors file.

    Attributes:
      run_dir: the run's folder.
      output: the file to write, such as weights.safetensors.
      checkpoint: the weights: "best", "last", a step or a path.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    output: Path
    checkpoint: str = "best"


def export(arguments: list[str]) -> None:
    """Parses the flags and writes the file."""
    command = tyro.cli(ExportCommand, args=arguments, prog="galvanax export")
    path = export_safetensors(command.run_dir, command.output, command.checkpoint)
    print(f"wrote {path} ({path.stat().st_size} bytes)")
