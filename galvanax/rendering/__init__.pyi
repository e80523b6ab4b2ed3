from .html_player import write_player
from .renderer import render_frames, start_gl, stream_frames
from .trajectory_npz import MotionClip, load_trajectory, save_trajectory
from .video import contact_sheet, frames_at, spread, write_video
from .write_clip import write_clip

__all__ = [
    "MotionClip",
    "contact_sheet",
    "frames_at",
    "load_trajectory",
    "render_frames",
    "save_trajectory",
    "spread",
    "start_gl",
    "stream_frames",
    "write_clip",
    "write_player",
    "write_video",
]
