"""A checkpoint's arrays: Orbax's files, and what is asked of them."""

import contextlib
import gc
import glob
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath.gpath import PosixGPath

from galvanax.errors import CheckpointError
from galvanax.files import format_bytes
from galvanax.runs.checkpoint_meta import CheckpointMeta
from galvanax.runs.integrity import DamagedError
from galvanax.trainer import processes

log = logging.getLogger("galvanax")

Named = dict[str, Any]  # arrays by path: {"params/layers/0/kernel": ...}

ARRAYS = "arrays"
SMALL = 2**20  # bytes
# Zeros shrink to next to nothing on the disk; more than this only where somebody means harm.
LARGEST_UNPROVEN, LARGEST_RATIO = 2**30, 2000


def name_leaves(tree: Any) -> Named:
    """A pytree's leaves by path, `{"opt_state/0/mu/layers/0/kernel": ...}`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def describe(array: Any) -> str:
    """An array's type and shape, `"float32[3, 16]"`."""
    return f"{array.dtype}{list(array.shape)}"


def parse(described: str, sharding: Any = None) -> jax.ShapeDtypeStruct:
    """The array that `describe` described.

    Raises:
      ValueError: it describes none.
    """
    match = re.fullmatch(r"([a-z0-9_<>]+)\[((?:\d{1,15}(?:, \d{1,15})*)?)\]", described)
    if match is None:
        raise ValueError(f"{described!r:.60} describes no array")
    shape = tuple(int(size) for size in match[2].split(", ")) if match[2] else ()
    try:
        return jax.ShapeDtypeStruct(shape, _dtype(match[1]), sharding=sharding)
    except TypeError as error:
        raise ValueError(f"{described!r:.60} describes no array: {error}") from error


def write_arrays(folder: Path, arrays: Named) -> None:
    """Writes arrays to a checkpoint's folder; all processes together."""
    # Imported here: Orbax takes half a second, which the first training step need not wait for.
    from orbax.checkpoint import v1 as ocp

    def small(leaf: Any) -> bool:
        plain = not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return plain and leaf.nbytes <= SMALL and leaf.is_fully_addressable

    # Orbax's cost for a small array is all overhead, and half of that for a host array.
    # It refuses arrays with no entries, which need no saving.
    full = {name: np.asarray(leaf) if small(leaf) else leaf for name, leaf in arrays.items() if leaf.size}
    with _hushed("absl", "raised an exception"):  # each error once for each thread that it passes, a page each time
        ocp.save(_literal(folder / ARRAYS), full)


def read_arrays(folder: Path, meta: CheckpointMeta, wanted: Named) -> Named:
    """Reads the wanted arrays of a checkpoint onto their shardings.

    Args:
      folder: the checkpoint, which `verify` has found as it was written.
      meta: what that gave.
      wanted: `jax.ShapeDtypeStruct`s by path.

    Raises:
      CheckpointError: the checkpoint has other arrays; names those that differ.
    """
    check_fit(folder, meta, wanted)
    check_size(folder, wanted)
    from orbax.checkpoint import v1 as ocp

    context = _context([leaf.sharding for leaf in wanted.values()])
    context.pytree.loading.partial_load = True
    empty = {
        name: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding) for name, leaf in wanted.items() if not leaf.size
    }
    full = {name: leaf for name, leaf in wanted.items() if leaf.size}
    if not full:
        return empty
    reason = None
    with _hushed("asyncio", "exception was never retrieved"):  # of the arrays beside the one that is reported
        try:
            with context:
                found = ocp.load(_literal(folder / ARRAYS), full)
        except Exception as error:  # Orbax and tensorstore have many; which is no use to a user
            reason = reason_of(error)
            log.debug("%s can't be read", folder, exc_info=True)
        if reason is not None:
            gc.collect()  # here, since asyncio speaks when what it holds goes
            raise DamagedError(f"{folder} can't be read: {reason}.")
    for name, leaf in full.items():  # what its files lack, Orbax leaves as it was asked for
        if not isinstance(found.get(name), jax.Array) or describe(found[name]) != describe(leaf):
            raise DamagedError(f"{folder} is damaged: its arrays lack {name}, {describe(leaf)}.")
    return {**found, **empty}


