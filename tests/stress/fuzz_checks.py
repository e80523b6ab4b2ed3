"""What must hold after a run folder was read."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from galvanax.runs.checkpoints import CheckpointFolder
from galvanax.runs.integrity import DamagedError, verify

LONGEST_MESSAGE = 2000  # characters
SET_ASIDE = (".partial-", ".deleted-", ".lock")  # names of what a kill may have left, which is cleared


def complaints(message: str, run: Path) -> Iterator[str]:
    """What is wrong with a refusal."""
    if "\n" in message:
        yield f"the message has several lines: {message[:300]!r}"
    if str(run) not in message:
        yield f"the message names nothing of the folder: {message[:300]!r}"
    if len(message) > LONGEST_MESSAGE:
        yield f"the message has {len(message)} characters: {message[:100]!r}"
    if not message.replace("\n", "").isprintable():
        yield f"the message has characters that can't be printed: {message[:300]!r}"


def inventory(folder: Path) -> dict[str, str]:
    """What is in a folder, by path: a digest of each file, where each link leads, or another kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha1").hexdigest()
        else:
            found[name] = f"link to {os.readlink(path)}" if stat.S_ISLNK(mode) else f"mode {stat.S_IFMT(mode):o}"
    return found


def gone(reader: Any, outcome: str, before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    """Says what is no longer in a run's folder and should be."""
    contents = set(after.values())
    new = [step for step in steps_of(after) if step not in steps_of(before)]
    trained = reader.trains and (outcome == "fine" or bool(new))
    lost = []
    for name, content in before.items():
        top, *rest = name.split("/")
        if content == f"mode {stat.S_IFDIR:o}" or after.get(name) == content:
            continue
        if reader.trains and content in contents:
            continue  # elsewhere
        if top in reader.writes or any(part.startswith(SET_ASIDE) for part in (top, *rest)):
            continue
        if trained and top in ("config.json", "metrics.csv", "tensorboard", "evaluations"):
            continue
        # A newer one is there, so that this one may go, as a whole.
        step = rest[0] if top == "checkpoints" and rest else ""
        if trained and step.isdecimal() and step not in steps_of(after) and int(steps_of(after)[-1]) > int(step):
            continue
        lost.append(name)
    if lost:
        yield f"{outcome}, and gone or changed: {', '.join(lost[:5])} ({len(lost)} in all)"


def steps_of(found: dict[str, str]) -> list[str]:
    """The checkpoints of an inventory, in order; in the order of their names as numbers."""
    names = {name.split("/")[1] for name in found if name.startswith("checkpoints/")}
    return sorted((name for name in names if name.isdecimal()), key=int)


def damaged_steps(run: Path) -> list[str]:
    """The checkpoints that are not as they were written."""
    damaged = []
    folder = CheckpointFolder(run)
    for step in folder.steps() if not folder.path.is_symlink() else ():
        try:
            verify(folder.path / str(step))
        except DamagedError:
            damaged.append(str(step))
        except Exception:
            continue  # the commands will tell
    return damaged


def pruned_damage(damaged: list[str], after: dict[str, str]) -> list[str]:
    """Remarks on damaged checkpoints that a fit has deleted with the obsolete ones."""
    kept = {
        name.split("/")[2] for name in after if name.startswith(("checkpoints/damaged/", "checkpoints/superseded/"))
    }
    lost = [step for step in damaged if step not in steps_of(after) and step not in kept]
    return ["a damaged checkpoint was deleted with the obsolete ones, not set aside"] if lost else []
