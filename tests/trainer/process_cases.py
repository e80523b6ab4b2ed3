"""What processes of a run do in tests, and how a test starts them.

`Nursery` keeps one Python process that has imported everything and forks the others, since an import takes ten times
as long as what most of them do. Nothing of jax runs before the fork.
"""

import contextlib
import dataclasses
import json
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))  # for the children


@dataclasses.dataclass
class Group:
    """Processes of one run, as a test sees them.

    Attributes:
      pids: of them, by their index.
      logs: the files of their standard output and error.
      statuses: how each ended: its exit status, or minus the number of the signal that killed it.
      ended: when, by `time.monotonic`.
    """

    nursery: "Nursery"
    pids: list[int]
    logs: list[Path]
    statuses: dict[int, int] = dataclasses.field(default_factory=dict)
    ended: dict[int, float] = dataclasses.field(default_factory=dict)

    def wait(self, seconds: float = 400.0) -> list[int]:
        """How each ended; kills and fails where they haven't in so many seconds."""
        deadline = time.monotonic() + seconds
        while len(self.statuses) < len(self.pids):
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"no end after {seconds} s: {self.statuses}\n{self.text}")
            self.nursery.listen(self)
        return [self.statuses[index] for index in range(len(self.pids))]

    def wait_for(self, text: str, seconds: float = 400.0) -> None:
        """Returns once each has printed this; fails where one ends before."""
        deadline = time.monotonic() + seconds
        while not all(text in log.read_text(errors="replace") for log in self.logs):
            self.nursery.listen(self, 0.02)
            if self.statuses or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"one of them did not say {text!r}: {self.statuses}\n{self.text}")

    def kill(self) -> None:
        """Kills those that still run."""
        for index, pid in enumerate(self.pids):
            if index not in self.statuses:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @property
    def text(self) -> str:
        """What all have printed."""
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')}" for log in self.logs)


