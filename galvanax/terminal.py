"""What a run says on the terminal. Nobody may be listening any more, which is no reason to end."""

import contextlib

from rich.console import Console


class Terminal(Console):
    """A console that falls silent where its output is gone (`galvanax fit ... | head`); rich's would end it."""

    def on_broken_pipe(self) -> None:
        """Says nothing more."""
        self.quiet = True


def say(text: object) -> None:
    """Prints, if it can be printed."""
    with contextlib.suppress(OSError):
        print(text, flush=True)
