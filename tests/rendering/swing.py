"""A motion to look at."""

import mujoco
import numpy as np

from galvanax.physics import load_model
from galvanax.rendering import MotionClip

FREE = """<mujoco model="rover"><worldbody>
  <light pos="0 0 5" dir="0 0 -1"/>
  <geom name="floor" type="plane" size="0 0 .1" rgba=".8 .8 .8 1"/>
  <body name="trunk" pos="0 0 .5"><freejoint/>
    <geom name="hull" type="box" size=".3 .2 .1" rgba="1 0 0 1"/>
    <geom name="hidden" type="sphere" size=".3" group="3" rgba="0 1 0 1"/>
    <geom name="head" type="ellipsoid" pos=".3 0 .1" size=".12 .1 .08"/>
    <body name="arm" pos="0 0 .2"><joint axis="0 1 0"/>
      <geom name="pole" type="capsule" fromto="0 0 0 0 0 .4" size=".04" rgba="0 0 1 1"/>
      <geom name="wheel" type="cylinder" pos="0 0 .4" quat=".8 .6 0 0" size=".1 .03"/>
    </body>
  </body>
  <body name="stand" pos="1 1 0"><geom name="stand" type="sphere" size=".2"/></body>
</worldbody></mujoco>"""


def swing(name="double-cart-pole", steps=40, dt=0.02):
    """A model let go, as C MuJoCo has it."""
    model = load_model(name)
    data = mujoco.MjData(model)
    data.qvel[:] = 0.5
    qpos, time = [], []
    for _ in range(steps):
        qpos.append(data.qpos.copy())
        time.append(data.time)
        mujoco.mj_step(model, data, round(dt / model.opt.timestep))
    return MotionClip(model, np.array(qpos), np.array(time))


def drive(steps=5, far=20.0):
    """A free body that goes `far` metres along x and turns."""
    model = mujoco.MjModel.from_xml_string(FREE)
    qpos = np.tile(model.qpos0, (steps, 1))
    qpos[:, 0] = np.linspace(0, far, steps)
    angle = np.linspace(0, 1, steps)
    qpos[:, 3], qpos[:, 6], qpos[:, 7] = np.cos(angle / 2), np.sin(angle / 2), angle
    return MotionClip(model, qpos, np.arange(steps) * 0.1)
