import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from galvanax.envs.terrain import Terrain
from galvanax.errors import ConfigError
from galvanax.physics.quiet_mjx import mjx

RADIUS = 0.022
SPHERE = f"""<mujoco model="sphere"><worldbody>
  <geom name="floor" type="plane" size="0 0 1" contype="0" conaffinity="0"/>
  <body><freejoint/><geom name="foot" size="{RADIUS}" contype="0" conaffinity="0"/></body>
</worldbody><contact><pair geom1="floor" geom2="foot" condim="3"/></contact></mujoco>"""
KINDS = ("slopes", "stairs", "rough", "mixed")
SMALL = Terrain(levels=2, columns=2, tile_size=3.0, platform=1.0, border=0.5, roughness=(0.05, 0.08))


def small(kind):
    return dataclasses.replace(SMALL, kind=kind)


def compiled(terrain):
    spec = mujoco.MjSpec.from_string(SPHERE)
    terrain.add_to(spec)
    return spec.compile()


def points(terrain, count, seed=0):
    half = np.array(terrain.half_size)
    return np.random.default_rng(seed).uniform(-half, half, (count, 2)) * 0.98


def ray_down(model, xy):
    data, geom, high = mujoco.MjData(model), np.zeros(1, np.int32), 20.0
    mujoco.mj_kinematics(model, data)
    data.geom_xpos[model.geom("foot").id] = 100.0  # out of the way
    down = np.array([0.0, 0.0, -1.0])
    return high - mujoco.mj_ray(model, data, np.append(xy, high), down, None, 1, -1, geom)


@pytest.mark.parametrize("kind", KINDS)
def test_height_at_is_what_mujoco_stands_on(kind):
    terrain = small(kind)
    model, xy = compiled(terrain), points(terrain, 500)
    seen = [ray_down(model, at) for at in xy]
    np.testing.assert_allclose(terrain.height_at(jnp.asarray(xy)), seen, atol=1e-4)
    assert np.ptp(seen) > 0.1


@pytest.mark.parametrize("kind", ["stairs", "rough"])
def test_mjx_contacts_agree_with_mujoco(kind):
    terrain = small(kind)
    model, xy = compiled(terrain), points(terrain, 200)
    sunk = np.random.default_rng(1).uniform(-0.01, RADIUS / 2, len(xy))
    z = np.asarray(terrain.height_at(jnp.asarray(xy))) + RADIUS - sunk
    qpos = np.concatenate([xy, z[:, None], np.tile([1.0, 0, 0, 0], (len(xy), 1))], axis=1)
    on_device, blank = mjx.put_model(model), mjx.make_data(model)

    @jax.jit
    @jax.vmap
    def deepest(q):
        contact = mjx.collision(on_device, mjx.kinematics(on_device, blank.replace(qpos=q)))._impl.contact
        first = jnp.argmin(contact.dist)
        return contact.dist[first], contact.frame[first, 0], contact.geom[first]

    dist, normal, geoms = map(np.asarray, deepest(jnp.asarray(qpos, jnp.float32)))
    data, angles, touching = mujoco.MjData(model), [], 0
    for q, mine, axis in zip(qpos, dist, normal, strict=True):
        data.qpos[:] = q
        mujoco.mj_forward(model, data)
        if data.ncon == 0 or data.contact.dist.min() > -1e-6:
            assert mine > -1e-5
            continue
        touching += 1
        first = data.contact.dist.argmin()
        assert mine == pytest.approx(data.contact.dist[first], abs=1e-5)
        angles.append(np.degrees(np.arccos(np.clip(axis @ data.contact.frame[first, :3], -1, 1))))
    assert touching > 100
    assert np.mean(np.array(angles) < 1) > 0.98  # the rest: two contacts of one depth
    assert (geoms == [model.geom("floor").id, model.geom("foot").id]).all()


def test_contacts_are_limited_only_where_feet_are_all_that_touches():
    model = compiled(small("rough"))
    assert mjx.make_data(model)._impl.contact.dist.shape == (2,)
    spec = mujoco.MjSpec.from_string(SPHERE)
    spec.geom("foot").contype = spec.geom("floor").conaffinity = 1
    small("rough").add_to(spec)
    assert not list(spec.numerics)


