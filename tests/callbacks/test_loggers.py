"""Logs are worth less than weights: what can't be read or written ends no run, and what waited is written later."""

import contextlib
import csv
import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from stress.test_kill import scalars
from support import LineTask, arrays_of, assert_same_state, line_data
from tensorboardX.record_writer import masked_crc32c

import galvanax as gx
from galvanax.callbacks import log_file, video_recorder
from galvanax.physics import load_model

STEPS, CRASH, SAVED = 40, 21, 16
FULL, ROOM = 11, 29


class At(gx.Callback):
    """Does something at a step, once; `due` at any dispatch would do it at no step in particular."""

    def __init__(self, *actions):
        self.actions = dict(actions)

    def next_step(self, step):
        return min((at for at in self.actions if at > step), default=None)

    def on_step(self, run):
        self.actions.pop(run.step)(run)


def crash(run):
    raise KeyboardInterrupt


def fit(folder, *callbacks, resume=None, saving=None, data=None, **settings):
    """40 steps, 8 an epoch; rows at each 5th, and validations at each 8th step."""
    saving = saving or gx.Checkpoint(every=gx.Steps(8), keep_last=None)
    trainer = gx.Trainer(
        **{"max_steps": STEPS, "run_dir": folder, "log_every": 5, "val_every": gx.Steps(8), **settings},
        callbacks=[gx.CSVLogger(), gx.TensorBoardLogger(), *callbacks, saving],
    )
    return trainer.fit(LineTask(), data or line_data(), resume=resume)


def table(folder):
    return (folder / "metrics.csv").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, fit(folder)


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "crashed"
    with pytest.raises(KeyboardInterrupt):
        fit(folder, At((CRASH, crash)))
    assert max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()) == SAVED
    return folder


@pytest.fixture
def broken(crashed, tmp_path):
    """A run that was killed: a copy, to be damaged."""
    subprocess.run(["cp", "-a", crashed, tmp_path / "run"], check=True)
    return tmp_path / "run"


@pytest.fixture
def warnings(caplog):
    """Those of this library, but not that a resumed run has other callbacks."""
    caplog.set_level(logging.WARNING, "galvanax")

    def texts():
        found = [record.getMessage() for record in caplog.records if record.name == "galvanax"]
        return [text for text in found if not text.startswith("resumed with")]

    return texts


def assert_undisturbed(folder, whole):
    assert table(folder) == table(whole[0])
    assert scalars(folder) == scalars(whole[0])


def replaced(content):
    def damage(path):
        path.write_bytes(content)

    return damage


def added(content):
    return lambda path: path.write_bytes(path.read_bytes() + content)


def as_folder(path):
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("mine")


def as_link(target):
    def damage(path):
        path.unlink()
        path.symlink_to(target)

    return damage


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def unreadable(path):
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads everything")


def bytes_of(path):
    """What is there, whatever it is."""
    if path.is_symlink():
        return os.readlink(path)
    if path.is_dir():
        return [(inner.name, inner.read_bytes()) for inner in path.iterdir()]
    return path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else path.stat().st_mode


NOT_A_TABLE = {
    "empty": (replaced(b""), "no header|expected a header"),
    "no text": (replaced(b"\x00\xff\x00"), "expected a header"),
    "lines of no text": (replaced(b"step\n\x00\xff\x00\n"), "line 2 holds bytes that are no text"),
    "NUL in a row": (added(b"18,2.25\x00,,,\n"), "bytes that are no text"),
    "no header": (lambda path: path.write_bytes(path.read_bytes().split(b"\n", 1)[1]), "expected a header"),
    "too many cells": (added(b"18,2.25,1,2,3,4,5,6\n"), "has 8 cells; expected 5"),
    "too few cells": (added(b"18,2.25\n"), "has 2 cells; expected 5"),
    "a step that is none": (added("²,2.25,,,\n".encode()), "has step '²'; expected a number"),
    "huge step": (added(b"9" * 5000 + b",2.25,,,\n"), "expected a number"),
    "huge field": (added(b'18,"' + b"x" * 200_000 + b'",,,\n'), "field larger than field limit"),
    "huge line": (added(b"x" * 3_000_000), "longer than"),
    "open quote": (added(b'18,"2.25,,,\n'), "unexpected end of data"),
    "one column twice": (replaced(b"step,epoch,train/loss,train/loss\n5,0.625,1,2\n"), "several columns 'train/loss'"),
    "a folder": (as_folder, "Is a directory"),
    "a link": (as_link("/dev/zero"), "is a link"),
    "a link to nothing": (as_link("/nowhere"), "is a link"),
    "a pipe": (as_pipe, "no plain file"),
    "unreadable": (unreadable, "Permission denied"),
}


