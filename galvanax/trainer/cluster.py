"""Which processes a run is made of, as the environment of each one tells."""

import contextlib
import dataclasses
import ipaddress
import re
import zlib
from collections.abc import Mapping
from typing import Any

from galvanax.errors import ConfigError

# Above the ports that Linux hands out by itself.
FIRST_PORT, PORTS = 61440, 4096
OWN = ("GALVANAX_COORDINATOR", "GALVANAX_NUM_PROCESSES", "GALVANAX_PROCESS_INDEX")
LOOPBACK = "127.0.0.1"
FIELDS = ("coordinator", "num_processes", "process_index")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run, and which of them this one is.

    Attributes:
      coordinator: `"host:port"`, where process 0 waits for the others.
      num_processes: how many there are.
      process_index: of this one.
      source: the variables that say so.
      local_index: of this one among those on its machine that share its GPUs; None where each has GPUs of its own.
      local_count: how many those are.
    """

    coordinator: str
    num_processes: int
    process_index: int
    source: str
    local_index: int | None = None
    local_count: int | None = None

    @property
    def is_local(self) -> bool:
        """Whether they meet on the loopback of one machine, where no other machine may reach them."""
        host, _ = split_address(self.coordinator, self.source)
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(host).is_loopback
        return False

    def local_gpus(self, visible: int) -> list[int] | None:
        """Which of the visible GPUs are this process's; None for all.

        Raises:
          ConfigError: there are fewer GPUs than processes.
        """
        if self.local_index is None or self.local_count in (None, 1) or visible <= 1:
            return None
        assert self.local_count is not None
        if visible < self.local_count:
            raise ConfigError(
                f"{self.local_count} processes on this machine share {visible} GPUs: expected one process per GPU at "
                "most (or JAX_PLATFORMS=cpu)."
            )
        share = visible // self.local_count
        return list(range(self.local_index * share, (self.local_index + 1) * share))


def find_cluster(environ: Mapping[str, str]) -> Cluster | None:
    """The cluster that these environment variables describe; None where this is the only process.

    Looks, in this order, for the variables of `galvanax launch`, Open MPI, torchrun, SLURM, and for the bare `RANK`,
    `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` of GPU clouds: of launchers that start each other, the innermost
    counts. `GALVANAX_COORDINATOR`, `GALVANAX_NUM_PROCESSES` and `GALVANAX_PROCESS_INDEX` replace what the others say;
    in a Kubernetes Job, `JOB_COMPLETION_INDEX` stands in for the last. Processes with
    `GALVANAX_NUM_PROCESSES=1` stay apart. Where a launcher has all processes on one machine, they meet at 127.0.0.1,
    unless `GALVANAX_COORDINATOR` names another address.

    Raises:
      ConfigError: variables are missing or make no sense; names them.
    """
    if environ.get(OWN[1]) == "1":  # whatever started them, these processes have nothing to do with each other
        return None
    own = [name for name in OWN if name in environ]
    found = None if len(own) == len(OWN) else _launched(environ)
    if found is None and not own:
        return None
    indices = (OWN[2], "JOB_COMPLETION_INDEX") if found is None else (OWN[2],)
    index = next((name for name in indices if name in environ), None)
    values: dict[str, Any] = {} if found is None else dataclasses.asdict(found)
    if OWN[0] in environ:
        values |= {"coordinator": environ[OWN[0]], "source": OWN[0]}
    if OWN[1] in environ:
        values["num_processes"] = _number(environ, OWN[1])
    if index is not None:
        values["process_index"] = _number(environ, index)
    lacking = [name for name, field in zip(OWN, FIELDS, strict=True) if field not in values]
    if lacking:
        raise ConfigError(
            f"{', '.join(own)} {'is' if len(own) == 1 else 'are'} set, but not {' and '.join(lacking)}: "
            "the processes cannot find each other."
        )
    return _checked(Cluster(**values))


def split_address(address: str, source: str) -> tuple[str, int]:
    """`"host:port"` to its parts; IPv6 addresses stand in brackets.

    Raises:
      ConfigError: it has no port.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"The coordinator's address (from {source}) is {address!r}: expected host:port.")
    return host, int(port)


