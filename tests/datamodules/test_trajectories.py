import dataclasses
import json
import logging

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro
from datamodules.logs import names_of, text_of, values_of, write
from flax import nnx
from support import Recorder, assert_same_state

import galvanax as gx
from galvanax.datamodules.trajectories import TrajectoryDataModule
from galvanax.errors import ConfigError, DataError
from galvanax.physics.layout import StateLayout
from galvanax.runs.config import to_json


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make_logs(folder, count=10, rows=30, first=0):
    """Every number of file i lies between i and i + 1; qpos_0 counts its rows."""
    for i in range(first, first + count):
        values = values_of(rows, seed=i)
        values[:, 1:] = i + np.abs(values[:, 1:] % 1)
        values[:, 1] = i + np.arange(rows) / 1000
        write(folder / f"{i:02}.csv", text_of(values))
    return str(folder)


def make_module(data, **changes):
    return TrajectoryDataModule(
        data, **({"angles": (1,), "history": 3, "horizon": 2, "batch_size": 8, "val_ratio": 0.2} | changes)
    )


def files_in(dataset):
    """The numbers of the files that the batches come from."""
    return {int(x) for batch in dataset for array in batch.values() for x in array.ravel()}


def test_split_does_not_leak(tmp_path):
    module = make_module(make_logs(tmp_path / "logs"))
    seen = [files_in(dataset) for dataset in (module.train_dataset(0), module.val_dataset(), module.test_dataset())]
    assert [len(files) for files in seen] == [7, 2, 1]
    assert set.union(*seen) == set(range(10))
    parts = [{int(t.states[0, 0]) for t in module.trajectories(split)} for split in ("train", "val", "test")]
    assert parts == seen
    again, other = make_module(module.data), make_module(module.data, seed=1)
    assert files_in(again.val_dataset()) == seen[1]
    assert files_in(other.val_dataset()) != seen[1]


def test_windows_are_slices(tmp_path):
    module = make_module(make_logs(tmp_path / "logs"))
    for split, dataset in (("val", module.val_dataset()), ("test", module.test_dataset())):
        got = {name: np.concatenate([batch[name] for batch in dataset]) for name in ("states", "actions")}
        for name, windows in got.items():
            expected = [getattr(t, name)[i : i + 5] for t in module.trajectories(split) for i in range(30 - 5 + 1)]
            np.testing.assert_array_equal(windows, expected)
            assert windows.dtype == np.float32


def test_an_epoch_has_every_window_once_in_a_new_order(tmp_path):
    module = make_module(make_logs(tmp_path / "logs"), batch_size=7)
    dataset = module.train_dataset(seed=3)
    assert len(dataset) == 7 * 26 // 7
    epochs = [
        np.concatenate([dataset[epoch * len(dataset) + i]["states"][:, 0, 0] for i in range(len(dataset))])
        for epoch in range(2)
    ]
    expected = sorted(t.states[i, 0] for t in module.trajectories("train") for i in range(26))
    assert not np.array_equal(*epochs)
    for epoch in epochs:
        np.testing.assert_array_equal(sorted(epoch), expected)
        assert not np.array_equal(epoch, sorted(epoch))
    assert not np.array_equal(epochs[0][:7], module.train_dataset(seed=4)[0]["states"][:, 0, 0])


def test_weights(tmp_path):
    """Two files and twenty: by size, and mixed three to one, over epochs in which the small source comes often."""
    sources = make_logs(tmp_path / "a", 4), make_logs(tmp_path / "b", 20, first=20)
    share = lambda batches: np.mean([batch["states"][:, 0, 0] < 20 for batch in batches])  # noqa: E731
    module = make_module(sources, batch_size=16, val_ratio=0.25, test_ratio=0.0)
    plain = module.train_dataset(0)
    assert share(plain) == pytest.approx(3 / 18, abs=0.02)
    weighted = dataclasses.replace(module, weights=(3.0, 1.0)).train_dataset(0)
    assert len(weighted) == len(plain) == 18 * 26 // 16
    assert share(weighted) == pytest.approx(0.75, abs=0.01)
    later = [weighted[i] for i in range(len(weighted), 8 * len(weighted))]
    assert share(later) == pytest.approx(0.75, abs=0.01)
    assert all(share([batch]) == pytest.approx(0.75, abs=0.07) for batch in later)
    # Every window of both sources comes, and with equal chances inside a source.
    firsts = np.concatenate([batch["states"][:, 0, 0] for batch in later])
    values, counts = np.unique(firsts, return_counts=True)
    assert len(values) == 18 * 26
    assert np.ptp(counts[values < 20]) <= 2
    assert files_in(module.val_dataset()) == files_in(dataclasses.replace(module, weights=(3.0, 1.0)).val_dataset())
    assert len(files_in(module.val_dataset())) == 6


