"""From simulated logs to an evaluation beside another run, by the command alone."""

import json
import re
import shutil

import numpy as np
from pictures import drawn, words

import galvanax as gx
from galvanax.cli.main import main


def labelled(figures):
    """The pictures have units; the rail's coordinate is a length, the poles' are angles (the logs don't say)."""
    entries = [axes.get_ylabel() for axes in figures["predicted_vs_true.png"].axes]
    positions = ["qpos 0 (m or rad)", "qpos 1 (rad)", "qpos 2 (rad)"]
    assert entries == [*positions, "qvel 0 (m/s or rad/s)", "qvel 1 (rad/s)", "qvel 2 (rad/s)"]
    assert words(figures["predicted_vs_true.png"]) == ["true", "model, fed back"]
    growth = figures["error_growth.png"]
    units = {axes.get_title(): axes.get_ylabel().partition("\n")[2] for axes in growth.axes}
    assert units == {
        "all": "(normalised)",
        "positions": "(m²)",
        "angles": "(rad²)",
        "velocities": "(m²/s² or rad²/s²)",
    }
    assert words(growth) == ["model", "persistence", "linear extrapolation", "horizon"]


def test_logs_near_the_reference_pose(tmp_path):
    flags = ["--near-reference", "0.2", "--velocity-range", "-0.5", "0.5", "--num-trajectories", "5", "--length", "3"]
    main(["simulate", "double-cart-pole", "--output", str(tmp_path / "logs"), *flags])
    starts = np.stack([one.states[0] for one in gx.read_trajectories(str(tmp_path / "logs"))])
    assert 0.1 < np.abs(starts[:, :3]).max() <= 0.2
    assert 0.25 < np.abs(starts[:, 3:]).max() <= 0.5


def test_logs_to_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["simulate", "double-cart-pole", "--output", "logs", "--num-trajectories", "12", "--length", "60"])
    short = ["--data.data", "logs", "--trainer.max-epochs", "8", "--task.hidden-size", "16", "--data.history", "5"]
    short += ["--task.learning-rate", "0.01"]
    with drawn() as figures:
        main(["fit", "double-cart-pole-gru", *short])
    labelled(figures)
    main(
        [
            "fit",
            "double-cart-pole-gru",
            *short,
            "--task.train-horizon",
            "1",
            "--trainer.run-dir",
            "one",
            "--no-evaluate",
        ]
    )
    (record,) = (tmp_path / "runs" / "double-cart-pole-gru" / "evaluations").glob("*/test.json")
    figures = json.loads(record.read_text())
    assert figures["mse_over_persistence_step_9"] < 1
    assert figures["steps"] == 25  # half a trajectory
    capsys.readouterr()
    flags = ["--beside", "one", "--num-examples", "3", "--output-dir", "results", "--data", "logs", "--part", "test"]
    main(["evaluate", "runs/double-cart-pole-gru", *flags])
    figures = json.loads((tmp_path / "results" / "test.json").read_text())
    assert figures["num_examples"] == 3
    assert set(figures["error_growth"]) == {"model", "one", "persistence", "linear_extrapolation"}
    assert (tmp_path / "results" / "plots" / "error_growth.png").exists()
    out = capsys.readouterr().out
    for step in (1, 9):  # what is in the record, a row for each step
        values = [figures[f"{name}_step_{step}"] for name in ("mse", "mae", "mse_over_persistence")]
        cells = " *[│|] *".join([str(step), *(re.escape(f"{value:.4g}") for value in values)])
        assert re.search(rf"[│|] *{cells} *[│|]", out), out
    # Files that are named are measured whole: three logs, of which no tenth can be held out.
    (tmp_path / "few").mkdir()
    for path in sorted((tmp_path / "logs").glob("*.csv"))[:3]:
        shutil.copy(path, tmp_path / "few")
    main(["evaluate", "runs/double-cart-pole-gru", "--data", "few", "--output-dir", "whole"])
    figures = json.loads((tmp_path / "whole" / "test.json").read_text())
    assert figures["num_examples"] == 3 * (60 - 30 + 1)  # every window of half a log
