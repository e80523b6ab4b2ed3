"""What plots call the entries of a state."""

import mujoco
import pytest

import galvanax as gx
from galvanax.envs.systems import load_system
from galvanax.physics.layout import StateLayout
from galvanax.physics.pendulum import PendulumSystem
from galvanax.physics.state_labels import label_joints, label_layout, labels_of

MJCF = """
<mujoco><worldbody>
  <body><freejoint name="trunk"/><geom size="0.1"/>
    <body><joint name="shoulder" type="ball"/><geom size="0.1"/>
      <body><joint type="hinge"/><geom size="0.1"/>
        <body><joint name="rail" type="slide"/><geom size="0.1"/></body></body></body></body>
</worldbody></mujoco>
"""


def test_joints_of_all_kinds():
    """In MuJoCo's order, as its documentation of `mjtJoint` has it."""
    assert label_joints(mujoco.MjModel.from_xml_string(MJCF)) == [
        "trunk x (m)", "trunk y (m)", "trunk z (m)",
        "trunk quaternion w", "trunk quaternion x", "trunk quaternion y", "trunk quaternion z",
        "shoulder quaternion w", "shoulder quaternion x", "shoulder quaternion y", "shoulder quaternion z",
        "joint 2 (rad)", "rail (m)",
        "trunk x velocity (m/s)", "trunk y velocity (m/s)", "trunk z velocity (m/s)",
        "trunk x turning (rad/s)", "trunk y turning (rad/s)", "trunk z turning (rad/s)",
        "shoulder x turning (rad/s)", "shoulder y turning (rad/s)", "shoulder z turning (rad/s)",
        "joint 2 velocity (rad/s)", "rail velocity (m/s)",
    ]  # fmt: skip


def test_places_where_there_is_no_model():
    labels = label_layout(StateLayout.from_model(mujoco.MjModel.from_xml_string(MJCF)))
    assert labels[0] == "qpos 0 (m or rad)"
    assert labels[3:11] == [f"qpos {place}" for place in range(3, 11)]
    assert labels[11:13] == ["qpos 11 (rad)", "qpos 12 (m or rad)"]
    assert labels[13] == "qvel 0 (m/s or rad/s)"
    assert labels[16:22] == [f"qvel {place} (rad/s)" for place in range(3, 9)]
    assert labels[22:] == ["qvel 9 (rad/s)", "qvel 10 (m/s or rad/s)"]


@pytest.mark.parametrize("name", ["pendulum", "cart-pole", "double-cart-pole", "hopper"])
def test_every_entry_has_a_name_of_its_own(name):
    system = load_system(name)
    labels = labels_of(system)
    assert len(set(labels)) == len(labels) == system.state_dim
    assert all(label.endswith(("m)", "rad)", "m/s)", "rad/s)")) for label in labels)


def test_a_system_of_ones_own():
    class Own(PendulumSystem):
        state_labels = None
        layout = None

    assert labels_of(Own()) == ["state 0", "state 1"]
    assert labels_of(gx.physics.PendulumSystem()) == ["angle (rad)", "angular velocity (rad/s)"]
