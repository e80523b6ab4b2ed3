"""Transitions of a MuJoCo system as a dataset, and as a data module."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import grain
import jax
import mujoco
import numpy as np

from galvanax.datamodules.arrays import ArrayDataModule
from galvanax.datamodules.datamodule import DataModule
from galvanax.errors import DataError
from galvanax.physics.layout import StateLayout
from galvanax.physics.quiet_mjx import mjx

ARRAYS = ("states", "actions", "next_states", "accelerations")


@dataclasses.dataclass(frozen=True, eq=False)
class DynamicsDataset:
    """Transitions, kept by rollout; `len` counts transitions.

    Attributes:
      states: `[qpos, qvel]`, `(num_rollouts, rollout_length, state_dim)`, float32 like the others.
      actions: `(num_rollouts, rollout_length, action_dim)`.
      next_states: the states one step later.
      accelerations: mean acceleration over the step, `(num_rollouts, rollout_length, nv)`.
      dt: seconds from a state to the next.
      layout: what the entries of a state mean.
    """

    states: np.ndarray
    actions: np.ndarray
    next_states: np.ndarray
    accelerations: np.ndarray
    dt: float
    layout: StateLayout

    @property
    def state_dim(self) -> int:
        """Entries of a state."""
        return self.layout.state_dim

    @property
    def nq(self) -> int:
        """Entries of a state that are positions."""
        return self.layout.nq

    @property
    def nv(self) -> int:
        """Entries of a state that are velocities."""
        return self.layout.nv

    @property
    def action_dim(self) -> int:
        """Entries of an action."""
        return self.actions.shape[-1]

    @property
    def num_rollouts(self) -> int:
        """Number of rollouts."""
        return self.states.shape[0]

    @property
    def rollout_length(self) -> int:
        """Transitions in each rollout."""
        return self.states.shape[1]

    def __len__(self) -> int:
        return self.num_rollouts * self.rollout_length

    def arrays(self) -> dict[str, np.ndarray]:
        """The four arrays by name, `(num_rollouts, rollout_length, dim)`."""
        return {name: getattr(self, name) for name in ARRAYS}

    def flat(self) -> dict[str, np.ndarray]:
        """The four arrays by name as single transitions, `(num_rollouts * rollout_length, dim)`."""
        return {name: array.reshape(len(self), array.shape[-1]) for name, array in self.arrays().items()}

    def trajectories(self) -> tuple[np.ndarray, np.ndarray]:
        """States `(num_rollouts, rollout_length + 1, state_dim)`, the last ones too, and actions."""
        return np.concatenate([self.states, self.next_states[:, -1:]], axis=1), self.actions


def create_dataset(
    model: mujoco.MjModel | mjx.Model,
    states: Any,
    actions: Any,
    next_states: Any,
    accelerations: Any,
    dt: float,
    angles: Sequence[int] | None = None,
) -> DynamicsDataset:
    """Checks transitions against a model and makes them a dataset.

    Args:
      model: the model that they come from.
      states: `(num_rollouts, rollout_length, nq + nv)`, an array or a list of rollouts.
      actions: `(num_rollouts, rollout_length, nu)`.
      next_states: like `states`.
      accelerations: `(num_rollouts, rollout_length, nv)`.
      dt: seconds from a state to the next.
      angles: places in qpos to treat as angles; by default every hinge.

    Raises:
      DataError: rollouts of unequal length, dimensions that don't fit the model, or values that aren't finite; names
        the array, and the rollout and step.
    """
    if not (np.isfinite(dt) and dt > 0):
        raise DataError(f"dt={dt}; expected seconds > 0.")
    layout = StateLayout.from_model(model, angles)
    dims = (layout.state_dim, model.nu, layout.state_dim, layout.nv)
    arrays = {
        name: _stack(name, rollouts, dim)
        for name, rollouts, dim in zip(ARRAYS, (states, actions, next_states, accelerations), dims, strict=True)
    }
    expected = arrays["states"].shape[:2]
    for name, array in arrays.items():
        if array.shape[:2] != expected:
            raise DataError(f"{name} has (rollouts, steps) = {array.shape[:2]}; expected {expected}, as states.")
    return DynamicsDataset(**arrays, dt=float(dt), layout=layout)


def split_dataset(
    dataset: DynamicsDataset,
    train_ratio: float = 0.8,
    by: Literal["trajectory", "transition"] = "trajectory",
    seed: int = 0,
) -> tuple[DynamicsDataset, DynamicsDataset]:
    """Splits a dataset at random in two.

    Args:
      dataset: the whole.
      train_ratio: share of the first part.
      by: `"trajectory"` keeps each rollout in one part. `"transition"` splits inside rollouts (each transition is then
        a rollout of its own), so that neighbours of a training transition, nearly equal to it, end up in validation.
      seed: seed of the choice.

    Returns:
      The training part and the rest.

    Raises:
      DataError: a part would be empty, or `by` is unknown.
    """
    arrays = dataset.arrays()
    if by == "transition":
        arrays = {name: array[:, None] for name, array in dataset.flat().items()}
    elif by != "trajectory":
        raise DataError(f"split_dataset: by={by!r}; expected 'trajectory' or 'transition'.")
    total = len(arrays["states"])
    count = round(train_ratio * total)
    if not 0 < count < total:
        raise DataError(
            f"split_dataset: train_ratio={train_ratio} puts {count} of {total} by {by} in training, which leaves one "
            "part empty; expected at least one in each."
        )
    order = np.random.default_rng(seed).permutation(total)
    first, second = (
        DynamicsDataset(**{name: arrays[name][np.sort(rows)] for name in ARRAYS}, dt=dataset.dt, layout=dataset.layout)
        for rows in (order[:count], order[count:])
    )
    return first, second


@dataclasses.dataclass
class DynamicsDataModule(DataModule):
    """Batches of single transitions: dicts of `states`, `actions`, `next_states`, `accelerations`, each `(batch, dim)`.

    Attributes:
      train: the training part.
      val: the validation part.
      test: the test part.
      batch_size: transitions a batch, over all devices.
    """

    train: DynamicsDataset
    val: DynamicsDataset | None = None
    test: DynamicsDataset | None = None
    batch_size: int = 128

    @property
    def layout(self) -> StateLayout:
        """What the entries of a state mean."""
        self.setup()
        return self.train.layout

    @property
    def action_dim(self) -> int:
        """Entries of an action."""
        self.setup()
        return self.train.action_dim

    @property
    def dt(self) -> float:
        """Seconds from a state to the next."""
        self.setup()
        return self.train.dt

    def reference_trajectories(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Trajectories to judge predictions by: states `(n, length + 1, state_dim)` and actions, by a name."""
        self.setup()
        return {} if self.test is None else {"test": self.test.trajectories()}

    def train_dataset(self, seed: int) -> grain.MapDataset:
        """See `DataModule`."""
        return self._rows().train_dataset(seed)

    def val_dataset(self) -> grain.MapDataset | None:
        """See `DataModule`."""
        return self._rows().val_dataset()

    def test_dataset(self) -> grain.MapDataset | None:
        """See `DataModule`."""
        return self._rows().test_dataset()

    def _rows(self) -> ArrayDataModule:
        self.setup()
        train, val, test = (None if part is None else part.flat() for part in (self.train, self.val, self.test))
        return ArrayDataModule(train, val, test, self.batch_size)


