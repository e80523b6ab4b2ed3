"""`galvanax play RUN_DIR`: what a trained policy does, in figures and on film."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.markup import escape
from rich.table import Table

from galvanax.cli.runs import check_output, load_policy, writing
from galvanax.errors import ConfigError
from galvanax.files import write_json
from galvanax.rendering.write_clip import FORMATS, Format, write_clip
from galvanax.runs.integrity import read_meta
from galvanax.runs.run_folder import find_run
from galvanax.tasks.policy_rollout import Command, Episodes, episode_clip, episode_keys, mujoco_model, play_episodes
from galvanax.terminal import print_table


@dataclasses.dataclass
class PlayCommand:
    """Let a PPO run's policy play, in the environment that it is judged in: figures to play.json, a film of the first
    episode.

    An episode's start and command depend on the seed and its number alone.

    Attributes:
      run_dir: the run's folder.
      checkpoint: the weights: "best", "last", a step or a path.
      experiment: path/to/file.py:name of the gx.Experiment that made the run, where that is not one of the package. A
        run folder is data: no code that it names is run.
      num_episodes: episodes, all at the same time.
      num_steps: control steps of an episode, at most; by default as many as in the run.
      command: VX VY YAW, what a legged robot is asked for all the time: forward and left (m/s), yaw rate (rad/s). By
        default random commands.
      stochastic: sample the policy's actions instead of taking the most likely ones.
      seed: of the episodes.
      output: the folder to write to; by default `play` in the run's.
      formats: how to show the first episode, of mp4, png, html, npz; none for figures only.
      camera: name or number of the model's camera, or track, which goes along with the trunk; chosen if not given.
      width: of the film, pixels.
      height: of the film, pixels.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    checkpoint: str = "best"
    experiment: str | None = None
    num_episodes: int = 8
    num_steps: int | None = None
    command: Command | None = None
    stochastic: bool = False
    seed: int = 0
    output: Path | None = None
    formats: tuple[Format, ...] = ("mp4", "png", "html")
    camera: str | None = None
    width: int = 640
    height: int = 480


def play(arguments: list[str]) -> None:
    """Parses the flags, plays, prints and writes."""
    command = tyro.cli(PlayCommand, args=arguments, prog="galvanax play")
    if command.num_episodes < 1:
        raise ConfigError(f"num_episodes={command.num_episodes}: expected at least 1.")
    run_dir = find_run(command.run_dir)
    output = check_output(run_dir / "play" if command.output is None else command.output, run_dir)
    model, data, env, checkpoint = load_policy(run_dir, command.checkpoint, command.command, command.experiment)
    if command.formats:
        mujoco_model(env)
    num_steps = data.max_episode_length if command.num_steps is None else command.num_steps
    keys = episode_keys(command.seed, np.arange(command.num_episodes))
    episodes: Episodes = jax.device_get(
        play_episodes(model, env, keys, num_steps, deterministic=not command.stochastic)
    )
    with writing(output):
        for name in FORMATS:  # an earlier film would seem to show these figures
            (output / f"episode_0.{name}").unlink(missing_ok=True)
    figures = {
        "checkpoint": str(checkpoint),
        "step": read_meta(checkpoint).step,
        "seed": command.seed,
        "stochastic": command.stochastic,
        "command": command.command,
        "num_steps": num_steps,
        **summary(episodes),
    }
    write_json(output / "play.json", figures)
    _print(figures, f"{run_dir}, step {figures['step']}: {command.num_episodes} episodes")
    written = [output / "play.json"]
    if command.formats:
        written += write_clip(
            output / "episode_0",
            episode_clip(env, episodes, 0),
            command.formats,
            camera=command.camera,
            width=command.width,
            height=command.height,
            title=f"{run_dir.resolve().name}, step {figures['step']}",
        )
    print("wrote " + "\n      ".join(map(str, written)))


def summary(episodes: Episodes) -> dict[str, Any]:
    """The figures of episodes on the host."""
    returns = np.asarray(episodes.reward, np.float64).sum(axis=1)
    falls = int(np.sum(episodes.fell))
    return {
        "num_episodes": len(returns),
        "episode_return": _spread(returns),
        "episode_length": _spread(np.asarray(episodes.length)),
        "falls": falls,
        "time_limits": len(returns) - falls,
        "metrics": {name: float(np.mean(value)) for name, value in sorted(episodes.metrics.items())},
        "episodes": [
            {"return": float(returns[index]), "length": int(episodes.length[index]), "fell": bool(episodes.fell[index])}
            for index in range(len(returns))
        ],
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    values = np.asarray(values, np.float64)
    return {name: float(getattr(values, name)()) for name in ("mean", "std", "min", "max")}


def _print(figures: dict[str, Any], title: str) -> None:
    table = Table("figure", "mean", "std", "min", "max", title=escape(title))
    for name in ("episode_return", "episode_length"):
        table.add_row(name, *(f"{value:.4g}" for value in figures[name].values()))
    count = figures["num_episodes"]
    table.add_row("ended by the environment", f"{figures['falls']} of {count}")
    table.add_row("ended by the time limit", f"{figures['time_limits']} of {count}")
    table.add_section()
    units = {"lin_vel_error": "lin_vel_error (m/s)", "ang_vel_error": "ang_vel_error (rad/s)"}
    for name, value in figures["metrics"].items():
        table.add_row(units.get(name, name), f"{value:.4g}")
    print_table(table)
