"""Whole episodes of a policy, many side by side: what `play` measures, `collect` writes down and films show."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import nnx

from galvanax.envs.environment import cast_like, strong
from galvanax.envs.legged.settings import Commands
from galvanax.errors import ConfigError, DataError, nearest
from galvanax.networks.actor_critic import ActorCritic
from galvanax.rendering.trajectory_npz import MotionClip
from galvanax.tasks.seen_environment import as_seen_by

# Where the noise of a stochastic policy branches off an episode's key. Small numbers are what `split` in `reset` uses.
_NOISE = 0x6E6F6973

Command = tuple[float, float, float]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Episodes:
    """Episodes from their start to their first end, each `(episodes, steps, ...)`; rows past an episode's end are 0.

    Row t holds the state before the t-th action, the action, and what came of it.

    Attributes:
      qpos: positions before the action, or None where the environment's physics has none.
      qvel: velocities before the action, likewise.
      ctrl: the actuators' controls in the last physics step of the action, or None where there are none.
      command: what the policy was asked to do: `info["command"]` before the action, or None.
      conditioning: what was asked for by name, side by side, before the action; see `conditioning_of`. Or None.
      action: what the environment got.
      reward: of the action.
      length: rows that count `(episodes,)`.
      fell: whether the environment ended the episode `(episodes,)`, rather than cut it off: by the number of steps, or
        by a time limit of its own (`info["truncation"]`).
      metrics: the environment's, averaged over the rows that count, each `(episodes,)`.
    """

    qpos: jax.Array | None
    qvel: jax.Array | None
    ctrl: jax.Array | None
    command: jax.Array | None
    conditioning: jax.Array | None
    action: jax.Array
    reward: jax.Array
    length: jax.Array
    fell: jax.Array
    metrics: dict[str, jax.Array]


def play_episodes(
    model: nnx.Module,
    env: Any,
    keys: jax.Array,
    num_steps: int,
    *,
    deterministic: bool = True,
    conditioning: tuple[str, ...] = (),
) -> Episodes:
    """One episode for each key, all at the same time; compiled once for an environment and a number of keys.

    An episode is a function of its key: which others run beside it makes no difference (but for rounding, where their
    number changes). It ends where the environment first says so, else after `num_steps`.

    Args:
      model: the policy, an `ActorCritic`; its memory, if any, starts empty and is carried.
      env: one environment of brax's convention.
      keys: `(episodes,)`.
      num_steps: control steps, at most.
      deterministic: take the policy's mode, else sample.
      conditioning: names of what else to write down, of `conditioning_of`.

    Raises:
      ConfigError: `num_steps` makes no sense, or the environment lacks one of `conditioning`.
    """
    if num_steps < 1:
        raise ConfigError(f"num_steps={num_steps}: expected at least 1.")
    structure, weights = nnx.split(model)
    return _play(_Same(env), structure, weights, keys, num_steps, deterministic, conditioning)


def conditioning_of(env: Any, state: Any, names: Sequence[str]) -> jax.Array | None:
    """What a motion can be conditioned on, side by side `(c,)`, of one environment's state; None without names.

    Args:
      env: the environment.
      state: of it.
      names: `"command"`: the commanded velocity. `"phase"`: sine and cosine of the stepping clock. `"obs"`: the
        observation that the policy gets. `"obs:NAME"`: a part of it, by `observation_layout`, or another entry of an
        observation that is a dict.

    Raises:
      ConfigError: the environment has no such thing; says what it has.
    """
    entries = dict(state.obs) if isinstance(state.obs, Mapping) else {"state": state.obs}
    parts = {f"obs:{name}": value for name, value in entries.items()}
    parts["obs"] = entries["state"]
    for name, where in getattr(env, "observation_layout", {}).items():
        parts[f"obs:{name}"] = entries["state"][where]
    if "command" in state.info:
        parts["command"] = state.info["command"]
    if "obs:phase" in parts:
        parts["phase"] = parts["obs:phase"]
    for name in names:
        if name not in parts:
            raise ConfigError(f"conditioning: {type(env).__name__} has no {name!r}.{nearest(name, sorted(parts))}")
    return jnp.concatenate([jnp.ravel(parts[name]) for name in names]) if names else None


def episode_keys(seed: int, numbers: np.ndarray) -> jax.Array:
    """The keys `(episodes,)` of a seed's episodes with these numbers."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(numbers, jnp.uint32))


