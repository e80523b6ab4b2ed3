"""Steps a second of `Trainer.fit` beside hand-written loops over the same step, interleaved in one process.

    uv run python benchmarks/train_loop.py

The peers are given the lightest data path there is (numpy gathers from one permutation, no iterator to save) and do
nothing but train: no metrics leave the device, nothing is logged. `Trainer.fit` reads through Grain and logs to a CSV.
"""

import dataclasses
import statistics
import tempfile
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

import galvanax as gx

STACK = 64


@dataclasses.dataclass(frozen=True)
class RegressionTask(gx.Task):
    """An MLP 6 → 128 → 128 → 2 on AdamW."""

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """See `gx.Task`."""
        return gx.networks.MLP(6, (128, 128), 2, rngs=rngs)

    def build_optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """See `gx.Task`."""
        return optax.adamw(1e-3)

    def loss(self, model: nnx.Module, batch: dict, rng: jax.Array) -> tuple[jax.Array, dict]:
        """See `gx.Task`."""
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2), {}


class Stopwatch(gx.Callback):
    """Times the steps from `warm` to the end of a fit."""

    def __init__(self, warm: int, last: int):
        self.warm, self.last, self.times = warm, last, {}

    def next_step(self, step: int) -> int | None:
        """See `gx.Callback`."""
        return next((at for at in (self.warm, self.last) if at > step), None)

    def on_step(self, run: gx.RunView) -> None:
        """See `gx.Callback`."""
        jax.block_until_ready(run.state.params)
        self.times[run.step] = time.perf_counter()

    @property
    def rate(self) -> float:
        """Steps a second."""
        return (self.last - self.warm) / (self.times[self.last] - self.times[self.warm])


def main(steps: int = 6400, rounds: int = 7, batch_size: int = 128) -> None:
    """Prints the table.

    Args:
        steps: timed steps of each loop and round.
        rounds: interleaved repetitions.
        batch_size: rows a batch.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100_000, 6)).astype(np.float32)
    data = {"x": x, "y": np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2]], -1)}
    peers = {"naive jitted loop": naive_loop(data, batch_size), "hand-written fused scan": fused_scan(data, batch_size)}
    rates: dict[str, list[float]] = {name: [] for name in (*peers, "Trainer.fit")}
    for _ in range(rounds):
        for name, loop in peers.items():
            rates[name].append(loop(steps))
        rates["Trainer.fit"].append(fit(data, batch_size, steps))
    print(f"{'loop':26s} {'steps/s':>9s} {'min':>8s} {'max':>8s}   Trainer.fit ÷ it, round by round")
    for name, values in rates.items():
        ratios = [ours / other for ours, other in zip(rates["Trainer.fit"], values, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:26s} {statistics.median(values):9,.0f} {min(values):8,.0f} {max(values):8,.0f}   {spread}")


def fit(data: dict, batch_size: int, steps: int) -> float:
    """`Trainer.fit` with a CSV logger."""
    warm = 10 * STACK
    watch = Stopwatch(warm, warm + steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = gx.Trainer(max_steps=warm + steps, run_dir=f"{folder}/run", callbacks=[gx.CSVLogger(), watch])
        trainer.fit(RegressionTask(), gx.ArrayDataModule(train=data, batch_size=batch_size))
    return watch.rate


def plain_step(optimizer: optax.GradientTransformation):
    """The step as a JAX user writes it: parameters as a pytree, one gradient, one update."""
    graphdef, state = nnx.split(RegressionTask().build_model(nnx.Rngs(0)), nnx.Param)
    params = nnx.to_pure_dict(state)

    def step(carry, batch):
        params, opt_state = carry

        def loss(params):
            filled = jax.tree.map(lambda leaf: leaf, state)
            nnx.replace_by_pure_dict(filled, params)
            return jnp.mean((nnx.merge(graphdef, filled)(batch["x"]) - batch["y"]) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return step, params


def naive_loop(data: dict, batch_size: int):
    """A jitted, donating step for each batch."""
    optimizer = optax.adamw(1e-3)
    step, params = plain_step(optimizer)
    jitted = jax.jit(step, donate_argnums=0)
    carry = (params, optimizer.init(params))
    batches = permuted(data, batch_size)

    def loop(steps: int) -> float:
        nonlocal carry
        carry, _ = jax.block_until_ready(jitted(jax.tree.map(jnp.copy, carry), next(batches)))
        start = time.perf_counter()
        for _ in range(steps):
            carry, _ = jitted(carry, next(batches))
        jax.block_until_ready(carry)
        return steps / (time.perf_counter() - start)

    return loop


def fused_scan(data: dict, batch_size: int):
    """`lax.scan` over stacks of batches."""
    optimizer = optax.adamw(1e-3)
    step, params = plain_step(optimizer)
    jitted = jax.jit(partial(jax.lax.scan, step), donate_argnums=0)
    carry = (params, optimizer.init(params))
    stacks = permuted(data, batch_size * STACK, (STACK, batch_size))

    def loop(steps: int) -> float:
        nonlocal carry
        carry, _ = jax.block_until_ready(jitted(jax.tree.map(jnp.copy, carry), next(stacks)))
        start = time.perf_counter()
        for _ in range(steps // STACK):
            carry, _ = jitted(carry, next(stacks))
        jax.block_until_ready(carry)
        return steps // STACK * STACK / (time.perf_counter() - start)

    return loop


def permuted(data: dict, rows: int, shape: tuple[int, ...] | None = None):
    """Endless blocks of shuffled rows."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(data["x"]))
        for start in range(0, len(order) - rows + 1, rows):
            block = {name: array[order[start : start + rows]] for name, array in data.items()}
            yield {name: array.reshape(*(shape or (rows,)), *array.shape[1:]) for name, array in block.items()}


if __name__ == "__main__":
    tyro.cli(main)
