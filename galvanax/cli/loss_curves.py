"""A plot of how a run went."""

import logging
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from galvanax.callbacks.csv_logger import read_rows
from galvanax.files import describe_os_error, partial_file

log = logging.getLogger("galvanax")

PANELS = {"loss": "Loss", "episode_return": "Episode return"}
SPLITS = {"train": 1.0, "val": 2.0}  # and their lines' widths

Curve = list[tuple[float, float]]


def read_log(metrics: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv`; none, and a warning, where it is damaged."""
    try:
        rows = read_rows(metrics)
        return [{name: float(value) for name, value in row.items() if value} for row in rows]
    except (OSError, ValueError) as error:
        reason = describe_os_error(error, metrics) if isinstance(error, OSError) else error
        log.warning("%s can't be read: %s. The curves drawn end at the checkpoint.", metrics, reason)
        return []


def plot_loss_curves(rows: list[dict[str, float]], path: Path) -> None:
    """Loss, and return of episodes where there are any, over the steps, to a PNG.

    Raises:
      DataError: the PNG can't be written.
    """
    panels = _curves(rows)
    figure = Figure(figsize=(6.4, 3.6 if len(panels) == 1 else 3.0 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (name, curves) in zip(all_axes, panels.items(), strict=True):
        _draw(axes, name, curves)
    all_axes[-1].set_xlabel("step")
    with partial_file(path) as partial:
        figure.savefig(partial, dpi=120)


def _curves(rows: list[dict[str, float]]) -> dict[str, dict[str, Curve]]:
    """By metric, then by split; a loss always."""
    panels: dict[str, dict[str, Curve]] = {"loss": {}}
    for name in PANELS:
        for split in SPLITS:
            column = f"{split}/{name}"
            if points := [(row["step"], row[column]) for row in rows if column in row]:
                panels.setdefault(name, {})[split] = points
    return panels


def _draw(axes: Any, name: str, curves: dict[str, Curve]) -> None:
    for split, points in curves.items():
        # A dot shows a value that stands alone.
        marker = "o" if len(points) < 20 else ""
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=3, linewidth=SPLITS[split], label=split)
    values = [value for points in curves.values() for _, value in points]
    # A logarithm would leave out what is not above 0, as PPO's loss and a likelihood often are.
    logarithmic = name == "loss" and bool(values) and min(values) > 0
    axes.set(title=PANELS[name], ylabel=PANELS[name].lower(), yscale="log" if logarithmic else "linear")
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(frameon=False)
