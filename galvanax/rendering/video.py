"""Frames as a film, and as one picture."""

import contextlib
import itertools
import math
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from galvanax.errors import ConfigError, DataError, RenderError
from galvanax.files import partial_file

FASTEST = 1000
GAP = 4  # pixels between the pictures of a contact sheet


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes an MP4 that every player and browser shows: H.264, yuv420p.

    The file appears when it is whole. Frames are taken one by one. An odd row or column at the edge, which yuv420p
    can't have, is doubled.

    Args:
      path: of the file, `*.mp4`.
      frames: `(height, width, 3)` uint8, all of one size.
      fps: frames a second.

    Raises:
      ConfigError: `fps` or the file's name makes no sense.
      DataError: there is no frame, or one is no such array; or the file can't be written.
      RenderError: ffmpeg failed.
    """
    path, rest = Path(path), iter(frames)
    if path.suffix.lower() != ".mp4":
        raise ConfigError(f"{path}: expected a name that ends in .mp4.")
    check_fps(fps)
    first = next(rest, None)
    if first is None:
        raise DataError(f"{path}: no frames to write.")
    shape = np.shape(first)
    _check(path, 0, first, shape)
    height, width = _even(first).shape[:2]
    with partial_file(path) as partial, _ffmpeg(path, partial, width, height, fps) as pipe:
        for number, frame in enumerate(itertools.chain([first], rest)):
            pipe(_even(_check(path, number, frame, shape)).tobytes())


def contact_sheet(
    path: str | Path, frames: Sequence[np.ndarray] | np.ndarray, times: Sequence[float] | np.ndarray, columns: int = 4
) -> None:
    """Writes frames with the time of each (s) as one PNG, row by row.

    Args:
      path: of the file.
      frames: `(frames, height, width, 3)` uint8; see `spread` for some of many.
      times: `(frames,)` (s).
      columns: pictures in a row.

    Raises:
      DataError: there is no frame, or one is no such array; or the file can't be written.
    """
    path = Path(path)
    if not len(frames) or len(frames) != len(times):
        raise DataError(f"{path}: {len(frames)} frames and {len(times)} times; expected as many, and at least one.")
    shape = np.shape(frames[0])
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    height, width = shape[0] + GAP, shape[1] + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(max(11, shape[0] // 16))
    for number, (frame, time) in enumerate(zip(frames, times, strict=True)):
        x, y = GAP + number % columns * width, GAP + number // columns * height
        sheet.paste(Image.fromarray(_check(path, number, frame, shape)), (x, y))
        place, text = (x + 0.02 * shape[1], y + 0.02 * shape[1]), f"{time:.2f} s"
        left, top, right, bottom = draw.textbbox(place, text, font)
        draw.rectangle((left - 4, top - 3, right + 4, bottom + 3), "white")
        draw.text(place, text, (30, 34, 40), font)
    with partial_file(path) as partial:
        sheet.save(partial, "PNG")


def spread(count: int, wanted: int) -> np.ndarray:
    """Numbers of `wanted` of `count` frames, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))


def frames_at(time: np.ndarray, fps: float) -> np.ndarray:
    """Numbers of the steps that a film in real time shows: for each frame, the step nearest in time.

    Args:
      time: of each step `(steps,)` (s).
      fps: frames a second.

    Raises:
      ConfigError: `fps` makes no sense.
    """
    check_fps(fps)
    moments = time[0] + np.arange(math.floor((time[-1] - time[0]) * fps + 1e-6) + 1) / fps
    after = np.clip(np.searchsorted(time, moments), 1, max(1, len(time) - 1))
    if len(time) == 1:
        return np.zeros(1, int)
    return np.where(moments - time[after - 1] <= time[after] - moments, after - 1, after)


def check_fps(fps: float) -> None:
    """Raises ConfigError where a number of frames a second makes no sense."""
    if not 0 < fps <= FASTEST:
        raise ConfigError(f"fps={fps}: expected frames a second, above 0 and up to {FASTEST}.")


def _check(path: Path, number: int, frame: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    frame = np.asarray(frame)
    if frame.dtype != np.uint8 or frame.shape != shape or len(shape) != 3 or shape[2] != 3:
        raise DataError(
            f"{path}: frame {number} is {frame.dtype}{list(frame.shape)}; expected uint8 (height, width, 3), and all "
            f"as the first: {list(shape)}."
        )
    return frame


def _even(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), "edge") if height % 2 or width % 2 else frame


@contextlib.contextmanager
def _ffmpeg(path: Path, output: Path, width: int, height: int, fps: float) -> Iterator[Callable[[bytes], Any]]:
    """Runs ffmpeg and gives what takes a frame's bytes. At its end the file is whole, or RenderError says why not.

    imageio has a writer that does the same, but it doesn't look at ffmpeg's exit status, as of a full disk, and it runs
    Python between fork and exec, which beside JAX's threads may wait for ever.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", f"{fps:.6f}", "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p"]
    command += ["-crf", "20", "-movflags", "+faststart", "-f", "mp4", str(output)]
    with tempfile.TemporaryFile() as said:  # a pipe that nobody reads could fill
        # In a group of its own, so that Ctrl-C reaches only this process, which then ends ffmpeg.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, process_group=0
        )
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended: its message says why
                yield process.stdin.write
                process.stdin.close()
            status = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            with contextlib.suppress(OSError):
                process.stdin.close()
        if status != 0:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines() or ["it says nothing"]
            raise RenderError(f"{path}: ffmpeg ended with status {status}: {lines[-1]}")
