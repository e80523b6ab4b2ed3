"""A legged robot's returns at equal control steps, on flat ground or on terrain: to be run on two versions of the code.

    uv run python benchmarks/legged_formulas.py --robot go2
    uv run python benchmarks/legged_formulas.py --robot go2 --terrain mixed --start runs/go2-flat
    git worktree add ../before COMMIT && uv run python benchmarks/legged_formulas.py --robot go2 --tree ../before

Trains the shipped experiment with its own settings, but for sizes that two cores bear, mirrored data, and commands that
ask to walk ahead. Judged is the deterministic policy in whole episodes without noise, pushes and curriculum, so that
returns of different rules of training can be compared; on terrain, on levels drawn at random. Terrain levels are those
at which the training environments are.
"""

import dataclasses
import importlib
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
import tyro


@dataclasses.dataclass
class Settings:
    """What is trained, and for how long.

    Attributes:
      robot: whose experiment.
      terrain: the ground; but for flat, of `levels` levels and small tiles.
      levels: of the terrain.
      tile_size: m.
      num_envs: stepped side by side.
      iterations: of 24 control steps in each environment.
      evaluations: evenly over the run, at its end too.
      episodes: in an evaluation.
      hidden: widths of both networks; empty for the experiment's own.
      seed: of the run.
      start: a run to take the last weights of, by default none.
      run_dir: where the run is kept, by default nowhere.
      tree: the folder that holds the `galvanax` to be run; by default the installed one.
    """

    robot: Literal["go2", "g1", "h1", "h1_2"] = "go2"
    terrain: Literal["flat", "slopes", "stairs", "rough", "mixed"] = "flat"
    levels: int = 6
    tile_size: float = 3.0
    num_envs: int = 256
    iterations: int = 100
    evaluations: int = 4
    episodes: int = 32
    hidden: tuple[int, ...] = (128, 128, 64)
    seed: int = 0
    start: Path | None = None
    run_dir: Path | None = None
    tree: Path | None = None


def ground(settings: Settings):
    """The terrain of the settings: tiles so small that a robot that walks badly gets to know the next level, too."""
    import galvanax as gx

    if settings.terrain == "flat":
        return gx.envs.Terrain()
    size = settings.tile_size
    return gx.envs.Terrain(settings.terrain, levels=settings.levels, columns=4, tile_size=size, platform=1.0)


def experiment(settings: Settings):
    """The robot's own, made small."""
    registry = importlib.import_module("galvanax.experiments.ppo")
    found = getattr(registry, f"{settings.robot}_ppo")()
    env = found.data.environment
    commands = dataclasses.replace(env.commands, lin_vel_x=(0.3, 1.0), lin_vel_y=(0.0, 0.0))
    env = dataclasses.replace(env, commands=commands, terrain=ground(settings))
    data = dataclasses.replace(
        found.data, environment=env, num_envs=settings.num_envs, num_eval_episodes=settings.episodes
    )
    task = dataclasses.replace(found.task, symmetry="augment")
    if settings.hidden:
        task = dataclasses.replace(task, policy_hidden=settings.hidden, value_hidden=settings.hidden)
    return task, data


def reporter(settings: Settings, per_iteration: int):
    """A callback that prints a line at each validation."""
    import galvanax as gx

    class Report(gx.Callback):
        def __init__(self):
            self.start, self.train = time.perf_counter(), {}

        def on_train_log(self, run: gx.RunView, step: int, metrics: dict[str, float]) -> None:
            self.train = metrics

        def on_validation_end(self, run: gx.RunView, metrics: dict[str, float]) -> None:
            level = np.asarray(run.state.carry.envs.info["terrain_level"])
            figures = {
                "steps": run.step * per_iteration,
                "return": metrics["val/episode_return"],
                "length": metrics["val/episode_length"],
                "velocity error": metrics["val/env/lin_vel_error"],
                "train return": self.train.get("train/episode_return", float("nan")),
                "value loss": self.train.get("train/value_loss", float("nan")),
                "explained": self.train.get("train/explained_variance", float("nan")),
                "level": level.mean(),
                "seconds": time.perf_counter() - self.start,
            }
            print("  ".join(f"{name} {value:,.4g}" for name, value in figures.items()), flush=True)
            if settings.terrain != "flat":
                counts = np.bincount(level, minlength=settings.levels)
                print(f"    environments by level: {' '.join(map(str, counts))}", flush=True)

    return Report()


def main(settings: Settings) -> None:
    """Trains and prints."""
    if settings.tree is not None:
        sys.path.insert(0, str(settings.tree.resolve()))
    import galvanax as gx

    print(f"{settings}\ngalvanax of {Path(gx.__file__).parent.parent}", flush=True)
    task, data = experiment(settings)
    start = [] if settings.start is None else [gx.WarmStart(str(settings.start), checkpoint="last")]
    trainer = gx.Trainer(
        max_steps=settings.iterations,
        val_every=gx.Steps(settings.iterations // settings.evaluations),
        log_every=5,
        seed=settings.seed,
        run_dir=None if settings.run_dir is None else str(settings.run_dir),
        callbacks=[gx.GradientClipping(1.0), *start, reporter(settings, settings.num_envs * task.unroll_length)],
    )
    trainer.fit(task, data)


if __name__ == "__main__":
    main(tyro.cli(Settings))
