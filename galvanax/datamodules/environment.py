"""Environments as the source of data: what PPO learns from."""

import dataclasses
import functools
from typing import Any

import grain
import numpy as np
import tyro

from galvanax.datamodules.datamodule import DataModule
from galvanax.envs.environment import MJXEnvironment
from galvanax.envs.registry import load
from galvanax.errors import ConfigError


@dataclasses.dataclass
class EnvironmentDataModule(DataModule):
    """Many copies of one environment. A batch names them; the data itself is made inside the training step.

    Attributes:
      environment: a name of `gx.envs.list()`, or any object of brax's convention, configured as you like.
      num_envs: environments that are stepped side by side, over all devices.
      episode_length: control steps before an episode is cut off; by default the environment's own, else 1000.
      iterations_per_epoch: training steps that count as an epoch, the Trainer's default interval between validations.
      num_eval_episodes: episodes in a validation and in a test.
      eval_environment: in which the policy is judged; by default the same, its training disturbances off.
    """

    environment: Any = "cart-pole-balance"
    num_envs: int = 512
    episode_length: int | None = None
    iterations_per_epoch: int = 50
    num_eval_episodes: int = 64
    eval_environment: tyro.conf.Suppress[Any] = None

    def setup(self) -> None:
        """Loads environments that were given by name."""
        for name in ("num_envs", "iterations_per_epoch", "num_eval_episodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"EnvironmentDataModule.{name}={getattr(self, name)}: expected at least 1.")
        _ = self.train_env, self.eval_env

    # Loaded once, beside the settings: those stay as they were given.

    @functools.cached_property
    def train_env(self) -> Any:
        """The environment that is learned from."""
        return _loaded(self.environment)

    @functools.cached_property
    def eval_env(self) -> Any:
        """The environment that policies are judged in."""
        if self.eval_environment is not None:
            return _loaded(self.eval_environment)
        evaluation = getattr(self.train_env, "evaluation", None)
        return self.train_env if evaluation is None else evaluation()

    @property
    def max_episode_length(self) -> int:
        """Control steps before an episode is cut off."""
        return self.episode_length or getattr(self.train_env, "episode_length", None) or 1000

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


def _loaded(environment: Any) -> Any:
    """The environment itself, by name or not. Raises ConfigError where it lacks a part of brax's convention."""
    env = load(environment) if isinstance(environment, str) else environment
    missing = [name for name in ("reset", "step", "action_size", "observation_size") if not hasattr(env, name)]
    if missing:
        raise ConfigError(
            f"{type(env).__name__} is no environment: it has no {', '.join(missing)}. Expected brax's convention: "
            "reset(rng) -> State, step(state, action) -> State, action_size, observation_size."
        )
    if isinstance(env, MJXEnvironment):
        env.check()
    return env