def test_transform(tmp_path):
    def halve(states, actions):
        states[:, 0] = 0  # a copy: what was read stays
        return np.concatenate([states[:, 1:2], states[:, 3:4]], 1), actions * 2

    plain = make_module(make_logs(tmp_path / "logs"))
    module = make_module(plain.data, transform_fn=halve, transform_layout=StateLayout(1, 1, (0,)), angles=None)
    for old, new in zip(plain.trajectories("train"), module.trajectories("train"), strict=True):
        np.testing.assert_array_equal(new.states, old.states[:, [1, 3]])
        np.testing.assert_array_equal(new.actions, old.actions * 2)
    assert (module.layout.nq, module.layout.nv, module.action_dim) == (1, 1, 1)
    assert module.example_batch()["states"].shape == (8, 5, 2)
    for transform, message in (
        (lambda s, a: (s[1:], a), r"states of shape \(29, 4\) from .*00\.csv; expected \(30, entries\)"),
        (lambda s, a: (s, a / 0), r"actions\[0, 0\] = inf"),
        (lambda s, a: (s[:, :3], a), r"states of 3 entries from the 4 of .*00\.csv.*Expected transform_layout="),
        (lambda s, a: (s[:, [0, 2]], a), "states of 2 entries from the 4"),  # 1 + 1, or 2 + 0: not guessed
        (lambda s, a: s, "returned ndarray; expected states and actions"),
    ):
        with np.errstate(divide="ignore"), pytest.raises(DataError, match=message):
            make_module(plain.data, transform_fn=transform).setup()


def test_all_of_it_is_test(tmp_path):
    module = make_module(make_logs(tmp_path / "logs"), val_ratio=0.0, test_ratio=1.0)
    assert len(module.trajectories("test")) == 10
    assert (module.layout.nq, module.action_dim, module.dt) == (2, 1, pytest.approx(0.02))
    assert module.val_dataset() is None
    rows = np.concatenate([batch["states"] for batch in module.test_dataset()])
    assert len(rows) == 10 * 26
    for use in (lambda: module.train_dataset(0), module.statistics):
        with pytest.raises(ConfigError, match=r"test_ratio=1\.0 leaves nothing to train on"):
            use()


def test_more_positions_than_velocities(tmp_path):
    def contact(states, actions):
        heights = np.abs(states[:, :1])
        return np.concatenate([states[:, :2], heights, states[:, 2:3]], 1), actions

    data = make_logs(tmp_path / "logs")
    layout = StateLayout(nq=2, nv=2)
    # What a body frame with a rotation gives: one position more than velocities.
    quaternion = StateLayout(nq=4, nv=3, quaternions=((0, 0),))

    def turn(states, actions):
        rotation = np.tile(np.float32([1, 0, 0, 0]), (len(states), 1))
        return np.concatenate([rotation, states[:, :3]], 1), actions

    for change, expected in ((contact, layout), (turn, quaternion)):
        module = make_module(data, transform_fn=change, transform_layout=expected, angles=None)
        assert module.layout == expected
        assert all(one.nq == expected.nq for one in module.trajectories("train"))
    with pytest.raises(DataError, match=r"states of 4 entries .*transform_layout has 4 positions and 3 velocities"):
        make_module(data, transform_fn=contact, transform_layout=quaternion, angles=None).setup()
    with pytest.raises(ConfigError, match=r"so do system=None and angles=\(1,\): leave those out"):
        make_module(data, transform_fn=contact, transform_layout=layout, angles=(1,)).setup()
    with pytest.raises(ConfigError, match="transform_fn=None"):
        make_module(data, transform_layout=layout, angles=None).setup()


def test_statistics_are_of_training_rows(tmp_path):
    module = make_module(make_logs(tmp_path / "logs"))
    statistics = module.statistics()
    parts = module.trajectories("train")
    states = np.concatenate([t.states for t in parts]).astype(np.float64)
    np.testing.assert_allclose(statistics["states"].mean, states.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics["states"].std, states.std(0), rtol=1e-9)
    assert statistics["states"].mean.dtype == np.float64
    assert (statistics["states"].count, statistics["deltas"].count) == (7 * 30, 7 * 29)
    deltas = np.concatenate([np.diff(t.states.astype(np.float64), axis=0) for t in parts])
    np.testing.assert_allclose(statistics["deltas"].mean, deltas.mean(0), atol=1e-6)
    np.testing.assert_allclose(statistics["deltas"].std, deltas.std(0), rtol=1e-5)
    assert module.dt == pytest.approx(0.02)


def test_layout_of_a_system(tmp_path):
    data = make_logs(tmp_path / "logs")
    module = make_module(data, system="cart-pole", angles=None)
    assert (module.layout.angles, module.layout.coordinates) == ((1,), (0,))
    with pytest.raises(ConfigError, match=r"00\.csv has \(2, 2, 1\) entries.*'pendulum' has \(1, 1, 1\)"):
        make_module(data, system="pendulum", angles=None).setup()
    with pytest.raises(ConfigError, match="angles=None and system=None: which positions are angles"):
        make_module(data, angles=None).setup()


