import mujoco
import numpy as np
import pytest

from galvanax.errors import DataError
from galvanax.physics import bundled_models, load_model


def test_bundled_pendulum_swings_as_a_pendulum(pendulum):
    """Its frequency of small swings is the textbook's √(m g l / I)."""
    data = mujoco.MjData(pendulum)
    mujoco.mj_forward(pendulum, data)
    inertia = np.zeros((1, 1))
    mujoco.mj_fullM(pendulum, data, inertia)
    # Rod of 0.2 kg with its middle at 0.25 m, bob of 0.8 kg at 0.5 m.
    torque = 9.81 * (0.2 * 0.25 + 0.8 * 0.5)
    data.qpos[0] = 0.01
    mujoco.mj_forward(pendulum, data)
    np.testing.assert_allclose(data.qacc[0], -0.01 * torque / inertia[0, 0], rtol=1e-3)


def test_every_bundled_model_compiles():
    assert "pendulum" in bundled_models()
    for name in bundled_models():
        assert load_model(name).nv > 0


def test_own_file(tmp_path):
    path = tmp_path / "ball.xml"
    path.write_text("<mujoco><worldbody><body><freejoint/><geom size='.1'/></body></worldbody></mujoco>")
    assert load_model(path).nq == 7


def test_misspelt_name():
    with pytest.raises(DataError, match=r"'pendulm'.*Nearest: pendulum"):
        load_model("pendulm")


def test_bad_file(tmp_path):
    path = tmp_path / "robot.xml"
    path.write_text("<mujoco><worldbody><body><geom size='oops'/></body></worldbody></mujoco>")
    with pytest.raises(ValueError, match=r"robot\.xml.*can't compile.*size"):
        load_model(path)
