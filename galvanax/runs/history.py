"""The rows that a run has logged, in a checkpoint: a copy of it still has its curves."""

from pathlib import Path
from typing import Any

from galvanax.files import read_json, write_json
from galvanax.runs.integrity import reading

HISTORY = "history.json"

Row = dict[str, float]  # {"step": 50, "epoch": 0.5, "train/loss": ...}


def write_history(folder: Path, rows: list[Row]) -> None:
    """Writes `history.json`: a list for each column, with null where a row lacks it."""
    names = dict.fromkeys(name for row in rows for name in row)
    write_json(folder / HISTORY, {name: [row.get(name) for row in rows] for name in names})


def read_history(folder: Path) -> list[Row]:
    """The rows of a verified checkpoint, by step; none where it was saved before there was a history.

    Raises:
      DamagedError: the file holds something else.
      CheckpointError: the system can't read it; that is no damage.
    """
    with reading(folder):
        if not (folder / HISTORY).exists():
            return []
        columns = read_json(folder / HISTORY)
        _check(columns)
    names, rows = list(columns), zip(*columns.values(), strict=True)
    return [{name: value for name, value in zip(names, row, strict=True) if value is not None} for row in rows]


def _check(columns: dict[str, Any]) -> None:
    if not columns:
        return
    steps = columns.get("step")
    if not isinstance(steps, list) or not all(type(step) is int for step in steps) or sorted(set(steps)) != steps:
        raise ValueError(f"{HISTORY} has no steps in order")
    for name, column in columns.items():
        if not isinstance(column, list) or len(column) != len(steps):
            raise ValueError(f"{HISTORY}: {name!r:.80} is no list of {len(steps)} numbers")
        if not all(value is None or type(value) in (int, float) for value in column):
            raise ValueError(f"{HISTORY}: {name!r:.80} holds something else than numbers")
