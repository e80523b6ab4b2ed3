"""Memory and compile time of one PPO iteration, by number of environments.

    uv run python benchmarks/ppo_memory.py [--environments cart-pole-swing-up go2] [--num-envs 64 512 4096]

Of the compiled iteration, with nothing from the compile cache: the state (environments and weights, which is also what
a checkpoint holds), and the temporaries that XLA asks for beside it.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import tyro

import galvanax as gx
from galvanax.trainer.start import start_run


@dataclasses.dataclass
class Settings:
    """What is compiled.

    Attributes:
      environments: names.
      num_envs: sizes of the batch.
    """

    environments: tuple[str, ...] = ("cart-pole-swing-up", "go2")
    num_envs: tuple[int, ...] = (64, 512, 4096)


def main(settings: Settings) -> None:
    """Prints a table."""
    row = "{:20s} {:>6} {:>11} {:>13} {:>17} {:>18}"
    print(row.format("environment", "envs", "compile s", "state MiB", "temporaries MiB", "bytes/environment"))
    for name in settings.environments:
        for num_envs in settings.num_envs:
            data = gx.EnvironmentDataModule(name, num_envs=num_envs, num_eval_episodes=1)
            task = gx.PPOTask(unroll_length=24, num_epochs=5, num_minibatches=4, policy_hidden=(256, 128))
            run = start_run(gx.Trainer(max_steps=1), task, data, None)
            jax.config.update("jax_enable_compilation_cache", False)
            step = jax.jit(run.task.train_step, donate_argnums=0)
            start = time.perf_counter()
            compiled = step.lower(run.state, {"env": jnp.arange(num_envs)}, jax.random.key(0)).compile()
            seconds = time.perf_counter() - start
            memory = compiled.memory_analysis()
            state, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
            each = f"{state / num_envs:,.0f}"
            print(
                row.format(name, num_envs, f"{seconds:.1f}", f"{state / 2**20:.1f}", f"{temporary / 2**20:.1f}", each),
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Settings))
