"""Motions from demonstrations, by flow matching through physics: a pendulum with two ways to go, a cart-pole, a Go2."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from galvanax.datamodules.motions import MotionDataModule
from galvanax.envs.systems import load_system
from galvanax.errors import DataError
from galvanax.experiments.experiment import Experiment
from galvanax.experiments.presets import Preset
from galvanax.experiments.standard_callbacks import standard_callbacks
from galvanax.files import partial_file
from galvanax.networks.dit import DIT_SIZES
from galvanax.physics.rollout import rollout
from galvanax.runs.checkpoint import Checkpoint
from galvanax.tasks.dynaflow import DynaFlowTask, StateFlowTask
from galvanax.tasks.flow_matching import FlowMatchingTask
from galvanax.trainer.schedule import Epochs
from galvanax.trainer.trainer import Trainer

PENDULUM, CART_POLE, GO2 = (f"motions/{name}.npz" for name in ("pendulum", "cart-pole", "go2"))
_PENDULUM_DT = 0.1

# DynaFlow's details; in their loss errors are as they are, and no condition is hidden.
PAPER = {
    "task.d_model": 384,
    "task.num_heads": 6,
    "task.depth": 3,
    "task.dropout": 0.1,
    "task.learning_rate": 2e-4,
    "task.weight_decay": 1e-4,
    "task.loss_units": "natural",
    "task.condition_dropout": 0.0,
    "task.ode_steps": 1,
    "data.batch_size": 64,
    "data.horizon": 16,
    "trainer.max_epochs": 100,
    "callbacks.checkpoint.keep_every": Epochs(10),
}
# The table of its guide, which has other values than the details.
GUIDE = {**PAPER, "task.learning_rate": 1e-4, "task.weight_decay": 0.0, "data.batch_size": 32, "data.horizon": 10}
PRESETS: dict[str, Preset] = {
    "paper": PAPER,
    "guide": GUIDE,
    **{size: {f"task.{name}": value for name, value in parts.items()} for size, parts in DIT_SIZES.items()},
}


@dataclasses.dataclass
class TwoWayPendulum(MotionDataModule):
    """A pendulum that swings to the left or to the right, half and half; made where the default file is not there."""

    data: str | tuple[str, ...] = PENDULUM
    val_ratio: float = 0.1
    test_ratio: float = 0.1

    def setup(self) -> None:
        """See `MotionDataModule`."""
        if self.data == PENDULUM and not Path(PENDULUM).exists():
            write_two_way_pendulum(PENDULUM)
        super().setup()


@dataclasses.dataclass
class CollectedMotions(MotionDataModule):
    """Motions that `galvanax collect` wrote; where the file is not there, the error says how it is made."""

    def setup(self) -> None:
        """See `MotionDataModule`."""
        if self.data in (CART_POLE, GO2) and not Path(str(self.data)).exists():
            name = "cartpole" if self.data == CART_POLE else "go2"
            raise DataError(
                f"There is no {self.data}. Make it: galvanax fit {name}-ppo; galvanax collect runs/{name}-ppo "
                f"--num-episodes 500 --output {self.data}. Or give your own: --data FILE.npz."
            )
        super().setup()


def pendulum_dynaflow() -> Experiment:
    """DynaFlow learns a pendulum's swing to the left or to the right, from states alone; minutes on two cores."""
    return _experiment(_pendulum_task(DynaFlowTask), _pendulum_data(), "runs/pendulum-dynaflow", epochs=20)


def pendulum_stateflow() -> Experiment:
    """The comparator on the same data: flow matching on states, which no physics holds together."""
    return _experiment(_pendulum_task(StateFlowTask), _pendulum_data(), "runs/pendulum-stateflow", epochs=20)


def cartpole_dynaflow() -> Experiment:
    """DynaFlow learns a cart-pole's motions from those of a PPO policy."""
    task = DynaFlowTask(system="cart-pole", d_model=128, num_heads=4, depth=2, dropout=0.0, learning_rate=5e-4)
    data = CollectedMotions(data=CART_POLE, horizon=16, stride=4, batch_size=64, system="cart-pole")
    return _experiment(task, data, "runs/cartpole-dynaflow", epochs=10)


def go2_dynaflow() -> Experiment:
    """DynaFlow learns a Unitree Go2's gait from the motions and commands of a PPO policy; for a GPU."""
    task = DynaFlowTask(system="go2", d_model=384, num_heads=6, depth=3, dropout=0.1)
    data = CollectedMotions(data=GO2, horizon=16, stride=4, batch_size=64, system="go2")
    return _experiment(task, data, "runs/go2-dynaflow", epochs=100)


def write_two_way_pendulum(path: str | Path, num_trajectories: int = 20_000, horizon: int = 16, seed: int = 0) -> None:
    """Demonstrations: from rest, hanging, a torque with smooth noise takes a pendulum to the left or the right.

    Args:
      path: of the NPZ; `states (trajectories, horizon + 1, 2)` alone, as DynaFlow needs no actions.
      num_trajectories: half of each kind, but for chance.
      horizon: steps of 0.1 s.
      seed: of all draws.
    """
    system = load_system("pendulum", _PENDULUM_DT)

    @functools.partial(jax.vmap, in_axes=(0,))
    def demonstrate(key: jax.Array) -> jax.Array:
        side_key, start_key, noise_key, size_key = jax.random.split(key, 4)
        start = 0.05 * jax.random.normal(start_key, (2,))
        side = jnp.where(jax.random.bernoulli(side_key), 1.0, -1.0)
        times = jnp.arange(horizon) / horizon
        phases = jax.random.uniform(noise_key, (3,), maxval=2 * jnp.pi)
        waves = jnp.sin(2 * jnp.pi * jnp.arange(1, 4) * times[:, None] + phases).sum(-1)
        size = jax.random.uniform(size_key, minval=0.6, maxval=0.8)
        actions = side * size * jnp.minimum(1.0, 4 * times) + 0.03 * waves
        return rollout(system, start, actions[:, None])

    keys = jax.random.split(jax.random.key(seed), num_trajectories)
    states = np.asarray(jax.jit(demonstrate)(keys))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with partial_file(Path(path)) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, states=states, dt=np.float64(_PENDULUM_DT))


def _pendulum_task(kind: Any) -> FlowMatchingTask:
    return kind(system="pendulum", d_model=64, num_heads=4, depth=2, dropout=0.0, learning_rate=1e-3)


def _pendulum_data() -> TwoWayPendulum:
    return TwoWayPendulum(horizon=16, batch_size=64)


def _experiment(task: FlowMatchingTask, data: MotionDataModule, run_dir: str, epochs: int) -> Experiment:
    return Experiment(
        task=task,
        data=data,
        trainer=Trainer(
            max_epochs=epochs,
            run_dir=run_dir,
            val_every=Epochs(max(1, epochs // 10)),
            # Samples of many steps through physics: some hundred starts say enough.
            limit_val_batches=4,
            limit_test_batches=4,
        ),
        callbacks=standard_callbacks(Checkpoint(monitor="val/loss", mode="min"), ema=0.995),
        presets=PRESETS,
    )
