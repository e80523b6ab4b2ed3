"""The user's function over trajectories, and what it may return."""

from collections.abc import Callable

import numpy as np

from galvanax.datamodules.trajectory_table import Trajectory
from galvanax.errors import DataError

# States `(rows, state_dim)` and actions `(rows, action_dim)` of a trajectory to the same, perhaps of other sizes.
Transform = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def transform(trajectory: Trajectory, transform_fn: Transform, surplus: int = 0) -> Trajectory:
    """The trajectory with states and actions changed.

    Args:
      trajectory: what was read; it is left as it is.
      transform_fn: gets copies.
      surplus: how many positions a state has more than velocities, in the result.

    Raises:
      DataError: the result is not two finite arrays of as many rows, or its states can't be halved.
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
    nq, odd = divmod(states.shape[1] + surplus, 2)
    if odd:
        raise DataError(
            f"transform_fn made states of {states.shape[1]} entries; expected {surplus} positions more than velocities."
        )
    return Trajectory(trajectory.name, trajectory.timestamp, states, actions, nq)
