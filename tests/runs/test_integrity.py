"""A damaged checkpoint is refused by name or loads exactly what was saved. Nothing is ever unpickled."""

import collections
import dataclasses
import errno
import json
import logging
import os
import random
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp
from support import NetTask, assert_same_state, net_data

import galvanax as gx
from galvanax.files import set_aside
from galvanax.runs.arrays import read_arrays
from galvanax.runs.checkpoints import verified_meta

BEFORE, LAST, END = 20, 30, 40
MUTANTS = 200


def settings(folder, **changes):
    saving = [gx.EMA(0.9), gx.CSVLogger(), gx.Checkpoint(monitor="val/loss", mode="min", keep_best=1, keep_last=2)]
    return gx.Trainer(**{"max_steps": END, "run_dir": folder, "log_every": 4, "callbacks": saving, **changes})


class Crash(gx.Callback):
    """Raises after the save at step LAST."""

    runs_last = True

    def next_step(self, step):
        return LAST if step < LAST else None

    def on_step(self, run):
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    """The folder of a run with checkpoints of the steps BEFORE and LAST, which has not come to its END."""
    folder = tmp_path_factory.mktemp("runs") / "net"
    trainer = settings(folder)
    with pytest.raises(KeyboardInterrupt):
        dataclasses.replace(trainer, callbacks=[*trainer.callbacks, Crash()]).fit(NetTask(), net_data())
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of the run to its END, which nothing touched."""
    return settings(tmp_path_factory.mktemp("runs") / "whole").fit(NetTask(), net_data())


# The ways to damage a checkpoint: each gets a random generator, the last checkpoint of a run and the one before,
# and says what it did.


def flip_a_bit(rng: random.Random, checkpoint: Path, other: Path) -> str:
    path = some_file(rng, checkpoint)
    data = bytearray(path.read_bytes())
    if not data:
        return append_bytes(rng, checkpoint, other)
    place, bit = rng.randrange(len(data)), rng.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {place} of {path.name} flipped"


def truncate(rng: random.Random, checkpoint: Path, other: Path) -> str:
    path = some_file(rng, checkpoint)
    size = path.stat().st_size
    left = rng.randrange(size) if size else 0
    os.truncate(path, left)
    return f"{path.name} cut to {left} of {size} bytes"


def empty(rng: random.Random, checkpoint: Path, other: Path) -> str:
    path = some_file(rng, checkpoint)
    path.write_bytes(b"")
    return f"{path.name} emptied"


def append_bytes(rng: random.Random, checkpoint: Path, other: Path) -> str:
    path = some_file(rng, checkpoint)
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.randint(1, 100)))
    return f"{path.name} made longer"


def overwrite(rng: random.Random, checkpoint: Path, other: Path) -> str:
    path = some_file(rng, checkpoint)
    path.write_bytes(rng.randbytes(path.stat().st_size))
    return f"{path.name} overwritten"


def delete(rng: random.Random, checkpoint: Path, other: Path) -> str:
    path = rng.choice(sorted(checkpoint.rglob("*")))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return f"{path.name} deleted"


def add(rng: random.Random, checkpoint: Path, other: Path) -> str:
    folder = rng.choice([path for path in (checkpoint, *sorted(checkpoint.rglob("*"))) if path.is_dir()])
    path = folder / rng.choice(["extra", ".hidden", "meta.json.bak", "d", "7"])
    if path.exists():
        path = folder / "another"
    if rng.random() < 0.3:
        path.mkdir()
        return f"folder {path.name} added"
    path.write_bytes(rng.randbytes(rng.choice([0, 10])))
    return f"file {path.name} added"


def swap_files(rng: random.Random, checkpoint: Path, other: Path) -> str:
    names = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    name = rng.choice(sorted(name for name in names if (other / name).is_file()))
    swap(checkpoint / name, other / name)
    return f"{name} swapped with step {other.name}'s"


def swap_folders(rng: random.Random, checkpoint: Path, other: Path) -> str:
    swap(checkpoint / "arrays", other / "arrays")
    if rng.random() < 0.5:
        swap(checkpoint / "manifest.json", other / "manifest.json")
        return "arrays and manifest.json swapped"
    return "arrays swapped"


def swap_checkpoints(rng: random.Random, checkpoint: Path, other: Path) -> str:
    if rng.random() < 0.5:
        swap(checkpoint, other)
        return f"{checkpoint.name} and {other.name} renamed to each other"
    shutil.rmtree(checkpoint)
    shutil.copytree(other, checkpoint)
    return f"{checkpoint.name} replaced by a copy of {other.name}"


def rename(rng: random.Random, checkpoint: Path, other: Path) -> str:
    path = rng.choice(sorted(checkpoint.rglob("*")))
    path.rename(path.with_name(path.name + rng.choice(["_", "0", ".tmp"])))
    return f"{path.name} renamed"


def swap_within(rng: random.Random, checkpoint: Path, other: Path) -> str:
    one, two = rng.sample(sorted(path for path in checkpoint.rglob("*") if path.is_file()), 2)
    swap(one, two)
    return f"{one.name} and {two.name} swapped"


def change_kind(rng: random.Random, checkpoint: Path, other: Path) -> str:
    path = some_file(rng, checkpoint)
    path.unlink()
    if rng.random() < 0.5:
        path.mkdir()
        return f"{path.name} made a folder"
    path.symlink_to("nowhere")
    return f"{path.name} made a link to nowhere"


def edit_meta(rng: random.Random, checkpoint: Path, other: Path) -> str:
    return edit_json(rng, checkpoint / "meta.json")


def edit_manifest(rng: random.Random, checkpoint: Path, other: Path) -> str:
    return edit_json(rng, checkpoint / "manifest.json")


WAYS: list[Callable[[random.Random, Path, Path], str]] = [
    flip_a_bit, truncate, empty, append_bytes, overwrite, delete, add, swap_files, swap_folders, swap_checkpoints,
    rename, swap_within, change_kind, edit_meta, edit_manifest, flip_a_bit, edit_meta,
]  # fmt: skip


def some_file(rng: random.Random, checkpoint: Path) -> Path:
    """A file of the checkpoint; each kind, the small ones too, comes up equally often."""
    kinds = collections.defaultdict(list)
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        kinds["data" if len(path.name) > 30 else path.name].append(path)
    return rng.choice(kinds[rng.choice(sorted(kinds))])


def swap(one: Path, two: Path) -> None:
    """Exchanges two files or folders."""
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def edit_json(rng: random.Random, path: Path) -> str:
    """Changes, removes or adds an entry anywhere in a JSON file, or all of it."""
    data = json.loads(path.read_text())
    value = rng.choice([None, 0, -1, "x", [], {}, True, 1e400, [1, "x"], {"x": 1}])
    if rng.random() < 0.1:
        path.write_text(json.dumps(value))
        return f"all of {path.name} replaced by {value!r}"
    parents = [data]
    for parent in parents:
        children = parent.values() if isinstance(parent, dict) else parent
        parents += [child for child in children if isinstance(child, dict | list) and child]
    # The top level is where the loader looks first.
    parent = data if rng.random() < 0.5 else rng.choice(parents)
    key = rng.choice(sorted(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
    what = rng.choice(["replaced", "removed", "added"])
    if what == "removed":
        del parent[key]
    elif what == "added" and isinstance(parent, dict):
        parent["extra"] = value
    else:
        parent[key] = value
    path.write_text(json.dumps(data, indent=1))
    return f"{path.name}: {key!r} {what} ({value!r})"


def test_mutated_checkpoints(crashed, tmp_path):
    originals = {step: saved_arrays(crashed / "checkpoints" / str(step)) for step in (BEFORE, LAST)}
    models = {step: model_arrays(NetTask.load(crashed, str(step))[1]) for step in (BEFORE, LAST)}
    assert any((originals[LAST][name] != originals[BEFORE][name]).any() for name in originals[LAST])
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
        for name, array in originals[LAST].items()
    }
    counts: collections.Counter[str] = collections.Counter()
    wrong = []
    for index in range(MUTANTS):
        rng = random.Random(index)
        run = tmp_path / f"mutant-{index}"
        shutil.copytree(crashed / "checkpoints", run / "checkpoints")
        checkpoint, other = (run / "checkpoints" / str(step) for step in (LAST, BEFORE))
        way = WAYS[index % len(WAYS)]
        done = f"{index}: {way(rng, checkpoint, other)}"
        loads: dict[str, tuple[Callable[[], Any], list[dict]]] = {
            "all arrays": (lambda at=checkpoint: read_arrays(at, verified_meta(at), wanted), [originals[LAST]]),
            "by step": (lambda at=run: model_arrays(NetTask.load(at, str(LAST))[1]), [models[LAST]]),
            "by path": (lambda at=run, path=checkpoint: model_arrays(NetTask.load(at, path)[1]), [models[LAST]]),
            "last": (lambda at=run: model_arrays(NetTask.load(at, "last")[1]), [models[LAST]]),
            # Which one is the best is written in what is damaged; that it is one of them whole is what counts.
            "best": (lambda at=run: model_arrays(NetTask.load(at, "best")[1]), list(models.values())),
        }
        outcomes = {}
        for name, (load, allowed) in loads.items():
            try:
                arrays = load()
                exact = any(same(arrays, original) for original in allowed)
                outcomes[name] = "exact" if exact else "WRONG ARRAYS"
            except gx.CheckpointError as error:
                outcomes[name] = "refused" if str(run / "checkpoints") in str(error) else f"NAMELESS {error}"
                if name == "by path" and str(checkpoint) not in str(error):
                    outcomes[name] = f"NAMELESS {error}"
            except Exception as error:
                outcomes[name] = f"RAISED {type(error).__name__}: {error}"
        bad = {name: outcome for name, outcome in outcomes.items() if outcome not in ("exact", "refused")}
        wrong += [f"{done}, loaded {name}: {outcome}" for name, outcome in bad.items()]
        counts["wrong" if bad else outcomes["all arrays"]] += 1
        shutil.rmtree(run)
    print(f"\n{MUTANTS} mutated checkpoints: {dict(counts)}")
    assert not wrong, "\n".join(wrong)
    assert counts.total() == MUTANTS
    assert counts["refused"] > MUTANTS / 2


def saved_arrays(checkpoint: Path) -> dict[str, np.ndarray]:
    """Everything that a checkpoint holds, read by Orbax alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sharding info not provided")
        arrays = ocp.load((checkpoint / "arrays").absolute())
    return {name: np.asarray(array) for name, array in arrays.items()}


