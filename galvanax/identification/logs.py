"""Short windows of logged motion, and how noisy the log is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from galvanax.datamodules.trajectory_files import read_trajectories
from galvanax.datamodules.trajectory_table import Trajectory
from galvanax.errors import ConfigError, DataError
from galvanax.physics.system import MJXSystem, state_difference

Logs = str | Path | Trajectory | Sequence[Trajectory] | Mapping[str, Any]

# What float32 and another simulator's rounding leave of exact logs, as a part of how far an entry moves.
LEAST_NOISE, LEAST_DEVIATION = 1e-5, 1e-6
# A third difference of independent numbers has 1 + 9 + 9 + 1 times their variance; a median is 0.6745 deviations.
_THIRD_DIFFERENCE, _MEDIAN = 20**0.5, 0.6745


class Windows(NamedTuple):
    """Pieces of the logs that are simulated from their first state.

    Attributes:
      states: measured, `(windows, horizon + 1, state_dim)`.
      actions: `(windows, lead + horizon, action_dim)`; the first `lead` come before the first state.
    """

    states: np.ndarray
    actions: np.ndarray

    @property
    def horizon(self) -> int:
        """Control steps of a window."""
        return self.states.shape[1] - 1


def read_logs(logs: Logs) -> list[Trajectory]:
    """What a user calls trajectories, as `Trajectory`s.

    Raises:
      DataError: it is none, or can't be read.
    """
    if isinstance(logs, str | Path):
        return read_trajectories(logs)
    if isinstance(logs, Trajectory):
        return [logs]
    if isinstance(logs, Mapping):
        return _from_arrays(logs)
    logs = list(logs)
    if not logs or not all(isinstance(one, Trajectory) for one in logs):
        kinds = ", ".join(sorted({type(one).__name__ for one in logs})) or "none"
        raise DataError(
            f"trajectories are {kinds}; expected one or more gx.Trajectory, the path of logs, or arrays by name: "
            '{"states": (N, T, state_dim), "actions": (N, T, action_dim), "dt": seconds}.'
        )
    return logs


def _from_arrays(arrays: Mapping[str, Any]) -> list[Trajectory]:
    missing = [name for name in ("states", "actions", "dt") if name not in arrays]
    if missing:
        raise DataError(f"trajectories have {', '.join(arrays)} and no {', '.join(missing)}.")
    states, actions = (np.asarray(arrays[name], np.float32) for name in ("states", "actions"))
    if states.ndim == 2:
        states, actions = states[None], actions[None]
    rows = states.shape[1] if states.ndim == 3 else 0
    if rows < 2 or actions.ndim != 3 or len(actions) != len(states) or actions.shape[1] not in (rows, rows - 1):
        raise DataError(
            f"trajectories: states have shape {states.shape} and actions {actions.shape}; expected (N, T, state_dim) "
            "and (N, T, action_dim) or (N, T - 1, action_dim)."
        )
    actions = np.pad(actions, ((0, 0), (0, rows - actions.shape[1]), (0, 0)), mode="edge")
    time = np.arange(rows) * float(arrays["dt"])
    # A name alone tells where a log came from; how many entries are positions, the model knows.
    return [
        Trajectory(f"trajectory {n}", time, *both, nq=0) for n, both in enumerate(zip(states, actions, strict=True))
    ]


def check_logs(logs: Sequence[Trajectory], system: MJXSystem) -> None:
    """Raises DataError where a log is not one of the system: names the log."""
    size, actions, nq = system.state_dim, system.action_dim, system.layout.nq
    for log in logs:
        if log.states.shape[1] != size or log.nq not in (0, nq):
            found = f"{log.states.shape[1]} entries" + (f", {log.nq} of them positions" if log.nq else "")
            raise DataError(
                f"{log.name}: a state has {found}; expected {size}, the model's {nq} qpos and the rest qvel."
            )
        if log.actions.shape[1] != actions:
            raise DataError(f"{log.name}: an action has {log.actions.shape[1]} entries; the model takes {actions}.")
        if not (np.isfinite(log.states).all() and np.isfinite(log.actions).all()):
            raise DataError(f"{log.name} has numbers that are not finite.")
        if abs(log.dt - system.control_dt) > 0.01 * system.control_dt:
            raise DataError(
                f"{log.name} has a row every {log.dt:.6g} s; the model's control step is {system.control_dt:.6g} s: "
                "expected the same within 1%."
            )


def cut_windows(logs: Sequence[Trajectory], horizon: int, lead: int, most: int) -> Windows:
    """Windows that follow each other, `most` of them spread over all logs.

    Raises:
      DataError: no log is long enough.
    """
    places = [(number, first) for number, log in enumerate(logs) for first in range(lead, len(log) - horizon, horizon)]
    if not places:
        longest = max(map(len, logs))
        raise DataError(
            f"The longest of {len(logs)} trajectories has {longest} rows; expected at least {lead + horizon + 1}, for "
            f"windows of horizon={horizon} steps{f' and {lead} before for a delay' if lead else ''}."
        )
    if len(places) > most:
        places = [places[i] for i in np.linspace(0, len(places) - 1, most).round().astype(int)]
    return Windows(
        np.stack([logs[n].states[first : first + horizon + 1] for n, first in places]),
        np.stack([logs[n].actions[first - lead : first + horizon] for n, first in places]),
    )


def check_horizon(horizon: int, most: int) -> None:
    """Raises ConfigError where there would be no windows."""
    for name, value in (("horizon", horizon), ("max_windows", most)):
        if value < 1:
            raise ConfigError(f"{name}={value}; expected 1 or more.")


def row_differences(logs: Sequence[Trajectory], system: MJXSystem) -> list[np.ndarray]:
    """For each log, how far a row is from the one before, as `state_difference` has it: `(rows - 1, 2 nv)`."""
    states = [jnp.asarray(log.states) for log in logs]
    return [np.asarray(state_difference(system, one[1:], one[:-1]), np.float64) for one in states]


def estimate_noise(steps: Sequence[np.ndarray]) -> np.ndarray:
    """The deviation of a log's noise `(2 nv,)`, from `row_differences`.

    From third differences, in which smooth motion cancels and independent noise doesn't; their median, which jumps at
    contacts don't move.
    """
    third = np.concatenate([np.diff(one, 2, axis=0) for one in steps])
    if not len(third):
        return np.ones(steps[0].shape[1])
    return np.maximum(np.median(np.abs(third), axis=0) / _MEDIAN / _THIRD_DIFFERENCE, least_noise(steps))


def least_noise(steps: Sequence[np.ndarray]) -> np.ndarray:
    """The least deviation `(2 nv,)` that residuals are weighed by, from `row_differences`."""
    moved = [np.cumsum(one, axis=0) for one in steps]
    deviation = np.concatenate([one - one.mean(0) for one in moved]).std(0)
    return np.maximum(LEAST_NOISE * deviation, LEAST_DEVIATION)
