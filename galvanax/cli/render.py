"""`galvanax render SOURCE`: a motion, or a model left to itself, as film, contact sheet and web page."""

import dataclasses
from pathlib import Path
from typing import Annotated

import mujoco
import numpy as np
import tyro

from galvanax.errors import ConfigError, DataError, nearest
from galvanax.physics.models import bundled_models, load_model
from galvanax.rendering.trajectory_npz import MotionClip, load_trajectory
from galvanax.rendering.write_clip import FORMATS, Format, write_clip

NUDGE = 0.1
STEP = 0.02  # seconds between the poses that are kept


@dataclasses.dataclass
class RenderCommand:
    """Show a motion: NAME.mp4 (in real time), NAME.png (a contact sheet), NAME.html (a player in a browser).

    A model moves on its own: from its first keyframe, whose controls hold; without one from its reference pose and a
    nudge of 0.1 rad/s or m/s in each joint, since what balances exactly would never fall.

    Attributes:
      source: a trajectory (.npz of `gx.rendering.save_trajectory`), a bundled model, such as double-cart-pole, or the
        path of an MJCF file.
      output: the folder to write to, or one file whose name ends in .mp4, .png, .html or .npz.
      camera: name or number of the model's camera, or track, which goes along with the trunk; chosen if not given.
      width: of the film, pixels.
      height: of the film, pixels.
      fps: frames a second of the film; one a step if not given, 50 at most.
      formats: what to write, of mp4, png, html, npz; by default the first three, or what the output's name ends in.
      seconds: how long a model moves.
    """

    source: Annotated[str, tyro.conf.Positional]
    output: Path = Path("renders")
    camera: str | None = None
    width: int = 640
    height: int = 480
    fps: float | None = None
    formats: tuple[Format, ...] = ()
    seconds: float = 4.0


def render(arguments: list[str]) -> None:
    """Parses the flags, draws and writes."""
    command = tyro.cli(RenderCommand, args=arguments, prog="galvanax render")
    name = Path(command.source).stem
    stem, formats = _targets(command, name)
    clip = read_source(command.source, command.seconds)
    written = write_clip(
        stem,
        clip,
        formats,
        camera=command.camera,
        width=command.width,
        height=command.height,
        fps=command.fps,
        title=name,
    )
    print(f"wrote {', '.join(map(str, written))}: {clip.time[-1] - clip.time[0]:.2f} s, {len(clip.qpos)} steps")


def read_source(source: str, seconds: float) -> MotionClip:
    """A trajectory file's motion, or that of a model left to itself.

    Raises:
      DataError: it is neither, or can't be read.
    """
    if source.endswith(".npz"):
        if not Path(source).is_file():
            beside = [str(path) for path in Path(source).parent.glob("*.npz")]
            raise DataError(f"No trajectory {source!r}.{nearest(source, beside)}")
        return load_trajectory(source)
    if source not in bundled_models() and not Path(source).is_file():
        known = nearest(source, bundled_models())
        raise DataError(f"{source!r} is neither a trajectory (.npz), nor an MJCF file, nor a bundled model.{known}")
    return move_freely(load_model(source), seconds)


def move_freely(model: mujoco.MjModel, seconds: float) -> MotionClip:
    """A model's motion from its first keyframe, or from a nudge; see `RenderCommand`.

    Raises:
      ConfigError: the time makes no sense.
      DataError: the simulation breaks.
    """
    if not 0 < seconds <= 3600:
        raise ConfigError(f"seconds={seconds}: expected from 0 to 3600.")
    data = mujoco.MjData(model)
    if model.nkey:
        mujoco.mj_resetDataKeyframe(model, data, 0)
    else:
        data.qvel[:] = NUDGE
    substeps = max(1, round(STEP / model.opt.timestep))
    qpos, qvel, ctrl = [], [], []
    times = []
    while data.time <= seconds + 1e-9:
        qpos.append(data.qpos.copy())
        qvel.append(data.qvel.copy())
        ctrl.append(data.ctrl.copy())
        times.append(data.time)
        mujoco.mj_step(model, data, substeps)
        if data.time <= times[-1]:  # MuJoCo has begun anew
            raise DataError(
                f"The simulation breaks after {times[-1]:.3f} s; is timestep={model.opt.timestep} s too long?"
            )
    return MotionClip(model, np.array(qpos), np.array(times), np.array(qvel), np.array(ctrl))


def _targets(command: RenderCommand, name: str) -> tuple[Path, tuple[Format, ...]]:
    """Where to write, without suffix, and what."""
    suffix = command.output.suffix.lower().removeprefix(".")
    for known in FORMATS:
        if suffix == known:
            if command.formats not in ((), (known,)):
                raise ConfigError(f"output={command.output} is one file; with formats, expected a folder.")
            return command.output.with_suffix(""), (known,)
    if command.output.is_file():
        raise ConfigError(f"output={command.output} is a file; expected a folder, or a name that ends in .mp4.")
    return command.output / name, command.formats or ("mp4", "png", "html")
