"""Checkpoints on disk: `run_dir/checkpoints/STEP/` holds arrays (Orbax), `meta.json` and a manifest of checksums.

A checkpoint is written under a temporary name and renamed when it is whole, so one that has a plain name is complete;
the manifest tells on load whether it is still what was written.
"""

import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from galvanax.errors import CheckpointError, ProcessError, nearest
from galvanax.trainer import processes
from galvanax.trainer.config import from_json
from galvanax.trainer.state import ModelDef

if TYPE_CHECKING:
    from galvanax.tasks.task import Task

log = logging.getLogger("galvanax")

T = TypeVar("T", bound="Task")
Named = dict[str, Any]  # arrays by path: {"params/layers/0/kernel": ...}

META, MANIFEST, ARRAYS = "meta.json", "manifest.json", "arrays"
SMALL = 2**20  # bytes


@dataclasses.dataclass(frozen=True)
class Entry:
    """What decides whether a checkpoint is kept.

    Attributes:
      step: its step.
      score: its monitored metric, turned so that less is better; None where it has none.
      permanent: kept for good.
    """

    step: int
    score: float | None = None
    permanent: bool = False


def retained(entries: list[Entry], keep_last: int | None, keep_best: int) -> set[int]:
    """The steps to keep: the newest, the best (of equals, the earlier), and the permanent ones."""
    steps = sorted(entry.step for entry in entries)
    newest = steps if keep_last is None else steps[-keep_last:]
    scored = sorted((entry.score, entry.step) for entry in entries if entry.score is not None)
    return {*newest, *(step for _, step in scored[:keep_best]), *(entry.step for entry in entries if entry.permanent)}


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

    def entries(self) -> list[Entry]:
        """The complete checkpoints, in order."""
        return [_entry(self.path / str(step)) for step in self.steps()]

    def find(self, name: str | Path) -> Path:
        """The folder of `"best"`, `"last"`, a step, or a path.

        Raises:
          CheckpointError: there is no such checkpoint.
        """
        steps = self.steps()
        if name in ("best", "last") or str(name).isdigit():
            if not steps:
                raise CheckpointError(f"No checkpoint in {self.path}.")
            step = self._best() if name == "best" else steps[-1] if name == "last" else int(str(name))
            if step not in steps:
                raise CheckpointError(f"No checkpoint of step {step} in {self.path}; there are {steps}.")
            return self.path / str(step)
        if not (Path(name) / META).is_file():
            raise CheckpointError(
                f"{name} is no checkpoint: it has no {META}. Expected a folder such as {self.path / 'STEP'}, "
                f'or one of "best", "last", {", ".join(map(str, steps)) or "(none saved yet)"}.'
            )
        return Path(name)

    def newest_intact(self) -> Path | None:
        """The newest checkpoint whose checksums hold; the damaged ones before it are named in warnings."""
        for step in reversed(self.steps()):
            try:
                verify(self.path / str(step))
                return self.path / str(step)
            except CheckpointError as error:
                log.warning("%s", error)
        return None

    def save(self, step: int, arrays: Named, meta: dict[str, Any]) -> None:
        """Writes a checkpoint whole, or leaves none. An older one of the same step is replaced.

        Several processes call this together. Process 0 does what is not an array's.

        Raises:
          CheckpointError: it could not be written; names the folder and the reason.
        """
        final, partial = self.path / str(step), self.path / f".partial-{step}"
        try:
            processes.from_main("checkpoint: folder", lambda: _make_anew(partial))
            processes.each("checkpoint: arrays", lambda: _write_arrays(partial / ARRAYS, arrays))
            described = {name: _describe(leaf) for name, leaf in arrays.items()}
            whole = {"step": step, **meta, "arrays": described}
            processes.from_main("checkpoint: rest", lambda: self._complete(partial, final, whole))
        except ProcessError:
            raise
        except Exception as error:  # Orbax and tensorstore wrap the system's errors in several of their own
            if processes.is_main():
                shutil.rmtree(partial, ignore_errors=True)
            reason = _reason(error) if self.path.is_dir() else "the folder was removed"
            raise CheckpointError(f"Step {step} could not be saved to {self.path}: {reason}") from error

    def remove(self, step: int) -> None:
        """Deletes a checkpoint; renamed first, so that a half-deleted one is never taken for a whole one."""
        folder, doomed = self.path / str(step), self.path / f".deleted-{step}"
        shutil.rmtree(doomed, ignore_errors=True)
        if folder.exists():
            os.replace(folder, doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def prepare(self, step: int) -> None:
        """Makes the folder ready for a run that starts at `step`.

        Clears what a kill left half-done, and the intact checkpoints of later steps, which belong to a future that
        this run will not have. Damaged ones are set aside as `damaged-STEP`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in (*self.path.glob(".partial-*"), *self.path.glob(".deleted-*")):
            shutil.rmtree(leftover, ignore_errors=True)
        for later in (other for other in self.steps() if other > step):
            try:
                verify(self.path / str(later))
                self.remove(later)
            except CheckpointError:
                aside = self.path / f"damaged-{later}"
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(self.path / str(later), aside)

    def _complete(self, partial: Path, final: Path, meta: dict[str, Any]) -> None:
        (partial / META).write_text(json.dumps(meta, indent=1))
        (partial / MANIFEST).write_text(json.dumps(_checksums(partial), indent=1))
        self.remove(meta["step"])
        os.replace(partial, final)

    def _best(self) -> int:
        scored = [(entry.score, entry.step) for entry in self.entries() if entry.score is not None]
        return min(scored)[1] if scored else self.steps()[-1]


def read_meta(folder: Path) -> dict[str, Any]:
    """A checkpoint's `meta.json`.

    Raises:
      CheckpointError: it is missing or not a JSON object.
    """
    try:
        meta = json.loads((folder / META).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is damaged: {META} cannot be read: {error}") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{folder} is damaged: {META} holds no object.")
    return meta


def verify(folder: Path) -> None:
    """Compares every file of a checkpoint with the manifest.

    Raises:
      CheckpointError: files are missing, altered or added; names them, and the newest intact checkpoint beside it.
    """
    try:
        expected = json.loads((folder / MANIFEST).read_text())
        found = _checksums(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is damaged: {MANIFEST} cannot be checked: {error}.") from error
    if found == expected:
        step = read_meta(folder)["step"]
        if folder.name.isdigit() and step != int(folder.name):
            raise CheckpointError(f"{folder} is damaged: it holds the checkpoint of step {step}.")
        return
    if not isinstance(expected, dict):
        raise CheckpointError(f"{folder} is damaged: {MANIFEST} holds no object.")
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    kinds = {name: "missing" if name not in found else "added" if name not in expected else "altered" for name in names}
    raise CheckpointError(f"{folder} is damaged: " + ", ".join(f"{name} {kind}" for name, kind in kinds.items()) + ".")


def verified_meta(folder: Path) -> dict[str, Any]:
    """`meta.json` of a checkpoint whose files are all as written.

    Raises:
      CheckpointError: it is damaged; the newest intact checkpoint of the same run is offered.
    """
    try:
        verify(folder)
    except CheckpointError as error:
        others = CheckpointFolder(folder.parent.parent)
        intact = others.newest_intact() if others.path == folder.parent else None
        offer = f' The newest intact one is {intact}: name it, or resume="auto".' if intact else ""
        raise CheckpointError(f"{error}{offer}") from error
    return read_meta(folder)


def load_arrays(folder: Path, wanted: Named) -> Named:
    """Reads the wanted arrays of a checkpoint onto their shardings.

    Args:
      folder: the checkpoint.
      wanted: `jax.ShapeDtypeStruct`s by path.

    Raises:
      CheckpointError: the checkpoint is damaged, or its arrays are others; names those that differ.
    """
    return read_arrays(folder, verified_meta(folder), wanted)


def read_arrays(folder: Path, meta: dict[str, Any], wanted: Named) -> Named:
    """As `load_arrays`, of a checkpoint that gave `meta` as its `verified_meta`."""
    saved = meta["arrays"]
    wrong = [
        f"{name}: expected {_describe(leaf)}, " + (f"saved {saved[name]}" if name in saved else "not in the checkpoint")
        for name, leaf in wanted.items()
        if saved.get(name) != _describe(leaf)
    ]
    if wrong:
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise CheckpointError(f"{folder} does not fit this task: " + "; ".join(wrong[:5]) + more + ".")
    from orbax.checkpoint import v1 as ocp

    context = _context([leaf.sharding for leaf in wanted.values()])
    context.pytree.loading.partial_load = True
    empty = {
        name: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding) for name, leaf in wanted.items() if not leaf.size
    }
    with context:
        full = {name: leaf for name, leaf in wanted.items() if leaf.size}
        return {**ocp.load(folder.absolute() / ARRAYS, full), **empty}


def check_task(folder: Path, meta: dict[str, Any], task_type: str) -> dict[str, Any]:
    """The task's configuration in a checkpoint's `meta`.

    Raises:
      CheckpointError: it is of another task.
    """
    config = meta["config"]["task"]
    if config["type"] != task_type:
        raise CheckpointError(f"{folder} is a checkpoint of {config['type']}, not of {task_type}.")
    return config


def weight_names(meta: dict[str, Any], averaged: bool = True) -> tuple[str, str]:
    """The path prefixes under which a checkpoint keeps parameters (averaged ones, where wanted) and variables."""
    return ("weights/" if meta["averaged"] and averaged else "params/"), "variables/"


def load_model(definition: ModelDef, folder: Path, meta: dict[str, Any], averaged: bool = True) -> nnx.Module:
    """The model of a checkpoint with this `verified_meta`, in evaluation mode; with evaluation weights, if wanted."""
    prefixes = weight_names(meta, averaged)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(definition.init, jax.eval_shape(lambda: jax.random.key(0)))
    wanted = {
        prefix + name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for prefix, leaves in zip(prefixes, shapes, strict=True)
        for name, leaf in leaves.items()
    }
    arrays = read_arrays(folder, meta, wanted)
    params, variables = (
        {name: arrays[prefix + name] for name in leaves} for prefix, leaves in zip(prefixes, shapes, strict=True)
    )
    return definition.merge(params, variables)


def load_weights(cls: type[T], run_dir: str | Path, checkpoint: str | Path, averaged: bool) -> tuple[T, nnx.Module]:
    """See `Task.load`."""
    if not Path(run_dir).is_dir():
        parent = Path(run_dir).parent
        others = [str(entry) for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
        raise CheckpointError(f"There is no run folder {run_dir}.{nearest(str(run_dir), others)}")
    folder = CheckpointFolder(run_dir).find(checkpoint)
    meta = verified_meta(folder)
    task = from_json(cls, check_task(folder, meta, cls.__name__), str(folder / META))
    return task, load_model(ModelDef(task.build_model), folder, meta, averaged)


def name_leaves(tree: Any) -> Named:
    """A pytree's leaves by path, `{"opt_state/0/mu/layers/0/kernel": ...}`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _write_arrays(path: Path, arrays: Named) -> None:
    # Imported here: Orbax takes half a second, which the first training step need not wait for.
    from orbax.checkpoint import v1 as ocp

    def small(leaf: Any) -> bool:
        plain = not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return plain and leaf.nbytes <= SMALL and leaf.is_fully_addressable

    # Orbax's cost for a small array is all overhead, and half of that for a host array.
    # It refuses arrays with no entries, which need no saving.
    full = {name: leaf for name, leaf in arrays.items() if leaf.size}
    ocp.save(path.absolute(), {name: np.asarray(leaf) if small(leaf) else leaf for name, leaf in full.items()})


def _context(shardings: list[Any]) -> Any:
    """Orbax's settings: what is this process's alone, it reads without waiting for the others."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    if processes.count() > 1 and all(sharding.is_fully_addressable for sharding in shardings):
        me = processes.index()
        context.multiprocessing.primary_host, context.multiprocessing.active_processes = me, {me}
        context.multiprocessing.barrier_sync_key_prefix = f"process{me}"
    return context


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _reason(error: Exception) -> str:
    """The system's own words where there are some: tensorstore's messages fill a page."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _entry(folder: Path) -> Entry:
    try:
        meta = read_meta(folder)
        monitor = meta["monitor"] or {"value": None, "mode": None}
        score = None if monitor["value"] is None else float(monitor["value"])
        if score is not None and monitor["mode"] == "max":
            score = -score
        return Entry(int(folder.name), score, bool(meta["permanent"]))
    except (CheckpointError, KeyError, TypeError, ValueError):
        return Entry(int(folder.name))  # damaged: no score, so never the best; loading it says why


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _checksums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST:
            with path.open("rb") as file:
                sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums
