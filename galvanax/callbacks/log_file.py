"""Logs are worth less than weights: one that can't be read or written ends no run and costs no checkpoint."""

import collections
import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from galvanax.files import check_plain, describe_os_error, replace, set_aside, sync

log = logging.getLogger("galvanax")

T = TypeVar("T")

MOST_WAITING = 100_000  # rows in memory
RETRY, RETRY_TIMES = 1.0, 10  # between two tries, where nothing asks for one: in seconds, in times that a try takes


class Backlog(Generic[T]):
    """The rows of a log that are yet to be written: where the disk is full, they wait for room, and the run goes on.

    Args:
      path: the log.
      write: writes rows from the left and takes out those that are written. It raises OSError where one can't be.
    """

    def __init__(self, path: Path, write: Callable[[collections.deque[T]], None]):
        self._path, self._write = path, write
        self._waiting: collections.deque[T] = collections.deque()
        self._dropped = 0
        self._failing = self._closed = False
        self._next_try = 0.0  # while it fails; monotonic

    def add(self, row: T) -> None:
        """Writes a row, now or as soon as it can be."""
        if len(self._waiting) == MOST_WAITING:
            self._waiting.popleft()
            self._dropped += 1
            if self._dropped == 1:
                log.warning("%s: more than %d rows wait; the oldest are dropped.", self._path, MOST_WAITING)
        self._waiting.append(row)
        if not self._failing or time.monotonic() > self._next_try:
            self.flush()

    def flush(self) -> None:
        """Writes what waits, if it can be."""
        if self._closed:
            return
        began = time.monotonic()
        try:
            self._write(self._waiting)
        except OSError as error:
            if not self._failing:
                reason = describe_os_error(error, self._path)
                log.warning("%s can't be written: %s. The run goes on; rows wait in memory.", self._path, reason)
            self._failing = True
            now = time.monotonic()
            self._next_try = now + max(RETRY, RETRY_TIMES * (now - began))
        else:
            self._failing = False

    def close(self) -> None:
        """Writes what waits, for the last time; a warning says what could not be written."""
        self.flush()
        if not self._closed and (lost := len(self._waiting) + self._dropped):
            log.warning("%s lacks %d rows that could not be written.", self._path, lost)
        self._closed = True


class LogFile:
    """A file that grows by whole pieces: of one that can't be written, nothing stays in it.

    Args:
      path: the file.
      damaged: the folder for what comes in its place and is not ours.
    """

    def __init__(self, path: Path, damaged: Path):
        self._path, self._damaged = path, damaged
        self._number: int | None = None  # of the open file
        self._identity: tuple[int, bool] | None = None
        self._end = 0  # of its last whole piece
        self._failed = False

    def ready(self) -> bool:
        """Whether it is there, and holds what was written to it; else `make` it.

        Raises:
          OSError: it can't be opened again, or what is in its place can't be moved.
        """
        if self._number is None:
            return False
        try:
            if self._failed:  # what is open may be of a disk that was gone for a while
                with contextlib.suppress(FileNotFoundError):
                    self._open()
            found = os.fstat(self._number)
        except OSError:
            self._failed = True
            raise
        if _identity(found) == self._identity and found.st_size >= self._end:
            return True
        if os.path.lexists(self._path):
            move_aside(self._path, self._damaged)
        log.warning("%s was removed, cut or replaced by something else; it starts anew.", self._path)
        self.close()
        return False

    def make(self, content: bytes) -> None:
        """Makes it, in the place of what has its name, whole or not at all.

        Raises:
          OSError: it can't be made.
        """
        write_whole(self._path, content)
        self._open()
        assert self._number is not None
        self._identity, self._end, self._failed = _identity(os.fstat(self._number)), len(content), False

    def append(self, piece: bytes) -> None:
        """Writes a piece, whole or not at all; it must be `ready`.

        Raises:
          OSError: it can't be written.
        """
        assert self._number is not None
        try:
            written = 0
            while written < len(piece):
                written += os.pwrite(self._number, piece[written:], self._end + written)
        except BaseException:
            self._failed = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._number, self._end)
            raise
        self._failed = False
        self._end += len(piece)

    def close(self) -> None:
        """Closes it; it is no longer `ready`."""
        if self._number is not None:
            number, self._number = self._number, None
            try:
                os.close(number)
            except OSError as error:  # of a disk behind a network, which may only now say that it is full
                log.warning("%s may lack its last rows: %s.", self._path, describe_os_error(error, self._path))

    def _open(self) -> None:
        number = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        self.close()
        self._number = number


def _identity(found: os.stat_result) -> tuple[int, bool]:
    """Which file it is, and whether it has a name: not once it is removed. Some file systems give no file links."""
    return found.st_ino, found.st_nlink > 0


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file, in the place of what has its name, whole or not at all: a kill at this moment loses nothing.

    Raises:
      OSError: it can't be written.
    """
    partial = path.with_name(".partial-log")  # of one name, so that what a kill leaves goes at the next start
    try:
        partial.unlink(missing_ok=True)  # a link there would lead elsewhere
        with partial.open("xb") as file:
            file.write(content)
        sync(partial)
        replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_log(path: Path, damaged: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of a log, or None where there is none, or one that can't be read: it is set aside.

    Args:
      path: the log.
      damaged: the folder for what can't be read.
      read: raises ValueError or OSError.

    Raises:
      OSError: it can't be set aside.
    """
    if not os.path.lexists(path):
        return None
    try:
        check_plain(path)
        return read(path)
    except (OSError, ValueError) as error:
        reason = describe_os_error(error, path) if isinstance(error, OSError) else str(error)
    log.warning("%s can't be read: %s. It is kept as %s.", path, reason, move_aside(path, damaged))
    return None


def move_aside(path: Path, damaged: Path) -> Path:
    """Moves a file or folder to the folder `damaged`, near it; returns where it is.

    Raises:
      OSError: it can't be moved.
    """
    return Path(os.path.normpath(set_aside(path, os.path.relpath(damaged, path.parent))))
