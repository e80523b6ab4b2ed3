"""A plot of a run's losses."""

import logging
from pathlib import Path

from matplotlib.figure import Figure

from galvanax.callbacks.csv_logger import read_rows
from galvanax.files import describe_os_error, partial_file

log = logging.getLogger("galvanax")


def plot_loss_curves(metrics: Path, path: Path) -> None:
    """Training and validation loss over the steps, from `metrics.csv` to a PNG; without it, where that is damaged.

    Raises:
      DataError: the PNG can't be written.
    """
    try:
        rows = read_rows(metrics)
        curves = {
            name: [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
            for name in ("train/loss", "val/loss")
        }
    except (OSError, ValueError) as error:
        reason = describe_os_error(error, metrics) if isinstance(error, OSError) else error
        log.warning("%s can't be read: %s. There is no plot of the losses.", metrics, reason)
        return
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, points), width in zip(curves.items(), (1.0, 2.0), strict=True):
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=width)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="Loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with partial_file(path) as partial:
        figure.savefig(partial, dpi=120)
