"""Checkpoints on disk: `run_dir/checkpoints/STEP/` holds arrays (Orbax), `meta.json` and a manifest of checksums.

A checkpoint is written under a temporary name, flushed to the disk, read back, and only then renamed: one that has a
plain name is whole. The manifest tells on load whether it is still what was written. Nothing here deletes a checkpoint
but `remove`, which is called once a newer one stands: what is damaged, or left behind by a run that went on from an
earlier step, is moved to a folder beside it.
"""

import dataclasses
import errno
import logging
import os
import shutil
from pathlib import Path

from galvanax.errors import CheckpointError, ProcessError, nearest
from galvanax.files import (
    check_folder,
    check_plain,
    describe_os_error,
    make_folder,
    replace,
    set_aside,
    sync_tree,
    write_json,
)
from galvanax.runs.arrays import Named, check_readable, describe, reason_of, write_arrays
from galvanax.runs.checkpoint_meta import CheckpointMeta, Entry, best_step
from galvanax.runs.config import to_json
from galvanax.runs.history import write_history
from galvanax.runs.integrity import META, DamagedError, read_meta, verify, write_manifest
from galvanax.runs.run_folder import CHECKPOINTS, delete, run_path
from galvanax.trainer import processes

log = logging.getLogger("galvanax")

DAMAGED, SUPERSEDED = "damaged", "superseded"
PARTIAL, DELETED = ".partial-", ".deleted-"


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
      run_dir: the run's folder.
    """

    def __init__(self, run_dir: str | Path):
        self.path = run_path(run_dir) / CHECKPOINTS

    def steps(self) -> list[int]:
        """The steps with a complete checkpoint, in order."""
        if not self.path.is_dir():
            return []
        names = [entry.name for entry in self.path.iterdir() if entry.is_dir() or entry.is_symlink()]
        return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))

    def entries(self) -> list[Entry]:
        """The complete checkpoints, in order."""
        return [_entry(self.path / str(step)) for step in self.steps()]

    def aside(self) -> list[Path]:
        """The checkpoints that were set aside."""
        return [path for name in (DAMAGED, SUPERSEDED) for path in sorted((self.path / name).glob("*"))]

    def find(self, name: str | Path | int) -> Path:
        """The folder of `"best"`, `"last"`, a step, or a path.

        Raises:
          CheckpointError: there is no such checkpoint.
        """
        steps, text = self.steps(), str(name)
        known = f'"best", "last", {", ".join(map(str, steps)) or "(none saved yet)"}'
        if isinstance(name, bool | float) or not text:
            raise CheckpointError(f"{name!r} is no checkpoint: expected one of {known}, or a path.")
        if text in ("best", "last") or (text.isdecimal() and len(text) < 20):
            self._check_no_link()
            if not steps:
                raise CheckpointError(f"No checkpoint in {self.path}.{self._tell_aside()}")
            step = best_step(self.entries()) if text == "best" else steps[-1] if text == "last" else int(text)
            if step not in steps:
                raise CheckpointError(f"No checkpoint of step {step} in {self.path}; there are {steps}.")
            return self.path / str(step)
        path = Path(text).expanduser()
        if not (path / META).is_file():
            near = nearest(text, ["best", "last", *map(str, steps)])
            raise CheckpointError(
                f"{name} is no checkpoint: it has no {META}. Expected a folder such as {self.path / 'STEP'}, "
                f"or one of {known}.{near}"
            )
        return path.resolve() if path.is_symlink() else path

    def newest_intact(self) -> Path | None:
        """The newest checkpoint whose checksums hold; the damaged ones before it are named in warnings.

        Raises:
          CheckpointError: one can't be read at the moment, which says nothing about it.
        """
        self._check_no_link()
        for step in reversed(self.steps()):
            try:
                verify(self.path / str(step))
                return self.path / str(step)
            except DamagedError as error:
                log.warning("%s", error)
        return None

    def to_continue(self) -> Path | None:
        """The newest intact checkpoint, or None where there never was any.

        Raises:
          CheckpointError: there were checkpoints, and none can be read.
        """
        found = self.newest_intact()
        lost = [*map(str, self.steps()), *(str(path.relative_to(self.path)) for path in self.aside())]
        if found is None and lost:
            raise CheckpointError(
                f"{self.path} has had checkpoints, and none is whole: {', '.join(lost)}. Nothing was changed. Bring "
                'one back from a copy, name one that you trust (resume="PATH"), start anew with overwrite=True '
                "(--overwrite), or choose another run_dir."
            )
        return found

    def save(self, step: int, arrays: Named, meta: CheckpointMeta) -> None:
        """Writes a checkpoint whole, or leaves none. One of the same step that is there is set aside.

        Several processes call this together. Process 0 does what is not an array's.

        Raises:
          CheckpointError: it could not be written; names the folder and the reason.
        """
        final, partial = self.path / str(step), self.path / f"{PARTIAL}{step}"
        try:
            processes.from_main("checkpoint: folder", lambda: self._make_room(partial, arrays))
            processes.each("checkpoint: arrays", lambda: write_arrays(partial, arrays))
            whole = dataclasses.replace(meta, arrays={name: describe(leaf) for name, leaf in arrays.items()})
            processes.from_main("checkpoint: rest", lambda: _write_rest(partial, whole))
            # In all of them, since Orbax counts what each has done, and expects them to have done the same.
            processes.each("checkpoint: read back", lambda: check_readable(partial, arrays))
            processes.from_main("checkpoint: name", lambda: _publish(partial, final))
        except ProcessError:
            raise
        except Exception as error:  # Orbax and tensorstore wrap the system's errors in several of their own
            text = self._explain(error, arrays)
            if processes.is_main():
                shutil.rmtree(partial, ignore_errors=True)
            # Not from the error: its own chain fills pages.
            raise CheckpointError(f"Step {step} could not be saved to {self.path}: {text}") from None

    def remove(self, step: int) -> None:
        """Deletes a checkpoint; renamed first, so that a half-deleted one is never taken for a whole one."""
        folder, doomed = self.path / str(step), self.path / f"{DELETED}{step}"
        shutil.rmtree(doomed, ignore_errors=True)
        if folder.exists():
            replace(folder, doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def retire(self, step: int) -> None:
        """Deletes a checkpoint that another run has left; one that is damaged is set aside instead."""
        if not self._set_aside_damaged(step):
            self.remove(step)

    def prepare(self, step: int) -> None:
        """Makes the folder ready for a run that starts at `step`.

        Clears what a kill left half-done. The checkpoints of later steps, which this run will not come to again in the
        same way, are set aside: damaged ones as `damaged/STEP`, the others as `superseded/STEP`.
        """
        self._check_no_link()
        try:
            for name in (DAMAGED, SUPERSEDED):
                check_folder(self.path / name)
            make_folder(self.path)
            for leftover in (*self.path.glob(f"{PARTIAL}*"), *self.path.glob(f"{DELETED}*")):
                delete(leftover)
            for later in (other for other in self.steps() if other > step):
                if not self._set_aside_damaged(later):
                    aside = set_aside(self.path / str(later), SUPERSEDED)
                    log.warning("step %d is later than the one that the run goes on from: kept as %s", later, aside)
        except OSError as error:
            text = describe_os_error(error, self.path)
            raise CheckpointError(f"{self.path} can't be made ready: {text}.") from error

    def _set_aside_damaged(self, step: int) -> bool:
        folder = self.path / str(step)
        try:
            verify(folder)
        except DamagedError:
            log.warning("the damaged checkpoint is kept as %s", set_aside(folder, DAMAGED))
            return True
        return False

    def _make_room(self, partial: Path, arrays: Named) -> None:
        """An empty folder to write to. Where there is no room, that is said here: Orbax would take pages for it."""
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        if shutil.disk_usage(partial).free < self._needed(arrays):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _needed(self, arrays: Named) -> int:
        """Bytes that a checkpoint takes: as many as the newest one does."""
        for step in reversed(self.steps()):
            found = [path.lstat() for path in (self.path / str(step)).rglob("*")]
            return sum(one.st_blocks * 512 for one in found)
        return sum(leaf.nbytes for leaf in arrays.values())

    def _explain(self, error: Exception, arrays: Named) -> str:
        if not self.path.is_dir():
            return "the folder was removed"
        return describe_os_error(OSError(0, reason_of(error)), self.path, self._needed(arrays))

    def _check_no_link(self) -> None:
        """A run's folder may be reached by a link; what is in it is in it."""
        try:
            check_plain(self.path)
        except ValueError as error:
            raise CheckpointError(
                f"{self.path.parent}: {error}. To keep a run elsewhere, let run_dir be the link."
            ) from None

    def _tell_aside(self) -> str:
        aside = self.aside()
        return f" Set aside: {', '.join(map(str, aside))}." if aside else ""


