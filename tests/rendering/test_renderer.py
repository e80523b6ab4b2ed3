"""Frames of MuJoCo's renderer, and what is said where it can't draw."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rendering.swing import drive, swing

import galvanax as gx
from galvanax import rendering
from galvanax.errors import RenderError
from galvanax.rendering import renderer


@pytest.fixture(scope="module")
def gl():
    try:
        return rendering.start_gl()
    except RenderError as error:
        pytest.skip(str(error))


def red(frame):
    frame = frame.astype(int)
    return (frame[..., 0] > 1.8 * frame[..., 1]) & (frame[..., 0] > 60)


def test_frames_show_the_motion(gl):
    clip = swing()
    size = clip.model.vis.global_.offwidth
    frames = rendering.render_frames(clip.model, clip.qpos[[0, 0, 39]], width=160, height=121)
    assert frames.shape == (3, 121, 160, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames[0], frames[1])
    assert (frames[0] != frames[2]).any(-1).mean() > 0.005
    assert rendering.render_frames(clip.model, clip.qpos[:1], width=size + 60, height=64).shape == (1, 64, size + 60, 3)
    assert clip.model.vis.global_.offwidth == size


def test_the_camera_goes_along(gl):
    clip = drive()
    followed = rendering.render_frames(clip.model, clip.qpos, width=160, height=120)
    counts = [int(red(frame).sum()) for frame in followed]
    assert min(counts) > 200
    for frame in followed:
        row, column = np.argwhere(red(frame)).mean(0)
        assert abs(row - 60) < 20
        assert abs(column - 80) < 20


def test_a_long_film_is_streamed(gl):
    clip = swing()
    frames = rendering.stream_frames(clip.model, np.repeat(clip.qpos, 100_000, 0)[:1_000_000], width=32, height=32)
    assert next(frames).shape == (32, 32, 3)
    frames.close()


def test_cameras(gl):
    model = swing().model
    pose = model.qpos0[None]
    side = rendering.render_frames(model, pose, camera="side", width=64, height=48)
    for same in (0, "0", None):
        np.testing.assert_array_equal(side, rendering.render_frames(model, pose, camera=same, width=64, height=48))
    assert (side != rendering.render_frames(model, pose, camera="track", width=64, height=48)).any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"camera": "sied"}, gx.ConfigError, "camera='sied': .*Nearest: side"),
        ({"camera": 3}, gx.ConfigError, "camera=3: .* has 1 cameras"),
        ({"width": 0}, gx.ConfigError, "width=0: expected pixels"),
        ({"qpos": np.zeros((2, 5))}, gx.DataError, r"qpos has shape \(2, 5\); expected \(2, 3\)"),
    ],
)
def test_wrong_arguments_are_found_at_the_call(change, error, message):
    clip = swing(steps=2)
    with pytest.raises(error, match=message):
        rendering.stream_frames(clip.model, **({"qpos": clip.qpos} | change))


START = """import mujoco
from galvanax.rendering import start_gl
print(start_gl())
with mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8) as renderer:
    print(renderer.render().shape)
"""


def test_without_a_display_and_with_mujoco_imported_before(gl):
    """MuJoCo has then chosen windows already."""
    unset = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run([sys.executable, "-c", START], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() in (["egl", "(8, 8, 3)"], ["osmesa", "(8, 8, 3)"])


@pytest.fixture
def forgotten(monkeypatch):
    """As at the first call of a process."""
    monkeypatch.setattr(renderer, "_working", set())
    renderer._try_all.cache_clear()
    yield
    renderer._try_all.cache_clear()


def test_what_to_install_where_nothing_draws(monkeypatch, forgotten):
    """A machine without a driver: libglvnd is shown an empty folder."""
    for name in ("MUJOCO_GL", "DISPLAY", "LD_LIBRARY_PATH", "__EGL_VENDOR_LIBRARY_FILENAMES", "PYOPENGL_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", "/nowhere")
    clip = swing(steps=1)
    try:
        rendering.stream_frames(clip.model, clip.qpos)
    except RenderError as error:
        message = str(error)
    else:
        pytest.skip("this machine's OpenGL can't be hidden")
    assert "Nothing to draw with. Tried: MUJOCO_GL=egl (" in message
    assert "MUJOCO_GL=osmesa (" in message
    assert "apt-get install libegl1 libgl1-mesa-dri" in message
    assert "MUJOCO_GL" not in os.environ


def test_drawing_can_be_forbidden(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "off")
    with pytest.raises(RenderError, match="MUJOCO_GL=off forbids"):
        rendering.start_gl()


def test_a_frame_can_be_looked_at(gl, tmp_path):
    clip = drive()
    frames = rendering.render_frames(clip.model, clip.qpos, width=81, height=61)
    rendering.contact_sheet(tmp_path / "a.png", frames, clip.time, columns=3)
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape == (2 * 65 + 4, 3 * 85 + 4, 3)
    np.testing.assert_array_equal(sheet[30:65, 4:85], frames[0][26:])
    np.testing.assert_array_equal(sheet[95:130, 89:170], frames[4][26:])
    assert (sheet[69:, 174:] == 255).all()  # five of six
