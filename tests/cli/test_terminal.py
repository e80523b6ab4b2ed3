"""What commands say fits a terminal of 80 columns, and nothing of it is cut anywhere."""

import contextlib
import io

import pytest
from rich.table import Table

from galvanax.cli.main import main
from galvanax.experiments.registry import EXPERIMENTS
from galvanax.terminal import print_table


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def says(monkeypatch):
    """The lines of a command, on a terminal of some columns or (None) in a pipe."""

    def lines(command, columns):
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setenv("COLUMNS", str(columns or 80))
        out = io.StringIO() if columns is None else Screen()
        with contextlib.redirect_stdout(out):
            command()
        return out.getvalue().splitlines()

    return lines


@pytest.mark.parametrize("command", [["list"], ["--help"]])
def test_lines_of_a_terminal(says, command):
    assert max(map(len, says(lambda: main(command), 80))) <= 80


def test_experiments_are_told_apart(says):
    """A name stands alone at the left, whatever room there is; in a pipe, each has a line."""
    for columns in (60, 80, 200):
        lines = says(lambda: main(["list"]), columns)
        assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(EXPERIMENTS)
    piped = says(lambda: main(["list"]), None)
    assert len(piped) == len(EXPERIMENTS)
    assert piped[0].rstrip().endswith("from wide starts (angles over the whole circle). Presets: paper.")


@pytest.mark.parametrize("columns", [30, 80, None])
def test_long_names_are_whole(says, columns):
    name, value = "mjx_open_loop_50_final_mse_over_persistence/" * 2, "runs/" + "long-name/" * 8

    def command():
        table = Table("figure", "value")
        table.add_row(name, value)
        print_table(table)

    lines = says(command, columns)
    cells = [line.split("│")[1:3] for line in lines if "│" in line]
    assert ["".join(cell.strip() for cell in column) for column in zip(*cells, strict=True)] == [name, value]
    assert len(cells) == 1 or columns is not None
