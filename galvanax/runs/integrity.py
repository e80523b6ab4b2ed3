"""Whether a checkpoint is what was written: a manifest of checksums, and what its `meta.json` must hold."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from galvanax.errors import CheckpointError, ConfigError
from galvanax.files import check_plain, read_json, write_json
from galvanax.runs.checkpoint_meta import CheckpointMeta
from galvanax.runs.config import from_json

META, MANIFEST = "meta.json", "manifest.json"
# A file that is not there, or is something else, is damage; any other error of the system may pass.
GONE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}


class DamagedError(CheckpointError):
    """A checkpoint that is not as it was written. One that the system can't read at the moment is not damaged."""


def write_manifest(folder: Path) -> None:
    """Writes down what is in a checkpoint's folder."""
    write_json(folder / MANIFEST, checksums(folder))


def verify(folder: Path) -> CheckpointMeta:
    """Compares every file of a checkpoint with the manifest; returns its `meta.json`.

    Raises:
      DamagedError: files are missing, altered, added or no files; names them.
      CheckpointError: the system can't read them; that is no damage.
    """
    with reading(folder):
        check_plain(folder)
        expected, found = read_json(folder / MANIFEST), checksums(folder)
        if found != expected:
            wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            told = ", ".join(f"{_shown(name)} {_kind(name, found, expected)}" for name in wrong[:5])
            more = f" (and {len(wrong) - 5} more)" if wrong[5:] else ""
            raise DamagedError(f"{folder} is damaged: {told}{more}.")
        meta = _read(folder)
        if folder.name.isdecimal() and meta.step != int(folder.name):
            raise DamagedError(f"{folder} is damaged: it holds the checkpoint of step {meta.step}.")
        return meta


def read_meta(folder: Path) -> CheckpointMeta:
    """A checkpoint's `meta.json`, unverified.

    Raises:
      DamagedError, CheckpointError: as `verify`.
    """
    with reading(folder):
        check_plain(folder)
        return _read(folder)


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest.

    Raises:
      ValueError: there is something else than files and folders.
    """
    sums = {}
    for path in sorted(folder.rglob("*")):
        check_plain(path)
        if path.is_file() and path != folder / MANIFEST:
            with path.open("rb") as file:
                sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _read(folder: Path) -> CheckpointMeta:
    try:
        meta = from_json(CheckpointMeta, read_json(folder / META), META)
        if not isinstance(meta.config.get("task"), dict) or not isinstance(meta.config["task"].get("type"), str):
            raise DamagedError(f"{folder} is damaged: {META} names no task.")
        return meta
    except ConfigError as error:
        raise DamagedError(f"{folder} is damaged: {error}") from error


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Says of an error in a checkpoint's files whether it is damage; raises as `verify`."""
    try:
        yield
    except ValueError as error:
        raise DamagedError(f"{folder} is damaged: {error}.") from error
    except OSError as error:
        name = os.path.relpath(error.filename, folder) if error.filename else ""
        if error.errno in GONE:
            raise DamagedError(f"{folder} is damaged: {name} is missing.") from error
        raise CheckpointError(
            f"{folder} can't be read at the moment: {name}: {error.strerror or error}. That need not be damage: try "
            "again, or name an older checkpoint."
        ) from error


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) < 200 else f"{name!r:.200}"


def _kind(name: str, found: dict[str, str], expected: dict[str, str]) -> str:
    return "missing" if name not in found else "added" if name not in expected else "altered"
