"""How the processes of a run meet, and what they ask of jax: the rest of `gx.distributed` is in `processes`."""

import os
import socket
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from galvanax.errors import ConfigError
from galvanax.trainer import processes
from galvanax.trainer.cluster import OWN, Cluster, find_cluster, join_address, split_address, visible_gpus
from galvanax.trainer.links import meet
from galvanax.trainer.processes import TIMEOUT, barrier, count, index, present_gpus

HEARTBEATS = 45  # seconds without a sign of life, after which jax ends all processes


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
    if processes.is_connected():
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
    processes.connect(links)
    _connect_devices()
    links.leave()


def check_met() -> None:
    """Raises ConfigError where the environment speaks of several processes, and this one has not met the others."""
    if processes.is_connected():
        return
    if jax.distributed.is_initialized():
        raise ConfigError("Call gx.distributed.initialize() instead of jax.distributed.initialize().")
    cluster = find_cluster(os.environ)
    if cluster is not None:
        raise ConfigError(
            f"{_describe(cluster)}, but it has not met the others: call gx.distributed.initialize() at the program's "
            "beginning, before jax has its devices; or run it without these variables."
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


def local_devices() -> Any:
    """The `Trainer.devices` that are this process's own."""
    return "auto" if count() == 1 else tuple(device.id for device in jax.local_devices())


def _describe(cluster: Cluster) -> str:
    return (
        f"This is process {cluster.process_index} of {cluster.num_processes} by its environment (from {cluster.source})"
    )


def _backend_is_up() -> bool:
    from jax._src import xla_bridge  # there is no public way to ask without bringing it up

    return bool(xla_bridge.backends_are_initialized())


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
