"""A model's weights on disk, for whoever has no use for the rest of a run: in a checkpoint, or in one safetensors file.

The file names its arrays as a checkpoint does (`params/layers/0/kernel`, `variables/norm/mean`). Its metadata are JSON:
the task's configuration, the step, package versions, the last row that was logged, and a checksum of each array.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from galvanax.errors import CheckpointError, ConfigError, DataError, nearest
from galvanax.files import load_json, partial_file
from galvanax.runs.arrays import describe, parse, read_arrays
from galvanax.runs.checkpoint_meta import CheckpointMeta
from galvanax.runs.checkpoints import CheckpointFolder, verified_meta
from galvanax.runs.history import read_history
from galvanax.runs.integrity import MANIFEST, META, DamagedError
from galvanax.runs.run_folder import run_path
from galvanax.trainer.state import ModelDef

PARAMS, VARIABLES = "params/", "variables/"
# What safetensors can both write from numpy and read to it.
DTYPES = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "float16", "bfloat16", "float32", "float64", "complex64",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights that evaluation uses, on the host.

    Attributes:
      source: where they were read.
      params: parameters by path, `{"layers/0/kernel": ...}`; averaged ones where the run averaged.
      variables: the model's other arrays by path.
      meta: `"task"` (its configuration), `"step"`, `"versions"` and `"history"` (its last row), as JSON data.
    """

    source: Path
    params: dict[str, np.ndarray]
    variables: dict[str, np.ndarray]
    meta: dict[str, Any]


def read_weights(source: str | Path, checkpoint: str | Path = "best") -> Weights:
    """Reads and verifies weights.

    Args:
      source: a run's folder, a checkpoint's folder, or a file written by `export_safetensors`.
      checkpoint: of a run's folder: `"best"`, `"last"` or a step.

    Raises:
      CheckpointError: there is no such thing, or it is damaged.
    """
    path = run_path(source)
    return _read_file(path) if path.is_file() else _read_checkpoint(_find_checkpoint(path, checkpoint))


def write_weights(path: Path, weights: Weights) -> None:
    """Writes a safetensors file whole, or leaves what was there.

    Raises:
      ConfigError: an array is of a type that the format does not have, or nothing can be written there.
    """
    arrays = {PARAMS + name: array for name, array in weights.params.items()}
    arrays |= {VARIABLES + name: array for name, array in weights.variables.items()}
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES:
            raise ConfigError(f"{name} is {describe(array)}; a safetensors file can hold {', '.join(DTYPES)}.")
    metadata = {**weights.meta, "checksums": {name: _checksum(array) for name, array in arrays.items()}}
    try:
        with partial_file(path) as partial:
            save_file(arrays, partial, {name: json.dumps(value) for name, value in metadata.items()})
    except (SafetensorError, DataError) as error:
        raise ConfigError(f"{path} cannot be written: {error.__cause__ or error}") from error


def weight_names(meta: CheckpointMeta, averaged: bool = True) -> tuple[str, str]:
    """The path prefixes under which a checkpoint keeps parameters (averaged ones, where wanted) and variables."""
    return ("weights/" if meta.averaged and averaged else PARAMS), VARIABLES


def load_model(definition: ModelDef, folder: Path, meta: CheckpointMeta, averaged: bool = True) -> nnx.Module:
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


def _find_checkpoint(source: Path, checkpoint: str | Path) -> Path:
    if (source / META).is_file() or (source / MANIFEST).is_file():
        return source
    if not source.is_dir():
        others = [str(entry) for entry in source.parent.iterdir()] if source.parent.is_dir() else []
        raise CheckpointError(f"There is no run folder, checkpoint or file {source}.{nearest(str(source), others)}")
    return CheckpointFolder(source).find(checkpoint)


def _read_checkpoint(folder: Path) -> Weights:
    meta = verified_meta(folder)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    prefixes = weight_names(meta)
    try:
        wanted = {
            name: parse(described, sharding) for name, described in meta.arrays.items() if name.startswith(prefixes)
        }
    except ValueError as error:
        raise DamagedError(f"{folder} is damaged: {META}: {error}.") from error
    loaded = read_arrays(folder, meta, wanted)
    # In C order, which is all that safetensors can write and which a device's layout need not be.
    arrays = {name: np.array(array, order="C") for name, array in loaded.items()}
    params, variables = (_below(prefix, arrays) for prefix in prefixes)
    last = read_history(folder)[-1:]
    about = {"task": meta.config["task"], "step": meta.step, "versions": meta.versions, "history": last}
    return Weights(folder, params, variables, about)


def _read_file(path: Path) -> Weights:
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        meta = {name: load_json(metadata[name]) for name in ("task", "step", "versions", "history", "checksums")}
        expected = dict(meta.pop("checksums"))
    except KeyError as error:
        raise CheckpointError(f"{path} was not written by `galvanax export`: its metadata lack {error}.") from error
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged, or no safetensors file: {error}") from error
    found = {name: _checksum(array) for name, array in arrays.items()}
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        raise CheckpointError(f"{path} is damaged: {', '.join(wrong[:5])} altered ({len(wrong)} in all).")
    return Weights(path, _below(PARAMS, arrays), _below(VARIABLES, arrays), meta)


def _below(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _checksum(array: np.ndarray) -> str:
    return hashlib.sha256(describe(array).encode() + array.tobytes()).hexdigest()
