"""The picture of a run's course: what a reader finds in it."""

import warnings

import pytest
from pictures import drawn

from galvanax.cli.loss_curves import plot_loss_curves, read_log


@pytest.fixture
def draw(tmp_path):
    """`draw(table)` gives the picture's panels, `{title: (scale of the y-axis, {label: points})}`."""

    def draw(table):
        (tmp_path / "metrics.csv").write_text(table)
        with drawn() as figures, warnings.catch_warnings():
            warnings.simplefilter("error")  # what matplotlib finds odd would be on the user's terminal
            plot_loss_curves(read_log(tmp_path / "metrics.csv"), tmp_path / "loss_curves.png")
        assert (tmp_path / "loss_curves.png").read_bytes().startswith(b"\x89PNG")
        ((_, figure),) = figures.items()
        panels = {}
        for axes in figure.axes:
            lines = {line.get_label(): line for line in axes.get_lines()}
            # One that is not seen is not in the picture.
            assert all(line.get_marker() == "o" or len(line.get_xdata()) > 1 for line in lines.values())
            points = {label: list(map(tuple, line.get_xydata())) for label, line in lines.items()}
            panels[axes.get_title()] = (axes.get_yscale(), points)
        return panels

    return draw


def test_a_ppo_run_shows_its_returns(draw):
    panels = draw(
        "step,train/loss,train/episode_return,val/episode_return\n10,0.5,-20,\n20,-0.01,15.5,\n20,,,30\n30,0.2,40,\n"
    )
    assert panels == {
        "Loss": ("linear", {"train": [(10, 0.5), (20, -0.01), (30, 0.2)]}),
        "Episode return": ("linear", {"train": [(10, -20), (20, 15.5), (30, 40)], "val": [(20, 30)]}),
    }


def test_a_loss_above_zero_is_on_a_logarithmic_axis(draw):
    panels = draw("step,train/loss,val/loss\n10,1,\n20,1e-4,\n20,,1e-3\n")
    assert panels == {"Loss": ("log", {"train": [(10, 1), (20, 1e-4)], "val": [(20, 1e-3)]})}


@pytest.mark.parametrize("value", ["0", "-2.5"])
def test_no_value_is_swallowed_by_the_axis(draw, value):
    scale, curves = draw(f"step,train/loss,val/loss\n10,1,\n20,0.1,\n20,,{value}\n")["Loss"]
    assert scale != "log"
    assert curves["val"] == [(20, float(value))]


def test_nothing_was_logged(draw):
    assert draw("step,train/loss\n") == {"Loss": ("linear", {})}
