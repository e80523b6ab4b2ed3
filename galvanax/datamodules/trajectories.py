"""Windows of logged trajectories, for models that predict many steps."""

import dataclasses
import functools
import logging
import os
from collections.abc import Iterable
from typing import Any, Literal

import grain
import mujoco
import numpy as np
import tyro

from galvanax.datamodules.arrays import BatchDataset, GatheredDataset
from galvanax.datamodules.datamodule import DataModule, Statistics
from galvanax.datamodules.trajectory_files import PERIOD_TOLERANCE, check_alike, read_trajectories
from galvanax.datamodules.trajectory_table import Trajectory
from galvanax.datamodules.trajectory_transform import Transform, transform
from galvanax.datamodules.windows import TrajectoryRows
from galvanax.errors import ConfigError, DataError, nearest
from galvanax.physics.layout import StateLayout
from galvanax.physics.models import load_model

Split = Literal["train", "val", "test"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class TrajectoryDataModule(DataModule):
    """Every window of `history + horizon` rows of the logs in a folder, split by trajectory.

    Batches are `{"states": (batch, history + horizon, state_dim), "actions": (batch, history + horizon, action_dim)}`.
    The files are those of `read_trajectories`. Each source is split on its own, so that all are in every part.

    With `weights`, an epoch has as many windows as without, but draws them from the sources in these proportions:
    a source with little data and much weight comes several times an epoch. Validation and test stay unweighted.

    Attributes:
      data: a folder, a glob or a file of CSV, Parquet or NPZ logs, or several of these sources.
      weights: the share of each source in training, in any unit; by default as large as the source.
      history: rows that a model sees before it predicts.
      horizon: rows that it predicts.
      batch_size: windows a batch, over all devices.
      system: name of a bundled MuJoCo model or path of an MJCF file, whose joints say what the states mean.
      angles: places in qpos to treat as angles; by default every hinge of the system. Without a system it must be given
        (empty for none).
      transform_fn: changes each trajectory when it is read: states and actions to states and actions, as many rows.
      transform_layout: what the states that it makes mean, `StateLayout(nq=3, nv=3, angles=(2,))`; needed where they
        have more or fewer entries than the logs'. It takes the place of `system` and `angles`.
      val_ratio: share of each source's trajectories for validation.
      test_ratio: share of each source's trajectories for testing; 1 for data that is there to be measured on alone.
      period_tolerance: how far a sampling period may be from the usual one, as a share of it.
      cache: keep what was parsed in the user's cache folder.
      seed: seed of the split.
    """

    data: str | tuple[str, ...]
    weights: tuple[float, ...] | None = None
    history: int = 11
    horizon: int = 9
    batch_size: int = 32
    system: str | None = None
    angles: tuple[int, ...] | None = None
    transform_fn: tyro.conf.Suppress[Transform | None] = None
    transform_layout: tyro.conf.Suppress[StateLayout | None] = None
    val_ratio: float = 0.1
    test_ratio: float = 0.1
    period_tolerance: float = PERIOD_TOLERANCE
    cache: bool = True
    seed: int = 0

    def setup(self) -> None:
        """Reads and splits, once.

        Raises:
          ConfigError: a setting is impossible, or doesn't fit the data or the system.
          DataError: a file is wrong or too short; see `read_trajectories`.
        """
        _ = self._parts, self.layout

    def trajectories(self, split: Split) -> list[Trajectory]:
        """The trajectories of `"train"`, `"val"` or `"test"`, transformed; views of the rows that batches come from."""
        if split not in ("train", "val", "test"):
            raise ConfigError(f"split={split!r}.{nearest(str(split), ('train', 'val', 'test'))}")
        rows = self._parts[0].get(split)
        return [] if rows is None else rows.trajectories()

    @functools.cached_property
    def model(self) -> mujoco.MjModel | None:
        """The compiled system, if there is one."""
        return None if self.system is None else load_model(self.system)

    @functools.cached_property
    def layout(self) -> StateLayout:
        """What the entries of a state mean."""
        if self.transform_layout is not None:
            return self.transform_layout
        rows = self._any_rows
        found = rows.nq, rows.states.shape[1] - rows.nq, rows.actions.shape[1]
        if self.model is None:
            if self.angles is None:
                raise ConfigError(
                    "angles=None and system=None: which positions are angles? Expected system='double-cart-pole' or "
                    "the like, or angles=(1, 2), or angles=() where none is."
                )
            return StateLayout(found[0], found[1], self.angles)
        expected = self.model.nq, self.model.nv, self.model.nu
        if found != expected:
            raise ConfigError(
                f"{rows.names[0]} has {found} entries of qpos, qvel and ctrl; system={self.system!r} has {expected}."
            )
        return StateLayout.from_model(self.model, self.angles)

    @property
    def action_dim(self) -> int:
        """Entries of an action."""
        return self._any_rows.actions.shape[1]

    @functools.cached_property
    def dt(self) -> float:
        """Seconds from a row to the next: the median of the training files, or of the test files where all are that."""
        return float(np.median([trajectory.dt for trajectory in self._any_rows.trajectories()]))

    def train_dataset(self, seed: int) -> grain.MapDataset:
        """See `DataModule`."""
        self.setup()
        self._check_trains()
        starts = self._starts["train"]
        if len(starts) < self.batch_size:
            raise DataError(f"batch_size={self.batch_size} is larger than the training data: {len(starts)} windows.")
        if self.weights is None:
            return self._windows("train", BatchDataset(starts, self.batch_size, seed=seed))
        # Only starts pass through Grain one by one; the rows are gathered for the whole batch.
        sources = np.split(starts, np.cumsum(self._parts[1])[:-1])
        seeds = np.random.SeedSequence(seed).generate_state(len(sources))
        shuffled = [
            grain.MapDataset.source(source).shuffle(seed=int(source_seed)).repeat()
            for source, source_seed in zip(sources, seeds, strict=True)
        ]
        batches = grain.MapDataset.mix(shuffled, self.weights).batch(self.batch_size)
        return self._windows("train", _Epoch(batches, len(starts) // self.batch_size))

    def val_dataset(self) -> grain.MapDataset | None:
        """See `DataModule`."""
        return self._in_order("val")

    def test_dataset(self) -> grain.MapDataset | None:
        """See `DataModule`."""
        return self._in_order("test")

    def statistics(self) -> dict[str, Statistics]:
        """Of the rows of the training trajectories: `states`, `actions`, and `deltas`.

        `deltas` are `layout.difference` of a row's successor and the row: positions first, then velocities.
        """
        self._check_trains()
        rows, layout = self._parts[0]["train"], self.layout
        steps = rows.steps()
        deltas = np.asarray(layout.difference(rows.states[steps + 1], rows.states[steps]))
        named = {"states": rows.states, "actions": rows.actions, "deltas": deltas}
        return {name: Statistics.of(array) for name, array in named.items()}

    @property
    def _any_rows(self) -> TrajectoryRows:
        """The training part, or the first that there is."""
        return next(iter(self._parts[0].values()))

    def _check_trains(self) -> None:
        if "train" not in self._parts[0]:
            raise ConfigError(f"test_ratio={self.test_ratio} leaves nothing to train on.")

    def _in_order(self, split: Split) -> grain.MapDataset | None:
        self.setup()
        return (
            self._windows(split, BatchDataset(self._starts[split], self.batch_size)) if split in self._starts else None
        )

    def _windows(self, split: Split, starts: grain.MapDataset) -> grain.MapDataset:
        gather = functools.partial(self._parts[0][split].gather, length=self.history + self.horizon)
        return GatheredDataset(starts, gather)

    @functools.cached_property
    def _starts(self) -> dict[str, np.ndarray]:
        return {split: rows.starts(self.history + self.horizon) for split, rows in self._parts[0].items()}

    @functools.cached_property
    def _parts(self) -> tuple[dict[str, TrajectoryRows], list[int]]:
        """The rows of each part that has any, and the number of training windows of each source."""
        self._check_settings()
        parts: dict[str, list[Trajectory]] = {"train": [], "val": [], "test": []}
        windows = []
        for index, trajectories in enumerate(self._read()):
            order = np.random.default_rng([self.seed, index]).permutation(len(trajectories))
            val, test = (round(ratio * len(trajectories)) for ratio in (self.val_ratio, self.test_ratio))
            chosen = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
            for split, places in chosen.items():
                parts[split] += [trajectories[place] for place in np.sort(places)]
            windows.append(sum(len(trajectories[place]) - self.history - self.horizon + 1 for place in chosen["train"]))
            if not len(chosen["train"]) and self.test_ratio < 1:
                raise ConfigError(
                    f"val_ratio={self.val_ratio} and test_ratio={self.test_ratio} leave none of the "
                    f"{len(trajectories)} trajectories of {self._sources[index]!r} for training."
                )
        for split, ratio in (("val", self.val_ratio), ("test", self.test_ratio)):
            if ratio and not parts[split]:
                raise ConfigError(
                    f"{split}_ratio={ratio} of {sum(map(len, parts.values()))} trajectories is none; expected a larger "
                    f"share, or 0 for no {split} part."
                )
        return {split: TrajectoryRows.stack(members) for split, members in parts.items() if members}, windows

    def _read(self) -> list[list[Trajectory]]:
        """The usable trajectories of each source, transformed."""
        sources = [read_trajectories(source, self.period_tolerance, self.cache) for source in self._sources]
        if self.transform_fn is not None:
            change = functools.partial(transform, transform_fn=self.transform_fn, layout=self.transform_layout)
            sources = [list(map(change, trajectories)) for trajectories in sources]
        everything = [trajectory for trajectories in sources for trajectory in trajectories]
        check_alike(everything, self.period_tolerance)
        files: set[str] = set()
        for name in (trajectory.name for trajectory in everything):
            if os.path.realpath(name) in files:
                raise DataError(f"data={self.data!r} names {name} twice: it could be trained on and held out.")
            files.add(os.path.realpath(name))
        return [self._long_enough(source, members) for source, members in zip(self._sources, sources, strict=True)]

    def _long_enough(self, source: str, trajectories: list[Trajectory]) -> list[Trajectory]:
        length = self.history + self.horizon
        usable = [trajectory for trajectory in trajectories if len(trajectory) >= length]
        longest = max(trajectories, key=len)
        if not usable:
            raise DataError(
                f"{longest.name} has {len(longest)} rows and no file of {source!r} has more; expected at least "
                f"history + horizon = {self.history} + {self.horizon} = {length}."
            )
        if len(usable) < len(trajectories):
            logger.warning(
                "%s: leaving out %d of %d trajectories, shorter than history + horizon = %d rows; the first is %s.",
                source, len(trajectories) - len(usable), len(trajectories), length,
                next(trajectory.name for trajectory in trajectories if len(trajectory) < length),
            )  # fmt: skip
        return usable

    @property
    def _sources(self) -> tuple[str, ...]:
        return (self.data,) if isinstance(self.data, str) else tuple(self.data)

    def _check_settings(self) -> None:
        for name in ("history", "horizon", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected at least 1.")
        if not 0 <= self.val_ratio < 1:
            raise ConfigError(f"val_ratio={self.val_ratio}; expected 0 or more and less than 1.")
        if not 0 <= self.test_ratio <= 1:
            raise ConfigError(f"test_ratio={self.test_ratio}; expected 0 or more, and 1 at most.")
        if self.transform_layout is not None:
            if self.transform_fn is None:
                raise ConfigError("transform_layout is of what transform_fn makes; transform_fn=None.")
            if self.system is not None or self.angles is not None:
                raise ConfigError(
                    f"transform_layout says what states mean, and so do system={self.system!r} and "
                    f"angles={self.angles}: leave those out."
                )
        if not self._sources:
            raise ConfigError("data=() names no source; expected a folder, a glob or a file.")
        if self.weights is not None and not _are_weights(self.weights, len(self._sources)):
            raise ConfigError(
                f"weights={self.weights} for the {len(self._sources)} sources {self._sources}; expected one number > 0 "
                "for each."
            )


class _Epoch(grain.MapDataset):
    """Calls so many elements of an endless dataset an epoch; the next epoch goes on behind them.

    (A slice would start each epoch somewhere else, and leave out windows of a source larger than its share by chance.)
    """

    def __init__(self, endless: grain.MapDataset, length: int):
        super().__init__(endless)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        return self.slice(index) if isinstance(index, slice) else self._parent[index]


def _are_weights(weights: Iterable[float], count: int) -> bool:
    weights = tuple(weights)
    return len(weights) == count and all(np.isfinite(weight) and weight > 0 for weight in weights)