def model_arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    """Parameters and statistics by path."""
    flat = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    return {"/".join(map(str, path)): np.asarray(variable.get_value()) for path, variable in flat}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two dicts of arrays agree in names, types and every bit."""
    return one.keys() == other.keys() and all(
        (one[name].dtype, np.asarray(one[name]).tobytes()) == (other[name].dtype, np.asarray(other[name]).tobytes())
        for name in one
    )


@pytest.mark.parametrize("way", [flip_a_bit, truncate, delete, add, swap_folders, edit_meta, edit_manifest])
def test_a_fit_refuses(crashed, tmp_path, way):
    shutil.copytree(crashed, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / str(LAST)
    way(random.Random(1), checkpoint, checkpoint.with_name(str(BEFORE)))
    before = contents(tmp_path)
    with pytest.raises(gx.CheckpointError, match=re.escape(str(checkpoint))):
        settings(tmp_path / "run").fit(NetTask(), net_data(), resume="last")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("way", [flip_a_bit, delete, edit_meta])
def test_auto_takes_the_newest_intact_one(crashed, whole, tmp_path, caplog, way):
    folder = tmp_path / "run"
    shutil.copytree(crashed, folder)
    checkpoint = folder / "checkpoints" / str(LAST)
    done = way(random.Random(1), checkpoint, checkpoint.with_name(str(BEFORE)))
    with caplog.at_level(logging.WARNING, "galvanax"):
        result = settings(folder).fit(NetTask(), net_data(), resume="auto")
    named = [record.getMessage() for record in caplog.records if record.name == "galvanax"]
    assert any(str(checkpoint) in message for message in named), (done, named)
    assert_same_state(result.state, whole.state)
    assert NetTask.load(folder, "last")
    assert (folder / "checkpoints" / "damaged" / str(LAST)).is_dir()


def test_auto_refuses_where_nothing_is_intact(crashed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(crashed, folder)
    for checkpoint in (folder / "checkpoints").iterdir():
        (checkpoint / "meta.json").write_text("{}")
    before = contents(tmp_path)
    for _ in range(2):
        with pytest.raises(gx.CheckpointError, match=r"none is whole: 20, 30.*Nothing was changed.*overwrite"):
            settings(folder).fit(NetTask(), net_data(), resume="auto")
        assert contents(tmp_path) == before


def test_auto_refuses_where_all_were_set_aside(crashed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(crashed, folder)
    for step in (BEFORE, LAST):
        set_aside(folder / "checkpoints" / str(step))
    with pytest.raises(gx.CheckpointError, match=r"none is whole: damaged/20, damaged/30"):
        settings(folder).fit(NetTask(), net_data(), resume="auto")


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_read_error_is_no_damage(crashed, whole, tmp_path, monkeypatch, number):
    """It may pass: nothing is skipped, set aside or deleted, and when it has passed, the run goes on."""
    folder = tmp_path / "run"
    shutil.copytree(crashed, folder)
    before = contents(tmp_path)
    read = Path.open

    def fail(self, *arguments, **options):
        if f"checkpoints/{LAST}/arrays" in str(self):
            raise OSError(number, os.strerror(number), str(self))
        return read(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        for resume in ("auto", "last"):
            with pytest.raises(gx.CheckpointError, match=rf"{LAST} can't be read at the moment: .*need not be damage"):
                settings(folder).fit(NetTask(), net_data(), resume=resume)
        with pytest.raises(gx.CheckpointError, match="can't be read at the moment"):
            NetTask.load(folder, "last")
    assert contents(tmp_path) == before
    assert_same_state(settings(folder).fit(NetTask(), net_data(), resume="auto").state, whole.state)


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file's bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("value", ["x", None, [], float("nan"), {"x": 1}])
def test_a_damaged_older_one_does_not_disturb(crashed, whole, tmp_path, value):
    folder = tmp_path / "run"
    shutil.copytree(crashed, folder)
    meta = folder / "checkpoints" / str(BEFORE) / "meta.json"
    data = json.loads(meta.read_text())
    data["monitor"]["value"] = value
    meta.write_text(json.dumps(data))
    result = settings(folder).fit(NetTask(), net_data(), resume="auto")
    assert_same_state(result.state, whole.state)
    assert same(model_arrays(NetTask.load(folder, "last")[1]), model_arrays(result.model))


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for module in ("pickle", "_pickle"):
        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(f"{module}.{name}", refuse)
    monkeypatch.setattr("pickle._Unpickler", refuse)
    monkeypatch.setattr(np.lib.npyio, "pickle", None, raising=False)
    with unpickling() as found:
        settings(tmp_path / "run", max_steps=LAST).fit(NetTask(), net_data())
        settings(tmp_path / "run").fit(NetTask(), net_data(), resume="auto")
        NetTask.load(tmp_path / "run")
        settings(tmp_path / "run").validate(NetTask(), net_data(), "last")
    assert found == []


class unpickling:
    """Collects the classes that are looked up by any unpickler, the C ones too, while it is open."""

    _open: list["unpickling"] = []  # noqa: RUF012
    _hooked = False

    def __enter__(self) -> list[str]:
        self.found: list[str] = []
        if not unpickling._hooked:
            sys.addaudithook(self._listen)  # for good: hooks cannot be removed
            unpickling._hooked = True
        unpickling._open.append(self)
        return self.found

    def __exit__(self, *_: object) -> None:
        unpickling._open.remove(self)

    @staticmethod
    def _listen(event: str, arguments: tuple) -> None:
        if event == "pickle.find_class":
            for each in unpickling._open:
                each.found.append(".".join(map(str, arguments)))
