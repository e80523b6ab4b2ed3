"""What a person sees while a run goes on, on terminals of many widths and in logs."""

import contextlib
import io
import re
import time

import grain
import pytest
from rich.console import Console
from support import LineTask, line_data

import galvanax as gx
from galvanax.callbacks.progress_line import ProgressLine

LOSSES = {"train/loss": -9.914e-05, "val/loss": 0.0007204}
EPISODES = {"train/loss": 0.1234, "train/episode_return": 123.4, "val/episode_return": 120.1}


class Screen(io.StringIO):
    """A terminal that keeps what was on it."""

    def isatty(self):
        return True

    def rows(self):
        """Each state of the row that is kept up to date."""
        return [row for row in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())) if row]


def shown(line, width):
    """The rows that a line takes."""
    screen = Screen()
    Console(file=screen, width=width, force_terminal=True, color_system=None).print(line)
    return screen.getvalue().rstrip("\n").split("\n")


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 80 columns."""
    for name, value in {"COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    return Screen()


def fit(screen, *callbacks, data=None, **settings):
    """A run that writes to the screen."""
    with contextlib.redirect_stdout(screen):
        gx.Trainer(callbacks=list(callbacks), **settings).fit(LineTask(), data or line_data())


class Slow(gx.Callback):
    """Steps that take so many seconds."""

    def __init__(self, seconds):
        self.seconds = seconds

    def on_train_metrics(self, run, steps, metrics):
        time.sleep(self.seconds * len(steps))


@pytest.mark.parametrize("metrics", [LOSSES, EPISODES, {"train/loss": 1.0}], ids=["losses", "episodes", "loss"])
@pytest.mark.parametrize(("step", "total", "rate"), [(7, 250, 0.268), (999_999, 1_000_000, 12_345.0)])
def test_what_matters_is_there_in_80_columns(metrics, step, total, rate):
    (row,) = shown(ProgressLine(step, total, elapsed=7200.0, rate=rate, left=36_610.0, metrics=metrics), 80)
    assert len(row) <= 80
    assert f"{step}/{total}" in row
    assert "10:10:10 left" in row  # 36,610 s are 10 h, 10 min and 10 s
    assert ("0.268 steps/s" if rate < 1 else "12,345 steps/s") in row
    assert f"loss {metrics['train/loss']:.4g}" in row
    assert "…" not in row


def test_less_room_less_said():
    """What is given up, from the widest terminal to the narrowest: the loss, and then the step, stay longest."""
    line = ProgressLine(124, 248, elapsed=12.0, rate=268.2, left=61.0, metrics=LOSSES)
    marks = {"elapsed": "0:12", "bar": "━", "val": "val/loss 0.0007204", "speed": "268 steps/s", "left": "1:01 left",
             "loss": "loss -9.914e-05", "step": "124/248"}  # fmt: skip
    seen = []
    for width in range(200, 6, -1):
        (row,) = shown(line, width)
        assert len(row) <= width
        seen.append([name for name, mark in marks.items() if mark in row])
    assert seen[0] == list(marks)
    assert seen[-1] == ["step"]
    last = {name: max(index for index, names in enumerate(seen) if name in names) for name in marks}
    assert last["elapsed"] < last["val"] < last["speed"] < last["left"] < last["loss"] < last["step"]


def test_a_run_on_a_terminal(screen):
    fit(screen, gx.ProgressBar(), Slow(0.3), max_steps=8, val_every=gx.Steps(4), steps_per_dispatch=1)
    rows = screen.rows()
    assert max(map(len, rows)) <= 80
    assert not [row for row in rows if "…" in row]
    assert "compiling" in rows[0]
    running = [row for row in rows if "left" in row]
    assert len(running) >= 3
    for row in running:
        speed = float(re.search(r"([0-9.,]+) steps/s", row)[1])
        assert 1 < speed < 3.4, "0.3 s a step, and what it takes beside that"
    assert any("val/loss" in row for row in running)
    assert re.search(r"8/8  in 0:0[2-9]  [0-9.]+ steps/s  loss [0-9.e-]+ +val/loss [0-9.e-]+", rows[-1])


@pytest.mark.parametrize("on_terminal", [True, False])
def test_no_speed_before_it_is_known(screen, monkeypatch, on_terminal):
    """A first step holds the compilation; later ones take so long that less than one a second is done."""
    if not on_terminal:
        monkeypatch.setattr(Screen, "isatty", lambda self: False)
    fit(screen, gx.ProgressBar(seconds=0.0), Slow(2.2), max_steps=3, steps_per_dispatch=1)
    speeds = [re.search(r"([0-9.,]+) steps/s", row) for row in screen.rows()]
    assert speeds[0] is None
    assert speeds[-1] is not None
    assert all(0.3 < float(speed[1]) < 0.5 for speed in speeds if speed)


def test_a_log_has_whole_lines(screen, monkeypatch):
    """Where there is no terminal, nothing is cut, and nothing is written over."""
    monkeypatch.setattr(Screen, "isatty", lambda self: False)
    monkeypatch.setenv("COLUMNS", "30")
    fit(screen, gx.ProgressBar(seconds=0.0), max_steps=20, steps_per_dispatch=5)
    assert "\x1b" not in screen.getvalue()
    assert "\r" not in screen.getvalue()
    *_, running, end = screen.rows()
    assert re.fullmatch(r"step 20/20  0:00 left  [0-9.,]+ steps/s  train/loss [0-9.e-]+  val/loss [0-9.e-]+", running)
    assert re.fullmatch(r"step 20/20  in [0-9:]+  [0-9.,]+ steps/s  train/loss [0-9.e-]+  val/loss [0-9.e-]+", end)


def test_a_stream_without_an_end(screen):
    class Stream(gx.DataModule):
        def train_dataset(self, seed):
            batch = line_data().example_batch()
            return grain.MapDataset.source([batch]).repeat().to_iter_dataset()

    fit(screen, gx.ProgressBar(), data=Stream(), max_steps=12)
    assert "12/12" in screen.rows()[-1]


def test_the_metrics_that_were_asked_for(screen):
    fit(screen, gx.ProgressBar(metrics=("val/loss", "train/grad_norm")), max_steps=4)
    assert re.search(r"val/loss [0-9.e-]+ +grad_norm [0-9.e-]+", screen.rows()[-1])
    assert "  loss" not in screen.rows()[-1]


def test_a_run_that_stops_early_says_so(screen):
    class Stop(gx.Callback):
        def on_train_metrics(self, run, steps, metrics):
            run.stop("enough")

    fit(screen, gx.ProgressBar(), Stop(), max_steps=400, steps_per_dispatch=2)
    *_, last, reason = screen.rows()
    assert re.search(r"[0-9]+/400  in 0:0", last)
    assert re.fullmatch(r"stopped at step [0-9]+: enough", reason.strip())
