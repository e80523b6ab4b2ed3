"""Objects of a user's own file, named as `path/to/file.py:name`: its code is run, so the user must be who names it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from galvanax.errors import ConfigError, nearest

T = TypeVar("T")

_MODULES: dict[tuple[str, int], ModuleType] = {}


def names_file(reference: str) -> bool:
    """Whether a reference is of a file, `path/to/file.py:name`, rather than of something registered."""
    return ".py:" in reference or reference.endswith(".py")


def from_file(reference: str, kind: type[T], noun: str) -> T | type[T]:
    """What `"path/to/file.py:name"` names: an instance of `kind`, a class of it, or what a function of it returns.

    Args:
      reference: the file, and what it is called in there.
      kind: what is wanted.
      noun: how the message calls it.

    Raises:
      ConfigError: there is no such file, or nothing of that kind and name in it.
    """
    file, _, name = reference.partition(":")
    if not Path(file).is_file():
        raise ConfigError(f"There is no file {file}.")
    module = _run(Path(file).absolute())
    found = getattr(module, name, None)
    if callable(found) and not isinstance(found, kind | type):
        found = found()
    if found is None or not _is(found, kind):
        there = [key for key, value in vars(module).items() if _is(value, kind) and value is not kind]
        raise ConfigError(f"{file} holds no {noun} named {name!r}.{nearest(name, there)}")
    return found


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) or (isinstance(value, type) and issubclass(value, kind))


def _run(file: Path) -> ModuleType:
    key = str(file), file.stat().st_mtime_ns
    if key not in _MODULES:  # once: an experiment and a callback of one file share its classes, and what it registers
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look their own module up by name; and as in `python file.py`, its neighbours can be imported.
        sys.modules[spec.name] = module
        if (folder := str(file.parent)) not in sys.path:
            sys.path.insert(0, folder)
        spec.loader.exec_module(module)
        _MODULES[key] = module
    return _MODULES[key]
