"""Films: read back by ffmpeg."""

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

import galvanax as gx
from galvanax import rendering


def colours(count=10, height=33, width=47):
    """Frames of one colour each: the red grows."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 0] = (25 * np.arange(count))[:, None, None]
    frames[..., 2] = 128
    return frames


def test_a_film_holds_its_frames(tmp_path):
    frames = colours()
    rendering.write_video(tmp_path / "a.mp4", iter(frames), 12.5)
    found = iio.imread(tmp_path / "a.mp4", plugin="FFMPEG")
    assert found.shape == (10, 34, 48, 3)
    np.testing.assert_allclose(found[:, :33, :47].astype(int), frames.astype(int), atol=8)
    about = iio.immeta(tmp_path / "a.mp4", plugin="FFMPEG")
    assert about["fps"] == pytest.approx(12.5)
    assert about["codec"] == "h264"
    assert about["pix_fmt"].startswith("yuv420p")


def test_a_film_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.mp4"
    rendering.write_video(path, colours(3), 10)
    before = path.read_bytes()

    def broken():
        yield from colours(2)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        rendering.write_video(path, broken(), 10)
    with pytest.raises(gx.DataError, match=r"frame 1 is uint8\[4, 4, 3\]; expected .*\[33, 47, 3\]"):
        rendering.write_video(path, [*colours(1), *colours(1, 4, 4)], 10)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("name", "frames", "fps", "error", "message"),
    [
        ("a.mp4", [], 10, gx.DataError, "no frames"),
        ("a.avi", colours(1), 10, gx.ConfigError, r"ends in \.mp4"),
        ("a.mp4", colours(1), 0, gx.ConfigError, "fps=0"),
        ("a.mp4", colours(1) / 255, 10, gx.DataError, "frame 0 is float64"),
    ],
)
def test_wrong_arguments(tmp_path, name, frames, fps, error, message):
    with pytest.raises(error, match=message):
        rendering.write_video(tmp_path / name, frames, fps)
    assert not list(tmp_path.iterdir())


def test_films_are_in_real_time():
    np.testing.assert_array_equal(rendering.frames_at(np.arange(9) * 0.005, 50), [0, 4, 8])
    np.testing.assert_array_equal(rendering.frames_at(3 + np.arange(3) * 0.1, 20), [0, 0, 1, 1, 2])
    np.testing.assert_array_equal(rendering.frames_at(np.zeros(1), 20), [0])
    time = np.sort(np.random.default_rng(0).uniform(0, 4, 100))
    chosen = rendering.frames_at(time, 30)
    moments = time[0] + np.arange(len(chosen)) / 30
    np.testing.assert_array_equal(chosen, np.abs(time - moments[:, None]).argmin(1))


def test_frames_of_a_sheet_are_spread():
    np.testing.assert_array_equal(rendering.spread(100, 4), [0, 33, 66, 99])
    np.testing.assert_array_equal(rendering.spread(3, 12), [0, 1, 2])


def test_contact_sheet_says_the_time(tmp_path):
    rendering.contact_sheet(tmp_path / "a.png", colours(2, 80, 120), [0.0, 1.5], columns=5)
    sheet = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    left, right = sheet[4:30, 4:60], sheet[4:30, 128:184]
    assert (np.abs(left - right) > 100).any(-1).sum() > 5  # other digits
    with pytest.raises(gx.DataError, match="2 frames and 3 times"):
        rendering.contact_sheet(tmp_path / "a.png", colours(2), [0, 1, 2])
