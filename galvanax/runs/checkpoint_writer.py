"""Writing checkpoints beside training."""

import collections
import dataclasses
import logging
import threading
import time
from typing import Any

from galvanax.errors import CheckpointError
from galvanax.runs.checkpoint_meta import CheckpointMeta, Entry, Monitor, ranked, retained
from galvanax.runs.checkpoints import CheckpointFolder
from galvanax.trainer import processes

log = logging.getLogger("galvanax")

REST, LONGEST_REST = 4.0, 1.0  # between two writes, in writing times; in seconds, at most
WAITING_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run at one step: copies of its arrays, and its JSON data."""

    arrays: dict[str, Any]
    meta: CheckpointMeta

    @property
    def entry(self) -> Entry:
        """What decides whether it is kept."""
        return Entry.of(self.meta)

    @property
    def nbytes(self) -> int:
        """The size of the arrays."""
        return sum(leaf.nbytes for leaf in self.arrays.values())


class CheckpointWriter:
    """Writes snapshots in a thread of its own, in order, each whole.

    A snapshot that waits is dropped when newer ones have made it obsolete: it would be deleted as soon as it was
    written. So training never waits for the disk, what is on the disk in the end is the same, and the newest
    checkpoint there is at most a few writing times old. But with several processes each snapshot is written before
    `submit` returns: which one waits would depend on each process's clock, and they can only write together.

    Args:
      folder: where to.
      monitor: what ranks them, if anything.
      keep_last: newest checkpoints to keep; None keeps all.
      keep_best: best checkpoints to keep.
      stop_on_error: whether `raise_error` raises what went wrong; else it is only logged.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        monitor: Monitor | None,
        keep_last: int | None,
        keep_best: int,
        stop_on_error: bool,
    ):
        self._folder, self._rules = folder, (monitor, keep_last, keep_best)
        self._stop_on_error = stop_on_error
        self._waiting: collections.deque[Snapshot] = collections.deque()
        self._writing: list[Snapshot] = []  # the one, if any, that is on its way
        self._written = {entry.step: entry for entry in folder.entries()}
        self._found = set(self._written)  # and not written by this run: they may be damaged
        self._changed = threading.Condition()
        self._closing = False
        self._error: CheckpointError | None = None
        self._thread: threading.Thread | None = None
        if processes.count() == 1:
            self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
            self._thread.start()

    def is_among_best(self, step: int, value: float) -> bool:
        """Whether a checkpoint of this step, with this value of the monitored metric, would be kept for it."""
        monitor, _, keep_best = self._rules
        if monitor is None:
            return False
        with self._changed:
            entries = [*self._known(), Entry(step, {monitor.metric: value})]
        return step in ranked(entries, monitor)[:keep_best]

    def submit(self, snapshot: Snapshot) -> None:
        """Queues a snapshot; waits only where the ones that wait, and must all be written, fill a gigabyte."""
        if self._thread is None:
            self._write(snapshot)
            return
        with self._changed:
            self._waiting.append(snapshot)
            keep = retained(self._known(), *self._rules)
            self._waiting = collections.deque(waiting for waiting in self._waiting if waiting.meta.step in keep)
            self._changed.notify_all()
            while len(self._waiting) > 1 and sum(waiting.nbytes for waiting in self._waiting) > WAITING_BYTES:
                self._changed.wait()

    def failed(self) -> bool:
        """Whether the run has to stop for an error."""
        return self._error is not None

    def close(self) -> None:
        """Writes what waits, and ends.

        Raises:
          CheckpointError: a checkpoint could not be written, and the run is to stop for that.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self.raise_error()

    def raise_error(self) -> None:
        """Raises the error of a checkpoint that could not be written, if the run is to stop for it."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        rest_until = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting)
                # Rests leave the processor to training; meanwhile newer snapshots may make this one obsolete.
                while not self._closing and (rest := rest_until - time.monotonic()) > 0:
                    self._changed.wait(rest)
                if not self._waiting:
                    return
                snapshot = self._waiting.popleft()
                self._writing = [snapshot]
            begin = time.monotonic()
            self._write(snapshot)
            end = time.monotonic()
            rest_until = end + min(LONGEST_REST, REST * (end - begin))
            with self._changed:
                self._writing = []
                self._changed.notify_all()

    def _known(self) -> list[Entry]:
        return [*self._written.values(), *(snapshot.entry for snapshot in (*self._writing, *self._waiting))]

    def _write(self, snapshot: Snapshot) -> None:
        step = snapshot.meta.step
        try:
            self._folder.save(step, snapshot.arrays, snapshot.meta)
            with self._changed:
                self._written[step] = snapshot.entry
                keep = retained(list(self._written.values()), *self._rules)
                obsolete = [old for old in self._written if old not in keep]
                for old in obsolete:
                    del self._written[old]
            for old in obsolete if processes.is_main() else ():
                self._folder.retire(old) if old in self._found else self._folder.remove(old)
        except (CheckpointError, OSError) as error:
            log.warning("%s", error)
            if self._stop_on_error:
                self._error = error if isinstance(error, CheckpointError) else CheckpointError(str(error))