@pytest.mark.parametrize("kind", NOT_A_TABLE)
def test_a_damaged_table_is_set_aside(broken, whole, warnings, kind):
    damage, reason = NOT_A_TABLE[kind]
    path, aside = broken / "metrics.csv", broken / "damaged" / "metrics.csv"
    damage(path)
    before = bytes_of(path)
    result = fit(broken, resume="last")
    assert_same_state(result.state, whole[1].state)
    assert bytes_of(aside) == before
    (text,) = warnings()
    assert re.search(rf"{path} can't be read: .*({reason}).* kept as {aside}\.", text), text
    header, *rows = table(whole[0]).splitlines()
    assert table(broken).splitlines() == [header, *(row for row in rows if int(row.split(b",")[0]) > SAVED)]
    assert scalars(broken) == scalars(whole[0])


@pytest.mark.parametrize("tail", [b"", b"20", b"20,2.5,0.0", bytes(5000)], ids=["nothing", "step", "cells", "zeros"])
def test_a_last_line_cut_short_is_no_damage(broken, whole, warnings, tail):
    """By a kill, or by a power cut, which leaves zeros."""
    added(tail)(broken / "metrics.csv")
    fit(broken, resume="last")
    assert_undisturbed(broken, whole)
    assert not (broken / "damaged").exists()
    assert warnings() == []


def framed(data):
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # of a value
    path.write_bytes(data)


NO_EVENTS = {
    "garbage": (replaced(bytes(range(256)) * 4), "at byte 0 has no length that fits its checksum"),
    "garbage behind": (added(b"garbage" * 10), "no length that fits"),
    "an absurd length": (added(b"\xff" * 8 + bytes(100)), "no length that fits"),
    "one bit": (flipped, "doesn't fit its checksum"),
    "no event": (added(framed(b"\xff\xff\xff")), "is no event"),
    "a folder": (as_folder, "Is a directory"),
    "a link": (as_link("/dev/zero"), "is a link"),
    "a pipe": (as_pipe, "no plain file"),
    "unreadable": (unreadable, "Permission denied"),
}


@pytest.mark.parametrize("kind", NO_EVENTS)
def test_a_damaged_event_file_is_set_aside(broken, whole, warnings, kind):
    damage, reason = NO_EVENTS[kind]
    (path,) = (broken / "tensorboard").iterdir()
    aside = broken / "damaged" / path.name
    damage(path)
    before = bytes_of(path)
    result = fit(broken, resume="last")
    assert_same_state(result.state, whole[1].state)
    assert bytes_of(aside) == before
    (text,) = warnings()
    assert re.search(rf"{path} can't be read: .*({reason}).* kept as {aside}\.", text), text
    assert scalars(broken) == [row for row in scalars(whole[0]) if row[0] > SAVED]
    assert table(broken) == table(whole[0])


@pytest.mark.parametrize("how", ["a file", "a link"])
def test_no_folder_for_events(broken, whole, warnings, how):
    path = broken / "tensorboard"
    path.rename(broken / "elsewhere")
    path.write_text("mine") if how == "a file" else path.symlink_to(broken / "elsewhere")
    result = fit(broken, resume="last")
    assert_same_state(result.state, whole[1].state)
    aside = broken / "damaged" / "tensorboard"
    assert aside.read_text() == "mine" if how == "a file" else aside.is_symlink()
    (text,) = warnings()
    assert f"{path} can't be read" in text
    assert f"kept as {aside}." in text
    assert scalars(broken) == [row for row in scalars(whole[0]) if row[0] > SAVED]


