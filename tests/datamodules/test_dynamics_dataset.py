import numpy as np
import pytest

from galvanax.datamodules.dynamics import DynamicsDataModule, create_dataset, split_dataset
from galvanax.errors import DataError
from galvanax.physics import load_model


def arrays(rollouts=10, length=4):
    """Every entry holds its rollout's number."""
    number = np.arange(rollouts)[:, None, None] * np.ones((1, length, 1))
    return {
        "states": number.repeat(2, -1),
        "actions": number.copy(),
        "next_states": number.repeat(2, -1),
        "accelerations": number.copy(),
    }


@pytest.fixture(scope="module")
def model():
    return load_model("pendulum")


def test_dimensions(model):
    dataset = create_dataset(model, **arrays(), dt=0.02)
    assert (dataset.state_dim, dataset.nq, dataset.nv, dataset.action_dim) == (2, 1, 1, 1)
    assert (dataset.num_rollouts, dataset.rollout_length, len(dataset), dataset.dt) == (10, 4, 40, 0.02)
    assert dataset.layout.angles == (0,)
    flat = dataset.flat()
    assert {name: array.shape for name, array in flat.items()} == {
        "states": (40, 2), "actions": (40, 1), "next_states": (40, 2), "accelerations": (40, 1)
    }  # fmt: skip
    assert flat["states"].dtype == np.float32
    states, actions = dataset.trajectories()
    assert (states.shape, actions.shape) == ((10, 5, 2), (10, 4, 1))


def test_split_keeps_rollouts_whole(model):
    dataset = create_dataset(model, **arrays(), dt=0.02)
    train, val = split_dataset(dataset, train_ratio=0.7)
    assert (train.num_rollouts, val.num_rollouts) == (7, 3)
    inside = set(np.unique(train.states)), set(np.unique(val.states))
    assert not inside[0] & inside[1]
    assert inside[0] | inside[1] == set(range(10))
    for part in (train, val):
        for i in range(part.num_rollouts):
            assert len({*np.unique(part.states[i]), *np.unique(part.actions[i])}) == 1


def test_split_depends_on_the_seed_alone(model):
    dataset = create_dataset(model, **arrays(), dt=0.02)
    first, again, other = (split_dataset(dataset, seed=seed)[1].states for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_split_by_transition(model):
    train, val = split_dataset(create_dataset(model, **arrays(), dt=0.02), 0.75, by="transition")
    assert (len(train), len(val), train.rollout_length) == (30, 10, 1)
    assert sorted(np.concatenate([train.actions, val.actions]).ravel()) == sorted(np.repeat(range(10), 4))


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.01])
def test_split_that_leaves_a_part_empty(model, ratio):
    with pytest.raises(DataError, match=f"train_ratio={ratio} puts .* of 10 by trajectory"):
        split_dataset(create_dataset(model, **arrays(), dt=0.02), ratio)


def test_unknown_split(model):
    with pytest.raises(DataError, match="by='episode'; expected 'trajectory' or 'transition'"):
        split_dataset(create_dataset(model, **arrays(), dt=0.02), by="episode")


def broken(change):
    data = arrays()
    change(data)
    return data


def ragged(data):
    data["states"] = [np.zeros((4, 2)), np.zeros((4, 2)), np.zeros((3, 2))]


def not_a_number(data):
    data["accelerations"][2, 3] = np.nan


def wrong_dim(data):
    data["actions"] = np.zeros((10, 4, 2))


def fewer(data):
    data["next_states"] = data["next_states"][:9]


def empty(data):
    data["states"] = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (ragged, "states: rollout 2 has 3 steps and rollout 0 has 4"),
        (not_a_number, r"accelerations: rollout 2, step 3 is \[nan\].*1 of 10 rollouts"),
        (wrong_dim, r"actions\[0\] has shape \(4, 2\); expected \(steps, 1\)"),
        (fewer, r"next_states has \(rollouts, steps\) = \(9, 4\); expected \(10, 4\)"),
        (empty, "states holds no rollout"),
    ],
)
def test_arrays_that_do_not_fit(model, change, message):
    with pytest.raises(DataError, match=message):
        create_dataset(model, **broken(change), dt=0.02)


def test_impossible_dt(model):
    with pytest.raises(DataError, match="dt=0; expected seconds > 0"):
        create_dataset(model, **arrays(), dt=0)


def test_module_serves_single_transitions(model):
    train, val = split_dataset(create_dataset(model, **arrays(), dt=0.02))
    module = DynamicsDataModule(train, val, batch_size=8)
    batches = list(module.train_dataset(seed=0))
    assert len(batches) == 4
    seen = np.concatenate([batch["actions"] for batch in batches]).ravel()
    assert sorted(seen) == sorted(train.actions.ravel())
    assert len(list(module.val_dataset())) == 1
    assert module.test_dataset() is None
    assert module.reference_trajectories() == {}
    assert (module.action_dim, module.dt, module.layout) == (1, 0.02, train.layout)