@pytest.mark.parametrize("kind", KINDS)
def test_origins_are_flat_and_inside_their_tiles(kind):
    terrain = dataclasses.replace(small(kind), levels=3, columns=5)
    level, column = np.meshgrid(np.arange(3), np.arange(5), indexing="ij")
    origin = np.asarray(terrain.origin(jnp.asarray(level), jnp.asarray(column)))
    np.testing.assert_allclose(origin[:, 0, 0], [-3, 0, 3])
    np.testing.assert_allclose(origin[0, :, 1], [-6, -3, 0, 3, 6])
    for shift in ([0, 0], [0.4, 0.4], [-0.4, 0.3]):
        around = jnp.asarray(origin[..., :2] + np.array(shift))
        np.testing.assert_allclose(terrain.height_at(around), origin[..., 2], atol=1e-6)


def test_levels_get_harder():
    terrain = dataclasses.replace(SMALL, kind="stairs", levels=4, step_height=(0.05, 0.2))
    up, pit = (np.asarray(terrain.origin(jnp.arange(4), column))[:, 2] for column in (0, 1))
    np.testing.assert_allclose(up / up[0], [1, 2, 3, 4], rtol=1e-5)
    np.testing.assert_allclose(up, -pit, rtol=1e-5)
    assert (np.diff(np.unique(terrain.heights())) > 0.04).all()


def test_the_ground_follows_from_its_fields():
    terrain = small("rough")
    np.testing.assert_array_equal(terrain.heights(), small("rough").heights())
    assert np.abs(terrain.heights() - dataclasses.replace(terrain, seed=1).heights()).max() > 0.01
    assert hash(terrain) == hash(small("rough"))


def test_flat_is_the_models_own_plane():
    spec = mujoco.MjSpec.from_string(SPHERE)
    Terrain().add_to(spec)
    assert spec.geom("floor").type == mujoco.mjtGeom.mjGEOM_PLANE
    assert not np.any(Terrain().height_at(jnp.ones((3, 2))))
    assert not np.any(Terrain().origin(jnp.array(2), jnp.array(1)))
    assert Terrain().contains(jnp.array([1e4, 0.0]))


def test_there_is_an_end_to_the_ground():
    terrain = small("rough")
    assert terrain.half_size == pytest.approx((3.5, 3.5))
    assert terrain.contains(jnp.array([[3.4, -3.4], [3.6, 0.0]])).tolist() == [True, False]


def test_next_level_follows_the_walk():
    terrain = Terrain("stairs", levels=4)
    levels = jax.jit(terrain.next_level)
    level = jnp.array([1, 1, 1, 0, 3])
    walked = jnp.array([3.1, 1.0, 2.0, 0.1, 5.0])
    commanded = jnp.array([10.0, 3.0, 3.0, 3.0, 5.0])
    after = np.array([levels(level, walked, commanded, jax.random.key(seed)) for seed in range(40)])
    assert (after[:, :4] == [2, 0, 1, 0]).all()
    assert set(after[:, 4]) == {0, 1, 2, 3}  # past the last level: anywhere
    alike = dataclasses.replace(terrain, curriculum=False)
    after = [int(alike.next_level(1, 0.0, 3.0, jax.random.key(seed))) for seed in range(40)]
    assert set(after) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("kind", "stair", "stairs"),
        ("levels", 0, "at least 1"),
        ("tile_size", -1.0, "positive"),
        ("resolution", 0.07, "nearest: 0.0697"),
        ("resolution", 0.0005, "grid points"),
        ("platform", 5.9, "0.2 to 5.6 m"),
        ("border", -1.0, "or 0"),
        ("slope", (0.4, 0.1), "easiest, hardest"),
        ("step_width", 0.1, "steps fit"),
        ("seed", -1, "from 0 up"),
    ],
)
def test_settings_that_make_no_ground(field, value, told):
    with pytest.raises(ConfigError, match=rf"Terrain\.{field}=.*{told}"):
        dataclasses.replace(Terrain("stairs"), **{field: value})


def test_the_floor_to_replace_must_be_there():
    with pytest.raises(ConfigError, match=r"plane named 'floor'.*Planes of 'bare': none"):
        small("rough").add_to(mujoco.MjSpec.from_string('<mujoco model="bare"/>'))
    spec = mujoco.MjSpec.from_string(SPHERE)
    spec.geom("floor").pos = [0, 0, 1]
    with pytest.raises(ConfigError, match="at the world's origin"):
        small("rough").add_to(spec)
