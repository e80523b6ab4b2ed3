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
from train_loop import STACK, RegressionTask, permuted, plain_step  # noqa: E402

import galvanax as gx  # noqa: E402


class Turns(gx.Callback):
    """Stops the Trainer every so many steps, notes how long they took, and gives the peer its turn."""

    def __init__(self, window: int, peer: Callable[[int], float]):
        self.window, self.peer = window, peer
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.since: float | None = None

    def next_step(self, step: int) -> int:
        """See `gx.Callback`."""
        return (step // self.window + 1) * self.window

    def on_step(self, run: gx.RunView) -> None:
        """See `gx.Callback`."""
        jax.block_until_ready(run.state.params)
        if self.since is not None:  # the first window compiles
            self.ours.append(time.perf_counter() - self.since)
            self.theirs.append(self.peer(self.window))
        self.since = time.perf_counter()


def main(window: int = 256, rounds: int = 40, batch_size: int = 1024) -> None:
    """Prints the table.

    Args:
        window: steps of a turn.
        rounds: turns of each loop.
        batch_size: rows a batch, over all devices.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100_000, 6)).astype(np.float32)
    data = {"x": x, "y": np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2]], -1)}
    peer = sharded_scan(data, batch_size)
    peer(window)  # compiles
    turns = Turns(window, peer)
    with tempfile.TemporaryDirectory() as folder:
        trainer = gx.Trainer(
            max_steps=(rounds + 1) * window, run_dir=folder, devices=DEVICES, steps_per_dispatch=STACK, log_every=1000,
            callbacks=[gx.CSVLogger(), turns],
        )  # fmt: skip
        trainer.fit(RegressionTask(), gx.ArrayDataModule(train=data, batch_size=batch_size))
    for name, times in {"hand-written sharded scan": turns.theirs, "Trainer.fit": turns.ours}.items():
        rates = [window / seconds for seconds in times]
        print(f"{name:26s} {statistics.median(rates):8.0f} steps/s ({min(rates):.0f} to {max(rates):.0f})")
    ratios = sorted(theirs / ours for ours, theirs in zip(turns.ours, turns.theirs, strict=True))
    quarter = len(ratios) // 4
    print(
        f"Trainer.fit ÷ hand-written, turn by turn: {statistics.median(ratios):.2f} "
        f"(middle half {ratios[quarter]:.2f} to {ratios[-quarter - 1]:.2f}); "
        f"best turn ÷ best turn: {min(turns.theirs) / min(turns.ours):.2f}"
    )


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
        """Seconds that so many steps take."""
        nonlocal carry
        start, before = time.perf_counter(), None
        for _ in range(steps // STACK):
            carry, losses = jitted(carry, jax.device_put(next(stacks), stacked))
            if before is not None:
                jax.block_until_ready(before)  # two in flight: dozens would starve a CPU's threads
            before = losses
        jax.block_until_ready(carry)
        return time.perf_counter() - start

    return loop


if __name__ == "__main__":
    tyro.cli(main)
