"""The processes of a run: each drives its own devices through the same program.

What a process decides by its own clock, signals or files must be decided alike everywhere, since a program that spans
devices of all waits for all. `gather` and its relatives are for that; with one process they cost nothing.
"""

import atexit
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from galvanax import errors
from galvanax.errors import CheckpointError, ConfigError, GalvanaxError, Preempted, ProcessError
from galvanax.trainer.links import GRACE, Links

T = TypeVar("T")

TIMEOUT = "GALVANAX_TIMEOUT"
NEWS = 2.0  # seconds in which the reason of a broken collective operation becomes known

_links: Links | None = None


def connect(links: Links) -> None:
    """From here on this process is one of several."""
    global _links
    _links = links
    atexit.register(_at_exit)


def is_connected() -> bool:
    """Whether this process has met the others of its run."""
    return _links is not None


def count() -> int:
    """How many processes there are."""
    return 1 if _links is None else _links.count


def index() -> int:
    """The number of this process, from 0."""
    return 0 if _links is None else _links.index


def is_main() -> bool:
    """Whether this is process 0, which writes the run's files and prints."""
    return index() == 0


def gather(label: str, value: T) -> list[T]:
    """What each process gives, in their order: JSON data. Every process must come here, in the same order of calls.

    Raises:
      ProcessError: one is gone, or somewhere else in the program.
    """
    return [value] if _links is None else _links.gather(label, value)


def each(label: str, function: Callable[[], T]) -> T:
    """Calls a function in every process; an error in one is an error in all. It must not come here again itself.

    Raises:
      GalvanaxError: the error of the first process that has one, where this process has none of its own.
    """
    if _links is None:
        return function()
    result, error = _outcome(function)
    _raise_first(error, gather(label, _told(error)))
    return result  # type: ignore[return-value]


def from_main(label: str, function: Callable[[], T]) -> T:
    """Calls a function in process 0 alone; its result (JSON data) or error is everyone's."""
    if _links is None:
        return function()
    result, error = _outcome(function) if is_main() else (None, None)
    gathered: list[Any] = gather(label, (_told(error), result))
    _raise_first(error, [told for told, _ in gathered])
    return gathered[0][1]


def main_first(label: str, function: Callable[[], T]) -> T:
    """Calls a function in process 0, then in the others: the files that it makes, they find. An error is everyone's."""
    made: list[T] = []
    from_main(label, lambda: made.append(function()))
    return each(f"{label}, the others", lambda: made[0] if is_main() else function())


def barrier(label: str) -> None:
    """Waits until every process is here."""
    gather(label, None)


@dataclasses.dataclass
class Together:
    """What all processes do in common.

    Attributes:
      on_error: called where it ends by an error, before the others hear of it.
    """

    on_error: Callable[[BaseException], None] = lambda error: None


@contextlib.contextmanager
def together() -> Iterator[Together]:
    """Around what all processes do in common: an error in one ends it in all.

    Raises:
      ProcessError: another process is gone, or had an error.
    """
    common = Together()
    if _links is not None:
        _links.enter()
    try:
        yield common
    except BaseException as error:
        reason = _reason_of(error)
        cause = error if reason is None else ProcessError(reason)
        common.on_error(cause)
        if cause is not error:
            raise cause from error
        if _links is not None and not isinstance(error, ProcessError | Preempted):
            _links.announce(f"{type(error).__name__}: {error}")
        raise
    finally:
        if _links is not None:
            _links.leave()


def check_machines(num_nodes: int | None) -> None:
    """Raises ConfigError where the run is on another number of machines than it was meant for."""
    machines = ["this one"] if _links is None else _links.machines
    if num_nodes is not None and num_nodes != len(machines):
        raise ConfigError(
            f"Trainer.num_nodes={num_nodes}, but the run is on {len(machines)} machine{'s' if machines[1:] else ''} "
            f"({count()} process{'es' if count() > 1 else ''}): {', '.join(machines)}."
        )


