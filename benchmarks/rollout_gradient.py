"""What a gradient through `gx.physics.rollout` costs: time beside a plain rollout, memory, and compilation.

    uv run python benchmarks/rollout_gradient.py [--system go2] [--batch 64] [--horizon 16]

The loss is the mean square of all states; its gradient is with respect to the actions. Forward and gradient take turns,
so that what else the machine does hits both; the ratio of each pair counts. Compilation is timed in processes of their
own, with an empty cache and with a filled one.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import galvanax as gx
from galvanax.physics.rollout import CHECKPOINTS
from galvanax.trainer.compile_cache import enable_compile_cache


@dataclasses.dataclass
class Settings:
    """What is measured.

    Attributes:
      system: a name or file for `gx.envs.load_system`.
      batch: rollouts side by side.
      horizon: control steps.
      rounds: pairs of forward and gradient, after one to warm up.
      iterations: of the constraint solver; 0 for the model's own.
      gradient: "implicit" or "solver".
      checkpoints: choices of `rollout`.
      compile: time compilation with an empty and a filled cache too (minutes).
    """

    system: str = "go2"
    batch: int = 64
    horizon: int = 16
    rounds: int = 7
    iterations: int = 0
    gradient: str = "implicit"
    checkpoints: tuple[str, ...] = CHECKPOINTS
    compile: bool = True
    child: str = ""  # internal: compile this choice and print the seconds


def functions(settings: Settings, checkpoint: str):
    """Forward, gradient, and their arguments."""
    system = gx.envs.load_system(settings.system, gradient=settings.gradient, iterations=settings.iterations or None)
    rng = np.random.default_rng(0)
    x0 = np.tile(start_of(settings.system, system), (settings.batch, 1))
    x0[:, system.state_dim // 2 + 1 :] += 0.1 * rng.normal(size=x0[:, system.state_dim // 2 + 1 :].shape)
    actions = 0.1 * rng.normal(size=(settings.batch, settings.horizon, system.action_dim))

    def loss(x0, actions):
        return jnp.mean(gx.physics.rollout(system, x0, actions, checkpoint=checkpoint) ** 2)

    arguments = jnp.asarray(x0, jnp.float32), jnp.asarray(actions, jnp.float32)
    return jax.jit(loss), jax.jit(jax.grad(loss, argnums=1)), arguments


def start_of(name: str, system: gx.physics.System) -> np.ndarray:
    """A state that stands on the ground, or the reference pose."""
    if name in ("go2", "g1", "h1", "h1_2"):
        env = gx.envs.load(name).evaluation()
        data = jax.jit(env.reset)(jax.random.key(0)).pipeline_state
        standing = np.concatenate([data.qpos, 0 * data.qvel])
        standing[env.layout.qpos] = env.reference_pose
        standing[2] = env.height_target
        return standing
    model = gx.physics.model_of(system)
    return np.zeros(system.state_dim) if model is None else np.append(model.qpos0, np.zeros(model.nv + model.na))


def compile_in_child(settings: Settings, checkpoint: str, cache: str) -> dict:
    """Seconds of tracing and of compilation, in a process of its own."""
    command = [sys.executable, __file__, "--child", checkpoint, "--system", settings.system]
    for name in ("batch", "horizon", "iterations", "gradient"):
        command += [f"--{name}", str(getattr(settings, name))]
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)


def child(settings: Settings) -> None:
    """Compiles the gradient and prints seconds."""
    enable_compile_cache()
    _, gradient, arguments = functions(settings, settings.child)
    begin, cpu = time.perf_counter(), time.process_time()
    lowered = gradient.lower(*arguments)
    traced, traced_cpu = time.perf_counter(), time.process_time()
    lowered.compile()
    seconds = {"trace": traced - begin, "compile": time.perf_counter() - traced}
    seconds |= {"trace_cpu": traced_cpu - cpu, "compile_cpu": time.process_time() - traced_cpu}
    print(json.dumps(seconds))


def main(settings: Settings) -> None:
    """Prints a row for each choice of `checkpoint`."""
    if settings.child:
        return child(settings)
    enable_compile_cache()
    steps = settings.batch * settings.horizon
    for checkpoint in settings.checkpoints:
        forward, gradient, arguments = functions(settings, checkpoint)
        runs = [forward.lower(*arguments).compile(), gradient.lower(*arguments).compile()]
        memory = [run.memory_analysis().temp_size_in_bytes / 1e6 for run in runs]
        assert all(np.isfinite(run(*arguments)).all() for run in runs)
        times: list[list[float]] = [[], []]
        for _ in range(settings.rounds):
            for run, seconds in zip(runs, times, strict=True):
                begin = time.perf_counter()
                jax.block_until_ready(run(*arguments))
                seconds.append(time.perf_counter() - begin)
        ratios = [gradient / forward for forward, gradient in zip(*times, strict=True)]
        medians = [statistics.median(seconds) for seconds in times]
        print(
            f"{settings.system} {checkpoint:8} forward {medians[0]:.3f} s, gradient {medians[1]:.3f} s; "
            f"ratio {statistics.median(ratios):.2f} (lowest {min(ratios):.2f}, highest {max(ratios):.2f}), "
            f"of the fastest {min(times[1]) / min(times[0]):.2f}; "
            f"{steps / medians[1]:.0f} control steps/s with gradient; "
            f"temporaries {memory[0]:.1f} and {memory[1]:.1f} MB",
            flush=True,
        )
        if settings.compile:
            with tempfile.TemporaryDirectory() as cache:
                for name in ("empty", "filled"):
                    seconds = compile_in_child(settings, checkpoint, cache)
                    print(f"  cache {name}: " + ", ".join(f"{key} {value:.1f} s" for key, value in seconds.items()))


if __name__ == "__main__":
    main(tyro.cli(Settings))
