"""From host arrays to devices, some of which may be other processes', and back."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding


def put(tree: Any, shardings: Any) -> Any:
    """`jax.device_put` that also serves devices of several processes, each of which holds the same values.

    It compares nothing between the processes, as jax's own would, and moves only what this process's devices hold.

    Args:
      tree: a pytree of arrays.
      shardings: of its leaves, or of its subtrees.
    """
    return jax.tree.map(
        lambda sharding, part: jax.tree.map(lambda leaf: _put(leaf, sharding), part),
        shardings,
        tree,
        is_leaf=lambda node: isinstance(node, Sharding),
    )


def rows_here(sharding: Sharding, shape: tuple[int, ...], axis: int = 1) -> slice:
    """The rows that this process's devices hold of an array, from the first to the last, along an axis."""
    bounds = [
        index[axis].indices(shape[axis]) for index in sharding.addressable_devices_indices_map(shape).values() if index
    ]
    return slice(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))


def put_rows(rows: np.ndarray, first: int, shape: tuple[int, ...], sharding: Sharding, axis: int = 1) -> jax.Array:
    """An array of which this process has its own rows alone.

    Args:
      rows: of which `rows_here` speaks.
      first: the first of them in the whole array.
      shape: of the whole array.
      sharding: of the whole array.
      axis: which the rows are along.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(rows, sharding)

    def here(index: Any) -> np.ndarray:
        start, stop, _ = index[axis].indices(shape[axis])
        return rows[(*index[:axis], slice(start - first, stop - first), *index[axis + 1 :])]

    return _assemble({device: here(index) for device, index in _indices(sharding, shape)}, shape, sharding)


def local(tree: Any) -> Any:
    """Arrays that this process alone can compute with: whole, on its first device. Every process must come here."""
    return jax.tree.map(_local, tree)


def _put(leaf: Any, sharding: Sharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf if leaf.sharding == sharding else jax.jit(lambda x: x, out_shardings=sharding)(leaf)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        assert sharding.is_fully_replicated
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    array = np.asarray(leaf)
    parts = {device: array[index] for device, index in _indices(sharding, array.shape)}
    return _assemble(parts, array.shape, sharding)


def _indices(sharding: Sharding, shape: tuple[int, ...]) -> Any:
    return sharding.addressable_devices_indices_map(shape).items()


def _assemble(parts: dict[Any, np.ndarray], shape: tuple[int, ...], sharding: Sharding) -> jax.Array:
    arrays = jax.device_put(list(parts.values()), list(parts))
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _local(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    if not leaf.is_fully_replicated:
        mesh = leaf.sharding.mesh  # type: ignore[attr-defined]
        leaf = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(leaf)
    return leaf.addressable_data(0)