def verified_meta(folder: Path) -> CheckpointMeta:
    """`meta.json` of a checkpoint whose files are all as written.

    Raises:
      CheckpointError: it is damaged; the newest intact checkpoint of the same run is offered.
    """
    try:
        return verify(folder)
    except DamagedError as error:
        others = CheckpointFolder(folder.parent.parent)
        intact = others.newest_intact() if others.path == folder.parent else None
        offer = f' The newest intact one is {intact}: name it, or resume="auto".' if intact else ""
        raise DamagedError(f"{error}{offer}") from error


def check_task(folder: Path, meta: CheckpointMeta, task_type: str) -> dict:
    """The task's configuration in a checkpoint's `meta`.

    Raises:
      CheckpointError: it is of another task.
    """
    config = meta.config["task"]
    if config["type"] != task_type:
        raise CheckpointError(f"{folder} is a checkpoint of {config['type']}, not of {task_type}.")
    return config


def _write_rest(partial: Path, meta: CheckpointMeta) -> None:
    write_history(partial, meta.history)
    data = to_json(dataclasses.replace(meta, history=[]))
    write_json(partial / META, {name: value for name, value in data.items() if name != "type"})
    write_manifest(partial)
    sync_tree(partial)


def _publish(partial: Path, final: Path) -> None:
    if final.exists():
        set_aside(final, SUPERSEDED)
    replace(partial, final)


def _entry(folder: Path) -> Entry:
    try:
        return Entry.of(read_meta(folder))
    except CheckpointError:
        return Entry(int(folder.name))  # damaged: no score, so never the best; loading it says why
