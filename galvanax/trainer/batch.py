"""What a batch is: a pytree of numeric arrays with one common leading axis."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
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


def batch_spec(batch: Any, name: str) -> Spec:
    """Shape and dtype of each leaf, as jax will hold it: float64 rounded to float32, int64 as int32 (without x64).

    Raises:
      DataError: a leaf is not numeric, has masked entries, or integers that 32 bits don't hold; names it.
    """

    def spec(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf), _held_dtype(leaf, f"{name}{jax.tree_util.keystr(path)}"))

    return jax.tree_util.tree_map_with_path(spec, batch)


def write(place: np.ndarray, array: np.ndarray, name: str) -> None:
    """Writes an array into another of its shape, whose dtype is the one that the first batch decided.

    Raises:
      DataError: the dtype would change values, other than by rounding float64 to float32.
    """
    native, held = array.dtype.newbyteorder("="), place.dtype
    if native.kind in "iu" and held.kind != "b":
        _check_range(array, held, name)
    elif jax.dtypes.canonicalize_dtype(native) != held and not np.can_cast(native, held):
        raise DataError(
            f"{name} has dtype {array.dtype}; the first batch's is held as {held}, which would change values. "
            "Give all batches one dtype: .astype(...)."
        )
    try:
        with np.errstate(over="raise"):
            place[...] = array
    except FloatingPointError:
        bad = array[np.isfinite(array) & ~np.isfinite(place)][0]
        raise DataError(f"{name} holds {bad} ({array.dtype}), beyond {held}'s range{_hint(native, held)}") from None


def _held_dtype(leaf: Any, name: str) -> np.dtype:
    if np.ma.is_masked(leaf):
        raise DataError(f"{name} has masked entries, which a batch can't have: fill them (`.filled(0)`).")
    try:
        array = np.asarray(leaf)
    except TypeError as error:  # a jax key, for one
        raise DataError(f"{name} is {type(leaf).__name__}; expected an array of numbers ({error}).") from None
    number = array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)
    if not number or array.dtype.type in (np.longdouble, np.clongdouble):
        raise DataError(f"{name} has dtype {array.dtype}; expected numbers{' of at most 64 bits' if number else ''}.")
    held = jax.dtypes.canonicalize_dtype(array.dtype.newbyteorder("="))
    if held.kind in "iu" and held.itemsize < array.dtype.itemsize:
        _check_range(array, held, name)
    return held


def _check_range(array: np.ndarray, held: np.dtype, name: str) -> None:
    """Raises DataError where a dtype doesn't hold all of these integers."""
    low, high = _integers(held)
    for value in (int(array.max()), int(array.min())) if array.size else ():
        if not low <= value <= high:
            native = array.dtype.newbyteorder("=")
            raise DataError(
                f"{name} holds {value} ({array.dtype}), beyond what {held} holds exactly: "
                f"{low} to {high}{_hint(native, held)}"
            )


@functools.cache
def _integers(held: np.dtype) -> tuple[int, int]:
    """The least and the greatest integer up to which a dtype holds them all."""
    if held.kind in "iu":
        return int(np.iinfo(held).min), int(np.iinfo(held).max)
    high = 2 ** (jnp.finfo(held).nmant + 1)
    return -high, high


def _hint(native: np.dtype, held: np.dtype) -> str:
    if jax.dtypes.canonicalize_dtype(native) != held:
        return ". Give all batches one dtype: .astype(...)."
    what = "Subtract an offset" if native.kind in "iu" else "Rescale it"
    return f'. {what}, leave it out, or jax.config.update("jax_enable_x64", True).'


def batch_bytes(spec: Spec) -> int:
    """The size of one batch."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(spec))
