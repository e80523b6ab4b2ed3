"""What a checkpoint says of itself, beside its arrays."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from galvanax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Monitor:
    """A metric that ranks checkpoints.

    Attributes:
      metric: its name, such as "val/loss".
      mode: whether less ("min") or more ("max") of it is better.
    """

    metric: str
    mode: Literal["min", "max"]

    def score(self, value: float) -> float:
        """The value, turned so that less is better."""
        return value if self.mode == "min" else -value


@dataclasses.dataclass(frozen=True)
class Monitored(Monitor):
    """A monitor and what it showed: None where the step had no validation."""

    value: float | None = None


@dataclasses.dataclass(frozen=True)
class CheckpointMeta:
    """`meta.json`.

    Attributes:
      step: optimizer steps done.
      epoch: passes over the training data done.
      config: JSON of what the run was made of.
      position: Grain's, in the training data.
      window: training metrics since the last row of the log, by name.
      metrics: the last value of each.
      validated_at: the step of the last validation, or -1.
      visited: the last step at which all that was due is done.
      stop_reason: why the run had ended there, or None.
      num_steps: where the run was to end.
      seconds: since the run began.
      host: `Callback.host_state` by callback.
      versions: of the packages.
      totals: of the metrics that are added up from the run's start, by name.
      averaged: whether there are averaged weights.
      arrays: type and shape of each array, by path.
      permanent: whether it is kept for good.
      monitor: what ranked it, if anything.
      history: the rows logged so far; in a file of their own (`history.json`), read on resuming.
    """

    step: int
    epoch: float
    config: dict[str, Any]
    position: Any
    window: dict[str, list[float]]
    metrics: dict[str, float]
    validated_at: int
    visited: int
    stop_reason: str | None
    num_steps: int
    seconds: float
    host: dict[str, Any]
    versions: dict[str, str]
    totals: dict[str, float] = dataclasses.field(default_factory=dict)
    averaged: bool = False
    arrays: dict[str, str] = dataclasses.field(default_factory=dict)
    permanent: bool = False
    monitor: Monitored | None = None
    history: list[dict[str, float]] = dataclasses.field(default_factory=list, metadata={"stored": False})


@dataclasses.dataclass(frozen=True)
class Entry:
    """What decides whether a checkpoint is kept.

    Attributes:
      step: its step.
      values: metrics that were measured at that step, by name.
      permanent: kept for good.
      monitor: what the run monitored then.
    """

    step: int
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    permanent: bool = False
    monitor: Monitor | None = None

    @classmethod
    def of(cls, meta: CheckpointMeta) -> "Entry":
        """A checkpoint's."""
        values = {}
        if meta.validated_at == meta.step:
            values = {name: value for name, value in meta.metrics.items() if not name.startswith("train/")}
        if meta.monitor is not None and meta.monitor.value is not None:
            values[meta.monitor.metric] = meta.monitor.value
        return cls(meta.step, values, meta.permanent, meta.monitor)


def ranked(entries: Iterable[Entry], monitor: Monitor | None) -> list[int]:
    """The steps that have a finite value of the metric, the best first; of equals, the earlier."""
    if monitor is None:
        return []
    values = {entry.step: entry.values.get(monitor.metric, math.nan) for entry in entries}
    scored = [(monitor.score(value), step) for step, value in values.items() if math.isfinite(value)]
    return [step for _, step in sorted(scored)]


def retained(entries: list[Entry], monitor: Monitor | None, keep_last: int | None, keep_best: int) -> set[int]:
    """The steps to keep: the newest, the best, and the permanent ones."""
    steps = sorted(entry.step for entry in entries)
    newest = steps if keep_last is None else steps[-keep_last:]
    best = ranked(entries, monitor)[:keep_best]
    return {*newest, *best, *(entry.step for entry in entries if entry.permanent)}


def best_step(entries: list[Entry]) -> int:
    """The best step by what the newest checkpoints' run monitors; the last one where it monitors nothing finite."""
    newest_first = sorted(entries, key=lambda entry: -entry.step)
    monitor = next((entry.monitor for entry in newest_first if entry.monitor is not None), None)
    return next(iter(ranked(entries, monitor)), newest_first[0].step)


def check_mode(mode: str | None, owner: str) -> None:
    """Raises ConfigError unless the mode is "min" or "max"; it is never guessed."""
    if mode not in ("min", "max"):
        raise ConfigError(f'{owner}.mode={mode!r}: expected "min" (less is better) or "max".')
