"""Files that are whole or not there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from galvanax.errors import DataError


@contextlib.contextmanager
def partial_file(path: str | Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, of the same suffix; renames it to `path` at the end, or deletes it.

    Raises:
      DataError: the file can't be written; names it.
    """
    path = Path(path)
    partial = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path} can't be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
