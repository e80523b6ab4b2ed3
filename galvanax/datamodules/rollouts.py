"""Random rollouts of a MuJoCo system, simulated when the run starts."""

import dataclasses
import functools
from typing import Any

import jax
import mujoco
import numpy as np
import tyro

from galvanax.datamodules.dynamics import DynamicsDataModule, create_dataset, split_dataset
from galvanax.errors import ConfigError
from galvanax.physics.collect import (
    collect_random_rollouts,
    control_range,
    count_substeps,
    extract_state_features,
)
from galvanax.physics.models import load_model
from galvanax.physics.open_loop import mujoco_rollout
from galvanax.physics.starts import WideStart


@dataclasses.dataclass
class RolloutDataModule(DynamicsDataModule):
    """Simulates rollouts from wide starts in MJX and splits them by rollout into train, validation and test.

    Actions are uniform between an actuator's control limits, or `action_limit` either way where it has none.

    Attributes:
      system: name of a bundled model, or path to an MJCF file.
      num_rollouts: rollouts in all parts together.
      rollout_length: control steps in each.
      control_dt: seconds that an action is held, a multiple of the timestep; by default one timestep.
      velocity_min: lowest velocity at the start (rad/s or m/s), one number or one for each degree of freedom.
      velocity_max: highest velocity at the start, likewise.
      action_limit: largest control of actuators without limits, in the actuators' units.
      angles: places in qpos to treat as angles; by default every hinge.
      val_ratio: share of rollouts for validation.
      test_ratio: share of rollouts for testing.
      batch_size: transitions a batch, over all devices.
      seed: seed of starts, actions and split.
    """

    # The parts are results here, not settings.
    train: tyro.conf.Suppress[Any] = dataclasses.field(default=None, init=False, repr=False)
    val: tyro.conf.Suppress[Any] = dataclasses.field(default=None, init=False, repr=False)
    test: tyro.conf.Suppress[Any] = dataclasses.field(default=None, init=False, repr=False)

    system: str = "pendulum"
    num_rollouts: int = 100
    rollout_length: int = 100
    control_dt: float | None = None
    velocity_min: float | tuple[float, ...] = -8.0
    velocity_max: float | tuple[float, ...] = 8.0
    action_limit: float = 1.0
    angles: tuple[int, ...] | None = None
    val_ratio: float = 0.1
    test_ratio: float = 0.1
    batch_size: int = 128
    seed: int = 0

    @functools.cached_property
    def model(self) -> mujoco.MjModel:
        """The compiled model."""
        return load_model(self.system)

    def setup(self) -> None:
        """Simulates and splits, once.

        Raises:
          ConfigError: the shares leave a part empty, or a setting doesn't fit the model.
          DataError: the model doesn't compile, or rollouts diverged.
        """
        if self.train is not None:
            return
        held_out = {"val_ratio": self.val_ratio, "test_ratio": self.test_ratio}
        counts = {name: round(ratio * self.num_rollouts) for name, ratio in held_out.items()}
        if min(counts.values()) < 1 or sum(counts.values()) >= self.num_rollouts:
            raise ConfigError(
                f"val_ratio={self.val_ratio} and test_ratio={self.test_ratio} of {self.num_rollouts} rollouts are "
                f"{counts['val_ratio']} and {counts['test_ratio']}; expected at least one rollout in each part."
            )
        low, high = self.action_range()
        rollouts = collect_random_rollouts(
            self.model, self.num_rollouts, self.rollout_length, low, high, jax.random.key(self.seed),
            self.start, self.control_dt,
        )  # fmt: skip
        whole = create_dataset(self.model, *rollouts, dt=self.step_dt, angles=self.angles)
        rest, self.test = split_dataset(whole, 1 - counts["test_ratio"] / self.num_rollouts, seed=self.seed)
        self.train, self.val = split_dataset(rest, 1 - counts["val_ratio"] / rest.num_rollouts, seed=self.seed)

    @property
    def start(self) -> WideStart:
        """The sampler of starts."""
        return WideStart(self.velocity_min, self.velocity_max)

    @property
    def step_dt(self) -> float:
        """Seconds from a state to the next."""
        return count_substeps(self.model, self.control_dt) * self.model.opt.timestep

    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest action, `(nu,)` each."""
        return control_range(self.model, self.action_limit)

    def fresh_trajectories(self, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Trajectories of C MuJoCo, from starts and under actions that no part of the data has seen.

        Args:
          count: number of trajectories.
          length: control steps in each.

        Returns:
          States `(count, length + 1, state_dim)` and actions `(count, length, action_dim)`.
        """
        # Rollout i takes its randomness from fold_in(key, i): the last index is never reached.
        start_rng, action_rng = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), 2**32 - 1))
        draw = jax.jit(jax.vmap(lambda rng: extract_state_features(self.start(self.model, rng))))
        starts = np.asarray(draw(jax.random.split(start_rng, count)))
        low, high = self.action_range()
        actions = np.asarray(jax.random.uniform(action_rng, (count, length, self.model.nu)))
        actions = (low + (high - low) * actions).astype(np.float32)
        return mujoco_rollout(self.model, starts, actions, self.control_dt), actions

    def reference_trajectories(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Fresh trajectories of C MuJoCo (`""`), and the test part, simulated in MJX (`"mjx"`)."""
        self.setup()
        return {"": self.fresh_trajectories(128, self.rollout_length), "mjx": self.test.trajectories()}
