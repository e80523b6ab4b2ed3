"""Writes the tables of docs/testing.md, from `behaviours.csv` and the tests that are marked with its rows.

    uv run python tests/behaviours.py

A test shows a row by `@pytest.mark.behaviour("peers 47")`, and may show several. Test files are parsed, not imported.
"""

import ast
import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = TESTS / "behaviours.csv"
PAGE = TESTS.parent / "docs" / "testing.md"

SHOWN = ("holds", "holds in part")  # by a test at least
EXPLAINED = ("holds in part", "differs", "missing", "fails")

MARK = "<!-- From here on written by tests/behaviours.py. -->\n"
COLUMNS = ("", "library", "behaviour", "before", "now", "test")


@dataclasses.dataclass(frozen=True)
class Row:
    """A behaviour.

    Attributes:
      id: "peers 47" (other libraries' tests) or "reports 12" (public bug reports): what tests are marked with.
      topic: the part of the page.
      library: whose it is.
      behaviour: in our words.
      before: what it was at commit d51f5be.
      now: "holds", "holds in part", "differs" (on purpose), "missing" or "fails".
      why: the reason where it doesn't hold, and what to do instead.
    """

    id: str
    topic: str
    library: str
    behaviour: str
    before: str
    now: str
    why: str


def rows() -> list[Row]:
    """The table."""
    with TABLE.open(newline="") as file:
        return [Row(**row) for row in csv.DictReader(file)]


def marked() -> dict[str, list[str]]:
    """`{row: [tests]}`, each as `file.py::name`, below tests/."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            for decorator in getattr(node, "decorator_list", ()):
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.behaviour":
                    for row in map(ast.literal_eval, decorator.args):
                        found.setdefault(row, []).append(f"{path.relative_to(TESTS).as_posix()}::{node.name}")
    return found


def problems() -> list[str]:
    """What is wrong with table and marks, a line each."""
    table, tests = rows(), marked()
    ids = [row.id for row in table]
    found = [f"{row} is in the table twice" for row in sorted(set(ids)) if ids.count(row) > 1]
    found += [f"{tests[row][0]} is marked with {row!r}, which is no row" for row in tests if row not in ids]
    for row in table:
        if row.now not in {*SHOWN, *EXPLAINED}:
            found.append(f"{row.id}: now={row.now!r}; expected one of {', '.join({*SHOWN, *EXPLAINED})}")
        if row.now in SHOWN and row.id not in tests:
            found.append(f"{row.id}: no test is marked with it")
        if row.now in EXPLAINED and not row.why:
            found.append(f"{row.id}: {row.now}, and no word why")
        if row.now == "differs" and "](" not in row.why:
            found.append(f"{row.id}: differs on purpose, and no link to where that is said")
        for link in row.why.split("](")[1:]:
            if not (PAGE.parent / link.split(")")[0].split("#")[0]).exists():
                found.append(f"{row.id}: nothing is at {link.split(')')[0]}")
    return found


def page() -> str:
    """The text of docs/testing.md: what stands above the mark as it is, and the tables."""
    table, tests = rows(), marked()
    above = PAGE.read_text().split(MARK)[0]
    counts = {now: sum(row.now == now for row in table) for now in dict.fromkeys((*SHOWN, *EXPLAINED))}
    summary = ", ".join(f"{count} {now}" for now, count in counts.items() if count)
    parts = [above, MARK, f"\n{len(table)} rows: {summary}.\n"]
    topic = None
    for row in table:
        if row.topic != topic:
            topic = row.topic
            parts.append(f"\n### {topic}\n\n{_line(COLUMNS)}{_line(['---'] * len(COLUMNS))}")
        now = f"**{row.now}**" if row.now in EXPLAINED else row.now
        now += f": {row.why}" if row.why else ""
        names = ", ".join(f"[{test.split('::')[1]}](../tests/{test.split('::')[0]})" for test in tests.get(row.id, ()))
        cells = (row.id.split()[1], row.library, row.behaviour, row.before, now, names)
        parts.append(_line(cells))
    return "".join(parts)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


if __name__ == "__main__":
    for problem in problems():
        print(problem)
    PAGE.write_text(page())
