"""A disk that fills up at any moment costs no checkpoint that stands, and ends a run as it was told, in few words.

    uv run pytest -m slow tests/stress/test_disk_full.py -s

The disk is a small file system of its own, in a process that may mount one (`unshare -rm`), which runs this file. Logs
and checkpoints are on it; from the moment on it stays full but for some bytes.
"""

import contextlib
import dataclasses
import json
import os
import random
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from stress.test_kill import digests
from support import NetTask, net_data

import galvanax as gx
from galvanax.runs.checkpoints import CheckpointFolder

STEPS, EVERY = 60, 3
SIZE = 4 * 2**20  # bytes
LATE = re.compile(r"Traceback \(most recent call last\):\n(?:  .*\n)*RuntimeError: Event loop is closed\n")
POLICIES = ("stop", "continue")


def can_mount() -> bool:
    """Whether this machine lets a process mount a file system for itself."""
    with contextlib.suppress(OSError):
        probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    return False


def test_a_full_disk(tmp_path):
    fill_disks(tmp_path, moments=1)


@pytest.mark.slow
def test_a_full_disk_at_many_moments(tmp_path):
    fill_disks(tmp_path, moments=20)


def fill_disks(folder: Path, moments: int) -> None:
    """Fills the disk of several runs of each policy; fails where one ends otherwise than it was told."""
    if not can_mount():
        pytest.skip("unshare -rm cannot mount a tmpfs here")
    command = ["unshare", "-rm", sys.executable, __file__, str(folder), str(moments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((folder / "outcomes.json").read_text())
    problems = [f"{name}: {problem}" for name, outcome in found.items() for problem in outcome["problems"]]
    for policy in POLICIES:
        outcomes = [outcome for name, outcome in found.items() if name.endswith(policy)]
        stopped = sum(outcome["raised"] is not None for outcome in outcomes)
        most = max(outcome["noise"] for outcome in outcomes)
        print(
            f"\n{policy}: {len(outcomes)} full disks, {stopped} runs ended by an error, {most} lines at most on stderr"
        )
        assert policy == "continue" or stopped > len(outcomes) / 2
    assert not problems, "\n".join(problems)


def main(folder: Path, moments: int) -> None:
    """Runs everything and writes `outcomes.json`; in a mount namespace of its own."""
    undisturbed = settings(folder / "undisturbed", gx.Checkpoint(every=gx.Steps(EVERY), keep_last=None))
    loss = undisturbed.fit(NetTask(), net_data()).metrics["val/loss"]
    steps = range(EVERY, STEPS + 1, EVERY)
    whole = {step: digests(folder / "undisturbed" / "checkpoints" / str(step)) for step in steps}
    found = {}
    for number in range(moments):
        for policy in POLICIES:
            disk = folder / f"{number}-{policy}"
            disk.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", disk], check=True)
            found[disk.name] = outcome_of(disk, number, policy, whole, loss)
            subprocess.run(["umount", "-l", disk], check=True)
    (folder / "outcomes.json").write_text(json.dumps(found, indent=1))


def settings(run_dir: Path, *callbacks: gx.Callback) -> gx.Trainer:
    """Of every run here."""
    logs = [gx.EMA(0.9), gx.CSVLogger(), gx.TensorBoardLogger()]
    return gx.Trainer(max_steps=STEPS, run_dir=run_dir, log_every=2, callbacks=[*logs, *callbacks])


@dataclasses.dataclass
class Fill(gx.Callback):
    """Fills the disk at a step, and keeps it full.

    Attributes:
      disk: where it is mounted.
      at: the step.
      left: bytes that stay free.
    """

    disk: Path
    at: int
    left: int

    def on_train_metrics(self, run: gx.RunView, steps: range, metrics: dict[str, Any]) -> None:
        """See `Callback`."""
        if steps[-1] >= self.at:
            found = os.statvfs(self.disk)
            room = found.f_bavail * found.f_frsize - self.left
            if room > 0:
                with contextlib.suppress(OSError), (self.disk / "filler").open("ab") as file:
                    os.posix_fallocate(file.fileno(), file.tell(), room)
        time.sleep(0.01 * len(steps))  # the writer has a thread of its own; it needs time to fail


def outcome_of(disk: Path, number: int, policy: Any, whole: dict[int, dict[str, str]], loss: float) -> dict[str, Any]:
    """Trains on a disk that fills up, and says what is not as it must be."""
    rng = random.Random(number)
    fill = Fill(disk, at=rng.randint(EVERY + 1, STEPS - 2 * EVERY), left=rng.choice([0, rng.randrange(2**16)]))
    saving = gx.Checkpoint(every=gx.Steps(EVERY), keep_last=rng.choice([1, 2]), on_save_error=policy)
    trainer = dataclasses.replace(settings(disk / "run", fill, saving), steps_per_dispatch=1)
    reported: list[int] = []
    save, problems = CheckpointFolder.save, []

    def remember(self: CheckpointFolder, step: int, *arguments: Any) -> None:
        save(self, step, *arguments)
        reported.append(step)

    raised = None
    noise = disk.with_name(f"{disk.name}.log")
    hasty = mock.patch("galvanax.runs.checkpoint_writer.REST", 0)
    with hasty, mock.patch.object(CheckpointFolder, "save", remember), stderr_to(noise):
        try:
            result = trainer.fit(NetTask(), net_data())
            if result.metrics["val/loss"] != loss:
                problems.append(f"the loss is {result.metrics['val/loss']}, expected {loss}")
        except Exception as error:
            raised = error
    if raised is not None:
        problems += complaints(raised, policy)
    # Where the disk fills amid a write, tensorstore's other writes print that their event loop is gone, a few
    # lines each, past Python's hooks. What Galvanax and Orbax say is counted.
    lines = len(LATE.sub("", noise.read_text(errors="replace")).splitlines())
    if lines >= 100:
        problems.append(f"{lines} lines on stderr, see {noise}")
    steps = CheckpointFolder(disk / "run").steps()
    if reported:
        try:
            NetTask.load(disk / "run", "last")
            if steps[-1] < reported[-1]:
                problems.append(f"the last checkpoint is of step {steps[-1]}, and {reported[-1]} was reported")
            if digests(disk / "run" / "checkpoints" / str(steps[-1])) != whole[steps[-1]]:
                problems.append(f"step {steps[-1]} is not what the undisturbed run had")
        except Exception as error:
            problems.append(f"step {reported[-1]} was reported: {type(error).__name__}: {error}")
    text = f"at {fill.at}, {fill.left} bytes left, last {steps[-1:]}, reported {reported[-1:]}, {raised}"
    return {"problems": [f"{one} ({text})" for one in problems], "raised": raised and str(raised), "noise": lines}


def complaints(error: Exception, policy: str) -> list[str]:
    """What is wrong with the error that ended a run."""
    message, found = str(error), []
    if policy == "continue" or not isinstance(error, gx.CheckpointError):
        found.append(f"{type(error).__name__}: {message:.300}")
    if not ("wanted" in message and "free" in message):
        found.append("the message does not say what was wanted and what was free")
    if len(message) >= 500:
        found.append(f"the message has {len(message)} characters")
    lines = "".join(traceback.format_exception(error)).count("\n")
    if lines >= 60:
        found.append(f"the traceback has {lines} lines")
    return found


@contextlib.contextmanager
def stderr_to(path: Path) -> Any:
    """Writes to a file what anything in this process writes to stderr."""
    sys.stderr.flush()
    kept, number = os.dup(2), os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(number, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(number)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
