"""Training and held-out data that Grain would mix."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from galvanax.errors import DataError

if TYPE_CHECKING:
    from galvanax.datamodules.datamodule import DataModule, Dataset


def check_splits(train: "Dataset", data: "DataModule") -> None:
    """Raises DataError where training would meet held-out examples from its second epoch on.

    Grain shuffles anew each epoch, below a slice too, so `source.shuffle(0)[:80]` is another 80 elements in each.
    """
    pools = list(_reshuffled(train))
    if not pools:
        return
    for name in ("val_dataset", "test_dataset"):
        held = getattr(data, name)()
        if held is not None and any(_same(mine, theirs) for mine in pools for theirs in _reshuffled(held)):
            raise DataError(
                f"{type(data).__name__}.train_dataset and {name} are slices of one shuffled dataset. Grain shuffles it "
                f"anew each epoch, so training would meet the elements of {name}. Slice first, and shuffle the slice: "
                "source[:80].shuffle(seed); for parts in random order, see gx.DataModule.train_dataset."
            )


def _reshuffled(dataset: Any) -> Iterator[Any]:
    """The sources of which the dataset takes another part each epoch."""
    for node in _above(dataset):
        if type(node).__name__ == "SliceMapDataset":
            for below in _above(node):
                if "Shuffle" in type(below).__name__:
                    yield from (root for root in _above(below) if not _parents(root))


def _above(dataset: Any) -> Iterator[Any]:
    """A dataset, and all that it is made of."""
    yield dataset
    for parent in _parents(dataset):
        yield from _above(parent)


def _parents(dataset: Any) -> tuple[Any, ...]:
    return tuple(getattr(dataset, "parents", ()))


def _same(one: Any, other: Any) -> bool:
    """Whether two sources hold the same, by their ends: each call of a DataModule may build its source anew."""
    if one is other:
        return True
    if not len(one) == len(other) > 0:
        return False
    return all(_equal(one[index], other[index]) for index in (0, len(one) // 2, len(one) - 1))


def _equal(one: Any, other: Any) -> bool:
    structures: list[Any] = [jax.tree.structure(tree) for tree in (one, other)]
    if structures[0] != structures[1]:
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(np.asarray(mine), np.asarray(theirs)) for mine, theirs in pairs)
