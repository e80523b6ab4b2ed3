"""Settings that make no sense are refused by their names, before anything is computed."""

import math
import numbers
from collections.abc import Iterable
from typing import Any

from galvanax.errors import ConfigError


def check_counts(owner: Any, *names: str, least: int = 1) -> None:
    """Raises ConfigError where one of these fields is no whole number of at least `least`."""
    for name in names:
        value = getattr(owner, name)
        if not _is_count(value, least):
            raise ConfigError(
                f"{type(owner).__name__}.{name}={value!r}: expected a whole number of at least {least}. Nearest: "
                + (f"{max(least, round(value))}." if isinstance(value, float) and math.isfinite(value) else f"{least}.")
            )


def check_widths(owner: Any, *names: str) -> None:
    """Raises ConfigError where one of these fields isn't a tuple of layers' widths."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, tuple | list) or not all(_is_count(width, 1) for width in value):
            near = f" Nearest: ({value},)." if _is_count(value, 1) else ""
            raise ConfigError(
                f"{type(owner).__name__}.{name}={value!r}: expected a tuple of whole numbers of at least 1, a layer "
                f"each.{near}"
            )


def check_ranges(owner: Any, **ranges: str) -> None:
    """Raises ConfigError where a field is outside its interval, such as `learning_rate="[0, inf)"`; None passes."""
    for name, interval in ranges.items():
        value = getattr(owner, name)
        if value is None:
            continue
        low, high = (float(end) for end in interval[1:-1].split(","))
        known = isinstance(value, numbers.Real) and not isinstance(value, bool)
        above = known and (low <= value if interval[0] == "[" else low < value)
        below = known and (value <= high if interval[-1] == "]" else value < high)
        if not (above and below):
            default = getattr(type(owner), name, None)
            raise ConfigError(
                f"{type(owner).__name__}.{name}={value!r}: expected a number in {interval}"
                + ("." if default is None else f"; the default is {default}.")
            )


def check_choice(owner: Any, name: str, known: Iterable[str]) -> None:
    """Raises ConfigError where a field is none of the known names."""
    value, names = getattr(owner, name), list(known)
    if value not in names:
        raise ConfigError(f"{type(owner).__name__}.{name}={value!r}: expected one of {', '.join(names)}.")


def _is_count(value: Any, least: int) -> bool:
    return not isinstance(value, bool) and hasattr(value, "__index__") and value >= least
