"""One writer a folder."""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from galvanax.errors import RunDirError
from galvanax.files import check_plain, make_folder
from galvanax.runs.run_folder import run_path

log = logging.getLogger("galvanax")

LOCK = ".lock"


@contextlib.contextmanager
def hold(run_dir: str | Path | None) -> Iterator[None]:
    """Holds the lock of a run's folder, which is made if it is not there, and taken away again if nothing came into it.

    The system lets go of the lock when its holder dies, however it dies. On NFS this is so where the server passes
    locks on (all do unless mounted with `nolock` or `local_lock`); on a file system without locks, a file that says
    who holds it stands in, which a holder on a machine that was switched off leaves behind.

    Args:
      run_dir: the folder; None holds nothing.

    Raises:
      RunDirError: another process trains there (names machine and process), or there can be no such folder.
    """
    if run_dir is None:
        yield
        return
    run_dir = run_path(run_dir)
    made = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    try:
        make_folder(run_dir)  # flushed: what is in a folder that a power cut takes is gone with it
        lock = _acquire(run_dir / LOCK)
    except OSError as error:
        raise RunDirError(f"{run_dir} can't be written to: {error.strerror or error}.") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (run_dir / LOCK).unlink(missing_ok=True)  # while it is held: who waits for the name gets a new file
            for path in made:
                path.rmdir()  # only where nothing else is in it
        if lock is not None:
            lock.release()


def _acquire(path: Path) -> filelock.BaseFileLock | None:
    try:
        check_plain(path)
    except ValueError as error:
        raise RunDirError(f"{path.parent}: {error}.") from None
    lock = filelock.FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise RunDirError(
            f"{path.parent} is in use: {_holder(path)} trains there. Wait for its end, or choose another run_dir."
        ) from None
    except OSError as error:
        if not os.access(path.parent, os.W_OK):
            raise
        log.warning("%s can't be locked (%s): see to it that no other run writes there.", path.parent, error)
        return None
    with contextlib.suppress(OSError):
        if path.read_bytes()[:1] in (b"", b"{"):  # else it is filelock's own, where the system has no locks
            path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}))
    return lock


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads(path.read_text())
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told["since"]))
        return f"process {told['pid']} on {told['host']}, since {since},"
    return "another process"
