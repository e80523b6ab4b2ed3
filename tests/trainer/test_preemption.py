"""SIGTERM, SIGUSR1 and Ctrl-C save at the next dispatch boundary; the run goes on later, bit for bit."""

import os
import re
import signal
import threading
import time

import pytest
from stress.child import Life
from stress.test_kill import compare, scalars
from support import NetTask, Recorder, assert_same_state, net_data
from tensorboardX.event_file_writer import EventsWriter

import galvanax as gx
from galvanax.runs.checkpoints import CheckpointFolder

STEPS = 60
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def settings(folder, *callbacks, **changes):
    # It never saves of itself before the end: what a test finds was saved for a signal.
    saving = [gx.EMA(0.9), gx.CSVLogger(), gx.TensorBoardLogger(), gx.Checkpoint(every=gx.Steps(1000))]
    return gx.Trainer(
        **{"max_steps": STEPS, "run_dir": folder, "log_every": 4, "callbacks": [*saving, *callbacks], **changes}
    )


class Send(gx.Callback):
    """Sends this process a signal, in the middle of a dispatch's bookkeeping or at a step."""

    def __init__(self, number, step, at_boundary=False):
        self.number, self.step, self.at_boundary = number, step, at_boundary

    def next_step(self, step):
        return self.step if self.at_boundary and step < self.step else None

    def on_step(self, run):
        os.kill(os.getpid(), self.number)

    def on_train_metrics(self, run, steps, metrics):
        if not self.at_boundary and self.step in steps:
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    return folder, settings(folder).fit(NetTask(), net_data())


def saved_steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.parametrize("at_boundary", [False, True])
@pytest.mark.parametrize(
    ("number", "raised"),
    [(signal.SIGTERM, gx.Preempted), (signal.SIGUSR1, gx.Preempted), (signal.SIGINT, KeyboardInterrupt)],
)
def test_saves_and_goes_on(undisturbed, tmp_path, capfd, number, raised, at_boundary):
    folder, step = tmp_path / "run", 23
    recorder = Recorder()
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(raised) as caught:
        settings(folder, Send(number, step, at_boundary), recorder).fit(NetTask(), net_data())
    assert [signal.getsignal(each) for each in SIGNALS] == before
    reached = recorder.run.step
    assert reached == step if at_boundary else step <= reached < STEPS
    assert max(recorder.train) == reached
    assert saved_steps(folder) == [reached]
    if raised is gx.Preempted:
        assert (caught.value.code, caught.value.step) == (75, reached)
    printed = "".join(capfd.readouterr())
    assert str(folder / "checkpoints" / str(reached)) in printed
    # In the same second, which must not matter to any file's name.
    result = settings(folder).fit(NetTask(), net_data(), resume="auto")
    assert_same_state(result.state, undisturbed[1].state)
    assert list(compare(folder, undisturbed[0], same_checkpoints=True)) == []


def test_a_signal_every_few_steps(undisturbed, tmp_path):
    folder = tmp_path / "run"
    for step in range(3, STEPS, 14):
        with pytest.raises(gx.Preempted):
            settings(folder, Send(signal.SIGTERM, step, at_boundary=True)).fit(NetTask(), net_data(), resume="auto")
        assert saved_steps(folder)[-1] == step
    result = settings(folder).fit(NetTask(), net_data(), resume="auto")
    assert_same_state(result.state, undisturbed[1].state)
    assert (folder / "metrics.csv").read_bytes() == (undisturbed[0] / "metrics.csv").read_bytes()
    assert scalars(folder) == scalars(undisturbed[0])


@pytest.mark.behaviour("peers 57")
@pytest.mark.parametrize("error", [None, ValueError("mine")])
def test_handlers_are_restored(tmp_path, error):
    class Look(gx.Callback):
        def on_train_metrics(self, run, steps, metrics):
            inside.update((number, signal.getsignal(number)) for number in SIGNALS)
            if error is not None:
                raise error

    def mine(number, frame):
        raise AssertionError("nobody sent a signal")

    inside: dict[int, object] = {}
    old = {number: signal.signal(number, mine) for number in SIGNALS}
    try:
        trainer = settings(tmp_path / "run", Look())
        if error is None:
            trainer.fit(NetTask(), net_data())
        else:
            with pytest.raises(ValueError, match="mine"):
                trainer.fit(NetTask(), net_data())
        after = {number: signal.getsignal(number) for number in SIGNALS}
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    assert set(after.values()) == {mine}
    assert all(handler is not mine for handler in inside.values())


@pytest.mark.behaviour("peers 139")
def test_a_handler_of_ones_own_is_called_once_it_is_saved(tmp_path):
    seen = []
    old = signal.signal(signal.SIGTERM, lambda number, frame: seen.append((number, saved_steps(tmp_path / "run"))))
    try:
        with pytest.raises(gx.Preempted):
            settings(tmp_path / "run", Send(signal.SIGTERM, 23, at_boundary=True)).fit(NetTask(), net_data())
    finally:
        signal.signal(signal.SIGTERM, old)
    assert seen == [(signal.SIGTERM, [23])]


