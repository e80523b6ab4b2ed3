"""Environments as the source of data: what PPO learns from."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np
import tyro

from galvanax.datamodules.datamodule import DataModule
from galvanax.envs.environment import MJXEnvironment
from galvanax.envs.registry import load
from galvanax.envs.unwrap import time_limit, unwrap
from galvanax.errors import ConfigError
from galvanax.settings import check_counts


@dataclasses.dataclass
class EnvironmentDataModule(DataModule):
    """Many copies of one environment. A batch names them; the data itself is made inside the training step.

    Attributes:
      environment: a name of `gx.envs.list()`, or any object of brax's convention, configured as you like. Training
        wrappers of brax and Playground are taken off, their time limit and `action_repeat` kept.
      overrides: settings of an environment that is given by name, as of `gx.envs.load`: `{"action_scale": 0.3}`.
      num_envs: environments that are stepped side by side, over all devices.
      episode_length: control steps before an episode is cut off; by default the environment's own, else 1000.
      iterations_per_epoch: training steps that count as an epoch, the Trainer's default interval between validations.
      num_eval_episodes: episodes in a validation and in a test.
      eval_environment: in which the policy is judged; by default the same, its training disturbances off.
    """

    environment: Any = "cart-pole-balance"
    overrides: dict[str, int | float | bool | str] = dataclasses.field(default_factory=dict)
    num_envs: int = 512
    episode_length: int | None = None
    iterations_per_epoch: int = 50
    num_eval_episodes: int = 64
    eval_environment: tyro.conf.Suppress[Any] = None

    def setup(self) -> None:
        """Loads environments that were given by name.

        Raises:
          ConfigError: a setting makes no sense, an environment lacks a part, or the two don't fit each other.
        """
        check_counts(self, "num_envs", "iterations_per_epoch", "num_eval_episodes")
        if self.overrides and not isinstance(self.environment, str):
            name = type(self.environment).__name__
            raise ConfigError(
                f"EnvironmentDataModule.overrides={self.overrides}: expected none beside a {name}, which has settings "
                "of its own; they are of an environment that is given by name."
            )
        train, judged, length = self.train_env, self.eval_env, self.max_episode_length
        if self.eval_environment is None:
            return
        for name in ("action_size", "observation_size"):
            learned, tried = _policy_size(train, name), _policy_size(judged, name)
            if learned != tried:
                raise ConfigError(
                    f"EnvironmentDataModule.eval_environment: {type(judged).__name__}.{name} is {tried}; expected "
                    f"{learned}, as in {type(train).__name__}, where the policy learns."
                )
        limit = self._judged[1]
        if limit is not None and limit < length:
            raise ConfigError(
                f"EnvironmentDataModule.eval_environment has an EpisodeWrapper that cuts off after {limit} control "
                f"steps; expected at least a training episode's {length}. Nearest: episode_length={limit}."
            )

    # Loaded once, beside the settings: those stay as they were given.

    @functools.cached_property
    def _trained(self) -> tuple[Any, int | None]:
        return _loaded(self.environment, self.overrides)

    @functools.cached_property
    def _judged(self) -> tuple[Any, int | None]:
        if self.eval_environment is not None:
            return _loaded(self.eval_environment)
        env, limit = self._trained
        evaluation = getattr(env, "evaluation", None)
        return (env if evaluation is None else evaluation()), limit

    @property
    def train_env(self) -> Any:
        """The environment that is learned from."""
        return self._trained[0]

    @property
    def eval_env(self) -> Any:
        """The environment that policies are judged in."""
        return self._judged[0]

    @property
    def max_episode_length(self) -> int:
        """Control steps before an episode is cut off."""
        return time_limit(*self._trained, self.episode_length, "EnvironmentDataModule.episode_length")

    def train_dataset(self, seed: int) -> grain.MapDataset:
        """Each batch is the environments' numbers `{"env": (num_envs,)}`, the same every time."""
        batch = {"env": np.arange(self.num_envs, dtype=np.int32)}
        return grain.MapDataset.source([batch] * self.iterations_per_epoch)

    def val_dataset(self) -> grain.MapDataset:
        """One batch of episode numbers `{"episode": (num_eval_episodes,)}`; each starts from a state of its own."""
        return grain.MapDataset.source([{"episode": np.arange(self.num_eval_episodes, dtype=np.int32)}])

    def test_dataset(self) -> grain.MapDataset:
        """Other episodes than validation's."""
        episodes = np.arange(self.num_eval_episodes, 2 * self.num_eval_episodes, dtype=np.int32)
        return grain.MapDataset.source([{"episode": episodes}])


def _loaded(environment: Any, overrides: Mapping[str, Any] | None = None) -> tuple[Any, int | None]:
    """The environment itself, by name or not, and its wrappers' time limit; see `unwrap`.

    Raises:
      ConfigError: it lacks a part of brax's convention, or has a wrapper that can't be taken off.
    """
    env = load(environment, overrides) if isinstance(environment, str) else environment
    if isinstance(env, type):
        raise ConfigError(f"{env.__name__} is a class; expected an environment. Nearest: {env.__name__}().")
    env, limit = unwrap(env)
    missing = [name for name in ("reset", "step", "action_size", "observation_size") if not hasattr(env, name)]
    if missing:
        raise ConfigError(
            f"{type(env).__name__} is no environment: it has no {', '.join(missing)}. Expected brax's convention: "
            "reset(rng) -> State, step(state, action) -> State, action_size, observation_size."
        )
    inside = getattr(env, "unwrapped", env)
    if isinstance(inside, MJXEnvironment):
        inside.check()
    return env, limit


def _policy_size(env: Any, name: str) -> Any:
    """What the policy has to do with of `action_size` or `observation_size`, to be compared."""
    size = getattr(env, name)
    if isinstance(size, Mapping):
        size = size.get("state")
    return int(np.prod(size)) if size is not None else None
