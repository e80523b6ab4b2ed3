"""What a run says on the terminal. Nobody may be listening any more, which is no reason to end."""

import contextlib

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


class Terminal(Console):
    """A console that falls silent where its output is gone (`galvanax fit ... | head`); rich's would end it."""

    def on_broken_pipe(self) -> None:
        """Says nothing more."""
        self.quiet = True


def say(text: object) -> None:
    """Prints, if it can be printed."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def print_table(table: Table) -> None:
    """Prints a table of which nothing is cut: folded on a narrow terminal, as wide as it is where there is none."""
    console = Terminal()
    for column in table.columns:
        column.overflow = "fold"
    if not console.is_terminal:
        wide = console.options.update(max_width=10_000)
        console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)
