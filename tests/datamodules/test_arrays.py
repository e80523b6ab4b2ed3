"""The order of rows in memory, with and without shuffling."""

import itertools

import numpy as np
import pytest

from galvanax.datamodules.arrays import BatchDataset


def rows_of(dataset, epoch=0):
    return [dataset[index]["x"].tolist() for index in range(epoch * len(dataset), (epoch + 1) * len(dataset))]


@pytest.mark.behaviour("peers 97")
def test_in_order_the_last_batch_is_short():
    assert rows_of(BatchDataset({"x": np.arange(1, 6)}, 2)) == [[1, 2], [3, 4], [5]]
    assert rows_of(BatchDataset({"x": np.arange(1, 7)}, 2)) == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.behaviour("peers 97")
def test_shuffled_each_epoch_has_every_row_once_in_an_order_of_its_own():
    one, same, other = (BatchDataset({"x": np.arange(12)}, 3, seed=seed) for seed in (0, 0, 1))
    epochs = [rows_of(one, epoch) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == list(range(12))
    assert len({str(epoch) for epoch in epochs}) == 3
    assert [rows_of(same, epoch) for epoch in range(3)] == epochs
    assert rows_of(other) != epochs[0]


@pytest.mark.behaviour("peers 97")
def test_shuffled_the_rows_left_over_are_others_in_each_epoch():
    dataset = BatchDataset({"x": np.arange(5)}, 2, seed=0)
    epochs = [list(itertools.chain(*rows_of(dataset, epoch))) for epoch in range(20)]
    assert all(len(set(epoch)) == 4 for epoch in epochs)
    assert set().union(*epochs) == set(range(5))
