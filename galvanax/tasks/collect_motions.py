"""Motions of a policy as data for those who learn from demonstrations: collected side by side, streamed to disk."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import mujoco
import numpy as np
from flax import nnx

from galvanax.errors import ConfigError, DataError
from galvanax.files import partial_file
from galvanax.rendering.trajectory_npz import model_name
from galvanax.tasks.policy_rollout import (
    Episodes,
    conditioning_of,
    control_dt,
    episode_keys,
    mujoco_model,
    play_episodes,
)

# Fewer whole episodes than this part, and collecting gives up.
_FEWEST = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Motions:
    """Episodes as arrays on the host. Row t of an episode leads by `actions[t]` to row t + 1.

    Attributes:
      states: `[qpos, qvel]` in MuJoCo's layout and units `(episodes, steps, nq + nv)`.
      actions: what the environment got, within its clipping `(episodes, steps, action_size)`.
      rewards: `(episodes, steps)`.
      lengths: rows that count `(episodes,)`; past them, the last state that counts, and zeros.
      episodes: their numbers `(episodes,)`, of which their randomness is a function.
      fell: whether the environment ended them `(episodes,)`.
      conditionings: what the motion followed, by default the commanded velocity `(episodes, steps, c)`, or None.
    """

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    lengths: np.ndarray
    episodes: np.ndarray
    fell: np.ndarray
    conditionings: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.states)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that there are, by name."""
        return {name: array for name, array in vars(self).items() if array is not None}

    def rows(self, chosen: Any) -> "Motions":
        """Some of the episodes."""
        return Motions(**{name: array[chosen] for name, array in self.arrays().items()})


def collect_motions(
    model: nnx.Module,
    env: Any,
    num_episodes: int,
    num_steps: int,
    *,
    seed: int = 0,
    num_envs: int = 256,
    deterministic: bool = True,
    keep_short: bool = False,
    conditioning: Sequence[str] | None = None,
) -> Iterator[Motions]:
    """Exactly `num_episodes` episodes, in the order of their numbers, batch by batch as they are simulated.

    Each number has a key of its own, so what is collected depends on the seed, not on how many run side by side (but
    for rounding). Nothing favours short episodes, as taking whichever ends first would.

    Args:
      model: the policy.
      env: one environment with a MuJoCo model.
      num_episodes: how many.
      num_steps: rows of an episode.
      seed: of the episodes.
      num_envs: episodes simulated at a time.
      deterministic: take the policy's mode, else sample.
      keep_short: take episodes 0, 1, 2, ... whatever their length. Otherwise those that end before `num_steps` are left
        out, and later numbers take their place.
      conditioning: names of `conditioning_of`; by default `("command",)` where the robot is commanded.

    Yields:
      the episodes that were kept of each batch, at least one.

    Raises:
      ConfigError: a number makes no sense, or the environment has no MuJoCo model or nothing of a name to condition on.
      DataError: a state is not finite; or, of as many episodes as were asked for, less than a tenth is whole.
    """
    for name, value in (("num_episodes", num_episodes), ("num_steps", num_steps), ("num_envs", num_envs)):
        if value < 1:
            raise ConfigError(f"{name}={value}: expected at least 1.")
    mujoco_model(env)
    start = jax.eval_shape(env.reset, jax.random.key(0))
    names = tuple(conditioning if conditioning is not None else ["command"] if "command" in start.info else [])
    jax.eval_shape(lambda state: conditioning_of(env, state, names), start)
    count = min(num_envs, num_episodes)
    tried = kept = 0
    while kept < num_episodes:
        if tried >= num_episodes and kept < _FEWEST * tried:
            raise DataError(
                f"Only {kept} of {tried} episodes lasted {num_steps} steps. Train the policy for longer, ask for a "
                "shorter episode_length, or keep_short."
            )
        numbers = np.arange(tried, tried + count)
        # The last batch is as large as the others: another size would be another program.
        played = play_episodes(
            model, env, episode_keys(seed, numbers), num_steps, deterministic=deterministic, conditioning=names
        )
        motions = _motions(jax.device_get(played), numbers)
        whole = np.flatnonzero(np.ones(count, bool) if keep_short else motions.lengths == num_steps)
        whole = whole[: num_episodes - kept]
        tried += count
        kept += len(whole)
        if len(whole):
            yield motions.rows(whole)


