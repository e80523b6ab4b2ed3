"""A disk that loses what was not flushed: what is left of a run after the power was cut, at many moments of it.

    python tests/stress/power_cut.py --cuts 50 --seed 0

The model: an fsync of a file makes its bytes durable, an fsync of a folder its entries. After a cut, a folder has the
entries that are durable or, by a coin, those that it had at that moment; a file has its durable bytes, and one that was
never flushed is empty, cut short or zeros. Orbax writes by calls of its own: its files count once ours are flushed.
"""

import collections
import contextlib
import dataclasses
import logging
import os
import random
import resource
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import NetTask, assert_same_state, net_data

import galvanax as gx
from galvanax.runs.checkpoints import CheckpointFolder
from galvanax.runs.integrity import verify

CALLS = ("fsync", "replace", "rename", "mkdir", "unlink", "remove", "rmdir")
STEPS, EVERY = 60, 3
RUN = Path("runs", "net")  # neither is there when the run begins


@dataclasses.dataclass
class Cut:
    """What the disk held when the power was cut.

    Attributes:
      folder: a folder with what was left.
      call: before which call it came.
      reported: the step of the newest save that had been reported.
    """

    folder: Path
    call: str
    reported: int | None


class Disk:
    """What is durable of a folder; `watching` sees the calls that change it.

    Args:
      root: the folder, which is on the disk as it is.
    """

    def __init__(self, root: Path):
        self.root = root
        self._held: dict[int, int] = {}  # open files by inode, so that none is given to another file
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, int]] = {}  # inodes by name
        self._kinds: dict[int, int] = {}
        for path in (root, *root.rglob("*")):
            self._flush(path)

    @contextlib.contextmanager
    def watching(self, before: Callable[[str], None]) -> Iterator[None]:
        """Calls `before` with each call's name, and remembers what is flushed."""
        lock, busy = threading.RLock(), threading.Event()

        def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                with lock:
                    if busy.is_set():  # a call of `before` itself
                        return original(*arguments, **options)
                    busy.set()
                    try:
                        before(name)
                        result = original(*arguments, **options)
                        if name == "fsync":
                            self._flush(arguments[0])
                        return result
                    finally:
                        busy.clear()

            return call

        with contextlib.ExitStack() as patches:
            for name in CALLS:
                patches.enter_context(mock.patch.object(os, name, wrap(name, getattr(os, name))))
            yield

    def cut(self, rng: random.Random, target: Path) -> None:
        """Writes to `target` what could be left of the root."""
        self._rebuild(self.root.stat().st_ino, self.root, rng, target)

    def close(self) -> None:
        """Lets the inodes go."""
        for number in self._held.values():
            os.close(number)
        self._held = {}

    def _flush(self, file: int | Path) -> None:
        number = os.open(file, os.O_RDONLY) if isinstance(file, Path) else os.dup(file)
        found = os.fstat(number)
        path = os.readlink(f"/proc/self/fd/{number}")
        if Path(path) != self.root and self.root not in Path(path).parents:
            os.close(number)
            return
        self._hold(found, number)
        if stat.S_ISDIR(found.st_mode):
            self._folders[found.st_ino] = {name: self._identify(Path(path, name)) for name in os.listdir(path)}
        else:
            with open(path, "rb") as opened:
                self._files[found.st_ino] = opened.read()

    def _identify(self, path: Path) -> int:
        number = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        found = os.fstat(number)
        self._hold(found, number)
        return found.st_ino

    def _hold(self, found: os.stat_result, number: int) -> None:
        self._kinds[found.st_ino] = stat.S_IFMT(found.st_mode)
        if self._held.setdefault(found.st_ino, number) != number:
            os.close(number)

    def _rebuild(self, inode: int, present: Path | None, rng: random.Random, target: Path) -> None:
        """Args: the folder or file by inode; where it is now, if it has a name; where to write what is left of it."""
        if self._kinds.get(inode) != stat.S_IFDIR:
            target.write_bytes(self._files[inode] if inode in self._files else _unflushed(present, rng))
            return
        target.mkdir(parents=True)
        here: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError):
            here = {name: self._identify(present / name) for name in os.listdir(present)} if present else {}
        names = {inode: name for name, inode in here.items()}
        entries = here if rng.random() < 0.5 else self._folders.get(inode, {})
        for name, child in sorted(entries.items()):
            where = present / names[child] if present is not None and child in names else self._find(child)
            self._rebuild(child, where, rng, target / name)

    def _find(self, inode: int) -> Path | None:
        """Where a file is that has gone from its folder: it may only have been renamed."""
        path = Path(os.readlink(f"/proc/self/fd/{self._held[inode]}"))
        return path if path.exists() else None