def test_rows_are_stored_once(tmp_path):
    """What the datasets hold doesn't grow with the window."""

    def held(history, horizon):
        module = make_module(data, history=history, horizon=horizon)
        module.train_dataset(0), module.val_dataset(), module.test_dataset()
        rows = [array for rows in module._parts[0].values() for array in (rows.states, rows.actions, rows.timestamp)]
        assert all(t.states.base is not None for t in module.trajectories("train"))
        return sum(array.nbytes for array in (*rows, *module._starts.values()))

    data = make_logs(tmp_path / "logs", rows=300)
    once = 3000 * (4 * 4 + 1 * 4 + 8)
    assert held(100, 100) < held(11, 9) < held(1, 1) < once + 3000 * 8


def test_short_trajectories(tmp_path, caplog):
    data = make_logs(tmp_path / "logs", rows=8)
    make_logs(tmp_path / "logs", 8, rows=4, first=10)
    with caplog.at_level(logging.WARNING):
        module = make_module(data)
        module.setup()
    assert "leaving out 8 of 18 trajectories, shorter than history + horizon = 5 rows; the first is" in caplog.text
    assert sum(len(module.trajectories(split)) for split in ("train", "val", "test")) == 10
    with pytest.raises(
        DataError, match=r"00\.csv has 8 rows and no file of .* at least history \+ horizon = 7 \+ 2 = 9"
    ):
        make_module(data, history=7).setup()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history": 0}, "history=0; expected at least 1"),
        ({"val_ratio": 1.0}, "val_ratio=1.0; expected 0 or more and less than 1"),
        ({"val_ratio": 0.5, "test_ratio": 0.5}, "leave none of the 10 trajectories of .*logs' for training"),
        ({"test_ratio": 0.01}, "test_ratio=0.01 of 10 trajectories is none"),
        ({"weights": (1.0, 2.0)}, r"weights=\(1.0, 2.0\) for the 1 sources"),
        ({"weights": (0.0,)}, "expected one number > 0 for each"),
        ({"batch_size": 500}, "batch_size=500 is larger than the training data: 182 windows"),
        ({"data": ()}, "names no source"),
        ({"angles": (2,)}, r"StateLayout.angles: got \(2,\)"),
    ],
)
def test_settings_that_cannot_be_met(tmp_path, changes, message):
    data = make_logs(tmp_path / "logs")
    with pytest.raises((ConfigError, DataError), match=message):
        make_module(**({"data": data} | changes)).train_dataset(0)


def test_sources_must_agree_and_not_overlap(tmp_path):
    data = make_logs(tmp_path / "logs")
    with pytest.raises(DataError, match=r"names .*03\.csv twice"):
        make_module((data, f"{data}/../logs/03.csv")).setup()
    other = write(tmp_path / "other" / "a.csv", text_of(values_of(30, 7), names_of(2, 2, 2)))
    with pytest.raises(DataError, match=r"a\.csv has 2 qpos, 2 qvel, 2 ctrl; .*00\.csv has 2 qpos, 2 qvel, 1 ctrl"):
        make_module((data, str(other))).setup()


def test_flags_and_json():
    base = TrajectoryDataModule("logs")
    flags = ["--data", "a", "b", "--weights", "1", "2", "--angles", "1", "2", "--history", "5", "--no-cache"]
    module = tyro.cli(TrajectoryDataModule, args=flags, default=base)
    assert (module.data, module.weights, module.angles, module.history) == (("a", "b"), (1.0, 2.0), (1, 2), 5)
    assert module.cache is False
    assert tyro.cli(TrajectoryDataModule, args=["--data", "a", "--angles"], default=base).angles == ()
    assert tyro.cli(TrajectoryDataModule, args=["--data", "a"]).data in ("a", ("a",))
    assert json.loads(json.dumps(to_json(module)))["data"] == ["a", "b"]


@dataclasses.dataclass(frozen=True)
class NextTask(gx.Task):
    """A linear guess of the last row from the rest."""

    def build_model(self, rngs):
        return nnx.Linear(4 * 5, 4, rngs=rngs)

    def build_optimizer(self, num_steps):
        return optax.adam(1e-3)

    def loss(self, model, batch, rng):
        flat = jnp.concatenate([batch["states"][:, :-1].reshape(8, -1), batch["actions"][:, :-1].reshape(8, -1)], -1)
        return jnp.mean((model(flat) - batch["states"][:, -1]) ** 2), {}

    def evaluate(self, model, batch, rng):
        return {"loss": jnp.mean(batch["states"] ** 2)}


@pytest.mark.parametrize("weighted", [False, True])
def test_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path, weighted):
    sources = make_logs(tmp_path / "a"), make_logs(tmp_path / "b", 4, first=20)

    def fit(run_dir, steps, resume=None):
        module = make_module(sources, weights=(1.0, 2.0) if weighted else None)
        recorder = Recorder()
        trainer = gx.Trainer(max_steps=steps, run_dir=tmp_path / run_dir, callbacks=[recorder, gx.Checkpoint()])
        return trainer.fit(NextTask(), module, resume=resume), recorder.train

    whole, losses = fit("whole", 50)
    fit("parts", 37)
    parts, rest = fit("parts", 50, resume="last")
    assert_same_state(whole.state, parts.state)
    assert rest
    assert rest == {step: losses[step] for step in rest}
    assert min(rest) == 38
