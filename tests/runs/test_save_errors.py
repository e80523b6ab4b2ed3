"""A checkpoint folder that is full, read-only or gone: the run stops or goes on as it was told, and says why.

The folder is a small file system of its own, in a process that may mount one (`unshare -rm`).
"""

import contextlib
import json
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

STEPS, SPOILED, MENDED = 150, 25, 105
MODES = ("full", "read-only", "removed")


def can_mount() -> bool:
    """Whether this machine lets a process mount a file system for itself."""
    with contextlib.suppress(OSError):
        probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    return False


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What `main` found, by mode and by what the run was told."""
    if not can_mount():
        pytest.skip("unshare -rm cannot mount a tmpfs here")
    folder = tmp_path_factory.mktemp("runs")
    command = ["unshare", "-rm", sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads((folder / "outcomes.json").read_text())


@pytest.mark.parametrize("mode", MODES)
def test_stop(outcomes, mode):
    folder, found = outcomes
    outcome = found[f"{mode} stop"]
    assert outcome["raised"] == "CheckpointError", outcome
    assert SPOILED <= outcome["reached"] < STEPS
    assert str(folder / f"{mode}-stop" / "checkpoints") in outcome["message"]
    assert_reason(mode, outcome["message"])
    if mode != "removed":
        assert outcome["steps"] == [20]
        assert outcome["last"] == outcome["good"]


@pytest.mark.parametrize("mode", MODES)
def test_continue(outcomes, mode):
    folder, found = outcomes
    outcome = found[f"{mode} continue"]
    assert outcome["raised"] is None, outcome
    assert outcome["reached"] == STEPS
    named = [text for text in outcome["warnings"] if str(folder / f"{mode}-continue" / "checkpoints") in text]
    assert named, outcome
    assert_reason(mode, named[0])
    assert outcome["loss"] == found["undisturbed"]["loss"]
    if mode != "removed":
        assert outcome["steps"] == [20]
        assert outcome["last"] == outcome["good"]


def test_saves_again_once_there_is_room(outcomes):
    outcome = outcomes[1]["full and mended continue"]
    assert outcome["raised"] is None
    assert outcome["warnings"]
    assert outcome["steps"] == [STEPS]
    assert outcome["last"] == outcomes[1]["undisturbed"]["last"]


def assert_reason(mode: str, message: str) -> None:
    """The message says what is wrong in words that a person knows."""
    words = {"full": "No space left", "read-only": "Read-only file system", "removed": "removed"}
    assert words[mode] in message, message
    assert len(message) < 500, f"nobody reads {len(message)} characters"


def main(folder: Path) -> None:
    """Runs everything and writes `outcomes.json`; in a mount namespace of its own."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    found = {"undisturbed": outcome_of(folder / "undisturbed", None, "stop")}
    for mode in MODES:
        for told in ("stop", "continue"):
            found[f"{mode} {told}"] = outcome_of(folder / f"{mode}-{told}", mode, told)
    found["full and mended continue"] = outcome_of(folder / "mended", "full", "continue", mended=True)
    (folder / "outcomes.json").write_text(json.dumps(found, indent=1))


def outcome_of(run_dir: Path, mode: str | None, told: str, mended: bool = False) -> dict:
    """Trains in a folder that is spoiled at a step."""
    from support import NetTask, net_data

    import galvanax as gx

    checkpoints = run_dir / "checkpoints"

    class Spoil(gx.Callback):
        """Breaks the folder at SPOILED, and mends it at MENDED if asked to."""

        good, reached = None, 0

        def next_step(self, step):
            return next((at for at in (SPOILED, MENDED) if at > step), None)

        def on_train_metrics(self, run, steps, metrics):
            self.reached = steps[-1]
            if self.good is not None:
                time.sleep(0.01 * len(steps))  # the writer has a thread of its own; it needs time to fail

        def on_step(self, run):
            if run.step == SPOILED and mode is not None:
                while not (checkpoints / "20").exists() or len(list(checkpoints.iterdir())) > 1:
                    time.sleep(0.01)
                self.good = weights(run_dir)
                spoil(checkpoints, mode)
            if run.step == MENDED and mended:
                (checkpoints / "filler").unlink()

    if mode is not None:
        checkpoints.mkdir(parents=True)
        if mode != "removed":
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", checkpoints], check=True)
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("galvanax").addHandler(handler)
    watch = Spoil()
    saving = gx.Checkpoint(every=gx.Steps(10), on_save_error=told)
    outcome: dict = {"raised": None, "message": "", "loss": None, "last": None}
    try:
        result = gx.Trainer(max_steps=STEPS, run_dir=run_dir, callbacks=[gx.EMA(0.9), watch, saving]).fit(
            NetTask(), net_data()
        )
        outcome["loss"] = result.metrics["val/loss"]
    except Exception as error:
        outcome |= {"raised": type(error).__name__, "message": str(error)}
    logging.getLogger("galvanax").removeHandler(handler)
    steps = (
        sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()) if checkpoints.exists() else []
    )
    if steps:
        outcome["last"] = weights(run_dir)
    return outcome | {"warnings": warnings, "steps": steps, "good": watch.good, "reached": watch.reached}


def spoil(checkpoints: Path, mode: str) -> None:
    """Breaks a checkpoint folder."""
    if mode == "full":
        with contextlib.suppress(OSError), (checkpoints / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1024))
    elif mode == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", checkpoints], check=True)
    else:
        shutil.rmtree(checkpoints)


def weights(run_dir: Path) -> list[float]:
    """All parameters of the last checkpoint."""
    from support import NetTask

    model = NetTask.load(run_dir, "last")[1]
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]).tolist()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
