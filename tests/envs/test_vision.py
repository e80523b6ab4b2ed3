import importlib.util

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from galvanax import rendering
from galvanax.envs import vision as module
from galvanax.envs.terrain import Terrain
from galvanax.envs.vision import Vision
from galvanax.errors import ConfigError, RenderError
from galvanax.physics.models import load_model
from galvanax.physics.quiet_mjx import mjx

SCENE = """<mujoco model="scene"><default><geom contype="0" conaffinity="0"/></default><worldbody>
  <light pos="0 0 5"/>
  <camera name="fixed" pos="1.4 -2.2 1.6" xyaxes="0.84 0.54 0 -0.27 0.42 0.87" fovy="50"/>
  <geom name="floor" type="plane" size="0 0 1"/>
  <body pos="0 0 0.8"><freejoint/>
    <camera name="nose" pos="0.32 0 0" xyaxes="0 -1 0 0.5 0 0.87"/>
    <camera name="inside" pos="0 0 0" xyaxes="0 -1 0 0.5 0 0.87"/>
    <geom type="box" size="0.3 0.2 0.1" rgba="1 0 0 1"/><geom type="cylinder" size="0.1 0.35" pos="0 0.3 0"
      euler="70 0 20"/>
    <geom type="capsule" size="0.06 0.2" pos="0 -0.3 0"/><geom type="ellipsoid" size="0.1 0.2 0.1" pos="0.2 0 0.2"/>
    <geom size="0.3" pos="0 0 0.5" group="3"/><geom size="0.3" pos="0 0 0.5" rgba="0 0 0 0"/></body>
</worldbody></mujoco>"""
GROUND = Terrain("mixed", levels=2, columns=3, tile_size=3.0, platform=1.0, border=1.0, roughness=(0.05, 0.1))
HAS_WARP = importlib.util.find_spec("warp") is not None


@pytest.fixture(scope="module")
def scene():
    spec = mujoco.MjSpec.from_string(SCENE)
    GROUND.add_to(spec)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def rendered(model, data, vision):
    """MuJoCo's own depth image, or None where there is no off-screen OpenGL."""
    try:
        rendering.start_gl()  # tried in a process of its own: a broken OpenGL ends its process
    except RenderError as error:
        pytest.skip(str(error))
    with mujoco.Renderer(model, vision.height, vision.width) as renderer:
        renderer.enable_depth_rendering()
        renderer.update_scene(data, vision.camera_id(model))
        return np.minimum(renderer.render(), vision.max_distance)


def compare(seen, expected):
    """Alike but for pixels on silhouettes, where a hair's breadth decides what is hit."""
    assert seen.shape == expected.shape
    assert np.mean(np.abs(seen - expected) > 0.01) < 0.01
    assert np.ptp(expected) > 0.5


@pytest.mark.parametrize("camera", ["fixed", "nose"])
def test_rays_see_what_the_renderer_sees(scene, camera):
    model, data = scene
    vision = Vision(camera, width=40, height=30)
    seen = jax.jit(vision.depth)(mjx.put_model(model), mjx.put_data(model, data))
    compare(np.asarray(seen), rendered(model, data, vision))


def test_rays_see_the_cart_pole():
    model = load_model("cart-pole")
    data = mujoco.MjData(model)
    data.qpos[:] = [0.4, 0.6]
    mujoco.mj_forward(model, data)
    vision = Vision(max_distance=6.0)
    seen = jax.jit(vision.depth)(mjx.put_model(model), mjx.put_data(model, data))
    compare(np.asarray(seen), rendered(model, data, vision))


def test_images_of_many_environments(scene):
    model, data = scene
    vision, on_device = Vision(width=8, height=6), mjx.put_model(model)
    one = mjx.put_data(model, data)
    lifted = one.replace(
        geom_xpos=one.geom_xpos + jnp.array([0, 0, 0.3]), cam_xpos=one.cam_xpos + jnp.array([0, 0, 0.3])
    )
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, lifted)
    seen = jax.jit(jax.vmap(vision.depth, in_axes=(None, 0)))(on_device, both)
    assert seen.shape == (2, *vision.shape)
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-3)  # the whole world went up


def test_the_body_that_carries_the_camera_can_be_left_out(scene):
    model, data = scene
    arguments = mjx.put_model(model), mjx.put_data(model, data)
    shut, open_ = (
        np.asarray(jax.jit(Vision("inside", 8, 6, see_own_body=own).depth)(*arguments)) for own in (True, False)
    )
    assert shut.max() < 0.4  # within the box
    assert open_.min() > 0.9  # the ground below


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kind": "depht"}, r"Vision\.kind='depht'.*Nearest: depth"),
        ({"backend": "ray"}, r"Vision\.backend='ray'.*Nearest: rays"),
        ({"width": 0}, r"Vision\.width=0"),
        ({"kind": "rgb"}, r"backend='batch'"),
    ],
)
def test_settings_that_make_no_image(settings, told):
    with pytest.raises(ConfigError, match=told):
        Vision(**settings)


