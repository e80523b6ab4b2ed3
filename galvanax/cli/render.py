"""`galvanax render SOURCE`: a motion, or a model left to itself, as film, contact sheet and web page."""

import dataclasses
from pathlib import Path
from typing import Annotated

import mujoco
import numpy as np
import tyro

from galvanax.datamodules.motion_file import MotionFile
from galvanax.datamodules.npz_table import NpzFile
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
      source: a trajectory (.npz of `gx.rendering.save_trajectory`), episodes (.npz of `galvanax collect`), a bundled
        model, such as double-cart-pole, or the path of an MJCF file.
      output: the folder to write to, or one file whose name ends in .mp4, .png, .html or .npz.
      camera: name or number of the model's camera, or track, which goes along with the trunk; chosen if not given.
      width: of the film, pixels.
      height: of the film, pixels.
      fps: frames a second of the film; one a step if not given, 50 at most.
      formats: what to write, of mp4, png, html, npz; by default the first three, or what the output's name ends in.
      seconds: how long a model moves.
      episode: which of a file's episodes, from 0 on; by default the first.
    """

    source: Annotated[str, tyro.conf.Positional]
    output: Path = Path("renders")
    camera: str | None = None
    width: int = 640
    height: int = 480
    fps: float | None = None
    formats: tuple[Format, ...] = ()
    seconds: float = 4.0
    episode: int | None = None


def render(arguments: list[str]) -> None:
    """Parses the flags, draws and writes."""
    command = tyro.cli(RenderCommand, args=arguments, prog="galvanax render")
    name = Path(command.source).stem
    stem, formats = _targets(command, name)
    clip = read_source(command.source, command.seconds, command.episode)
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


def read_source(source: str, seconds: float, episode: int | None = None) -> MotionClip:
    """A trajectory file's motion, that of one of a file's episodes (the first), or that of a model left to itself.

    Raises:
      DataError: it is neither, or can't be read.
    """
    if source.endswith(".npz"):
        if not Path(source).is_file():
            beside = [str(path) for path in Path(source).parent.glob("*.npz")]
            raise DataError(f"No trajectory {source!r}.{nearest(source, beside)}")
        with NpzFile(source) as file:
            if "states" in file and "qpos" not in file:
                return _read_episode(source, episode or 0)
        if episode is not None:
            raise ConfigError(f"episode={episode}: {source} holds one motion.")
        return load_trajectory(source)
    if episode is not None:
        raise ConfigError(f"episode={episode}: {source} is a model; expected a file of `galvanax collect`.")
    if source not in bundled_models() and not Path(source).is_file():
        known = nearest(source, bundled_models())
        raise DataError(f"{source!r} is neither a trajectory (.npz), nor an MJCF file, nor a bundled model.{known}")
    return move_freely(load_model(source), seconds)


def _read_episode(source: str, episode: int) -> MotionClip:
    """An episode of a file of `galvanax collect`, on the bundled model that it names."""
    file = MotionFile.open(source)
    if file.model_name not in bundled_models():
        known = nearest(file.model_name or "", bundled_models())
        raise DataError(f"{source}: model_name={file.model_name!r} is no bundled model; it can't be drawn.{known}")
    episodes = file.trajectories()
    if not 0 <= episode < len(episodes):
        raise ConfigError(f"episode={episode}: {source} has {len(episodes)} episodes, from 0 on.")
    one = episodes[episode]
    qpos, qvel = np.split(one.states, [one.nq], axis=1)
    try:
        return MotionClip(load_model(str(file.model_name)), qpos, one.timestamp, qvel)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


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
