"""Motions in NPZ files: windows, parts, memory, and what is refused."""

import dataclasses
import json
import logging
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro
from flax import nnx
from support import Recorder, assert_same_state

import galvanax as gx
from galvanax.datamodules import npz_table
from galvanax.envs.classic.cart_pole import CartPole
from galvanax.errors import ConfigError, DataError
from galvanax.physics import load_model
from galvanax.runs.config import to_json
from galvanax.tasks.collect_motions import Motions, save_motions

D, A, C = 4, 2, 3


def motions(count=10, steps=30, first=0, lengths=True):
    """Every number of trajectory i lies between i and i + 1; the first entry of each array counts its rows."""
    rng = np.random.default_rng(first)
    arrays = {}
    for name, dim in (("states", D), ("actions", A), ("conditionings", C)):
        array = rng.uniform(0.05, 0.95, (count, steps, dim))
        array[..., 0] = np.arange(steps) / 1000
        arrays[name] = (array + np.arange(first, first + count)[:, None, None]).astype(np.float32)
    if lengths:
        arrays["lengths"] = rng.integers(steps // 2, steps + 1, count)
        for index, length in enumerate(arrays["lengths"]):
            for name in ("states", "actions", "conditionings"):
                arrays[name][index, length:] = np.nan  # no one may look
    return arrays | {"dt": np.float64(0.02)}


def write(path, arrays, save=np.savez):
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, **arrays)
    return str(path)


def make(data, **changes):
    return gx.MotionDataModule(
        data, **({"horizon": 5, "batch_size": 8, "val_ratio": 0.2, "test_ratio": 0.1, "seed": 3} | changes)
    )


def gathered(dataset):
    batches = [dataset[index] for index in range(len(dataset))]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def numbers(arrays):
    """Of the trajectories that they come from."""
    return {int(x) for array in arrays.values() for x in np.unique(array)}


