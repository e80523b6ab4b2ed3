"""Errors that tell the reader what to do next."""

import difflib
from collections.abc import Iterable


class GalvanaxError(Exception):
    """Base of the errors that Galvanax raises about what its user gave it."""


class DataError(GalvanaxError, ValueError):
    """A batch, an array or a file that is not what was promised."""


class ConfigError(GalvanaxError, ValueError):
    """A setting that cannot be met, or that contradicts another one."""


class NonFiniteError(GalvanaxError, FloatingPointError):
    """A loss became NaN or infinite; names the metric and the step."""


class RenderError(GalvanaxError, RuntimeError):
    """A picture or a film that can't be made here."""


class RunDirError(GalvanaxError, FileExistsError):
    """A run folder that already holds a run, or holds none where one was asked for."""


class CheckpointError(GalvanaxError, RuntimeError):
    """A checkpoint that is missing, damaged, or of something else."""


class ProcessError(GalvanaxError, RuntimeError):
    """Another process of the run was lost, or stopped by an error; names it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `" Nearest: a, b."`, or all the known names when none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f" Nearest: {', '.join(close)}."
    return f" Known: {', '.join(names) or 'none'}."


class Preempted(SystemExit):
    """The run was told to go (SIGTERM, SIGUSR1), has saved, and can be resumed. Ends the process with status 75.

    75 is EX_TEMPFAIL of sysexits.h: try again later.

    Attributes:
      step: the step that was saved.
    """

    def __init__(self, name: str, step: int):
        super().__init__(75)
        self.signal, self.step = name, step
