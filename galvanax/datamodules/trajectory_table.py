"""A logged table, whatever file it came from, and the check that it is a trajectory."""

import dataclasses
import logging
from pathlib import Path

import numpy as np

from galvanax.datamodules.trajectory_columns import Columns
from galvanax.errors import DataError

# In rad, m, s and N·m no robot's state or control is as large: it is a broken sensor or another unit.
LARGEST = 1e6


# A robot is controlled and logged many times a second; these are units in which the usual periods are far more.
SLOWEST, UNITS = 0.99, ((0.99e6, "ns"), (0.99e3, "µs"), (0.0, "ms"))

logger = logging.getLogger(__name__)


def warn_of_period(name: str, dt: float) -> None:
    """Warns where a sampling period (s) is so long that the times may be in another unit; velocities would not fit."""
    if dt >= SLOWEST:
        unit = next(unit for least, unit in UNITS if dt >= least)
        logger.warning(
            "%s has a sampling period of %.6g s. Are its times in %s? Seconds are expected, as in qvel (rad/s, m/s).",
            name, dt, unit,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """One run of a system, sampled at a fixed rate.

    Attributes:
      name: the file that it comes from.
      timestamp: seconds, `(rows,)`, float64.
      states: `[qpos, qvel]`, `(rows, state_dim)`, float32.
      actions: the control applied from this row to the next, `(rows, action_dim)`, float32.
      nq: how many entries of a state are positions.
    """

    name: str
    timestamp: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    nq: int

    @property
    def dt(self) -> float:
        """Mean sampling period (s)."""
        return float((self.timestamp[-1] - self.timestamp[0]) / (len(self) - 1))

    def __len__(self) -> int:
        return len(self.timestamp)


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Values of a file's columns and where they stand.

    Attributes:
      path: the file.
      columns: what the columns mean.
      values: `(rows, len(columns.names))`, float64.
      lines: for messages, the line or row of each row, counted from 1.
      unit: what `lines` counts: `"line"` or `"row"`.
    """

    path: Path
    columns: Columns
    values: np.ndarray
    lines: np.ndarray
    unit: str

    def trajectory(self, period_tolerance: float) -> Trajectory:
        """The table as a trajectory.

        Args:
          period_tolerance: how far a sampling period may be from the file's median, as a share of it.

        Raises:
          DataError: fewer than two rows; a number that isn't finite or larger than `LARGEST`; time that doesn't
            advance, or not evenly. Names file, line and column.
        """
        if len(self.values) < 2:
            raise DataError(f"{self.path} has {len(self.values)} rows of numbers; expected at least 2.")
        numbers = self.values[:, 1:]
        self._refuse(~np.isfinite(self.values), "expected finite numbers")
        # NaN-free from here on.
        too_large = np.zeros(self.values.shape, bool)
        too_large[:, 1:] = np.abs(numbers) > LARGEST
        self._refuse(too_large, f"expected at most {LARGEST:g} either way, in rad, m, s and N·m")
        self._check_time(period_tolerance)
        states, actions = np.split(numbers.astype(np.float32), [self.columns.nq + self.columns.nv], axis=1)
        return Trajectory(
            str(self.path), np.array(self.values[:, 0]), np.ascontiguousarray(states), np.ascontiguousarray(actions),
            self.columns.nq,
        )  # fmt: skip

    def _refuse(self, bad: np.ndarray, expected: str) -> None:
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise DataError(
                f"{self._where(row, column)}: {self.values[row, column]:g}; {expected}; {bad.sum()} of {bad.size} "
                "cells are not."
            )

    def _check_time(self, tolerance: float) -> None:
        time = self.values[:, 0]
        periods = np.diff(time)
        if (periods <= 0).any():
            row = int(np.argmax(periods <= 0)) + 1
            raise DataError(
                f"{self._where(row, 0)}: {time[row]:.9g} s after {time[row - 1]:.9g} s; expected times that increase."
            )
        usual = float(np.median(periods))
        uneven = np.abs(periods - usual) > tolerance * usual
        if uneven.any():
            row = int(np.argmax(uneven)) + 1
            raise DataError(
                f"{self._where(row, 0)}: {periods[row - 1]:.6g} s after the {self.unit} before; expected about "
                f"{usual:.6g} s, the file's median, within {tolerance:.0%}: cut the file there, or resample it."
            )

    def _where(self, row: int, column: int) -> str:
        return f"{self.path}, {self.unit} {self.lines[row]}, column {self.columns.names[column]}"
