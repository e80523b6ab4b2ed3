"""`galvanax launch --processes N fit EXPERIMENT ...`: one run in several processes of this machine."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import IO, Any

import tyro

from galvanax.errors import ConfigError
from galvanax.trainer.cluster import LOOPBACK, OWN, join_address, split_address, visible_gpus
from galvanax.trainer.processes import TIMEOUT, present_gpus

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PREEMPTED = 75
TERMINATE, KILL = 35.0, 45.0  # seconds after the first death; a process of a broken run leaves by itself before


@dataclasses.dataclass
class LaunchCommand:
    """Run `fit EXPERIMENT ...`, or a Python script that calls gx.distributed.initialize(), in several processes.

    Attributes:
      processes: how many to start here; by default one for each GPU.
      devices_per_process: CPU devices of each process, instead of GPUs.
      coordinator: "host:port" of process 0, where other machines take part; by default this machine and a free port.
      first_index: the number of the first process here.
      total: processes on all machines; by default those here.
      timeout: seconds to wait for the others at the start.
    """

    processes: int | None = None
    devices_per_process: int | None = None
    coordinator: str | None = None
    first_index: int = 0
    total: int | None = None
    timeout: float = 300.0


@dataclasses.dataclass
class Child:
    """A process of the run."""

    index: int
    process: subprocess.Popen
    status: int | None = None

    def __str__(self) -> str:
        return f"process {self.index} (pid {self.process.pid})"

    @property
    def is_bad(self) -> bool:
        """Whether it ended, and not as it should."""
        return self.status not in (None, 0, PREEMPTED)

    @property
    def fate(self) -> str:
        """How it ended."""
        assert self.status is not None
        if self.status < 0:
            return f"{self} was killed by {signal.Signals(-self.status).name}"
        return f"{self} ended with status {self.status}"


def launch(arguments: list[str]) -> None:
    """Starts the processes, passes on their output and the signals that it gets, and ends as they do."""
    flags, command = _split(arguments)
    options = tyro.cli(LaunchCommand, args=flags, prog="galvanax launch")
    if not command:
        raise ConfigError("launch needs a command: galvanax launch --processes 2 fit pendulum.")
    environments = child_environments(options, os.environ, present_gpus())
    children: list[Child] = []
    try:
        with _forwarding(children):
            for index, environment in enumerate(environments, options.first_index):
                children.append(_start(index, _program(command), environment))
            status = _supervise(children)
    finally:
        for child in children:
            if child.process.poll() is None:
                child.process.kill()
                child.process.wait()
    if status:
        raise SystemExit(status)


def child_environments(options: LaunchCommand, environ: Mapping[str, str], present: int) -> list[dict[str, str]]:
    """The variables of each process that is to be started.

    Raises:
      ConfigError: numbers that make no sense, or fewer GPUs than processes.
    """
    gpus = [] if options.devices_per_process else visible_gpus(environ, present)
    count = options.processes or len(gpus)
    if count < 1:
        raise ConfigError("There is no GPU here: say how many --processes to start.")
    if gpus and count > len(gpus):
        raise ConfigError(
            f"--processes={count}: there are {len(gpus)} GPUs, and a process needs one. For a trial on the CPU: "
            "--devices-per-process 1."
        )
    total = options.total or count
    if not 0 <= options.first_index <= total - count:
        raise ConfigError(
            f"--first-index={options.first_index} and {count} processes do not fit in a --total of {total}."
        )
    if total > count and options.coordinator is None:
        raise ConfigError("With processes on other machines, say where process 0 is: --coordinator HOST:PORT.")
    coordinator = options.coordinator
    port = _free_port() if coordinator is None else split_address(coordinator, "--coordinator")[1]
    if coordinator is None or total == count:  # nobody comes from elsewhere
        coordinator = join_address(LOOPBACK, port)
    common = {
        **environ,
        OWN[0]: coordinator,
        OWN[1]: str(total),
        TIMEOUT: str(options.timeout),
    }
    if options.devices_per_process:
        common |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(options.devices_per_process)}
    return [
        {
            **common,
            OWN[2]: str(options.first_index + number),
            **({"CUDA_VISIBLE_DEVICES": gpus[number]} if gpus else {}),
        }
        for number in range(count)
    ]


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Launch's own flags, each with a value, and the command behind them."""
    end = 0
    while end < len(arguments) and arguments[end].startswith("-"):
        end += 1 if "=" in arguments[end] or arguments[end] in ("-h", "--help") else 2
    return arguments[:end], arguments[end:]


def _program(command: list[str]) -> list[str]:
    if command[0] == "fit":
        return [sys.executable, "-m", "galvanax.cli.main", *command]
    if command[0].endswith(".py"):
        return [sys.executable, *command]
    raise ConfigError(f"launch runs `fit EXPERIMENT` or a file.py, not {command[0]!r}.")


def _start(index: int, program: list[str], environment: dict[str, str]) -> Child:
    # Of a group of its own: a Ctrl-C comes to the launcher alone, which passes it on, once.
    quiet: dict[str, Any] = {} if index == 0 else {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(program, env=environment, stdin=subprocess.DEVNULL, process_group=0, **quiet)
    for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
        if source is not None:
            threading.Thread(target=_pass_on, args=(index, source, target), daemon=True).start()
    return Child(index, process)


def _pass_on(index: int, source: IO[bytes], target: IO[str]) -> None:
    for line in source:
        with contextlib.suppress(OSError, ValueError):
            target.write(f"[{index}] {line.decode(errors='replace').rstrip()}\n")
            target.flush()


@contextlib.contextmanager
def _forwarding(children: list[Child]) -> Iterator[None]:
    def forward(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.process.poll() is None:
                child.process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _supervise(children: list[Child]) -> int:
    """Waits for all; where one dies, the others have a while to leave. Returns the status to end with."""
    first: Child | None = None
    died = 0.0
    while any(child.status is None for child in children):
        for child in children:
            if child.status is None and (status := child.process.poll()) is not None:
                child.status = status
                if child.is_bad and first is None:
                    first, died = child, time.monotonic()
                    print(f"galvanax launch: {child.fate}; the others end, too.", file=sys.stderr, flush=True)
        if first is not None:
            _hasten(children, time.monotonic() - died)
        time.sleep(0.05)
    time.sleep(0.1)  # for the last lines of output
    if first is None:
        return PREEMPTED if any(child.status == PREEMPTED for child in children) else 0
    print(
        f"galvanax launch: all {len(children)} processes have ended, {time.monotonic() - died:.1f} s after {first}.",
        file=sys.stderr,
        flush=True,
    )
    assert first.status is not None
    return first.status if first.status > 0 else 128 - first.status


def _hasten(children: list[Child], seconds: float) -> None:
    for child in children:
        if child.status is None and seconds > TERMINATE:
            child.process.kill() if seconds > KILL else child.process.terminate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]
