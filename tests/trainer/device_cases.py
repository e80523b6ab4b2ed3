"""Small tasks with their data, for the tests that train the same on several devices."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from support import NetTask, net_data

import galvanax as gx
from galvanax.physics import PendulumSystem, StateLayout

DT = 0.05
PENDULUM = StateLayout(1, 1, angles=(0,))


@dataclasses.dataclass(frozen=True)
class NoisyTask(NetTask):
    """Dropout, input noise and batch statistics; says what the noise was, exactly."""

    def loss(self, model, batch, rng):
        loss, metrics = super().loss(model, batch, rng)
        noise = jax.random.normal(rng, batch["x"].shape)
        return loss, {**metrics, "noise_max": noise.max(), "noise_min": noise.min(), "noise_first": noise[0, 0]}


class Deep(nnx.Module):
    """Layers that many devices divide, one that none does, and dropout."""

    def __init__(self, width, *, rngs):
        self.first = nnx.Linear(3, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.odd = nnx.Linear(width, 7, use_bias=False, rngs=rngs)
        self.odder = nnx.Linear(7, 7, use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.last = nnx.Linear(7, 2, rngs=rngs)

    def __call__(self, x):
        hidden = self.dropout(jnp.tanh(self.second(jnp.tanh(self.first(x)))))
        return self.last(jnp.tanh(self.odder(self.odd(hidden))))


@dataclasses.dataclass(frozen=True)
class DeepTask(NoisyTask):
    """Large enough to be worth splitting."""

    width: int = 64
    learning_rate: float = 1e-3

    def build_model(self, rngs):
        return Deep(self.width, rngs=rngs)

    def build_optimizer(self, num_steps):
        return optax.adamw(self.learning_rate)


def transitions(batch_size: int = 32) -> gx.DynamicsDataModule:
    """Of a pendulum, integrated plainly."""
    rng = np.random.default_rng(0)
    angle, rate, torque = (rng.uniform(-3, 3, (10, 64, 1)).astype(np.float32) for _ in range(3))
    acceleration = torque - 9 * np.sin(angle)
    after = rate + DT * acceleration
    states, next_states = np.concatenate([angle, rate], -1), np.concatenate([angle + DT * after, after], -1)
    data = gx.DynamicsDataset(states, torque, next_states, acceleration, DT, PENDULUM)
    train, val = gx.split_dataset(data, 0.8)
    return gx.DynamicsDataModule(train, val, batch_size=batch_size)


def logs(folder: Path) -> gx.TrajectoryDataModule:
    """Of the same pendulum, for the recurrent model."""
    new = not folder.exists()
    folder.mkdir(exist_ok=True)
    for index in range(10 if new else 0):
        rng = np.random.default_rng(index)
        state, rows, torque = rng.normal(size=2), [], rng.uniform(-1, 1, (40, 1))
        for (u,) in torque:
            rows.append(state)
            rate = state[1] + DT * (u - 9 * np.sin(state[0]))
            state = np.array([state[0] + DT * rate, rate])
        states = np.array(rows)
        time = np.arange(40) * DT
        np.savez(folder / f"{index}.npz", timestamp=time, qpos=states[:, :1], qvel=states[:, 1:], ctrl=torque)
    return gx.TrajectoryDataModule(str(folder), angles=(0,), history=4, horizon=5, batch_size=32, cache=False)


def motions(folder: Path) -> gx.MotionDataModule:
    """Of the package's own pendulum, for flow matching."""
    path, system = folder / "motions.npz", PendulumSystem(control_dt=DT)
    folder.mkdir(exist_ok=True)

    @jax.jit
    @jax.vmap
    def swing(key):
        actions = jax.random.uniform(key, (20, 1), minval=-1)
        return jax.lax.scan(lambda state, action: (system.step(state, action), state), jnp.zeros(2), actions)[1]

    if not path.exists():
        np.savez(path, states=np.asarray(swing(jax.random.split(jax.random.key(0), 16))), dt=DT)
    return gx.MotionDataModule(str(path), horizon=6, batch_size=16)


class SolvedPendulum(PendulumSystem):
    """A pendulum with a loop that runs until a number has converged, as physics with contacts does."""

    def step(self, state, action):
        start = jax.lax.stop_gradient(jnp.abs(state[1])) + 2.0
        root = jax.lax.while_loop(lambda x: jnp.abs(x * x - start) > 1e-3, lambda x: (x + start / x) / 2, start)
        return super().step(state, action) + 1e-3 * root


def cases(folder: Path) -> dict[str, tuple[gx.Task, gx.DataModule]]:
    """`{name: (task, data)}`; what the data modules read is written to the folder, once."""
    from galvanax.tasks.dynaflow import DynaFlowTask

    @dataclasses.dataclass(frozen=True)
    class LoopTask(DynaFlowTask):
        """DynaFlow through a loop that depends on its rows."""

        def build_system(self):
            return SolvedPendulum(control_dt=DT)

    small = {"d_model": 16, "num_heads": 2, "depth": 1, "dropout": 0.1, "ode_steps": 2, "num_samples": 2}
    return {
        "acceleration": (gx.AccelerationTask(hidden_dims=(32, 32)), transitions()),
        "noisy": (NoisyTask(), net_data(batch_size=32)),
        "deep": (DeepTask(), net_data(batch_size=32)),
        "gru": (gx.GRUDynamicsTask(hidden_size=16, members=2, dropout=0.2), logs(folder / "logs")),
        "dynaflow": (DynaFlowTask(**small), motions(folder / "motions")),
        "dynaflow_loop": (LoopTask(**small), motions(folder / "motions")),
    }
