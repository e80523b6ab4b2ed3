"""Metrics: what a task may return, means over steps and examples, and totals."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np


def check_metrics(metrics: Any, rows: int, source: str) -> None:
    """Checks the form of a task's metrics, while tracing.

    Args:
      metrics: `{name: number, or array () or (rows,)}`.
      rows: examples in the batch.
      source: who returned them, `"SpringTask.loss"`.

    Raises:
      TypeError: one has another form; names it.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(f"{source} returned metrics of type {type(metrics).__name__}; expected {{name: metric}}.")
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"{source} returned a metric named {name!r}; expected a string.")
        if isinstance(value, int | float):
            continue
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if not _is_number(dtype) or shape not in ((), (rows,)):
            seen = type(value).__name__ if shape is None or dtype is None else f"{dtype}{list(shape)}"
            raise TypeError(
                f"{source} returned the metric {name!r} as {seen}; expected a scalar, or a number for each example of "
                f"the batch: [{rows}]."
            )


def _is_number(dtype: Any) -> bool:
    return dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool))


def mean(values: list[float]) -> float:
    """The mean, whatever the order; NaN where +inf and -inf meet."""
    try:
        return math.fsum(values) / len(values)
    except ValueError:
        return math.nan


class MetricWindow:
    """Gathers the metrics of steps, and gives their means at every multiple of `log_every`; totals as they are then.

    Args:
      log_every: steps in a window.
      totals: names of the metrics that are added up from the run's start.

    Attributes:
      rows: the values since the last multiple, by name; JSON data.
      sums: the totals so far, by name; likewise.
    """

    def __init__(self, log_every: int, totals: Iterable[str] = ()):
        self._log_every = log_every
        self.rows: dict[str, list[float]] = {}
        self.sums = dict.fromkeys(totals, 0.0)

    def count(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The values of the next steps, with what each adds to a total turned into that total.

        Args:
          values: `(steps,)`, by name.
        """
        # In float64, which counts to 2**53: float32 would miss steps from 17 million on.
        counted = {name: total + np.cumsum(values[name], dtype=np.float64) for name, total in self.sums.items()}
        self.sums = {name: float(sums[-1]) for name, sums in counted.items()}
        return values | counted

    def add(self, steps: range, values: dict[str, np.ndarray]) -> Iterator[tuple[int, dict[str, float]]]:
        """Yields `(step, means)` for each window that these steps complete.

        Args:
          steps: those that have come back.
          values: `(len(steps),)`, by name, counted.
        """
        done = 0
        while done < len(steps):
            boundary = min(-(-steps[done] // self._log_every) * self._log_every, steps[-1])
            stop = boundary - steps[0] + 1
            for name, rows in values.items():
                self.rows.setdefault(name, []).extend(rows[done:stop].tolist())
            if boundary % self._log_every == 0:
                yield boundary, self.means()
                self.rows = {}
            done = stop

    def means(self) -> dict[str, float]:
        """Of what has been gathered since the last multiple, and totals, by name; nothing where that is nothing."""
        return {name: rows[-1] if name in self.sums else mean(rows) for name, rows in self.rows.items()}
