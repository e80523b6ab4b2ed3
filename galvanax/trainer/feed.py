"""From Grain's host batches to stacks of batches on the devices."""

import contextlib
import copy
import itertools
import sys
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import absl.flags
import grain
import jax
import numpy as np

from galvanax.errors import ConfigError, DataError
from galvanax.trainer import placement
from galvanax.trainer.batch import Spec, batch_spec, count_rows, write

SPLITS = {"val": "validation", "test": "test", "predict": "predict"}


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
            self.steps_per_epoch = limit if _is_endless(dataset) else min(limit or len(dataset), len(dataset))
        _allow_workers()
        self._iterator = iter(self._stream(dataset))
        self._taken = copy.deepcopy(self._iterator.get_state())
        # Kept for the first step: another iterator would start its worker processes anew.
        first = self._first = next(self._iterator, None)
        if first is None:
            raise DataError("train_dataset holds no batch.")
        self.batch_size = count_rows(first, "The first training batch")
        self.spec = batch_spec(first, "The first training batch")
        if isinstance(dataset, grain.MapDataset):
            index, last = _last(dataset, self.steps_per_epoch)
            if last is not None:
                _compare(last, self.spec, f"Training batch {index} (the last of an epoch)")
        self._ready: tuple[int, Any, Any] | None = None

    def place(self, capacity: int, sharding: jax.sharding.Sharding) -> None:
        """Says how large the stacks are and where they go: to several processes, each its own rows."""
        self.capacity, self._sharding = capacity, sharding
        here = placement.rows_here(sharding, (capacity, self.batch_size))
        self._reads_here = isinstance(self._dataset, ReadsRows) and here != slice(0, self.batch_size)
        if self._reads_here:
            self.close()
            self._iterator = iter(self._stream(self._dataset.only(here)))
            self.position = self._taken

    @property
    def position(self) -> Any:
        """Grain's iterator state behind the last batch that was taken: JSON data."""
        return self._taken

    @position.setter
    def position(self, state: Any) -> None:
        self._taken, self._ready, self._first = state, None, None
        self._iterator.set_state(state)

    def close(self) -> None:
        """Ends the threads and processes that read ahead."""
        self._iterator.close()

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
        epochs = dataset if self.steps_per_epoch is None else dataset[: self.steps_per_epoch].repeat()
        return epochs.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))

    def _batches(self, count: int) -> Iterator[tuple[str, Any]]:
        for index in range(count):
            try:
                batch = next(self._iterator) if self._first is None else self._first
                self._first = None
                yield "A training batch", batch
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
      split: `"val"`, `"test"` or `"predict"`, for messages.

    Attributes:
      count: the number of batches, or None if unknown.
      rows: true rows of a full batch.
      batch_size: rows of every batch, with padding.
      spec: shape and dtype of a padded batch's leaves.
    """

    def __init__(self, dataset: grain.MapDataset | grain.IterDataset, limit: int | None, multiple: int, split: str):
        self._dataset, self._limit, self._name = dataset, limit, SPLITS[split]
        _allow_workers()
        with contextlib.closing(iter(dataset)) as batches:
            first = next(batches, None)
        if first is None:
            raise DataError(f"{split}_dataset holds no batch.")
        sizes = [
            size
            for size in (limit, len(dataset) if isinstance(dataset, grain.MapDataset) else None)
            if size is not None
        ]
        self.count = min(sizes, default=None)
        self.rows = count_rows(first, f"The first {self._name} batch")
        self.batch_size = -(-self.rows // multiple) * multiple
        self.spec = batch_spec(self._padded(0, first)[1], f"The first {self._name} batch")
        if isinstance(dataset, grain.MapDataset):
            index, last = _last(dataset, self.count)
            if last is not None:
                _, last, name = self._padded(index, last)
                _compare(last, self.spec, name)

    def stacks(self, capacity: int, sharding: jax.sharding.Sharding) -> Iterator[tuple[Any, list[int]]]:
        """Yields `(stack (capacity, batch, ...), rows of each batch)`."""
        waiting: list[tuple[str, Any]] = []
        rows: list[int] = []
        with contextlib.closing(iter(self._dataset)) as batches:
            for index, batch in enumerate(itertools.islice(batches, self._limit)):
                found, padded, name = self._padded(index, batch)
                rows.append(found)
                waiting.append((name, padded))
                if len(waiting) == capacity:
                    yield _stack(waiting, self.spec, capacity, sharding), rows
                    waiting, rows = [], []
        if waiting:
            yield _stack(waiting, self.spec, capacity, sharding), rows

    def _padded(self, index: int, batch: Any) -> tuple[int, Any, str]:
        """`(rows, the batch with padding, what to call it)`."""
        name = f"{self._name.capitalize()} batch {index}"
        rows = count_rows(batch, name)
        if rows > self.rows:
            raise DataError(f"{name} has {rows} rows, more than the first: {self.rows}.")
        if rows == self.batch_size:
            return rows, batch, name
        # A repeated row rather than zeros: padding must not make a NaN that a gradient or a guard could meet.
        fill = np.minimum(np.arange(self.batch_size), rows - 1)
        return rows, jax.tree.map(lambda leaf: np.asarray(leaf)[fill], batch), name


def check_divisible(batch_size: int, devices: int) -> None:
    """Raises ConfigError where a batch cannot be split evenly."""
    if batch_size % devices:
        lower = batch_size // devices * devices
        raise ConfigError(
            f"A batch of {batch_size} rows cannot be split over {devices} devices. "
            f"Nearest batch sizes: {f'{lower}, ' if lower else ''}{lower + devices}."
        )


def _allow_workers() -> None:
    """Grain's worker processes read flags of absl, which only a program that absl has started has parsed."""
    if not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS.mark_as_parsed()


