"""Which columns of a logged table are time, positions, velocities and controls."""

import dataclasses
import logging
import re
from collections.abc import Sequence

from galvanax.errors import DataError, nearest

TIME = "timestamp"
GROUPS = ("qpos", "qvel", "ctrl")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Where the columns that matter stand in a table.

    Attributes:
      names: `timestamp`, then `qpos_0`, `qpos_1`, ..., `qvel_0`, ..., `ctrl_0`, ..., as the file spells them.
      places: the place of each in the file, from 0.
      nq: number of positions.
      nv: number of velocities.
    """

    names: tuple[str, ...]
    places: tuple[int, ...]
    nq: int
    nv: int


def find_columns(where: str, header: Sequence[str]) -> Columns:
    """Finds the columns by name, each group in the order of its numbers (`qpos_2` before `qpos_10`).

    Other columns are ignored, with a note in the log, unless their names begin like those of a group: those are
    mistakes (`qpos2`, `ctrl_left`).

    Args:
      where: the file, and the line if it has lines, for the message.
      header: all names of the table, in its order; blanks around them don't count.

    Raises:
      DataError: a column is missing, given twice or misspelt.
    """
    names = [name.strip() for name in header]
    numbered: dict[str, dict[int, int]] = {group: {} for group in GROUPS}
    ignored = []
    for place, name in enumerate(names):
        match = re.fullmatch(r"(qpos|qvel|ctrl)_([0-9]{1,6})", name)
        if match is None:
            if name.startswith(GROUPS):
                raise DataError(f"{where}, column {name!r}: expected such as {name[:4]}_0, or another name.")
            if name != TIME:
                ignored.append(name)
            continue
        group = numbered[match[1]]
        if int(match[2]) in group:
            twice = f"columns {group[int(match[2])] + 1} and {place + 1}"
            raise DataError(f"{where}, column {name!r} stands there twice ({twice}).")
        group[int(match[2])] = place
    if names.count(TIME) != 1:
        found = f"stands there {names.count(TIME)} times" if TIME in names else f"is missing.{nearest(TIME, names)}"
        raise DataError(f"{where}, column {TIME!r} {found}")
    for kind, known in numbered.items():
        missing = next(number for number in range(len(known) + 1) if number not in known)
        if not known or max(known) > missing:
            beside = (
                f"there are {', '.join(f'{kind}_{number}' for number in sorted(known))}" if known else "none is there"
            )
            raise DataError(f"{where}, column '{kind}_{missing}' is missing: {beside}; the header is {names}.")
    if ignored:
        logger.info("%s: ignoring the columns %s.", where, ", ".join(map(repr, ignored)))
    places = [names.index(TIME), *(numbered[group][number] for group in GROUPS for number in sorted(numbered[group]))]
    return Columns(tuple(names[place] for place in places), tuple(places), len(numbered["qpos"]), len(numbered["qvel"]))