@pytest.mark.parametrize("tail", [b"", b"\x18\x00", framed(b"x" * 50)[:40], bytes(5000)])
def test_a_last_event_cut_short_is_no_damage(broken, whole, warnings, tail):
    (path,) = (broken / "tensorboard").iterdir()
    added(tail)(path)
    fit(broken, resume="last")
    assert_undisturbed(broken, whole)
    assert warnings() == []


def test_what_cannot_be_set_aside_stays_and_rows_wait(broken, whole, warnings):
    """`damaged` is a file: nothing can be moved there, and nothing is overwritten."""
    (broken / "damaged").write_text("mine")
    (broken / "metrics.csv").write_bytes(b"precious")
    result = fit(broken, resume="last")
    assert_same_state(result.state, whole[1].state)
    assert table(broken) == b"precious"
    first, last = warnings()
    assert (
        f"{broken / 'metrics.csv'} can't be written: damaged is no folder, but a link or a file. The run goes on"
        in first
    )
    assert f"{broken / 'metrics.csv'} lacks 8 rows" in last
    assert scalars(broken) == scalars(whole[0])


def test_a_validation_that_is_done_again_is_logged_once(whole, tmp_path):
    """The checkpoint is of a step whose validation failed; the second life did it, and was killed soon after."""

    class Once(type(line_data())):
        """A validation fails, in the first life."""

        def val_dataset(self):
            def read(batch):
                reads.append(1)
                if len(reads) == fails_at:
                    raise OSError("the disk is gone")
                return batch

            reads: list = []
            return super().val_dataset().map(read)

    data = line_data()
    data = Once(data.train, data.val, batch_size=data.batch_size)
    fails_at, saving = 14, gx.Checkpoint(every=gx.Steps(100))
    with pytest.raises(OSError, match="the disk is gone"):
        fit(tmp_path, saving=saving, data=data)
    (step,) = (int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert json.loads((tmp_path / "checkpoints" / str(step) / "meta.json").read_text())["validated_at"] < step
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, At((step + 1, crash)), saving=saving, resume="last")
    assert [row for row in scalars(tmp_path) if row[0] == step and row[1].startswith("val/")]
    fit(tmp_path, saving=saving, resume="last")
    assert_undisturbed(tmp_path, whole)


def test_a_save_after_the_logs_are_closed(whole, tmp_path):
    """As an exception is told to the loggers first, and then saved."""

    def fail(run):
        raise RuntimeError("a callback failed")

    with pytest.raises(RuntimeError, match="a callback failed"):
        fit(tmp_path, At((CRASH, fail)))
    assert (tmp_path / "checkpoints" / str(CRASH)).exists()
    assert table(tmp_path).splitlines() == table(whole[0]).splitlines()[: len(table(tmp_path).splitlines())]
    assert len(table(tmp_path).splitlines()) == 7
    fit(tmp_path, resume="last")
    assert_undisturbed(tmp_path, whole)


