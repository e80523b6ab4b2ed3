"""Control steps a second of our environments beside brax's and Playground's of the same class, in one process.

    uv run python benchmarks/env_steps.py [--num-envs 64 512] [--classes cart-pole hopper quadruped humanoid]

Each environment is stepped under random actions by a jitted scan, vectorised, without resets; rounds are interleaved.
Playground's legged robots download their models at run time, so they are not here.
"""

import dataclasses
import statistics
import time

import jax
import tyro

import galvanax as gx

CLASSES = {
    "cart-pole": ("cart-pole-swing-up", "playground:CartpoleSwingup", "brax:inverted_pendulum"),
    "hopper": ("hopper", "playground:HopperHop", "brax:hopper"),
    "quadruped": ("go2", "brax:ant"),
    "humanoid": ("g1", "h1", "h1_2", "brax:humanoid"),
}
STEPS = 20


@dataclasses.dataclass
class Settings:
    """What is measured.

    Attributes:
      num_envs: sizes of the batch.
      classes: of systems.
      rounds: interleaved, after one to warm up.
    """

    num_envs: tuple[int, ...] = (64, 512)
    classes: tuple[str, ...] = tuple(CLASSES)
    rounds: int = 5


def compile_steps(name: str, num_envs: int):
    """Returns `run() -> None`, seconds of compilation, and physics steps in a control step."""
    env = gx.envs.load(name, {"backend": "mjx"} if name.startswith("brax:") else None)
    env = env.evaluation() if hasattr(env, "evaluation") else env
    keys = jax.random.split(jax.random.key(0), num_envs)
    state = jax.jit(jax.vmap(env.reset))(keys)

    def run(state, key):
        def step(state, key):
            action = jax.random.uniform(key, (num_envs, env.action_size), minval=-1.0)
            after = jax.vmap(env.step)(state, action)
            return jax.tree.map(lambda leaf, old: leaf.astype(old.dtype), after, state), after.reward

        return jax.lax.scan(step, state, jax.random.split(key, STEPS))

    start = time.perf_counter()
    compiled = jax.jit(run).lower(state, jax.random.key(1)).compile()
    seconds = time.perf_counter() - start
    # A broken state would be stepped at another speed; each round starts from the first one.
    substeps = getattr(env, "n_substeps", None) or getattr(env, "_n_frames", 1)
    return lambda: jax.block_until_ready(compiled(state, jax.random.key(2))), seconds, substeps


def main(settings: Settings) -> None:
    """Prints a table."""
    row = "{:10s} {:28s} {:>5} {:>9} {:>26s} {:>16}"
    print(row.format("class", "environment", "envs", "compile s", "control steps/s", "physics steps/s"))
    for kind in settings.classes:
        for num_envs in settings.num_envs:
            cases = {name: compile_steps(name, num_envs) for name in CLASSES[kind]}
            rates: dict[str, list[float]] = {name: [] for name in cases}
            for round_ in range(settings.rounds + 1):
                for name, (run, _, _) in cases.items():
                    start = time.perf_counter()
                    run()
                    if round_:
                        rates[name].append(STEPS * num_envs / (time.perf_counter() - start))
            for name, (_, seconds, substeps) in cases.items():
                middle = statistics.median(rates[name])
                spread = f"{middle:,.0f} ({min(rates[name]):,.0f} to {max(rates[name]):,.0f})"
                physics = f"{middle * substeps:,.0f}"
                print(row.format(kind, name, num_envs, f"{seconds:.1f}", spread, physics), flush=True)


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    main(tyro.cli(Settings))
