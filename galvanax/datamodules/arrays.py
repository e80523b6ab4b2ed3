"""Arrays in memory as batches."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np

from galvanax.datamodules.datamodule import DataModule
from galvanax.errors import DataError
from galvanax.settings import check_counts
from galvanax.trainer.batch import batch_spec, count_rows

Arrays = Any  # a pytree of arrays (rows, ...)


@dataclasses.dataclass
class ArrayDataModule(DataModule):
    """Equally long arrays, cut into batches of rows; the training rows are shuffled anew each epoch.

    The rows that fill no whole training batch are left out of that epoch (another few in each, as the order changes);
    evaluation sees every row.

    Attributes:
      train: a pytree of arrays `(rows, ...)`. float64 is rounded to float32; int64 is held in 32 bits, or refused where
        they don't suffice (without `jax_enable_x64`).
      val: the same for validation.
      test: the same for testing.
      batch_size: rows a batch, over all devices.
    """

    train: Arrays
    val: Arrays = None
    test: Arrays = None
    batch_size: int = 128

    def setup(self) -> None:
        """Checks that the arrays agree in length, suffice for a batch, and hold numbers that jax can hold."""
        check_counts(self, "batch_size")
        for split in ("train", "val", "test"):
            arrays = getattr(self, split)
            if arrays is None and split != "train":
                continue
            rows = count_rows(arrays, f"{type(self).__name__}.{split}")
            batch_spec(arrays, f"{type(self).__name__}.{split}")
            if split == "train" and rows < self.batch_size:
                raise DataError(f"batch_size={self.batch_size} is larger than the training data: {rows} rows.")

    def train_dataset(self, seed: int) -> grain.MapDataset:
        """See `DataModule`."""
        self.setup()
        return BatchDataset(self.train, self.batch_size, seed=seed)

    def val_dataset(self) -> grain.MapDataset | None:
        """See `DataModule`."""
        return None if self.val is None else BatchDataset(self.val, self.batch_size)

    def test_dataset(self) -> grain.MapDataset | None:
        """See `DataModule`."""
        return None if self.test is None else BatchDataset(self.test, self.batch_size)


class BatchDataset(grain.MapDataset):
    """Whole batches gathered from arrays at once: a hundred times as fast as batching rows one by one.

    Args:
      arrays: a pytree of arrays `(rows, ...)`.
      batch_size: rows a batch.
      seed: shuffles, anew each epoch, and leaves out the rows that fill no whole batch; `None` keeps order and rows.
      part: which rows of each batch to read; by default all.
    """

    def __init__(self, arrays: Arrays, batch_size: int, seed: int | None = None, part: slice | None = None):
        super().__init__()
        self._arrays = jax.tree.map(np.asarray, arrays)
        self._rows = count_rows(arrays, "BatchDataset")
        self._batch_size, self._seed = batch_size, seed
        self._part = slice(0, batch_size) if part is None else part
        # Batches come in order, so one epoch's permutation at a time is enough.
        self._permutation = functools.lru_cache(maxsize=2)(self._permute)

    def __len__(self) -> int:
        return self._rows // self._batch_size if self._seed is not None else -(-self._rows // self._batch_size)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        epoch, index = divmod(index, len(self))
        first = index * self._batch_size
        rows = slice(first + self._part.start, first + self._part.stop)
        if self._seed is None:
            return jax.tree.map(lambda array: array[rows], self._arrays)
        chosen = self._permutation(epoch)[rows]
        return jax.tree.map(lambda array: array.take(chosen, axis=0), self._arrays)  # twice as fast as indexing

    def only(self, part: slice) -> "BatchDataset":
        """The same batches, of which only these rows are read: those of one of several processes."""
        return BatchDataset(self._arrays, self._batch_size, self._seed, part)

    def _permute(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed or 0, epoch]).permutation(self._rows)


class GatheredDataset(grain.MapDataset):
    """Batches that a function gathers, all rows at once, from batches of the places where the rows are.

    Args:
      places: batches of them, `(rows,)`.
      gather: from places to their rows.
      part: which rows of each batch to gather; by default all.
    """

    def __init__(self, places: grain.MapDataset, gather: Callable[[np.ndarray], Any], part: slice | None = None):
        super().__init__(places)
        self._gather, self._part = gather, slice(None) if part is None else part

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: Any) -> Any:
        return self.slice(index) if isinstance(index, slice) else self._gather(self._parent[index][self._part])

    def only(self, part: slice) -> "GatheredDataset":
        """The same batches, of which only these rows are read: those of one of several processes."""
        return GatheredDataset(self._parent, self._gather, part)
