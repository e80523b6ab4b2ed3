"""The examples run; what they reach is in the documentation."""

import importlib.util
import json
from pathlib import Path

import mujoco
import numpy as np
import pytest

import galvanax as gx

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_logs(folder):
    """A cart-pole near the top, pushed at random for 0.8 s, by C MuJoCo."""
    model, rng = gx.physics.load_model("cart-pole"), np.random.default_rng(0)
    folder.mkdir()
    for index in range(40):
        data, rows, actions = mujoco.MjData(model), [], rng.uniform(-1, 1, (40, 1))
        data.qpos, data.qvel = rng.uniform(-0.3, 0.3, 2), rng.uniform(-1, 1, 2)
        for action in actions:
            rows.append(np.concatenate([data.qpos, data.qvel]))
            data.ctrl = action
            mujoco.mj_step(model, data, round(0.02 / model.opt.timestep))
        states, time = np.array(rows), 0.02 * np.arange(40)
        np.savez(folder / f"{index}.npz", timestamp=time, qpos=states[:, :2], qvel=states[:, 2:], ctrl=actions)


@pytest.mark.slow
def test_plan(tmp_path, capsys):
    write_logs(tmp_path / "logs")
    logs = gx.TrajectoryDataModule(str(tmp_path / "logs"), system="cart-pole", history=4, horizon=5, batch_size=64)
    task = gx.GRUDynamicsTask(hidden_size=16, learning_rate=0.01)
    trainer = gx.Trainer(max_steps=150, run_dir=tmp_path / "run", callbacks=[gx.GradientClipping(1.0)])
    trainer.fit(task, logs)
    plan = load("plan")
    settings = {"start": "near-top", "seeds": 1, "num_samples": 8, "run_dir": tmp_path / "run", "output_dir": tmp_path}
    plan.main(plan.Plan(seconds=0.4, **settings))
    report = json.loads((tmp_path / "cart-pole-near-top.json").read_text())
    # A plan that pushes one way has the pole down to 0.9 in this time.
    assert report["true"][0]["mean_reward"] > 0.99
    assert report["learned"][0]["mean_reward"] > 0.99
    assert report["learned"][0]["mean_reward"] != report["true"][0]["mean_reward"]
    assert (tmp_path / "cart-pole-near-top.png").stat().st_size > 1000
    said = capsys.readouterr().out
    assert "cart-pole, true model, start 0:  mean_reward" in said
    assert "cart-pole, learned model, start 0:  mean_reward" in said
    plan.CONTROL_DT = 0.04
    with pytest.raises(gx.ConfigError, match=r"run learned steps of 0.02\d* s; expected 0.04 s"):
        plan.main(plan.Plan(seconds=0.1, **settings))
