"""Windows of motions from NPZ files, for models that learn whole trajectories."""

import dataclasses
import functools
import logging
import os
from collections.abc import Sequence
from typing import Literal

import grain
import mujoco
import numpy as np

from galvanax.datamodules.arrays import BatchDataset, GatheredDataset
from galvanax.datamodules.datamodule import DataModule, Moments, Statistics
from galvanax.datamodules.motion_file import MotionFile, find_motion_files
from galvanax.datamodules.trajectory_table import warn_of_period
from galvanax.errors import ConfigError, DataError
from galvanax.physics.layout import StateLayout
from galvanax.physics.models import bundled_models, load_model

Split = Literal["train", "val", "test"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class MotionDataModule(DataModule):
    """Windows of `horizon + 1` states of the motions in NPZ files, split by trajectory; the files stay on disk.

    Batches are `{"states": (batch, horizon + 1, state_dim)}` in float32; where the files have them, with `"condition"`
    `(batch, condition_dim)`, what the window's first row was conditioned on, and `"actions"`
    `(batch, horizon, action_dim)`, each from its row to the next. The files are those of `galvanax collect`, or of your
    own: see `MotionFile.open`. Each source is split on its own, so that all are in every part.

    Attributes:
      data: an NPZ file (its shards `NAME-00000-of-00004.npz`, if it is not there itself), a folder of NPZ files or a
        glob, or several of these sources.
      horizon: steps of a window.
      stride: rows from the start of a window to that of the next.
      batch_size: windows a batch, over all devices.
      system: name of a bundled MuJoCo model or path of an MJCF file, whose joints say what the states mean; by default
        the bundled one that the files name, if there is such a one.
      control_dt: seconds from a row to the next, where the files don't say it.
      val_ratio: share of each source's trajectories for validation.
      test_ratio: share of each source's trajectories for testing; 1 for data that is there to be measured on alone.
      seed: seed of the split.
    """

    data: str | tuple[str, ...]
    horizon: int = 16
    stride: int = 1
    batch_size: int = 64
    system: str | None = None
    control_dt: float | None = None
    val_ratio: float = 0.1
    test_ratio: float = 0.1
    seed: int = 0

    def setup(self) -> None:
        """Opens, checks and splits, once. Every row that counts is looked at: a pass over the files.

        Raises:
          ConfigError: a setting is impossible, or doesn't fit the data.
          DataError: a file is wrong (see `MotionFile`), is named twice or differs from the others; or all trajectories
            are too short.
        """
        _ = self._starts

    @property
    def state_dim(self) -> int:
        """Entries of a state."""
        return self._files[0].states.entries

    @property
    def action_dim(self) -> int | None:
        """Entries of an action; None where the files have no actions."""
        return self._files[0].dims()["actions"]

    @property
    def condition_dim(self) -> int:
        """Entries of a condition; 0 where the files have none."""
        return self._files[0].dims()["conditionings"] or 0

    @functools.cached_property
    def dt(self) -> float:
        """Seconds from a row to the next.

        Raises:
          ConfigError: neither the files nor `control_dt` say it, or they differ.
        """
        stated = next((file for file in self._files if file.dt is not None), None)
        if stated is None or stated.dt is None:
            if self.control_dt is None:
                raise ConfigError(
                    f"control_dt=None, and {self._files[0].path} has no dt; expected one of them: the seconds from a "
                    "row to the next."
                )
            return self.control_dt
        if self.control_dt is not None and not _same_period(self.control_dt, stated.dt):
            raise ConfigError(f"control_dt={self.control_dt}; {stated.path} has dt = {stated.dt:g} s. Leave it out.")
        warn_of_period(str(stated.path), stated.dt)
        return stated.dt

    @functools.cached_property
    def model(self) -> mujoco.MjModel | None:
        """The compiled system: `system`, or the bundled model whose name and joints the files have; else None.

        Raises:
          ConfigError: `system` has other entries of a state than the files, or its joints in another order.
          DataError: there is no such system.
        """
        file = self._files[0]
        if self.system is None:
            if file.model_name not in bundled_models():
                return None
            model = load_model(file.model_name)
            recorded = (file.nq, file.nv, file.joint_names)
            return model if recorded == (model.nq, model.nv, _joint_names(model)) else None
        model = load_model(self.system)
        found = self.state_dim if file.nq is None or file.nv is None else (file.nq, file.nv)
        expected = model.nq + model.nv if isinstance(found, int) else (model.nq, model.nv)
        if found != expected:
            raise ConfigError(
                f"{file.states.name} has {found} entries (of qpos, qvel); system={self.system!r} has {expected}."
            )
        ours, theirs = _joint_names(model), file.joint_names
        if theirs is not None and theirs != ours and sorted(theirs) == sorted(ours):
            place = next(place for place, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
            raise ConfigError(
                f"{file.path} has the joints of system={self.system!r} in another order: number {place} is "
                f"{theirs[place]!r}; expected {ours[place]!r}."
            )
        return model

    @functools.cached_property
    def layout(self) -> StateLayout | None:
        """What the entries of a state mean, with every hinge as an angle; None where no model says it."""
        return None if self.model is None else StateLayout.from_model(self.model)

    def train_dataset(self, seed: int) -> grain.MapDataset:
        """See `DataModule`."""
        self._check_trains()
        starts = self._starts["train"]
        if len(starts) < self.batch_size:
            raise DataError(f"batch_size={self.batch_size} is larger than the training data: {len(starts)} windows.")
        return self._windows(BatchDataset(starts, self.batch_size, seed=seed))

    def val_dataset(self) -> grain.MapDataset | None:
        """See `DataModule`."""
        return self._in_order("val")

    def test_dataset(self) -> grain.MapDataset | None:
        """See `DataModule`."""
        return self._in_order("test")

    def statistics(self) -> dict[str, Statistics]:
        """Of the rows of the training trajectories without padding, by the names of the batches' arrays.

        One pass over the files, the first time; memory holds a few MB of them.
        """
        return dict(self._statistics)

    @functools.cached_property
    def _statistics(self) -> dict[str, Statistics]:
        self.setup()
        self._check_trains()
        totals = {name: Moments() for name in self._files[0].tables()}
        for file, chosen in zip(self._files, self._parts["train"], strict=True):
            for name, table in file.tables().items():
                for first, rows in table.chunks():
                    trajectory, counts = file.counting(table, first, len(rows))
                    kept = rows[counts & chosen[trajectory]]
                    if len(kept):
                        totals[name].add(kept.astype(np.float64))
        return {name: total.statistics() for name, total in totals.items()}

    def _check_trains(self) -> None:
        if not any(chosen.any() for chosen in self._parts["train"]):
            raise ConfigError(f"test_ratio={self.test_ratio} leaves nothing to train on.")

    def _in_order(self, split: Split) -> grain.MapDataset | None:
        starts = self._starts.get(split)
        return None if starts is None else self._windows(BatchDataset(starts, self.batch_size))

    def _windows(self, starts: grain.MapDataset) -> grain.MapDataset:
        return GatheredDataset(starts, _Gather(self._files, self.horizon))

    @functools.cached_property
    def _starts(self) -> dict[str, np.ndarray]:
        """The places where windows start, counted over all files, of each part that has any."""
        _ = (
            self._parts,
            self.layout,
            self.control_dt is None or self.dt,
        )  # cheap, and may raise: before the files are read
        for file in self._files:
            file.check(self.layout)
        starts = {}
        for split, parts in self._parts.items():
            found, before = [], 0
            for file, chosen in zip(self._files, parts, strict=True):
                found += [
                    np.arange(first, first + file.lengths[trajectory] - self.horizon, self.stride)
                    for trajectory in np.flatnonzero(chosen)
                    for first in (before + trajectory * file.steps,)
                ]
                before += file.states.rows
            if found:
                starts[split] = np.concatenate(found)
        return starts

    @functools.cached_property
    def _parts(self) -> dict[str, list[np.ndarray]]:
        """For each part and file, which trajectories `(trajectories,)` are in it."""
        parts = {split: [np.zeros(len(file), bool) for file in self._files] for split in ("train", "val", "test")}
        counts = dict.fromkeys(parts, 0)
        for index, (source, files) in enumerate(zip(self._sources, self._opened, strict=True)):
            places = self._long_enough(source, files)
            order = np.random.default_rng([self.seed, index]).permutation(len(places))
            val, test = (round(ratio * len(places)) for ratio in (self.val_ratio, self.test_ratio))
            if val + test >= len(places) and self.test_ratio < 1:
                raise ConfigError(
                    f"val_ratio={self.val_ratio} and test_ratio={self.test_ratio} leave none of the {len(places)} "
                    f"trajectories of {source!r} for training."
                )
            before = sum(map(len, self._opened[:index]))
            for split, chosen in (
                ("val", order[:val]),
                ("test", order[val : val + test]),
                ("train", order[val + test :]),
            ):
                counts[split] += len(chosen)
                for place in chosen:
                    file, trajectory = places[place]
                    parts[split][before + file][trajectory] = True
        for split, ratio in (("val", self.val_ratio), ("test", self.test_ratio)):
            if ratio and not counts[split]:
                raise ConfigError(
                    f"{split}_ratio={ratio} of {sum(counts.values())} trajectories is none; expected a larger "
                    f"share, or 0 for no {split} part."
                )
        return parts

    def _long_enough(self, source: str, files: Sequence[MotionFile]) -> list[tuple[int, int]]:
        """`(file, trajectory)` of those that hold a window."""
        least = self.horizon + 1
        usable = [
            (index, int(place)) for index, file in enumerate(files) for place in np.flatnonzero(file.lengths >= least)
        ]
        total = sum(map(len, files))
        if not usable:
            longest = max(files, key=lambda file: int(file.lengths.max()))
            raise DataError(
                f"{source!r}: the longest of {total} trajectories has {longest.lengths.max()} rows ({longest.path}); "
                f"expected at least horizon + 1 = {least}."
            )
        if len(usable) < total:
            logger.warning(
                "%s: leaving out %d of %d trajectories, shorter than horizon + 1 = %d rows.",
                source, total - len(usable), total, least,
            )  # fmt: skip
        return usable

    @functools.cached_property
    def _files(self) -> list[MotionFile]:
        return [file for files in self._opened for file in files]

    @functools.cached_property
    def _opened(self) -> list[list[MotionFile]]:
        """The files of each source, which agree."""
        self._check_settings()
        opened = [list(map(MotionFile.open, find_motion_files(source))) for source in self._sources]
        files = [file for source in opened for file in source]
        seen: set[str] = set()
        for file in files:
            if os.path.realpath(file.path) in seen:
                raise DataError(f"data={self.data!r} names {file.path} twice: it could be trained on and held out.")
            seen.add(os.path.realpath(file.path))
            _check_alike(files[0], file)
        return opened

    @property
    def _sources(self) -> tuple[str, ...]:
        return (self.data,) if isinstance(self.data, str) else tuple(self.data)

    def _check_settings(self) -> None:
        for name in ("horizon", "stride", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected at least 1.")
        if not 0 <= self.val_ratio < 1:
            raise ConfigError(f"val_ratio={self.val_ratio}; expected 0 or more and less than 1.")
        if not 0 <= self.test_ratio <= 1:
            raise ConfigError(f"test_ratio={self.test_ratio}; expected 0 or more, and 1 at most.")
        if self.control_dt is not None and not 0 < self.control_dt < np.inf:
            raise ConfigError(f"control_dt={self.control_dt}; expected seconds, more than 0.")
        if not self._sources:
            raise ConfigError("data=() names no source; expected an NPZ file, a folder or a glob.")


@dataclasses.dataclass(frozen=True, eq=False)
class _Gather:
    """Reads the windows at some places, which count over all files."""

    files: Sequence[MotionFile]
    horizon: int

    @functools.cached_property
    def bounds(self) -> np.ndarray:
        """The first place of each file, and the end of the last."""
        return np.cumsum([0, *(file.states.rows for file in self.files)])

    def __call__(self, places: np.ndarray) -> dict[str, np.ndarray]:
        order = np.argsort(places)
        in_order = places[order]
        cuts = np.searchsorted(in_order, self.bounds)
        batch: dict[str, np.ndarray] = {}
        for index in np.flatnonzero(cuts[1:] > cuts[:-1]).tolist():
            part = slice(cuts[index], cuts[index + 1])
            windows = self.files[index].windows(in_order[part] - self.bounds[index], self.horizon)
            for name, values in windows.items():
                if name not in batch:
                    batch[name] = np.empty((len(places), *values.shape[1:]), np.float32)
                batch[name][order[part]] = values
        return batch


def _check_alike(first: MotionFile, other: MotionFile) -> None:
    """Raises DataError, with both names, where they differ in what must be the same."""
    for name, entries in first.dims().items():
        if other.dims()[name] != entries:
            raise DataError(
                f"{other.path} has {_say(other.dims()[name])} entries of {name}; {first.path} has {_say(entries)}: "
                "expected the same in every file."
            )
    for name in ("nq", "nv", "joint_names"):
        ours, theirs = getattr(first, name), getattr(other, name)
        if None not in (ours, theirs) and ours != theirs:
            raise DataError(
                f"{other.path} has {name} = {theirs}; {first.path} has {ours}: expected the same in every file."
            )
    if first.dt is not None and other.dt is not None and not _same_period(first.dt, other.dt):
        raise DataError(
            f"{other.path} has dt = {other.dt:g} s; {first.path} has {first.dt:g} s: expected the same in every file."
        )


def _say(entries: int | None) -> str:
    return "no" if entries is None else str(entries)


def _same_period(one: float, other: float) -> bool:
    return bool(np.isclose(one, other, rtol=1e-5, atol=0))  # float32 of the same number


def _joint_names(model: mujoco.MjModel) -> tuple[str, ...]:
    return tuple(model.joint(index).name for index in range(model.njnt))
