"""The user's function over trajectories, and what it may return."""

from collections.abc import Callable

import numpy as np

from galvanax.datamodules.trajectory_table import Trajectory
from galvanax.errors import DataError
from galvanax.physics.layout import StateLayout

# States `(rows, state_dim)` and actions `(rows, action_dim)` of a trajectory to the same, perhaps of other sizes.
Transform = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def transform(trajectory: Trajectory, transform_fn: Transform, layout: StateLayout | None = None) -> Trajectory:
    """The trajectory with states and actions changed.

    Args:
      trajectory: what was read; it is left as it is.
      transform_fn: gets copies.
      layout: what the entries of its states mean; None where they are as many as before and mean what they meant.

    Raises:
      DataError: the result is not two finite arrays of as many rows, or its states are not the layout's.
    """
    result = transform_fn(trajectory.states.copy(), trajectory.actions.copy())
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise DataError(f"transform_fn returned {type(result).__name__}; expected states and actions.")
    states, actions = (np.asarray(array, np.float32) for array in result)
    for name, array in (("states", states), ("actions", actions)):
        if array.ndim != 2 or len(array) != len(trajectory):
            raise DataError(
                f"transform_fn made {name} of shape {array.shape} from {trajectory.name}; expected "
                f"({len(trajectory)}, entries)."
            )
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            row, column = bad[0]
            raise DataError(
                f"transform_fn made {name}[{row}, {column}] = {array[row, column]} from {trajectory.name}; expected "
                "finite numbers."
            )
    entries, before = states.shape[1], trajectory.states.shape[1]
    if layout is None and entries != before:
        raise DataError(
            f"transform_fn made states of {entries} entries from the {before} of {trajectory.name}; which of them are "
            "positions? Expected transform_layout=StateLayout(nq=..., nv=...)."
        )
    if layout is not None and entries != layout.nq + layout.nv:
        raise DataError(
            f"transform_fn made states of {entries} entries from {trajectory.name}; transform_layout has "
            f"{layout.nq} positions and {layout.nv} velocities."
        )
    nq = trajectory.nq if layout is None else layout.nq
    return Trajectory(trajectory.name, trajectory.timestamp, states, actions, nq)
