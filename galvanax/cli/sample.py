"""`galvanax sample RUN_DIR`: trajectories of a flow-matching run, as data."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from galvanax.cli.runs import check_output, load_run, set_up
from galvanax.errors import ConfigError, DataError
from galvanax.files import partial_file
from galvanax.tasks.flow_matching import FlowMatchingTask
from galvanax.tasks.flow_report import in_batches

_BATCH = 64


@dataclasses.dataclass
class SampleCommand:
    """Draw trajectories from a run of DynaFlow, or of flow matching on states.

    The NPZ has states (N, horizon + 1, d), actions (N, horizon, a) that lead through them, conditionings (N, c) where
    the run has conditions, and dt: what `galvanax collect` writes, so that a run can learn from it.

    Attributes:
      run_dir: the run's folder.
      output: the file to write, such as samples.npz.
      x0: the state from which all start, entry by entry; by default the first states of test trajectories.
      condition: what all are asked for, entry by entry; by default those of the test trajectories, or none with --x0.
      num_samples: trajectories.
      ode_steps: of the flow from noise to sample; by default the run's.
      guidance: how far samples follow the condition, 1 as learned; by default the run's.
      checkpoint: the weights: "best", "last", a step or a path.
      experiment: path/to/file.py:name of the gx.Experiment that made the run, where that is not one of the package. A
        run folder is data: no code that it names is run.
      use_ema: take averaged weights, where the run has them.
      seed: of the noise.
      overwrite: replace a file of that name.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    output: Path
    x0: tuple[float, ...] | None = None
    condition: tuple[float, ...] | None = None
    num_samples: int = 32
    ode_steps: int | None = None
    guidance: float | None = None
    checkpoint: str = "best"
    experiment: str | None = None
    use_ema: bool = True
    seed: int = 0
    overwrite: bool = False


def sample(arguments: list[str]) -> None:
    """Parses the flags, draws and writes."""
    command = tyro.cli(SampleCommand, args=arguments, prog="galvanax sample")
    if command.output.suffix != ".npz":
        raise ConfigError(f"output={command.output}: expected the name of a file that ends in .npz.")
    if command.output.exists() and not command.overwrite:
        raise ConfigError(f"output={command.output} is there; expected a new name, or --overwrite.")
    check_output(command.output.parent)
    if command.num_samples < 1:
        raise ConfigError(f"num_samples={command.num_samples}: expected at least 1.")
    experiment, data, _ = load_run(command.run_dir, command.experiment)
    if not isinstance(experiment.task, FlowMatchingTask):
        raise ConfigError(
            f"{command.run_dir} is a run of {type(experiment.task).__name__}; expected one that draws trajectories "
            "(DynaFlowTask)."
        )
    task, model = type(experiment.task).load(command.run_dir, command.checkpoint, averaged=command.use_ema)
    starts, conditions = _starts(command, task, data)
    if command.ode_steps is not None and command.ode_steps < 1:
        raise ConfigError(f"ode_steps={command.ode_steps}: expected at least 1.")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(command.seed), jnp.arange(command.num_samples))
    draw = task.sampler(model, ode_steps=command.ode_steps, guidance=command.guidance)

    def draw_rows(raw: Any, start: Any, condition: Any = None) -> Any:
        return draw(start, condition, jax.random.wrap_key_data(jnp.asarray(raw)))

    rows = [np.asarray(jax.random.key_data(keys)), starts] + ([] if conditions is None else [conditions])
    drawn = in_batches(draw_rows, min(_BATCH, command.num_samples), *rows)
    if not np.isfinite(drawn.states).all():
        raise DataError("A sample is not finite: the physics broke. Try fewer ode_steps, or another checkpoint.")
    arrays = {"states": drawn.states, "dt": np.float64(task.dt)}
    arrays |= {} if drawn.actions is None else {"actions": drawn.actions}
    arrays |= {} if conditions is None else {"conditionings": conditions}
    with partial_file(command.output) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    print(f"wrote {command.num_samples} trajectories of {task.horizon} steps to {command.output}")


def _starts(command: SampleCommand, task: FlowMatchingTask, data: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Start states and conditions, one of each for every sample."""
    found: dict[str, np.ndarray] = {}
    for name, size in (("x0", task.state_dim), ("condition", task.condition_dim)):
        values = getattr(command, name)
        if values is not None:
            if len(values) != size:
                raise ConfigError(f"{name} has {len(values)} numbers; this run's have {size}.")
            found[name] = np.tile(np.float32(values), (command.num_samples, 1))
    if command.x0 is None:
        set_up(data, command.run_dir)
        dataset = data.test_dataset()
        if dataset is None:
            raise ConfigError("The run's data has no test part: give x0.")
        wanted, batches = command.num_samples, []
        for index in range(len(dataset)):
            batches.append(dataset[index])
            wanted -= len(batches[-1]["states"])
            if wanted <= 0:
                break
        rows = np.arange(command.num_samples)
        for name, key in (("x0", "states"), ("condition", "condition")):
            if name not in found and key in batches[0]:
                array = np.concatenate([batch[key] for batch in batches])
                array = array[rows % len(array)]
                found[name] = array[:, 0] if key == "states" else array
    return found["x0"], found.get("condition")
