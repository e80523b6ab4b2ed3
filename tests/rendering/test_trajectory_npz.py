"""Trajectories in files: what comes back, and what is said of a file that is none."""

import mujoco
import numpy as np
import pytest

import galvanax as gx
from galvanax import rendering
from galvanax.physics import bundled_models, load_model

STEPS = 7


def arrays(model, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=(STEPS, getattr(model, n)))
        for name, n in (("qpos", "nq"), ("qvel", "nv"), ("ctrl", "nu"))
    }


def test_round_trip(tmp_path):
    model = load_model("double-cart-pole")
    given = arrays(model)
    time = 1 + 0.02 * np.arange(STEPS)
    rendering.save_trajectory(tmp_path / "a.npz", "double-cart-pole", **given, time=time, reward=np.arange(STEPS))
    clip = rendering.load_trajectory(tmp_path / "a.npz")
    for name, array in given.items():
        np.testing.assert_array_equal(getattr(clip, name), array)
    np.testing.assert_array_equal(clip.time, time)
    np.testing.assert_array_equal(clip.extra["reward"], np.arange(STEPS))
    assert clip.joint_names == ("slider", "hinge_1", "hinge_2")
    assert clip.dt == pytest.approx(0.02)
    assert '<mujoco model="double-cart-pole">' in clip.xml
    np.testing.assert_array_equal(clip.model.geom_size, model.geom_size)
    # It is a log too.
    (log,) = gx.read_trajectories(tmp_path / "a.npz", cache=False)
    np.testing.assert_allclose(log.actions, given["ctrl"])


def model_of_parts(tmp_path):
    """A model of several files, and with a mesh."""
    (tmp_path / "leg.xml").write_text(
        '<mujoco><worldbody><body name="leg"><joint name="knee"/><geom type="mesh" mesh="tetra"/></body></worldbody>'
        "</mujoco>"
    )
    (tmp_path / "tetra.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 2 3 4\nf 1 4 3\n")
    main = tmp_path / "robot.xml"
    main.write_text(
        '<mujoco model="robot"><asset><mesh name="tetra" file="tetra.obj"/></asset><include file="leg.xml"/></mujoco>'
    )
    return main


def test_a_file_needs_no_other_file(tmp_path):
    main = model_of_parts(tmp_path)
    rendering.save_trajectory(tmp_path / "a.npz", main, np.zeros((2, 1)))
    model = load_model(main)
    for path in (main, tmp_path / "leg.xml", tmp_path / "tetra.obj"):
        path.unlink()
    clip = rendering.load_trajectory(tmp_path / "a.npz")
    np.testing.assert_array_equal(clip.model.mesh_vert, model.mesh_vert)
    assert 'joint name="knee"' in clip.xml


@pytest.mark.parametrize("given", ["name", "model", "spec"])
def test_another_version_of_mujoco_reads_it(tmp_path, given):
    """The binary model is of one version; MJCF and bundled names are not."""
    path = bundled_models()["pendulum"]
    model = {"name": "pendulum", "model": load_model("pendulum"), "spec": mujoco.MjSpec.from_file(str(path))}[given]
    rendering.save_trajectory(tmp_path / "a.npz", model, np.zeros((2, 1)))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        content = dict(file)
    content["mujoco_version"] = np.str_("3.0.0")
    np.savez(tmp_path / "b.npz", **content)
    assert (
        rendering.load_trajectory(tmp_path / "b.npz").joint_names
        == rendering.load_trajectory(tmp_path / "a.npz").joint_names
    )


def test_a_model_that_cannot_be_read(tmp_path):
    model = mujoco.MjModel.from_xml_string(
        '<mujoco model="mine"><worldbody><body><joint/><geom size="1"/></body></worldbody></mujoco>'
    )
    rendering.save_trajectory(tmp_path / "a.npz", model, np.zeros((2, 1)))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        content = dict(file)
    np.savez(tmp_path / "b.npz", **{**content, "mujoco_version": np.str_("3.0.0")})
    with pytest.raises(gx.DataError, match=r"b\.npz holds no model .*of MuJoCo 3\.0\.0; it has no MJCF.*model=\.\.\."):
        rendering.load_trajectory(tmp_path / "b.npz")
    assert rendering.load_trajectory(tmp_path / "b.npz", model).model is model
    np.savez(tmp_path / "c.npz", **{**content, "model_binary": content["model_binary"][:500]})
    with pytest.raises(gx.DataError, match=r"c\.npz holds no model"):
        rendering.load_trajectory(tmp_path / "c.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qpos": np.zeros((STEPS, 4))}, r"qpos has shape \(7, 4\); expected \(7, 3\) .*'double-cart-pole'"),
        ({"qpos": np.zeros(3)}, r"qpos has shape \(3,\); expected \(steps, 3\)"),
        ({"qpos": np.zeros((0, 3))}, "at least one step"),
        ({"qpos": np.full((STEPS, 3), np.nan)}, r"qpos\[0, 0\] is nan"),
        ({"qvel": np.zeros((STEPS, 2))}, r"qvel has shape \(7, 2\); expected \(7, 3\)"),
        ({"ctrl": np.zeros((6, 1))}, r"ctrl has shape \(6, 1\); expected \(7, 1\)"),
        ({"time": np.zeros(STEPS)}, r"time\[1\] = 0 s follows 0 s; expected it to increase"),
        ({"time": np.arange(6)}, r"time has shape \(6,\); expected \(7,\)"),
        ({"qpos": np.array([["a"] * 3])}, "qpos is of <U1; expected numbers"),
        ({"reward": np.zeros(3)}, r"reward is float64\[3\]; expected numbers \(7, \.\.\.\)"),
        ({"nq": np.zeros(STEPS)}, "'nq' can't be the name"),
    ],
)
def test_wrong_arrays(tmp_path, change, message):
    given = arrays(load_model("double-cart-pole")) | {"time": np.arange(float(STEPS))} | change
    with pytest.raises(gx.DataError, match=message):
        rendering.save_trajectory(tmp_path / "a.npz", "double-cart-pole", **given)
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_trajectories(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(gx.DataError, match=r"a\.npz can't be read"):
        rendering.load_trajectory(path)
    path.write_bytes(b"PK\x03\x04 no")
    with pytest.raises(gx.DataError, match="no NPZ file"):
        rendering.load_trajectory(path)
    np.savez(path, qpos=np.zeros((2, 1)))
    with pytest.raises(gx.DataError, match=r"a\.npz has no array 'timestamp'; it has qpos"):
        rendering.load_trajectory(path)
    np.savez(path, qpos=np.array([[1, None]], object), timestamp=np.arange(2.0))
    with pytest.raises(gx.DataError, match="no NPZ file of numbers"):
        rendering.load_trajectory(path)
    np.savez(path, qpos=np.zeros((2, 4)), timestamp=np.arange(2.0))
    with pytest.raises(gx.DataError, match=r"a\.npz: qpos has shape \(2, 4\); expected \(2, 1\)"):
        rendering.load_trajectory(path, load_model("pendulum"))
    with pytest.raises(gx.DataError, match="can't be written"):
        rendering.save_trajectory(path / "b.npz", "pendulum", np.zeros((1, 1)))
