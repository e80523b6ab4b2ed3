"""What a batch is: a pytree of numeric arrays with one common leading axis."""

from typing import Any

import jax
import numpy as np

from galvanax.errors import DataError

Spec = Any  # a pytree of jax.ShapeDtypeStruct


def count_rows(arrays: Any, name: str) -> int:
    """The common length of a pytree of arrays.

    Raises:
      DataError: there is no array, one has no leading axis, they have no rows, or the lengths differ; names them.
    """
    leaves = [
        (jax.tree_util.keystr(path), np.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    ]
    if not leaves:
        raise DataError(f"{name} holds no array: {arrays!r}.")
    for path, shape in leaves:
        if not shape:
            raise DataError(f"{name}{path} is a scalar; expected an array (rows, ...).")
    lengths = {shape[0] for _, shape in leaves}
    if len(lengths) > 1:
        raise DataError(
            f"{name}'s arrays disagree in length: "
            + ", ".join(f"{path} has {shape[0]}" for path, shape in leaves)
            + "."
        )
    rows = lengths.pop()
    if rows == 0:
        raise DataError(f"{name} has no rows.")
    return rows


def batch_spec(batch: Any) -> Spec:
    """Shape and dtype of each leaf, as jax will hold it.

    Raises:
      DataError: a leaf is not numeric.
    """

    def spec(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        array = np.asarray(leaf)
        if array.dtype == object or array.dtype.kind in "USMm":
            raise DataError(f"Batch leaf {jax.tree_util.keystr(path)} has dtype {array.dtype}; expected numbers.")
        return jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype))

    return jax.tree_util.tree_map_with_path(spec, batch)


def batch_bytes(spec: Spec) -> int:
    """The size of one batch."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(spec))
