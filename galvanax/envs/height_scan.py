"""What a robot sees of the ground around it: heights on a grid that turns with its heading."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from galvanax.envs.terrain import Terrain
from galvanax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class HeightScan:
    """A grid of height measurements around the base, legged_gym's and rsl_rl's `height_measurements`.

    Attributes:
      x: (first, last, count) of the points ahead, in the base's yaw frame (m).
      y: the same, to the left (m).
      offset: subtracted from the base's height (m): about the height at which it walks, so that a measurement is
        around 0 on level ground.
      clip: largest measurement either way (m), before scaling.
      scale: what measurements are multiplied by.
    """

    x: tuple[float, float, int] = (-0.8, 0.8, 17)
    y: tuple[float, float, int] = (-0.5, 0.5, 11)
    offset: float = 0.5
    clip: float = 1.0
    scale: float = 5.0

    def __post_init__(self) -> None:
        for name in ("x", "y"):
            grid = getattr(self, name)
            if len(grid) != 3 or grid[2] != int(grid[2]) or grid[2] < 1 or grid[0] > grid[1]:
                raise ConfigError(
                    f"HeightScan.{name}={grid}: expected (first, last, count) with first <= last (m) and count a whole "
                    "number from 1 up, such as (-0.8, 0.8, 17)."
                )
        if self.clip <= 0:
            raise ConfigError(f"HeightScan.clip={self.clip}: expected a positive height (m).")

    @property
    def size(self) -> int:
        """Number of measurements."""
        return int(self.x[2]) * int(self.y[2])

    def points(self) -> np.ndarray:
        """The grid in the yaw frame (m), `(size, 2)`; y runs fastest, as in rsl_rl."""
        axes = [np.linspace(first, last, int(count)) for first, last, count in (self.x, self.y)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)

    def scan(self, terrain: Terrain, position: jax.Array, yaw: jax.Array) -> jax.Array:
        """clip(base height - offset - ground height, -clip, clip) * scale.

        Args:
          terrain: the ground.
          position: the base's, `(3,)` (m, world).
          yaw: its heading (rad), from x towards y.

        Returns:
          `(size,)`; positive where the ground lies low. Zero error: the noise is the environment's to add.
        """
        cos, sin = jnp.cos(yaw), jnp.sin(yaw)
        x, y = self.points().T
        around = jnp.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
        ground = terrain.height_at(position[:2] + around)
        return jnp.clip(position[2] - self.offset - ground, -self.clip, self.clip) * self.scale
