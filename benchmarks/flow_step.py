"""A training step of DynaFlow in `Trainer.fit` beside a loop by hand over the same loss.

    uv run python benchmarks/flow_step.py [--system cart-pole]

Both see the same windows of random motion, batch 64, horizon 16, with gradients clipped at norm 1, AdamW and averaged
weights. The loop by hand is the best that one can do: a donating step on plain pytrees, nothing read back.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from train_loop import Stopwatch

import galvanax as gx


def main(system: str = "pendulum", control_dt: float = 0.04, steps: int = 192, rounds: int = 5) -> None:
    """Prints the table.

    Args:
        system: what moves.
        control_dt: seconds (s) between states.
        steps: timed steps of each loop and round.
        rounds: interleaved repetitions.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = gx.MotionDataModule(str(write_motions(system, control_dt, Path(folder))), horizon=16, batch_size=64)
        data.setup()
        task = gx.DynaFlowTask(system=system, d_model=64, num_heads=4, depth=2, dropout=0.0)
        loop = by_hand(task.setup(data), data)
        ratios, rates = [], []
        for _ in range(rounds):
            theirs, ours = loop(steps), fit(task, data, steps)
            rates.append((theirs, ours))
            ratios.append(theirs / ours)
    for name, values in zip(("by hand", "Trainer.fit"), zip(*rates, strict=True), strict=True):
        print(f"{name:12s} {1e3 / statistics.median(values):7.1f} ms a step")
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{system}: Trainer.fit takes {statistics.median(ratios):.2f} ({spread}) of the time by hand")


def write_motions(system: str, control_dt: float, folder: Path) -> Path:
    """Random motion from rest."""
    physics = gx.envs.load_system(system, control_dt)
    actions = 0.3 * np.random.default_rng(0).normal(size=(256, 40, physics.action_dim)).astype(np.float32)
    start = jnp.zeros(physics.state_dim)
    model = getattr(physics, "mj_model", None)
    start = start if model is None else start.at[: model.nq].set(jnp.asarray(model.qpos0, jnp.float32))
    states = np.asarray(jax.jit(lambda actions: gx.physics.rollout(physics, start, actions))(actions))
    np.savez(folder / "motions.npz", states=states, dt=np.float64(control_dt))
    return folder / "motions.npz"


def fit(task: gx.DynaFlowTask, data: gx.MotionDataModule, steps: int) -> float:
    """Steps a second of `Trainer.fit`."""
    watch = Stopwatch(64, 64 + steps)
    # One step more: the last one is followed by a validation, which is not to be timed.
    callbacks = [gx.GradientClipping(1.0), gx.EMA(0.995), watch]
    gx.Trainer(max_steps=64 + steps + 1, val_every=gx.Steps(10**6), limit_val_batches=1, callbacks=callbacks).fit(
        task, data
    )
    return watch.rate


def by_hand(task: gx.DynaFlowTask, data: gx.MotionDataModule) -> Callable[[int], float]:
    """See the module."""
    model = task.build_model(nnx.Rngs(0))
    task.set_statistics(model, data)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), task.build_optimizer(10_000))

    def step(carry, batch, index):
        params, average, opt_state = carry
        key = jax.random.fold_in(jax.random.key(0), index)

        def loss(params):
            return task.loss(nnx.merge(graphdef, params, rest, copy=True), batch, key)[0]

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda old, new: 0.995 * old + 0.005 * new, average, params)
        return (params, average, opt_state), value

    jitted = jax.jit(step, donate_argnums=0)
    carry = jax.tree.map(lambda leaf: leaf.copy(), (params, params, optimizer.init(params)))

    def batches():
        while True:
            yield from data.train_dataset(seed=0)

    feed, done = batches(), 0

    def loop(steps: int) -> float:
        nonlocal carry, done
        carry, _ = jax.block_until_ready(jitted(carry, next(feed), jnp.int32(done)))
        begin = time.perf_counter()
        for _ in range(steps):
            done += 1
            carry, _ = jitted(carry, next(feed), np.int32(done))
        jax.block_until_ready(carry)
        return steps / (time.perf_counter() - begin)

    return loop


if __name__ == "__main__":
    tyro.cli(main)
