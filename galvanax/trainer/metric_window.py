"""Training metrics, averaged over some steps."""

import math
from collections.abc import Iterator

import numpy as np


class MetricWindow:
    """Gathers the metrics of steps, and gives their means at every multiple of `log_every`.

    Args:
      log_every: steps in a window.

    Attributes:
      rows: the values since the last multiple, by name; JSON data.
    """

    def __init__(self, log_every: int):
        self._log_every = log_every
        self.rows: dict[str, list[float]] = {}

    def add(self, steps: range, values: dict[str, np.ndarray]) -> Iterator[tuple[int, dict[str, float]]]:
        """Yields `(step, means)` for each window that these steps complete.

        Args:
          steps: those that have come back.
          values: `(len(steps),)`, by name.
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
        """Of what has been gathered since the last multiple, by name; nothing where that is nothing."""
        return {name: math.fsum(rows) / len(rows) for name, rows in self.rows.items()}
