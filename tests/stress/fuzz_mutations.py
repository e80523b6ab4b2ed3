"""What somebody or something may do to a run folder: each way gets a random generator and says what it did."""

import dataclasses
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs import test_integrity as damage

from galvanax.runs.checkpoints import CheckpointFolder
from galvanax.runs.integrity import write_manifest

MEGABYTE = 2**20


class Unfit(Exception):
    """A way that has nothing to change here; another is taken."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """Where a mutation happens.

    Attributes:
      run: the folder to change.
      outside: what links may lead to: `secret.txt`, `passwd`, `evil.py`, `folder/` and another run, `run/`.
      marker: what code of the folder would write, were it run.
      others: the folders of other runs, to copy from.
    """

    run: Path
    outside: Path
    marker: Path
    others: tuple[Path, ...]

    @property
    def checkpoints(self) -> list[Path]:
        """The run's, in order."""
        folder = CheckpointFolder(self.run)
        return [folder.path / str(step) for step in folder.steps()]

    def files(self) -> list[Path]:
        """Every file."""
        return sorted(path for path in self.run.rglob("*") if path.is_file() and not path.is_symlink())

    def any_file(self, rng: random.Random) -> Path:
        """A file of a checkpoint, or one of the run's other files; each kind comes up equally often."""
        if rng.random() < 0.6:
            return damage.some_file(rng, rng.choice(self.checkpoints[-2:]))
        return rng.choice([path for path in self.files() if "checkpoints" not in path.parts])

    def any_path(self, rng: random.Random) -> Path:
        """A file or a folder."""
        return self.any_file(rng) if rng.random() < 0.5 else rng.choice(sorted(self.run.rglob("*")))

    def name(self, path: Path) -> str:
        """As seen from the run's folder."""
        return str(path.relative_to(self.run))


Way = Callable[[random.Random, Scene], str]


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
        if kinds[-1:] in (["link"], ["pipe"]):  # another would write through it, or wait
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


# JSON.


def a_json_file(rng: random.Random, scene: Scene) -> Path:
    """Of the run or of its checkpoints; `meta.json` most often."""
    names = ["meta.json", "meta.json", "config.json", "manifest.json", "*", "*"]
    name = rng.choice(names)
    found = [path for path in scene.files() if path.suffix == ".json" or path.name in ("_METADATA", "ocdbt.process_0")]
    found = [path for path in found if name in ("*", path.name)]
    return rng.choice(found)


def edit_any_json(rng: random.Random, scene: Scene) -> str:
    path = a_json_file(rng, scene)
    return f"{scene.name(path.parent)}/{damage.edit_json(rng, path)}"


def text_of_json(rng: random.Random, scene: Scene) -> str:
    path = a_json_file(rng, scene)
    data = json.loads(path.read_text())
    parent, key = a_place_in(rng, data)
    values = {
        "100,000 levels": "[" * 100_000 + "]" * 100_000,
        "100,000 objects": '{"a":' * 100_000 + "0" + "}" * 100_000,
        "200 levels": "[" * 200 + "]" * 200,
        "90 levels": '{"a":' * 90 + "0" + "}" * 90,
        "a number of 31 digits": "1" + "0" * 30,
        "a number of 5,000 digits": "1" + "0" * 5000,
        "2**63": str(2**63),
        "-2**63-1": str(-(2**63) - 1),
        "1e999": "1e999",
        "1e-999": "1e-999",
        "NaN": "NaN",
        "-Infinity": "-Infinity",
        "a marked NaN": '{"__float__": "nan"}',
        "a marked nonsense": '{"__float__": [1]}',
        "a string of 5 MB": json.dumps("x" * 5 * MEGABYTE),
        "a lone surrogate": r'"\ud800"',
        "a control character": r'"\u0000\u001b[2J\n\n"',
        "a list of a million numbers": "[" + "0," * 10**6 + "0]",
        "an object of 100,000 keys": "{" + ",".join(f'"{number}":0' for number in range(100_000)) + "}",
    }
    what = rng.choice(list(values))
    token = "@@HERE@@"
    parent[key] = token
    path.write_text(json.dumps(data).replace(json.dumps(token), values[what]))
    return f"{scene.name(path)}: {key!r} is {what}"


def bytes_of_json(rng: random.Random, scene: Scene) -> str:
    path = a_json_file(rng, scene)
    text = path.read_bytes()
    changes: dict[str, Callable[[], bytes]] = {
        "doubled keys": lambda: text[: text.rindex(b"}")] + b"," + text[text.index(b"{") + 1 :],
        "not UTF-8": lambda: text.replace(b'"', b'"\xff\xfe', 2),
        "a BOM": lambda: b"\xef\xbb\xbf" + text,
        "UTF-16": lambda: text.decode().encode("utf-16"),
        "100 MB of spaces": lambda: text + b" " * (100 * MEGABYTE),
        "a 100 MB string": lambda: b'{"a": "' + b"x" * (100 * MEGABYTE) + b'"}',
        "a comment": lambda: b"// " + text,
    }
    what = rng.choice(list(changes))
    path.write_bytes(changes[what]())
    return f"{scene.name(path)}: {what}"