def _last(dataset: grain.MapDataset, count: int | None) -> tuple[int, Any]:
    """`(index, batch)` of the last of `count`; a batch of None where there is nothing to look at."""
    if count is None or count == 1 or (count >= len(dataset) and _is_endless(dataset)):
        return 0, None
    return count - 1, dataset[count - 1]


def _is_endless(dataset: grain.MapDataset) -> bool:
    return len(dataset) >= sys.maxsize  # what `.repeat()` says


def _compare(batch: Any, spec: Spec, name: str) -> None:
    """Raises DataError where a batch isn't like the first one."""
    leaves, structure = jax.tree.flatten(spec)
    stacks = [np.empty((1, *leaf.shape), leaf.dtype) for leaf in leaves]
    _fill(stacks, 0, batch, structure, leaves[0].shape[0], slice(None), name)


def _fill(stacks: list[np.ndarray], index: int, batch: Any, structure: Any, rows: int, part: slice, name: str) -> None:
    """Writes these rows of a batch into the stacks. Raises DataError where it isn't like the first one."""
    arrays, found = jax.tree.flatten(batch)
    if found != structure:
        raise DataError(f"{name} has the structure {found}; the first batch had {structure}.")
    for place, (stack, array) in enumerate(zip(stacks, arrays, strict=True)):
        alike = getattr(array, "dtype", None) == stack.dtype
        array = array if alike else np.asarray(array)
        if array.shape != (rows, *stack.shape[2:]):
            raise _misfit(f"{name}{_path(batch, place)}", array.shape, (rows, *stack.shape[2:]))
        if alike:
            stack[index] = array[part]
        else:
            write(stack[index], array[part], f"{name}{_path(batch, place)}")


def _misfit(name: str, seen: tuple[int, ...], first: tuple[int, ...]) -> DataError:
    if seen[:1] == first[:1]:  # those of an evaluation's batches with padding
        return DataError(f"{name} has rows of shape {list(seen[1:])}; the first batch had {list(first[1:])}.")
    return DataError(
        f"{name} has shape {list(seen)}; the first batch had {list(first)}. "
        "Train on equally many rows: drop_remainder=True, or limit_train_batches."
    )


def _path(batch: Any, place: int) -> str:
    return jax.tree_util.keystr(jax.tree_util.tree_leaves_with_path(batch)[place][0])


def _stack(batches: Any, spec: Spec, capacity: int, sharding: jax.sharding.Sharding, only_here: bool = False) -> Any:
    """Stacks batches on the devices; where those are of several processes, the rows that belong on this one's.

    Args:
      batches: an iterator of them, each with what to call it.
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
    rows = count if only_here else leaves[0].shape[0]
    for index, (name, batch) in enumerate(batches):
        _fill(stacks, index, batch, structure, rows, part, name)
    arrays = [
        placement.put_rows(stack, here.start, (capacity, *leaf.shape), sharding)
        for stack, leaf in zip(stacks, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, arrays)