class Nursery:
    """Where processes come from.

    Args:
      folder: where their output goes.
    """

    def __init__(self, folder: Path):
        self.folder, self._groups = folder, {}
        path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=lambda: [self._news.put(line) for line in self._process.stdout], daemon=True).start()

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *_: object) -> None:
        for group in self._groups.values():
            group.kill()
        self._process.stdin.close()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()

    def start(self, count: int, scenario: str, devices: int = 1, timeout: float = 200, **arguments: Any) -> Group:
        """Starts so many processes that call a scenario together.

        Args:
          count: of processes.
          scenario: a function of this file, which gets the arguments and, as `folder`, the nursery's.
          devices: CPU devices of each.
          timeout: seconds to wait for each other.
          arguments: JSON data.
        """
        name = f"{len(self._groups)}-{scenario}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        common = {
            "GALVANAX_COORDINATOR": address,
            "GALVANAX_NUM_PROCESSES": str(count),
            "GALVANAX_TIMEOUT": str(timeout),
            "JAX_NUM_CPU_DEVICES": str(devices),
        }
        logs = [self.folder / f"{name}.{index}.log" for index in range(count)]
        order = {
            "name": name,
            "scenario": scenario,
            "arguments": {"folder": str(self.folder), **arguments},
            "environments": [{**common, "GALVANAX_PROCESS_INDEX": str(index)} for index in range(count)],
            "logs": [str(log) for log in logs],
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        group = self._groups[name] = Group(self, [], logs)
        deadline = time.monotonic() + 600
        while not group.pids:
            assert time.monotonic() < deadline, "the nursery has not forked"
            self.listen(group)
        return group

    def listen(self, group: Group, seconds: float = 0.2) -> None:
        """Hears what has happened to its children, for a while at most."""
        try:
            news = json.loads(self._news.get(timeout=seconds))
        except queue.Empty:
            assert self._process.poll() is None, "the nursery has ended"
            return
        of = self._groups[news["name"]]
        if "pids" in news:
            of.pids = news["pids"]
        else:
            of.statuses[news["index"]], of.ended[news["index"]] = news["status"], time.monotonic()


def nurse() -> Any:
    """Forks on order, until its input ends. Returns, in a child, what that is to do."""
    import jax  # noqa: F401
    from orbax.checkpoint import v1  # noqa: F401

    import galvanax  # noqa: F401

    running: dict[int, tuple[str, int]] = {}
    while True:
        ready = select.select([sys.stdin], [], [], 0.02)[0]
        if ready:
            line = sys.stdin.readline()
            if not line:
                return None
            order = json.loads(line)
            pids = []
            for index, environment in enumerate(order["environments"]):
                pid = os.fork()
                if pid == 0:
                    log = os.open(order["logs"][index], os.O_WRONLY | os.O_CREAT)
                    null = os.open(os.devnull, os.O_RDONLY)
                    for source, target in ((null, 0), (log, 1), (log, 2)):
                        os.dup2(source, target)
                    return order["scenario"], order["arguments"], environment
                running[pid] = (order["name"], index)
                pids.append(pid)
            print(json.dumps({"name": order["name"], "pids": pids}), flush=True)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            name, index = running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            print(json.dumps({"name": name, "index": index, "status": code}), flush=True)


# From here on, what the children do.

STEPS = 44  # of a whole run; an epoch has 10
EXACT = ("rows", "order", "squares", "noise_max", "noise_min", "noise_first")


def rows_task(**settings: Any) -> Any:
    """NetTask, with dropout and batch statistics, that also says which rows it saw and with which noise, exactly."""
    import optax
    from support import NetTask, fingerprints

    @dataclasses.dataclass(frozen=True)
    class RowsTask(NetTask):
        def build_optimizer(self, num_steps):
            # The same, whenever the run is meant to end. Batch normalisation makes a bias idle, whose gradient is
            # nothing but rounding: a large epsilon keeps Adam from turning it into full steps.
            return optax.adamw(self.learning_rate, eps=1e-3)

        def loss(self, model, batch, rng):
            loss, metrics = super().loss(model, batch, rng)
            return loss, {**metrics, **fingerprints(batch, rng)}

    return RowsTask(**settings)


def rows_data(batch_size: int = 32) -> Any:
    """NetTask's data with the number of each row; 50 for validation and test, which 4 does not divide."""
    import numpy as np
    from support import net_data

    data = net_data(batch_size=batch_size)
    for split in (data.train, data.val, data.test):
        split["row"] = np.arange(len(split["x"]), dtype=np.int32)
    return data


def keeper(until: int | None = None) -> Any:
    """A callback that keeps the metrics of every step; at one step the last process, and no other, gets a SIGTERM."""
    import galvanax as gx

    class Keeper(gx.Callback):
        def __init__(self):
            self.train, self.val = {}, {}

        def next_step(self, step):
            return until if until is not None and step < until < STEPS else None

        def on_step(self, run):
            if gx.distributed.index() == gx.distributed.count() - 1:
                os.kill(os.getpid(), signal.SIGTERM)

        def on_train_metrics(self, run, steps, metrics):
            for index, step in enumerate(steps):
                self.train[step] = {name: float(rows[index]) for name, rows in metrics.items()}

        def on_validation_end(self, run, metrics):
            self.val[run.step] = metrics

    return Keeper()


def trainer(run_dir: Path, *callbacks: Any, every: int = 1000, **changes: Any) -> Any:
    """With one of each kind of callback; saves when it is told to go, and every so many steps."""
    import galvanax as gx

    all_callbacks = [
        gx.GradientClipping(1.0),
        gx.EMA(0.9),
        gx.EarlyStopping("val/loss", mode="min", patience=1000),
        gx.CSVLogger(),
        gx.TensorBoardLogger(),
        gx.Checkpoint(every=gx.Steps(every)),
        *callbacks,
    ]
    return gx.Trainer(run_dir=run_dir, **{"max_steps": STEPS, "log_every": 4, "callbacks": all_callbacks, **changes})


def write(folder: str, name: str, content: Any) -> None:
    """Writes what this process found."""
    import galvanax as gx

    (Path(folder) / f"{name}.{gx.distributed.count()}.{gx.distributed.index()}.json").write_text(json.dumps(content))


def error_of(function: Any) -> list[str] | None:
    """Type and text of what it raises."""
    try:
        function()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


def part(folder: str, name: str, until: int, **changes: Any) -> Any:
    """Trains on to a step, where it leaves a checkpoint; returns the result at the end."""
    import galvanax as gx

    keep, result, ended = keeper(until), None, "end"
    try:
        fitting = trainer(Path(folder) / name, keep, steps_per_dispatch=4, **changes)
        result = fitting.fit(rows_task(), rows_data(), resume="auto")
    except gx.Preempted as error:
        ended = f"status {error.code} at step {error.step}"
    write(folder, f"{name}-{until}", {"train": keep.train, "val": keep.val, "ended": ended})
    return result


def four(folder: str) -> None:
    """Parameters split over processes; evaluation; everything that must be refused; then a run until it is killed."""
    import galvanax as gx

    gx.distributed.initialize()
    gx.distributed.initialize()  # the second time, nothing
    part(folder, "sharded", 21, strategy=gx.FSDP(min_size=8))
    evaluate(folder)
    refused(folder)
    endless(folder)


def resume(folder: str, until: int, evaluated: bool = False) -> None:
    """Runs of other processes go on here."""
    import galvanax as gx

    gx.distributed.initialize()
    for name in ("sharded", "killed"):
        part(folder, name, until)
    if evaluated:
        part(folder, "whole", until)
        evaluate(folder)


def evaluate(folder: str) -> None:
    """Test metrics and predictions with weights that depend on nothing."""
    from flax import nnx

    import galvanax as gx

    model, data = rows_task().build_model(nnx.Rngs(0)), rows_data()
    measuring = gx.Trainer(max_steps=1)
    tested = measuring.test(rows_task(), data, model=model)
    predicted = measuring.predict(rows_task(), data, model=model)["y"]
    write(folder, "evaluated", {"test": tested, "predicted": predicted.tolist()})


def refused(folder: str) -> None:
    """What ends before training, or in one process alone; and that another run can follow."""
    from support import LineTask, line_data

    import galvanax as gx

    @dataclasses.dataclass
    class Broken(gx.ArrayDataModule):
        """Can't be set up in one process."""

        process: int = 0
        error: type = gx.DataError

        def setup(self):
            if gx.distributed.index() == self.process:
                time.sleep(0.3)
                raise self.error("no such file")
            super().setup()

    heard = []

    class Raises(gx.Callback):
        def on_train_metrics(self, run, steps, metrics):
            if gx.distributed.index() == 1:
                raise ValueError("mine")
            time.sleep(5.0)  # until it is known
            raise RuntimeError("a collective operation is broken")

        def on_exception(self, run, error):
            heard.append([type(error).__name__, str(error)])

    task, data, line, lines = rows_task(), rows_data(), LineTask(), line_data()
    other = rows_task(noise=0.5 if gx.distributed.index() == 3 else 0.01)
    found = {
        "odd": error_of(lambda: gx.Trainer(max_steps=1).fit(task, rows_data(batch_size=30))),
        "few": error_of(lambda: gx.Trainer(max_steps=1).fit(task, rows_data(batch_size=2))),
        "devices": error_of(lambda: gx.Trainer(max_steps=1, devices=2).fit(task, data)),
        "machines": error_of(lambda: gx.Trainer(max_steps=1, num_nodes=2).fit(task, data)),
        "settings": error_of(lambda: trainer(Path(folder) / "refused").fit(other, data)),
        "setup": error_of(lambda: gx.Trainer(max_steps=1).fit(line, Broken(lines.train, batch_size=4))),
        "one": error_of(
            lambda: gx.Trainer(max_steps=1).fit(line, Broken(lines.train, batch_size=4, process=2, error=ValueError))
        ),
        "taken": error_of(lambda: trainer(Path(folder) / "sharded").fit(task, data)),
        "mine": error_of(lambda: gx.Trainer(max_steps=10**5, callbacks=[Raises()]).fit(line, lines)),
        "heard": heard,
        "none": error_of(lambda: gx.Trainer(max_steps=2).fit(line, lines)),
        "folder": (Path(folder) / "refused").exists(),
    }
    write(folder, "refused", found)


def endless(folder: str, name: str = "killed") -> None:
    """Trains until it is killed, or a peer is."""
    import galvanax as gx

    keep = keeper()

    class Say(gx.Callback):
        def on_save(self, run):
            write(folder, f"{name}-0", {"train": keep.train, "val": keep.val})
            print(f"saves {run.step}", flush=True)

    callbacks = [keep, Say()]
    fitting = trainer(Path(folder) / name, *callbacks, every=7, max_steps=10**6, val_every=gx.Steps(10))
    fitting.fit(rows_task(), rows_data())


def lines(folder: str) -> None:
    """Trains something small until it is killed, or a peer is."""
    from support import LineTask, line_data

    import galvanax as gx

    class Say(gx.Callback):
        def on_train_metrics(self, run, steps, metrics):
            print("steps", flush=True)

    gx.distributed.initialize()
    gx.Trainer(max_steps=10**7, callbacks=[Say()], val_every=gx.Steps(10**6)).fit(LineTask(), line_data(batch_size=12))


def shipped(folder: str, names: list[str]) -> None:
    """Kinds of task that come with the package, for a few steps."""
    sys.path[:0] = [str(TESTS / "trainer"), str(TESTS / "tasks")]
    from device_cases import cases
    from test_ppo import Point, data_of, small

    import galvanax as gx

    class Keep(gx.Callback):
        def __init__(self):
            self.metrics = {}

        def on_train_metrics(self, run, steps, metrics):
            for index, step in enumerate(steps):
                self.metrics[step] = {name: float(rows[index]) for name, rows in metrics.items()}

    gx.distributed.initialize()
    tasks = gx.distributed.main_first("data", lambda: cases(Path(folder)))
    tasks["ppo"] = (small(learning_rate_schedule="adaptive", memory_size=4), data_of(Point()))
    for name in names:
        (task, data), keep = tasks[name], Keep()
        settings = {"callbacks": [gx.GradientClipping(1.0), gx.EMA(0.9), keep], "limit_val_batches": 2}
        result = gx.Trainer(max_steps=6, **settings).fit(task, data)
        write(folder, name, {"steps": keep.metrics, "end": result.metrics})


def leave(error: BaseException | None) -> None:
    """What the interpreter does at the end of a process, as far as it concerns a run.

    Threads that libraries had begun before the fork are not here, and some wait for them when they are ended.
    """
    from jax._src.api import clean_up

    from galvanax.trainer import processes

    if error is not None:
        traceback.print_exception(error)
        sys.last_value = error
    if processes.count() > 1:
        processes._at_exit()
    clean_up()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if error is None else 1)


if __name__ == "__main__":
    ordered = nurse()
    if ordered is not None:
        scenario, arguments, environment = ordered
        os.environ.update(environment)
        failure: BaseException | None = None
        try:
            globals()[scenario](**arguments)
        except BaseException as error:
            failure = error
        leave(failure)
