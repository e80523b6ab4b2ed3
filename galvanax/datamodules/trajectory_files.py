"""Logged trajectories from CSV, Parquet and NPZ files."""

import glob
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from galvanax.datamodules import trajectory_cache
from galvanax.datamodules.motion_file import MotionFile
from galvanax.datamodules.npz_table import NpzFile
from galvanax.datamodules.trajectory_columns import GROUPS, TIME, find_columns
from galvanax.datamodules.trajectory_csv import read_csv
from galvanax.datamodules.trajectory_table import Table, Trajectory, warn_of_period
from galvanax.errors import DataError, nearest

PERIOD_TOLERANCE = 0.1


def read_trajectories(
    source: str | Path, period_tolerance: float = PERIOD_TOLERANCE, cache: bool = True
) -> list[Trajectory]:
    """Reads every log of a folder, of a glob, or one file; sorted by path.

    Each file is a table of the columns `timestamp` (s), `qpos_0`, `qpos_1`, ..., `qvel_0`, ..., `ctrl_0`, ... in any
    order, with at least one of each: a row is a state and the control applied from it to the next row. In an NPZ file
    the columns are arrays, or `qpos`, `qvel` and `ctrl` are arrays `(rows, entries)` and `timestamp` is `(rows,)`.
    Columns of other names are ignored. An NPZ file of `galvanax collect` gives a trajectory for each of its episodes.

    Args:
      source: a folder (not its subfolders), a glob such as `"logs/**/*.csv"`, or a file.
      period_tolerance: how far a sampling period may be from the usual one, as a share of it.
      cache: keep what was parsed in the user's cache folder, and take it from there while the files are as they were.

    Raises:
      DataError: nothing to read; a file that is no trajectory (names file, line and column); or files that differ in
        columns or in sampling period (names both).
    """
    files = find_files(source)
    entry = trajectory_cache.Entry(source, files, period_tolerance) if cache else None
    trajectories = entry.load() if entry else None
    if trajectories is None:
        trajectories = [one for path in files for one in read_file(path, period_tolerance)]
        check_alike(trajectories, period_tolerance)
        if entry:
            entry.save(trajectories)
    warn_of_period(trajectories[0].name, trajectories[0].dt)
    return trajectories


def read_file(path: Path, period_tolerance: float) -> list[Trajectory]:
    """What one file holds: a log, or the episodes that `galvanax collect` wrote. Raises as `read_trajectories` does."""
    if path.suffix.lower() == ".npz":
        with NpzFile(path) as file:
            episodes = "states" in file and TIME not in file
        if episodes:
            return MotionFile.open(path).trajectories()
    return [read_trajectory(path, period_tolerance)]


def read_trajectory(path: str | Path, period_tolerance: float = PERIOD_TOLERANCE) -> Trajectory:
    """Reads one file; see `read_trajectories`.

    Raises:
      DataError: as there.
    """
    path = Path(path)
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path}: expected a name that ends in {', '.join(READERS)}.")
    try:
        return read(path).trajectory(period_tolerance)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error


def find_files(source: str | Path) -> list[Path]:
    """The log files of a folder, a glob or a file's own path, sorted.

    Raises:
      DataError: there is none; names the source.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    # A folder's name may hold characters that mean something in a glob.
    found = path.iterdir() if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    files = sorted(
        file for file in found if file.suffix.lower() in READERS and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        beside = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = "" if path.is_dir() or glob.has_magic(str(path)) else nearest(str(path), beside)
        raise DataError(f"{str(source)!r}: no file with a name that ends in {', '.join(READERS)}.{hint}")
    return files


def check_alike(trajectories: list[Trajectory], period_tolerance: float) -> None:
    """Raises DataError, with both names, where a trajectory has other columns or another period than the first."""
    first = trajectories[0]
    for other in trajectories[1:]:
        if _counts(other) != _counts(first):
            raise DataError(
                f"{other.name} has {_say(other)}; {first.name} has {_say(first)}: expected the same in every file."
            )
        if abs(other.dt - first.dt) > period_tolerance * first.dt:
            raise DataError(
                f"{other.name} has a sampling period of {other.dt:.6g} s; {first.name} has {first.dt:.6g} s: expected "
                f"the same within {period_tolerance:.0%}."
            )


def _counts(trajectory: Trajectory) -> tuple[int, int, int]:
    return trajectory.nq, trajectory.states.shape[1] - trajectory.nq, trajectory.actions.shape[1]


def _say(trajectory: Trajectory) -> str:
    return ", ".join(f"{count} {group}" for count, group in zip(_counts(trajectory), GROUPS, strict=True))


def _read_parquet(path: Path) -> Table:
    try:
        names = pl.read_parquet_schema(path)
        columns = find_columns(str(path), list(names))
        frame = pl.read_parquet(path, columns=[list(names)[place] for place in columns.places])
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} is no Parquet file that can be read: {error}") from error
    frame = frame.select(list(names)[place] for place in columns.places)
    for name, kind, nulls in zip(columns.names, frame.dtypes, frame.null_count().row(0), strict=True):
        if not kind.is_numeric():
            raise DataError(f"{path}, column {name}: expected numbers, found {kind}.")
        if nulls:
            row = frame[:, columns.names.index(name)].is_null().arg_max()
            raise DataError(f"{path}, row {(row or 0) + 1}, column {name}: the cell is empty.")
    values = frame.cast(pl.Float64).to_numpy()
    return Table(path, columns, values, np.arange(1, 1 + len(values)), "row")


def _read_npz(path: Path) -> Table:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile, EOFError, NotImplementedError, AttributeError) as error:
        raise DataError(f"{path} is no NPZ file of numbers that can be read: {error}") from error
    series: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if name in GROUPS and array.ndim == 2:
            series |= {f"{name}_{number}": array[:, number] for number in range(array.shape[1])}
        else:
            series[name] = array
    columns = find_columns(str(path), list(series))
    shape = series[TIME].shape
    for name in columns.names:
        array = series[name]
        if array.dtype.kind not in "fiu":
            raise DataError(f"{path}, column {name}: expected numbers, found {array.dtype}.")
        if len(shape) != 1 or array.shape != shape:
            raise DataError(
                f"{path}, column {name} has shape {array.shape} and {TIME} has {shape}; expected (rows,) for both."
            )
    values = np.stack([series[name].astype(np.float64) for name in columns.names], axis=1)
    return Table(path, columns, values, np.arange(1, 1 + len(values)), "row")


READERS: dict[str, Callable[[Path], Table]] = {".csv": read_csv, ".parquet": _read_parquet, ".npz": _read_npz}
