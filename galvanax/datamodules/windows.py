"""Windows of trajectories: each row is stored once, and a window is the place where it starts."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np

from galvanax.datamodules.trajectory_table import Trajectory


@dataclasses.dataclass(frozen=True, eq=False)
class TrajectoryRows:
    """Trajectories, one behind the other.

    Attributes:
      names: where each comes from.
      bounds: the first row of each, and the end of the last, `(len(names) + 1,)`.
      timestamp: seconds, `(rows,)`.
      states: `(rows, state_dim)`.
      actions: `(rows, action_dim)`.
      nq: how many entries of a state are positions.
    """

    names: tuple[str, ...]
    bounds: np.ndarray
    timestamp: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    nq: int

    @classmethod
    def stack(cls, trajectories: Sequence[Trajectory]) -> Self:
        """Copies at least one trajectory."""
        return cls(
            tuple(trajectory.name for trajectory in trajectories),
            np.cumsum([0, *map(len, trajectories)]),
            np.concatenate([trajectory.timestamp for trajectory in trajectories]),
            np.concatenate([trajectory.states for trajectory in trajectories]),
            np.concatenate([trajectory.actions for trajectory in trajectories]),
            trajectories[0].nq,
        )

    def trajectories(self) -> list[Trajectory]:
        """The trajectories, as views."""
        return [
            Trajectory(name, self.timestamp[start:stop], self.states[start:stop], self.actions[start:stop], self.nq)
            for name, start, stop in zip(self.names, self.bounds[:-1], self.bounds[1:], strict=True)
        ]

    def starts(self, length: int) -> np.ndarray:
        """The first rows of all windows of `length` rows that lie in one trajectory, `(windows,)`, in order."""
        return np.concatenate(
            [np.arange(start, stop - length + 1) for start, stop in zip(self.bounds[:-1], self.bounds[1:], strict=True)]
        )

    def gather(self, starts: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """`states` and `actions` of windows, `(len(starts), length, dim)`."""
        rows = starts[:, None] + np.arange(length)
        return {"states": self.states[rows], "actions": self.actions[rows]}

    def steps(self) -> np.ndarray:
        """The rows that have a successor in their trajectory."""
        return np.setdiff1d(np.arange(self.bounds[-1]), self.bounds[1:] - 1, assume_unique=True)
