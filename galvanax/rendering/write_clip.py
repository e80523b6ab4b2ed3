"""A motion in every form that was asked for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from galvanax.errors import ConfigError, nearest
from galvanax.rendering.html_player import write_player
from galvanax.rendering.renderer import render_frames, stream_frames
from galvanax.rendering.trajectory_npz import MotionClip
from galvanax.rendering.video import check_fps, contact_sheet, frames_at, spread, write_video

Format = Literal["mp4", "png", "html", "npz"]
FORMATS: tuple[Format, ...] = ("npz", "html", "png", "mp4")  # in this order: what needs no OpenGL is there first
NEED_GL = ("png", "mp4")
SHEET = 12  # pictures of a contact sheet


def write_clip(
    stem: str | Path,
    clip: MotionClip,
    formats: Sequence[str] = ("mp4", "png", "html"),
    *,
    camera: str | int | None = None,
    width: int = 640,
    height: int = 480,
    fps: float | None = None,
    title: str | None = None,
) -> list[Path]:
    """Writes `stem.mp4` (in real time), `stem.png` (a contact sheet), `stem.html` (a player), `stem.npz` (the clip).

    Args:
      stem: path without suffix.
      clip: what to show.
      formats: which of the four.
      camera: as in `stream_frames`.
      width: of a frame of the film (pixels); those of the contact sheet are half as wide.
      height: likewise.
      fps: frames a second of the film; None: one a step, 50 at most.
      title: of the page; the stem's name by default.

    Returns:
      The files, in the order of `FORMATS`.

    Raises:
      RenderError, ConfigError, DataError: as the writers. Those before the one that failed have been written.
    """
    stem = Path(stem)
    check_formats(formats)
    rate = min(50.0, 1 / clip.dt) if fps is None else fps
    check_fps(rate)

    def sheet(path: Path) -> None:
        chosen = spread(len(clip.qpos), SHEET)
        half_width, half_height = max(1, width // 2), max(1, height // 2)
        frames = render_frames(clip.model, clip.qpos[chosen], camera=camera, width=half_width, height=half_height)
        contact_sheet(path, frames, clip.time[chosen])

    def film(path: Path) -> None:
        shown = clip.qpos[frames_at(clip.time, rate)]
        write_video(path, stream_frames(clip.model, shown, camera=camera, width=width, height=height), rate)

    writers: dict[Format, Callable[[Path], None]] = {
        "npz": clip.save,
        "html": lambda path: write_player(path, clip.model, clip.qpos, clip.time, title=title or stem.name),
        "png": sheet,
        "mp4": film,
    }
    written = []
    for suffix in FORMATS:
        if suffix in formats:
            path = stem.with_name(f"{stem.name}.{suffix}")
            writers[suffix](path)
            written.append(path)
    return written


def check_formats(formats: Sequence[str]) -> None:
    """Raises ConfigError where one is unknown, or there is none."""
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"formats holds {name!r}.{nearest(name, FORMATS)}")
    if not formats:
        raise ConfigError(f"formats is empty; expected some of {', '.join(FORMATS)}.")