def plain(arrays, chosen, horizon, stride=1):
    """The windows of some trajectories, one by one."""
    windows = {"states": [], "condition": [], "actions": []}
    for i in sorted(chosen):
        for t in range(0, arrays["lengths"][i] - horizon, stride):
            windows["states"].append(arrays["states"][i, t : t + horizon + 1])
            windows["condition"].append(arrays["conditionings"][i, t])
            windows["actions"].append(arrays["actions"][i, t : t + horizon])
    return {name: np.array(values, np.float32) for name, values in windows.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
        assert one[name].dtype == np.float32


def in_order(windows):
    order = np.lexsort((windows["states"][:, 0, 0],))
    return {name: values[order] for name, values in windows.items()}


@pytest.mark.behaviour("reports 32")
@pytest.mark.parametrize(("stride", "horizon"), [(1, 5), (3, 5), (50, 1), (1, 14)])
def test_windows_are_slices(tmp_path, stride, horizon):
    arrays = motions()
    module = make(write(tmp_path / "m.npz", arrays), stride=stride, horizon=horizon, batch_size=2)
    for dataset in (module.val_dataset(), module.test_dataset()):
        got = gathered(dataset)
        assert_same(got, plain(arrays, numbers(got), horizon, stride))
    train = module.train_dataset(seed=0)
    got = gathered(train)
    expected = plain(arrays, numbers(got), horizon, stride)
    assert len(train) == len(expected["states"]) // 2
    if len(expected["states"]) % 2 == 0:
        assert_same(in_order(got), expected)
    assert module.example_batch()["states"].shape == (2, horizon + 1, D)
    assert (module.state_dim, module.action_dim, module.condition_dim, module.dt) == (D, A, C, 0.02)


def test_an_epoch_has_every_window_once_in_a_new_order(tmp_path):
    module = make(write(tmp_path / "m.npz", motions(lengths=False)), batch_size=7)
    dataset = module.train_dataset(seed=3)
    assert len(dataset) == 7 * 25 // 7
    epochs = [
        np.concatenate([dataset[epoch * len(dataset) + i]["states"][:, 0, 0] for i in range(len(dataset))])
        for epoch in range(2)
    ]
    assert not np.array_equal(*epochs)
    assert not np.array_equal(epochs[0][:7], np.sort(epochs[0][:7]))
    np.testing.assert_array_equal(*map(np.sort, epochs))
    assert len(np.unique(epochs[0])) == 7 * 25
    assert not np.array_equal(epochs[0][:7], module.train_dataset(seed=4)[0]["states"][:, 0, 0])


@pytest.mark.behaviour("reports 32")
def test_split_by_trajectory_does_not_leak(tmp_path):
    """Two sources of two files and one: each is split on its own."""
    for name, count, first in (("a/0", 8, 0), ("a/1", 12, 8), ("b/0", 10, 20)):
        write(tmp_path / f"{name}.npz", motions(count, first=first))
    sources = str(tmp_path / "a"), str(tmp_path / "b")
    module = make(sources, batch_size=1)
    seen = [numbers(gathered(data)) for data in (module.train_dataset(0), module.val_dataset(), module.test_dataset())]
    assert [len(part) for part in seen] == [21, 6, 3]
    assert [len({i for i in part if i < 20}) for part in seen] == [14, 4, 2]
    assert set.union(*seen) == set(range(30))
    again, other = make(sources), make(sources, seed=4)
    assert numbers(gathered(again.val_dataset())) == seen[1]
    assert numbers(gathered(other.val_dataset())) != seen[1]
    # Nor do statistics see what is held out.
    statistics = module.statistics()["states"]
    assert {int(statistics.min[0]), int(statistics.max[0])} == {min(seen[0]), max(seen[0])}


def test_shards_are_as_one_file(tmp_path):
    arrays = motions(11)
    whole = make(write(tmp_path / "whole.npz", arrays))
    for index, rows in enumerate((slice(0, 4), slice(4, 8), slice(8, 11))):
        shard = {name: array if name == "dt" else array[rows] for name, array in arrays.items()}
        write(tmp_path / "parts" / f"motions-{index:05}-of-00003.npz", shard)
    expected = [gathered(data) for data in (whole.train_dataset(5), whole.val_dataset(), whole.test_dataset())]
    for data in ("parts", "parts/motions.npz", "parts/*-of-00003.npz"):
        module = make(str(tmp_path / data))
        for one, other in zip(
            expected, (module.train_dataset(5), module.val_dataset(), module.test_dataset()), strict=True
        ):
            assert_same(one, gathered(other))
        for name, one in whole.statistics().items():
            other = module.statistics()[name]
            np.testing.assert_allclose([one.mean, one.std], [other.mean, other.std], rtol=1e-12)
            assert one.count == other.count


def test_a_shard_that_is_missing(tmp_path, caplog):
    for index in (0, 3):
        write(tmp_path / f"m-{index:05}-of-00004.npz", motions(first=10 * index))
    with caplog.at_level(logging.WARNING):
        make(str(tmp_path / "m.npz")).setup()
    assert "m: 2 of 4 shards are there; missing is number 1." in caplog.text


def save_fortran(path, **arrays):
    np.savez(path, **{name: np.asfortranarray(array) for name, array in arrays.items()})


def save_big_endian(path, **arrays):
    np.savez(path, **{name: array.astype(array.dtype.newbyteorder(">")) for name, array in arrays.items()})


def save_float64(path, **arrays):
    np.savez(path, **{name: array.astype(np.float64) if array.ndim == 3 else array for name, array in arrays.items()})


@pytest.mark.parametrize(
    ("save", "mapped"),
    [
        (np.savez, True),
        (save_big_endian, True),
        (save_float64, True),
        (np.savez_compressed, False),
        (save_fortran, False),
    ],
)
def test_where_the_numbers_are(tmp_path, save, mapped):
    """At any address: a byte array before them moves the rest."""
    arrays = motions()
    expected = gathered(make(write(tmp_path / "plain.npz", arrays)).val_dataset())
    for odd in range(4):
        path = write(tmp_path / f"{odd}.npz", {"a": np.zeros(odd, np.int8)} | arrays, save)
        module = make(path)
        assert_same(gathered(module.val_dataset()), expected)
        (file,) = module._files
        for table in file.tables().values():
            assert isinstance(table.raw.base, np.memmap) == mapped
            assert table.raw.flags.writeable != mapped


MEMORY = """
import resource, sys
import galvanax as gx

def status(name):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(name + ":"))

gx.MotionDataModule(sys.argv[1], batch_size=64, horizon=16, stride=16).setup()
peak, anonymous = status("VmHWM"), status("RssAnon")
module = gx.MotionDataModule(sys.argv[2], batch_size=64, horizon=16, stride=16)
module.setup()
module.statistics()
streamed = status("VmHWM") - peak
dataset = module.train_dataset(0)
for index in range(len(dataset)):
    dataset[index]
print(streamed, status("RssAnon") - anonymous, status("RssFile"))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what kind of memory it is")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """300 MB, written a part at a time: a pass over them is streamed, and batches hold pages of the file alone."""
    part = np.random.default_rng(0).normal(size=(20, 1000, 128)).astype(np.float32)
    for name, parts in (("small", 1), ("large", 30)):
        with (
            zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as archive,
            archive.open("states.npy", "w", force_zip64=True) as file,
        ):
            header = {"descr": "<f4", "fortran_order": False, "shape": (20 * parts, 1000, 128)}
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(parts):
                file.write(part.data)
    size = (tmp_path / "large.npz").stat().st_size / 2**20
    assert size > 290
    command = [sys.executable, "-c", MEMORY, tmp_path / "small.npz", tmp_path / "large.npz"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    streamed, anonymous, of_files = map(float, result.stdout.split())
    assert streamed < 60
    assert anonymous < 60
    assert of_files > 0.5 * size  # so it was the file that was read


@pytest.mark.behaviour("reports 32")
def test_statistics_are_streamed_and_of_training_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_table, "CHUNK_BYTES", 500)
    arrays = motions()
    module = make(write(tmp_path / "m.npz", arrays), batch_size=1)
    train = numbers(gathered(module.train_dataset(0)))
    statistics = module.statistics()
    assert statistics.keys() == {"states", "condition", "actions"}
    for name, key, less in (("states", "states", 0), ("condition", "conditionings", 0), ("actions", "actions", 1)):
        rows = np.concatenate([arrays[key][i, : arrays["lengths"][i] - less] for i in train]).astype(np.float64)
        np.testing.assert_allclose(statistics[name].mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(statistics[name].std, rows.std(0), rtol=1e-9)
        np.testing.assert_array_equal([statistics[name].min, statistics[name].max], [rows.min(0), rows.max(0)])
        assert statistics[name].count == len(rows)


def test_other_forms_of_the_same(tmp_path):
    """A condition a trajectory, an action fewer than states, a file a trajectory."""
    arrays = motions(lengths=False)
    arrays["conditionings"] = np.repeat(arrays["conditionings"][:, :1], 30, axis=1)
    expected = make(write(tmp_path / "full.npz", arrays))
    short = arrays | {"conditionings": arrays["conditionings"][:, 0], "actions": arrays["actions"][:, :-1]}
    write(tmp_path / "short.npz", short)
    for i in range(10):
        one = {name: array if name == "dt" else array[i] for name, array in short.items()}
        write(tmp_path / "single" / f"{i}.npz", one | {"lengths": np.int32(30)})
    for data in ("short.npz", "single"):
        module = make(str(tmp_path / data))
        for split in ("val_dataset", "test_dataset"):
            assert_same(gathered(getattr(module, split)()), gathered(getattr(expected, split)()))
        assert_same(gathered(module.train_dataset(1)), gathered(expected.train_dataset(1)))
        statistics = module.statistics()
        assert (statistics["condition"].count, statistics["actions"].count) == (7, 7 * 29)
    bare = make(write(tmp_path / "bare.npz", {"states": arrays["states"]}))
    assert bare.example_batch().keys() == bare.statistics().keys() == {"states"}
    assert (bare.action_dim, bare.condition_dim, bare.layout) == (None, 0, None)


def test_short_trajectories_are_left_out(tmp_path, caplog):
    arrays = motions(lengths=False) | {"lengths": np.array([5, 30, 6, 0, 30, 7, 30, 30, 30, 30])}
    with caplog.at_level(logging.WARNING):
        module = make(write(tmp_path / "m.npz", arrays), batch_size=1)
        module.setup()
    assert "leaving out 2 of 10 trajectories, shorter than horizon + 1 = 6 rows" in caplog.text
    parts = (module.train_dataset(0), module.val_dataset(), module.test_dataset())
    assert set.union(*(numbers(gathered(part)) for part in parts)) == {1, 2, 4, 5, 6, 7, 8, 9}
    with pytest.raises(DataError, match=r"longest of 10 trajectories has 30 rows \(.*m\.npz\); .*horizon \+ 1 = 31"):
        make(module.data, horizon=30).setup()


def test_what_collect_writes(tmp_path):
    env, rng = CartPole(start="upright"), np.random.default_rng(0)
    states, actions = (rng.normal(size=(6, 12, dim)).astype(np.float32) for dim in (4, 1))
    lengths = np.array([12, 9, 12, 5, 12, 7])
    batch = Motions(states, actions, actions[..., 0], lengths, np.arange(6), lengths < 12)
    paths = save_motions(tmp_path / "m.npz", [batch], env, 6, shard_size=2)
    assert len(paths) == 3
    module = make(str(tmp_path / "m.npz"), test_ratio=0.2, horizon=3, batch_size=1)
    got = in_order(gathered(module.train_dataset(0)))
    assert module.layout == gx.physics.StateLayout.from_model(load_model("cart-pole"))
    assert module.layout.angles == (1,)
    assert (module.dt, module.action_dim, module.condition_dim) == (0.02, 1, 0)
    windows = {states.tobytes(): actions for states, actions in zip(got["states"], got["actions"], strict=True)}
    expected = {states[i, t : t + 4].tobytes(): actions[i, t : t + 3] for i in range(6) for t in range(lengths[i] - 3)}
    assert len(windows) > 10
    for window, chosen in windows.items():
        np.testing.assert_array_equal(chosen, expected[window])


def go2_motions(count=10, steps=8):
    model = load_model("go2")
    states = np.zeros((count, steps, 37), np.float32)
    quaternions = np.random.default_rng(0).normal(size=(count, steps, 4))
    states[..., 3:7] = quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True)
    names = np.array([model.joint(index).name for index in range(model.njnt)])
    return {
        "states": states,
        "nq": np.int64(19),
        "nv": np.int64(18),
        "joint_names": names,
        "model_name": np.str_("go2"),
    }


def test_layout(tmp_path):
    arrays = go2_motions()
    expected = gx.physics.StateLayout.from_model(load_model("go2"))
    assert expected.quaternions == ((3, 3),)
    by_name, bare = write(tmp_path / "named.npz", arrays), write(tmp_path / "bare.npz", {"states": arrays["states"]})
    assert make(by_name).layout == make(bare, system="go2").layout == expected
    assert make(bare).layout is None
    # What bears the name of a bundled model and isn't it says nothing.
    for change in ({"nq": np.int64(18), "nv": np.int64(19)}, {"joint_names": arrays["joint_names"][::-1]}):
        assert make(write(tmp_path / "other.npz", arrays | change)).layout is None
    assert make(write(tmp_path / "new.npz", arrays | {"model_name": np.str_("my-robot")})).layout is None
    swapped = write(tmp_path / "swapped.npz", arrays | {"joint_names": _swap(arrays["joint_names"])})
    with pytest.raises(ConfigError, match=r"swapped\.npz has the joints .* number 1 is 'FR_hip.*expected 'FL_hip"):
        make(swapped, system="go2").setup()
    with pytest.raises(ConfigError, match=r"\(19, 18\) entries \(of qpos, qvel\); system='cart-pole' has \(2, 2\)"):
        make(by_name, system="cart-pole").setup()
    with pytest.raises(ConfigError, match=r"has 37 entries \(of qpos, qvel\); system='cart-pole' has 4"):
        make(bare, system="cart-pole").setup()
    with pytest.raises(DataError, match=r"No MuJoCo model 'go3'.*Nearest: go2"):
        make(bare, system="go3").setup()


def _swap(names):
    """Left and right: the order of the actuators of some robots."""
    return np.array([{"FL": "FR", "FR": "FL"}.get(name[:2], name[:2]) + name[2:] for name in names])


def test_quaternions_have_unit_length(tmp_path):
    arrays = go2_motions()
    good = arrays["states"].copy()
    arrays["states"][7, 3, 3:7] *= 1.002
    path = write(tmp_path / "m.npz", arrays)
    with pytest.raises(
        DataError, match=r"m\.npz: states, trajectory 7, row 3: the quaternion .* at 3:7 has length 1\.002"
    ):
        make(path).setup()
    write(tmp_path / "m.npz", arrays | {"model_name": np.str_("mine")})
    make(path).setup()  # nothing says where quaternions are
    write(tmp_path / "m.npz", arrays | {"lengths": np.array([8] * 7 + [3] + [8] * 2)})
    make(path, horizon=2).setup()  # padding is not looked at
    good[7, 3, 3:7] *= 1.0005
    write(tmp_path / "m.npz", arrays | {"states": good})
    make(path).setup()


def changed(arrays, name, place, value):
    array = arrays[name].copy()
    array[place] = value
    return arrays | {name: array}


def without(arrays, *names):
    return {name: array for name, array in arrays.items() if name not in names}


OBJECTS = np.array([np.zeros((3, D)), np.zeros((4, D))], object)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: without(a, "states") | {"state": a["states"]}, r"has no array 'states'; it has .*Nearest: state\b"),
        (lambda a: {"qpos": np.zeros((3, 2))}, r"m\.npz has no array 'states'; it has qpos\.$"),
        (lambda a: a | {"states": np.zeros(5)}, r"states has shape \(5,\); expected \(N, T, state_dim\)"),
        (lambda a: a | {"states": np.zeros((2, 3, 4, 5))}, r"states has shape \(2, 3, 4, 5\); expected \(N, T"),
        (lambda a: a | {"states": np.zeros((0, 30, 4))}, r"states has shape \(0, 30, 4\); expected rows"),
        (lambda a: a | {"states": OBJECTS}, r"states holds Python objects, and nothing here is unpickled"),
        (lambda a: a | {"actions": OBJECTS}, r"actions holds Python objects"),
        (lambda a: a | {"states": np.full((10, 30, 4), "x")}, r"states is of <U1; expected numbers"),
        (lambda a: a | {"states": a["states"] + 1j}, r"states is of complex64; expected numbers"),
        (
            lambda a: changed(a, "states", (4, 13, 2), np.nan),
            r"states, trajectory 4, row 13, entry 2: nan; expected fin",
        ),
        (lambda a: changed(a, "states", (9, 14, 0), -np.inf), r"states, trajectory 9, row 14, entry 0: -inf"),
        (lambda a: changed(a, "actions", (0, 3, 1), np.nan), r"actions, trajectory 0, row 3, entry 1: nan"),
        (lambda a: changed(a, "conditionings", (2, 0, 1), np.nan), r"conditionings, trajectory 2, row 0, entry 1: nan"),
        (
            lambda a: changed(a | {"states": a["states"].astype(np.float64)}, "states", (1, 2, 3), 1e39),
            r"trajectory 1, row 2, entry 3: inf; expected finite numbers, in float32",
        ),
        (lambda a: changed(a, "lengths", 3, 31), r"lengths\[3\] = 31; expected 0 to 30"),
        (lambda a: changed(a, "lengths", 2, -1), r"lengths\[2\] = -1; expected 0 to 30"),
        (lambda a: a | {"lengths": a["lengths"][:9]}, r"lengths is int64\[9\]; expected whole numbers \(10,\)"),
        (lambda a: a | {"lengths": a["lengths"] * 1.0}, r"lengths is float64\[10\]"),
        (
            lambda a: a | {"actions": a["actions"][:9]},
            r"\(9, 30, 2\); expected \(10, 30, entries\) or \(10, 29, entries\)",
        ),
        (lambda a: a | {"actions": a["actions"][:, :20]}, r"actions has shape \(10, 20, 2\); expected"),
        (lambda a: a | {"actions": a["actions"][:, 0]}, r"actions has shape \(10, 2\); expected"),
        (
            lambda a: a | {"conditionings": a["conditionings"][:, :29]},
            r"\(10, 29, 3\); expected \(10, 30, entries\) or \(10, entries\), since states has \(10, 30, 4\)",
        ),
        (lambda a: a | {"conditionings": np.zeros((9, 3))}, r"conditionings has shape \(9, 3\)"),
        (lambda a: a | {"dt": np.float64(-0.02)}, r"dt is .*-0.02.*; expected one number greater than 0"),
        (lambda a: a | {"dt": np.array(np.nan)}, r"dt is .*nan.*; expected one number greater than 0"),
        (lambda a: a | {"dt": np.array([0.02, 0.02])}, r"dt is .*; expected one number"),
        (lambda a: a | {"nq": np.array("two")}, r"nq is .*two.*; expected one number"),
        (lambda a: a | {"nq": np.array(1.5)}, r"nq is 1.5; expected a whole number"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_that_are_refused(tmp_path, change, message, save):
    path = write(tmp_path / "m.npz", change(motions()), save)
    with pytest.raises(DataError, match=message) as caught:
        make(path).setup()
    assert path in str(caught.value)


def test_names_nearly_right(tmp_path, caplog):
    arrays = motions()
    path = write(tmp_path / "m.npz", without(arrays, "actions") | {"action": arrays["actions"]})
    with caplog.at_level(logging.WARNING):
        make(path).setup()
    assert "nothing looks at action; did you mean actions?" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"states": a["states"][..., :3]}, r"1\.npz has 3 entries of states; .*0\.npz has 4"),
        (lambda a: without(a, "actions"), r"1\.npz has no entries of actions; .*0\.npz has 2"),
        (
            lambda a: a | {"conditionings": a["conditionings"][..., :1]},
            r"1\.npz has 1 entries of conditionings; .* has 3",
        ),
        (lambda a: a | {"dt": np.array(0.01)}, r"1\.npz has dt = 0.01 s; .*0\.npz has 0.02 s"),
        (lambda a: a | {"nq": np.array(3)}, r"1\.npz has nq = 3; .*0\.npz has 2"),
        (lambda a: a | {"joint_names": np.array(["b", "a"])}, r"1\.npz has joint_names = \('b', 'a'\); .*\('a', 'b'\)"),
    ],
)
def test_files_must_agree(tmp_path, change, message):
    arrays = motions() | {"nq": np.array(2), "nv": np.array(2), "joint_names": np.array(["a", "b"])}
    write(tmp_path / "0.npz", arrays)
    path = Path(write(tmp_path / "1.npz", without(arrays, "dt", "nq")))
    make(str(tmp_path)).setup()
    write(path, change(arrays))
    with pytest.raises(DataError, match=message):
        make(str(tmp_path)).setup()


def test_files_that_are_none(tmp_path):
    path = Path(write(tmp_path / "motions.npz", motions()))
    for data, message in (
        (tmp_path / "motion.npz", r"motion\.npz': no file with a name that ends in \.npz\. Nearest: .*motions\.npz"),
        (tmp_path / "x*.npz", r"x\*\.npz': no file with a name that ends in \.npz\.$"),
        (tmp_path / "nowhere" / "m.npz", r"no file .*Known: none"),
    ):
        with pytest.raises(DataError, match=message):
            make(str(data)).setup()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".partial-m.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty': no file with a name"):
        make(str(tmp_path / "empty")).setup()
    with pytest.raises(DataError, match=r"names .*motions\.npz twice: it could be trained on and held out"):
        make((str(path), str(tmp_path / "empty" / ".." / "motions.npz"))).setup()
    bad = tmp_path / "bad.npz"
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04", b"timestamp,qpos_0\n", whole[:-200], whole[: len(whole) // 2]):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.npz is no NPZ file, or not all of one"):
            make(str(bad)).setup()
    np.save(tmp_path / "array.npy", np.zeros(3))
    bad.write_bytes((tmp_path / "array.npy").read_bytes())
    with pytest.raises(DataError, match=r"bad\.npz is no NPZ file"):
        make(str(bad)).setup()


@pytest.mark.parametrize("rows", [9, 11])
def test_an_array_of_another_size_than_it_says(tmp_path, rows):
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive, archive.open("states.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10, 30, 4)})
        file.write(np.zeros((rows, 30, 4), np.float32).data)
    with pytest.raises(DataError, match=rf"float32\[10, 30, 4\] takes 4800 bytes; the archive holds {480 * rows}"):
        make(str(tmp_path / "m.npz")).setup()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_does_not_pass(tmp_path, save):
    """A byte changed anywhere is an error, or changes nothing that is read."""
    path = Path(write(tmp_path / "m.npz", motions(), save))
    whole, rng = path.read_bytes(), random.Random(0)
    expected = gathered(make(str(path)).val_dataset())
    refused = 0
    for _ in range(150):
        # Half of the places are in headers and the directory: the numbers fill most of the file.
        place = rng.choice([rng.randrange(len(whole)), rng.choice([rng.randrange(400), -1 - rng.randrange(600)])])
        content = bytearray(whole)
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            module = make(str(path))
            module.setup()
        except DataError:
            refused += 1
        else:
            if module.condition_dim and module.action_dim:  # not the name of an optional array
                assert_same(gathered(module.val_dataset()), expected)
    assert refused > 75


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, "horizon=0; expected at least 1"),
        ({"stride": 0}, "stride=0; expected at least 1"),
        ({"batch_size": 0}, "batch_size=0; expected at least 1"),
        ({"batch_size": 500}, r"batch_size=500 is larger than the training data: \d+ windows"),
        ({"val_ratio": 1.0}, "val_ratio=1.0; expected 0 or more and less than 1"),
        ({"val_ratio": 0.5, "test_ratio": 0.5}, r"leave none of the 10 trajectories of .*m\.npz' for training"),
        ({"test_ratio": 0.01}, "test_ratio=0.01 of 10 trajectories is none; expected a larger share, or 0"),
        ({"data": ()}, "names no source"),
        ({"control_dt": 0.0}, "control_dt=0.0; expected seconds, more than 0"),
        ({"control_dt": 0.01}, r"control_dt=0.01; .*m\.npz has dt = 0.02 s. Leave it out"),
    ],
)
def test_settings_that_cannot_be_met(tmp_path, changes, message):
    data = write(tmp_path / "m.npz", motions())
    with pytest.raises((ConfigError, DataError), match=message):
        make(**({"data": data} | changes)).train_dataset(0)


def test_control_dt(tmp_path):
    data = write(tmp_path / "m.npz", without(motions(), "dt"))
    assert make(data, control_dt=0.05).dt == 0.05
    module = make(data)
    module.setup()
    with pytest.raises(ConfigError, match=r"control_dt=None, and .*m\.npz has no dt; expected one of them"):
        _ = module.dt
    same = write(tmp_path / "same.npz", motions() | {"dt": np.float32(0.02)})
    assert make((same, write(tmp_path / "m.npz", motions())), control_dt=0.02).dt == pytest.approx(0.02, rel=1e-6)


def test_no_held_out_parts(tmp_path):
    module = make(write(tmp_path / "m.npz", motions()), val_ratio=0.0, test_ratio=0.0, batch_size=1)
    assert (module.val_dataset(), module.test_dataset()) == (None, None)
    assert numbers(gathered(module.train_dataset(0))) == set(range(10))


def test_all_of_it_is_test(tmp_path):
    module = make(write(tmp_path / "m.npz", motions()), val_ratio=0.0, test_ratio=1.0, batch_size=1)
    assert numbers(gathered(module.test_dataset())) == set(range(10))
    for use in (lambda: module.train_dataset(0), module.statistics):
        with pytest.raises(ConfigError, match=r"test_ratio=1\.0 leaves nothing to train on"):
            use()


def test_files_are_looked_at_once(tmp_path, monkeypatch):
    module = make(write(tmp_path / "m.npz", motions()))
    module.setup()
    module.statistics()
    monkeypatch.setattr(npz_table.NpzTable, "chunks", None)
    module.setup()
    module.statistics()
    module.train_dataset(0)[0]


def test_flags_and_json():
    base = gx.MotionDataModule("motions.npz")
    flags = ["--data", "a", "b", "--horizon", "4", "--stride", "2", "--system", "go2", "--control-dt", "0.02"]
    module = tyro.cli(gx.MotionDataModule, args=flags, default=base)
    assert (module.data, module.horizon, module.stride) == (("a", "b"), 4, 2)
    assert (module.system, module.control_dt) == ("go2", 0.02)
    assert tyro.cli(gx.MotionDataModule, args=["--data", "a"]).data in ("a", ("a",))
    assert json.loads(json.dumps(to_json(module)))["data"] == ["a", "b"]


@dataclasses.dataclass(frozen=True)
class NextTask(gx.Task):
    """A linear guess of the last row from the rest."""

    def build_model(self, rngs):
        return nnx.Linear(D * 5 + C, D, rngs=rngs)

    def build_optimizer(self, num_steps):
        return optax.adam(1e-3)

    def loss(self, model, batch, rng):
        states = batch["states"]
        flat = jnp.concatenate([states[:, :-1].reshape(len(states), -1), batch["condition"]], -1)
        return jnp.mean((model(flat) - states[:, -1]) ** 2), {}


def test_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path):
    for first in (0, 10):
        write(tmp_path / "data" / f"{first}.npz", motions(first=first))

    def fit(run_dir, steps, resume=None):
        recorder = Recorder()
        trainer = gx.Trainer(max_steps=steps, run_dir=tmp_path / run_dir, callbacks=[recorder, gx.Checkpoint()])
        return trainer.fit(NextTask(), make(str(tmp_path / "data"), batch_size=16), resume=resume), recorder.train

    whole, losses = fit("whole", 30)
    fit("parts", 21)
    parts, rest = fit("parts", 30, resume="last")
    assert_same_state(whole.state, parts.state)
    assert min(rest) == 22
    assert rest == {step: losses[step] for step in rest}
