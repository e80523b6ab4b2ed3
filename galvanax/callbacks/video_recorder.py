"""What the policy or the model does, to look at while it learns."""

import dataclasses
import logging
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from flax import nnx

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.run_view import RunView
from galvanax.datamodules.datamodule import DataModule
from galvanax.errors import ConfigError, GalvanaxError
from galvanax.files import describe_os_error
from galvanax.rendering.renderer import start_gl
from galvanax.rendering.trajectory_npz import MotionClip
from galvanax.rendering.write_clip import NEED_GL, Format, check_formats, write_clip
from galvanax.trainer import processes
from galvanax.trainer.schedule import Epochs, Steps, check_interval, next_multiple

log = logging.getLogger("galvanax")


@runtime_checkable
class RecordsMotion(Protocol):
    """What a task must have for `VideoRecorder`."""

    def record(self, model: nnx.Module, datamodule: DataModule, num_steps: int) -> MotionClip:
        """A motion to look at: the same each time for the same weights.

        Args:
          model: with evaluation weights, in evaluation mode.
          datamodule: the run's.
          num_steps: control steps, at most.
        """
        ...


@dataclasses.dataclass
class VideoRecorder(Callback):
    """Writes `run_dir/videos/step_00001000.mp4`, `.png` (a contact sheet), `.html` (a player) and `.npz` (the motion).

    The task must define `record(model, datamodule, num_steps) -> gx.rendering.MotionClip`. A picture that can't be
    drawn or written ends no run: the log says so once. But that there is something to draw with is checked at the
    start.

    Attributes:
      every: how often; None: after each validation.
      num_steps: control steps of a motion.
      camera: name or number of the model's camera; "track" goes along with the trunk; None chooses.
      width: of the film, pixels.
      height: of the film, pixels.
      formats: what to write; html and npz need no OpenGL.
    """

    writes_files: ClassVar[bool] = True
    one_of_a_kind: ClassVar[bool] = True

    every: Steps | Epochs | None = None
    num_steps: int = 500
    camera: str | int | None = None
    width: int = 640
    height: int = 480
    formats: tuple[Format, ...] = ("mp4", "png", "html", "npz")

    def __post_init__(self) -> None:
        check_interval("VideoRecorder.every", self.every, (Steps, Epochs), optional=True)

    def on_fit_start(self, run: RunView) -> None:
        """Checks settings, task and renderer.

        Raises:
          ConfigError: a setting makes no sense, or the task has no `record`.
          RenderError: there is no off-screen OpenGL, and mp4 or png is asked for.
        """
        check_formats(self.formats)
        if not isinstance(run.task, RecordsMotion):
            raise ConfigError(
                f"VideoRecorder needs a task that shows a motion: {type(run.task).__name__} has no method "
                "record(model, datamodule, num_steps) -> gx.rendering.MotionClip."
            )
        if self.num_steps < 1:
            raise ConfigError(f"VideoRecorder.num_steps={self.num_steps}: expected at least 1.")
        if self.every is None and run.evaluator is None:
            raise ConfigError("VideoRecorder.every is None, after each validation, and there is none: say Steps(...).")
        self._interval = None if self.every is None else self.every.in_steps(run.steps_per_epoch)
        self._warned = False
        if processes.is_main() and any(name in NEED_GL for name in self.formats):
            start_gl()

    def next_step(self, step: int) -> int | None:
        """See `Callback`."""
        return None if self._interval is None else next_multiple(step, self._interval)

    def on_step(self, run: RunView) -> None:
        """See `Callback`."""
        self._record(run)

    def on_validation_end(self, run: RunView, metrics: dict[str, float]) -> None:
        """See `Callback`."""
        if self._interval is None:
            self._record(run)

    def _record(self, run: RunView) -> None:
        assert run.run_dir is not None
        assert isinstance(run.task, RecordsMotion)
        model = run.model()
        if not processes.is_main():
            return
        clip = run.task.record(model, run.datamodule, self.num_steps)
        stem = run.run_dir / "videos" / f"step_{run.step:08}"
        try:
            self._write(stem, clip, f"{run.config['trainer'].get('name') or run.run_dir.name}, step {run.step}")
        except Exception as error:  # also of ffmpeg, MuJoCo and the system
            if not self._warned:
                reason = describe_os_error(error, stem) if isinstance(error, OSError) else error
                what = f"{error}" if isinstance(error, GalvanaxError) else f"{stem}.* can't be written: {reason}."
                log.warning("VideoRecorder: %s The run goes on.", what)
            self._warned = True

    def _write(self, stem: Path, clip: MotionClip, title: str) -> None:
        write_clip(
            stem,
            clip,
            self.formats,
            camera=self.camera,
            width=self.width,
            height=self.height,
            title=title,
        )
