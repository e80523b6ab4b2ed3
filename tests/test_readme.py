"""The README's code runs as it is printed."""

import re
from pathlib import Path

import jax
import mujoco
import numpy as np

from galvanax.envs import registry

README = Path(__file__).parent.parent / "README.md"


def test_the_custom_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "class SpringTask" in block]
    names: dict = {"__name__": "readme"}
    exec(code, names)
    assert names["result"].metrics["val/loss"] < 1e-3
    assert names["task"] == names["SpringTask"]()
    np.testing.assert_allclose(names["model"](names["xv"]), names["yv"], atol=0.1)
    assert (tmp_path / "runs" / "spring" / "metrics.csv").exists()


def test_the_two_commands_stand_at_the_top():
    text = README.read_text()
    first = text.index("pip install uv && uv run galvanax fit pendulum")
    assert first < text.index("pip install uv && uv run pytest") < text.index("## ")


def test_the_code_for_dynax_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (README.parent / "docs" / "dynax.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(code, names)
    expected = names["dataset"].next_states[0, 0]
    np.testing.assert_allclose(names["next_state"], expected, atol=0.02)


def test_the_page_on_porting_a_robot(tmp_path, monkeypatch):
    """Its robot resets and steps (traced: what it computes is the other robots'), and its experiment is one."""
    monkeypatch.chdir(tmp_path)
    page = README.parent / "docs" / "porting.md"
    names: dict = {"__name__": "porting"}
    try:
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            exec(code, names)
        experiment = names["experiment"]
        experiment.data.setup()
        env = experiment.data.train_env
    finally:
        registry._BUILDERS.pop("quad", None)
    state = jax.eval_shape(env.reset, jax.random.key(0))
    after = jax.eval_shape(env.step, state, np.zeros(8, np.float32))
    assert state.obs.shape == after.obs.shape == (36,)
    assert "reward/knees" in after.metrics
    # In the default pose the feet are just above the ground.
    model = env.mj_model
    data = mujoco.MjData(model)
    data.qpos[2], data.qpos[7:] = env.initial_height, env.default_pose
    mujoco.mj_forward(model, data)
    spheres = model.geom_type == mujoco.mjtGeom.mjGEOM_SPHERE
    lowest = data.geom_xpos[spheres, 2] - model.geom_size[spheres, 0]
    assert (lowest > 0).all()
    assert (lowest < 0.05).all()
    assert len(env.symmetry.action) == 8
