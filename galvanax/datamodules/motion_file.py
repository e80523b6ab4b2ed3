"""Motions in an NPZ file: what `galvanax collect` writes, or a user's own."""

import dataclasses
import difflib
import glob
import logging
import re
from pathlib import Path
from typing import Self

import numpy as np

from galvanax.datamodules.npz_table import NpzFile, NpzTable
from galvanax.datamodules.trajectory_table import Trajectory
from galvanax.errors import DataError, nearest
from galvanax.physics.layout import StateLayout

KEYS = ("states", "actions", "conditionings", "lengths", "dt", "nq", "nv", "joint_names", "model_name")
QUATERNION_TOLERANCE = 1e-3
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class MotionFile:
    """Trajectories of one file, padded to equal length.

    A place is the number of a row of `states`, counted over all trajectories: trajectory · steps + row.

    Attributes:
      path: of the file.
      states: a table of `(trajectories * steps)` rows.
      steps: rows of a trajectory, with padding.
      lengths: rows that count `(trajectories,)`.
      actions: a table of `steps` or `steps - 1` rows a trajectory, or None.
      conditionings: a table of `steps` rows a trajectory or of one, or None.
      dt: seconds from a row to the next, where the file says it.
      nq: entries of a state that are positions, where it says it.
      nv: the other entries, where it says it.
      joint_names: in the order of qpos, where it says it.
      model_name: of the MuJoCo model, where it says it.
    """

    path: Path
    states: NpzTable
    steps: int
    lengths: np.ndarray
    actions: NpzTable | None = None
    conditionings: NpzTable | None = None
    dt: float | None = None
    nq: int | None = None
    nv: int | None = None
    joint_names: tuple[str, ...] | None = None
    model_name: str | None = None

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Reads what the file says about its arrays; the arrays stay on disk if they are stored uncompressed.

        The keys: `states` `(N, T, d)`, or `(T, d)` for one trajectory. Optional: `actions` `(N, T, a)` or
        `(N, T - 1, a)`, each from its row to the next; `conditionings` `(N, T, c)` or `(N, c)`; `lengths` `(N,)`; `dt`
        (s); `nq`, `nv`, `joint_names`, `model_name`. Others are ignored.

        Raises:
          DataError: the file is no NPZ file, or an array is missing, of another kind, or doesn't fit `states`; names
            file and array. Values are looked at by `check`.
        """
        with NpzFile(path) as file:
            states = file.table("states")
            if len(states.shape) not in (2, 3):
                raise DataError(
                    f"{states.name} has shape {states.shape}; expected (N, T, state_dim), or (T, state_dim) for one "
                    "trajectory."
                )
            _warn_of_similar_names(file)
            steps = states.shape[-2]
            return cls(
                file.path,
                states,
                steps,
                _lengths(file, states.rows // steps, steps),
                _beside(file, "actions", states, (steps, steps - 1)),
                _beside(file, "conditionings", states, (steps, None)),
                _scalar(file, "dt"),
                _whole(file, "nq"),
                _whole(file, "nv"),
                tuple(map(str, file.array("joint_names").reshape(-1))) if "joint_names" in file else None,
                str(file.array("model_name")) if "model_name" in file else None,
            )

    def __len__(self) -> int:
        """Trajectories."""
        return len(self.lengths)

    def windows(self, places: np.ndarray, horizon: int) -> dict[str, np.ndarray]:
        """Windows that start at `places` `(windows,)`.

        Returns:
          In float32: `states` `(windows, horizon + 1, state_dim)`; where the file has them, `condition`
          `(windows, condition_dim)` of the first row and `actions` `(windows, horizon, action_dim)`.
        """
        windows = {"states": self.states.windows(places, horizon + 1)}
        if self.conditionings is not None:
            rows = places if self.conditionings.rows == self.states.rows else places // self.steps
            windows["condition"] = self.conditionings.windows(rows, 1)[:, 0]
        if self.actions is not None:
            # Where a trajectory has an action less than rows, each before leaves one out.
            rows = places if self.actions.rows == self.states.rows else places - places // self.steps
            windows["actions"] = self.actions.windows(rows, horizon)
        return windows

    def trajectories(self) -> list[Trajectory]:
        """Each trajectory without its padding, in memory.

        Raises:
          DataError: the file has no actions, or doesn't say `dt` or `nq`; or its numbers are wrong, as `check` says.
        """
        missing = [name for name in ("actions", "dt", "nq") if getattr(self, name) is None]
        if self.actions is None or self.dt is None or self.nq is None:
            raise DataError(f"{self.path} has states and no {', '.join(missing)}; `galvanax collect` writes them.")
        self.check(None)
        numbers = np.arange(len(self))
        states = self.states.windows(numbers * self.steps, self.steps)
        per_trajectory = self.actions.rows // len(self)
        actions = self.actions.windows(numbers * per_trajectory, per_trajectory)
        # The action of the last row leads nowhere.
        actions = np.pad(actions, ((0, 0), (0, self.steps - per_trajectory), (0, 0)), mode="edge")
        found = []
        for number, length in enumerate(self.lengths):
            name = f"{self.path}, trajectory {number}"
            if length < 2:
                raise DataError(f"{name} has {length} rows of numbers; expected at least 2.")
            time = np.arange(length) * self.dt
            found.append(Trajectory(name, time, states[number, :length], actions[number, :length], self.nq))
        return found

    def counting(self, table: NpzTable, first: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Of some rows of one of the tables: their trajectories `(rows,)`, and which are no padding `(rows,)`."""
        per_trajectory = table.rows // len(self)
        trajectory, row = np.divmod(np.arange(first, first + rows), per_trajectory)
        # The action of a trajectory's last row leads nowhere.
        return trajectory, row < self.lengths[trajectory] - (table is self.actions)

    def check(self, layout: StateLayout | None) -> None:
        """Looks once at every row that counts, and at the archive's checksums; a few MB in memory at a time.

        Args:
          layout: where the quaternions are, if it is known.

        Raises:
          DataError: a number is not finite in float32, a quaternion is not of unit length, or the file is damaged;
            names trajectory and row.
        """
        for table in self.tables().values():
            for first, rows in table.chunks(verify=True):
                finite = np.isfinite(rows)
                if not finite.all():
                    row = self._first_counting(table, first, ~finite.all(axis=1))
                    if row is not None:
                        entry = int(np.argmin(finite[row]))
                        where = f"{self._place(table, first + row)}, entry {entry}"
                        raise DataError(f"{where}: {rows[row, entry]}; expected finite numbers, in float32.")
                for place, _ in layout.quaternions if layout and table is self.states else ():
                    length = np.linalg.norm(rows[:, place : place + 4], axis=1)
                    row = self._first_counting(table, first, np.abs(length - 1) > QUATERNION_TOLERANCE)
                    if row is not None:
                        where = f"{self._place(table, first + row)}: the quaternion (w, x, y, z) at {place}:{place + 4}"
                        raise DataError(
                            f"{where} has length {length[row]:.6g}; expected 1 within {QUATERNION_TOLERANCE:g}."
                        )

    def tables(self) -> dict[str, NpzTable]:
        """The tables that there are, under the names that batches have for them."""
        tables = {"states": self.states, "condition": self.conditionings, "actions": self.actions}
        return {name: table for name, table in tables.items() if table is not None}

    def dims(self) -> dict[str, int | None]:
        """Entries of a row of each array; None for one that the file has not."""
        tables = {"states": self.states, "actions": self.actions, "conditionings": self.conditionings}
        return {name: None if table is None else table.entries for name, table in tables.items()}

    def _first_counting(self, table: NpzTable, first: int, bad: np.ndarray) -> int | None:
        """Of the rows from `first` on, the first one that is `bad` and no padding."""
        if not bad.any():
            return None
        bad = bad & self.counting(table, first, len(bad))[1]
        return int(np.argmax(bad)) if bad.any() else None

    def _place(self, table: NpzTable, row: int) -> str:
        trajectory, row = divmod(row, table.rows // len(self))
        return f"{table.name}, trajectory {trajectory}, row {row}"


def find_motion_files(source: str | Path) -> list[Path]:
    """The NPZ files of a folder, of a glob, or at a path, sorted; for `NAME.npz`, its shards if it is not there.

    Raises:
      DataError: there is none; names the nearest.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    # A folder's name may hold characters that mean something in a glob.
    found = list(path.iterdir()) if path.is_dir() else list(map(Path, glob.glob(str(path), recursive=True)))
    if not found and path.parent.is_dir():
        shards = ((file, _SHARD.fullmatch(file.stem)) for file in path.parent.iterdir())
        found = [file for file, match in shards if match and match[1] == path.stem]
    files = sorted(file for file in found if file.suffix == ".npz" and not file.name.startswith(".") and file.is_file())
    if not files:
        beside = [str(file) for file in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = "" if path.is_dir() or glob.has_magic(str(path)) else nearest(str(path), beside)
        raise DataError(f"{str(source)!r}: no file with a name that ends in .npz.{hint}")
    _warn_of_missing_shards(files)
    return files


def _warn_of_missing_shards(files: list[Path]) -> None:
    shards: dict[tuple[Path, int], set[int]] = {}
    for file in files:
        if match := _SHARD.fullmatch(file.stem):
            shards.setdefault((file.with_name(match[1]), int(match[3])), set()).add(int(match[2]))
    for (name, count), found in shards.items():
        if len(found) < count:
            logger.warning(
                "%s: %d of %d shards are there; missing is number %d.",
                name, len(found), count, min(set(range(count)) - found),
            )  # fmt: skip


def _beside(file: NpzFile, name: str, states: NpzTable, rows: tuple[int | None, ...]) -> NpzTable | None:
    """An optional array; `rows` are the numbers that a trajectory may have of it, None for one without that axis."""
    if name not in file:
        return None
    table = file.table(name)
    shapes = [states.shape[:-2] + (() if count is None else (count,)) for count in rows]
    if table.shape[:-1] not in shapes:
        expected = " or ".join(f"({', '.join(map(str, (*shape, 'entries')))})" for shape in shapes)
        raise DataError(f"{table.name} has shape {table.shape}; expected {expected}, since states has {states.shape}.")
    return table


def _warn_of_similar_names(file: NpzFile) -> None:
    for name in KEYS:
        close = [] if name in file else difflib.get_close_matches(name, set(file.names) - set(KEYS), 1, 0.8)
        if close:
            logger.warning("%s: nothing looks at %s; did you mean %s?", file.path, close[0], name)


def _lengths(file: NpzFile, count: int, steps: int) -> np.ndarray:
    if "lengths" not in file:
        return np.full(count, steps)
    lengths = file.array("lengths").reshape(-1)
    if lengths.dtype.kind not in "iu" or lengths.shape != (count,):
        raise DataError(
            f"{file.path}: lengths is {lengths.dtype}{list(lengths.shape)}; expected whole numbers ({count},), one for "
            "each trajectory."
        )
    bad = (lengths < 0) | (lengths > steps)
    if bad.any():
        trajectory = int(np.argmax(bad))
        raise DataError(
            f"{file.path}: lengths[{trajectory}] = {lengths[trajectory]}; expected 0 to {steps}, the rows of states."
        )
    return lengths.astype(np.int64)


def _scalar(file: NpzFile, name: str) -> float | None:
    if name not in file:
        return None
    array = file.array(name)
    if array.dtype.kind not in "fiu" or array.size != 1 or not (np.isfinite(array).all() and (array > 0).all()):
        raise DataError(f"{file.path}: {name} is {array!r}; expected one number greater than 0.")
    return float(array.reshape(()))


def _whole(file: NpzFile, name: str) -> int | None:
    number = _scalar(file, name)
    if number is None or number == round(number):
        return None if number is None else round(number)
    raise DataError(f"{file.path}: {name} is {number}; expected a whole number.")
