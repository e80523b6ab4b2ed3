"""Parsed trajectories, kept in the user's cache folder."""

import hashlib
import json
import logging
import os
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from galvanax.datamodules.trajectory_table import Trajectory

FORMAT = 2

# What numpy and zipfile raise about files that are not as they were written.
DAMAGE = (OSError, ValueError, KeyError, EOFError, SyntaxError, NotImplementedError, zipfile.BadZipFile, zlib.error)

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/galvanax/trajectories`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "galvanax" / "trajectories"


class Entry:
    """What was read from one source: a NPZ file, overwritten when the source's files change.

    Args:
      source: a folder, glob or file; it names the entry.
      files: its files; their sizes and times of change tell whether the entry is still true.
      period_tolerance: what the files were checked with.
    """

    def __init__(self, source: str | Path, files: list[Path], period_tolerance: float):
        absolute = os.path.abspath(os.path.expanduser(source))
        self.path = cache_folder() / f"{hashlib.sha256(absolute.encode()).hexdigest()[:32]}.npz"
        states = [(os.path.abspath(path), (info := path.stat()).st_size, info.st_mtime_ns) for path in files]
        self._key = json.dumps([FORMAT, period_tolerance, states])

    def load(self) -> list[Trajectory] | None:
        """The trajectories, or None if there is no entry, an outdated or a damaged one."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                if file["key"].item() != self._key:
                    return None
                # Zip archives carry a checksum of each array: damage doesn't pass.
                names, nq, bounds, timestamp, states, actions = (
                    file[name] for name in ("names", "nq", "bounds", "timestamp", "states", "actions")
                )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except DAMAGE as error:
            logger.warning("%s is damaged (%s): reading the files again.", self.path, error)
            return None
        return [
            Trajectory(str(name), timestamp[start:stop], states[start:stop], actions[start:stop], int(nq))
            for name, start, stop in zip(names, bounds[:-1], bounds[1:], strict=True)
        ]

    def save(self, trajectories: list[Trajectory]) -> None:
        """Writes the entry; a folder that can't be written is worth a warning, no more."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Written aside and moved: another process never sees half an entry.
            with tempfile.TemporaryDirectory(dir=self.path.parent) as aside:
                file = Path(aside) / self.path.name
                np.savez(
                    file,
                    key=np.array(self._key),
                    names=np.array([trajectory.name for trajectory in trajectories], np.str_),
                    nq=np.array(trajectories[0].nq),
                    bounds=np.cumsum([0, *map(len, trajectories)]),
                    timestamp=np.concatenate([trajectory.timestamp for trajectory in trajectories]),
                    states=np.concatenate([trajectory.states for trajectory in trajectories]),
                    actions=np.concatenate([trajectory.actions for trajectory in trajectories]),
                )
                os.replace(file, self.path)
        except OSError as error:
            logger.warning("Can't keep parsed trajectories in %s: %s.", self.path.parent, error)
