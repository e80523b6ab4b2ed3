"""`galvanax export RUN_DIR`: a run's weights, or its policy, as one file."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro
from flax import nnx

from galvanax.cli.runs import check_output, load_policy
from galvanax.errors import ConfigError
from galvanax.runs.export import export_safetensors
from galvanax.runs.integrity import read_meta
from galvanax.tasks.policy_export import export_onnx, export_stablehlo, policy_metadata

FORMATS = {
    ".safetensors": "the weights, of any run",
    ".onnx": "a PPO run's policy for onnxruntime",
    ".jax": "a PPO run's policy as StableHLO, for jax.export.deserialize",
}


@dataclasses.dataclass
class ExportCommand:
    """Write a run's weights or policy to a file, with the weights that evaluation uses.

    weights.safetensors holds the weights and the model's statistics, of any run. policy.onnx (for onnxruntime) and
    policy.jax (StableHLO, for jax.export) hold a PPO run's deterministic policy, and policy.onnx.json beside it what a
    robot must know: joint names, gains, default pose, scales, observation layout.

    Attributes:
      run_dir: the run's folder.
      output: the file to write; its suffix says what: .safetensors, .onnx or .jax.
      checkpoint: the weights: "best", "last", a step or a path.
      experiment: of a policy: path/to/file.py:name of the gx.Experiment that made the run, where that is not one
        of the package. A run folder is data: no code that it names is run.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    output: Path
    checkpoint: str = "best"
    experiment: str | None = None


def export(arguments: list[str]) -> None:
    """Parses the flags and writes the file."""
    command = tyro.cli(ExportCommand, args=arguments, prog="galvanax export")
    if command.output.suffix not in FORMATS:
        known = "; ".join(f"{suffix}: {what}" for suffix, what in FORMATS.items())
        raise ConfigError(f"output={command.output}: expected a name with one of these suffixes. {known}.")
    check_output(command.output.parent)
    if command.output.suffix == ".safetensors":
        path = export_safetensors(command.run_dir, command.output, command.checkpoint)
    else:
        model, _, env, checkpoint = load_policy(command.run_dir, command.checkpoint, experiment=command.experiment)
        path = export_policy(command.output, model, env, step=read_meta(checkpoint).step)
    print(f"wrote {path} ({path.stat().st_size} bytes)")


def export_policy(path: Path, model: nnx.Module, env: Any, **more: Any) -> Path:
    """Writes a policy to a .onnx or .jax file, with its environment's metadata and `more`."""
    write = export_onnx if path.suffix == ".onnx" else export_stablehlo
    return write(path, model, {**policy_metadata(env), **more})
