"""Environments as the source of data: what PPO learns from."""

import dataclasses
from typing import Any

import grain
import numpy as np
import tyro

from galvanax.datamodules.datamodule import DataModule
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
        if isinstance(self.environment, str):
            self.environment = load(self.environment)
        check_environment(self.environment)
        if self.eval_environment is None:
            evaluation = getattr(self.environment, "evaluation", None)
            self.eval_environment = self.environment if evaluation is None else evaluation()

    @property
    def max_episode_length(self) -> int:
        """Control steps before an episode is cut off."""
        return self.episode_length or getattr(self.environment, "episode_length", None) or 1000

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


def check_environment(env: Any) -> None:
    """Raises ConfigError where an object lacks a part of brax's convention."""
    missing = [name for name in ("reset", "step", "action_size", "observation_size") if not hasattr(env, name)]
    if missing:
        raise ConfigError(
            f"{type(env).__name__} is no environment: it has no {', '.join(missing)}. Expected brax's convention: "
            "reset(rng) -> State, step(state, action) -> State, action_size, observation_size."
        )