def save_motions(
    path: str | Path, batches: Iterable[Motions], env: Any, num_episodes: int, *, shard_size: int | None = None
) -> list[Path]:
    """Writes episodes to `path`, or to `NAME-00000-of-00004.npz` and so on, holding one shard in memory at a time.

    A file has the arrays of `Motions`, and `dt` (s), `nq`, `nv`, `joint_names` (in the order of qpos),
    `action_names` (of joints or actuators, where they are known) and `model_name`. It needs no pickle.

    Args:
      path: ends in .npz.
      batches: of `collect_motions`.
      env: the environment that they come from.
      num_episodes: in all batches together.
      shard_size: episodes in a file; None for one file.

    Returns:
      the files. Each appears when it is whole; after an error there are none.

    Raises:
      ConfigError: `shard_size` makes no sense.
      DataError: a file can't be written.
    """
    if shard_size is not None and shard_size < 1:
        raise ConfigError(f"shard_size={shard_size}: expected at least 1.")
    paths = shard_paths(path, num_episodes, shard_size)
    described = _describe(env)
    written: list[Path] = []
    try:
        shards = _shards(batches, num_episodes, shard_size or num_episodes)
        for file, motions in zip(paths, shards, strict=True):
            _write(file, motions, described)
            written.append(file)
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise
    return paths


def shard_paths(path: str | Path, num_episodes: int, shard_size: int | None) -> list[Path]:
    """The files that `save_motions` writes."""
    path = Path(path)
    count = -(-num_episodes // shard_size) if shard_size else 1
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index:05}-of-{count:05}{path.suffix}") for index in range(count)]


def _motions(played: Episodes, numbers: np.ndarray) -> Motions:
    assert played.qpos is not None  # or there would be no model
    assert played.qvel is not None
    states = np.concatenate([played.qpos, played.qvel], axis=-1)
    lengths = np.asarray(played.length)
    for number, rows, length in zip(numbers, states, lengths, strict=True):
        if not np.isfinite(rows[:length]).all():
            raise DataError(f"Episode {number} has a state that is not finite, and its environment did not end it.")
        rows[length:] = rows[length - 1]
    return Motions(
        states=states,
        actions=np.asarray(played.action),
        rewards=np.asarray(played.reward),
        lengths=lengths,
        episodes=numbers,
        fell=np.asarray(played.fell),
        conditionings=None if played.conditioning is None else np.asarray(played.conditioning),
    )


def _shards(batches: Iterable[Motions], num_episodes: int, size: int) -> Iterator[Motions]:
    """The same episodes in parts of `size`, each valid until the next is asked for: they share their memory."""
    buffer: Motions | None = None
    filled = total = 0
    for batch in batches:
        if buffer is None:
            room = min(size, num_episodes)
            empty = {name: np.empty((room, *array.shape[1:]), array.dtype) for name, array in batch.arrays().items()}
            buffer = Motions(**empty)
        start = 0
        while start < len(batch):
            stop = min(len(batch), start + len(buffer) - filled)
            for name, array in batch.arrays().items():
                getattr(buffer, name)[filled : filled + stop - start] = array[start:stop]
            filled, total, start = filled + stop - start, total + stop - start, stop
            if filled == len(buffer) or total == num_episodes:
                yield buffer.rows(slice(0, filled))
                filled = 0


def _write(path: Path, motions: Motions, described: dict[str, Any]) -> None:
    with partial_file(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **motions.arrays(), **described)


def _describe(env: Any) -> dict[str, Any]:
    model = mujoco_model(env)
    described = {
        "dt": np.float64(control_dt(env)),
        "nq": np.int64(model.nq),
        "nv": np.int64(model.nv),
        "joint_names": np.array([model.joint(index).name for index in range(model.njnt)], np.str_),
        "model_name": np.str_(model_name(model)),
    }
    names = _action_names(env, model)
    return described if names is None else {**described, "action_names": np.array(names, np.str_)}


def _action_names(env: Any, model: mujoco.MjModel) -> list[str] | None:
    """Legged environments name the joints that actions move; elsewhere it may be one entry per actuator."""
    joints = getattr(env, "joints", None)
    if isinstance(joints, tuple) and len(joints) == env.action_size:
        return list(joints)
    if model.nu == env.action_size:
        return [model.actuator(index).name for index in range(model.nu)]
    return None
