"""Checkpoints on disk: `run_dir/checkpoints/STEP/` holds arrays (Orbax), `meta.json` and a manifest of checksums.

A checkpoint is written under a temporary name and renamed when it is whole, so one that has a plain name is complete;
the manifest tells on load whether it is still what was written.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
from flax import nnx
from orbax.checkpoint import v1 as ocp

from galvanax.errors import CheckpointError, nearest
from galvanax.trainer.config import from_json
from galvanax.trainer.state import ModelDef

if TYPE_CHECKING:
    from galvanax.tasks.task import Task

T = TypeVar("T", bound="Task")
Named = dict[str, Any]  # arrays by path: {"params/layers/0/kernel": ...}

META, MANIFEST, ARRAYS = "meta.json", "manifest.json", "arrays"


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
      run_dir: the run's folder.
    """

    def __init__(self, run_dir: str | Path):
        self.path = Path(run_dir) / "checkpoints"

    def steps(self) -> list[int]:
        """The steps with a complete checkpoint, in order."""
        if not self.path.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.path.iterdir() if entry.name.isdigit() and entry.is_dir())

    def find(self, name: str | Path) -> Path:
        """The folder of `"best"`, `"last"`, a step, or a path.

        Raises:
          CheckpointError: there is no such checkpoint.
        """
        steps = self.steps()
        if name in ("best", "last") or str(name).isdigit():
            if not steps:
                raise CheckpointError(f"No checkpoint in {self.path}.")
            step = self.best() if name == "best" else steps[-1] if name == "last" else int(str(name))
            if step not in steps:
                raise CheckpointError(f"No checkpoint of step {step} in {self.path}; there are {steps}.")
            return self.path / str(step)
        if not (Path(name) / META).is_file():
            raise CheckpointError(
                f"{name} is no checkpoint: it has no {META}. Expected a folder such as {self.path / 'STEP'}, "
                f'or one of "best", "last", {", ".join(map(str, steps)) or "(none saved yet)"}.'
            )
        return Path(name)

    def best(self) -> int:
        """The step whose monitored metric is the best; the last step where none was monitored."""
        ranked = self.ranked()
        return ranked[0] if ranked else self.steps()[-1]

    def ranked(self) -> list[int]:
        """The steps that have a monitored metric, best first; of equals, the earlier first."""
        scored = []
        for step in self.steps():
            monitor = read_meta(self.path / str(step)).get("monitor")
            if monitor and monitor["value"] is not None:
                scored.append((monitor["value"] if monitor["mode"] == "min" else -monitor["value"], step))
        return [step for _, step in sorted(scored)]

    def save(self, step: int, arrays: Named, meta: dict[str, Any]) -> Path:
        """Writes a checkpoint whole, or leaves none. An older one of the same step is replaced."""
        final, partial = self.path / str(step), self.path / f".partial-{step}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        ocp.save(partial.absolute() / ARRAYS, arrays)
        described = {name: _describe(leaf) for name, leaf in arrays.items()}
        (partial / META).write_text(json.dumps({"step": step, **meta, "arrays": described}, indent=1))
        (partial / MANIFEST).write_text(json.dumps(_checksums(partial), indent=1))
        self.remove(step)
        os.replace(partial, final)
        return final

    def remove(self, step: int) -> None:
        """Deletes a checkpoint; renamed first, so that a half-deleted one is never taken for a whole one."""
        folder, doomed = self.path / str(step), self.path / f".deleted-{step}"
        shutil.rmtree(doomed, ignore_errors=True)
        if folder.exists():
            os.replace(folder, doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def read_meta(folder: Path) -> dict[str, Any]:
    """A checkpoint's `meta.json`.

    Raises:
      CheckpointError: it is missing or not JSON.
    """
    try:
        return json.loads((folder / META).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / META} cannot be read: {error}") from error


def verify(folder: Path) -> None:
    """Compares every file of a checkpoint with the manifest.

    Raises:
      CheckpointError: files are missing, altered or added; names them.
    """
    try:
        expected = json.loads((folder / MANIFEST).read_text())
        found = _checksums(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is damaged: {MANIFEST} cannot be checked: {error}") from error
    if found == expected:
        return
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    kinds = {name: "missing" if name not in found else "added" if name not in expected else "altered" for name in names}
    raise CheckpointError(f"{folder} is damaged: " + ", ".join(f"{name} {kind}" for name, kind in kinds.items()) + ".")


def load_arrays(folder: Path, wanted: Named) -> Named:
    """Reads the wanted arrays of a verified checkpoint onto their shardings.

    Args:
      folder: the checkpoint.
      wanted: `jax.ShapeDtypeStruct`s by path.

    Raises:
      CheckpointError: the checkpoint is damaged, or its arrays are others; names those that differ.
    """
    verify(folder)
    saved = read_meta(folder)["arrays"]
    wrong = [
        f"{name}: expected {_describe(leaf)}, " + (f"saved {saved[name]}" if name in saved else "not in the checkpoint")
        for name, leaf in wanted.items()
        if saved.get(name) != _describe(leaf)
    ]
    if wrong:
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise CheckpointError(f"{folder} does not fit this task: " + "; ".join(wrong[:5]) + more + ".")
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        return ocp.load(folder.absolute() / ARRAYS, wanted)


def check_task(folder: Path, task_type: str) -> dict[str, Any]:
    """The checkpoint's task configuration.

    Raises:
      CheckpointError: it is of another task.
    """
    config = read_meta(folder)["config"]["task"]
    if config["type"] != task_type:
        raise CheckpointError(f"{folder} is a checkpoint of {config['type']}, not of {task_type}.")
    return config


def weight_names(folder: Path) -> tuple[str, str]:
    """The path prefixes under which a checkpoint keeps the evaluation parameters and the model's variables."""
    return ("weights/" if read_meta(folder)["averaged"] else "params/"), "variables/"


def load_model(definition: ModelDef, folder: Path) -> nnx.Module:
    """The model of a checkpoint, with evaluation weights, in evaluation mode."""
    prefixes = weight_names(folder)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(definition.init, jax.eval_shape(lambda: jax.random.key(0)))
    wanted = {
        prefix + name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for prefix, leaves in zip(prefixes, shapes, strict=True)
        for name, leaf in leaves.items()
    }
    arrays = load_arrays(folder, wanted)
    params, variables = (
        {name: arrays[prefix + name] for name in leaves} for prefix, leaves in zip(prefixes, shapes, strict=True)
    )
    return definition.merge(params, variables)


def load_weights(cls: type[T], run_dir: str | Path, checkpoint: str | Path) -> tuple[T, nnx.Module]:
    """See `Task.load`."""
    if not Path(run_dir).is_dir():
        parent = Path(run_dir).parent
        others = [str(entry) for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
        raise CheckpointError(f"There is no run folder {run_dir}.{nearest(str(run_dir), others)}")
    folder = CheckpointFolder(run_dir).find(checkpoint)
    task = from_json(cls, check_task(folder, cls.__name__), str(folder / META))
    return task, load_model(ModelDef(task.build_model), folder)


def name_leaves(tree: Any) -> Named:
    """A pytree's leaves by path, `{"opt_state/0/mu/layers/0/kernel": ...}`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _checksums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST:
            with path.open("rb") as file:
                sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums
