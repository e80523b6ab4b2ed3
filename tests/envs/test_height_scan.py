import jax
import jax.numpy as jnp
import numpy as np
import pytest

from galvanax.envs.height_scan import HeightScan
from galvanax.envs.terrain import Terrain
from galvanax.errors import ConfigError


def test_level_ground_gives_the_height_above_the_offset():
    scan = HeightScan()
    seen = scan.scan(Terrain(), jnp.array([3.0, -2.0, 0.6]), jnp.array(0.7))
    assert seen.shape == (scan.size,) == (187,)
    np.testing.assert_allclose(seen, 0.1 * 5, rtol=1e-5)


def test_measurements_are_clipped_before_they_are_scaled():
    scan = HeightScan(x=(0, 0, 1), y=(0, 0, 1), clip=0.2, scale=3.0)
    assert float(scan.scan(Terrain(), jnp.array([0.0, 0.0, 9.0]), 0.0)[0]) == pytest.approx(0.6)
    assert float(scan.scan(Terrain(), jnp.array([0.0, 0.0, 0.0]), 0.0)[0]) == pytest.approx(-0.6)


def test_the_grid_turns_with_the_robot():
    terrain = Terrain("rough", levels=2, columns=2, tile_size=3.0, roughness=(0.05, 0.1))
    scan, position, yaw = HeightScan(x=(0.2, 1.0, 3), y=(-0.3, 0.3, 2)), np.array([0.4, -0.9, 0.5]), 2.1
    seen = jax.jit(scan.scan, static_argnums=0)(terrain, jnp.asarray(position), jnp.asarray(yaw))
    ahead, left = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
    expected = []
    for x in (0.2, 0.6, 1.0):  # y runs fastest
        for y in (-0.3, 0.3):
            ground = terrain.height_at(jnp.asarray(position[:2] + x * ahead + y * left))
            expected.append(5.0 * -float(ground))
    np.testing.assert_allclose(seen, expected, atol=1e-4)
    assert np.ptp(expected) > 0.05


@pytest.mark.parametrize(("field", "value"), [("x", (1.0, -1.0, 3)), ("y", (0.0, 1.0, 0)), ("clip", 0.0)])
def test_settings_that_make_no_scan(field, value):
    with pytest.raises(ConfigError, match=rf"HeightScan\.{field}="):
        HeightScan(**{field: value})
