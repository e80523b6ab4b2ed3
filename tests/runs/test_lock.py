"""One writer a folder."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import filelock
import pytest
from stress.child import Life
from support import LineTask, line_data

import galvanax as gx
from galvanax.runs.lock import LOCK, hold

HOLDER = """
import sys, time
from galvanax.runs.lock import hold

with hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def fit(folder, *callbacks, steps=8, **arguments):
    return gx.Trainer(max_steps=steps, run_dir=folder, callbacks=callbacks).fit(LineTask(), line_data(), **arguments)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `tmp_path / "run"`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_at_once_who_trains(tmp_path, holder):
    began = time.monotonic()
    who = rf"run is in use: process {holder.pid} on {socket.gethostname()}, since"
    for resume in (None, "auto"):
        with pytest.raises(gx.RunDirError, match=who):
            fit(tmp_path / "run", resume=resume)
    with pytest.raises(gx.RunDirError, match="is in use"):
        gx.Trainer(max_steps=8, run_dir=tmp_path / "run", overwrite=True).fit(LineTask(), line_data())
    assert time.monotonic() - began < 5
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == holder.pid
    assert int(fit(tmp_path / "run").state.step) == 8
    assert not (tmp_path / "run" / LOCK).exists()


def test_two_threads_of_one_process(tmp_path):
    """Not the process is what holds it, but the run."""
    inside, outcomes = threading.Event(), []

    class Wait(gx.Callback):
        def on_fit_start(self, run):
            outcomes.append(holder_of(tmp_path / "run"))
            inside.set()
            second.join()

    def work():
        inside.wait()
        try:
            outcomes.append(fit(tmp_path / "run", resume="auto"))
        except gx.RunDirError as error:
            outcomes.append(str(error))

    second = threading.Thread(target=work)
    second.start()
    fit(tmp_path / "run", Wait())
    assert outcomes[0] == os.getpid()
    assert "is in use" in outcomes[1]


def holder_of(folder):
    return json.loads((folder / LOCK).read_text())["pid"]


def test_another_fit_after_an_error(tmp_path):
    class Fails(gx.Callback):
        def on_train_log(self, run, step, metrics):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fit(tmp_path / "run", Fails())
    assert int(fit(tmp_path / "run", resume="last", steps=9).state.step) == 9


def test_a_start_that_fails_leaves_no_trace(tmp_path):
    folder = tmp_path / "new" / "deep" / "run"
    with pytest.raises(gx.ConfigError, match="no metric of this run"):
        fit(folder, gx.EarlyStopping("loss", "min"))
    assert list(tmp_path.iterdir()) == []
    kept = tmp_path / "mine"
    kept.mkdir()
    (kept / "notes.txt").write_text("mine")
    with pytest.raises(gx.ConfigError, match="no metric of this run"):
        fit(kept, gx.EarlyStopping("loss", "min"))
    assert [path.name for path in kept.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(gx.RunDirError, match="file/run can't be written to: Not a directory"):
        fit(tmp_path / "file" / "run")


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    """It is said, and the run goes on."""

    def fail(self, *arguments, **options):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    with hold(tmp_path / "run"):
        pass
    assert "run can't be locked ([Errno 95] Operation not supported): see to it" in caplog.text


def test_the_lock_is_held_while_an_exception_is_saved(tmp_path):
    class Look(gx.Callback):
        def on_train_log(self, run, step, metrics):
            raise ValueError("mine")

        def on_exception(self, run, error):
            assert holder_of(tmp_path / "run") == os.getpid()
            held.append(True)

    held = []
    with pytest.raises(ValueError, match="mine"):
        fit(tmp_path / "run", Look())
    assert held == [True]


def test_a_run_in_progress_is_not_disturbed(tmp_path):
    """A second start on a running run's folder is refused, and leaves it to its work."""
    flags = ("--num-steps", "5000", "--save-every", "10")
    with Life.begin(tmp_path / "run", *flags, "--pause", "0.02", log=tmp_path / "first.log") as life:
        life.wait_for("validation")
        with Life.begin(tmp_path / "run", *flags, log=tmp_path / "second.log") as other:
            assert other.end() == 1
        assert f"process {life.process.pid} on" in other.text
        assert life.end(signal.SIGTERM) == 75, life.text
