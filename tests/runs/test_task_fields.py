"""The fields of a task come back from a run's folder as they were."""

import dataclasses
import enum
import math
from pathlib import Path
from typing import Literal

import pytest
from support import LineTask, line_data

import galvanax as gx


class Mode(enum.Enum):
    SLOW = "slow"
    FAST = "fast"


@dataclasses.dataclass(frozen=True)
class Part:
    rate: float = 1.0
    names: tuple[str, ...] = ("a",)


@dataclasses.dataclass(frozen=True)
class FieldsTask(LineTask):
    mode: Mode = Mode.SLOW
    part: Part = Part()
    maybe: float | None = None
    maybe_part: Part | None = None
    word: Literal["x", "y"] = "x"
    either: int | str = 3
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    pairs: tuple[tuple[int, float], ...] = ()
    numbers: list[int] = dataclasses.field(default_factory=list)
    high: float = 1.0
    low: float = 1.0
    tiny: float = 1.0
    large: int = 1
    path: Path = Path()
    flag: bool = False


@pytest.mark.behaviour("peers 137", "reports 24")
def test_every_kind_comes_back(tmp_path):
    task = FieldsTask(
        0.25, Mode.FAST, Part(2.0, ("é", "")), 0.1, Part(3.0), "y", "3", {"ä b": 1.0, "": 2.0}, ((1, 2.0), (3, 4.5)),
        [5, 6], math.inf, -math.inf, 1e-310, 2**70, Path("/a b/ü"), True,
    )  # fmt: skip
    assert all(getattr(task, field.name) != field.default for field in dataclasses.fields(task))
    gx.Trainer(max_steps=1, run_dir=tmp_path).fit(task, line_data())
    found, _ = FieldsTask.load(tmp_path)
    assert found == task
    for field in dataclasses.fields(task):
        assert type(getattr(found, field.name)) is type(getattr(task, field.name)), field.name


@pytest.mark.behaviour("peers 138")
def test_a_class_that_has_changed(tmp_path):
    """A field that is new takes its default; one that is gone is named."""
    gx.Trainer(max_steps=1, run_dir=tmp_path).fit(LineTask(0.5), line_data())
    more = dataclasses.make_dataclass("LineTask", [("extra", int, 7)], bases=(LineTask,), frozen=True)
    assert dataclasses.asdict(more.load(tmp_path)[0]) == {"learning_rate": 0.5, "extra": 7}
    less = dataclasses.dataclass(frozen=True)(type("LineTask", (gx.Task,), {"build_model": LineTask.build_model}))
    with pytest.raises(gx.ConfigError, match=r"LineTask.*learning_rate"):
        less.load(tmp_path)
