"""The step rate of `Trainer.fit` with a save every 50 steps ÷ without, interleaved in one process.

    uv run python benchmarks/checkpoint_stall.py

"stops only" visits the same boundaries and saves nothing: it is the part that dispatches pay for being cut there.
"""

import dataclasses
import statistics
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from train_loop import Stopwatch

import galvanax as gx

EVERY = 50


@dataclasses.dataclass(frozen=True)
class SizedTask(gx.Task):
    """`RegressionTask` of train_loop.py with layers of any width."""

    width: int = 128

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """See `gx.Task`."""
        return gx.networks.MLP(6, (self.width, self.width), 2, rngs=rngs)

    def build_optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """See `gx.Task`."""
        return optax.adamw(1e-3)

    def loss(self, model: nnx.Module, batch: dict, rng: jax.Array) -> tuple[jax.Array, dict]:
        """See `gx.Task`."""
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2), {}


class Stops(gx.Callback):
    """Looks at the run every 50 steps, and does nothing."""

    def next_step(self, step: int) -> int | None:
        """See `gx.Callback`."""
        return (step // EVERY + 1) * EVERY


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, a batch, and how many steps make a round of about the same length.

    Attributes:
        name: for the table.
        width: of both layers.
        batch_size: rows a batch.
        steps: timed steps a round.
    """

    name: str
    width: int
    batch_size: int
    steps: int


CASES = (
    Case("small MLP, batch 128", 128, 128, 6400),
    Case("step of about 2 ms", 256, 512, 2000),
    Case("step of about 10 ms", 512, 1024, 500),
)


def main(rounds: int = 7, scale: float = 1.0) -> None:
    """Prints the table.

    Args:
        rounds: interleaved repetitions.
        scale: of the number of timed steps; each round lasts some seconds with 1.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100_000, 6)).astype(np.float32)
    data = {"x": x, "y": np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2]], -1)}
    kinds: dict[str, Callable[[], list[gx.Callback]]] = {
        "without": list,
        "stops only": lambda: [Stops()],
        "saves": lambda: [gx.Checkpoint(every=gx.Steps(EVERY))],
    }
    head = f"{'case':22s} {'state':>8s} {'ms/step':>8s} {'without':>9s} {'saves':>9s}"
    print(f"{head}   saves ÷ without            stops only ÷ without")
    for case in CASES:
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        steps = max(EVERY, round(case.steps * scale) // EVERY * EVERY)
        for index in range(rounds + 1):
            # Turned around each time: whoever comes first may meet a busier or a cooler machine.
            for kind in sorted(kinds, reverse=index % 2 == 0):
                rate = fit(case, data, steps, kinds[kind]())
                if index > 0:  # the first round compiles
                    rates[kind].append(rate)
        without = statistics.median(rates["without"])
        ratios = [spread(rates[kind], rates["without"]) for kind in ("saves", "stops only")]
        numbers = f"{1000 / without:8.2f} {without:9,.0f} {statistics.median(rates['saves']):9,.0f}"
        print(f"{case.name:22s} {megabytes(case):5.1f} MB {numbers}   {ratios[0]:26s} {ratios[1]}", flush=True)


def spread(rates: list[float], without: list[float]) -> str:
    """Median, lowest and highest ratio of the rounds."""
    ratios = [rate / other for rate, other in zip(rates, without, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def fit(case: Case, data: dict, steps: int, callbacks: list[gx.Callback]) -> float:
    """Steps a second, after a warm-up."""
    warm = max(2 * EVERY, min(640, steps) // EVERY * EVERY)
    watch = Stopwatch(warm, warm + steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = gx.Trainer(
            max_steps=warm + steps,
            run_dir=f"{folder}/run",
            checkpoint=any(isinstance(callback, gx.Checkpoint) for callback in callbacks),
            callbacks=[gx.CSVLogger(), *callbacks, watch],
        )
        trainer.fit(SizedTask(case.width), gx.ArrayDataModule(train=data, batch_size=case.batch_size))
    return watch.rate


def megabytes(case: Case) -> float:
    """Size of parameters and optimizer state."""
    params = jax.eval_shape(lambda: nnx.state(SizedTask(case.width).build_model(nnx.Rngs(0)), nnx.Param))
    return 3 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)) / 2**20


if __name__ == "__main__":
    tyro.cli(main)
