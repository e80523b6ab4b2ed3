"""What a camera on the robot sees: depth by rays, anywhere, and depth or colour by MuJoCo Warp's batch renderer.

Two backends. "rays" casts a ray a pixel in plain JAX: no package, no GPU, vmaps, good for small depth images. "batch"
draws all environments at once with `mjx.render`, which comes with mujoco-mjx 3.17 and needs the package warp-lang; it
draws JAX physics too, since only the poses of geoms and cameras go over. Where Warp is there, take it: 64 images of
32x24 of a go2 on a height field took it 0.06 s on 2 CPU cores, and rays 0.3 to 0.9 s.

What was run: both, on a CPU (Warp 1.18 and 1.19 compile for CPUs as well), against `mujoco.Renderer`, which they meet
but for pixels on silhouettes. The batch renderer on a CUDA device was not run: none was at hand.
"""

import dataclasses
import importlib.util
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from galvanax.envs.rays import UNSEEN, cast_ray
from galvanax.errors import ConfigError, nearest
from galvanax.physics.quiet_mjx import mjx

Kind = Literal["depth", "rgb"]
Backend = Literal["rays", "batch"]


@dataclasses.dataclass(frozen=True)
class Vision:
    """A camera as an observation.

    Depth is along the camera's axis (m), as `mujoco.Renderer` gives it, from 0 to `max_distance`, which also stands
    for nothing in sight. Colour is red, green, blue in [0, 1].

    Attributes:
      camera: name of one of the model's cameras; "" for its first one.
      width: pixels.
      height: pixels.
      kind: "depth", or "rgb" (with the "batch" backend only).
      backend: "rays" or "batch".
      max_distance: where depth ends (m).
      geom_groups: the groups of geoms that are seen, by default those that MuJoCo's viewer shows.
      see_own_body: whether rays see the geoms of the body that carries the camera. Turn it off for a camera inside a
        head: rays see geoms from within too, while the batch renderer, as OpenGL, does not.
    """

    camera: str = ""
    width: int = 32
    height: int = 24
    kind: Kind = "depth"
    backend: Backend = "rays"
    max_distance: float = 5.0
    geom_groups: tuple[int, ...] = (0, 1, 2)
    see_own_body: bool = True

    def __post_init__(self) -> None:
        for name, known in (("kind", get_args(Kind)), ("backend", get_args(Backend))):
            if getattr(self, name) not in known:
                given = getattr(self, name)
                raise ConfigError(f"Vision.{name}={given!r}: no such {name}.{nearest(str(given), known)}")
        for name in ("width", "height", "max_distance"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"Vision.{name}={getattr(self, name)}: expected more than 0.")
        if self.kind == "rgb" and self.backend == "rays":
            raise ConfigError("Vision.kind='rgb' needs Vision.backend='batch': rays know distances, but no colours.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image: `(height, width)`, or `(height, width, 3)` in colour."""
        return (self.height, self.width) if self.kind == "depth" else (self.height, self.width, 3)

    def camera_id(self, model: mujoco.MjModel | mjx.Model) -> int:
        """The camera's number in a model.

        Raises:
          ConfigError: the model has no such camera, or one without perspective.
        """
        if model.ncam == 0:
            raise ConfigError(f"Vision.camera={self.camera!r}: the model has no camera.")
        found = mjx.name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, self.camera) if self.camera else 0
        if found < 0:
            names = [mjx.id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, number) or "" for number in range(model.ncam)]
            raise ConfigError(
                f"Vision.camera={self.camera!r}: the model has none of this name.{nearest(self.camera, names)}"
            )
        return found

    def depth(self, model: mjx.Model, data: mjx.Data) -> jax.Array:
        """A depth image by rays, of one environment; `vmap` makes it many.

        Args:
          model: the model.
          data: with poses, as a step or `mjx.forward` leaves them. A step's are those before its last substep.

        Returns:
          `(height, width)` (m), the top row first.

        Raises:
          ConfigError: the backend isn't "rays"; there is no such camera; or the model has geoms that rays can't see.
        """
        if self.backend != "rays":
            raise ConfigError(
                f"Vision.backend={self.backend!r}: images come from batch_renderer(), depth() casts rays."
            )
        camera = self.camera_id(model)
        unseen = {UNSEEN[kind] for kind in np.asarray(model.geom_type).tolist() if kind in UNSEEN}
        if unseen:
            raise ConfigError(f"Vision.backend='rays' can't see geoms of type {sorted(unseen)}; use backend='batch'.")
        body = int(model.cam_bodyid[camera])
        own = -1 if self.see_own_body or body == 0 else body
        up = jnp.tan(jnp.deg2rad(model.cam_fovy[camera]) / 2)
        # Pixels' middles. Cameras look along -z with y up; a direction of depth 1 makes a ray's length the depth.
        y, x = jnp.meshgrid(
            _middles(self.height) * -up, _middles(self.width) * up * self.width / self.height, indexing="ij"
        )
        pixels = jnp.stack([x, y, -jnp.ones_like(x)], axis=-1).reshape(-1, 3) @ data.cam_xmat[camera].T
        eye = data.cam_xpos[camera]

        def look(direction: jax.Array) -> jax.Array:
            far = self.max_distance
            return cast_ray(model, data, eye, direction, farthest=far, groups=self.geom_groups, exclude_body=own)

        return jax.vmap(look)(pixels).reshape(self.height, self.width)

    def depth_now(self, model: mjx.Model, data: mjx.Data) -> jax.Array:
        """As `depth`, at the positions in `data`, whose poses may be older: a step's are."""
        posed = mjx.com_pos(model, mjx.kinematics(model, data))
        return self.depth(model, mjx.camlight(model, posed))

    def check_for_one(self, model: mujoco.MjModel, field: str) -> None:
        """Raises ConfigError where one environment can't see so: no such camera, or a backend that draws a batch.

        Args:
          model: the environment's.
          field: where the settings stand, for messages.
        """
        self.camera_id(model)
        if self.backend != "rays":
            raise ConfigError(
                f"{field}: one environment sees by rays. Vision.backend={self.backend!r} draws a whole batch at once: "
                "use Vision.batch_renderer on its states."
            )

    def batch_renderer(self, model: mujoco.MjModel, num_envs: int) -> "BatchRenderer":
        """A renderer of `num_envs` environments at once. It holds buffers on the device: make it once.

        Args:
          model: the model.
          num_envs: how many environments; fixed, since Warp allocates for them.

        Raises:
          ConfigError: the backend isn't "batch"; there is no such camera; or the batch renderer isn't present: says
            what is missing and what to install.
        """
        if self.backend != "batch":
            raise ConfigError(f"Vision.backend={self.backend!r}: batch_renderer() needs Vision.backend='batch'.")
        missing = missing_for_batch()
        if missing:
            choice = (
                "Nearest choice: backend='rays', which needs nothing."
                if self.kind == "depth"
                else "Nearest choice: kind='depth' with backend='rays', which needs nothing."
            )
            raise ConfigError(f"Vision.backend='batch' is not available here: {missing} {choice}")
        return BatchRenderer(self, model, num_envs)


