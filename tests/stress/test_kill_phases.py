"""SIGKILL inside of a save, pruning, a resume and an overwrite: the run goes on, and what looks whole is whole.

    uv run pytest -m slow tests/stress/test_kill_phases.py -s
    GALVANAX_KILLS=100 uv run pytest -m slow tests/stress/test_kill_phases.py -k overwrite -s

This file is its own child: `main` trains and stops at the n-th of the operations on files that a phase makes, where it
says so and is killed; or goes on, and is killed a few milliseconds later, in the midst of what Orbax writes.
"""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from stress.power_cut import Wait
from stress.test_kill import compare
from support import NetTask, net_data

import galvanax as gx
from galvanax.runs.checkpoints import CheckpointFolder
from galvanax.runs.integrity import META, verify

Phase = Literal["save", "prune", "resume", "overwrite"]
PHASES: tuple[Phase, ...] = ("save", "prune", "resume", "overwrite")
KILLS = int(os.environ.get("GALVANAX_KILLS", "20"))
STEPS, EVERY, CRASH = 40, 5, 20
SPOILED = "{}"
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.link", "os.truncate")


def settings(folder: Path, **changes: Any) -> gx.Trainer:
    """Of every run here."""
    saving = gx.Checkpoint(monitor="val/loss", mode="min", every=gx.Steps(EVERY), keep_best=1, keep_last=2)
    callbacks = [gx.EMA(0.9), gx.CSVLogger(), gx.TensorBoardLogger(), saving, Wait(EVERY)]
    options = {"max_steps": STEPS, "run_dir": folder, "log_every": 3, "callbacks": callbacks}
    return gx.Trainer(**{**options, **changes})


class Crash(gx.Callback):
    """Ends the run at step CRASH, which is saved."""

    runs_last = True

    def next_step(self, step):
        return CRASH if step < CRASH else None

    def on_step(self, run):
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of a run that nothing touched."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    settings(folder).fit(NetTask(), net_data())
    return folder


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    """The folder of a run that ended at step CRASH."""
    folder = tmp_path_factory.mktemp("crashed") / "run"
    trainer = settings(folder)
    with pytest.raises(KeyboardInterrupt):
        settings(folder, callbacks=[*trainer.callbacks, Crash()]).fit(NetTask(), net_data())
    return folder


@pytest.mark.parametrize("phase", ["prune"])
def test_one_kill(phase, reference, tmp_path):
    # It holds still at an early operation, which each life comes to, however many saves it makes.
    assert kill(phase, tmp_path, random.Random(1), number=1, start=None)
    check(phase, tmp_path, reference)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_kills(phase, reference, crashed, tmp_path):
    rng = random.Random(phase)
    start = crashed if phase in ("resume", "overwrite") else None
    lives, kills, problems = 0, 0, []
    count = operations(phase, tmp_path / "counted", start)
    while kills < KILLS:
        lives += 1
        folder = tmp_path / f"life-{lives}"
        if kill(phase, folder, rng, rng.randrange(count), start):
            kills += 1
            try:
                check(phase, folder, reference)
            except (AssertionError, gx.GalvanaxError) as error:
                problems.append(f"{folder}: {(folder / 'log').read_text()!r:.300}: {type(error).__name__}: {error}")
    print(f"\n{phase}: {kills - len(problems)} of {kills} kills survived ({count} operations, {lives} lives)")
    assert not problems, "\n".join(problems)


def operations(phase: Phase, folder: Path, start: Path | None) -> int:
    """How many operations a life makes in the phase."""
    with begin(phase, folder, 10**9, start) as process:
        assert process.wait(300) == 0, said(folder)
    return int(next(line for line in reversed(said(folder)) if line.startswith("out")).split()[1])


def kill(phase: Phase, folder: Path, rng: random.Random, number: int, start: Path | None) -> bool:
    """Kills a life at an operation of the phase, or soon after; returns whether it was still in the phase."""
    hold = rng.random() < 0.7
    with begin(phase, folder, number, start, hold=hold, spoil=rng.randrange(4)) as process:
        deadline = time.monotonic() + 300
        while not any(line.startswith("in") for line in said(folder)):
            assert time.monotonic() < deadline, said(folder)
            if process.poll() is not None:  # this life has fewer operations
                assert process.returncode == 0, said(folder)
                return False
            time.sleep(0.001)
        time.sleep(0 if hold else rng.uniform(0, 0.02))
        process.kill()
        process.wait()
    lines = said(folder)
    return not any(line.startswith("out") for line in lines[lines.index(next(o for o in lines if o[:2] == "in")) :])