class Disk:
    """What `os.pwrite` and new files meet: room, or none after half a piece."""

    def __init__(self, monkeypatch, number=errno.ENOSPC):
        self.full, self.torn, self.number = False, 0, number
        self.write, self.sync = os.pwrite, log_file.sync
        monkeypatch.setattr(os, "pwrite", self._pwrite)
        monkeypatch.setattr(log_file, "sync", self._sync)

    def fill(self, run=None):
        self.full = True

    def clear(self, run=None):
        self.full = False

    def _refuse(self):
        raise OSError(self.number, os.strerror(self.number))

    def _pwrite(self, number, piece, at):
        if not self.full:
            return self.write(number, piece, at)
        if self.torn % 2 == 0:
            self.torn += 1
            return self.write(number, piece[: len(piece) // 2], at)
        self.torn += 1
        return self._refuse()

    def _sync(self, path):
        if self.full:
            self._refuse()
        self.sync(path)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


class Look(gx.Callback):
    """What the table holds at a step."""

    def __init__(self, *steps):
        self.steps, self.seen = steps, {}

    def next_step(self, step):
        return min((at for at in self.steps if at > step), default=None)

    def on_step(self, run):
        self.seen[run.step] = table(run.run_dir) if (run.run_dir / "metrics.csv").exists() else None


def test_a_shortage_that_passes_leaves_no_trace(tmp_path, whole, disk, warnings):
    look = Look(FULL, ROOM - 1)
    result = fit(tmp_path, At((FULL, disk.fill), (ROOM, disk.clear)), look)
    assert disk.torn > 3
    assert look.seen[ROOM - 1] == look.seen[FULL]  # no torn row
    assert table(whole[0]).startswith(look.seen[FULL])
    assert_undisturbed(tmp_path, whole)
    assert_same_state(result.state, whole[1].state)
    first, second = warnings()
    assert f"{tmp_path / 'metrics.csv'} can't be written: No space left on device (" in first
    assert " free)" in first
    assert f"{tmp_path / 'tensorboard'}/events.out" in second


def test_files_of_a_disk_that_was_gone_for_a_while(tmp_path, whole, monkeypatch, warnings):
    """What was open then, never works again."""
    used, stale, broken, write, close = set(), set(), [], os.pwrite, os.close

    def pwrite(number, piece, at):
        used.add(number)
        if number in stale:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return write(number, piece, at)

    def close_and_forget(number):  # the next file that is opened may get this number
        stale.discard(number)
        used.discard(number)
        close(number)

    def go_away(run):
        stale.update(used)
        broken.extend(used)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "close", close_and_forget)
    fit(tmp_path, At((FULL, go_away)))
    assert len(broken) == 2
    assert_undisturbed(tmp_path, whole)
    assert [os.strerror(errno.ESTALE) in text for text in warnings()] == [True, True]


def test_rows_come_back_with_the_next_save(tmp_path, whole, disk):
    look = Look(33)
    fit(tmp_path, At((FULL, disk.fill), (ROOM, disk.clear)), look)
    assert table(whole[0]).startswith(look.seen[33])
    assert look.seen[33].splitlines()[-1].startswith(b"32,")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_shortage_to_the_end(tmp_path, whole, monkeypatch, warnings, number):
    disk = Disk(monkeypatch, number)
    result = fit(tmp_path, At((FULL, disk.fill)))
    assert_same_state(result.state, whole[1].state)
    assert result.metrics == whole[1].metrics
    texts = warnings()
    assert sum(os.strerror(number) in text for text in texts) == 2
    lost = len(table(whole[0]).splitlines()) - len(table(tmp_path).splitlines())
    assert lost > 5
    assert f"{tmp_path / 'metrics.csv'} lacks {lost} rows that could not be written." in texts
    assert len(texts) == 4
    assert table(whole[0]).startswith(table(tmp_path))
    assert {*scalars(tmp_path)} < {*scalars(whole[0])}
    # What is there can be gone on from.
    disk.clear()
    fit(tmp_path, resume="auto")
    assert table(whole[0]).startswith(table(tmp_path))


def test_no_room_at_the_start(tmp_path, whole, disk, warnings):
    disk.fill()
    look = Look(ROOM)
    fit(tmp_path, look, At((ROOM, disk.clear)))
    assert look.seen[ROOM] is None
    assert_undisturbed(tmp_path, whole)
    assert len(warnings()) == 2


def test_no_room_where_a_run_goes_on(broken, whole, disk, warnings):
    """The old files stay as they are until there is room; then they are cut, and nothing is doubled."""
    disk.fill()
    look, before = Look(ROOM), table(broken)
    fit(broken, look, At((ROOM, disk.clear)), resume="last")
    assert look.seen[ROOM] == before
    assert_undisturbed(broken, whole)
    assert len(warnings()) == 2


def test_no_room_where_a_run_goes_on_and_none_until_it_is_killed(broken, whole, disk):
    disk.fill()
    with pytest.raises(KeyboardInterrupt):
        fit(broken, At((ROOM, crash)), resume="last", saving=gx.Checkpoint(every=gx.Steps(100)))
    disk.clear()
    fit(broken, resume="last")
    assert_undisturbed(broken, whole)


def test_what_waits_is_bounded(tmp_path, whole, disk, warnings, monkeypatch):
    monkeypatch.setattr(log_file, "MOST_WAITING", 3)
    fit(tmp_path, At((FULL, disk.fill), (ROOM, disk.clear)), saving=gx.Checkpoint())
    texts = [text for text in warnings() if "metrics.csv" in text]
    assert len(texts) == 3
    assert "more than 3 rows wait; the oldest are dropped" in texts[1]
    rows, expected = table(tmp_path).splitlines(), table(whole[0]).splitlines()
    missing = [row for row in expected if row not in rows]
    assert rows == [row for row in expected if row not in missing]
    assert f"lacks {len(missing)} rows" in texts[2]


class Extra(gx.Callback):
    """Adds metrics that nobody announced."""

    def on_validation_end(self, run, metrics):
        metrics["val/steps"] = float(run.step)
        if run.step >= 24:
            metrics["a,late\none"] = 1.0


def fit_wider(folder, *callbacks, **settings):
    trainer = gx.Trainer(
        max_steps=STEPS, run_dir=folder, log_every=5, val_every=gx.Steps(8), callbacks=[
            Extra(), gx.CSVLogger(), gx.TensorBoardLogger(), *callbacks, gx.Checkpoint(every=gx.Steps(8))
        ]
    )  # fmt: skip
    return trainer.fit(LineTask(), line_data(), **settings)


@pytest.fixture(scope="module")
def wider(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "wider"
    return folder, fit_wider(folder)


@pytest.mark.behaviour("peers 153")
def test_a_metric_that_a_callback_adds(wider, whole):
    with (wider[0] / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (whole[0] / "metrics.csv").open(newline="") as file:
        plain = list(csv.DictReader(file))
    added = {int(row["step"]): (row.pop("val/steps"), row.pop("a,late\none")) for row in rows if row["val/loss"]}
    assert added == {step: (f"{step}.0", "1.0" if step >= 24 else "") for step in (8, 16, 24, 32, 40)}
    assert [{name: row[name] for name in plain[0]} for row in rows] == plain
    assert [*rows[0]] == [*plain[0], "a,late\none", "val/steps"]


@pytest.mark.behaviour("peers 93", "peers 153", "reports 26")
@pytest.mark.parametrize("at", [17, 26])
def test_such_a_run_goes_on(wider, tmp_path, at):
    with pytest.raises(KeyboardInterrupt):
        fit_wider(tmp_path, At((at, crash)))
    fit_wider(tmp_path, resume="last")
    assert_undisturbed(tmp_path, wider)


@pytest.mark.parametrize("full", [7, 23])
def test_such_a_run_on_a_full_disk(wider, tmp_path, disk, full):
    fit_wider(tmp_path, At((full, disk.fill), (ROOM, disk.clear)))
    assert_undisturbed(tmp_path, wider)


def test_a_table_damaged_before_it_is_made_wider(wider, tmp_path, warnings):
    fit_wider(tmp_path, At((23, lambda run: added(b"garbage\n")(tmp_path / "metrics.csv"))))
    (text,) = warnings()
    assert f"{tmp_path / 'metrics.csv'} can't be read: line" in text
    assert table(wider[0]).splitlines()[-1] == table(tmp_path).splitlines()[-1]


def remove(run):
    (run.run_dir / "metrics.csv").unlink()


def empty(run):
    (run.run_dir / "metrics.csv").write_bytes(b"")


def replace(run):
    (run.run_dir / "new").write_bytes(b"of someone else")
    (run.run_dir / "new").replace(run.run_dir / "metrics.csv")


@pytest.mark.parametrize("act", [remove, empty, replace])
def test_a_table_that_someone_takes_away(tmp_path, whole, warnings, act):
    fit(tmp_path, At((FULL, act)))
    header, *rows = table(whole[0]).splitlines()
    assert table(tmp_path).splitlines() == [header, *(row for row in rows if int(row.split(b",")[0]) > FULL)]
    (text,) = warnings()
    assert f"{tmp_path / 'metrics.csv'} was removed, cut or replaced by something else; it starts anew." in text
    if act is not remove:
        assert (tmp_path / "damaged" / "metrics.csv").read_bytes() == (b"of someone else" if act is replace else b"")


def test_a_table_that_someone_takes_away_from_a_resumed_run(broken, whole):
    fit(broken, At((ROOM, remove)), resume="last")
    header, *rows = table(whole[0]).splitlines()
    assert table(broken).splitlines() == [header, *(row for row in rows if int(row.split(b",")[0]) > ROOM)]


def test_events_that_someone_takes_away(tmp_path, whole, warnings):
    fit(tmp_path, At((FULL, lambda run: shutil.rmtree(tmp_path / "tensorboard"))))
    assert scalars(tmp_path) == [row for row in scalars(whole[0]) if row[0] > FULL]
    assert len(warnings()) == 1


def test_the_plot_of_a_damaged_table(whole, tmp_path, warnings):
    from galvanax.cli.loss_curves import read_log

    for content in (b"", b"\x00\xff", b"step,train/loss\n5,no number\n", b"step,train/loss\n1,2,3\n"):
        (tmp_path / "metrics.csv").write_bytes(content)
        assert read_log(tmp_path / "metrics.csv") == []
        assert f"{tmp_path / 'metrics.csv'} can't be read: " in warnings()[-1]
    (tmp_path / "metrics.csv").write_bytes(table(whole[0]) + b"45,5.6")  # of a run in progress
    steps = [int(line.split(b",")[0]) for line in table(whole[0]).splitlines()[1:]]
    assert [row["step"] for row in read_log(tmp_path / "metrics.csv")] == steps
    assert len(warnings()) == 4


class FullSession:
    """A W&B run on a full disk."""

    id = "one"

    def __init__(self):
        self.config = types.SimpleNamespace(update=self.refuse)

    def refuse(self, *arguments, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = finish = refuse


@pytest.mark.parametrize("when", ["from the start", "later"])
def test_wandb_on_a_full_disk(tmp_path, whole, monkeypatch, warnings, when):
    wandb = types.ModuleType("wandb")
    wandb.run, wandb.Error = None, type("Error", (Exception,), {})
    session = FullSession()
    wandb.init = session.refuse if when == "from the start" else lambda **settings: session
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    result = fit(tmp_path, gx.WandBLogger())
    assert_same_state(result.state, whole[1].state)
    (text,) = warnings()
    assert f"W&B fails ({tmp_path / 'wandb'}): No space left on device (" in text


@dataclasses.dataclass(frozen=True)
class SwingTask(LineTask):
    """Shows a pendulum."""

    def record(self, model, datamodule, num_steps):
        return gx.rendering.MotionClip(load_model("pendulum"), np.zeros((num_steps, 1)), 0.05 * np.arange(num_steps))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("no ffmpeg")])
def test_a_film_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, warnings, error):
    def write(*arguments, **settings):
        raise error

    monkeypatch.setattr(video_recorder, "write_clip", write)
    recorder = gx.VideoRecorder(formats=("npz",), num_steps=3)
    gx.Trainer(max_steps=16, run_dir=tmp_path, callbacks=[recorder]).fit(SwingTask(), line_data())
    (text,) = warnings()
    reason = r"No space left on device \(.* free\)" if isinstance(error, OSError) else "no ffmpeg"
    stem = tmp_path / "videos" / "step_00000008"
    assert re.fullmatch(rf"VideoRecorder: {stem}\.\* can't be written: {reason}\. The run goes on\.", text), text


def can_mount() -> bool:
    """Whether this machine lets a process mount a file system for itself."""
    with contextlib.suppress(OSError):
        probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    return False


def test_a_real_disk(tmp_path):
    """Full for a while, or to the end."""
    if not can_mount():
        pytest.skip("unshare -rm cannot mount a tmpfs here")
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, __file__, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    good, passing, lasting = found["undisturbed"], found["for a while"], found["to the end"]
    assert {good["weights"], passing["weights"], lasting["weights"]} == {good["weights"]}
    assert (passing["table"], passing["events"]) == (good["table"], good["events"])
    for outcome, most in ((passing, 1), (lasting, 2)):
        for name in ("metrics.csv", "events.out"):
            texts = [text for text in outcome["warnings"] if name in text]
            assert len(texts) == most, texts
            assert "No space left on device (0 bytes free)" in texts[0]
    assert good["table"].startswith(lasting["table"])
    missing = len(good["table"].splitlines()) - len(lasting["table"].splitlines())
    assert any(f"lacks {missing} rows" in text for text in lasting["warnings"])


def main(folder: Path) -> None:
    """Trains on small disks; in a mount namespace of its own."""
    outcomes = {name: outcome_of(folder / name, name) for name in ("undisturbed", "for a while", "to the end")}
    (folder / "found.json").write_text(json.dumps(outcomes))


def outcome_of(run_dir: Path, name: str) -> dict:
    """Trains on a disk of its own, which other programs fill."""
    run_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", run_dir], check=True)
    filler = run_dir / "filler"

    def fill(run):
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    actions = {"undisturbed": [], "for a while": [(51, fill), (351, lambda run: filler.unlink())]}
    texts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("galvanax").addHandler(handler)
    saving = gx.Checkpoint(every=gx.Steps(100), on_save_error="continue")
    # Rows enough to meet the end of a page, where half of one is written.
    result = fit(run_dir, At(*actions.get(name, [(51, fill)])), saving=saving, log_every=1, max_steps=400)
    logging.getLogger("galvanax").removeHandler(handler)
    weights = b"".join(leaf.tobytes() for leaf in arrays_of(result.state)).hex()
    return {"warnings": texts, "table": table(run_dir).decode(), "events": scalars(run_dir), "weights": weights}


if __name__ == "__main__":
    main(Path(sys.argv[1]))


@pytest.mark.parametrize("output", ["/dev/full", "| true"])
def test_nobody_listens(tmp_path, output):
    """A full disk behind the standard output, or a pipe whose reader is gone."""
    code = (
        "import galvanax as gx; from support import *\n"
        "callbacks = [gx.ModelSummary(), gx.ProgressBar(seconds=0.0)]\n"
        "trainer = gx.Trainer(max_steps=60, steps_per_dispatch=1, run_dir='run', callbacks=callbacks)\n"
        "trainer.fit(LineTask(), line_data()); open('ended', 'w').close()"
    )
    path = os.pathsep.join(str(Path(__file__).parents[up]) for up in (1, 2))
    command = f'"{sys.executable}" -c "$CODE" {output if "|" in output else f"> {output}"}'
    environ = {**os.environ, "CODE": code, "PYTHONPATH": path}
    subprocess.run(["bash", "-c", command], env=environ, cwd=tmp_path, check=False, stderr=subprocess.DEVNULL)
    assert (tmp_path / "ended").exists()
    assert (tmp_path / "run" / "checkpoints" / "60").is_dir()


@pytest.mark.parametrize("name", [".partial-log", "tensorboard/.partial-log"])
def test_a_link_in_the_place_of_a_partial_file(tmp_path, name):
    """It is not written through."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run" / "tensorboard").mkdir(parents=True)
    (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    logs = [gx.CSVLogger(), gx.TensorBoardLogger()]
    gx.Trainer(max_steps=4, run_dir=tmp_path / "run", callbacks=logs).fit(LineTask(), line_data())
    assert (tmp_path / "mine").read_text() == "mine"