def a_place_in(rng: random.Random, data: Any) -> tuple[Any, Any]:
    """A container in JSON data, and a key of it."""
    parents = [data]
    for parent in parents:
        children = parent.values() if isinstance(parent, dict) else parent
        parents += [child for child in children if isinstance(child, dict | list) and child]
    parent = data if rng.random() < 0.3 else rng.choice(parents)
    return parent, rng.choice(sorted(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))


def describe_arrays(rng: random.Random, scene: Scene) -> str:
    path = rng.choice(scene.checkpoints) / "meta.json"
    meta = json.loads(path.read_text())
    described = rng.choice(
        [
            "float32[1000000000000]", "float32[1000000000000, 1000000]", "float32[999999999999999]", "float32[-1]",
            "object[3]", "x", "", "float32", "float32[3, 3", "float32[]", "float32[0]", "float64[16]", "int4[3]",
            "str[3]", "key<fry>[2]", "key<nothing>[1]", "complex64[2]", "O[3]", "V8[3]", "M8[3]", "float32[16]" * 1000,
            3, None, [],
        ]
    )  # fmt: skip
    names = sorted(meta["arrays"])
    chosen = names if rng.random() < 0.2 else rng.sample(names, rng.randint(1, 3))
    way = rng.choice(["changed", "added", "renamed"])
    for name in chosen:
        if way == "changed":
            meta["arrays"][name] = described
        elif way == "added":
            meta["arrays"][rng.choice([f"{name}/x", "params/../../x", "slots/Z/0", "", "weights/x"])] = described
        else:
            meta["arrays"][f"{name}_"] = meta["arrays"].pop(name)
    path.write_text(json.dumps(meta))
    return f"{scene.name(path)}: arrays {', '.join(chosen[:3])} {way}: {described!r:.60}"


def hyperparameters(rng: random.Random, scene: Scene) -> str:
    path = rng.choice([scene.run / "config.json", *(one / "meta.json" for one in scene.checkpoints * 2)])
    data = json.loads(path.read_text())
    config = data.get("config", data)
    part = rng.choice(["task", "task", "data", "trainer"])
    name = rng.choice(sorted(config[part]))
    values = [None, "x", -1, 0, 1, 10**6, 10**12, 10**30, 1.5, -0.0, math.nan, True, [], {}, [1] * 10, ["x"], [10**9]]
    value = rng.choice(values)
    config[part][name] = value
    path.write_text(json.dumps(data))
    return f"{scene.name(path)}: {part}.{name} is {value!r:.60}"


# Code.


def write_code(path: Path, scene: Scene) -> None:
    """A Python file that leaves a mark where it is run."""
    path.write_text(f"import pathlib\npathlib.Path({str(scene.marker)!r}).touch()\nexperiment = object()\n")


def name_code(rng: random.Random, scene: Scene) -> str:
    path = rng.choice([scene.run / "config.json", *(one / "meta.json" for one in scene.checkpoints)])
    data = json.loads(path.read_text())
    config = data.get("config", data)
    code = scene.run / "evil.py"
    write_code(code, scene)
    value = rng.choice([f"{code}:experiment", "evil.py:experiment", "evil", "./evil.py:experiment", "evil.Experiment"])
    where = rng.choice(["trainer.name", "task.type", "data.type", "data.system", "callbacks", "trainer.strategy"])
    part, _, field = where.partition(".")
    if field:
        config[part][field] = {"type": value} if field == "strategy" else value
    else:
        for described in config["callbacks"].values():
            described["class"] = value
    path.write_text(json.dumps(data))
    return f"{scene.name(path)}: {where} is {value}"


def name_files(rng: random.Random, scene: Scene) -> str:
    path = scene.run / "config.json"
    data = json.loads(path.read_text())
    strings = [(record, key) for record in _records(data) for key, value in record.items() if isinstance(value, str)]
    record, key = rng.choice(strings)
    waiting = scene.run / "pipe"
    os.mkfifo(waiting)
    record[key] = str(rng.choice([waiting, "/dev/zero", scene.outside / "secret.txt", scene.outside, "../../..", "~"]))
    path.write_text(json.dumps(data))
    return f"config.json: {key} is {record[key]}"


def _records(data: Any) -> list[dict[str, Any]]:
    children = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return ([data] if isinstance(data, dict) else []) + [record for child in children for record in _records(child)]


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
    "JSON": [edit_any_json, text_of_json, text_of_json, bytes_of_json],
    "arrays described": [describe_arrays],
    "settings": [hyperparameters],
    "names of code": [name_code],
    "names of files": [name_files],
    "logs": [change_logs],
}  # fmt: skip
