"""What the entries of a state are called in plots, with their units."""

from typing import Any

import mujoco

from galvanax.physics.layout import StateLayout
from galvanax.physics.system import System, layout_of, model_of


def labels_of(system: System) -> list[str]:
    """For each entry of a system's states: its own `state_labels`, its joints' names, or `state 0`."""
    if (own := getattr(system, "state_labels", None)) is not None:
        return list(own)
    if (model := model_of(system)) is not None:
        return label_joints(model)
    layout = layout_of(system)
    return label_layout(layout) if layout is not None else [f"state {index}" for index in range(system.state_dim)]


def label_joints(model: Any) -> list[str]:
    """By the joints of a MuJoCo model: `slider (m)`, `hinge velocity (rad/s)`."""
    positions, velocities = [], []
    for index, kind in enumerate(map(mujoco.mjtJoint, model.jnt_type)):
        name = model.joint(index).name or f"joint {index}"
        if kind == mujoco.mjtJoint.mjJNT_FREE:
            positions += [f"{name} {axis} (m)" for axis in "xyz"]
            velocities += [f"{name} {axis} velocity (m/s)" for axis in "xyz"]
        if kind in (mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_BALL):
            positions += [f"{name} quaternion {axis}" for axis in "wxyz"]
            velocities += [f"{name} {axis} turning (rad/s)" for axis in "xyz"]
        else:
            unit = "m" if kind == mujoco.mjtJoint.mjJNT_SLIDE else "rad"
            positions.append(f"{name} ({unit})")
            velocities.append(f"{name} velocity ({unit}/s)")
    return positions + velocities


def label_layout(layout: StateLayout) -> list[str]:
    """By place, where no model is known: `qpos 0 (rad)`. A plain coordinate may be a turn that is not taken for one."""
    unit = {place: "rad" if place in layout.angles else "m or rad" for place in layout.scalar_positions}
    speed = dict(zip(layout.scalar_velocities, unit.values(), strict=True))
    either = {"rad": "rad/s", "m or rad": "m/s or rad/s"}
    return [
        *(f"qpos {place} ({unit[place]})" if place in unit else f"qpos {place}" for place in range(layout.nq)),
        *(f"qvel {place} ({either[speed.get(place, 'rad')]})" for place in range(layout.nv)),
    ]
