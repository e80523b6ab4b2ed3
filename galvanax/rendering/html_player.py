"""A motion as a web page to turn, zoom and scrub: one file, without a network."""

import base64
import html
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from galvanax.files import partial_file
from galvanax.rendering.trajectory_npz import MotionClip, model_name
from galvanax.rendering.view import choose_view, geom_color, visible_geoms

KINDS = {
    mujoco.mjtGeom.mjGEOM_PLANE: "plane",
    mujoco.mjtGeom.mjGEOM_HFIELD: "mesh",
    mujoco.mjtGeom.mjGEOM_SPHERE: "sphere",
    mujoco.mjtGeom.mjGEOM_CAPSULE: "capsule",
    mujoco.mjtGeom.mjGEOM_ELLIPSOID: "ellipsoid",
    mujoco.mjtGeom.mjGEOM_CYLINDER: "cylinder",
    mujoco.mjtGeom.mjGEOM_BOX: "box",
    mujoco.mjtGeom.mjGEOM_MESH: "mesh",
}


def write_player(
    path: str | Path, model: mujoco.MjModel, qpos: np.ndarray, time: np.ndarray, *, title: str | None = None
) -> None:
    """Writes a page that shows the motion in any browser, from the disk too: it holds all that it needs.

    Shown are the geoms of MuJoCo's groups 0 to 2: primitives, meshes and height fields, without textures. Drag to turn,
    drag with the right button (or two fingers) to move, scroll to zoom; space plays and stops, arrows step.

    Args:
      path: of the HTML file.
      model: what is seen.
      qpos: `(steps, nq)`.
      time: `(steps,)` (s), increasing.
      title: of the page; the model's name by default.

    Raises:
      DataError: an array doesn't fit, or the file can't be written.
    """
    clip = MotionClip(model, qpos, time)
    title = title or model_name(model) or "motion"
    text = json.dumps({"title": title, **describe_scene(clip)}, separators=(",", ":"))
    page = (importlib.resources.files("galvanax.rendering") / "player.html").read_text(encoding="utf-8")
    # In a script element nothing but "<" can end the data, and JSON has another way to write it.
    page = page.replace("{{title}}", html.escape(title)).replace("{{motion}}", text.replace("<", "\\u003c"))
    with partial_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


def describe_scene(clip: MotionClip) -> dict[str, Any]:
    """What the page draws: JSON data, with arrays in base64 of little-endian numbers.

    `poses` is float32 `(steps, bodies, 7)`: position (m) and quaternion (w, x, y, z) of the bodies that move. Each geom
    has its pose in its body, or in the world where `body` is -1.
    """
    model = clip.model
    shown = [geom for geom in visible_geoms(model) if mujoco.mjtGeom(model.geom_type[geom]) in KINDS]
    bodies = sorted({int(b) for b in model.geom_bodyid[shown] if model.body_weldid[b] != 0})
    view = choose_view(model, clip.qpos)
    if view.body is not None and view.body not in bodies:
        bodies.append(view.body)

    data = mujoco.MjData(model)
    poses = np.zeros((len(clip.qpos), len(bodies), 7), np.float32)
    for row, pose in enumerate(clip.qpos):
        data.qpos = pose
        mujoco.mj_kinematics(model, data)
        poses[row] = np.concatenate([data.xpos[bodies], data.xquat[bodies]], axis=1)

    meshes: dict[tuple[int, int], dict[str, Any]] = {}
    geoms = []
    for geom in shown:
        entry: dict[str, Any] = {
            "name": model.geom(geom).name,
            "type": KINDS[mujoco.mjtGeom(model.geom_type[geom])],
            "size": _round(model.geom_size[geom]),
            "color": _round(_color(model, geom)),
            **_place(model, data, geom, bodies),
        }
        if entry["type"] == "mesh":
            key = int(model.geom_type[geom]), int(model.geom_dataid[geom])
            if key not in meshes:
                meshes[key] = _triangles(model, *key)
            entry["mesh"] = list(meshes).index(key)
        geoms.append(entry)
    return {
        "time": encode(clip.time - clip.time[0], "<f4"),
        "bodies": [model.body(body).name for body in bodies],
        "poses": encode(poses, "<f4"),
        "geoms": geoms,
        "meshes": list(meshes.values()),
        "ground": _ground(clip, geoms, shown),
        "view": {
            "center": _round(view.center),
            "distance": round(view.distance(45.0), 4),
            "azimuth": view.azimuth,
            "elevation": view.elevation,
            "body": -1 if view.body is None else bodies.index(view.body),
        },
    }


