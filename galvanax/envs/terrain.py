"""Uneven ground for legged robots: one height field of tiles, from easy to hard, and the rule that moves between them.

Why a height field, by measurement (go2, 64 environments, 2 CPU cores): MJX's contacts of spheres with it agree with
MuJoCo's C to 1e-6 m, it compiles as fast as a plane and steps at 40 % of a plane's speed. Boxes would need a pair of
geoms for every foot and every box of every tile, and make neither slopes nor rough ground.

Limits of MJX's contacts, which are also measured: a foot that is pressed in by more than 0.7 of its radius next to a
cell's edge may get a wrong contact (0.5 % of such states on a slope of 0.3; none on stairs or rough ground), so choose
feet and timesteps that don't sink so deep. MJX's `ray` doesn't see height fields: `galvanax.envs.rays` does.
"""

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from galvanax.envs.terrain_shapes import rough_tile, slope_tile, stairs_tile, triangulated
from galvanax.errors import ConfigError, nearest

Kind = Literal["flat", "slopes", "stairs", "rough", "mixed"]
COLUMNS = {  # what the columns of a kind hold, in turn
    "slopes": ("slope up", "slope down"),
    "stairs": ("stairs up", "stairs down"),
    "rough": ("rough",),
    "mixed": ("slope up", "stairs down", "rough", "stairs up", "slope down"),
}

FLOOR = "floor"
BASE = 1.0  # m of solid ground under the lowest point, so that nothing falls through in one step
CONTACTS = 2  # kept of a foot's four candidates; the rest are repetitions at the edges between triangles
LARGEST = 10_000_000  # grid points


