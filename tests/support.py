"""The small task and data that many tests train."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import galvanax as gx


def casts_to_float16() -> bool:
    """Whether XLA can: on a CPU without F16C (`--xla_cpu_max_isa=SSE4_2`) it can't compile such a cast."""
    try:
        return bool(jax.jit(lambda x: x.astype(jnp.float16))(jnp.ones(1))[0] == 1)
    except jax.errors.JaxRuntimeError:
        return False


class Net(nnx.Module):
    """Two layers with dropout and batch normalisation: every kind of state a model can have."""

    def __init__(self, width: int, dropout: float, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(3, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.second = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.dropout(nnx.tanh(self.norm(self.first(x)))))


@dataclasses.dataclass(frozen=True)
class NetTask(gx.Task):
    """Regression with noise on the inputs, dropout and batch statistics."""

    width: int = 16
    dropout: float = 0.2
    noise: float = 0.01
    learning_rate: float = 1e-2

    def build_model(self, rngs):
        return Net(self.width, self.dropout, rngs=rngs)

    def build_optimizer(self, num_steps):
        return optax.adamw(optax.cosine_decay_schedule(self.learning_rate, num_steps))

    def loss(self, model, batch, rng):
        x = batch["x"] + self.noise * jax.random.normal(rng, batch["x"].shape)
        error = model(x) - batch["y"]
        return jnp.mean(error**2), {"mae": jnp.abs(error).mean(-1)}

    def evaluate(self, model, batch, rng):
        error = model(batch["x"]) - batch["y"]
        return {"loss": jnp.mean(error**2), "mae": jnp.abs(error).mean(-1)}

    def predict(self, model, batch, rng):
        return {"y": model(batch["x"])}


@dataclasses.dataclass(frozen=True)
class LineTask(gx.Task):
    """y = w x by plain gradient descent: every number can be computed by hand."""

    learning_rate: float = 0.1

    def build_model(self, rngs):
        return nnx.Linear(1, 1, use_bias=False, rngs=rngs)

    def build_optimizer(self, num_steps):
        return optax.sgd(self.learning_rate)

    def loss(self, model, batch, rng):
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2), {}


def regression(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs (rows, 3), outputs (rows, 2)."""
    x = np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)
    return {"x": x, "y": np.stack([np.sin(x[:, 0]) * x[:, 1], x[:, 2] ** 2], -1)}


def net_data(rows: int = 320, val: int = 50, batch_size: int = 32) -> gx.ArrayDataModule:
    """Data for NetTask."""
    return gx.ArrayDataModule(regression(rows), regression(val, 1), regression(val, 2), batch_size)


def line_data(rows: int = 64, batch_size: int = 8) -> gx.ArrayDataModule:
    """Data for LineTask: y = 3 x."""
    x = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    return gx.ArrayDataModule({"x": x, "y": 3 * x}, {"x": x, "y": 3 * x}, batch_size=batch_size)


def arrays_of(state: gx.TrainState) -> list[np.ndarray]:
    """All leaves of a state, on the host."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_same_state(one: gx.TrainState, other: gx.TrainState) -> None:
    """Bit for bit."""
    for a, b in zip(arrays_of(one), arrays_of(other), strict=True):
        np.testing.assert_array_equal(a, b)


class Recorder(gx.Callback):
    """Remembers what it was called with."""

    def __init__(self, at: tuple[int, ...] = ()):
        self.at = at
        self.seen: list[int] = []
        self.states: dict[int, dict[str, np.ndarray]] = {}
        self.train: dict[int, float] = {}
        self.validations: dict[int, dict[str, float]] = {}
        self.run: gx.RunView | None = None

    def on_fit_start(self, run):
        self.run = run

    def next_step(self, step):
        return next((at for at in self.at if at > step), None)

    def on_step(self, run):
        assert run.step == int(run.state.step)
        self.seen.append(run.step)
        self.states[run.step] = jax.tree.map(np.array, run.state.params)

    def on_train_metrics(self, run, steps, metrics):
        assert not self.train or steps[0] == max(self.train) + 1
        for step, value in zip(steps, metrics["train/loss"], strict=True):
            self.train[step] = float(value)

    def on_validation_end(self, run, metrics):
        self.validations[run.step] = metrics


def fingerprints(batch: dict, rng: jax.Array) -> dict[str, jax.Array]:
    """Which rows a step saw, in which order, and with which noise: exact in float32, whatever the order of sums."""
    row, place = batch["row"], jnp.arange(len(batch["row"]))
    noise = jax.random.normal(rng, batch["x"].shape)
    # Sums of integers below 2**24, and extremes.
    sums = {"rows": row.sum(), "order": (row * place).sum(), "squares": (row * row).sum()}
    extremes = {"noise_max": noise.max(), "noise_min": noise.min(), "noise_first": noise[0, 0]}
    return {name: value.astype(jnp.float32) for name, value in (sums | extremes).items()}


def run_on_devices(script: str, folder: Path, *arguments: str) -> dict:
    """Runs a script in a process with eight CPU devices; what it wrote to `folder/found.json`, and its output."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, script, str(folder), *arguments],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        capture_output=True, text=True, check=False, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "found.json").read_text()) | {"output": done.stdout + done.stderr}
