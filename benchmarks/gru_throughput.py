"""Training steps a second of `Trainer.fit` on the GRU task beside plain loops over the same model and loss.

    uv run python benchmarks/gru_throughput.py

All see the same windows of random trajectories at the default sizes (hidden 128, history 11, horizon 9, batch 32).
"jax.jit loop" is the best that a loop by hand can do: a donating step on plain pytrees, nothing read back. "nnx.jit
loop" is the loop of flax's own guide: `nnx.jit`, `nnx.Optimizer`, and the loss read each step for the log.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import optax
import tyro
from flax import nnx
from train_loop import Stopwatch

import galvanax as gx


def main(steps: int = 300, rounds: int = 5) -> None:
    """Prints the table.

    Args:
        steps: timed steps of each loop and round.
        rounds: interleaved repetitions.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = write_logs(Path(folder))
        data.setup()
        task = gx.GRUDynamicsTask(absolute_coordinates=True).setup(data)
        loops = {"nnx.jit loop": nnx_loop(task, data), "jax.jit loop": jit_loop(task, data)}
        rates: dict[str, list[float]] = {name: [] for name in (*loops, "Trainer.fit")}
        for _ in range(rounds):
            for name, loop in loops.items():
                rates[name].append(loop(steps))
            rates["Trainer.fit"].append(fit(data, steps))
    for name, values in rates.items():
        ratios = [ours / other for ours, other in zip(rates["Trainer.fit"], values, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:14s} {statistics.median(values):6,.0f} steps/s   Trainer.fit ÷ it: {spread}")


def write_logs(folder: Path) -> gx.TrajectoryDataModule:
    """Forty trajectories of 300 rows of six smooth random numbers."""
    rng = np.random.default_rng(0)
    for index in range(40):
        rows = np.cumsum(rng.normal(size=(300, 7)), axis=0).astype(np.float32) * 0.1
        time_ = np.arange(300) * 0.02
        np.savez(folder / f"{index}.npz", timestamp=time_, qpos=rows[:, :3], qvel=rows[:, 3:6], ctrl=rows[:, 6:])
    return gx.TrajectoryDataModule(str(folder), angles=(1, 2), cache=False)


def fit(data: gx.TrajectoryDataModule, steps: int) -> float:
    """`Trainer.fit` with a CSV logger."""
    watch = Stopwatch(64, 64 + steps)
    with tempfile.TemporaryDirectory() as folder:
        # One step more: the last one is followed by a validation, which is not to be timed.
        trainer = gx.Trainer(
            max_steps=64 + steps + 1,
            val_every=gx.Steps(10**6),
            run_dir=f"{folder}/run",
            callbacks=[gx.CSVLogger(), watch],
        )
        trainer.fit(gx.GRUDynamicsTask(absolute_coordinates=True), data)
    return watch.rate


def jit_loop(task: gx.GRUDynamicsTask, data: gx.TrajectoryDataModule) -> Callable[[int], float]:
    """See the module."""
    model = task.build_model(nnx.Rngs(0))
    task.set_statistics(model, data)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = task.build_optimizer(10_000)

    def step(carry, batch):
        params, opt_state = carry

        def loss(params):
            return task.loss(nnx.merge(graphdef, params, rest, copy=True), batch, jax.random.key(0))[0]

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    jitted = jax.jit(step, donate_argnums=0)
    carry = jax.tree.map(lambda leaf: leaf.copy(), (params, optimizer.init(params)))
    feed = batches(data)

    def loop(steps: int) -> float:
        nonlocal carry
        carry, _ = jax.block_until_ready(jitted(carry, next(feed)))
        begin = time.perf_counter()
        for _ in range(steps):
            carry, _ = jitted(carry, next(feed))
        jax.block_until_ready(carry)
        return steps / (time.perf_counter() - begin)

    return loop


def nnx_loop(task: gx.GRUDynamicsTask, data: gx.TrajectoryDataModule) -> Callable[[int], float]:
    """See the module."""
    model = task.build_model(nnx.Rngs(0))
    task.set_statistics(model, data)
    optimizer = nnx.Optimizer(model, task.build_optimizer(10_000), wrt=nnx.Param)
    feed = batches(data)

    @nnx.jit
    def step(model, optimizer, batch):
        value, grads = nnx.value_and_grad(lambda model: task.loss(model, batch, jax.random.key(0))[0])(model)
        optimizer.update(model, grads)
        return value

    def loop(steps: int) -> float:
        float(step(model, optimizer, next(feed)))
        begin = time.perf_counter()
        for _ in range(steps):
            float(step(model, optimizer, next(feed)))
        return steps / (time.perf_counter() - begin)

    return loop


def batches(data: gx.TrajectoryDataModule) -> Iterator[dict]:
    """The training batches, again and again."""
    dataset = data.train_dataset(seed=0)
    while True:
        yield from dataset


if __name__ == "__main__":
    tyro.cli(main)
