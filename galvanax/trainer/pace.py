"""How many steps go into one dispatch."""

import time

SHORT, LONG = 0.1, 0.5  # seconds a dispatch should take: long enough to hide the host's work, short enough to stop at


class Pace:
    """Chooses the steps of a dispatch by how long they take. The choice has no effect on the numbers, only on speed.

    Args:
      capacity: the most that a stack holds.
      fixed: always that many.
    """

    def __init__(self, capacity: int, fixed: bool):
        self._capacity = capacity
        self.steps = capacity if fixed else 1
        self._fixed = fixed
        self._last: float | None = None

    def finished(self, count: int) -> None:
        """Tells that a dispatch of `count` steps has come back."""
        now, last = time.monotonic(), self._last
        self._last = now
        if self._fixed or last is None or count < self.steps:
            return
        if now - last < SHORT:
            self.steps = min(self._capacity, 2 * self.steps)
        elif now - last > LONG:
            self.steps = max(1, self.steps // 2)

    def pause(self) -> None:
        """Tells that something else happens now, so that its time is not taken for a dispatch's."""
        self._last = None
