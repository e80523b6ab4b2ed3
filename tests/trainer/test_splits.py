"""Training never meets what was held out."""

import dataclasses

import grain
import jax.numpy as jnp
import numpy as np
import pytest
from support import LineTask

import galvanax as gx

NUM_ROWS, NUM_TRAIN = 24, 16
ROWS = [{"x": np.float32([i]), "y": np.float32([i])} for i in range(NUM_ROWS)]
ORDER = np.random.default_rng(0).permutation(NUM_ROWS)
ALL, TRAIN, HELD = slice(None), slice(NUM_TRAIN), slice(NUM_TRAIN, None)


@dataclasses.dataclass
class Parts(gx.DataModule):
    """Datasets as functions of the seed."""

    train: object
    val: object = None
    test: object = None

    def train_dataset(self, seed):
        return self.train(seed).batch(4, drop_remainder=True)

    def val_dataset(self):
        return self.val and self.val(0).batch(4)

    def test_dataset(self):
        return self.test and self.test(0).batch(4)


@dataclasses.dataclass(frozen=True)
class SumTask(LineTask):
    """Measures the sum of x, and of its powers of two: which rows were seen."""

    learning_rate: float = 0.0

    def loss(self, model, batch, rng):
        ids = batch["x"].astype(jnp.int32)
        seen = jnp.zeros(NUM_ROWS).at[ids[:, 0]].add(1.0)
        return jnp.sum(model(batch["x"])) * 0, {f"row {i}": seen[i] for i in range(NUM_ROWS)}

    def evaluate(self, model, batch, rng):
        return {"loss": jnp.zeros(())}


def source(rows=ROWS):
    return grain.MapDataset.source(rows)


def fit(data, steps=40):
    return gx.Trainer(max_steps=steps, log_every=steps).fit(SumTask(), data)


def window_shuffle(dataset, seed):
    return grain.experimental.WindowShuffleMapDataset(dataset, window_size=8, seed=seed)


@pytest.mark.behaviour("reports 16")
@pytest.mark.parametrize(
    "train",
    [
        lambda seed: source().shuffle(0)[TRAIN],
        lambda seed: source().shuffle(0)[TRAIN].shuffle(seed),
        lambda seed: source().map(lambda row: row).shuffle(0).map(lambda row: row)[::2],
        lambda seed: window_shuffle(source(), 0)[TRAIN],
        lambda seed: grain.MapDataset.mix([source().shuffle(0)[TRAIN], source(ROWS[:2]).repeat()], [0.5, 0.5]),
        lambda seed: source().shuffle(0)[TRAIN].repeat().to_iter_dataset(),
    ],
)
@pytest.mark.parametrize("held", ["val", "test"])
def test_slices_of_one_shuffled_dataset_are_refused(train, held):
    data = Parts(train, **{held: lambda seed: source().shuffle(0)[HELD]})
    with pytest.raises(gx.DataError, match=rf"Parts\.train_dataset and {held}_dataset are slices of one shuffled"):
        fit(data)


@pytest.mark.behaviour("reports 16")
@pytest.mark.parametrize(
    ("train", "val"),
    [
        (lambda seed: source()[TRAIN].shuffle(seed), lambda seed: source()[HELD]),
        (
            lambda seed: source(ORDER[TRAIN]).shuffle(seed).map(lambda index: ROWS[index]),
            lambda seed: source(ORDER[HELD]).map(lambda index: ROWS[index]),
        ),
        # A tenth of each of two sets of rows, another one each epoch: nothing is shared.
        (lambda seed: source(ROWS[TRAIN]).shuffle(seed)[:8], lambda seed: source(ROWS[HELD]).shuffle(0)[:4]),
    ],
)
def test_other_splits_hold_for_all_epochs(train, val):
    metrics = fit(Parts(train, val)).metrics
    seen = {i for i in range(NUM_ROWS) if metrics[f"train/row {i}"] > 0}
    held = {int(row["x"][0]) for row in val(0)}
    assert len(seen) >= 8
    assert not seen & held