def encode(array: np.ndarray, dtype: str) -> str:
    """Base64 of an array's numbers."""
    return base64.b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes()).decode()


def _color(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """RGBA `(4,)`; the mean of a texture stands for it."""
    color = np.array(geom_color(model, geom), np.float64)
    material = model.geom_matid[geom]
    texture = model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB] if material >= 0 else -1
    if texture >= 0 and model.tex_nchannel[texture] >= 3:
        channels = int(model.tex_nchannel[texture])
        size = int(model.tex_width[texture]) * int(model.tex_height[texture]) * channels
        start = int(model.tex_adr[texture])
        color[:3] *= model.tex_data[start : start + size].reshape(-1, channels)[:, :3].mean(0) / 255
    return color


def _place(model: mujoco.MjModel, data: mujoco.MjData, geom: int, bodies: Sequence[int]) -> dict[str, Any]:
    body = int(model.geom_bodyid[geom])
    if body in bodies:
        return {
            "body": bodies.index(body),
            "pos": _round(model.geom_pos[geom], 7),
            "quat": _round(model.geom_quat[geom], 7),
        }
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, data.geom_xmat[geom])
    return {"body": -1, "pos": _round(data.geom_xpos[geom], 7), "quat": _round(quat, 7)}


def _triangles(model: mujoco.MjModel, kind: int, number: int) -> dict[str, Any]:
    """Points, normals and faces of a mesh or a height field, in the geom's frame."""
    if kind == mujoco.mjtGeom.mjGEOM_HFIELD:
        points, faces = _terrain(model, number)
        normals = np.zeros((0, 3))  # the page makes them
    else:
        rows = slice(model.mesh_faceadr[number], model.mesh_faceadr[number] + model.mesh_facenum[number])
        # A point on a sharp edge has several normals: it becomes several points.
        pairs = np.stack([model.mesh_face[rows].ravel(), model.mesh_facenormal[rows].ravel()], axis=1)
        pairs, index = np.unique(pairs, axis=0, return_inverse=True)
        faces = index.reshape(-1, 3)
        points = model.mesh_vert[model.mesh_vertadr[number] + pairs[:, 0]]
        normals = model.mesh_normal[model.mesh_normaladr[number] + pairs[:, 1]]
    low, high = points.min(0), points.max(0)
    # 16 bits: a hundredth of a millimetre on a robot's part.
    cells = np.round((points - low) / np.maximum(high - low, 1e-12) * 65535)
    return {
        "low": _round(low),
        "high": _round(high),
        "points": encode(cells, "<u2"),
        "normals": encode(np.round(np.clip(normals, -1, 1) * 127), "i1"),
        "faces": encode(faces, "<u4"),
    }


def _terrain(model: mujoco.MjModel, number: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = int(model.hfield_nrow[number]), int(model.hfield_ncol[number])
    start = int(model.hfield_adr[number])
    height = model.hfield_data[start : start + rows * columns].reshape(rows, columns)
    x_half, y_half, top, _ = model.hfield_size[number]
    x, y = np.meshgrid(np.linspace(-x_half, x_half, columns), np.linspace(-y_half, y_half, rows))
    points = np.stack([x, y, height * top], axis=-1).reshape(-1, 3)
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    right, up, across = corner + 1, corner + columns, corner + columns + 1
    return points, np.concatenate([np.stack([corner, right, across], 1), np.stack([corner, across, up], 1)])


def _ground(clip: MotionClip, geoms: list[dict[str, Any]], shown: Sequence[int]) -> float | None:
    """Where to draw a ground (m), for a model that has none: below all that moves. None where it has one."""
    model = clip.model
    if any(g["type"] == "plane" for g in geoms) or any(
        model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_HFIELD for geom in shown
    ):
        return None
    data, lowest = mujoco.MjData(model), 0.0
    for pose in clip.qpos[:: max(1, len(clip.qpos) // 200)]:
        data.qpos = pose
        mujoco.mj_kinematics(model, data)
        for geom in shown:
            box, turn = model.geom_aabb[geom], data.geom_xmat[geom].reshape(3, 3)[2]
            lowest = min(lowest, data.geom_xpos[geom, 2] + turn @ box[:3] - np.abs(turn) @ box[3:])
    return round(float(lowest), 4)


def _round(values: np.ndarray, digits: int = 5) -> list[float]:
    return [round(float(value), digits) for value in values]