def check_same(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError in every process where they have different settings: names the first that differs.

    Args:
      settings: JSON data.
    """
    if count() == 1:
        return
    # The address of an object without a description of its own is not a setting.
    text = re.sub(r" at 0x[0-9a-f]+", "", json.dumps(settings))
    if len(set(gather("settings", hashlib.sha256(text.encode()).hexdigest()))) == 1:
        return
    path, values = _first_difference("", gather("different settings", json.loads(text)))
    groups: dict[str, list[int]] = {}
    for number, value in enumerate(values):
        groups.setdefault(value, []).append(number)
    said = " and ".join(
        f"{value} in process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
        for value, numbers in groups.items()
    )
    raise ConfigError(f"The processes have different settings: {path} is {said}.")


def check_shared(folder: Path) -> None:
    """Raises ConfigError in every process where one doesn't see a folder that process 0 has made."""
    blind = [number for number, sees in enumerate(gather(f"folder {folder}", folder.is_dir())) if not sees]
    if blind:
        raise ConfigError(
            f"run_dir={folder} is not there for process{'es' if len(blind) > 1 else ''} {', '.join(map(str, blind))}: "
            "it must be on a file system that all processes share."
        )


def leave(status: int, error: BaseException) -> None:
    """Ends this process after an error, without waiting for the others, who learn of it; returns where it is alone."""
    if _links is not None:
        _leave(status, f"{type(error).__name__}: {error}")


def present_gpus() -> int:
    """How many NVIDIA GPUs this machine shows."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _reason_of(error: BaseException) -> str | None:
    """What ended another process and led to this error, if that is how it came about."""
    # A collective operation that has lost a partner raises all kinds of errors; a save is one, too.
    mine = not isinstance(error, Exception) or (
        isinstance(error, GalvanaxError) and not isinstance(error, CheckpointError)
    )
    return None if mine or _links is None else _links.trouble(NEWS)


def _outcome(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return function(), None
    except ProcessError:
        raise
    except Exception as error:
        return None, error


def _told(error: Exception | None) -> list[str] | None:
    return None if error is None else [type(error).__name__, str(error)]


def _raise_first(mine: Exception | None, told: list[Any]) -> None:
    """Raises this process's own error, or else the first of the others': their type, where it is one of ours."""
    if mine is not None:
        raise mine
    for place, outcome in enumerate(told):
        if outcome is not None:
            assert _links is not None
            name, text = outcome
            kind = getattr(errors, name, None)
            if isinstance(kind, type) and issubclass(kind, GalvanaxError):
                raise kind(text)
            raise ProcessError(f"{_links.name(place)} stopped: {name}: {text}")


def _first_difference(path: str, values: list[Any]) -> tuple[str, list[str]]:
    """The path of the first field that differs, and each one's value of it."""
    if all(isinstance(value, dict) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        for name in names:
            inner = [value.get(name, "not there") for value in values]
            if any(one != inner[0] for one in inner):
                return _first_difference(f"{path}.{name}" if path else name, inner)
    if all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1:
        for number, entries in enumerate(zip(*values, strict=True)):
            if any(one != entries[0] for one in entries):
                return _first_difference(f"{path}[{number}]", list(entries))
    return path, [json.dumps(value) for value in values]


def _at_exit() -> None:
    assert _links is not None
    error = getattr(sys, "last_value", None)  # what nobody caught
    if error is not None:
        _leave(1, f"{type(error).__name__}: {error}")
    trouble = _links.farewell()
    if trouble is not None:
        print(f"galvanax: error: {trouble}", file=sys.stderr, flush=True)
        _leave(1, trouble)


def _leave(status: int, error: str) -> None:
    assert _links is not None
    _links.enter()
    if _links.trouble() is None:
        _links.announce(error)
    _links.let_go(GRACE + 2.0)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by sys.exit: jax would wait for the others first, and then end by a signal.
    os._exit(status)
