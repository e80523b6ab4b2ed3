"""brax's and Playground's training wrappers, taken off: `AutoReset` does their work, and keeps what they lose."""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp

from galvanax.envs.environment import cast_like, strong
from galvanax.errors import ConfigError

log = logging.getLogger("galvanax")

# By name, so that neither library need be there.
_LIBRARIES = ("brax", "mujoco_playground")
_EPISODE = "EpisodeWrapper"
_RESETTING = ("AutoResetWrapper", "BraxAutoResetWrapper")
_BATCHING = ("VmapWrapper",)
_RANDOMIZING = ("DomainRandomizationVmapWrapper", "BraxDomainRandomizationVmapWrapper")
_REMOVABLE = (_EPISODE, "EvalWrapper", *_RESETTING, *_BATCHING)


def unwrap(env: Any) -> tuple[Any, int | None]:
    """One environment without the wrappers that `brax.envs.create` and Playground's `wrap_for_brax_training` put on.

    They start every episode from the first one's state, and forget the last observation of one that was cut off. A log
    line says what was taken off. Their time limit and `action_repeat` are kept.

    Args:
      env: any environment.

    Returns:
      the environment, and the wrappers' time limit in control steps, or None.

    Raises:
      ConfigError: a wrapper among them can't be taken off.
    """
    taken, limit, repeat = [], None, 1
    while _wrapper(env) in _REMOVABLE:
        name = _wrapper(env)
        if name == _EPISODE:
            repeat *= env.action_repeat
            steps = -(-env.episode_length // repeat)
            limit = steps if limit is None else min(limit, steps)
            name += f"(episode_length={env.episode_length}, action_repeat={env.action_repeat})"
        taken.append(name)
        env = env.env
    _check_inside(env)
    if taken:
        log.warning(
            "%s: took off %s, whose work AutoReset does%s", type(env).__name__, ", ".join(taken),
            "" if limit is None else f"; kept: a time limit of {limit} control steps"
            + (f", each action held for {repeat} steps" if repeat > 1 else ""),
        )  # fmt: skip
    return (env if repeat == 1 else ActionRepeat(env, repeat)), limit


def time_limit(env: Any, wrappers: int | None, given: int | None, field: str) -> int:
    """Control steps before an episode is cut off: the given ones, else the wrappers', the environment's own, or 1000.

    Args:
      env: what `unwrap` left.
      wrappers: the limit that it found.
      given: by the user.
      field: where; for messages.

    Raises:
      ConfigError: it is no whole number of at least 1, or beyond the wrappers' limit.
    """
    own = getattr(env, "episode_length", None)
    limit = next((value for value in (given, wrappers, own) if value is not None), 1000)
    if isinstance(limit, bool) or not hasattr(limit, "__index__") or limit < 1:
        name = f"{type(env).__name__}.episode_length" if given is None else field
        raise ConfigError(f"{name}={limit!r}: expected a whole number of at least 1.")
    if wrappers is not None and limit > wrappers:
        raise ConfigError(
            f"{field}={limit}, and the environment's EpisodeWrapper cuts off after {wrappers} control steps. Nearest: "
            f"{wrappers}; or the environment without it: brax.envs.create(..., episode_length=None, auto_reset=False)."
        )
    return int(limit)


@dataclasses.dataclass(frozen=True)
class ActionRepeat:
    """`env` with each action held for `count` of its steps, or up to the episode's end; rewards are summed.

    Observation and metrics are those of the last step. Everything else is the environment's own.
    """

    env: Any
    count: int

    def reset(self, rng: jax.Array) -> Any:
        """A fresh episode."""
        return self.env.reset(rng)

    def step(self, state: Any, action: jax.Array) -> Any:
        """One control step: up to `count` of the environment's."""

        def once(carry: tuple[Any, jax.Array], _: None) -> tuple[tuple[Any, jax.Array], None]:
            before, total = carry
            over = before.done > 0
            # A copy: some environments write into the dicts of the state that they are given.
            after = cast_like(self.env.step(jax.tree.map(lambda leaf: leaf, before), action), before)
            kept = jax.tree.map(lambda old, new: jnp.where(over, old, new), before, after)
            return (kept, total + jnp.where(over, 0.0, after.reward)), None

        state = strong(state.replace(done=jnp.zeros_like(state.done)))
        (state, total), _ = jax.lax.scan(once, (state, jnp.zeros_like(state.reward)), None, self.count)
        return state.replace(reward=total)

    def evaluation(self) -> "ActionRepeat":
        """The environment as it is judged, the same actions held."""
        evaluation = getattr(self.env, "evaluation", None)
        return self if evaluation is None else dataclasses.replace(self, env=evaluation())

    @property
    def dt(self) -> float:
        """Seconds (s) between actions."""
        return self.count * self.env.dt

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)


def _wrapper(env: Any) -> str:
    """The name of a library's own class, "" for anybody else's: a subclass may do more."""
    kind = type(env)
    return kind.__name__ if kind.__module__.partition(".")[0] in _LIBRARIES else ""


def _check_inside(env: Any) -> None:
    """Raises ConfigError for wrappers that stay on, and must not: the environment's, or under somebody else's."""
    inside = env
    while inside is not None:
        name = _wrapper(inside)
        if name in _RANDOMIZING:
            raise ConfigError(
                f"{name} draws properties for a batch of its own; expected one environment. Give it without the "
                "wrapper, and draw its properties in `reset`."
            )
        if name in (*_RESETTING, *_BATCHING):
            raise ConfigError(
                f"{type(env).__name__} holds a {name}, which AutoReset can't take off from under it; expected one "
                "environment. Wrap an environment of brax.envs.create(..., auto_reset=False) without batch_size."
            )
        inside = vars(inside).get("env") if hasattr(inside, "__dict__") else None
