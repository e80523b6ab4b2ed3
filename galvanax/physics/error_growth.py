"""How predictions of many steps go wrong: errors by step and by kind of coordinate, beside simple predictors."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from galvanax.physics.integrators import integrate_positions
from galvanax.physics.layout import StateLayout


@dataclasses.dataclass(frozen=True)
class ErrorGrowth:
    """Errors of predictions over the steps.

    Attributes:
      mse: mean squared error by group, `{"all": (horizon,), "positions": ..., "angles": ..., "velocities": ...}`.
        Groups are in natural units (m, rad, and per second); "all" is over all entries, velocities in units of their
        deviation.
      mae: mean absolute error, likewise.
    """

    mse: dict[str, np.ndarray]
    mae: dict[str, np.ndarray]


def error_growth(layout: StateLayout, predicted: np.ndarray, true: np.ndarray, velocity_std: np.ndarray) -> ErrorGrowth:
    """Errors of predicted states against true ones.

    Args:
      layout: what the entries mean.
      predicted: `(examples, horizon, state_dim)`.
      true: the same.
      velocity_std: deviation of each velocity, `(nv,)`.
    """
    error = np.asarray(layout.difference(jnp.asarray(predicted), jnp.asarray(true)), np.float64)
    scale = np.concatenate([np.ones(layout.nv), velocity_std])
    groups = {"all": error / scale}
    for name, columns in group_columns(layout).items():
        groups[name] = error[..., columns]
    return ErrorGrowth(
        {name: (values**2).mean((0, 2)) for name, values in groups.items()},
        {name: np.abs(values).mean((0, 2)) for name, values in groups.items()},
    )


def group_columns(layout: StateLayout) -> dict[str, list[int]]:
    """Columns of `StateLayout.difference` by kind, those kinds that the layout has."""
    places = dict(zip(layout.scalar_positions, layout.scalar_velocities, strict=True))
    groups = {
        "positions": [places[index] for index in layout.coordinates],
        "angles": [places[index] for index in layout.angles],
        "rotations": [dof + k for _, dof in layout.quaternions for k in range(3)],
        "velocities": list(range(layout.nv, 2 * layout.nv)),
    }
    return {name: columns for name, columns in groups.items() if columns}


def persistence(states: np.ndarray, horizon: int) -> np.ndarray:
    """Predicts that the last of `states (examples, history, state_dim)` stays: `(examples, horizon, state_dim)`."""
    return np.repeat(states[:, -1:], horizon, axis=1)


def linear_extrapolation(layout: StateLayout, states: np.ndarray, horizon: int) -> np.ndarray:
    """Predicts that the last change of `states (examples, history, state_dim)` goes on, of positions and velocities."""
    last, nv = jnp.asarray(states[:, -1]), layout.nv
    change = layout.difference(last, jnp.asarray(states[:, -2]))
    steps = []
    for step in range(1, horizon + 1):
        qpos = integrate_positions(layout, last[:, : layout.nq], change[:, :nv], step)
        steps.append(jnp.concatenate([qpos, last[:, layout.nq :] + step * change[:, nv:]], axis=-1))
    return np.asarray(jnp.stack(steps, axis=1))
