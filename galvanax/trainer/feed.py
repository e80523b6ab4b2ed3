"""From Grain's host batches to stacks of batches on the devices."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import numpy as np

from galvanax.errors import ConfigError, DataError
from galvanax.trainer import placement
from galvanax.trainer.batch import Spec, batch_spec, count_rows


@runtime_checkable
class ReadsRows(Protocol):
    """A dataset that several processes can share: each reads its own rows of a batch, instead of all of them."""

    def only(self, part: slice) -> grain.MapDataset:
        """The same batches in the same order, of which only these rows are read."""
        ...


class TrainFeed:
    """An endless train of batches with a position that can be saved.

    Args:
      dataset: one epoch of batches (`grain.MapDataset`), or a stream (`grain.IterDataset`).
      limit: batches an epoch, at most.

    Attributes:
      steps_per_epoch: batches an epoch, or None for a stream.
      spec: shape and dtype of a batch's leaves.
      batch_size: rows a batch.
      capacity: batches in a stack, once `place` has said so.
    """

    def __init__(self, dataset: grain.MapDataset | grain.IterDataset, limit: int | None = None):
        if isinstance(dataset, grain.MapDataset) and len(dataset) == 0:
            raise DataError("train_dataset holds no batch.")
        self._dataset, self.steps_per_epoch = dataset, limit
        if isinstance(dataset, grain.MapDataset):
            self.steps_per_epoch = min(limit or len(dataset), len(dataset))
        stream = self._stream(dataset)
        first = next(iter(stream), None)
        if first is None:
            raise DataError("train_dataset holds no batch.")
        self.batch_size = count_rows(first, "The first training batch")
        self.spec = batch_spec(first)
        self._iterator = iter(stream)
        self._taken = copy.deepcopy(self._iterator.get_state())
        self._ready: tuple[int, Any, Any] | None = None

    def place(self, capacity: int, sharding: jax.sharding.Sharding) -> None:
        """Says how large the stacks are and where they go: to several processes, each its own rows."""
        self.capacity, self._sharding = capacity, sharding
        here = placement.rows_here(sharding, (capacity, self.batch_size))
        self._reads_here = isinstance(self._dataset, ReadsRows) and here != slice(0, self.batch_size)
        if self._reads_here:
            position = self._iterator.get_state()
            self._iterator = iter(self._stream(self._dataset.only(here)))
            self._iterator.set_state(position)

    @property
    def position(self) -> Any:
        """Grain's iterator state behind the last batch that was taken: JSON data."""
        return self._taken

    @position.setter
    def position(self, state: Any) -> None:
        self._taken, self._ready = state, None
        self._iterator.set_state(state)

    def take(self, count: int) -> Any:
        """The next `count` batches, stacked to `(capacity, batch, ...)` and on their way to the devices.

        What lies behind the first `count` is arbitrary. If reading fails, the position is as before.
        """
        if self._ready is None or self._ready[0] != count:
            if self._ready is not None:
                self.position = self._taken
            self._ready = self._read(count)
        (_, stack, self._taken), self._ready = self._ready, None
        return stack

    def prepare(self, count: int) -> None:
        """Reads ahead for a `take` of as many; the position stays. What fails now fails again when it is taken."""
        with contextlib.suppress(Exception):
            self._ready = self._ready or self._read(count)

    def _read(self, count: int) -> tuple[int, Any, Any]:
        try:
            stack = _stack(self._batches(count), self.spec, self.capacity, self._sharding, self._reads_here)
        except BaseException:
            self.position = self._taken
            raise
        # A copy: a checkpoint writes it later, when the iterator is elsewhere.
        return count, stack, copy.deepcopy(self._iterator.get_state())

    def _stream(self, dataset: grain.MapDataset | grain.IterDataset) -> grain.IterDataset:
        if not isinstance(dataset, grain.MapDataset):
            return dataset
        epoch = dataset[: self.steps_per_epoch]
        return epoch.repeat().to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))

    def _batches(self, count: int) -> Iterator[Any]:
        for index in range(count):
            try:
                yield next(self._iterator)
            except StopIteration:
                raise DataError(
                    f"The training stream ended {count - index} batches before it was meant to: "
                    "make it endless (`.repeat()`), or lower max_steps."
                ) from None


