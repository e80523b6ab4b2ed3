"""From Grain's host batches to stacks of batches on the devices."""

from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np

from galvanax.errors import ConfigError, DataError
from galvanax.trainer.batch import Spec, batch_spec, count_rows


class TrainFeed:
    """An endless train of batches with a position that can be saved.

    Args:
      dataset: one epoch of batches (`grain.MapDataset`), or a stream (`grain.IterDataset`).
      limit: batches an epoch, at most.

    Attributes:
      steps_per_epoch: batches an epoch, or None for a stream.
      spec: shape and dtype of a batch's leaves.
      batch_size: rows a batch.
    """

    def __init__(self, dataset: grain.MapDataset | grain.IterDataset, limit: int | None = None):
        if isinstance(dataset, grain.MapDataset):
            if len(dataset) == 0:
                raise DataError("train_dataset holds no batch.")
            epoch = dataset[: min(limit or len(dataset), len(dataset))]
            self.steps_per_epoch: int | None = len(epoch)
            stream = epoch.repeat().to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        else:
            self.steps_per_epoch = limit
            stream = dataset
        self._dataset = stream
        first = next(iter(stream), None)
        if first is None:
            raise DataError("train_dataset holds no batch.")
        self.batch_size = count_rows(first, "The first training batch")
        self.spec = batch_spec(first)
        self._iterator = iter(stream)

    @property
    def position(self) -> Any:
        """Grain's iterator state: JSON data."""
        return self._iterator.get_state()

    @position.setter
    def position(self, state: Any) -> None:
        self._iterator.set_state(state)

    def take(self, count: int, capacity: int, sharding: jax.sharding.Sharding) -> Any:
        """The next `count` batches, stacked to `(capacity, batch, ...)` and on their way to the devices.

        What lies behind the first `count` is arbitrary. Nothing is read ahead: `position` is that of the stack's end.
        """
        return _stack(self._batches(count), self.spec, capacity, sharding)

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

    Attributes:
      count: the number of batches, or None if unknown.
      spec, batch_size: as in `TrainFeed`.
    """

    def __init__(self, dataset: grain.MapDataset | grain.IterDataset, limit: int | None = None):
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
        self.batch_size = count_rows(first, "The first evaluation batch")
        self.spec = batch_spec(first)

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
        if rows > self.batch_size:
            raise DataError(f"Evaluation batch {index} has {rows} rows, more than the first: {self.batch_size}.")
        # A repeated row rather than zeros: padding must not make a NaN that a gradient or a guard could meet.
        fill = np.minimum(np.arange(self.batch_size), rows - 1)
        return batch if rows == self.batch_size else jax.tree.map(lambda leaf: np.asarray(leaf)[fill], batch)


def check_divisible(batch_size: int, devices: int) -> None:
    """Raises ConfigError where a batch cannot be split evenly."""
    if batch_size % devices:
        lower = batch_size // devices * devices
        raise ConfigError(
            f"A batch of {batch_size} rows cannot be split over {devices} devices. "
            f"Nearest batch sizes: {lower or devices}, {lower + devices}."
        )


def _stack(batches: Any, spec: Spec, capacity: int, sharding: jax.sharding.Sharding) -> Any:
    leaves: list[jax.ShapeDtypeStruct]
    structure: Any
    leaves, structure = jax.tree.flatten(spec)
    # Fresh memory each time: on CPU the device array is this memory, and it may still be read.
    stacks = [np.empty((capacity, *leaf.shape), leaf.dtype) for leaf in leaves]
    for index, batch in enumerate(batches):
        arrays, found = jax.tree.flatten(batch)
        if found != structure:
            raise DataError(f"A batch has the structure {found}; the first one had {structure}.")
        for stack, array, leaf in zip(stacks, arrays, leaves, strict=True):
            if array.shape != leaf.shape:
                raise DataError(
                    f"A batch has a leaf of shape {list(array.shape)}; the first batch had {list(leaf.shape)}. "
                    "Training batches must all have the same shape (drop_remainder=True)."
                )
            stack[index] = array
    return jax.device_put(jax.tree.unflatten(structure, stacks), sharding)
