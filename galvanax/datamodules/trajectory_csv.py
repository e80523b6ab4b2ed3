"""CSV logs as tables: Polars where the file is plain, and line by line where it isn't."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from galvanax.datamodules.trajectory_columns import Columns, find_columns
from galvanax.datamodules.trajectory_table import Table
from galvanax.errors import DataError


def read_csv(path: Path) -> Table:
    """Reads a table of numbers with a header.

    Line ends of every system, a byte-order mark, blank lines, quotes and blanks around numbers are fine.

    Raises:
      DataError: no header or a wrong one, a ragged line, or a cell that is no number; names line and column.
    """
    raw = path.read_bytes()
    header = next(_records(path, raw), None)
    if header is None:
        raise DataError(f"{path} is empty; expected a header line: timestamp,qpos_0,...,qvel_0,...,ctrl_0,...")
    line, names = header
    columns = find_columns(f"{path}, line {line}", names)
    values = _read_plain(raw, columns, len(names))
    if values is not None:
        return Table(path, columns, values, np.arange(2, 2 + len(values)), "line")
    return _read_carefully(path, raw, columns, len(names))


def _read_plain(raw: bytes, columns: Columns, width: int) -> np.ndarray | None:
    """The values `(rows, columns)` if nothing about the file is unusual."""
    lines = raw.count(b"\n") + (not raw.endswith(b"\n"))
    # Polars fills short lines up and keeps blank ones: with as many commas as there should be, and no line too long
    # for the schema, there is neither.
    if lines < 2 or b'"' in raw or raw.count(b",") != lines * (width - 1):
        return None
    schema = {str(place): pl.Float64 if place in columns.places else pl.String for place in range(width)}
    try:
        # Logs are small: on one thread each Polars is quicker.
        frame = pl.read_csv(raw, has_header=False, skip_rows=1, schema=schema, n_threads=1)
    except pl.exceptions.PolarsError:
        return None
    series = [frame.get_column(str(place)) for place in columns.places]
    if len(frame) != lines - 1 or any(column.null_count() for column in series):
        return None
    return np.stack([column.to_numpy() for column in series], axis=1)


def _read_carefully(path: Path, raw: bytes, columns: Columns, width: int) -> Table:
    """The same in Python: forty times as slow, but knows where it is."""
    rows, lines = [], []
    records = _records(path, raw)
    next(records)
    for line, cells in records:
        if len(cells) != width:
            raise DataError(f"{path}, line {line} has {len(cells)} cells; expected {width}, as the header.")
        rows.append(
            [
                _number(f"{path}, line {line}, column {name}", cells[place])
                for name, place in zip(columns.names, columns.places, strict=True)
            ]
        )
        lines.append(line)
    values = np.array(rows, np.float64).reshape(-1, len(columns.names))
    return Table(path, columns, values, np.array(lines, int), "line")


def _records(path: Path, raw: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yields `(first line, cells)` of each record that isn't blank."""
    # A byte that is no UTF-8 stays visible as a lone surrogate, in the cell where it stands.
    text = raw.decode("utf-8-sig", errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""))
    before = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}.") from error
        if any(cell.strip() for cell in cells) or len(cells) > 1:
            yield before + 1, cells
        before = reader.line_num


def _number(where: str, cell: str) -> float:
    # float() would also take 1_000 and digits of other scripts.
    if cell.isascii() and "_" not in cell:
        try:
            return float(cell)
        except ValueError:
            pass
    raise DataError(f"{where}: {cell[:40]!r} is no number." if cell.strip() else f"{where}: the cell is empty.")
