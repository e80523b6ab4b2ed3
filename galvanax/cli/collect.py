"""`galvanax collect RUN_DIR`: a trained policy's motions as data."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from galvanax.cli.runs import check_output, load_policy
from galvanax.errors import ConfigError
from galvanax.tasks.collect_motions import Motions, collect_motions, save_motions, shard_paths
from galvanax.tasks.policy_rollout import Command


@dataclasses.dataclass
class CollectCommand:
    """Collect a PPO run's motions, in the environment that it is judged in, many episodes at a time.

    The NPZ has states (N, T, nq + nv), actions (N, T, a), conditionings (N, T, c) where there are any, rewards, lengths
    (N,), dt, joint_names, nq and nv. An episode depends on the seed and its number alone.

    Attributes:
      run_dir: the run's folder.
      output: the file to write, such as motions.npz.
      num_episodes: episodes in the file.
      checkpoint: the weights: "best", "last", a step or a path.
      experiment: path/to/file.py:name of the gx.Experiment that made the run, where that is not one of the package. A
        run folder is data: no code that it names is run.
      num_envs: episodes simulated at a time.
      episode_length: control steps of an episode; by default as many as in the run.
      keep_short: keep episodes that end early too, padded, and take no others in their place.
      command: VX VY YAW, what a legged robot is asked for all the time: forward and left (m/s), yaw rate (rad/s). By
        default random commands.
      conditioning: what DynaFlow may be told of a motion, any of command (the velocity), phase (sine and cosine of the
        stepping clock), obs (what the policy sees), obs:NAME (a part of it, such as obs:gravity); with blanks or commas
        between them. By default the command, where the robot is commanded; none: nothing.
      stochastic: sample the policy's actions instead of taking the most likely ones.
      seed: of the episodes.
      shard_size: at most so many episodes a file, motions-00000-of-00004.npz and so on; memory holds one such file.
      overwrite: replace the files of that name.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    output: Path
    num_episodes: int
    checkpoint: str = "best"
    experiment: str | None = None
    num_envs: int = 256
    episode_length: int | None = None
    keep_short: bool = False
    command: Command | None = None
    conditioning: tuple[str, ...] | None = None
    stochastic: bool = False
    seed: int = 0
    shard_size: int | None = None
    overwrite: bool = False


def collect(arguments: list[str]) -> None:
    """Parses the flags, collects and writes."""
    command = tyro.cli(CollectCommand, args=arguments, prog="galvanax collect")
    if command.output.suffix != ".npz":
        raise ConfigError(f"output={command.output}: expected the name of a file that ends in .npz.")
    check_output(command.output.parent)
    old = _present(command.output)
    if old and not command.overwrite:
        raise ConfigError(f"output={command.output}: {old[0].name} is there; expected a new name, or --overwrite.")
    model, data, env, _ = load_policy(command.run_dir, command.checkpoint, command.command, command.experiment)
    length = data.max_episode_length if command.episode_length is None else command.episode_length
    batches = collect_motions(
        model,
        env,
        command.num_episodes,
        length,
        seed=command.seed,
        num_envs=command.num_envs,
        deterministic=not command.stochastic,
        keep_short=command.keep_short,
        conditioning=_names(command.conditioning),
    )
    counted = _Counted(batches)
    paths = save_motions(command.output, counted, env, command.num_episodes, shard_size=command.shard_size)
    for path in set(old) - set(shard_paths(command.output, command.num_episodes, command.shard_size)):
        path.unlink()
    files = str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
    mean = counted.total_return / command.num_episodes
    print(f"wrote {command.num_episodes} episodes of {length} steps to {files}; mean return {mean:.4g}")
    if command.keep_short:
        print(f"{counted.short} of them are shorter: `lengths` says where they end")
    else:
        print(f"{counted.tried - command.num_episodes} of {counted.tried} episodes ended early and were left out")


def _names(words: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if words is None else tuple(name for word in words for name in word.split(",") if name != "none")


class _Counted:
    """Passes batches on, and counts."""

    def __init__(self, batches: Iterable[Motions]):
        self._batches = batches
        self.tried = self.short = 0
        self.total_return = 0.0

    def __iter__(self) -> Iterator[Motions]:
        for batch in self._batches:
            self.tried = int(batch.episodes[-1]) + 1
            self.short += int(np.sum(batch.lengths < batch.states.shape[1]))
            self.total_return += float(batch.rewards.sum(dtype=np.float64))
            yield batch


def _present(output: Path) -> list[Path]:
    """The file, and shards of any number."""
    shards = output.parent.glob(f"{output.stem}-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].npz")
    return [path for path in (output, *sorted(shards)) if path.is_file()]