def check_fit(folder: Path, meta: CheckpointMeta, wanted: Named) -> None:
    """Raises CheckpointError where a checkpoint has not the wanted arrays; names those that differ."""
    wrong = [
        f"{name}: expected {describe(leaf)}, "
        + (f"saved {meta.arrays[name]}" if name in meta.arrays else "not in the checkpoint")
        for name, leaf in wanted.items()
        if meta.arrays.get(name) != describe(leaf)
    ]
    if wrong:
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise CheckpointError(f"{folder} does not fit this task: " + "; ".join(wrong[:5]) + more + ".")


def check_size(folder: Path, wanted: Named) -> None:
    """Raises DamagedError where arrays are said to be larger than their files could ever hold."""
    said = sum(leaf.size * leaf.dtype.itemsize for leaf in wanted.values())
    files = sum(path.stat().st_size for path in (folder / ARRAYS).rglob("*") if path.is_file())
    if said > max(LARGEST_UNPROVEN, LARGEST_RATIO * files):
        raise DamagedError(
            f"{folder} is damaged: its arrays are said to have {format_bytes(said)}, in files of {format_bytes(files)}."
        )


def check_readable(folder: Path, arrays: Named) -> None:
    """Reads the smallest array of a checkpoint just written, as whoever loads it later will; on this process alone.

    Raises:
      CheckpointError: it can't be read, or is another one.
    """
    from orbax.checkpoint import v1 as ocp

    name = min((name for name, leaf in arrays.items() if leaf.size), key=lambda name: arrays[name].nbytes, default=None)
    if name is None:
        return
    leaf, sharding = arrays[name], jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    context = _context([sharding])
    context.pytree.loading.partial_load = True
    with context:
        wanted = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)}
        found = ocp.load(_literal(folder / ARRAYS), wanted)[name]
    if leaf.is_fully_addressable and _bytes(found) != _bytes(leaf):
        raise CheckpointError(f"{name} reads otherwise than it was written")


def reason_of(error: BaseException) -> str:
    """The system's own words where there are some: tensorstore's messages fill a page."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.strerror:
            return one.strerror
        if code := re.search(r"os_error_code='(\d+)'", str(one)):
            return os.strerror(int(code[1]))
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        yield from getattr(error, "exceptions", ())
        error = error.__cause__ or error.__context__


class _LiteralPath(PosixGPath):
    """A path whose own brackets and stars are not taken for a pattern: Orbax looks for its files by `path.glob`."""

    def glob(self, pattern: str) -> Iterator[Any]:
        """Yields the files below this folder that match."""
        for found in self._backend.glob(self._PATH.join(glob.escape(self._path_str), pattern)):
            yield self._new(found)


def _literal(path: Path) -> _LiteralPath:
    return _LiteralPath(path.absolute())


@contextlib.contextmanager
def _hushed(logger: str, words: str) -> Iterator[None]:
    """Leaves out what Orbax has others log about an error that it raises as well."""

    def differs(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    logging.getLogger(logger).addFilter(differs)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(differs)


def _context(shardings: list[Any]) -> Any:
    """Orbax's settings: what is this process's alone, it reads without waiting for the others."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    if processes.count() > 1 and all(sharding.is_fully_addressable for sharding in shardings):
        me = processes.index()
        context.multiprocessing.primary_host, context.multiprocessing.active_processes = me, {me}
        context.multiprocessing.barrier_sync_key_prefix = f"process{me}"
    return context


def _dtype(name: str) -> Any:
    return jax.random.key(0).dtype if name.startswith("key<") else jnp.dtype(name)


def _bytes(array: Any) -> bytes:
    plain = jax.random.key_data(array) if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key) else array
    return np.asarray(plain).tobytes()
