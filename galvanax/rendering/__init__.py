"""Seeing a motion: films, contact sheets, a web page to turn and scrub, and files that replay anywhere."""

from galvanax.rendering.html_player import write_player
from galvanax.rendering.renderer import render_frames, start_gl, stream_frames
from galvanax.rendering.trajectory_npz import MotionClip, load_trajectory, save_trajectory
from galvanax.rendering.video import contact_sheet, frames_at, spread, write_video
from galvanax.rendering.write_clip import write_clip

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
