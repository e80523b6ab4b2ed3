"""How often something happens, as typed values: `Steps(500)`, `Epochs(1)`, `Minutes(10)`."""

import dataclasses

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


def next_multiple(step: int, interval: int) -> int:
    """The first multiple of `interval` after `step`."""
    return (step // interval + 1) * interval


def _check_positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not value > 0:
        raise ConfigError(f"{name}({value!r}): expected a positive number.")
    if name != "Minutes" and not isinstance(value, int):
        raise ConfigError(f"{name}({value!r}): expected a whole number.")