def _unflushed(path: Path | None, rng: random.Random) -> bytes:
    content = b""
    with contextlib.suppress(OSError):
        content = path.read_bytes() if path is not None else b""
    return rng.choice([b"", content[: len(content) // 2], bytes(len(content))])


def cuts_of_a_run(
    root: Path, rng: random.Random, most: int, keep_last: int, made: bool
) -> tuple[list[Cut], gx.FitResult]:
    """Trains in `root` and cuts the power at up to `most` moments; the run itself goes on to its end.

    Args:
      root: to work in.
      rng: of the moments and the coins.
      most: of the cuts.
      keep_last: the run's.
      made: whether the run's folder is there and on the disk before the run.
    """
    world = root / "disk"
    (world / RUN if made else world).mkdir(parents=True)
    disk, save = Disk(world), CheckpointFolder.save
    cuts: list[Cut] = []
    reported: list[int] = []

    def remember(self: CheckpointFolder, step: int, *arguments: Any) -> None:
        save(self, step, *arguments)
        reported.append(step)

    def before(call: str) -> None:
        # A save is some forty calls, of which most cuts are to be; the start is as many.
        if len(cuts) < most and rng.random() < (1 / 12 if reported else 1 / 40):
            folder = root / f"cut-{len(cuts)}"
            newest = reported[-1] if reported else None
            disk.cut(rng, folder)
            cuts.append(Cut(folder, call, newest))

    hasty = mock.patch("galvanax.runs.checkpoint_writer.REST", 0)  # no rest between two saves
    with hasty, mock.patch.object(CheckpointFolder, "save", remember), disk.watching(before):
        result = trainer(world / RUN, keep_last).fit(NetTask(), net_data())
    disk.close()
    return cuts, result


def trainer(run_dir: Path, keep_last: int) -> gx.Trainer:
    """Of the run that the power is cut of."""
    saving = gx.Checkpoint(every=gx.Steps(EVERY), keep_last=keep_last)
    return gx.Trainer(max_steps=STEPS, run_dir=run_dir, log_every=7, callbacks=[gx.CSVLogger(), saving, Wait()])


@dataclasses.dataclass
class Wait(gx.Callback):
    """Waits for each save: training would outrun them, and of twenty a few would be written.

    Attributes:
      every: steps between them.
    """

    runs_last = True

    every: int = EVERY

    def next_step(self, step: int) -> int | None:
        """See `Callback`."""
        return (step // self.every + 1) * self.every

    def on_step(self, run: gx.RunView) -> None:
        """See `Callback`."""
        writer = next(one for one in run.callbacks.values() if isinstance(one, gx.Checkpoint))._writer
        with writer._changed:
            assert writer._changed.wait_for(lambda: not writer._waiting and not writer._writing, timeout=60)


def losses(cut: Cut, result: gx.FitResult, keep_last: int, resume: bool) -> Iterator[str]:
    """Says what of a run is lost after a cut."""
    run_dir = cut.folder / RUN
    folder = CheckpointFolder(run_dir)
    for step in folder.steps():
        try:
            verify(folder.path / str(step))
        except gx.CheckpointError as error:
            yield f"a checkpoint with a plain name is damaged: {error}"
    if cut.reported is not None:
        try:
            NetTask.load(run_dir, "last")
            if folder.steps()[-1] < cut.reported:
                yield f"the last checkpoint is of step {folder.steps()[-1]}, and {cut.reported} was reported"
        except gx.CheckpointError as error:
            yield f"step {cut.reported} was reported: {error}"
    if resume:
        try:
            again = dataclasses.replace(trainer(run_dir, keep_last), callbacks=[gx.Checkpoint(keep_last=keep_last)])
            resumed = again.fit(NetTask(), net_data(), resume="auto")
            assert_same_state(resumed.state, result.state)
        except (gx.GalvanaxError, AssertionError) as error:
            yield f'resume="auto": {type(error).__name__}: {str(error).strip().splitlines()[0]}'


def survey(root: Path, cuts: int, seed: int, each: int = 20, resumes: int | None = None) -> tuple[list[str], str]:
    """Cuts the power of several runs.

    Args:
      root: an empty folder.
      cuts: how many.
      seed: of the moments, and of the coins.
      each: how many of a run, at most.
      resumes: how many of them to resume; None for all.

    Returns:
      What was lost, and a line that says how many cuts were survived.
    """
    rng = random.Random(seed)
    found: list[str] = []
    runs, done, lost = 0, 0, 0
    calls: collections.Counter[str] = collections.Counter()
    while done < cuts:
        keep_last, made = rng.choice([1, 2]), not runs % 2
        runs += 1
        some, result = cuts_of_a_run(root / f"run-{runs}", rng, min(each, cuts - done), keep_last, made)
        for cut in some:
            lines = list(losses(cut, result, keep_last, resumes is None or done < resumes))
            where = f"cut {done} (before {cut.call}, step {cut.reported} reported; {cut.folder})"
            found += [f"{where}: {line}" for line in lines]
            calls[cut.call] += 1
            done, lost = done + 1, lost + bool(lines)
    before = ", ".join(f"{count} {call}" for call, count in calls.most_common())
    return found, f"{cuts - lost} of {cuts} power cuts survived (before {before})"


def main(cuts: int = 50, seed: int = 0, folder: Path | None = None) -> None:
    """Prints what is lost; the exit status is 1 where anything is.

    Args:
      cuts: how many.
      seed: of the moments, and of the coins.
      folder: to work in, kept; by default a temporary one, kept where something was lost.
    """
    logging.getLogger("galvanax").setLevel(logging.ERROR)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))
    root = folder or Path(tempfile.mkdtemp(prefix="power-cut-"))
    found, line = survey(root, cuts, seed)
    print(*found, line, sep="\n")
    if found:
        raise SystemExit(1)
    if folder is None:
        shutil.rmtree(root)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
