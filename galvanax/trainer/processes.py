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
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from galvanax import errors
from galvanax.errors import CheckpointError, ConfigError, GalvanaxError, Preempted, ProcessError
from galvanax.trainer.cluster import OWN, Cluster, find_cluster, join_address, split_address, visible_gpus
from galvanax.trainer.links import GRACE, Links, meet

T = TypeVar("T")

TIMEOUT = "GALVANAX_TIMEOUT"
HEARTBEATS = 45  # seconds without a sign of life, after which jax ends all processes
NEWS = 2.0  # seconds in which the reason of a broken collective operation becomes known

_links: Links | None = None


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_index: int | None = None,
    timeout: float | None = None,
) -> None:
    """Joins this process with the others of its run. Does nothing where it is the only one, and the second time.

    Call it before anything that makes jax look for its devices; `galvanax fit` does. What is not given, the environment
    says: see `find_cluster`.

    Args:
      coordinator: `"host:port"`, where process 0 waits for the others.
      num_processes: how many there are.
      process_index: of this one, from 0.
      timeout: seconds to wait for the others; by default `GALVANAX_TIMEOUT`, else 300.

    Raises:
      ConfigError: the environment makes no sense, jax has its devices already, or the others don't come.
    """
    global _links
    if _links is not None:
        return
    given = dict(zip(OWN, (coordinator, num_processes, process_index), strict=True))
    cluster = find_cluster({**os.environ, **{name: str(value) for name, value in given.items() if value is not None}})
    if cluster is None:
        return
    if jax.distributed.is_initialized():
        raise ConfigError("Call gx.distributed.initialize() instead of jax.distributed.initialize().")
    if _backend_is_up():
        raise ConfigError(
            f"{_describe(cluster)}, but jax has its devices already: call gx.distributed.initialize() before "
            "everything that computes or asks for devices."
        )
    gpus = cluster.local_gpus(len(visible_gpus(os.environ, present_gpus())))
    # jax's own service listens at a port of its own, which process 0 makes known.
    links, port = meet(cluster, _timeout(timeout), _free_port() if cluster.process_index == 0 else 0)
    _configure()
    host, _ = split_address(cluster.coordinator, cluster.source)
    address = join_address(host, port)
    links.enter()
    jax.distributed.initialize(
        address,
        cluster.num_processes,
        cluster.process_index,
        local_device_ids=gpus,
        cluster_detection_method="deactivate",
        coordinator_bind_address=address if cluster.is_local else None,  # else all interfaces
        heartbeat_timeout_seconds=HEARTBEATS,
        shutdown_timeout_seconds=HEARTBEATS,
    )
    _links = links
    atexit.register(_at_exit)
    _connect_devices()
    links.leave()


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
      ConfigError: the environment speaks of several processes, and jax knows of one.
      ProcessError: another process is gone, or had an error.
    """
    common = Together()
    if _links is None:
        _check_alone()
    else:
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


def check_mesh(mesh: Mesh) -> None:
    """Raises ConfigError where a process has no device in the mesh, which it would wait for in vain."""
    absent = sorted(set(range(count())) - {device.process_index for device in mesh.devices.flat})
    if absent:
        raise ConfigError(
            f"The chosen devices leave process{'es' if len(absent) > 1 else ''} {', '.join(map(str, absent))} without "
            f'any: with several processes, choose devices="auto", all {jax.device_count()}, or of each process some.'
        )


def is_alone_on(mesh: Mesh) -> bool:
    """Whether all devices of a mesh are this process's own, or there is no other process."""
    return count() == 1 or {device.process_index for device in mesh.devices.flat} == {index()}


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


def local_devices() -> Any:
    """The `Trainer.devices` that are this process's own."""
    return "auto" if count() == 1 else tuple(device.id for device in jax.local_devices())


def leave(status: int, error: BaseException) -> None:
    """Ends this process after an error, without waiting for the others, who learn of it; returns where it is alone."""
    if _links is not None:
        _leave(status, f"{type(error).__name__}: {error}")


def present_gpus() -> int:
    """How many NVIDIA GPUs this machine shows."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _describe(cluster: Cluster) -> str:
    return (
        f"This is process {cluster.process_index} of {cluster.num_processes} by its environment (from {cluster.source})"
    )


def _backend_is_up() -> bool:
    from jax._src import xla_bridge  # there is no public way to ask without bringing it up

    return bool(xla_bridge.backends_are_initialized())


def _check_alone() -> None:
    if jax.distributed.is_initialized():
        raise ConfigError("Call gx.distributed.initialize() instead of jax.distributed.initialize().")
    cluster = find_cluster(os.environ)
    if cluster is not None:
        raise ConfigError(
            f"{_describe(cluster)}, but it has not met the others: call gx.distributed.initialize() at the program's "
            "beginning, before jax has its devices; or run it without these variables."
        )


def _timeout(given: float | None) -> float:
    text = os.environ.get(TIMEOUT, "300") if given is None else str(given)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise ConfigError(f"{TIMEOUT}={text!r}: expected a number of seconds.")
    return seconds


def _configure() -> None:
    # A SIGTERM is the Checkpoint callback's to handle; jax's own handler would only swallow it.
    jax.config.update("jax_enable_preemption_service", False)
    if jax.config.jax_cpu_collectives_implementation in (None, "none"):  # type: ignore[attr-defined]
        jax.config.update("jax_cpu_collectives_implementation", "gloo")


def _connect_devices() -> None:
    """Opens the devices' own connections, by one sum over all of them.

    Gloo gives up where a process comes 30 s after another, as it may after a long compilation.
    """
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
    ones = [jax.device_put(jnp.ones(1), device) for device in jax.local_devices()]
    array = jax.make_array_from_single_device_arrays((jax.device_count(),), rows, ones)
    program = jax.jit(jnp.sum, out_shardings=whole).lower(array).compile()
    barrier("devices")
    jax.block_until_ready(program(array))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


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
