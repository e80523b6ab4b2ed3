"""Checkpoints that somebody else made, with valid checksums: an error that names the file, and nothing else happens."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
from support import LineTask, NetTask, line_data, net_data

import galvanax as gx
from galvanax.runs.integrity import write_manifest


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "net"
    saving = gx.Checkpoint("val/loss", "min", every=gx.Steps(10), keep_last=None)
    gx.Trainer(max_steps=20, run_dir=folder, callbacks=[gx.EMA(0.9), saving]).fit(NetTask(), net_data())
    return folder


@pytest.fixture
def run(honest, tmp_path):
    shutil.copytree(honest, tmp_path / "run")
    return tmp_path / "run"


def readers(run):
    """Everything that reads a checkpoint."""
    trainer = gx.Trainer(max_steps=30, run_dir=run)
    return {
        "load": lambda: NetTask.load(run, "last"),
        "load by path": lambda: NetTask.load(run, run / "checkpoints" / "20"),
        "validate": lambda: trainer.validate(NetTask(), net_data(), "20"),
        "export": lambda: gx.export_safetensors(run, run.parent / "w", "last"),
        "warm start": lambda: gx.Trainer(max_steps=1, callbacks=[gx.WarmStart(run, "20")]).fit(NetTask(), net_data()),
        "resume": lambda: trainer.fit(NetTask(), net_data(), resume="last"),
    }


def refused_by_all(run, words):
    before = tree(run)
    for name, read in readers(run).items():
        with pytest.raises(gx.CheckpointError, match=words) as caught:
            read()
        assert "20" in str(caught.value), name
        assert len(str(caught.value)) < 600
        assert tree(run) == before, name


def tree(folder):
    """What is in a folder: links as links."""
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file() or path.is_dir()
    }


def edit(run, change):
    """Changes step 20's meta.json and makes its digests valid again."""
    path = run / "checkpoints" / "20" / "meta.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    write_manifest(path.parent)


@pytest.mark.parametrize(
    "key",
    ["step", "config", "position", "window", "metrics", "host", "validated_at", "visited", "num_steps", "seconds"],
)
def test_a_missing_key(run, key):
    edit(run, lambda data: data.pop(key))
    refused_by_all(run, rf"20 is damaged: meta.json.*{key}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(step="x"), r"meta.json.*step"),
        (lambda data: data.update(metrics={"a": [1]}), r"meta.json.*metrics"),
        (lambda data: data.update(extra=1), r"meta.json.*extra"),
        (lambda data: data.update(config={}), "names no task"),
        (lambda data: data.update(config={"task": {"type": 3}}), "names no task"),
        (lambda data: data.update(seconds={"__float__": [1]}), r"meta.json is no JSON: __float__ is \[1\]"),
        (lambda data: data.update(seconds={"__float__": "1e3"}), r"__float__ is '1e3'; expected nan, inf or -inf"),
        (lambda data: data.update(step=7), "it holds the checkpoint of step 7"),
    ],
)
def test_a_value_of_the_wrong_type(run, change, words):
    edit(run, change)
    refused_by_all(run, words)


@pytest.mark.parametrize("depth", [150, 100_000])
def test_nested_json(run, depth):
    path = run / "checkpoints" / "20" / "meta.json"
    path.write_text('{"a":' + "[" * depth + "]" * depth + "}")
    write_manifest(path.parent)
    refused_by_all(run, "20 is damaged: meta.json is no JSON: it is nested deeper than 100 levels")


def test_arrays_of_absurd_size(run):
    """Before memory is asked for."""

    def change(data):
        for name in data["arrays"]:
            data["arrays"][name] = "float32[1000000000000]"

    edit(run, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(gx.CheckpointError, match=r"20 is damaged: its arrays are said to have .* GB, in files of"):
        gx.export_safetensors(run, run.parent / "w", "last")
    with pytest.raises(gx.CheckpointError, match=r"does not fit this task: .*float32\[1000000000000\]"):
        NetTask.load(run, "last")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB


@pytest.mark.parametrize("form", ["float32[-1]", "object[3]", "x", "float32[1", "", "float32[3, ]", 5])
def test_arrays_of_no_form(run, form):
    edit(run, lambda data: data["arrays"].update({"weights/first/kernel": form}))
    with pytest.raises(gx.CheckpointError, match="20"):
        gx.export_safetensors(run, run.parent / "w", "last")
    with pytest.raises(gx.CheckpointError, match="20 does not fit this task: weights/first/kernel"):
        NetTask.load(run, "last")


def test_arrays_that_are_said_to_be_others(run):
    """Digests and description agree with each other, and not with what Orbax finds."""

    def change(data):
        data["arrays"]["weights/second/bias"] = "float32[3]"

    edit(run, change)
    with pytest.raises(gx.CheckpointError, match="20"):
        gx.export_safetensors(run, run.parent / "w", "last")


def link_to(target):
    def change(path):
        path.unlink() if path.is_file() else shutil.rmtree(path)
        path.symlink_to(target)

    return change


def pipe(path):
    path.unlink() if path.is_file() else shutil.rmtree(path)
    os.mkfifo(path)


@pytest.mark.parametrize("change", [link_to("/dev/zero"), link_to("/etc/passwd"), link_to("."), pipe])
@pytest.mark.parametrize("name", ["meta.json", "manifest.json", "arrays", "arrays/state/manifest.ocdbt", "."])
def test_what_is_no_file(run, change, name):
    """A link to a device, out of the folder, or to itself; a pipe. Reading one might never end."""
    place = run / "checkpoints" / "20" / name
    assert place.exists()
    change(place)
    if not (run / "checkpoints" / "20").is_dir():
        with pytest.raises(gx.CheckpointError, match="20"):
            NetTask.load(run, "20")
        return
    refused_by_all(run, r"20 is damaged: .*(is a link|no plain file)|20 is no checkpoint|No checkpoint of step 20")


def test_checkpoints_elsewhere(run, tmp_path):
    """Pruning would reach out of the run's folder."""
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path)
    for resume in ("last", "auto", 20):
        with pytest.raises(gx.CheckpointError, match=r"run: checkpoints is a link.*let run_dir be the link"):
            gx.Trainer(max_steps=30, run_dir=run).fit(NetTask(), net_data(), resume=resume)
    with pytest.raises(gx.CheckpointError, match="checkpoints is a link"):
        NetTask.load(run)
    assert tree(tmp_path) == before
    (tmp_path / "linked").symlink_to(run)
    (run / "checkpoints").unlink()
    (tmp_path / "elsewhere").rename(run / "checkpoints")
    assert NetTask.load(tmp_path / "linked")  # as the message says