def _stack(name: str, rollouts: Any, dim: int) -> np.ndarray:
    """Rollouts as one finite float32 array `(rollouts, steps, dim)`."""
    # A device array is fetched whole: row by row would be a transfer each.
    rows = [np.asarray(rollout) for rollout in (np.asarray(rollouts) if isinstance(rollouts, jax.Array) else rollouts)]
    for index, row in enumerate(rows):
        if row.ndim != 2 or row.shape[1] != dim or len(row) == 0:
            raise DataError(f"{name}[{index}] has shape {row.shape}; expected (steps, {dim}), the model's.")
        if len(row) != len(rows[0]):
            raise DataError(
                f"{name}: rollout {index} has {len(row)} steps and rollout 0 has {len(rows[0])}; expected equally "
                "long rollouts: cut them to the shortest."
            )
    if not rows:
        raise DataError(f"{name} holds no rollout; expected at least one.")
    array = np.stack(rows).astype(np.float32)
    bad = np.any(~np.isfinite(array), axis=-1, keepdims=True)[..., 0]
    if bad.any():
        rollout, step = np.argwhere(bad)[0]
        raise DataError(
            f"{name}: rollout {rollout}, step {step} is {array[rollout, step].tolist()}; expected finite numbers; "
            f"{int(bad.any(axis=1).sum())} of {len(bad)} rollouts hold others."
        )
    return array
