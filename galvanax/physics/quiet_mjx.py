"""MJX, imported without the two lines that it prints on machines without Warp (an optional backend for CUDA)."""

import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()):
    from mujoco import mjx

__all__ = ["mjx"]
