"""Figures and plots of multi-step predictions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from galvanax.datamodules.datamodule import DataModule
from galvanax.errors import ConfigError
from galvanax.networks.gru_dynamics import GRUEnsemble
from galvanax.networks.gru_rollout import read_history, rollout
from galvanax.physics.error_growth import ErrorGrowth, error_growth, linear_extrapolation, persistence
from galvanax.physics.layout import StateLayout
from galvanax.physics.state_labels import label_layout

BEYOND = 10  # horizons that are looked at
EXAMPLES = 1000
UNITS = {  # of squared errors
    "all": "normalised",
    "positions": "m²",
    "angles": "rad²",
    "rotations": "rad²",
    "velocities": "m²/s² or rad²/s²",
}


def report_error_growth(
    models: Mapping[str, Any],
    datamodule: DataModule,
    output_dir: Path,
    num_examples: int | None,
    *,
    history: int,
    horizon: int,
    dt: float,
) -> dict[str, Any]:
    """See `GRUDynamicsTask.report`.

    Args:
      models: by name, the first one the run's own.
      datamodule: of the trajectories.
      output_dir: of the plots.
      num_examples: windows to predict.
      history: states that a model sees of the past.
      horizon: steps that it was trained for.
      dt: seconds (s) a step.
    """
    model: GRUEnsemble = next(iter(models.values()))
    states, actions = _windows(history, BEYOND * horizon, datamodule, num_examples or EXAMPLES)
    steps = states.shape[1] - history
    true, past = states[:, history:], states[:, :history]
    predictions = {name: _predict(other, states, actions, history) for name, other in models.items()}
    predictions["persistence"] = persistence(past, steps)
    predictions["linear_extrapolation"] = linear_extrapolation(model.layout, past, steps)
    scale = np.asarray(model.members.features.std[...])[0, -model.layout.nv :]
    growth = {name: error_growth(model.layout, states, true, scale) for name, states in predictions.items()}
    ratio = growth["model"].mse["all"] / growth["persistence"].mse["all"]
    _plot(growth, horizon, dt, output_dir / "error_growth.png")
    _plot_example(predictions["model"][0], states[0], model.layout, history, dt, output_dir / "predicted_vs_true.png")
    within = slice(0, horizon)
    figures: dict[str, Any] = {"num_examples": len(states), "horizon": horizon, "steps": steps}
    per_step = {"mse": growth["model"].mse["all"], "mae": growth["model"].mae["all"], "mse_over_persistence": ratio}
    for name, values in per_step.items():
        figures |= {f"{name}_step_{h + 1}": float(values[h]) for h in range(min(horizon, steps))}
    figures["mse_over_persistence"] = ratio.tolist()
    for name in models:
        figures[f"{name}_mse_at_horizon"] = float(growth[name].mse["all"][within][-1])
    figures["error_growth"] = {
        name: {
            "mse": {group: values.tolist() for group, values in part.mse.items()},
            "mae": {group: values.tolist() for group, values in part.mae.items()},
        }
        for name, part in growth.items()
    }
    return figures


def _windows(history: int, longest: int, datamodule: Any, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spread windows of the test trajectories, and their actions."""
    split = next((name for name in ("test", "val", "train") if datamodule.trajectories(name)), None)
    if split is None:
        raise ConfigError(f"{type(datamodule).__name__} has no trajectories to evaluate on.")
    trajectories = datamodule.trajectories(split)
    # At most half a trajectory, so that a short one still gives many windows.
    shortest = min(len(one.states) for one in trajectories)
    length = min(history + longest, max(history + longest // BEYOND, shortest // 2))
    starts = [(one, start) for one in trajectories for start in range(len(one.states) - length + 1)]
    chosen = [starts[i] for i in np.linspace(0, len(starts) - 1, min(num_examples, len(starts))).astype(int)]
    return (
        np.stack([one.states[start : start + length] for one, start in chosen]),
        np.stack([one.actions[start : start + length] for one, start in chosen]),
    )


def _predict(model: GRUEnsemble, states: np.ndarray, actions: np.ndarray, history: int) -> np.ndarray:
    @jax.jit
    def predict(states: jax.Array, actions: jax.Array) -> jax.Array:
        past = read_history(model, states[:, :history], actions[:, :history])
        return rollout(model, past, actions[:, history - 1 : -1], "moment")

    return np.asarray(predict(jnp.asarray(states), jnp.asarray(actions)))


def _plot(growth: Mapping[str, ErrorGrowth], horizon: int, dt: float, path: Path) -> None:
    groups = list(next(iter(growth.values())).mse)
    figure = Figure(figsize=(3.6 * len(groups), 3.4), layout="constrained")
    styles = {"persistence": ("0.55", "--"), "linear_extrapolation": ("0.55", ":")}
    for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        for index, (name, part) in enumerate(growth.items()):
            color, line = styles.get(name, (f"C{index}", "-"))
            times = dt * np.arange(1, len(part.mse[group]) + 1)
            axes.semilogy(times, part.mse[group], color=color, linestyle=line, label=name.replace("_", " "))
        axes.axvline(dt * horizon, color="0.8", linewidth=1, zorder=0, label="horizon")
        axes.set(xlabel="time ahead (s)", title=group, ylabel=f"mean squared error\n({UNITS[group]})")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False, fontsize="small")
    _save(figure, path)


def _plot_example(
    predicted: np.ndarray, states: np.ndarray, layout: StateLayout, history: int, dt: float, path: Path
) -> None:
    count = states.shape[-1]
    figure = Figure(figsize=(9.6, 1.6 * -(-count // 2)), layout="constrained")
    times = dt * (np.arange(len(states)) - history + 1)
    all_axes = figure.subplots(-(-count // 2), 2, squeeze=False, sharex=True).ravel()
    for unused in all_axes[count:]:  # of an odd number, the last
        unused.remove()
        all_axes[count - 2].tick_params(labelbottom=True)
    for index, (axes, name) in enumerate(zip(all_axes, label_layout(layout), strict=False)):
        axes.plot(times, states[:, index], color="0.55", linewidth=3, label="true")
        axes.plot(times[history:], predicted[:, index], color="tab:blue", label="model, fed back")
        axes.axvline(0, color="0.8", linewidth=1, zorder=0)
        axes.set(ylabel=name)
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    figure.suptitle("One trajectory, predicted from its history", fontsize="medium")
    figure.supxlabel("time from the present (s)", fontsize="medium")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
