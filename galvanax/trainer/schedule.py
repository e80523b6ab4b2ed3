"""How often something happens, as typed values: `Steps(500)`, `Epochs(1)`, `Minutes(10)`."""

import dataclasses
from typing import Any

from galvanax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Steps:
    """Every `steps` optimizer steps."""

    steps: int

    def __post_init__(self) -> None:
        _check_positive("Steps", self.steps)

    def in_steps(self, steps_per_epoch: int | None) -> int:
        """The interval in steps."""
        return self.steps


@dataclasses.dataclass(frozen=True)
class Epochs:
    """Every `epochs` passes over the training data."""

    epochs: int

    def __post_init__(self) -> None:
        _check_positive("Epochs", self.epochs)

    def in_steps(self, steps_per_epoch: int | None) -> int:
        """The interval in steps, which the training data's length decides."""
        if steps_per_epoch is None:
            raise ConfigError(
                f"{self} was asked for, but the training data is a stream with no length. "
                "Say it in Steps(...), or give limit_train_batches=."
            )
        return self.epochs * steps_per_epoch


@dataclasses.dataclass(frozen=True)
class Minutes:
    """Every `minutes` of wall time, looked at between dispatches."""

    minutes: float

    def __post_init__(self) -> None:
        _check_positive("Minutes", self.minutes)


def check_interval(name: str, value: Any, kinds: tuple[type, ...], optional: bool = False) -> None:
    """Raises ConfigError unless the value is one of these kinds of intervals: a bare number could mean any.

    Args:
      name: of the setting.
      value: what it was given.
      kinds: of `Steps`, `Epochs`, `Minutes`.
      optional: whether None is one, too.
    """
    if isinstance(value, kinds) or (optional and value is None):
        return
    number = value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 500
    expected = [f"gx.{kind.__name__}({number if kind is Steps else 10 if kind is Minutes else 1})" for kind in kinds]
    raise ConfigError(f"{name}={value!r}: expected {', '.join(expected)}{' or None' if optional else ''}.")


def next_multiple(step: int, interval: int) -> int:
    """The first multiple of `interval` after `step`."""
    return (step // interval + 1) * interval


def _check_positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not value > 0:
        raise ConfigError(f"{name}({value!r}): expected a positive number.")
    if name != "Minutes" and not isinstance(value, int):
        raise ConfigError(f"{name}({value!r}): expected a whole number.")
