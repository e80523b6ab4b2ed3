"""The mirror image of a legged robot."""

from collections.abc import Mapping

import mujoco
import numpy as np

from galvanax.envs.symmetry import Symmetry

_SIDES = {"left": "right", "right": "left", "FL": "FR", "FR": "FL", "RL": "RR", "RR": "RL"}


def mirror_image(
    joints: tuple[str, ...], model: mujoco.MjModel, layout: Mapping[str, slice], scan_columns: int
) -> Symmetry:
    """A robot mirrored at its sagittal plane: left and right change places, roll and yaw change sign.

    Joints of a left and a right leg are taken to turn about the same axis, as they do on Unitree's robots.

    Args:
      joints: names, in the order of the actions: `left_hip` or `FL_hip`.
      model: that they are of.
      layout: where the parts of an observation are.
      scan_columns: points of a height scan from right to left.
    """
    order_of_joints, signs = _mirror_joints(joints, model)
    flips = {
        "lin_vel": [1, -1, 1],
        "ang_vel": [-1, 1, -1],
        "gravity": [1, -1, 1],
        "command": [1, -1, -1],
        "phase": [-1, -1],  # half a stride on
    }
    order, obs_signs = [], []
    for name, part in layout.items():
        places = np.arange(part.stop - part.start)
        if name in ("joint_pos", "joint_vel", "last_action"):
            order.append(part.start + order_of_joints)
            obs_signs.append(signs)
        elif name == "height_scan":
            order.append(part.start + places.reshape(-1, scan_columns)[:, ::-1].ravel())
            obs_signs.append(np.ones(len(places)))
        else:
            order.append(part.start + places)
            obs_signs.append(np.array(flips[name]))
    return Symmetry(np.concatenate(order), np.concatenate(obs_signs).astype(np.float32), order_of_joints, signs)


def _mirror_joints(names: tuple[str, ...], model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """For each joint, which one takes its place in the mirror, and whether the angle changes sign."""
    order, signs = [], []
    for name in names:
        side, _, rest = name.partition("_")
        order.append(names.index(f"{_SIDES[side]}_{rest}"))
        # Turning about the axis from left to right (pitch) looks the same in the mirror.
        signs.append(1.0 if np.abs(model.joint(name).axis).argmax() == 1 else -1.0)
    return np.array(order), np.array(signs, np.float32)
