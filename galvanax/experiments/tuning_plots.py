"""Plots of a search for hyperparameters."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from galvanax.files import partial_file


def plot_history(trials: Sequence[tuple[int, float]], metric: str, direction: str, path: Path) -> None:
    """Each trial's value, and the best one so far, to a PNG.

    Args:
      trials: their numbers and values, in order.
      metric: what the values are.
      direction: "MINIMIZE" or "MAXIMIZE".
      path: the PNG to write.
    """
    numbers, values = (np.array(column) for column in zip(*trials, strict=True))
    best = (np.minimum if direction == "MINIMIZE" else np.maximum).accumulate(values)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(numbers, values, "o", color="0.55", markersize=4, label="a trial")
    axes.step(numbers, best, where="post", color="tab:blue", label="best so far")
    axes.set(xlabel="trial", ylabel=metric, title="Trials", yscale="log" if values.min() > 0 else "linear")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, path)


def plot_importances(importances: Mapping[str, float], metric: str, path: Path) -> None:
    """How much of the metric's spread each setting explains, to a PNG.

    Args:
      importances: by setting, which sum to 1.
      metric: what is explained.
      path: the PNG to write.
    """
    names = sorted(importances, key=lambda name: importances[name])
    figure = Figure(figsize=(6.4, 1.2 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, [importances[name] for name in names], color="tab:blue")
    axes.set(xlabel=f"share of what makes {metric} good (PED-ANOVA)", xlim=(0, 1), title="Importance")
    axes.grid(axis="x", alpha=0.3)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with partial_file(path) as partial:
        figure.savefig(partial, dpi=120)