def test_a_camera_must_be_there(scene):
    with pytest.raises(ConfigError, match=r"Vision\.camera='noes'.*Nearest: nose"):
        Vision("noes").camera_id(scene[0])
    with pytest.raises(ConfigError, match="has no camera"):
        Vision().camera_id(mujoco.MjModel.from_xml_string("<mujoco/>"))


def test_without_warp_the_message_says_what_to_install(scene, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"warp-lang is missing; `pip install 'mujoco-mjx\[warp\]'`.*backend='rays'"):
        Vision(backend="batch").batch_renderer(scene[0], 2)
    with pytest.raises(ConfigError, match="kind='depth' with backend='rays'"):
        Vision(backend="batch", kind="rgb").batch_renderer(scene[0], 2)
    monkeypatch.delattr(module.mjx, "create_render_context")
    with pytest.raises(ConfigError, match=r"no batch renderer; install `mujoco-mjx\[warp\]"):
        Vision(backend="batch").batch_renderer(scene[0], 2)
    with pytest.raises(ConfigError, match=r"needs Vision\.backend='batch'"):
        Vision().batch_renderer(scene[0], 2)


class StandIn:
    """Takes the place of MuJoCo Warp: checks what it is given, and draws each camera's height over the ground."""

    def __init__(self, monkeypatch, model):
        self.model, self.asked, self.alive = model, {}, True
        put_model, put_data = mjx.put_model, mjx.put_data
        monkeypatch.setattr(module, "missing_for_batch", lambda: "")
        monkeypatch.setattr(mjx, "put_model", lambda model, impl: put_model(model))
        monkeypatch.setattr(mjx, "put_data", lambda model, data, impl: put_data(model, data))
        monkeypatch.setattr(mjx, "refit_bvh", lambda model, data, handle: data)
        monkeypatch.setattr(mjx, "create_render_context", self.create)
        monkeypatch.setattr(mjx, "render", self.render)
        monkeypatch.setattr(mjx, "get_depth", lambda handle, index, raw, scale: jnp.clip(raw / scale, 0, 1)[..., None])
        monkeypatch.setattr(mjx, "get_rgb", lambda handle, index, packed: packed)

    def create(self, model, **asked):
        self.asked = asked
        return self

    def pytree(self):
        return None

    def render(self, model, data, handle):
        (width, height), camera = self.asked["cam_res"], self.asked["cam_active"][0]
        depth = jnp.full((height, width), data.cam_xpos[camera, 2]).at[0].set(0.0)  # a row of sky
        return jnp.ones((height, width, 3)), depth, data


def test_the_batch_renderer_is_called_as_it_wants(scene, monkeypatch):
    model, data = scene
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf, leaf]), mjx.put_data(model, data))
    batch = batch.replace(cam_xpos=batch.cam_xpos.at[1, 1, 2].add(100.0))
    warp = StandIn(monkeypatch, model)
    renderer = Vision("nose", 8, 6, backend="batch").batch_renderer(model, 3)
    assert warp.asked == {
        "nworld": 3,
        "cam_res": (8, 6),
        "cam_active": [1],
        "render_rgb": [False],
        "render_depth": [True],
        "enabled_geom_groups": [0, 1, 2],
    }
    seen = np.asarray(jax.jit(renderer)(batch))
    assert seen.shape == (3, 6, 8)
    np.testing.assert_allclose(seen[:, 0], 5.0)
    np.testing.assert_allclose(seen[0, 1:], data.cam_xpos[1, 2], rtol=1e-5)
    np.testing.assert_allclose(seen[1, 1:], 5.0)
    colour = Vision("nose", 8, 6, backend="batch", kind="rgb").batch_renderer(model, 3)
    assert colour(batch).shape == (3, 6, 8, 3)
    with pytest.raises(ConfigError, match="num_envs=3"):
        renderer(jax.tree.map(lambda leaf: leaf[:2], batch))
    with pytest.raises(ConfigError, match="come from batch_renderer"):
        renderer.vision.depth(mjx.put_model(model, impl="jax"), batch)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_WARP, reason="needs the optional package warp-lang")
def test_warp_sees_what_the_renderer_sees(scene, monkeypatch):
    # A program that calls Warp holds addresses of this process: from the persistent cache it would call into nothing.
    monkeypatch.setattr("jax._src.compilation_cache.is_cache_used", lambda backend: False)
    model, data = scene
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), mjx.put_data(model, data))
    vision = Vision("nose", 40, 30, backend="batch")
    draw = vision.batch_renderer(model, 2)  # kept: the program runs on when its call has returned, and needs it
    seen = np.asarray(jax.jit(draw)(batch))
    np.testing.assert_array_equal(seen[0], seen[1])
    compare(seen[0], rendered(model, data, vision))
    colour = Vision("fixed", 40, 30, backend="batch", kind="rgb")
    draw_colour = colour.batch_renderer(model, 2)
    image = np.asarray(jax.jit(draw_colour)(batch))
    assert image.shape == (2, 30, 40, 3)
    red = image[0, ..., 0] > 3 * image[0, ..., 1:].max(-1) + 0.1
    assert red.sum() > 3  # the box: red, green, blue are in their places
