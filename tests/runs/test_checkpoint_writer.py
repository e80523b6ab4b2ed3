"""What is kept, and what a slow disk changes: nothing in the end."""

import math
import time

import jax.numpy as jnp
import pytest

from galvanax.errors import CheckpointError
from galvanax.runs.checkpoint_meta import CheckpointMeta, Entry, Monitor, Monitored, best_step, retained
from galvanax.runs.checkpoint_writer import CheckpointWriter, Snapshot
from galvanax.runs.checkpoints import CheckpointFolder

LOSS = Monitor("val/loss", "min")


def snapshots(scores, permanent=()):
    for step, score in enumerate(scores, start=1):
        meta = CheckpointMeta(
            step=step, epoch=0.0, config={"task": {"type": "T"}}, position=None, window={}, metrics={}, validated_at=-1,
            visited=step, stop_reason=None, num_steps=99, seconds=0.0, host={}, versions={},
            monitor=Monitored("val/loss", "min", score), permanent=step in permanent,
        )  # fmt: skip
        yield Snapshot({"x": jnp.full(3, step, jnp.float32), "none": jnp.zeros(0)}, meta)


def entry(step, loss=None, permanent=False, monitor=LOSS):
    return Entry(step, {} if loss is None else {"val/loss": loss}, permanent, monitor)


@pytest.mark.behaviour("peers 36", "peers 44")
def test_retained():
    entries = [entry(1, 3.0), entry(2, 1.0), entry(3, 1.0), entry(4), entry(5, 9.0, permanent=True), entry(6, 5.0)]
    assert retained(entries, LOSS, keep_last=1, keep_best=0) == {5, 6}
    assert retained(entries, LOSS, keep_last=2, keep_best=1) == {2, 5, 6}
    assert retained(entries, LOSS, keep_last=1, keep_best=2) == {2, 3, 5, 6}
    assert retained(entries, LOSS, keep_last=None, keep_best=0) == {1, 2, 3, 4, 5, 6}
    assert retained(entries, None, keep_last=1, keep_best=2) == {5, 6}


@pytest.mark.behaviour("peers 37", "peers 38", "reports 13")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_best_is_among_the_finite(bad, mode):
    monitor = Monitor("val/loss", mode)
    entries = [entry(1, bad, monitor=monitor), entry(2, 4.0, monitor=monitor), entry(3, bad, monitor=monitor)]
    assert retained(entries, monitor, keep_last=1, keep_best=2) == {2, 3}
    assert best_step(entries) == 2
    assert best_step([entry(1, bad), entry(2, bad)]) == 2


def test_the_newest_monitor_ranks():
    """Values of another metric, or of another mode, are not compared with its."""
    old = Entry(1, {"val/w": 9.0, "val/score": 5.0}, monitor=Monitor("val/w", "max"))
    new = Entry(2, {"val/w": 1.0, "val/score": 7.0}, monitor=Monitor("val/score", "min"))
    assert best_step([old, new]) == 1
    assert best_step([old, Entry(2, {"val/score": 3.0}, monitor=Monitor("val/score", "min"))]) == 2
    assert best_step([old, Entry(3, {"val/score": 7.0}, monitor=Monitor("val/score", "max"))]) == 3


@pytest.mark.parametrize("slow", [False, True])
def test_a_slow_disk_ends_with_the_same_checkpoints(tmp_path, monkeypatch, slow):
    written = []
    save = CheckpointFolder.save

    def slow_save(self, step, arrays, meta):
        written.append(step)
        time.sleep(0.3 * slow)
        save(self, step, arrays, meta)

    monkeypatch.setattr(CheckpointFolder, "save", slow_save)
    folder = CheckpointFolder(tmp_path)
    folder.prepare(0)
    writer = CheckpointWriter(folder, LOSS, keep_last=2, keep_best=1, stop_on_error=True)
    scores = [5.0, 4.0, 1.0, 2.0, 3.0, 6.0, 7.0, 8.0]
    begin = time.monotonic()
    for snapshot in snapshots(scores, permanent={2}):
        writer.submit(snapshot)
        while not slow and snapshot.meta.step not in folder.steps():
            time.sleep(0.01)
    waited = time.monotonic() - begin
    writer.close()
    assert folder.steps() == [2, 3, 7, 8]
    assert folder.find("best").name == "3"
    if slow:
        assert waited < 0.2  # nothing waited for the disk
        assert len(written) < len(scores)  # what was obsolete before its turn came was left out
    else:
        assert written == list(range(1, 9))
    assert written == sorted(written)


@pytest.mark.behaviour("peers 50")
def test_only_what_would_be_kept_counts_as_best(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.prepare(0)
    writer = CheckpointWriter(folder, LOSS, keep_last=1, keep_best=2, stop_on_error=True)
    for snapshot in snapshots([3.0, 2.0]):
        writer.submit(snapshot)
    assert writer.is_among_best(3, 2.5)
    assert not writer.is_among_best(3, 3.0)  # of equals, the earlier stays
    assert not writer.is_among_best(3, math.nan)
    writer.close()
    again = CheckpointWriter(folder, LOSS, keep_last=1, keep_best=2, stop_on_error=True)
    assert not again.is_among_best(3, 3.5)
    again.close()


def test_an_error_stops_or_is_a_warning(tmp_path, caplog):
    for stop in (True, False):
        folder = CheckpointFolder(tmp_path / str(stop))  # never made
        writer = CheckpointWriter(folder, LOSS, keep_last=1, keep_best=1, stop_on_error=stop)
        writer.submit(next(snapshots([1.0])))
        if stop:
            with pytest.raises(CheckpointError, match=r"Step 1 could not be saved to .*: the folder was removed"):
                writer.close()
        else:
            writer.close()
    assert caplog.text.count("the folder was removed") == 2