class EvaluationFeed:
    """Batches of an evaluation dataset, the last ones padded, as stacks and the number of true rows in each batch.

    Args:
      dataset: batches in a fixed order.
      limit: batches at most.
      multiple: batches are padded to a multiple of this, the number of devices.

    Attributes:
      count: the number of batches, or None if unknown.
      rows: true rows of a full batch.
      batch_size: rows of every batch, with padding.
      spec: shape and dtype of a padded batch's leaves.
    """

    def __init__(self, dataset: grain.MapDataset | grain.IterDataset, limit: int | None, multiple: int):
        self._dataset, self._limit = dataset, limit
        first = next(iter(dataset), None)
        if first is None:
            raise DataError("The evaluation dataset holds no batch.")
        sizes = [
            size
            for size in (limit, len(dataset) if isinstance(dataset, grain.MapDataset) else None)
            if size is not None
        ]
        self.count = min(sizes, default=None)
        self.rows = count_rows(first, "The first evaluation batch")
        self.batch_size = -(-self.rows // multiple) * multiple
        self.spec = batch_spec(self._pad(first, self.rows, 0))

    def stacks(self, capacity: int, sharding: jax.sharding.Sharding) -> Iterator[tuple[Any, list[int]]]:
        """Yields `(stack (capacity, batch, ...), rows of each batch)`."""
        waiting: list[Any] = []
        rows: list[int] = []
        for index, batch in enumerate(self._dataset):
            if index == self._limit:
                break
            rows.append(count_rows(batch, f"Evaluation batch {index}"))
            waiting.append(self._pad(batch, rows[-1], index))
            if len(waiting) == capacity:
                yield _stack(waiting, self.spec, capacity, sharding), rows
                waiting, rows = [], []
        if waiting:
            yield _stack(waiting, self.spec, capacity, sharding), rows

    def _pad(self, batch: Any, rows: int, index: int) -> Any:
        if rows > self.rows:
            raise DataError(f"Evaluation batch {index} has {rows} rows, more than the first: {self.rows}.")
        # A repeated row rather than zeros: padding must not make a NaN that a gradient or a guard could meet.
        fill = np.minimum(np.arange(self.batch_size), rows - 1)
        return batch if rows == self.batch_size else jax.tree.map(lambda leaf: np.asarray(leaf)[fill], batch)


def check_divisible(batch_size: int, devices: int) -> None:
    """Raises ConfigError where a batch cannot be split evenly."""
    if batch_size % devices:
        lower = batch_size // devices * devices
        raise ConfigError(
            f"A batch of {batch_size} rows cannot be split over {devices} devices. "
            f"Nearest batch sizes: {f'{lower}, ' if lower else ''}{lower + devices}."
        )


def _stack(batches: Any, spec: Spec, capacity: int, sharding: jax.sharding.Sharding, only_here: bool = False) -> Any:
    """Stacks batches on the devices; where those are of several processes, the rows that belong on this one's.

    Args:
      batches: an iterator of them.
      spec: of a whole batch.
      capacity: how many a stack holds.
      sharding: of the stack.
      only_here: whether the batches hold no other rows.
    """
    leaves: list[jax.ShapeDtypeStruct]
    structure: Any
    leaves, structure = jax.tree.flatten(spec)
    here = placement.rows_here(sharding, (capacity, leaves[0].shape[0]))
    part, count = (slice(None) if only_here else here), here.stop - here.start
    # Fresh memory each time: on CPU the device array is this memory, and it may still be read.
    stacks = [np.empty((capacity, count, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]
    for index, batch in enumerate(batches):
        arrays, found = jax.tree.flatten(batch)
        if found != structure:
            raise DataError(f"A batch has the structure {found}; the first one had {structure}.")
        for stack, array, leaf in zip(stacks, arrays, leaves, strict=True):
            if array.shape != (count if only_here else leaf.shape[0], *leaf.shape[1:]):
                raise DataError(
                    f"A batch has a leaf of shape {list(array.shape)}; the first batch had {list(leaf.shape)}. "
                    "Training batches must all have the same shape (drop_remainder=True)."
                )
            stack[index] = array[part]
    arrays = [
        placement.put_rows(stack, here.start, (capacity, *leaf.shape), sharding)
        for stack, leaf in zip(stacks, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, arrays)
