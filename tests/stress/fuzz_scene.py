"""Where a run folder is changed, and what is around it."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

from runs import test_integrity as damage

from galvanax.runs.checkpoints import CheckpointFolder

MEGABYTE = 2**20


class Unfit(Exception):
    """A way that has nothing to change here; another is taken."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """Where a mutation happens.

    Attributes:
      run: the folder to change.
      outside: what links may lead to: `secret.txt`, `passwd`, `evil.py`, `folder/` and another run, `run/`.
      marker: what code of the folder would write, were it run.
      others: the folders of other runs, to copy from.
    """

    run: Path
    outside: Path
    marker: Path
    others: tuple[Path, ...]

    @property
    def checkpoints(self) -> list[Path]:
        """The run's, in order."""
        folder = CheckpointFolder(self.run)
        return [folder.path / str(step) for step in folder.steps()]

    def files(self) -> list[Path]:
        """Every file."""
        return sorted(path for path in self.run.rglob("*") if path.is_file() and not path.is_symlink())

    def any_file(self, rng: random.Random) -> Path:
        """A file of a checkpoint, or one of the run's other files; each kind comes up equally often."""
        if rng.random() < 0.6:
            return damage.some_file(rng, rng.choice(self.checkpoints[-2:]))
        return rng.choice([path for path in self.files() if "checkpoints" not in path.parts])

    def any_path(self, rng: random.Random) -> Path:
        """A file or a folder."""
        return self.any_file(rng) if rng.random() < 0.5 else rng.choice(sorted(self.run.rglob("*")))

    def name(self, path: Path) -> str:
        """As seen from the run's folder."""
        return str(path.relative_to(self.run))


Way = Callable[[random.Random, Scene], str]
