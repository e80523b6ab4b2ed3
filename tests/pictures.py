"""What is on the plots that are drawn."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from matplotlib.figure import Figure
from PIL import Image


@contextlib.contextmanager
def drawn() -> Iterator[dict[str, Figure]]:
    """The figures that are saved inside, by the name of the file; of those that go through a partial one, its name."""
    figures: dict[str, Figure] = {}
    original = Figure.savefig

    def save(figure: Figure, path: Path, **settings: object) -> None:
        figures[Path(path).name] = figure
        original(figure, path, **settings)

    with mock.patch.object(Figure, "savefig", save):
        yield figures


def words(figure: Figure) -> list[str]:
    """All texts of a figure's legends."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return [text.get_text() for legend in legends if legend is not None for text in legend.get_texts()]


def blank_part(path: Path) -> float:
    """The share of a picture's area in its largest upright or lying strip that is white."""
    marks = (np.asarray(Image.open(path).convert("L")) < 250).astype(int)
    return max(_longest(marks.any(axis=axis)) for axis in (0, 1))


def _longest(marked: np.ndarray) -> float:
    places = np.flatnonzero(np.concatenate([[True], marked, [True]]))
    return float((np.diff(places) - 1).max() / len(marked))
