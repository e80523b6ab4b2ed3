"""Steps a second of `Trainer.fit` on 8 CPU devices beside a hand-written sharded loop of the same loss, interleaved.

    uv run python benchmarks/sharded_loop.py

The peer is what a JAX user writes: parameters replicated, stacks of batches split along the batch, `lax.scan` in one
donating `jit`; XLA takes the gradients' sum. It gets the lightest data path (numpy gathers), reads back no metric and
logs nothing. `Trainer.fit` reads through Grain and logs to a CSV. The devices are threads of one CPU.
"""

import os

DEVICES = 8
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"

import statistics  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import partial  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402
from train_loop import STACK, RegressionTask, Stopwatch, permuted, plain_step  # noqa: E402

import galvanax as gx  # noqa: E402


def main(steps: int = 1280, rounds: int = 7, batch_size: int = 1024) -> None:
    """Prints the table.

    Args:
        steps: timed steps of each loop and round.
        rounds: interleaved repetitions.
        batch_size: rows a batch, over all devices.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100_000, 6)).astype(np.float32)
    data = {"x": x, "y": np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2]], -1)}
    peer = sharded_scan(data, batch_size)
    fit(data, batch_size, 4 * STACK)  # compiles
    rates: dict[str, list[float]] = {"hand-written sharded scan": [], "Trainer.fit": []}
    for turn in range(rounds):
        loops = [("hand-written sharded scan", peer), ("Trainer.fit", partial(fit, data, batch_size))]
        for name, loop in loops if turn % 2 else reversed(loops):
            rates[name].append(loop(steps))
    pairs = zip(rates["Trainer.fit"], rates["hand-written sharded scan"], strict=True)
    ratios = [ours / other for ours, other in pairs]
    for name, values in rates.items():
        print(f"{name:26s} {statistics.median(values):8.0f} steps/s ({min(values):.0f} to {max(values):.0f})")
    print(
        f"Trainer.fit ÷ hand-written, round by round: {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


def fit(data: dict, batch_size: int, steps: int) -> float:
    """Steps a second of the Trainer, from its second dispatch on."""
    warm = 2 * STACK
    watch = Stopwatch(warm, warm + steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = gx.Trainer(
            max_steps=warm + steps, run_dir=folder, devices=DEVICES, steps_per_dispatch=STACK, log_every=1000,
            callbacks=[gx.CSVLogger(), watch],
        )  # fmt: skip
        trainer.fit(RegressionTask(), gx.ArrayDataModule(train=data, batch_size=batch_size))
    return watch.rate


def sharded_scan(data: dict, batch_size: int) -> Callable[[int], float]:
    """The peer."""
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    whole, stacked = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, "data"))
    optimizer = optax.adamw(1e-3)
    step, params = plain_step(optimizer)
    jitted = jax.jit(partial(jax.lax.scan, step), donate_argnums=0, out_shardings=whole)
    carry = jax.device_put((params, optimizer.init(params)), whole)
    stacks = permuted(data, batch_size * STACK, (STACK, batch_size))

    def loop(steps: int) -> float:
        nonlocal carry
        carry, _ = jax.block_until_ready(jitted(carry, jax.device_put(next(stacks), stacked)))
        start, before = time.perf_counter(), None
        for _ in range(steps // STACK):
            carry, losses = jitted(carry, jax.device_put(next(stacks), stacked))
            if before is not None:
                jax.block_until_ready(before)  # two in flight: dozens would starve a CPU's threads
            before = losses
        jax.block_until_ready(carry)
        return steps // STACK * STACK / (time.perf_counter() - start)

    return loop


if __name__ == "__main__":
    tyro.cli(main)
