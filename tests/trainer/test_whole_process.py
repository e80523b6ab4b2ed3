"""What belongs to a process and not to a run: its number format, and its memory over many runs."""

import gc

import jax
import numpy as np
import pytest
from support import LineTask, assert_same_state, line_data

import galvanax as gx
from galvanax.trainer.run import Run


@pytest.mark.behaviour("reports 9")
def test_with_64_bits(tmp_path):
    """With every callback that wraps the optimizer or keeps an average: the run goes on with the same bits."""
    x = np.linspace(-1, 1, 32)[:, None]
    data = gx.ArrayDataModule({"x": x, "y": 3 * x}, {"x": x, "y": 3 * x}, batch_size=8)
    callbacks = [gx.GradientClipping(1.0), gx.GradientAccumulation(2), gx.EMA(0.9)]

    def fit(steps, folder=None, resume=None):
        trainer = gx.Trainer(max_steps=steps, run_dir=folder, steps_per_dispatch=2, callbacks=callbacks)
        return trainer.fit(LineTask(), data, resume=resume)

    with jax.enable_x64(True):
        whole = fit(6)
        fit(4, tmp_path)
        result = fit(6, tmp_path, "last")
        assert_same_state(result.state, whole.state)
        weight = LineTask.load(tmp_path, "last")[1].kernel[...].item()
    assert result.metrics["val/loss"] == pytest.approx(np.mean((weight - 3) ** 2 * x**2), rel=1e-6)


@pytest.mark.behaviour("reports 30")
def test_many_fits_keep_nothing():
    """A sweep in one process: neither arrays nor runs stay."""

    def held():
        gc.collect()
        return len(jax.live_arrays()), sum(type(thing) is Run for thing in gc.get_objects())

    counts = []
    for seed in range(3):
        gx.Trainer(max_steps=3, seed=seed, callbacks=[gx.EMA(0.9)]).fit(LineTask(), line_data())
        counts.append(held())
    assert len(set(counts[1:])) == 1
    assert counts[-1][1] == counts[0][1]
