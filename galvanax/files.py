"""Files that outlive a crash, and files that strangers wrote."""

import contextlib
import errno
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from galvanax.errors import DataError

log = logging.getLogger("galvanax")

LARGEST_JSON = 64 * 2**20  # bytes
DEEPEST_JSON = 100
UNFLUSHED = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF}
NON_FINITE = "__float__"  # JSON has no NaN


@contextlib.contextmanager
def partial_file(path: str | Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, of the same suffix; renames it to `path` at the end, or deletes it.

    What has come to its plain name is on the disk, not only in the system's memory.

    Raises:
      DataError: the file can't be written; names it.
    """
    path = Path(path)
    partial = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # a link there would lead elsewhere
        yield partial
        sync(partial)
        replace(partial, path)
    except OSError as error:
        raise DataError(f"{path} can't be written: {describe_os_error(error, path)}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's entries, are on the disk."""
    try:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:  # some systems flush no folders, or only those that one may list
        if not (path.is_dir() and error.errno in UNFLUSHED):
            raise


def sync_tree(folder: Path) -> None:
    """Waits until all of a folder is on the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def replace(source: Path, target: Path) -> None:
    """Renames, and waits until the new name is on the disk: before that, a power cut brings back the old one."""
    os.replace(source, target)
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, and waits until they are on the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def set_aside(path: Path, name: str = "damaged") -> Path:
    """Moves a file or folder to the folder `name` beside it, under a name that is free there; returns where it is.

    Raises:
      OSError: it can't be moved; so also where a link or a file has the folder's name.
    """
    aside = path.parent / name
    check_folder(aside)
    make_folder(aside)
    numbered = (aside / (path.name if number == 1 else f"{path.name}-{number}") for number in range(1, 10**6))
    target = next(free for free in numbered if not os.path.lexists(free))
    replace(path, target)
    return target


def check_folder(path: Path) -> None:
    """Raises OSError where a name is taken, and by something else than a folder; a link would lead elsewhere."""
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
        raise NotADirectoryError(errno.ENOTDIR, f"{path.name} is no folder, but a link or a file", str(path))


def describe_os_error(error: OSError, path: Path, needed: int | None = None) -> str:
    """What the system says, and where the disk is full, how full: with `needed`, how many bytes are missing."""
    text = error.strerror or str(error) or type(error).__name__
    if "No space left" not in text and "quota" not in text.lower():
        return text
    with contextlib.suppress(OSError):
        folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
        free = shutil.disk_usage(folder).free
        wanted = "" if needed is None else f"{format_bytes(needed)} wanted, "
        return f"{text} ({wanted}{format_bytes(free)} free)"
    return text


def format_bytes(count: int) -> str:
    """`"1.2 MB"`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def write_json(path: Path, data: Any) -> None:
    """Writes strict JSON, whole or not at all; numbers that JSON doesn't have come back by `read_json`."""
    with partial_file(path) as partial:
        partial.write_text(dump_json(data, indent=1))


def dump_json(data: Any, indent: int | None = None) -> str:
    """JSON in the strict sense: NaN and infinities as `{"__float__": "nan"}`."""
    return json.dumps(_mark(data), indent=indent, allow_nan=False)


def load_json(text: str | bytes) -> Any:
    """What `dump_json` was given.

    Raises:
      ValueError: it is no JSON, or nested deeper than anything that this library writes.
    """
    try:
        data = json.loads(text, object_hook=_unmark)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST_JSON} levels") from None
    level = [data]
    for _ in range(DEEPEST_JSON):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return data
    raise ValueError(f"it is nested deeper than {DEEPEST_JSON} levels")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file that anyone may have written.

    Raises:
      ValueError: it is no plain file, too large, or holds something else; says what.
      OSError: it can't be read.
    """
    check_plain(path)
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(
            f"{path.name} has {format_bytes(path.stat().st_size)}, expected {LARGEST_JSON >> 20} MB at most"
        )
    try:
        data = load_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} holds no object, but {type(data).__name__}")
    return data


def check_plain(path: Path) -> None:
    """Raises ValueError where a name is a link, a pipe or a device: reading one may leave the folder, or never end."""
    if path.is_symlink():
        raise ValueError(f"{path.name} is a link; expected a plain file or folder")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path.name} is no plain file")


def _mark(data: Any) -> Any:
    data = data.item() if isinstance(data, np.generic) else data
    if isinstance(data, float) and not math.isfinite(data):
        return {NON_FINITE: str(data)}
    if isinstance(data, dict):
        return {key: _mark(value) for key, value in data.items()}
    return [_mark(value) for value in data] if isinstance(data, list | tuple) else data


def _unmark(data: dict[str, Any]) -> Any:
    if data.keys() != {NON_FINITE}:
        return data
    value = data[NON_FINITE]
    if value not in ("nan", "inf", "-inf"):
        raise ValueError(f"{NON_FINITE} is {value!r:.60}; expected nan, inf or -inf")
    return float(value)


def _children(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
