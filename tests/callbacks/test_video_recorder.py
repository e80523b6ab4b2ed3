"""Films of a run in progress."""

import dataclasses
import logging

import imageio.v3 as iio
import numpy as np
import pytest
from support import LineTask, line_data

import galvanax as gx
from galvanax import rendering
from galvanax.callbacks.video_recorder import VideoRecorder
from galvanax.errors import RenderError
from galvanax.physics import load_model


@dataclasses.dataclass(frozen=True)
class SwingTask(LineTask):
    """A pendulum that swings as wide as the weight is large."""

    def record(self, model, datamodule, num_steps):
        assert isinstance(datamodule, gx.ArrayDataModule)
        time = 0.05 * np.arange(num_steps)
        weight = float(model.kernel.get_value()[0, 0])
        return rendering.MotionClip(load_model("pendulum"), weight * np.sin(3 * time)[:, None], time)


def fit(tmp_path, recorder, steps=8, task=None, resume=None, extra=(), **settings):
    settings = {"val_every": gx.Steps(4)} | settings
    trainer = gx.Trainer(max_steps=steps, run_dir=tmp_path / "run", callbacks=[recorder, *extra], **settings)
    return trainer.fit(task or SwingTask(), line_data(), resume=resume)


def small(**settings):
    return VideoRecorder(**({"num_steps": 12, "width": 64, "height": 48} | settings))


@pytest.fixture(scope="module")
def gl():
    try:
        return rendering.start_gl()
    except RenderError as error:
        pytest.skip(str(error))


def test_after_each_validation(tmp_path, gl):
    result = fit(tmp_path, small())
    folder = tmp_path / "run" / "videos"
    suffixes = ("html", "mp4", "npz", "png")
    names = [f"step_{step:08}.{suffix}" for step in (4, 8) for suffix in suffixes]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert iio.imread(folder / "step_00000008.mp4", plugin="FFMPEG").shape == (12, 48, 64, 3)
    assert "<title>run, step 8</title>" in (folder / "step_00000008.html").read_text()
    clip = rendering.load_trajectory(folder / "step_00000008.npz")
    weight = float(result.model.kernel.get_value()[0, 0])
    np.testing.assert_allclose(clip.qpos[:, 0], weight * np.sin(3 * clip.time), rtol=1e-6)
    assert not np.allclose(clip.qpos, rendering.load_trajectory(folder / "step_00000004.npz").qpos)


def test_the_weights_are_those_of_evaluation(tmp_path):
    result = fit(tmp_path, small(formats=("npz",)), extra=[gx.EMA(0.9)])
    clip = rendering.load_trajectory(tmp_path / "run" / "videos" / "step_00000008.npz")
    averaged, raw = float(result.model.kernel.get_value()[0, 0]), float(result.state.params["kernel"][0, 0])
    assert averaged != pytest.approx(raw, rel=1e-3)
    np.testing.assert_allclose(clip.qpos[:, 0], averaged * np.sin(3 * clip.time), rtol=1e-6)


def test_at_its_own_steps_and_resumed(tmp_path):
    recorder = small(every=gx.Steps(3), formats=("npz",))
    fit(tmp_path, recorder, steps=5, extra=[gx.Checkpoint()])
    fit(tmp_path, recorder, steps=9, extra=[gx.Checkpoint()], resume="last")
    folder = tmp_path / "run" / "videos"
    assert [path.stem for path in sorted(folder.iterdir())] == ["step_00000003", "step_00000006", "step_00000009"]
    fit(tmp_path / "whole", recorder, steps=9)
    for path in folder.iterdir():
        other = rendering.load_trajectory(tmp_path / "whole" / "run" / "videos" / path.name)
        np.testing.assert_array_equal(rendering.load_trajectory(path).qpos, other.qpos)


@pytest.mark.parametrize(
    ("recorder", "task", "message"),
    [
        (small(), LineTask(), r"LineTask has no method record\(model, datamodule, num_steps\)"),
        (small(num_steps=0), None, "num_steps=0"),
        (small(formats=("mp5",)), None, "formats holds 'mp5'. Nearest: mp4"),
        (small(formats=()), None, "formats is empty"),
    ],
)
def test_mistakes_are_found_before_the_first_step(tmp_path, recorder, task, message):
    with pytest.raises(gx.ConfigError, match=message):
        fit(tmp_path, recorder, task=task)
    assert not (tmp_path / "run" / "videos").exists()


def test_no_renderer_is_known_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "off")
    with pytest.raises(RenderError, match="MUJOCO_GL=off"):
        fit(tmp_path, small())
    fit(tmp_path / "html", small(formats=("html",)))
    assert len(list((tmp_path / "html" / "run" / "videos").iterdir())) == 2


def test_a_picture_that_fails_ends_no_run(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "galvanax"):
        result = fit(tmp_path, small(camera="nowhere"))
    assert result.metrics["val/loss"] < 10
    assert caplog.text.count("camera='nowhere'") == 1
    assert sorted(path.suffix for path in (tmp_path / "run" / "videos").iterdir()) == [".html", ".html", ".npz", ".npz"]