def record_motion(
    model: nnx.Module,
    env: Any,
    *,
    num_steps: int,
    rng: jax.Array,
    command: Command | None = None,
    deterministic: bool = True,
) -> MotionClip:
    """One episode to look at, from its start to its first end.

    Besides states and controls the clip holds `action`, `reward` and, where the environment has one, `command`. A
    row's control acts from this row to the next.

    Args:
      model: the policy.
      env: one environment: ours, Playground's, or brax's with a MuJoCo model.
      num_steps: control steps, at most.
      rng: of the episode.
      command: keep to this one (forward m/s, left m/s, yaw rate rad/s); see `with_command`.
      deterministic: take the policy's mode, else sample.

    Raises:
      ConfigError: the environment has no MuJoCo model or no commands, or `num_steps` makes no sense.
      DataError: the physics is not finite from the start.
    """
    mujoco_model(env)  # before compilation
    env = env if command is None else with_command(env, command)
    return episode_clip(env, play_episodes(model, env, rng[None], num_steps, deterministic=deterministic), 0)


def episode_clip(env: Any, episodes: Episodes, index: int) -> MotionClip:
    """One of the episodes of `env` as a clip.

    Raises:
      ConfigError: the environment has no MuJoCo model.
      DataError: the physics is not finite from the start.
    """
    model = mujoco_model(env)
    episodes = jax.device_get(episodes)
    assert episodes.qpos is not None  # or there would be no model
    assert episodes.qvel is not None
    length = int(episodes.length[index])
    states = np.concatenate([episodes.qpos[index, :length], episodes.qvel[index, :length]], axis=-1)
    finite = np.isfinite(states).all(axis=-1)
    # An environment that doesn't end where its physics breaks is shown up to there.
    steps = length if finite.all() else int(np.argmin(finite))
    if steps < 1:
        raise DataError(f"{type(env).__name__}.reset gave a state that is not finite.")
    arrays = {name: getattr(episodes, name) for name in ("qpos", "qvel", "ctrl", "command", "action", "reward")}
    rows = {name: np.asarray(array[index, :steps]) for name, array in arrays.items() if array is not None}
    qpos, qvel, ctrl = (rows.pop(name, None) for name in ("qpos", "qvel", "ctrl"))
    assert qpos is not None
    # Rounded: 0.06, not 0.06000000000000001.
    return MotionClip(model, qpos, np.round(np.arange(steps) * control_dt(env), 9), qvel, ctrl, rows)


def with_command(env: Any, command: Command) -> Any:
    """The environment with one command for good, instead of random ones.

    Args:
      env: a legged one.
      command: forward (m/s), left (m/s), yaw rate (rad/s, counter-clockwise), in the trunk's frame.

    Raises:
      ConfigError: the environment takes no commands.
    """
    commands = getattr(env, "commands", None)
    if not dataclasses.is_dataclass(env) or not isinstance(commands, Commands):
        raise ConfigError(
            f"A command {' '.join(map(str, command))} was given, and {type(env).__name__} takes none: only legged "
            "environments do."
        )
    forward, left, yaw_rate = ((float(value),) * 2 for value in command)
    fixed = dataclasses.replace(
        commands, lin_vel_x=forward, lin_vel_y=left, ang_vel_yaw=yaw_rate, heading=False, dead_zone=0.0
    )
    return dataclasses.replace(env, commands=fixed)  # type: ignore[type-var]


def mujoco_model(env: Any) -> mujoco.MjModel:
    """The MuJoCo model of an environment: ours, Playground's, or brax's where it was made from MJCF.

    Raises:
      ConfigError: it has none.
    """
    for holder in (env, getattr(env, "sys", None)):
        model = getattr(holder, "mj_model", None)
        if isinstance(model, mujoco.MjModel):
            return model
    raise ConfigError(
        f"{type(env).__name__} has no MuJoCo model, so its motion can't be recorded: expected env.mj_model (Galvanax, "
        "Playground) or env.sys.mj_model (brax)."
    )


