"""What somebody or something may do to a run folder: each way gets a random generator and says what it did."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs import test_integrity as damage
from stress.fuzz_json import (
    bytes_of_json,
    describe_arrays,
    edit_any_json,
    hyperparameters,
    name_code,
    name_files,
    text_of_json,
    write_code,
)
from stress.fuzz_scene import MEGABYTE, Scene, Unfit, Way

from galvanax.runs.integrity import write_manifest


def mutate(rng: random.Random, scene: Scene, among: tuple[str, ...] = ()) -> tuple[str, str]:
    """Changes a run folder in one to three ways, of some kinds alone if they are given; returns one, and a sentence."""
    said, kinds = [], []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        for _ in range(20):
            kind = rng.choice(among or list(WAYS))
            try:
                said.append(rng.choice(WAYS[kind])(rng, scene))
                kinds.append(kind)
                break
            # An earlier way has taken away what this one needs.
            except (Unfit, LookupError, OSError, ValueError, AttributeError, TypeError, RecursionError):
                continue
        if kinds[-1:] in (["link"], ["pipe"], ["in the way"]):  # another would write through it, or wait
            break
    if rng.random() < 0.5 and (sealed := reseal(scene)):
        said.append(f"manifests made to fit: {', '.join(sealed)}")
    return kinds[0] if kinds else "none", "; ".join(said)


def reseal(scene: Scene) -> list[str]:
    """Makes the manifests fit to what is there, as a stranger can."""
    done = []
    for checkpoint in scene.checkpoints if not (scene.run / "checkpoints").is_symlink() else ():
        if checkpoint.is_symlink() or not checkpoint.is_dir():
            continue
        before = _read(checkpoint / "manifest.json")
        try:
            write_manifest(checkpoint)
        except (OSError, ValueError):
            continue
        if _read(checkpoint / "manifest.json") != before:
            done.append(checkpoint.name)
    return done


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() and not path.is_symlink() else None


def on_checkpoint(way: Callable[[random.Random, Path, Path], str]) -> Way:
    """A way of `test_integrity`, on the last checkpoint or the one before."""

    def mutate(rng: random.Random, scene: Scene) -> str:
        one, two = rng.sample(scene.checkpoints[-3:], 2)
        return f"checkpoint {one.name}: {way(rng, one, two)}"

    return mutate


# Bytes.


def change_bytes(rng: random.Random, scene: Scene) -> str:
    path = scene.any_file(rng)
    data = bytearray(path.read_bytes())
    way = rng.choice(["flip", "cut", "empty", "append", "noise", "zeros"])
    if way == "flip":
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == "cut":
        del data[rng.randrange(len(data)) :]
    elif way == "append":
        data += rng.choice([rng.randbytes(rng.randint(1, 100)), b"\n", bytes(4096), bytes(data)])
    else:
        data = bytearray({"zeros": bytes(len(data)), "noise": rng.randbytes(len(data)), "empty": b""}[way])
    path.write_bytes(data)
    return f"{scene.name(path)}: {way}"


def make_large(rng: random.Random, scene: Scene) -> str:
    path = scene.any_file(rng)
    size = rng.choice([100, 300]) * MEGABYTE
    os.truncate(path, size)
    return f"{scene.name(path)}: {size // MEGABYTE} MB, zeros behind what was there"


# Swapped.


def swap_any(rng: random.Random, scene: Scene) -> str:
    one, two = scene.any_path(rng), scene.any_path(rng)
    if one in (two, *two.parents) or two in one.parents:
        raise Unfit
    aside = scene.run / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    return f"{scene.name(one)} and {scene.name(two)} swapped"


def from_another_run(rng: random.Random, scene: Scene) -> str:
    other = rng.choice(scene.others)
    if rng.random() < 0.5:
        path = scene.any_file(rng)
        found = sorted(one for one in other.rglob(path.name) if one.is_file())
        shutil.copy(rng.choice(found), path)
        return f"{scene.name(path)} replaced by {path.name} of {other.parent.name}"
    mine = rng.choice(scene.checkpoints)
    theirs = rng.choice([path for path in (other / "checkpoints").iterdir() if path.name.isdecimal()])
    part = rng.choice(["", "arrays"])
    shutil.rmtree(mine / part)
    shutil.copytree(theirs / part, mine / part)
    return f"{scene.name(mine / part)} replaced by that of step {theirs.name} of {other.parent.name}"


def rename_checkpoint(rng: random.Random, scene: Scene) -> str:
    path = rng.choice(scene.checkpoints)
    names = ["7", "999999999", "1" + "0" * 30, "9" * 200, "-1", "0", f"00{path.name}", "30.0", "٣٠", "best", "last"]
    name = rng.choice([*names, f".partial-{path.name}", f".deleted-{path.name}", "damaged", "superseded"])
    copy = rng.random() < 0.5
    shutil.copytree(path, path.with_name(name)) if copy else path.rename(path.with_name(name))
    return f"{scene.name(path)} {'copied' if copy else 'renamed'} to {name}"


# Missing and added.


def remove(rng: random.Random, scene: Scene) -> str:
    path = scene.any_path(rng)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return f"{scene.name(path)} removed"


def add_something(rng: random.Random, scene: Scene) -> str:
    folders = [scene.run, scene.run / "checkpoints", *(path for path in scene.run.rglob("*") if path.is_dir())]
    folder = rng.choice(folders)
    name = rng.choice(
        ["extra", ".hidden", "meta.json.bak", "7", "x.pkl", "a\nb", "\x1b[31mred", "日本", "%s{0}", "*", "[a]", "a b"]
    )
    what = rng.choice(["file", "folder", "many files", "deep folders", "python"])
    path = folder / name
    if what == "file":
        path.write_bytes(rng.randbytes(rng.choice([0, 10])))
    elif what == "folder":
        path.mkdir()
    elif what == "many files":
        path.mkdir()
        for number in range(300):
            (path / str(number)).touch()
    elif what == "deep folders":
        for _ in range(60):
            path /= "d"
        path.mkdir(parents=True)
    else:
        write_code(folder / rng.choice(["evil.py", "sitecustomize.py", "__init__.py", "support.py"]), scene)
    return f"{what} {name!r} added to {scene.name(folder)}"


# Other kinds, links, pipes.


def change_any_kind(rng: random.Random, scene: Scene) -> str:
    path = scene.any_path(rng)
    if path.is_dir():
        shutil.rmtree(path)
        path.write_bytes(rng.randbytes(10))
        return f"{scene.name(path)} made a file"
    path.unlink()
    path.mkdir()
    return f"{scene.name(path)} made a folder"


PLACES = (
    "config.json", "metrics.csv", "tensorboard", "checkpoints", "evaluations", "play", "damaged", ".lock",
    "checkpoints/damaged", "checkpoints/superseded", "checkpoints/.partial-35", "checkpoints/.deleted-5",
    "checkpoints/99", ".partial-config.json", ".partial-log", ".deleted-checkpoints", "tensorboard/.partial-log",
    "tensorboard/events.out.tfevents.1.x", "checkpoints/30", "checkpoints/2",
)  # fmt: skip


def a_place(rng: random.Random, scene: Scene) -> Path:
    """A path of the run with nothing in it: what was there is gone."""
    path = scene.any_path(rng) if rng.random() < 0.5 else scene.run / rng.choice(PLACES)
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def link(rng: random.Random, scene: Scene) -> str:
    path = a_place(rng, scene)
    steps = sorted((scene.outside / "run" / "checkpoints").glob("[0-9]*"))
    same = scene.outside / "run" / path.relative_to(scene.run)
    target = rng.choice(
        [
            "nowhere", scene.outside / "secret.txt", scene.outside / "secret.json", scene.outside / "passwd",
            "/dev/zero", rng.choice(steps), scene.outside / "run", scene.outside / "folder", path.name, "..", same,
        ]
    )  # fmt: skip
    path.symlink_to(target)
    return f"{scene.name(path)} made a link to {target}"


def link_checkpoints(rng: random.Random, scene: Scene) -> str:
    step = rng.choice(scene.checkpoints)
    path = rng.choice([scene.run / "checkpoints", step, step / "arrays", step / "arrays" / "d"])
    shutil.rmtree(path)
    target = scene.outside / "run" / "checkpoints"
    if path != scene.run / "checkpoints":
        theirs = rng.choice(sorted(target.glob("[0-9]*")))
        target = theirs / path.relative_to(step)
    path.symlink_to(target)
    return f"{scene.name(path)} made a link to {target}"


def pipe(rng: random.Random, scene: Scene) -> str:
    path = a_place(rng, scene)
    os.mkfifo(path)
    return f"{scene.name(path)} made a pipe"


WANTED = (
    ".lock", ".partial-config.json", ".partial-log", "tensorboard/.partial-log", "checkpoints/.partial-35", "damaged",
    "checkpoints/damaged", "checkpoints/superseded", "damaged/metrics.csv", ".deleted-checkpoints",
)  # fmt: skip


def in_the_way(rng: random.Random, scene: Scene) -> str:
    """Something else has a name that a run needs, to write to or to set aside what is damaged."""
    path = scene.run / rng.choice(WANTED)
    path.parent.mkdir(exist_ok=True)
    kinds: dict[str, Callable[[], Any]] = {
        "a file": path.touch,
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a link to a file": lambda: path.symlink_to(scene.outside / "secret.json"),
        "a link to a folder": lambda: path.symlink_to(scene.outside / "folder"),
    }
    kind = rng.choice(list(kinds))
    kinds[kind]()
    if rng.random() < 0.6:
        (scene.checkpoints[-1] / "meta.json").write_text("{}")
        (scene.run / "metrics.csv").write_text("none\n")
    return f"{scene.name(path)} is {kind}"


# Logs.


def change_logs(rng: random.Random, scene: Scene) -> str:
    what = rng.choice(["long line", "many rows", "step", "columns", "events", "length", "zeros"])
    path = scene.run / "metrics.csv"
    if what in ("events", "length", "zeros"):
        path = rng.choice(sorted((scene.run / "tensorboard").iterdir()))
    data = path.read_bytes()
    changed = {
        "long line": lambda: data + b"9" * (30 * MEGABYTE) + b"\n",
        "many rows": lambda: data + (data.splitlines()[-1] + b"\n") * 200_000,
        "step": lambda: data.replace(b"\n", b"\n" + rng.choice([b"-", b"1e", b"9" * 30, b'"']), 2),
        "columns": lambda: b"step,step,\x00,=1+1\n" + data,
        "events": lambda: data * 50,
        "length": lambda: data[:24] + b"\xff" * 12 + data[36:],
        "zeros": lambda: data + bytes(40 * MEGABYTE),
    }[what]()
    path.write_bytes(changed)
    return f"{scene.name(path)}: {what}"


WAYS: dict[str, list[Way]] = {
    "bytes": [change_bytes, change_bytes, make_large],
    "checkpoint": [
        on_checkpoint(getattr(damage, name))
        for name in (
            "flip_a_bit", "truncate", "empty", "append_bytes", "overwrite", "edit_meta", "edit_meta", "edit_manifest",
        )
    ],
    "swapped": [
        swap_any, from_another_run, from_another_run, rename_checkpoint,
        on_checkpoint(damage.swap_files), on_checkpoint(damage.swap_folders), on_checkpoint(damage.swap_checkpoints),
        on_checkpoint(damage.swap_within), on_checkpoint(damage.rename),
    ],
    "missing": [remove, on_checkpoint(damage.delete)],
    "added": [add_something],
    "another kind": [change_any_kind, on_checkpoint(damage.change_kind)],
    "link": [link, link, link_checkpoints],
    "pipe": [pipe],
    "in the way": [in_the_way],
    "JSON": [edit_any_json, text_of_json, text_of_json, bytes_of_json],
    "arrays described": [describe_arrays],
    "settings": [hyperparameters],
    "names of code": [name_code],
    "names of files": [name_files],
    "logs": [change_logs],
}  # fmt: skip
