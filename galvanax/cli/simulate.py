"""`galvanax simulate SYSTEM`: logs of random motion, as a robot would have written them."""

import dataclasses
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import polars as pl
import tyro

from galvanax.datamodules.trajectory_columns import GROUPS, TIME
from galvanax.errors import ConfigError
from galvanax.physics.collect import Rollouts, collect_random_rollouts, control_range
from galvanax.physics.models import load_model
from galvanax.physics.starts import NarrowStart, WideStart


@dataclasses.dataclass
class SimulateCommand:
    """Simulate a system in MJX and write one CSV file a trajectory: timestamp,qpos_0,...,qvel_0,...,ctrl_0,...

    Starts are anywhere that the joints can be (`WideStart`). Controls are uniform between the actuators' limits and
    change smoothly, so that they move the system rather than shake it. A row's control acts from this row to the next.

    Attributes:
      system: a bundled model, such as double-cart-pole, or the path of an MJCF file.
      output: the folder to write to.
      num_trajectories: number of files.
      length: rows in each.
      control_dt: seconds from a row to the next.
      near_reference: start near the model's reference pose, each joint moved by up to this much (rad or m), instead of
        anywhere; for logs of what matters to a planner, such as poles that are nearly upright.
      velocity_range: lowest and highest velocity at the start, of every joint (rad/s or m/s).
      correlation_time: seconds over which controls resemble each other; 0 for a new one each row.
      action_limit: largest control of actuators without limits, in their units.
      seed: seed of starts and controls.
      overwrite: replace the trajectories in the folder.
    """

    system: Annotated[str, tyro.conf.Positional]
    output: Path
    num_trajectories: int = 100
    length: int = 300
    control_dt: float = 0.02
    near_reference: float | None = None
    velocity_range: tuple[float, float] = (-2.0, 2.0)
    correlation_time: float = 0.1
    action_limit: float = 1.0
    seed: int = 0
    overwrite: bool = False


def simulate(arguments: list[str]) -> None:
    """Parses the flags, simulates and writes."""
    command = tyro.cli(SimulateCommand, args=arguments, prog="galvanax simulate")
    present = list(command.output.iterdir()) if command.output.is_dir() else []
    if (present and not command.overwrite) or command.output.is_file():
        found = f"holds {present[0].name}" if present else "is a file"
        raise ConfigError(f"output={command.output} {found}; expected an empty or a new folder, or --overwrite.")
    model = load_model(command.system)
    rollouts = collect_random_rollouts(
        model,
        command.num_trajectories,
        command.length,
        *control_range(model, command.action_limit),
        jax.random.key(command.seed),
        _starts(command),
        command.control_dt,
        command.correlation_time,
    )
    for old in command.output.glob("trajectory_*.csv"):
        old.unlink()
    command.output.mkdir(parents=True, exist_ok=True)
    write_csv_files(command.output, rollouts, model.nq, command.control_dt)
    print(f"wrote {command.num_trajectories} trajectories of {command.length} rows to {command.output}")


def _starts(command: SimulateCommand) -> WideStart | NarrowStart:
    if command.near_reference is None:
        return WideStart(*command.velocity_range)
    low, high = command.velocity_range
    if low != -high:
        raise ConfigError(f"velocity_range={low} {high}: with near_reference, expected as much either way, as -1 1.")
    return NarrowStart(command.near_reference, high)


def write_csv_files(folder: Path, rollouts: Rollouts, nq: int, control_dt: float) -> None:
    """Writes `trajectory_0000.csv` and so on."""
    states, actions = np.asarray(rollouts.states), np.asarray(rollouts.actions)
    widths = nq, states.shape[2] - nq, actions.shape[2]
    names = [f"{group}_{number}" for group, width in zip(GROUPS, widths, strict=True) for number in range(width)]
    # Rounded: 0.06, not 0.06000000000000001.
    time = pl.Series(TIME, np.round(np.arange(states.shape[1]) * control_dt, 9))
    digits = max(len(str(len(states) - 1)), 4)
    for index, rows in enumerate(np.concatenate([states, actions], axis=-1)):
        frame = pl.DataFrame(rows, schema=names, orient="row").insert_column(0, time)
        frame.write_csv(folder / f"trajectory_{index:0{digits}}.csv")
