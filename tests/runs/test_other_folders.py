"""A run that goes on in another folder, or after its folder was moved."""

import pytest
from support import NetTask, assert_same_state, net_data

import galvanax as gx


def fit(folder, steps, resume=None):
    callbacks = [gx.EMA(0.9), gx.CSVLogger(), gx.Checkpoint("val/loss", "min", every=gx.Steps(1000))]
    trainer = gx.Trainer(max_steps=steps, run_dir=folder, log_every=4, callbacks=callbacks)
    return trainer.fit(NetTask(), net_data(), resume=resume)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 24 steps, and the folder of one that crashed at 17."""
    folder = tmp_path_factory.mktemp("runs")

    class Crash(gx.Callback):
        def next_step(self, step):
            return 17

        def on_step(self, run):
            raise RuntimeError("crash")

    callbacks = [gx.EMA(0.9), gx.CSVLogger(), Crash(), gx.Checkpoint("val/loss", "min", every=gx.Steps(1000))]
    trainer = gx.Trainer(max_steps=24, run_dir=folder / "crashed", log_every=4, callbacks=callbacks)
    with pytest.raises(RuntimeError, match="crash"):
        trainer.fit(NetTask(), net_data())
    return fit(folder / "whole", 24), folder


@pytest.mark.behaviour("peers 51", "peers 53", "peers 54")
def test_a_run_that_goes_on_elsewhere_leaves_the_first_alone(whole, tmp_path):
    result, folder = whole
    before = contents(folder / "crashed")
    other = fit(tmp_path / "other", 24, resume=folder / "crashed" / "checkpoints" / "17")
    assert_same_state(other.state, result.state)
    assert contents(folder / "crashed") == before
    assert other.best_checkpoint.is_relative_to(tmp_path / "other")


@pytest.mark.behaviour("reports 26", "peers 50")
def test_a_folder_that_was_moved(whole, tmp_path):
    """The best of before and its value stand; the rows of metrics.csv go on."""
    result, folder = whole
    moved = tmp_path / "elsewhere"
    (folder / "crashed").rename(moved)
    other = fit(moved, 24, resume="auto")
    moved.rename(folder / "crashed")
    assert_same_state(other.state, result.state)
    assert other.best_checkpoint.name == result.best_checkpoint.name
    assert (folder / "crashed" / "metrics.csv").read_bytes() == (folder / "whole" / "metrics.csv").read_bytes()
