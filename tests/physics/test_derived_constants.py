import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from galvanax.physics import load_model
from galvanax.physics.derived_constants import refresh_constants
from galvanax.physics.quiet_mjx import mjx

# Everything that has a rule of its own: a ball joint, a static body, a body that only slides (MuJoCo's shortcut), and
# tendons with armature, one of them driven.
ODD = """
<mujoco>
  <worldbody>
    <body name="stand" pos="1 0 0"><geom size=".1"/><site name="post" pos="0 0 .5"/></body>
    <body name="slider" pos="-1 0 0"><joint type="slide" axis="1 0 0" armature=".2"/><geom size=".1"/></body>
    <body name="loose" pos="0 2 0"><freejoint/><geom type="box" size=".1 .2 .3"/>
      <body pos="0 0 .4"><joint type="ball" armature=".01"/><geom type="box" size=".05 .1 .2" pos=".1 0 .1"/>
        <body pos="0 .2 .1" quat="1 .2 .3 .4">
          <joint name="hinge" axis="0 1 0" pos=".01 .02 .03" armature=".02"/>
          <joint name="slide" type="slide" axis="1 0 1"/>
          <geom type="capsule" fromto="0 0 0 .3 0 0" size=".03"/><site name="end" pos=".3 0 0"/>
        </body>
      </body>
    </body>
  </worldbody>
  <tendon>
    <fixed name="fixed" armature=".3"><joint joint="hinge" coef="2"/><joint joint="slide" coef="-1"/></fixed>
    <spatial name="rope" armature=".1"><site site="post"/><site site="end"/></spatial>
  </tendon>
  <actuator><motor joint="hinge" gear="3"/><motor tendon="rope"/></actuator>
</mujoco>
"""

INPUTS = ("body_mass", "body_inertia", "body_ipos", "body_iquat", "dof_armature")
OUTPUTS = (
    "body_subtreemass",
    "dof_M0",
    "body_invweight0",
    "dof_invweight0",
    "tendon_invweight0",
    "actuator_acc0",
)


def shaken(model, rng):
    """The model with other masses, inertias, centres of mass and armatures, as MuJoCo itself would complete it."""
    model.body_mass[1:] *= rng.uniform(0.5, 2, model.nbody - 1)
    model.body_inertia[1:] *= rng.uniform(0.8, 1.2, (model.nbody - 1, 3))
    # MuJoCo takes single bodies in their inertial frame to stay so.
    moved = (np.arange(model.nbody) > 0) & (model.body_simple == 0)
    model.body_ipos[moved] += rng.uniform(-0.05, 0.05, (moved.sum(), 3))
    turned = model.body_iquat + rng.uniform(-0.3, 0.3, model.body_iquat.shape)
    model.body_iquat[moved] = (turned / np.linalg.norm(turned, axis=-1, keepdims=True))[moved]
    model.dof_armature[:] = rng.uniform(0.5, 2, model.nv) * np.maximum(model.dof_armature, 0.005)
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def load(name):
    return mujoco.MjModel.from_xml_string(ODD) if name == "odd" else load_model(name)


@pytest.mark.behaviour("reports 27")
@pytest.mark.parametrize("name", ["go2", "g1", "cart-pole", "double-cart-pole", "odd"])
def test_constants_are_mujocos(name):
    model = mjx.put_model(load(name))
    assert (2 in model.body_simple) == (name == "odd")
    rng = np.random.default_rng(0)
    expected = [shaken(load(name), rng) for _ in range(3)]

    def refresh(changed):
        fresh = refresh_constants(model.replace(**changed))
        return {key: getattr(fresh, key) for key in OUTPUTS}

    changed = {key: jnp.asarray([getattr(e, key) for e in expected], jnp.float32) for key in INPUTS}
    constants = jax.jit(jax.vmap(refresh))(changed)
    for key in OUTPUTS:
        stacked = np.stack([getattr(e, key) for e in expected])
        # 0 in MuJoCo (a cart that can't turn) may be a little more here.
        atol = 1e-7 * np.abs(stacked).max(initial=0)
        np.testing.assert_allclose(constants[key], stacked, rtol=1e-5, atol=atol, err_msg=key)


def test_an_unchanged_model_stays(mixed):
    model = mjx.put_model(mixed)
    fresh = jax.jit(refresh_constants)(model)
    for key in OUTPUTS:
        np.testing.assert_allclose(getattr(fresh, key), getattr(model, key), rtol=1e-5, err_msg=key)
    assert jax.tree.structure(fresh) == jax.tree.structure(model)