def join_address(host: str, port: int | str) -> str:
    """What `split_address` takes apart."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def visible_gpus(environ: Mapping[str, str], present: int) -> list[str]:
    """The GPUs that a process with these variables may use, of so many that are present."""
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms and not any(name in platforms for name in ("cuda", "gpu", "rocm")):
        return []
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [str(index) for index in range(present)]
    return [name for name in chosen.split(",") if name and name != "-1"] if present else []


def _checked(cluster: Cluster) -> Cluster | None:
    host, port = split_address(cluster.coordinator, cluster.source)
    if host == "localhost":  # which may be ::1, too
        cluster = dataclasses.replace(cluster, coordinator=join_address(LOOPBACK, port))
    if not 0 <= cluster.process_index < cluster.num_processes:
        raise ConfigError(
            f"This is process {cluster.process_index} of {cluster.num_processes} (from {cluster.source}): "
            "expected a number from 0, smaller than that of all processes."
        )
    return cluster if cluster.num_processes > 1 else None


def _launched(environ: Mapping[str, str]) -> Cluster | None:
    if "OMPI_COMM_WORLD_RANK" in environ:
        return _open_mpi(environ)
    if "TORCHELASTIC_RUN_ID" in environ:
        return _ranks(environ)
    if "SLURM_PROCID" in environ and "SLURM_STEP_NODELIST" in environ:  # without the latter, no `srun` started this
        return _slurm(environ)
    return _ranks(environ) if "RANK" in environ and "WORLD_SIZE" in environ else None


def _open_mpi(environ: Mapping[str, str]) -> Cluster:
    size, local = _number(environ, "OMPI_COMM_WORLD_SIZE"), _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE")
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
    # Any port will do that all processes of the job come to by themselves.
    port = environ.get("MASTER_PORT") or str(_port(zlib.crc32((environ.get("PMIX_NAMESPACE") or uri).encode())))
    launcher = re.search(r"tcp6?://\[?([^,\]]+?)(?:[,\]]|:\d+$)", uri)
    if "MASTER_ADDR" in environ:
        host = environ["MASTER_ADDR"]
    elif size == local:
        host = LOOPBACK
    elif launcher:
        host = launcher[1]
    else:
        raise ConfigError(
            "Open MPI started these processes on several machines and doesn't say where process 0 is: "
            "mpirun -x MASTER_ADDR=HOST."
        )
    return Cluster(
        _address(environ, host, port, size, size == local),
        size, _number(environ, "OMPI_COMM_WORLD_RANK"), "OMPI_COMM_WORLD_RANK",
        _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK"), local,
    )  # fmt: skip


def _slurm(environ: Mapping[str, str]) -> Cluster:
    count = _number(environ, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS")
    step = environ.get("SLURM_STEP_ID", "0")
    port = _port(_number(environ, "SLURM_JOB_ID") + (int(step) if step.isdigit() else 0))
    tasks = _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or "")
    # The second counts the job's nodes, of which a step may have fewer.
    nodes = environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES") or str(len(tasks))
    local = None
    # Where SLURM binds GPUs to tasks, a task sees no others.
    if not any(name in environ for name in ("SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND", "SLURM_TRES_PER_TASK")):
        node = int(environ.get("SLURM_NODEID", 0))
        local = tasks[node] if node < len(tasks) else None
    host = _first_host(environ["SLURM_STEP_NODELIST"])
    return Cluster(
        _address(environ, host, port, count, nodes == "1"),
        count, _number(environ, "SLURM_PROCID"), "SLURM_STEP_NODELIST",
        None if local is None else _number(environ, "SLURM_LOCALID"), local,
    )  # fmt: skip


def _ranks(environ: Mapping[str, str]) -> Cluster:
    port = _number(environ, "MASTER_PORT")
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        port += 1  # torchrun itself listens there
    count, local = _number(environ, "WORLD_SIZE"), None
    if "LOCAL_RANK" in environ and "LOCAL_WORLD_SIZE" in environ:
        local = _number(environ, "LOCAL_WORLD_SIZE")
    if not environ.get("MASTER_ADDR"):
        raise ConfigError("RANK and WORLD_SIZE are set, but not MASTER_ADDR: the processes cannot find each other.")
    return Cluster(
        _address(environ, environ["MASTER_ADDR"], port, count, count == local),
        count, _number(environ, "RANK"), "MASTER_ADDR",
        None if local is None else _number(environ, "LOCAL_RANK"), local,
    )  # fmt: skip


def _first_host(nodes: str) -> str:
    """The first of SLURM's list of nodes, such as `gpu[003-005,9],login1`."""
    match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise ConfigError(f"SLURM_STEP_NODELIST={nodes!r}: expected names of machines.")
    return match[1] + (match[2] or "") + (match[3] or "")


def _tasks_per_node(text: str) -> list[int]:
    """SLURM's `2(x3),1` as `[2, 2, 2, 1]`."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


def _port(number: int) -> int:
    return FIRST_PORT + number % PORTS


def _address(environ: Mapping[str, str], host: str, port: int | str, count: int, one_machine: bool) -> str:
    """Process 0's, which other machines cannot reach where a launcher has all of its processes on one."""
    known = environ.get(OWN[1], str(count)) == str(count)  # else there are others than this launcher's
    return join_address(LOOPBACK if one_machine and known else host, port)


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name)
    if text is None or not text.isdigit():
        state = "is not set" if text is None else f"is {text!r}"
        raise ConfigError(f"The environment variable {name} {state}: expected a whole number.")
    return int(text)
