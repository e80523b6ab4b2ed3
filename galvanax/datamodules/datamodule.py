"""The contract of a data module: FROM WHAT a task learns. Grain owns the order and the position."""

import dataclasses
from typing import Any, TypeAlias

import grain
import jax
import numpy as np

from galvanax.errors import DataError

Dataset: TypeAlias = grain.MapDataset | grain.IterDataset


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of one array over its leading axis, in float64, each of shape `array.shape[1:]`."""

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    count: int

    @staticmethod
    def of(array: np.ndarray) -> "Statistics":
        """Of an array `(rows, ...)` in memory, with at least one row; makes no copy of it in float64."""
        total = Moments()
        for start in range(0, len(array), 65536):
            total.add(np.asarray(array[start : start + 65536], np.float64))
        return total.statistics()


@dataclasses.dataclass
class DataModule:
    """Subclass it as a dataclass; return Grain datasets whose elements are batches.

    A batch is any pytree of numpy arrays with one common leading axis. Training batches all have the same shape; the
    last batch of an evaluation dataset may be short (it is padded and masked). All have the first one's dtypes, or
    dtypes whose values those hold. Without `jax_enable_x64`, float64 is rounded to float32, and integers beyond 32 bits
    are refused.
    """

    def setup(self) -> None:
        """Reads, downloads or simulates the data. Called first, perhaps more than once: do the work once."""

    def train_dataset(self, seed: int) -> Dataset:
        """One epoch of training batches, shuffled by `seed`.

        A `grain.MapDataset` is repeated by the Trainer with a new order each epoch; a `grain.IterDataset` is a stream
        with no epochs, repeated only if it repeats itself.

        Split before shuffling. Grain shuffles anew each epoch, below a slice too, so the parts `source.shuffle(0)[:80]`
        and `[80:]` mix from the second epoch on (the Trainer refuses them). Parts in random order are chosen once:

            order = np.random.default_rng(0).permutation(len(rows))  # [:80] to train, [80:] to validate
            grain.MapDataset.source(order[:80]).shuffle(seed).map(lambda index: rows[index]).batch(16)
        """
        raise NotImplementedError(f"{type(self).__name__} must define train_dataset(self, seed).")

    def val_dataset(self) -> Dataset | None:
        """Validation batches in a fixed order, or None."""
        return None

    def test_dataset(self) -> Dataset | None:
        """Test batches in a fixed order, or None."""
        return None

    def predict_dataset(self) -> Dataset | None:
        """Batches for `Trainer.predict`: the test batches, unless overridden."""
        return self.test_dataset()

    def example_batch(self) -> Any:
        """What a training batch looks like: the first one."""
        self.setup()
        try:
            return next(iter(self.train_dataset(seed=0)))
        except StopIteration:
            raise DataError(f"{type(self).__name__}.train_dataset holds no batch.") from None

    def statistics(self) -> Any:
        """`Statistics` of each array of the training batches, from one pass over them through Grain."""
        self.setup()
        totals = [Moments() for _ in jax.tree.leaves(self.example_batch())]
        for batch in self.train_dataset(seed=0):
            for total, array in zip(totals, jax.tree.leaves(batch), strict=True):
                total.add(np.asarray(array, np.float64))
        return jax.tree.unflatten(jax.tree.structure(self.example_batch()), [total.statistics() for total in totals])


class Moments:
    """Mean and variance of a stream of arrays (Chan et al., 1983, eq. 2.1: pairwise update), without cancellation."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(()), np.zeros(())
        self.min, self.max = np.full((), np.inf), np.full((), -np.inf)

    def add(self, rows: np.ndarray) -> None:
        """Takes in rows `(rows, ...)` in float64."""
        mean = rows.mean(0)
        delta, total = mean - self.mean, self.count + len(rows)
        self.squares = self.squares + ((rows - mean) ** 2).sum(0) + delta**2 * self.count * len(rows) / total
        self.mean, self.count = self.mean + delta * len(rows) / total, total
        self.min, self.max = np.minimum(self.min, rows.min(0)), np.maximum(self.max, rows.max(0))

    def statistics(self) -> Statistics:
        """Of all rows so far."""
        return Statistics(self.mean, np.sqrt(self.squares / self.count), self.min, self.max, self.count)
