"""From where a motion is looked at, and what of the model is seen."""

import dataclasses
import itertools

import mujoco
import numpy as np

from galvanax.errors import ConfigError, nearest
from galvanax.rendering.trajectory_npz import model_name

FOLLOW = "track"
BACKGROUND = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_HFIELD)
SAMPLES = 64  # poses that are enough to know where a motion goes
VISIBLE_GROUPS = 3  # MuJoCo draws the groups 0, 1 and 2 by default


@dataclasses.dataclass(frozen=True)
class View:
    """A camera that sees all of the motion, or goes along with its trunk.

    Attributes:
      center: the point looked at `(3,)` (m), at the first pose.
      radius: of a ball around it that holds what matters (m).
      azimuth: degrees about the vertical, as MuJoCo has it: 90 looks along +y.
      elevation: degrees above the horizon that the view points to; negative looks down.
      body: the trunk that it goes along with: the body of the first free joint; None for a model that stands fixed.
    """

    center: np.ndarray
    radius: float
    azimuth: float
    elevation: float
    body: int | None

    def distance(self, fovy: float, aspect: float = 4 / 3) -> float:
        """How far (m) a camera must be to see the ball.

        Args:
          fovy: vertical field of view (degrees).
          aspect: width by height.
        """
        half = np.arctan(np.tan(np.radians(fovy) / 2) * min(1.0, aspect))
        return 1.05 * self.radius / float(np.sin(half))


def choose_view(model: mujoco.MjModel, qpos: np.ndarray) -> View:
    """Chooses the view for poses `(steps, nq)`."""
    body = trunk_of(model)
    seen = [geom for geom in visible_geoms(model) if model.geom_type[geom] not in BACKGROUND]
    if body is not None:
        seen = [geom for geom in seen if model.body_rootid[model.geom_bodyid[geom]] == model.body_rootid[body]]
    data = mujoco.MjData(model)
    poses = qpos[:1] if body is not None else qpos[:: max(1, len(qpos) // SAMPLES)]
    corners = np.concatenate([_corners(model, data, pose, seen) for pose in poses])
    if not len(corners):
        corners = model.stat.center + np.array([[-0.5], [0.5]]) * model.stat.extent
    center = (corners.min(0) + corners.max(0)) / 2 if body is None else data.xpos[body].copy()
    radius = max(float(np.linalg.norm(corners - center, axis=1).max()), 1e-3)
    if body is None:
        return View(center, radius, 90.0, -8.0, None)
    return View(center, radius, 130.0, -18.0, body)


def _corners(model: mujoco.MjModel, data: mujoco.MjData, pose: np.ndarray, geoms: list[int]) -> np.ndarray:
    """Corners of the geoms' bounding boxes `(8 * geoms, 3)` at a pose."""
    data.qpos = pose
    mujoco.mj_kinematics(model, data)
    boxes, turns = model.geom_aabb[geoms], data.geom_xmat[geoms].reshape(-1, 3, 3)
    signs = np.array(list(itertools.product((-1, 1), repeat=3)))
    local = boxes[:, None, :3] + signs * boxes[:, None, 3:]
    return (data.geom_xpos[geoms][:, None] + np.einsum("gij,gcj->gci", turns, local)).reshape(-1, 3)


def trunk_of(model: mujoco.MjModel) -> int | None:
    """The body of the first free joint, or None."""
    free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
    return int(model.jnt_bodyid[free[0]]) if len(free) else None


def visible_geoms(model: mujoco.MjModel) -> list[int]:
    """Geoms that MuJoCo shows by default: of the groups 0 to 2, and not transparent."""
    return [g for g in range(model.ngeom) if model.geom_group[g] < VISIBLE_GROUPS and geom_color(model, g)[3] > 0]


def geom_color(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """RGBA `(4,)` from 0 to 1: the geom's own, or its material's where it has none of its own."""
    material, own = model.geom_matid[geom], model.geom_rgba[geom]
    default = np.array([0.5, 0.5, 0.5, 1.0], np.float32)
    return model.mat_rgba[material] if material >= 0 and np.allclose(own, default) else own


def find_camera(model: mujoco.MjModel, camera: str | int | None) -> int | None:
    """The number of one of the model's cameras, or None for the one of `choose_view`.

    Args:
      model: with its cameras.
      camera: a name; a number; "track" for one that goes along with the trunk (the model's own of that name, if it
        has one); or None: "track" where the model moves freely, else its first camera that stands still.

    Raises:
      ConfigError: the model has no such camera; names those it has.
    """
    names = [model.camera(number).name for number in range(model.ncam)]
    if camera is None:
        still = [number for number in range(model.ncam) if model.cam_bodyid[number] == 0]
        if trunk_of(model) is None and still:
            return still[0]
        camera = FOLLOW
    if isinstance(camera, str):
        if camera in names:
            return names.index(camera)
        if camera == FOLLOW:
            return None
        if not camera.isdigit():
            known = nearest(camera, [*filter(None, names), FOLLOW])
            raise ConfigError(f"camera={camera!r}: the model {model_name(model)!r} has none of this name.{known}")
        camera = int(camera)
    if not 0 <= camera < model.ncam:
        raise ConfigError(
            f"camera={camera}: the model {model_name(model)!r} has {model.ncam} cameras, numbered from 0; "
            f'"{FOLLOW}" is always there.'
        )
    return camera
