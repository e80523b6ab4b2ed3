"""A plot of a run's losses."""

import csv
from pathlib import Path

from matplotlib.figure import Figure


def plot_loss_curves(metrics: Path, path: Path) -> None:
    """Training and validation loss over the steps, from `metrics.csv` to a PNG."""
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, width in (("train/loss", 1.0), ("val/loss", 2.0)):
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=width)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="Loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
