"""Presets: named sets of an experiment's settings, such as another source's values, or a size."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from galvanax.errors import ConfigError, nearest

# Values by the settings' dotted names, as flags spell them: `{"task.learning_rate": 1e-3}`. None for a whole callback
# leaves it out: `{"callbacks.ema": None}`.
Preset = Mapping[str, Any]


def replaced(record: Any, changes: Preset, path: str = "") -> Any:
    """A dataclass, or a dict of such, with these settings changed.

    Args:
      record: an experiment, or a part of one.
      changes: see `Preset`.
      path: where in the experiment the part is, for errors.

    Raises:
      ConfigError: there is no such setting.
    """
    known = (
        record if isinstance(record, dict) else {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    )
    values: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        if first not in known or (
            rest and not (dataclasses.is_dataclass(known[first]) or isinstance(known[first], dict))
        ):
            raise ConfigError(f"A preset changes {path}{name}, which there is not.{nearest(first, known)}")
        if rest:
            nested.setdefault(first, {})[rest] = value
        else:
            values[first] = value
    values |= {name: replaced(known[name], inner, f"{path}{name}.") for name, inner in nested.items()}
    if isinstance(record, dict):
        return {name: value for name, value in {**record, **values}.items() if value is not None}
    return dataclasses.replace(record, **values)