def test_the_folder_of_a_stranger_is_no_free_folder(run):
    (run / "checkpoints" / "20").rename(run / "checkpoints" / "twenty")
    shutil.rmtree(run / "checkpoints" / "10")
    (run / "config.json").unlink()
    with pytest.raises(gx.RunDirError, match="holds another run"):
        gx.Trainer(max_steps=3, run_dir=run).fit(LineTask(), line_data())
    assert Path(run / "checkpoints" / "twenty").is_dir()


@pytest.mark.parametrize("name", ["damaged", "superseded"])
@pytest.mark.parametrize("kind", ["link", "file", "pipe"])
def test_what_is_in_the_way_of_setting_aside(run, tmp_path, name, kind):
    """Nothing is moved out of the folder, and nothing is changed."""
    place = run / "checkpoints" / name
    (tmp_path / "elsewhere").mkdir()
    {"link": lambda: place.symlink_to(tmp_path / "elsewhere"), "file": place.touch, "pipe": lambda: os.mkfifo(place)}[
        kind
    ]()
    before = tree(tmp_path)
    with pytest.raises(gx.CheckpointError, match=rf"can't be made ready: {name} is no folder, but a link or a file"):
        gx.Trainer(max_steps=30, run_dir=run).fit(NetTask(), net_data(), resume=10)
    assert {path: kept for path, kept in tree(tmp_path).items() if "config.json" not in path} == {
        path: kept for path, kept in before.items() if "config.json" not in path
    }


def test_a_config_that_is_a_folder(run):
    """The logs of the run are not cut for a run that can't begin."""
    (run / "config.json").unlink()
    (run / "config.json").mkdir()
    (run / "metrics.csv").write_text("step,epoch,train/loss\n15,1,0.5\n20,1,0.4\n")
    before = tree(run)
    with pytest.raises(gx.RunDirError, match=r"config\.json is a folder; expected a file\. Move it away"):
        gx.Trainer(max_steps=30, run_dir=run, callbacks=[gx.CSVLogger()]).fit(NetTask(), net_data(), resume=10)
    found = tree(run)
    assert {path: found.get(path) for path in before if "metrics.csv" in path} == {
        path: kept for path, kept in before.items() if "metrics.csv" in path
    }


def test_a_lock_that_is_a_pipe(run):
    os.mkfifo(run / ".lock")
    with pytest.raises(gx.RunDirError, match=r"\.lock is no plain file"):
        gx.Trainer(max_steps=30, run_dir=run).fit(NetTask(), net_data(), resume="last")


def test_arrays_of_another_task(run, tmp_path):
    """With digests that fit: Orbax gives back what it was asked for, and no numbers."""
    other = tmp_path / "other"
    gx.Trainer(max_steps=4, run_dir=other).fit(LineTask(), line_data())
    shutil.rmtree(run / "checkpoints" / "20" / "arrays")
    shutil.copytree(other / "checkpoints" / "4" / "arrays", run / "checkpoints" / "20" / "arrays")
    write_manifest(run / "checkpoints" / "20")
    refused_by_all(run, r"20 (is damaged: its arrays lack|can't be read)")


def test_many_files_too_many(run):
    for number in range(300):
        (run / "checkpoints" / "20" / f"extra-{number}").touch()
    (run / "checkpoints" / "20" / "a\nb").touch()
    refused_by_all(run, r"20 is damaged: 'a\\nb' added, .*\(and 296 more\)")


def test_a_damaged_one_is_set_aside_rather_than_pruned(run):
    largest = max((run / "checkpoints" / "10").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[::-1])
    gx.Trainer(max_steps=30, run_dir=run).fit(NetTask(), net_data(), resume="last")
    assert (run / "checkpoints" / "damaged" / "10").is_dir()
