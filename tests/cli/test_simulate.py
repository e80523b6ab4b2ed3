"""`galvanax simulate`: what it writes is what MuJoCo does."""

import csv

import mujoco
import numpy as np
import pytest
import tyro

from galvanax.cli.main import main
from galvanax.cli.simulate import SimulateCommand
from galvanax.physics import load_model


def columns(path):
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def test_logs_agree_with_c_mujoco(tmp_path, capsys):
    """Every row, stepped in C MuJoCo under its control, is the next row."""
    folder = tmp_path / "logs"
    flags = ["--output", str(folder), "--num-trajectories", "6", "--length", "60", "--seed", "3"]
    main(["simulate", "double-cart-pole", *flags])
    assert "wrote 6 trajectories of 60 rows" in capsys.readouterr().out
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"trajectory_{i:04}.csv" for i in range(6)]
    model = load_model("double-cart-pole")
    data = mujoco.MjData(model)
    substeps = round(0.02 / model.opt.timestep)
    starts, controls, moved = [], [], 0.0
    for file in files:
        log = columns(file)
        assert list(log) == ["timestamp", *(f"{kind}_{i}" for kind in ("qpos", "qvel") for i in range(3)), "ctrl_0"]
        np.testing.assert_allclose(log["timestamp"], 0.02 * np.arange(60), atol=1e-12)
        states = np.stack([log[name] for name in list(log)[1:7]], 1)
        for row in range(59):
            data.qpos, data.qvel, data.ctrl = states[row, :3], states[row, 3:], log["ctrl_0"][row]
            data.qacc_warmstart = 0
            mujoco.mj_step(model, data, substeps)
            np.testing.assert_allclose([*data.qpos, *data.qvel], states[row + 1], atol=1e-4)
            moved = max(moved, np.abs(states[row + 1] - states[row]).max())
        starts.append(states[0])
        controls.append(log["ctrl_0"])
    starts, controls = np.array(starts), np.array(controls)
    assert moved > 0.1
    assert (np.abs(starts[:, 0]) <= 2).all()
    assert np.ptp(starts[:, 1]) > 2
    assert (np.abs(starts[:, 3:]) <= 2).all()
    # Uniform between the limits, and alike over a tenth of a second: exp(-0.02 / 0.1) from row to row.
    assert (np.abs(controls) <= 1).all()
    assert controls.std() == pytest.approx(3**-0.5, abs=0.1)
    assert np.corrcoef(controls[:, :-1].ravel(), controls[:, 1:].ravel())[0, 1] == pytest.approx(0.81, abs=0.08)

    with pytest.raises(SystemExit):
        main(["simulate", "double-cart-pole", *flags])
    assert f"output={folder} holds trajectory_" in capsys.readouterr().err
    (folder / "notes.txt").write_text("mine")
    first = files[0].read_bytes()
    flags[3] = "3"
    main(["simulate", "double-cart-pole", *flags, "--overwrite"])
    assert sorted(file.name for file in folder.iterdir()) == ["notes.txt", *(file.name for file in files[:3])]
    # A trajectory depends on its number and the seed alone.
    assert files[0].read_bytes() == first


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["cart-poel", "--output", "x"], "Nearest: cart-pole"),
        (["cart-pole", "--output", "x", "--control-dt", "0.015"], "control_dt=0.015 s is no multiple"),
        (["cart-pole", "--output", "x", "--velocity-range", "1", "-1"], "velocity_min=1.0 is above"),
        (["cart-pole", "--output", "x", "--correlation-time", "-1"], "correlation_time=-1.0; expected seconds"),
    ],
)
def test_wrong_flags(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["simulate", *flags])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.behaviour("reports 35")
@pytest.mark.parametrize(
    "values", ["-1 1", "-0.5 0.5", "-5e-1 5e-1", "-1e-3 1e-3", "-.5 .5", "-1E-3 -1e-4", "-inf inf"]
)
def test_negative_numbers_are_no_flags(values):
    flags = ["pendulum", "--output", "logs", "--velocity-range", *values.split(), "--seed", "3"]
    command = tyro.cli(SimulateCommand, args=flags)
    assert command.velocity_range == tuple(map(float, values.split()))
    assert command.seed == 3
