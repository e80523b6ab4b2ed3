"""What a stranger may write into the JSON of a run folder."""

import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs import test_integrity as damage
from stress.fuzz_scene import MEGABYTE, Scene


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