def control_dt(env: Any) -> float:
    """Seconds (s) between an environment's actions.

    Raises:
      ConfigError: it doesn't say.
    """
    dt = getattr(env, "dt", None)
    if dt is None:
        raise ConfigError(f"{type(env).__name__} has no `dt`; expected the seconds between actions.")
    # brax's is a float32 array, whose 0.04 would become 0.0399999991.
    return float(dt) if isinstance(dt, float) else float(str(np.asarray(dt)))


class _Same:
    """Any object as a static argument, equal to itself alone: environments with dicts for fields have no hash."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


@functools.partial(jax.jit, static_argnums=(0, 1, 4, 5, 6))
def _play(
    env: _Same,
    structure: nnx.GraphDef,
    weights: nnx.State,
    keys: jax.Array,
    num_steps: int,
    deterministic: bool,
    conditioning: tuple[str, ...],
) -> Episodes:
    model: ActorCritic = nnx.merge(structure, weights)
    seen = as_seen_by(env.value, model)
    reset, step = jax.vmap(seen.reset), jax.vmap(seen.step)
    noise_keys = jax.vmap(lambda key, index: jax.random.fold_in(jax.random.fold_in(key, _NOISE), index), (0, None))
    count = keys.shape[0]

    def one_step(state: Any, memory: jax.Array, index: jax.Array) -> tuple[Any, jax.Array, dict[str, Any]]:
        policy, memory = model.act(state.obs, memory)
        raw = policy.loc
        if not deterministic:
            noise = jax.vmap(lambda key: jax.random.normal(key, raw.shape[1:]))(noise_keys(keys, index))
            raw = policy.sample(noise)
        action = policy.action(raw)
        after = step(state, action)
        qpos, qvel, _ = _physics(state)
        row = {
            "qpos": qpos,
            "qvel": qvel,
            "ctrl": _physics(after)[2],
            "command": state.info.get("command"),
            "conditioning": jax.vmap(lambda one: conditioning_of(env.value, one, conditioning))(state),
            "action": action,
            "reward": after.reward,
        }
        return cast_like(after, state), memory, row

    state = strong(reset(keys))
    memory = model.initial_memory(count)
    shapes = jax.eval_shape(lambda: one_step(state, memory, jnp.int32(0))[2])
    rows = jax.tree.map(lambda leaf: jnp.zeros((num_steps, *leaf.shape), leaf.dtype), shapes)
    totals = {name: jnp.zeros(count) for name in state.metrics}

    # A loop of our own instead of a scan over a vmapped episode: it ends with the last episode.
    def running(carry: Any) -> jax.Array:
        index, _, _, alive, *_ = carry
        return (index < num_steps) & jnp.any(alive)

    def advance(carry: Any) -> Any:
        index, state, memory, alive, length, fell, rows, totals = carry
        after, memory, row = one_step(state, memory, index)

        def put(buffer: jax.Array, value: jax.Array) -> jax.Array:
            mask = alive.reshape(count, *(1,) * (value.ndim - 1))
            return buffer.at[index].set(jnp.where(mask, value, jnp.zeros_like(value)))

        rows = jax.tree.map(put, rows, row)
        totals = {name: total + jnp.where(alive, after.metrics[name], 0.0) for name, total in totals.items()}
        ended = alive & (after.done > 0.5)
        failed = ended & ~(after.info["truncation"] > 0) if "truncation" in after.info else ended
        return index + 1, after, memory, alive & ~ended, length + alive, fell | failed, rows, totals

    alive = jnp.ones(count, bool)
    carry = (jnp.int32(0), state, memory, alive, jnp.zeros(count, jnp.int32), ~alive, rows, totals)
    *_, length, fell, rows, totals = jax.lax.while_loop(running, advance, carry)
    rows = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), rows)
    return Episodes(**rows, length=length, fell=fell, metrics={name: total / length for name, total in totals.items()})


def _physics(state: Any) -> tuple[jax.Array | None, jax.Array | None, jax.Array | None]:
    """Positions, velocities and controls in a state: Playground's `data`, brax's `pipeline_state`, ours is both."""
    physics = getattr(state, "data", None)
    if physics is None:
        physics = getattr(state, "pipeline_state", None)
    # brax's own engines call them q and qd.
    qpos = getattr(physics, "qpos", getattr(physics, "q", None))
    qvel = getattr(physics, "qvel", getattr(physics, "qd", None))
    return qpos, qvel, getattr(physics, "ctrl", None)
