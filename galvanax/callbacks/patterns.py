"""Patterns that name some of a model's arrays, `"network/layers/*/kernel"`."""

import difflib
import fnmatch
from collections.abc import Collection, Sequence

from galvanax.errors import ConfigError


def check_patterns(field: str, patterns: Sequence[str]) -> None:
    """Raises ConfigError where a field holds anything but patterns; a lone string would be read letter by letter."""
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError(f'{field}={patterns!r}: expected a tuple of patterns, such as ("layers/0/*",).')


def matching(field: str, patterns: Sequence[str], paths: Collection[str], what: str = "arrays") -> set[str]:
    """The paths that any of the patterns matches.

    Args:
      field: whose patterns they are, for the error.
      patterns: as in a shell, with `*` for any characters, slashes included.
      paths: of the model's arrays.
      what: the paths name, for the error.

    Raises:
      ConfigError: a pattern matches none; names the nearest paths.
    """
    found: set[str] = set()
    for pattern in patterns:
        matched = [path for path in paths if fnmatch.fnmatchcase(path, pattern)]
        if not matched:
            near = difflib.get_close_matches(pattern, sorted(paths), n=3, cutoff=0.0)
            raise ConfigError(
                f"{field} has the pattern {pattern!r}, which matches none of the model's {len(paths)} {what}. "
                f"Nearest: {', '.join(near)}."
            )
        found.update(matched)
    return found