class BatchRenderer:
    """Images of many environments by MuJoCo Warp; made by `Vision.batch_renderer`."""

    def __init__(self, vision: Vision, model: mujoco.MjModel, num_envs: int):
        """See `Vision.batch_renderer`."""
        self.vision, self.num_envs = vision, num_envs
        start = mujoco.MjData(model)
        mujoco.mj_forward(model, start)  # where the lights are: they stay there
        self._model: Any = mjx.put_model(model, impl="warp")
        self._start: Any = mjx.put_data(model, start, impl="warp")
        # Kept, because its buffers go when it does.
        self._context: Any = mjx.create_render_context(
            model,
            nworld=num_envs,
            cam_res=(vision.width, vision.height),
            cam_active=[vision.camera_id(model)],
            render_rgb=[vision.kind == "rgb"],
            render_depth=[vision.kind == "depth"],
            enabled_geom_groups=list(vision.geom_groups),
        )

    def __call__(self, data: mjx.Data) -> jax.Array:
        """The images.

        Args:
          data: of `num_envs` environments, with poses `geom_xpos`, `geom_xmat`, `cam_xpos`, `cam_xmat`; of JAX or Warp
            physics.

        Returns:
          `(num_envs, *vision.shape)`.

        Raises:
          ConfigError: another number of environments.
        """
        if data.geom_xpos.ndim != 3 or data.geom_xpos.shape[0] != self.num_envs:
            raise ConfigError(
                f"The batch renderer was made for num_envs={self.num_envs}; it got poses of shape "
                f"{list(data.geom_xpos.shape)}, expected [{self.num_envs}, geoms, 3]."
            )
        poses = {name: getattr(data, name) for name in ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat")}
        return jax.vmap(self._draw)(poses)

    def _draw(self, poses: dict[str, jax.Array]) -> jax.Array:
        handle = self._context.pytree()
        data = mjx.refit_bvh(self._model, self._start.replace(**poses), handle)
        colours, depths, _ = mjx.render(self._model, data, handle)
        if self.vision.kind == "rgb":
            return mjx.get_rgb(handle, 0, colours)  # 0: the only active camera
        far = self.vision.max_distance
        depth = far * mjx.get_depth(handle, 0, depths, far)[..., 0]
        return jnp.where(depth > 0, depth, far)  # Warp writes 0 where a ray meets nothing


def missing_for_batch() -> str:
    """What the batch renderer lacks on this machine and what to install; "" where it is all there."""
    if not hasattr(mjx, "create_render_context"):
        return "this mujoco-mjx has no batch renderer; install `mujoco-mjx[warp]>=3.17`."
    if importlib.util.find_spec("warp") is None:
        return "the package warp-lang is missing; `pip install 'mujoco-mjx[warp]'` brings the version that fits."
    return ""


def _middles(count: int) -> np.ndarray:
    """Middles of `count` equal pixels on [-1, 1]."""
    return (np.arange(count) + 0.5) * 2 / count - 1
