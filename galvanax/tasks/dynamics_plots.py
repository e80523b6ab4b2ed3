"""Plots of learned dynamics beside the truth."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from galvanax.networks.dynamics import BaseDynamicsModel
from galvanax.physics.open_loop import PredictionError, predict_open_loop

# More curves than this can't be told apart.
_MAX_ROWS = 8


def plot_open_loop_error(error: PredictionError, dt: float, path: Path) -> None:
    """Draws the growth of the open-loop error over time beside persistence.

    Args:
      error: two arrays `(horizon,)`.
      dt: seconds a step.
      path: the PNG to write.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    times = dt * np.arange(1, len(error.model) + 1)
    axes.semilogy(times, error.persistence, color="0.55", linestyle="--", label="persistence (no change)")
    axes.semilogy(times, error.model, color="tab:blue", label="model, fed back")
    axes.set(
        xlabel="time from the start (s)",
        ylabel="mean squared error of the state\n(rad or m, and per second)",
        title="Open-loop error",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, path)


def plot_predicted_vs_true(model: BaseDynamicsModel, states: np.ndarray, actions: np.ndarray, path: Path) -> None:
    """Draws the first trajectory's velocities, true and predicted open loop, and one-step predictions against truth.

    Args:
      model: the learned dynamics.
      states: true trajectories `(trajectories, length + 1, state_dim)`.
      actions: `(trajectories, length, action_dim)`.
      path: the PNG to write.
    """
    nq, rows = model.layout.nq, min(model.layout.nv, _MAX_ROWS)
    open_loop = np.asarray(predict_open_loop(model.step, states[:1, 0], actions[:1]))[0]
    one_step = np.asarray(model.step(jnp.asarray(states[:, :-1], jnp.float32), jnp.asarray(actions)))
    times = model.dt * np.arange(states.shape[1])
    figure = Figure(figsize=(9.6, 3.2 * rows), layout="constrained")
    for dof, (left, right) in enumerate(figure.subplots(rows, 2, squeeze=False, width_ratios=(2, 1))):
        left.plot(times, states[0, :, nq + dof], color="0.55", linewidth=3, label="MuJoCo")
        left.plot(times[1:], open_loop[:, nq + dof], color="tab:blue", label="model, fed back")
        left.set(xlabel="time (s)", ylabel=f"velocity {dof} (rad/s or m/s)")
        left.grid(alpha=0.3)
        true, predicted = (
            (after[..., nq + dof] - states[:, :-1, nq + dof]) / model.dt for after in (states[:, 1:], one_step)
        )
        right.plot(true.ravel(), predicted.ravel(), ".", markersize=2, color="tab:blue", alpha=0.4, rasterized=True)
        right.axline((0, 0), slope=1, color="0.55", linewidth=1)
        right.set(xlabel="true acceleration (rad/s² or m/s²)", ylabel="predicted")
        right.grid(alpha=0.3)
        if dof == 0:
            left.set_title("One trajectory, open loop")
            right.set_title("One step, all trajectories")
            left.legend(frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    # Without pyplot there is no global state and no display to ask for.
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
