"""A run that is killed again and again ends with the same bits as a run that nothing touched.

    uv run pytest -m slow tests/stress                        # 50 kills each
    GALVANAX_KILLS=200 uv run pytest -m slow tests/stress -k "net and SIGKILL" -s

Each kill comes at a moment of its own: half of them are drawn uniformly over twice the time that a start takes, so that
start-up and steps are met equally often; the others wait for the next save or validation and fall into it. The compile
cache is empty at first, so early kills meet a compilation. Where a run ends before all kills are used up,
another one starts in a new folder.

On failure the report names what differs and the folder, which pytest keeps.
"""

import collections
import hashlib
import json
import os
import random
import re
import signal
import struct
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from stress.child import Life, save_transitions
from tensorboardX.proto.event_pb2 import Event

KILLS = int(os.environ.get("GALVANAX_KILLS", "50"))
NUM_STEPS = 3000
PREEMPTED = 75
AIMS = ("save", "any", "validation", "any")


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_dispatch", [1, None], ids=["one", "fused"])
@pytest.mark.parametrize("task", ["net", "acceleration"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_killed_run_is_the_same_run(tmp_path, task, steps_per_dispatch, number):
    survive(tmp_path, task, steps_per_dispatch, number, KILLS, NUM_STEPS)


@pytest.mark.slow
def test_three_kills(tmp_path):
    survive(tmp_path, "net", None, signal.SIGKILL, 3, 500, pause=0.01)


def survive(
    tmp_path: Path,
    task: str,
    steps_per_dispatch: int | None,
    number: int,
    kills: int,
    num_steps: int,
    pause: float = 0.004,
) -> None:
    """Trains once undisturbed and, until `kills` are used up, with kills; fails where the two differ."""
    flags = ["--task", task, "--num-steps", str(num_steps)]
    if task == "acceleration":
        save_transitions(tmp_path / "transitions.npz")
        flags += ["--data", str(tmp_path / "transitions.npz")]
    if steps_per_dispatch is not None:
        flags += ["--steps-per-dispatch", str(steps_per_dispatch)]
    reference = tmp_path / "reference"
    span = 2 * undisturbed(reference, flags, tmp_path)

    rng = random.Random(f"{task} {steps_per_dispatch} {number}")
    counts: collections.Counter[str] = collections.Counter()
    began, lives, runs = time.monotonic(), 0, 0
    while counts.total() < kills:
        runs += 1
        folder = tmp_path / f"killed-{runs}"
        while True:
            lives += 1
            left = kills - counts.total()
            with Life.begin(
                folder,
                *flags,
                *(["--pause", str(pause)] if left else []),
                log=tmp_path / f"life-{lives}.log",
                XDG_CACHE_HOME=str(tmp_path / "cache"),
            ) as life:
                when = strike(life, folder, rng, number, span, AIMS[counts.total() % len(AIMS)]) if left else None
                if when is None:
                    assert life.end() == 0, f"life {lives} failed:\n{life.text}"
                else:
                    counts[when] += 1
                if life.phase == "bye":
                    break
        differences = list(compare(folder, reference, same_checkpoints=number == signal.SIGKILL))
        assert not differences, f"{folder} differs from {reference}:\n" + "\n".join(differences[:20])
    name = signal.Signals(number).name
    where = ", ".join(f"{count} {phase}" for phase, count in counts.most_common())
    took = f"{lives} lives, {time.monotonic() - began:.0f} s"
    print(f"\n{task} {name} K={steps_per_dispatch or 'auto'}: {counts.total()} kills ({where}) of {runs} runs, {took}")


def undisturbed(reference: Path, flags: list[str], tmp_path: Path) -> float:
    """Trains to the end; returns the seconds that a life takes to its first dispatch when everything is compiled."""
    cache = {"XDG_CACHE_HOME": str(tmp_path / "reference-cache")}
    with Life.begin(reference, *flags, log=tmp_path / "reference.log", **cache) as life:
        assert life.end() == 0, life.text
    began = time.monotonic()
    with Life.begin(tmp_path / "measured", *flags, log=tmp_path / "measured.log", **cache) as life:
        life.wait_for("steps")
        return time.monotonic() - began


def strike(life: Life, folder: Path, rng: random.Random, number: int, span: float, aim: str) -> str | None:
    """Sends the signal at a moment drawn at random; returns which one, or None if the life had ended before.

    Where it aims at a validation, or at a save that is not this life's first, it waits for one from that moment on, and
    then up to 30 ms.
    """
    before = checkpoints(folder)
    time.sleep(rng.uniform(0, span))
    extra = rng.uniform(0, 0.03) * rng.randint(0, 1)
    validations = life.said.count("validation")
    while aim != "any" and life.process.poll() is None:
        saving = checkpoints(folder) != before and half_done(folder)
        if saving if aim == "save" else life.said.count("validation") > validations:
            time.sleep(extra)
            break
        time.sleep(0.002)
    phase, saving = life.phase, half_done(folder)
    if life.process.poll() is not None or phase == "bye":
        return None
    status = life.end(number)
    if number == signal.SIGKILL:
        allowed = {-signal.SIGKILL, 0} if "end" in life.said else {-signal.SIGKILL}
        phase, saving = life.phase, half_done(folder)
    elif "end" in life.said:
        allowed = {-signal.SIGTERM, 0}
    else:
        allowed = {PREEMPTED} if phase in ("steps", "validation") else {-signal.SIGTERM, PREEMPTED}
    assert status in allowed, f"status {status} after {signal.Signals(number).name} in {phase}:\n{life.text}"
    if saving and phase not in ("import", "start"):
        return "in a save"
    words = {"import": "in imports", "start": "in start-up and compilation", "steps": "in steps"}
    return words.get(phase, "in validation" if phase == "validation" else "after the last step")


def half_done(folder: Path) -> bool:
    """Whether a checkpoint is being written or deleted, or has been left so."""
    kinds = (".partial-*", ".deleted-*")
    return any(True for kind in kinds for _ in (folder / "checkpoints").glob(kind))


def compare(folder: Path, reference: Path, same_checkpoints: bool) -> Iterator[str]:
    """Names what differs between two finished runs."""
    kept, expected = checkpoints(folder), checkpoints(reference)
    if same_checkpoints and kept != expected:
        yield f"checkpoints of the steps {kept}, expected {expected}"
    if kept[-1] != expected[-1]:
        yield f"the last checkpoint is of step {kept[-1]}, expected {expected[-1]}"
        return
    sums, wanted = (digests(run / "checkpoints" / str(expected[-1])) for run in (folder, reference))
    for name in sorted(sums.keys() | wanted.keys()):
        if sums.get(name) != wanted.get(name):
            yield f"array {name}: {sums.get(name, 'missing')}, expected {wanted.get(name, 'none')}"
    rows, wanted_rows = ((run / "metrics.csv").read_bytes().splitlines() for run in (folder, reference))
    yield from unequal("metrics.csv line", rows, wanted_rows)
    if (folder / "metrics.csv").read_bytes() != (reference / "metrics.csv").read_bytes():
        yield "metrics.csv differs"
    yield from unequal("TensorBoard row", scalars(folder), scalars(reference))
    meta, wanted_meta = (host_data(run / "checkpoints" / str(expected[-1])) for run in (folder, reference))
    for key, value in wanted_meta.items():
        if meta[key] != value:
            yield f"meta.json {key}: {meta[key]}, expected {value}"


def unequal(kind: str, found: list, expected: list) -> Iterator[str]:
    """The first few places where two lists differ, and their lengths."""
    if len(found) != len(expected):
        yield f"{len(found)} times {kind}, expected {len(expected)}"
    places = [index for index, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]]
    for index in places[:3]:
        yield f"{kind} {index}: {found[index]}, expected {expected[index]}"


def checkpoints(run: Path) -> list[int]:
    """The steps of a run's whole checkpoints."""
    return sorted(int(path.name) for path in (run / "checkpoints").glob("[0-9]*"))


def digests(checkpoint: Path) -> dict[str, str]:
    """Type, shape and sha256 of the bytes of every array."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sharding info not provided")
        arrays = ocp.load((checkpoint / "arrays").absolute())
    for kind in ("params/", "opt_state/", "slots/EMA/"):
        assert any(name.startswith(kind) for name in arrays), f"{checkpoint} holds no {kind}"
    return {name: _digest(np.asarray(array)) for name, array in arrays.items()}


def _digest(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def host_data(checkpoint: Path) -> dict:
    """What a checkpoint keeps of the host's state, wall time left out."""
    meta = json.loads((checkpoint / "meta.json").read_text())
    return {name: meta[name] for name in ("step", "position", "window", "metrics", "monitor")} | {
        "EarlyStopping": meta["host"].get("EarlyStopping")
    }


def scalars(run: Path) -> list[tuple[int, str, float]]:
    """`(step, tag, value)` of all scalars but speeds, as TensorBoard shows them, sorted; doubled ones twice."""
    rows: list[tuple[int, str, float]] = []
    for path in sorted((run / "tensorboard").rglob("*tfevents*"), key=_written):
        for event in events(path):
            if event.HasField("session_log") and event.session_log.status == event.session_log.START:
                rows = [row for row in rows if row[0] < event.step]
            rows += [
                (event.step, value.tag, value.simple_value)
                for value in event.summary.value
                if not value.tag.startswith("speed/")
            ]
    return sorted(rows)


def _written(path: Path) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", path.name)))


def events(path: Path) -> Iterator[Event]:
    """The whole records of an event file: length (8 bytes), its checksum (4), an Event, its checksum (4)."""
    data, at = path.read_bytes(), 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        if at + 16 + length > len(data):
            return
        yield Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length
