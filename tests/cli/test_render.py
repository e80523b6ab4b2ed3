"""`galvanax render`: what a user gets of a model and of a trajectory."""

import re

import imageio.v3 as iio
import mujoco
import numpy as np
import pytest
from PIL import Image

from galvanax import rendering
from galvanax.cli.main import main
from galvanax.errors import RenderError
from galvanax.physics import load_model


@pytest.fixture(scope="module", autouse=True)
def gl():
    try:
        return rendering.start_gl()
    except RenderError as error:
        pytest.skip(str(error))


SMALL = ["--width", "96", "--height", "64"]


def test_a_model_left_to_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["render", "cart-pole", "--seconds", "0.5", *SMALL, "--formats", "mp4", "png", "html", "npz"])
    said = capsys.readouterr().out
    names = [f"cart-pole.{suffix}" for suffix in ("html", "mp4", "npz", "png")]
    assert sorted(path.name for path in (tmp_path / "renders").iterdir()) == names
    assert all(f"renders/{name}" in said for name in names)
    clip = rendering.load_trajectory("renders/cart-pole.npz")
    assert clip.time[-1] == pytest.approx(0.5)
    data = mujoco.MjData(load_model("cart-pole"))
    data.qvel[:] = 0.1
    for row in range(len(clip.qpos)):
        np.testing.assert_allclose(clip.qpos[row], data.qpos, atol=1e-12)
        mujoco.mj_step(clip.model, data, round(0.02 / clip.model.opt.timestep))
    film = iio.imread("renders/cart-pole.mp4", plugin="FFMPEG")
    assert film.shape == (26, 64, 96, 3)
    assert film[0].std() > 5
    assert Image.open("renders/cart-pole.png").size == (4 * 52 + 4, 3 * 36 + 4)
    assert "<title>cart-pole</title>" in (tmp_path / "renders" / "cart-pole.html").read_text()


def test_a_trajectory_to_one_file(tmp_path):
    time = np.arange(11) * 0.1
    rendering.save_trajectory(tmp_path / "a.npz", "pendulum", time[:, None], time=time)
    main(["render", str(tmp_path / "a.npz"), "--output", str(tmp_path / "out" / "b.mp4"), "--fps", "20", *SMALL])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.mp4"]
    assert len(iio.imread(tmp_path / "out" / "b.mp4", plugin="FFMPEG")) == 21


def test_a_keyframe_and_its_controls_hold(tmp_path):
    (tmp_path / "hold.xml").write_text(
        '<mujoco><worldbody><body><joint name="j" damping="1"/><geom size=".1"/></body></worldbody>'
        '<actuator><position joint="j" kp="100"/></actuator>'
        '<keyframe><key qpos="0.7" ctrl="0.7"/></keyframe></mujoco>'
    )
    main(["render", str(tmp_path / "hold.xml"), "--output", str(tmp_path / "a.npz"), "--seconds", "0.3"])
    clip = rendering.load_trajectory(tmp_path / "a.npz")
    np.testing.assert_allclose(clip.qpos, 0.7, atol=1e-9)
    np.testing.assert_allclose(clip.ctrl, 0.7)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["cart-poel"], "Nearest: cart-pole"),
        (["cart-pole", "--camera", "sied"], "camera='sied'"),
        (["cart-pole", "--seconds", "-1"], "seconds=-1.0"),
        (["cart-pole", "--width", "0"], "width=0"),
        (["cart-pole", "--output", "a.mp4", "--formats", "html"], "output=a.mp4 is one file"),
        (["cart-pole", "--output", "a.mp4", "--fps", "0"], "fps=0"),
        (["none.npz"], "No trajectory 'none.npz'"),
    ],
)
def test_wrong_flags(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["render", *flags])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.mp4"))


def test_formats_that_there_are_none_of(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["render", "cart-pole", "--formats", "gif"])
    said = capsys.readouterr().err
    assert "invalid choice 'gif'" in said
    assert "None" not in said
    assert {"mp4", "png", "html", "npz"} <= set(re.findall(r"'(\w+)'", said))
