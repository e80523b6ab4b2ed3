"""Models and rollouts shared by the physics tests: compiling MJX takes seconds."""

import jax
import mujoco
import pytest

from galvanax.physics import WideStart, collect_random_rollouts, load_model

# A free body with a ball joint, a hinge and a slide on it: nq = 13, nv = 11.
MIXED = """
<mujoco>
  <option timestep="0.01"><flag contact="disable"/></option>
  <worldbody>
    <body>
      <freejoint/>
      <geom type="box" size=".1 .2 .3"/>
      <body pos="0 0 .4"><joint type="ball"/><geom type="box" size=".05 .1 .2"/></body>
      <body pos="0 .4 0">
        <joint type="hinge" axis="0 1 0"/>
        <geom type="capsule" fromto="0 0 0 .3 0 0" size=".03"/>
      </body>
      <body pos="0 -.4 0">
        <joint name="s" type="slide" axis="1 0 0" limited="true" range="-.2 .3"/>
        <geom size=".05"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="s"/></actuator>
</mujoco>
"""


@pytest.fixture(scope="session")
def mixed():
    return mujoco.MjModel.from_xml_string(MIXED)


@pytest.fixture(scope="session")
def pendulum():
    return load_model("pendulum")


@pytest.fixture(scope="session")
def rollouts(pendulum):
    return collect_random_rollouts(pendulum, 6, 20, -2.0, 2.0, jax.random.key(0), WideStart())