def check(phase: Phase, folder: Path, reference: Path) -> None:
    """Fails unless what a kill has left is a run that goes on, or can be overwritten."""
    run, checkpoints = folder / "run", CheckpointFolder(folder / "run")
    whole = [step for step in checkpoints.steps() if (checkpoints.path / str(step) / META).read_text() != SPOILED]
    for step in whole:
        verify(checkpoints.path / str(step))
    if phase == "overwrite":
        settings(run, overwrite=True).fit(NetTask(), net_data())
    else:
        saved = [int(line.split()[1]) for line in said(folder) if line.startswith("saved")]
        if saved or phase == "resume":
            NetTask.load(run, str(whole[-1]))
            assert whole[-1] >= max(saved, default=0)
        settings(run).fit(NetTask(), net_data(), resume="auto")
    differences = list(compare(run, reference, same_checkpoints=phase in ("save", "prune", "overwrite")))
    assert not differences, "\n".join(differences[:5])
    left = [path.name for path in (*run.iterdir(), *checkpoints.path.iterdir()) if path.name.startswith(".")]
    assert not left, f"left behind: {left}"


def said(folder: Path) -> list[str]:
    """What a life has said."""
    return (folder / "log").read_text(errors="replace").splitlines()


@contextlib.contextmanager
def begin(
    phase: Phase, folder: Path, number: int, start: Path | None, hold: bool = True, spoil: int = 0
) -> Iterator[subprocess.Popen]:
    """A life on `folder/run`, a copy of `start` if that is given; it is killed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    if start is not None:
        shutil.copytree(start, folder / "run")
        if phase == "resume":
            spoil_folder(folder / "run" / "checkpoints", spoil)
    command = [sys.executable, __file__, phase, str(folder / "run"), str(number), str(int(hold)), str(spoil)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    with (folder / "log").open("wb") as log:
        variables = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def spoil_folder(checkpoints: Path, how: int) -> None:
    """What a resume may have to do first: move a damaged checkpoint or later ones, or delete what a kill has left."""
    steps = CheckpointFolder(checkpoints.parent).steps()
    if how == 1:
        (checkpoints / str(steps[-1]) / META).write_text(SPOILED)
    elif how == 2:
        shutil.copytree(checkpoints / str(steps[-1]), checkpoints / ".partial-25")
        shutil.copytree(checkpoints / str(steps[0]), checkpoints / ".deleted-5")


def main(phase: Phase, folder: Path, number: int, hold: bool, spoil: int) -> None:
    """Trains, and says `in` at an operation of the phase, `out N` at its end after N operations, `saved STEP`.

    Args:
      phase: where to be killed.
      folder: the run's.
      number: of the operation, from 0.
      hold: whether to stop there.
      spoil: 3 resumes from the checkpoint before the last.
    """
    inside = threading.local()
    everywhere = False  # the phase is a resume's, of all threads
    count = 0

    def operate() -> None:
        nonlocal count
        if not (everywhere or getattr(inside, "phase", False)):
            return
        if count == number:
            print("in", flush=True)
            time.sleep(60 if hold else 0)
        count += 1

    def listen(event: str, arguments: tuple) -> None:
        flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
        if event in CHANGES or flags & (os.O_RDWR | os.O_WRONLY):
            path = arguments[0]
            within = isinstance(path, str | os.PathLike) and os.path.isabs(path)
            if not within or str(path).startswith(str(folder)):
                operate()

    def within(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            inside.phase = True
            try:
                return function(*arguments, **options)
            finally:
                inside.phase = False
                print(f"out {count}", flush=True)

        return call

    def reporting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: CheckpointFolder, step: int, *arguments: Any) -> None:
            function(self, step, *arguments)
            print(f"saved {step}", flush=True)

        return call

    def ending(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal everywhere
            if everywhere:
                everywhere = False
                print(f"out {count}", flush=True)
            return function(*arguments)

        return call

    from galvanax.runs import checkpoint_writer
    from galvanax.trainer import start
    from galvanax.trainer.run import Run

    fsync = os.fsync

    def flush(number: int) -> None:
        operate()
        fsync(number)

    os.fsync = flush
    sys.addaudithook(listen)
    checkpoint_writer.REST = 0.0
    CheckpointFolder.save = reporting(CheckpointFolder.save)  # type: ignore[method-assign]
    resume: int | str | None = None
    if phase == "save":
        CheckpointFolder.save = within(CheckpointFolder.save)  # type: ignore[method-assign]
    elif phase == "prune":
        CheckpointFolder.remove = within(CheckpointFolder.remove)  # type: ignore[method-assign]
    elif phase == "overwrite":
        start.prepare_folder = within(start.prepare_folder)
    else:
        Run.dispatch = ending(Run.dispatch)  # type: ignore[method-assign]
        everywhere = True
        steps = CheckpointFolder(folder).steps()
        resume = steps[-2] if spoil == 3 else "auto"
    settings(folder, overwrite=phase == "overwrite").fit(NetTask(), net_data(), resume=resume)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), bool(int(sys.argv[4])), int(sys.argv[5]))  # type: ignore[arg-type]
