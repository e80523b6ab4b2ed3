"""`galvanax launch`: several processes of this machine as one command."""

import json
import os
import re
import signal
import threading
import time

import pytest

import galvanax as gx
from galvanax.cli.launch import LaunchCommand, child_environments, launch
from galvanax.cli.main import main

EXPERIMENT = """
import dataclasses
import numpy as np
import galvanax as gx
from support import LineTask


@dataclasses.dataclass
class Lines(gx.ArrayDataModule):
    train: object = None
    rows: int = 64

    def setup(self):
        x = np.linspace(-1, 1, self.rows, dtype=np.float32)[:, None]
        self.train = self.val = self.test = {"x": x, "y": 3 * x}
        super().setup()


experiment = gx.Experiment(
    LineTask(), Lines(batch_size=8), gx.Trainer(max_steps=12),
    {"checkpoint": gx.Checkpoint(), "csv": gx.CSVLogger(), "progress": gx.ProgressBar()},
)
"""


def environments(environ=None, present=0, **options):
    """The variables that launch adds or changes, by process."""
    before = {"HOME": "/home/me", **(environ or {})}
    found = child_environments(LaunchCommand(**options), before, present)
    assert all(variables["HOME"] == "/home/me" for variables in found)
    return [{name: value for name, value in each.items() if before.get(name) != value} for each in found]


def test_one_process_for_each_gpu():
    found = environments({"CUDA_VISIBLE_DEVICES": "2,5,7"}, present=8)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["2", "5", "7"]
    assert [each["GALVANAX_PROCESS_INDEX"] for each in found] == ["0", "1", "2"]
    assert {each["GALVANAX_NUM_PROCESSES"] for each in found} == {"3"}
    assert len({each["GALVANAX_COORDINATOR"] for each in found}) == 1
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments(present=4, processes=2)] == ["0", "1"]


def test_processes_of_a_cpu():
    found = environments(present=0, processes=2)
    assert not any("CUDA_VISIBLE_DEVICES" in each for each in found)
    found = environments(present=8, processes=2, devices_per_process=3)
    assert not any("CUDA_VISIBLE_DEVICES" in each for each in found)
    assert {(each["JAX_PLATFORMS"], each["JAX_NUM_CPU_DEVICES"]) for each in found} == {("cpu", "3")}


def test_several_machines():
    found = environments(processes=2, coordinator="node-0:7000", first_index=2, total=4, timeout=9)
    assert [each["GALVANAX_PROCESS_INDEX"] for each in found] == ["2", "3"]
    assert {each["GALVANAX_NUM_PROCESSES"] for each in found} == {"4"}
    assert {each["GALVANAX_COORDINATOR"] for each in found} == {"node-0:7000"}
    assert {each["GALVANAX_TIMEOUT"] for each in found} == {"9"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "no GPU here: say how many --processes"),
        ({"present": 2, "processes": 3}, "--processes=3: there are 2 GPUs"),
        ({"processes": 2, "total": 4}, "--coordinator HOST:PORT"),
        ({"processes": 2, "total": 4, "first_index": 3, "coordinator": "h:1"}, "--first-index=3 and 2 processes"),
        ({"processes": 2, "coordinator": "node-0"}, "'node-0': expected host:port"),
    ],
)
def test_numbers_that_make_no_sense(options, says):
    with pytest.raises(gx.ConfigError) as caught:
        environments(**options)
    assert says in str(caught.value)


@pytest.mark.parametrize("arguments", [["--processes", "2"], ["--processes", "2", "evaluate", "x"]])
def test_a_command_that_it_cannot_run(arguments):
    with pytest.raises(gx.ConfigError, match="launch"):
        launch(arguments)


# Children that take no time to start.


@pytest.fixture
def run(tmp_path, capfd):
    """Launches processes that run a piece of Python with `index`; returns status, output and errors."""

    def run(code: str, count: int = 3):
        path = tmp_path / "child.py"
        lines = ["import os, signal, sys, time", "index = int(os.environ['GALVANAX_PROCESS_INDEX'])", code]
        path.write_text("\n".join(lines))
        status = 0
        try:
            launch(["--processes", str(count), "--devices-per-process", "1", str(path), "--flag", "7"])
        except SystemExit as error:
            status = error.code
        return status, *capfd.readouterr()

    return run


def test_passes_on_output_and_flags(run):
    status, out, err = run("os.write(1, b'I am %d %a\\n' % (index, sys.argv[1:])); os.write(2, b'oh %d\\n' % index)")
    assert status == 0
    assert sorted(out.splitlines()) == [
        "I am 0 ['--flag', '7']", "[1] I am 1 ['--flag', '7']", "[2] I am 2 ['--flag', '7']"
    ]  # fmt: skip
    assert sorted(err.splitlines()) == ["[1] oh 1", "[2] oh 2", "oh 0"]


def test_names_the_first_that_dies(run):
    begin = time.monotonic()
    status, _, err = run(
        "time.sleep(0.3)\nif index == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(2); sys.exit(1)"
    )
    assert status == 128 + signal.SIGKILL
    first, last = (line for line in err.splitlines() if line.startswith("galvanax launch"))
    assert re.search(r"process 1 \(pid \d+\) was killed by SIGKILL; the others end", first)
    assert re.search(r"all 3 processes have ended, \d\.\d s after process 1", last)
    assert time.monotonic() - begin < 20


def test_ends_those_that_do_not_end_by_themselves(run, monkeypatch):
    monkeypatch.setattr("galvanax.cli.launch.TERMINATE", 0.5)
    monkeypatch.setattr("galvanax.cli.launch.KILL", 1.0)
    begin = time.monotonic()
    # One heeds a SIGTERM, one doesn't.
    status, _, err = run(
        "if index == 0: sys.exit(3)\nif index == 1: signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    )
    assert status == 3
    assert "process 0" in err
    assert "ended with status 3" in err
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_passes_on_signals(run, tmp_path, number, status):
    def send():
        while len(list(tmp_path.glob("ready-*"))) < 3:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    handled = f"signal.signal({int(number)}, lambda *_: (os.write(1, b'told\\n'), sys.exit({status})))"
    ready = f"open(os.path.join({str(tmp_path)!r}, f'ready-{{index}}'), 'w').close()"
    ended, out, _ = run(f"{handled}\n{ready}\ntime.sleep(60)")
    assert ended == status
    assert sorted(out.splitlines()) == ["[1] told", "[2] told", "told"]


# The whole way.


def test_fits_and_evaluates(tmp_path, capfd, monkeypatch):
    tests = os.path.dirname(os.path.dirname(__file__))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(tests), tests, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    (tmp_path / "lines.py").write_text(EXPERIMENT)
    command = ["fit", f"{tmp_path / 'lines.py'}:experiment", "--trainer.run-dir", str(tmp_path / "run")]
    main(["launch", "--processes", "2", "--devices-per-process", "2", *command])
    out, err = capfd.readouterr()
    assert "step 12/12" in out, out + err
    assert "[1] step" not in out  # process 0 alone says where it is
    evaluation = json.loads((tmp_path / "run" / "evaluations" / "12" / "test.json").read_text())
    assert evaluation["step"] == 12
    assert evaluation["test/loss"] > 0
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") > 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["trainer"]["max_steps"] == 12
