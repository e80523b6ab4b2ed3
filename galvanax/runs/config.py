"""Dataclasses to JSON and back: what a run's `config.json` and its checkpoints say of themselves."""

import dataclasses
import functools
import inspect
import json
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import cattrs
import jax
import numpy as np
from cattrs.preconf.json import make_converter

from galvanax.errors import ConfigError

T = TypeVar("T")
PACKAGES = ("galvanax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "mujoco", "mujoco-mjx", "numpy")

_converter = make_converter(forbid_extra_keys=True)


def to_json(value: Any) -> Any:
    """JSON data of a dataclass: its fields, and its class's name as `"type"`. Arrays are described, not stored.

    Fields with `metadata={"stored": False}` are left out.

    Raises:
      ConfigError: a field holds another kind than it says, such as a number where a tuple is meant.
    """
    try:
        plain = _converter.unstructure(value)
    except (TypeError, AttributeError, ValueError) as error:
        raise ConfigError(_misfit(value) or f"{value!r} can't be written as JSON: {error}.") from error
    fields = json.loads(json.dumps(plain, default=_describe))
    if not dataclasses.is_dataclass(value):
        return fields
    left_out = {field.name for field in dataclasses.fields(value) if not field.metadata.get("stored", True)}
    return {"type": type(value).__name__, **{name: data for name, data in fields.items() if name not in left_out}}


def from_json(cls: type[T], data: dict[str, Any], source: str) -> T:
    """Rebuilds a dataclass from `to_json`'s data.

    Raises:
      ConfigError: a field is unknown or has the wrong type; names `source` and the field.
    """
    fields = {name: value for name, value in data.items() if name != "type"}
    try:
        return _converter.structure(fields, cls)
    except cattrs.StructureHandlerNotFoundError as error:
        raise ConfigError(f"{source} does not describe a {cls.__name__}: {error}.") from error
    except cattrs.BaseValidationError as error:
        problems = "; ".join(cattrs.transform_error(error, path=cls.__name__))
        raise ConfigError(f"{source} does not describe a {cls.__name__}: {problems}.") from error


def replace_from_json(base: T, data: dict[str, Any], source: str) -> T:
    """`base` with the fields that differ in `to_json`'s data; fields that JSON cannot hold (arrays) stay as they are.

    Raises:
      ConfigError: as `from_json`.
    """
    now = to_json(base)
    fields = {name: value for name, value in data.items() if name != "type" and value != now.get(name)}
    hints = get_type_hints(type(base))
    try:
        changes = {}
        for name, value in fields.items():
            current = getattr(base, name, None)
            # A dataclass keeps its class, which a general annotation doesn't tell.
            nested = dataclasses.is_dataclass(current) and isinstance(value, dict)
            changes[name] = (
                replace_from_json(current, value, source)
                if nested
                else _converter.structure(value, hints.get(name, Any))
            )
        return dataclasses.replace(base, **changes)  # type: ignore[type-var]
    except (cattrs.BaseValidationError, TypeError, ValueError) as error:
        raise ConfigError(f"{source} does not describe a {type(base).__name__}: {fields}: {error}.") from error


@functools.cache  # reading the packages' metadata takes milliseconds, and a save should not
def versions() -> dict[str, str]:
    """Installed versions of the packages that a run's numbers depend on."""
    return {name: metadata.version(name) for name in PACKAGES}


def check_dataclass(value: Any) -> None:
    """Raises ConfigError if a class declares fields but is no dataclass: they would keep the base class's values."""
    cls = type(value)
    declared = [name for name, kind in inspect.get_annotations(cls).items() if "ClassVar" not in str(kind)]
    if declared and "__dataclass_fields__" not in vars(cls):
        raise ConfigError(
            f"{cls.__name__} declares {', '.join(declared)} but is no dataclass: "
            "put @dataclasses.dataclass(frozen=True) above it."
        )


def _misfit(value: Any) -> str | None:
    """Which field of a dataclass isn't what its annotation says."""
    hints = get_type_hints(type(value)) if dataclasses.is_dataclass(value) else {}
    for name, hint in hints.items():
        field = getattr(value, name, None)
        try:
            _converter.unstructure(field, unstructure_as=hint)
        except (TypeError, AttributeError, ValueError):
            kind = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
            return _misfit(field) or f"{type(value).__name__}.{name}={field!r}: expected {kind}."
    return None


def _describe(value: Any) -> Any:
    if isinstance(value, np.ndarray | jax.Array):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    return getattr(value, "__qualname__", None) or repr(value)
