"""Shapes of terrain tiles, as heights on a square grid: legged_gym's and rsl_rl's pyramids and rough ground.

A tile of `n` cells a side has `n + 1` grid points a side. Its rim is at height 0, so that tiles join without a cliff,
and a square platform in its middle is flat, for robots to start on.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

BUMP = 0.2  # m between the random heights of rough ground; between them it is interpolated, as in legged_gym


def slope_tile(cells: int, resolution: float, platform: float, rise: float) -> np.ndarray:
    """A pyramid with a flat top, or a pit.

    Args:
      cells: grid cells a side.
      resolution: a cell's side (m).
      platform: side of the flat middle (m).
      rise: height won a metre towards the middle (m/m); negative for a pit.

    Returns:
      Heights (m), `(cells + 1, cells + 1)`.
    """
    return rise * resolution * _cells_inwards(cells, resolution, platform)


def stairs_tile(cells: int, resolution: float, platform: float, step_height: float, step_width: float) -> np.ndarray:
    """A pyramid of stairs, or a pit of them. A riser is one cell wide: a height field has no vertical walls.

    Args:
      cells: grid cells a side.
      resolution: a cell's side (m).
      platform: side of the flat middle (m), at least: it takes up what is left of a step.
      step_height: m; negative for a pit.
      step_width: from riser to riser (m).

    Returns:
      Heights (m), `(cells + 1, cells + 1)`.
    """
    width = max(2, round(step_width / resolution))
    inwards = _cells_inwards(cells, resolution, platform)
    # The first step stands one width within the rim; else two tiles would meet in a groove that catches feet.
    steps = np.ceil(inwards / width) - 1
    return step_height * np.maximum(steps, 0.0)


def rough_tile(
    cells: int, resolution: float, platform: float, roughness: float, rng: np.random.Generator
) -> np.ndarray:
    """Ground with random bumps and dents, uniform in [-roughness, roughness].

    Args:
      cells: grid cells a side.
      resolution: a cell's side (m).
      platform: side of the flat middle (m).
      roughness: the largest height and depth (m).
      rng: draws the heights.

    Returns:
      Heights (m), `(cells + 1, cells + 1)`.
    """
    stride = max(1, round(BUMP / resolution))
    knots = rng.uniform(-roughness, roughness, (math.ceil(cells / stride) + 1,) * 2)
    at = np.arange(cells + 1) / stride
    along = np.stack([np.interp(at, np.arange(len(row)), row) for row in knots])
    heights = np.stack([np.interp(at, np.arange(len(column)), column) for column in along.T], axis=1)
    inwards = _cells_inwards(cells, resolution, platform)
    return np.where((inwards == 0) | (inwards == inwards.max()), 0.0, heights)


def triangulated(heights: jax.Array, at: jax.Array) -> jax.Array:
    """Heights between the points of a grid, on MuJoCo's triangles: cells are cut from their first to their last corner.

    Args:
      heights: of the grid points, `(rows, columns)`.
      at: where, as `(..., 2)` [column, row] with fractions; clipped to the grid.

    Returns:
      `(...)`, in the units of `heights`.
    """
    rows, columns = heights.shape
    last = jnp.array([columns - 2, rows - 2])
    cell = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, last)
    across, along = jnp.moveaxis(jnp.clip(at - cell, 0.0, 1.0), -1, 0)
    column, row = cell[..., 0], cell[..., 1]
    first, opposite = heights[row, column], heights[row + 1, column + 1]
    corner = jnp.where(along > across, heights[row + 1, column], heights[row, column + 1])
    near, far = jnp.minimum(across, along), jnp.maximum(across, along)
    return first + (corner - first) * far + (opposite - corner) * near


def _cells_inwards(cells: int, resolution: float, platform: float) -> np.ndarray:
    """How many cells each grid point lies within the tile's rim, at most as many as the platform's edge."""
    index = np.arange(cells + 1)
    to_rim = np.minimum(index, cells - index)
    edge = (cells - math.ceil(platform / resolution - 1e-9)) // 2
    return np.minimum(np.minimum(to_rim[:, None], to_rim[None, :]), edge).astype(float)
