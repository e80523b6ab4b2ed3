"""PPO beside brax's `ppo.train`: environment steps a second and return at equal steps, interleaved in one process.

    uv run python benchmarks/ppo_beside_brax.py --environment inverted_pendulum --seeds 5
    uv run python benchmarks/ppo_beside_brax.py --environment hopper

Both train the same brax environment with the same networks, the same number of control steps, minibatches and
optimizer steps an iteration. Times are of training alone, without compilation and evaluation. On jax from 0.10 on
brax's trainer needs a stand-in for a function that jax has dropped; it is below.
"""

import dataclasses
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import galvanax as gx

HYPERPARAMETERS = {  # (γ, learning rate, entropy bonus) for each environment
    "inverted_pendulum": (0.97, 3e-4, 1e-2),
    "hopper": (0.99, 3e-4, 1e-2),
}


@dataclasses.dataclass
class Settings:
    """What is compared.

    Attributes:
      environment: of brax.
      backend: its physics.
      seeds: how many.
      iterations: of 20,480 control steps.
      evaluations: of the policy, evenly over the run.
    """

    environment: str = "inverted_pendulum"
    backend: str = "generalized"
    seeds: int = 5
    iterations: int = 24
    evaluations: int = 4


@dataclasses.dataclass
class Outcome:
    """Of one run: steps a second between evaluations, and the returns that they found."""

    rates: list[float]
    returns: list[float]


NUM_ENVS, UNROLL, MINIBATCHES, EPOCHS = 512, 40, 8, 4
PER_ITERATION = NUM_ENVS * UNROLL


def run_brax(env, settings: Settings, seed: int) -> Outcome:
    """brax's trainer. It cuts 40 control steps into two unrolls of 20, so that a minibatch has as many transitions."""
    from brax.training.agents.ppo import train as ppo

    discount, rate, entropy = HYPERPARAMETERS[settings.environment]
    outcome = Outcome([], [])

    def progress(_: int, metrics: dict) -> None:
        outcome.returns.append(float(metrics["eval/episode_reward"]))
        if "training/sps" in metrics:
            outcome.rates.append(float(metrics["training/sps"]))

    ppo.train(
        environment=env,
        num_timesteps=settings.iterations * PER_ITERATION,
        episode_length=1000,
        num_envs=NUM_ENVS,
        unroll_length=UNROLL // 2,
        batch_size=2 * NUM_ENVS // MINIBATCHES,
        num_minibatches=MINIBATCHES,
        num_updates_per_batch=EPOCHS,
        learning_rate=rate,
        entropy_cost=entropy,
        discounting=discount,
        normalize_observations=True,
        clipping_epsilon=0.2,
        deterministic_eval=True,
        num_eval_envs=64,
        num_evals=settings.evaluations + 1,
        seed=seed,
        progress_fn=progress,
    )
    # The first one holds the compilation, the second one another for what it finds in another place.
    outcome.rates, outcome.returns = outcome.rates[2:], outcome.returns[1:]
    return outcome


class Stopwatch(gx.Callback):
    """Times the steps between validations, whose interval is `every`."""

    def __init__(self, every: int):
        self.every, self.times, self.returns = every, {}, []

    def next_step(self, step: int) -> int | None:
        """Behind each validation and before the next."""
        return (
            step + 1 if step % self.every in (0, self.every - 1) else step // self.every * self.every + self.every - 1
        )

    def on_step(self, run: gx.RunView) -> None:
        """See `gx.Callback`."""
        jax.block_until_ready(run.state.params)
        self.times[run.step] = time.perf_counter()

    def on_validation_end(self, run: gx.RunView, metrics: dict[str, float]) -> None:
        """See `gx.Callback`."""
        self.returns.append(metrics["val/episode_return"])

    def rates(self) -> list[float]:
        """Control steps a second in each stretch; the first one is left out, as brax's is."""
        starts = [step for step in self.times if step % self.every == 1 and step > self.every]
        stretches = [(first, first + self.every - 2) for first in starts]
        return [(b - a) * PER_ITERATION / (self.times[b] - self.times[a]) for a, b in stretches if b in self.times]


def run_galvanax(env, settings: Settings, seed: int) -> Outcome:
    """`PPOTask`, with brax's default networks."""
    discount, rate, entropy = HYPERPARAMETERS[settings.environment]
    task = gx.PPOTask(
        unroll_length=UNROLL,
        num_epochs=EPOCHS,
        num_minibatches=MINIBATCHES,
        learning_rate=rate,
        discount=discount,
        entropy_coef=entropy,
        value_coef=0.25,  # brax's default vf_coefficient, 0.5, weighs half the mean square
        policy_hidden=(32,) * 4,
        value_hidden=(256,) * 5,
    )
    data = gx.EnvironmentDataModule(env, num_envs=NUM_ENVS, num_eval_episodes=64, episode_length=1000)
    watch = Stopwatch(settings.iterations // settings.evaluations)
    trainer = gx.Trainer(
        max_steps=settings.iterations, val_every=gx.Steps(watch.every), callbacks=[watch], seed=seed, log_every=10
    )
    trainer.fit(task, data)
    return Outcome(watch.rates(), watch.returns)


def main(settings: Settings) -> None:
    """Runs both on each seed, one after the other, and prints a table."""
    from brax import envs

    if not hasattr(jax, "device_put_replicated"):
        jax.device_put_replicated = put_replicated
    env = envs.get_environment(settings.environment, backend=settings.backend)
    runners = {"brax ppo.train": run_brax, "galvanax PPOTask": run_galvanax}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in runners}
    for seed in range(settings.seeds):
        for name, run in runners.items():
            start = time.perf_counter()
            outcome = run(env, settings, seed)
            outcomes[name].append(outcome)
            rates = " ".join(f"{rate:,.0f}" for rate in outcome.rates)
            returns = " ".join(f"{value:.0f}" for value in outcome.returns)
            print(
                f"seed {seed}  {name:17s} steps/s {rates}  returns {returns}  {time.perf_counter() - start:.0f} s",
                flush=True,
            )
    print(
        f"\n{settings.environment} ({settings.backend}), {settings.iterations * PER_ITERATION:,} steps, "
        f"{settings.seeds} seeds"
    )
    for name, runs in outcomes.items():
        rates = [rate for outcome in runs for rate in outcome.rates]
        last = [outcome.returns[-1] for outcome in runs]
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        middle = f"{statistics.median(rates):,.0f}"
        final = f"{np.mean(last):.1f} ({min(last):.1f} to {max(last):.1f})"
        print(f"{name:17s} steps/s {middle} ({spread})  final return {final}")
        for index in range(settings.evaluations):
            values = [outcome.returns[index] for outcome in runs]
            print(f"    evaluation {index + 1}: {np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
    pairs = zip(*(outcomes[name] for name in ("galvanax PPOTask", "brax ppo.train")), strict=True)
    ratios = [statistics.median(ours.rates) / statistics.median(theirs.rates) for ours, theirs in pairs]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


@functools.wraps(jax.device_put)
def put_replicated(tree, devices):
    """The stand-in for `jax.device_put_replicated`: each leaf once for every device, on a leading axis."""
    sharding = NamedSharding(Mesh(np.array(devices), ("replicas",)), PartitionSpec("replicas"))
    return jax.tree.map(
        lambda leaf: jax.device_put(jnp.broadcast_to(leaf, (len(devices), *jnp.shape(leaf))), sharding), tree
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