def test_without_a_checkpoint_callback_signals_are_the_users(tmp_path):
    class Look(gx.Callback):
        def on_train_metrics(self, run, steps, metrics):
            inside.update((number, signal.getsignal(number)) for number in SIGNALS)

    inside: dict[int, object] = {}
    gx.Trainer(max_steps=5, callbacks=[Look()]).fit(NetTask(), net_data())
    assert inside == {number: signal.getsignal(number) for number in SIGNALS}


@pytest.mark.behaviour("peers 57", "reports 3")
def test_in_another_thread(undisturbed, tmp_path):
    outcome = []

    def work():
        try:
            outcome.append(settings(tmp_path / "run").fit(NetTask(), net_data()))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(outcome[0], gx.FitResult), outcome
    assert_same_state(outcome[0].state, undisturbed[1].state)
    assert saved_steps(tmp_path / "run") == [STEPS]


@pytest.mark.parametrize("told", ["stop", "continue"])
def test_says_where_only_if_it_was_saved(tmp_path, capfd, monkeypatch, told):
    def full(self, step, arrays, meta):
        raise gx.CheckpointError(f"Step {step} could not be saved to {self.path}: No space left on device")

    monkeypatch.setattr(CheckpointFolder, "save", full)
    trainer = gx.Trainer(
        max_steps=STEPS,
        run_dir=tmp_path / "run",
        callbacks=[gx.Checkpoint(every=gx.Steps(1000), on_save_error=told), Send(signal.SIGTERM, 23)],
    )
    with pytest.raises((gx.Preempted, gx.CheckpointError)):
        trainer.fit(NetTask(), net_data())
    assert saved_steps(tmp_path / "run") == []
    assert "saved to" not in "".join(capfd.readouterr()).replace("could not be saved to", "")


def test_what_was_logged_is_on_disk_before_a_save(tmp_path, monkeypatch):
    """Else a kill after the save loses rows that no resumed run writes again."""

    class Look(gx.Callback):
        def on_fit_start(self, run):
            self.logged, self.saves = 0, 0

        def on_train_log(self, run, step, metrics):
            self.logged += len(metrics)

        def on_validation_end(self, run, metrics):
            self.logged += len(metrics)

        def on_save(self, run):
            self.saves += 1
            lines = (run.run_dir / "metrics.csv").read_text().splitlines()[1:]
            assert sum(cell != "" for line in lines for cell in line.split(",")[2:]) == self.logged
            assert len(scalars(run.run_dir)) == self.logged

    def slow_write(self, event):
        time.sleep(0.005)
        return write(self, event)

    write = EventsWriter.write_event
    monkeypatch.setattr(EventsWriter, "write_event", slow_write)
    look = Look()
    saving = [gx.CSVLogger(), gx.TensorBoardLogger(), look, gx.Checkpoint(every=gx.Steps(5))]
    gx.Trainer(max_steps=30, run_dir=tmp_path / "run", log_every=4, callbacks=saving).fit(NetTask(), net_data())
    assert look.saves >= 6


# What a process does can be seen from outside alone.

FLAGS = ("--num-steps", "600", "--save-every", "100000")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with Life.begin(folder / "run", *FLAGS, log=folder / "log") as life:
        assert life.end() == 0, life.text
    return folder / "run"


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, -signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_the_process_ends_and_a_second_one_finishes(reference, tmp_path, number, status):
    folder = tmp_path / "run"
    with Life.begin(folder, *FLAGS, "--pause", "0.02", log=tmp_path / "first.log") as life:
        life.wait_for("validation")
        assert life.end(number, seconds=30) == status, life.text
    stopped = next(int(line.split()[1]) for line in life.said if line.startswith("stopped"))
    assert 35 <= stopped < 600
    assert saved_steps(folder)[-1] == stopped
    assert re.search(re.escape(str(folder / "checkpoints" / str(stopped))), life.text), life.text
    assert ("KeyboardInterrupt" in life.text) == (number == signal.SIGINT)
    with Life.begin(folder, *FLAGS, log=tmp_path / "second.log") as life:
        assert life.end() == 0, life.text
    assert list(compare(folder, reference, same_checkpoints=False)) == []


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    with Life.begin(tmp_path / "run", *FLAGS, "--hang", "600", log=tmp_path / "log") as life:
        life.wait_for("steps")
        life.process.send_signal(signal.SIGINT)
        life.wait_for("Ctrl-C")
        assert life.process.poll() is None
        assert life.end(signal.SIGINT, seconds=60) == -signal.SIGINT, life.text
    assert "KeyboardInterrupt" in life.text
