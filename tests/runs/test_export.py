"""Weights as one file: what is in it, how it is verified, and that a run can start from it."""

import dataclasses
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support import LineTask, NetTask, line_data, net_data

import galvanax as gx
from galvanax.runs.weights import DTYPES, Weights, read_weights, write_weights


def train(folder, task, callbacks=(), steps=20, data=None):
    trainer = gx.Trainer(max_steps=steps, run_dir=folder, callbacks=[*callbacks, gx.Checkpoint(keep_last=2)])
    return trainer.fit(task, data or net_data())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "source"
    return folder, train(folder, NetTask(width=12), [gx.EMA(0.9)])


def test_holds_the_evaluation_weights_by_path(source, tmp_path):
    folder, result = source
    path = gx.export_safetensors(folder, tmp_path / "new" / "weights.safetensors")
    arrays = load_file(path)
    assert arrays.keys() == {
        *(f"params/{layer}/{leaf}" for layer in ("first", "second") for leaf in ("kernel", "bias")),
        "params/norm/scale",
        "params/norm/bias",
        "variables/norm/mean",
        "variables/norm/var",
    }
    for name, value in result.state.slots["EMA"].items():
        np.testing.assert_array_equal(arrays[f"params/{name}"], value)
    for name, value in result.state.variables.items():
        np.testing.assert_array_equal(arrays[f"variables/{name}"], value)
    with safe_open(path, framework="np") as file:
        metadata = {name: json.loads(value) for name, value in file.metadata().items()}
    assert metadata["task"] == {
        "type": "NetTask", "width": 12, "dropout": 0.2, "noise": 0.01, "learning_rate": 0.01
    }  # fmt: skip
    assert metadata["step"] == 20
    assert metadata["history"] == result.history[-1:]
    assert metadata["versions"]["jax"] == jax.__version__
    assert [entry.name for entry in path.parent.iterdir()] == ["weights.safetensors"]


def test_the_checkpoint_is_chosen(source, tmp_path):
    folder, _ = source
    _, model = NetTask.load(folder, "10")
    arrays = load_file(gx.export_safetensors(folder, tmp_path / "ten", "10"))
    np.testing.assert_array_equal(arrays["params/first/kernel"], model.first.kernel[...])
    again = load_file(gx.export_safetensors(folder / "checkpoints" / "10", tmp_path / "ten"))
    np.testing.assert_array_equal(again["params/first/kernel"], model.first.kernel[...])


class BrainTask(LineTask):
    """bfloat16 parameters, and variables of odd forms."""

    def build_model(self, rngs):
        model = nnx.Linear(1, 1, use_bias=False, param_dtype=jnp.bfloat16, rngs=rngs)
        model.count = nnx.Variable(jnp.int32(5))
        model.flags = nnx.Variable(jnp.array([True, False]))
        return model


def test_every_kind_of_array_survives(tmp_path):
    result = train(tmp_path / "run", BrainTask(), data=line_data())
    path = gx.export_safetensors(tmp_path / "run", tmp_path / "weights")
    arrays = load_file(path)
    assert arrays["params/kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(arrays["params/kernel"], result.state.params["kernel"])
    assert arrays["variables/count"].shape == ()
    assert arrays["variables/count"] == 5
    assert arrays["variables/flags"].tolist() == [True, False]
    warm = gx.WarmStart(path)
    tuned = gx.Trainer(max_steps=1, seed=1, callbacks=[warm]).fit(BrainTask(learning_rate=0.0), line_data())
    assert set(warm.report.loaded) == {"kernel", "count", "flags"}
    assert tuned.state.params["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(tuned.state.params["kernel"], result.state.params["kernel"])


def test_the_file_gives_back_every_type_that_it_takes(tmp_path):
    params = {name: np.arange(6).reshape(2, 3).astype(jnp.dtype(name)) for name in DTYPES}
    params |= {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float32)}
    weights = Weights(tmp_path, params, {}, {"task": {"type": "Net"}, "step": 3, "versions": {}, "history": []})
    write_weights(tmp_path / "weights", weights)
    found = read_weights(tmp_path / "weights")
    assert found.meta == weights.meta
    assert found.params.keys() == params.keys()
    for name, value in params.items():
        assert (found.params[name].dtype, found.params[name].shape) == (value.dtype, value.shape)
        assert found.params[name].tobytes() == value.tobytes()
    for dtype in (jnp.float8_e4m3fn, np.complex128):
        odd = dataclasses.replace(weights, params={"a": np.zeros(2, dtype)})
        with pytest.raises(gx.ConfigError, match=r"params/a is (float8_e4m3fn|complex128)\[2\]; a safetensors file"):
            write_weights(tmp_path / "odd", odd)


def test_a_warm_start_from_the_file(source, tmp_path):
    folder, result = source
    path = gx.export_safetensors(folder, tmp_path / "weights.safetensors")
    warm = gx.WarmStart(path, include=("second/*", "norm/*"))
    tuned = gx.Trainer(max_steps=1, seed=3, callbacks=[gx.Freeze(("second/*",)), warm]).fit(
        NetTask(width=12), net_data()
    )
    assert warm.report.loaded == (
        "norm/bias", "norm/mean", "norm/scale", "norm/var", "second/bias", "second/kernel"
    )  # fmt: skip
    np.testing.assert_array_equal(tuned.state.params["second/kernel"], result.state.slots["EMA"]["second/kernel"])


def read(path):
    gx.Trainer(max_steps=1, callbacks=[gx.WarmStart(path)]).fit(NetTask(width=12), net_data())


def test_damage_is_found(source, tmp_path):
    path = gx.export_safetensors(source[0], tmp_path / "weights")
    whole = path.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    for at in (8 + header, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(gx.CheckpointError, match=r"weights is damaged: (params|variables)/\S+ altered"):
            read(path)
    for bad in (whole[:-1], whole[:100], b"", whole.replace(b"params/first/bias", b"params/first/bios", 1)):
        path.write_bytes(bad)
        with pytest.raises(gx.CheckpointError, match="weights is damaged"):
            read(path)
    save_file(load_file(gx.export_safetensors(source[0], path)), path)
    with pytest.raises(gx.CheckpointError, match="was not written by `galvanax export`: its metadata lack 'task'"):
        read(path)


def test_a_failed_export_leaves_the_old_file(source, tmp_path, monkeypatch):
    path = gx.export_safetensors(source[0], tmp_path / "weights", "10")
    before = path.read_bytes()

    def full_disk(arrays, partial, metadata):
        partial.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("galvanax.runs.weights.save_file", full_disk)
    with pytest.raises(gx.ConfigError, match="weights cannot be written: no space left"):
        gx.export_safetensors(source[0], path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights"]
    assert path.read_bytes() == before


def test_what_is_wrong(source, tmp_path):
    folder, _ = source
    with pytest.raises(gx.CheckpointError, match=r"There is no run folder, checkpoint or file .*Nearest: .*source"):
        gx.export_safetensors(f"{folder}x", tmp_path / "weights")
    with pytest.raises(gx.CheckpointError, match="No checkpoint of step 3"):
        gx.export_safetensors(folder, tmp_path / "weights", "3")
    with pytest.raises(gx.ConfigError, match="cannot be written"):
        gx.export_safetensors(folder, tmp_path)
    assert not list(tmp_path.iterdir())