@dataclasses.dataclass(frozen=True)
class Terrain:
    """Ground made of `levels` x `columns` square tiles, centred on the world's origin, harder towards +x.

    Slopes and stairs are pyramids and pits whose flat middle is where robots start; see `terrain_shapes`. Ranges are
    (easiest, hardest), for the first and the last level, linear in between.

    Attributes:
      kind: "flat" is the model's own plane; "mixed" has slopes, stairs and rough ground in turn, column by column.
      levels: rows of rising difficulty, along x.
      columns: variants, along y.
      tile_size: a tile's side (m).
      resolution: side of a height field's cell (m). Below twice a foot's radius, contacts cost more; see `add_to`.
      platform: side of a tile's flat middle (m).
      border: width of the flat ground around all tiles (m). Beyond it there is nothing; see `contains`.
      slope: rise over run (m/m).
      step_height: of stairs (m).
      step_width: of stairs, from riser to riser (m).
      roughness: the largest bump and dent of rough ground (m).
      curriculum: whether episodes move between levels by how well the robot walks, or start at random ones.
      seed: of the rough ground.
    """

    kind: Kind = "flat"
    levels: int = 5
    columns: int = 4
    tile_size: float = 6.0
    resolution: float = 0.1
    platform: float = 1.5
    border: float = 3.0
    slope: tuple[float, float] = (0.05, 0.4)
    step_height: tuple[float, float] = (0.03, 0.15)
    step_width: float = 0.3
    roughness: tuple[float, float] = (0.01, 0.05)
    curriculum: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"Terrain.kind={self.kind!r}: no such kind.{nearest(str(self.kind), get_args(Kind))}")
        for name in ("levels", "columns"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("tile_size", "resolution", "platform", "step_width"):
            self._require(name, getattr(self, name) > 0, "a positive length (m)")
        self._require("seed", self.seed >= 0, "a whole number from 0 up")
        self._require("border", self.border >= 0, "a length (m), or 0")
        for name in ("slope", "step_height", "roughness"):
            ends = getattr(self, name)
            self._require(name, len(ends) == 2 and 0 <= ends[0] <= ends[1], "(easiest, hardest), rising from 0 up")
        size = self.tile_size
        whole = round(size / self.resolution) * self.resolution
        fits = abs(whole - size) < 1e-6 * size
        near = size / max(1, round(size / self.resolution))
        self._require("resolution", fits, f"a divisor of tile_size={size} m; nearest: {near:g}")
        room = size - 4 * self.resolution
        self._require(
            "platform", 2 * self.resolution <= self.platform <= room, f"{2 * self.resolution:g} to {room:g} m"
        )
        if self.kind in ("stairs", "mixed"):
            room = (size - self.platform) / 2 - self.resolution
            low = 2 * self.resolution
            self._require("step_width", low <= self.step_width <= room, f"{low:g} to {room:g} m, so that steps fit")
        points = self._shape[0] * self._shape[1]
        self._require("resolution", points <= LARGEST, f"at most {LARGEST} grid points; these are {points}")

    def _require(self, name: str, met: bool, expected: str) -> None:
        if not met:
            raise ConfigError(f"Terrain.{name}={getattr(self, name)}: expected {expected}.")

    @property
    def _tile_cells(self) -> int:
        return round(self.tile_size / self.resolution)

    @property
    def _border_cells(self) -> int:
        return round(self.border / self.resolution)

    @property
    def _shape(self) -> tuple[int, int]:
        """Grid points along y and x."""
        columns, levels = self.columns * self._tile_cells, self.levels * self._tile_cells
        return columns + 2 * self._border_cells + 1, levels + 2 * self._border_cells + 1

    @property
    def half_size(self) -> tuple[float, float]:
        """Half the ground's extent (m) along x and y, with the border."""
        rows, columns = self._shape
        return (columns - 1) * self.resolution / 2, (rows - 1) * self.resolution / 2

    def heights(self) -> np.ndarray:
        """Heights (m) of the grid points, rows along y and columns along x, from the corner of smallest x and y.

        The same numbers on every machine: they follow from the fields.
        """
        return self._heights

    @functools.cached_property
    def _heights(self) -> np.ndarray:
        heights = np.zeros(self._shape)
        if self.kind != "flat":
            n, rim = self._tile_cells, self._border_cells
            for level in range(self.levels):
                for column in range(self.columns):
                    y, x = rim + column * n, rim + level * n
                    heights[y : y + n + 1, x : x + n + 1] = self._tile(level, column)
        # As MuJoCo stores them: what is asked here is what is stood on.
        return np.asarray(heights, np.float32)

    def _tile(self, level: int, column: int) -> np.ndarray:
        """Heights (m) of a tile's grid points."""
        difficulty = level / max(1, self.levels - 1)
        grid = (self._tile_cells, self.resolution, self.platform)
        names = COLUMNS[self.kind]
        shape = names[column % len(names)]
        sign = -1.0 if shape.endswith("down") else 1.0
        if shape.startswith("slope"):
            return slope_tile(*grid, sign * np.interp(difficulty, [0, 1], self.slope))
        if shape.startswith("stairs"):
            return stairs_tile(*grid, sign * np.interp(difficulty, [0, 1], self.step_height), self.step_width)
        rng = np.random.default_rng([self.seed, level, column])  # a tile of its own, whatever the other settings
        return rough_tile(*grid, np.interp(difficulty, [0, 1], self.roughness), rng)

    @functools.cached_property
    def _origins(self) -> np.ndarray:
        """Platforms' middles (m), `(levels, columns, 3)`."""
        if self.kind == "flat":
            return np.zeros((self.levels, self.columns, 3), np.float32)
        x = (np.arange(self.levels) + 0.5 - self.levels / 2) * self.tile_size
        y = (np.arange(self.columns) + 0.5 - self.columns / 2) * self.tile_size
        middle = self._border_cells + self._tile_cells // 2 + self._tile_cells * np.arange(max(self._shape))
        z = self._heights[np.ix_(middle[: self.columns], middle[: self.levels])].T
        return np.stack([*np.meshgrid(x, y, indexing="ij"), z], axis=-1).astype(np.float32)

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Replaces the plane "floor" of a model by this ground, under the same name: pairs with it stay valid.

        Where feet have explicit pairs with the floor and nothing else can touch, it also limits the contacts that MJX
        solves (custom numeric `max_contact_points`) to 2 a pair, the deepest ones of all: 30 % faster. MJX sorts
        contacts by depth then, so that a contact's place in `data.contact` no longer says whose it is: ask its `geom`.
        Of a robot's geoms MJX collides spheres, capsules, boxes and meshes with height fields, and refuses the others.

        Args:
          spec: a model that isn't compiled yet; changed in place. Left alone where this terrain is flat.

        Raises:
          ConfigError: the model has no plane of the world with the name "floor", at the world's origin.
        """
        if self.kind == "flat":
            return
        floor = spec.geom(FLOOR)
        if floor is None or floor.type != mujoco.mjtGeom.mjGEOM_PLANE or floor.parent.name != "world":
            planes = [geom.name for geom in spec.geoms if geom.type == mujoco.mjtGeom.mjGEOM_PLANE]
            raise ConfigError(
                f"Terrain.kind={self.kind!r} needs a model with a plane named {FLOOR!r} in its worldbody, to take "
                f"its place. Planes of {spec.modelname!r}: {planes or 'none'}."
            )
        if np.any(floor.pos) or not np.allclose(floor.quat, [1, 0, 0, 0]):
            raise ConfigError(f"The plane {FLOOR!r} of {spec.modelname!r} must lie at the world's origin, unturned.")
        low, high = float(self._heights.min()), float(self._heights.max())
        span = max(high - low, 1e-3)  # MuJoCo wants a positive height, even of level ground
        rows, columns = self._shape
        spec.add_hfield(
            name="terrain",
            nrow=rows,
            ncol=columns,
            size=[*self.half_size, span, BASE],
            userdata=((self._heights - low) / span).ravel(),
        )
        floor.type, floor.hfieldname, floor.size = mujoco.mjtGeom.mjGEOM_HFIELD, "terrain", [0, 0, 0]
        floor.pos = [0, 0, low]
        _limit_contacts(spec)

    def height_at(self, xy: jax.Array) -> jax.Array:
        """Height (m) of the ground at `xy` `(..., 2)` (m, world), on the triangles that MuJoCo makes of the cells."""
        xy = jnp.asarray(xy)
        if self.kind == "flat":
            return jnp.zeros(xy.shape[:-1], xy.dtype)
        return triangulated(jnp.asarray(self._heights), (xy + jnp.asarray(self.half_size)) / self.resolution)

    def origin(self, level: jax.Array, column: jax.Array) -> jax.Array:
        """Middle of a tile's platform (m, world), `(..., 3)`: where a robot starts. Flat ground has one, the origin."""
        return jnp.asarray(self._origins)[level, column]

    def contains(self, xy: jax.Array) -> jax.Array:
        """Whether there is ground under `xy` `(..., 2)` (m, world). Whoever walks off the border falls for ever."""
        if self.kind == "flat":
            return jnp.ones(jnp.shape(xy)[:-1], bool)
        return (jnp.abs(xy) < jnp.asarray(self.half_size)).all(-1)

    def next_level(self, level: jax.Array, walked: jax.Array, commanded: jax.Array, rng: jax.Array) -> jax.Array:
        """The level of the next episode, by the game-inspired curriculum of Rudin et al., 2022 (arXiv 2109.11978).

        Up where the robot got across half a tile; down where it made less than half of the way that its command asks
        for in a whole episode, as it does after an early fall; at a random level where it has passed the last. Without
        `curriculum`, always at a random one.

        Args:
          level: of the episode that has ended, an integer or an array of them.
          walked: distance (m) from where it started.
          commanded: distance (m) that its last command asks for: speed times the time limit of an episode.
          rng: a key.

        Returns:
          int32 in [0, levels), as `level`.
        """
        level = jnp.asarray(level, jnp.int32)
        anywhere = jax.random.randint(rng, level.shape, 0, self.levels, jnp.int32)
        if not self.curriculum:
            return anywhere
        up = walked > self.tile_size / 2
        down = (walked < commanded / 2) & ~up
        level = level + up.astype(jnp.int32) - down.astype(jnp.int32)
        return jnp.where(level >= self.levels, anywhere, jnp.maximum(level, 0))


def _limit_contacts(spec: mujoco.MjSpec) -> None:
    """Two contacts a pair with the floor, unless the model has other contacts, or settings, of its own."""
    others = [pair for pair in spec.pairs if FLOOR not in (pair.geomname1, pair.geomname2)]
    free = any(geom.contype for geom in spec.geoms) and any(geom.conaffinity for geom in spec.geoms)
    if spec.pairs and not (others or free or list(spec.numerics)):
        spec.add_numeric(name="max_contact_points", data=[CONTACTS * len(spec.pairs)])
