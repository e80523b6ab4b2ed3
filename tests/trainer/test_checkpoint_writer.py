"""What is kept, and what a slow disk changes: nothing in the end."""

import time

import jax.numpy as jnp
import pytest

from galvanax.errors import CheckpointError
from galvanax.trainer.checkpoint_writer import CheckpointWriter, Snapshot
from galvanax.trainer.checkpoints import CheckpointFolder, Entry, retained


def snapshots(scores, permanent=()):
    for step, score in enumerate(scores, start=1):
        monitor = {"metric": "val/loss", "mode": "min", "value": score}
        meta = {"monitor": monitor, "permanent": step in permanent}
        yield Snapshot(
            Entry(step, score, step in permanent), {"x": jnp.full(3, step, jnp.float32), "none": jnp.zeros(0)}, meta
        )


def test_retained():
    entries = [Entry(1, 3.0), Entry(2, 1.0), Entry(3, 1.0), Entry(4), Entry(5, 9.0, permanent=True), Entry(6, 5.0)]
    assert retained(entries, keep_last=1, keep_best=0) == {5, 6}
    assert retained(entries, keep_last=2, keep_best=1) == {2, 5, 6}
    assert retained(entries, keep_last=1, keep_best=2) == {2, 3, 5, 6}
    assert retained(entries, keep_last=None, keep_best=0) == {1, 2, 3, 4, 5, 6}


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
    writer = CheckpointWriter(folder, keep_last=2, keep_best=1, stop_on_error=True)
    scores = [5.0, 4.0, 1.0, 2.0, 3.0, 6.0, 7.0, 8.0]
    begin = time.monotonic()
    for snapshot in snapshots(scores, permanent={2}):
        writer.submit(snapshot)
        time.sleep(0.4 * (not slow))
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


def test_only_what_would_be_kept_counts_as_best(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.prepare(0)
    writer = CheckpointWriter(folder, keep_last=1, keep_best=2, stop_on_error=True)
    for snapshot in snapshots([3.0, 2.0]):
        writer.submit(snapshot)
    assert writer.is_among_best(2.5)
    assert not writer.is_among_best(3.0)  # of equals, the earlier stays
    writer.close()
    again = CheckpointWriter(folder, keep_last=1, keep_best=2, stop_on_error=True)
    assert not again.is_among_best(3.5)
    again.close()


def test_an_error_stops_or_is_a_warning(tmp_path, caplog):
    for stop in (True, False):
        folder = CheckpointFolder(tmp_path / str(stop))  # never made
        writer = CheckpointWriter(folder, keep_last=1, keep_best=1, stop_on_error=stop)
        writer.submit(next(snapshots([1.0])))
        if stop:
            with pytest.raises(CheckpointError, match=r"Step 1 could not be saved to .*: the folder was removed"):
                writer.close()
        else:
            writer.close()
    assert caplog.text.count("the folder was removed") == 2
