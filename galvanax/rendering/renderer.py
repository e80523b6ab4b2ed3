"""Pictures of a motion by MuJoCo's own renderer, without a window."""

import copy
import functools
import importlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator

import mujoco
import numpy as np

from galvanax.errors import ConfigError, RenderError
from galvanax.rendering.trajectory_npz import check_poses
from galvanax.rendering.view import choose_view, find_camera

LARGEST = 8192  # pixels a side
# Share of the trunk's rise that the view follows at a frame: it glides where the trunk bounces. With few frames, as on
# a contact sheet, it follows faster.
RISE, FEW = 0.05, 5

SETTING = "MUJOCO_GL"
OFF = ("disable", "disabled", "off", "false", "0")
WINDOWS = ("glfw", "glx", "wgl")
PROBE = """import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco/>")
with mujoco.Renderer(model, 16, 16) as renderer:
    renderer.update_scene(mujoco.MjData(model))
    renderer.render()
"""
ADVICE = (
    "Off-screen OpenGL comes with `apt-get install libegl1 libgl1-mesa-dri` (on the CPU), with the NVIDIA driver's EGL "
    "(in a container, NVIDIA_DRIVER_CAPABILITIES=graphics,compute,utility) or with `apt-get install libosmesa6`. The "
    'formats "html" and "npz" need none.'
)


def stream_frames(
    model: mujoco.MjModel,
    qpos: np.ndarray,
    *,
    camera: str | int | None = None,
    width: int = 640,
    height: int = 480,
) -> Iterator[np.ndarray]:
    """Draws poses one by one, so that a long film needs no more memory than a frame.

    Args:
      model: what is seen; it is not changed.
      qpos: poses `(frames, nq)`.
      camera: name or number of the model's camera; "track" for one that goes along with the trunk; None chooses, see
        `galvanax.rendering.view.find_camera`.
      width: pixels; it may be more than the model's `offwidth`.
      height: pixels.

    Returns:
      An iterator of `(height, width, 3)` uint8. All of it must be used in one thread.

    Raises:
      RenderError: there is no off-screen OpenGL; says what was tried and what to install. At the call, as the others.
      ConfigError: there is no such camera, or the size makes no sense.
      DataError: `qpos` doesn't fit the model.
    """
    qpos = check_poses("qpos", qpos, model)
    for name, size in (("width", width), ("height", height)):
        if not 1 <= size <= LARGEST:
            raise ConfigError(f"{name}={size}: expected pixels from 1 to {LARGEST}.")
    eye = _Camera(model, qpos, find_camera(model, camera), width / height)
    start_gl()
    return _draw(model, qpos, eye, width, height)


def render_frames(
    model: mujoco.MjModel,
    qpos: np.ndarray,
    *,
    camera: str | int | None = None,
    width: int = 640,
    height: int = 480,
) -> np.ndarray:
    """Draws poses into one array `(frames, height, width, 3)` uint8; arguments and errors as in `stream_frames`."""
    return np.stack(list(stream_frames(model, qpos, camera=camera, width=width, height=height)))


def start_gl() -> str:
    """Chooses what MuJoCo draws with and returns its name: "egl", "osmesa", "glfw" or "cgl".

    What MUJOCO_GL asks for, if it is set; otherwise the first that works. MuJoCo reads MUJOCO_GL when it is imported,
    which is long past: here both the variable (its C code reads it at the first picture) and the class that
    `mujoco.Renderer` makes its context of are set, for the rest of the process.

    Raises:
      RenderError: none works; says what was tried and what to install.
    """
    from mujoco.rendering.classic import gl_context

    backend = _choose(os.environ.get(SETTING, "").lower().strip())
    os.environ[SETTING] = backend
    gl_context.GLContext = importlib.import_module(f"mujoco.{backend}").GLContext
    return backend


# Cached by what was asked for, and by what was then chosen: a second film asks no more.
_working: set[str] = set()


def _choose(setting: str) -> str:
    if setting in _working:
        return setting
    backend, failures = _try_all(setting, bool(os.environ.get("DISPLAY")))
    if backend is None:
        raise RenderError(f"Nothing to draw with. Tried: {'; '.join(failures) or 'nothing'}. {ADVICE}")
    _working.add(backend)
    return backend


@functools.cache
def _try_all(setting: str, display: bool) -> tuple[str | None, tuple[str, ...]]:
    """The first that works, and why those before it don't."""
    if setting in OFF:
        raise RenderError(f"{SETTING}={setting} forbids to draw; unset it, or set it to egl.")
    failures: list[str] = []
    for backend in _candidates(setting, display):
        reason = _probe(backend)
        if reason is None:
            return backend, tuple(failures)
        failures.append(f"{SETTING}={backend} ({reason})")
    return None, tuple(failures)


def _candidates(setting: str, display: bool) -> tuple[str, ...]:
    if setting in ("egl", "osmesa", "cgl"):
        return (setting,)
    if setting in WINDOWS:
        return ("glfw",)
    if platform.system() == "Linux":
        return ("egl", "osmesa", "glfw") if display else ("egl", "osmesa")
    return ("cgl", "glfw") if platform.system() == "Darwin" else ("glfw",)


def _probe(backend: str) -> str | None:
    """None if a picture can be drawn with it, else the reason.

    In a process of its own: PyOpenGL is bound to one platform from its first import on, so that no second could be
    tried here; and a broken driver crashes.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            env={**os.environ, SETTING: backend},
            capture_output=True,
            text=True,
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    if "has no attribute 'glGetError'" in done.stderr:  # what PyOpenGL makes of it
        return f"no library lib{'OSMesa' if backend == 'osmesa' else backend.upper()}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and not line.startswith("Exception ignored")]
    return (errors or lines or [f"exit status {done.returncode}"])[-1][:300]


class _Camera:
    """A camera at each pose: one of the model's, or one that goes along."""

    def __init__(self, model: mujoco.MjModel, qpos: np.ndarray, number: int | None, aspect: float):
        self.camera = mujoco.MjvCamera()
        self._body: int | None = None
        if number is not None:
            self.camera.type, self.camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, number
            return
        view = choose_view(model, qpos)
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        self.camera.lookat[:] = view.center
        self.camera.distance = view.distance(model.vis.global_.fovy, aspect)
        self.camera.azimuth, self.camera.elevation = view.azimuth, view.elevation
        self._body, self._rise = view.body, max(RISE, min(1.0, FEW / len(qpos)))

    def at(self, data: mujoco.MjData) -> mujoco.MjvCamera:
        """The camera for this pose."""
        if self._body is not None:
            trunk = data.xpos[self._body]
            self.camera.lookat[:2] = trunk[:2]
            self.camera.lookat[2] += self._rise * (trunk[2] - self.camera.lookat[2])
        return self.camera


def _draw(model: mujoco.MjModel, qpos: np.ndarray, camera: _Camera, width: int, height: int) -> Iterator[np.ndarray]:
    model = copy.copy(model)  # MuJoCo's picture is no larger than the model's own setting allows
    model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
    model.vis.global_.offheight = max(height, model.vis.global_.offheight)
    data = mujoco.MjData(model)
    try:
        renderer = mujoco.Renderer(model, height, width)
    except (RuntimeError, ImportError, AttributeError, mujoco.FatalError) as error:
        raise RenderError(f"MuJoCo can't draw with {SETTING}={os.environ[SETTING]}: {error}. {ADVICE}") from error
    with renderer:
        for pose in qpos:
            data.qpos = pose
            mujoco.mj_fwdPosition(model, data)  # cameras, lights and tendons too
            renderer.update_scene(data, camera.at(data))
            yield renderer.render()
