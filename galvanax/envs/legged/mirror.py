"""The mirror image of a legged robot."""

from typing import TYPE_CHECKING

import mujoco
import numpy as np

from galvanax.envs.symmetry import Symmetry
from galvanax.errors import ConfigError

if TYPE_CHECKING:
    from galvanax.envs.legged.legged import LeggedEnvironment

_SIDES = {"left": "right", "right": "left", "FL": "FR", "FR": "FL", "RL": "RR", "RR": "RL"}


def mirror_image(env: "LeggedEnvironment") -> Symmetry:
    """A robot mirrored at its sagittal plane: left and right change places, roll and yaw change sign.

    Joints of a left and a right leg are taken to turn about the same axis, as they do on Unitree's robots.

    Raises:
      ConfigError: the gait's clock is not the same for both sides, half a stride apart.
    """
    if env.observes_phase and env.gait.offset != (0.0, 0.5):
        raise ConfigError(f"{type(env).__name__}.gait.offset={env.gait.offset} is not symmetric; expected (0, 0.5).")
    joints, signs = _mirror_joints(env.joints, env.mj_model)
    flips = {
        "lin_vel": [1, -1, 1],
        "ang_vel": [-1, 1, -1],
        "gravity": [1, -1, 1],
        "command": [1, -1, -1],
        "phase": [-1, -1],  # half a stride on
    }
    order, obs_signs = [], []
    for name, part in env.observation_layout.items():
        places = np.arange(part.stop - part.start)
        if name in ("joint_pos", "joint_vel", "last_action"):
            order.append(part.start + joints)
            obs_signs.append(signs)
        elif name == "height_scan":
            assert env.height_scan is not None
            order.append(part.start + places.reshape(-1, int(env.height_scan.y[2]))[:, ::-1].ravel())
            obs_signs.append(np.ones(len(places)))
        else:
            order.append(part.start + places)
            obs_signs.append(np.array(flips[name]))
    return Symmetry(np.concatenate(order), np.concatenate(obs_signs).astype(np.float32), joints, signs)


def _mirror_joints(names: tuple[str, ...], model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """For each joint, which one takes its place in the mirror, and whether the angle changes sign."""
    order, signs = [], []
    for name in names:
        side, _, rest = name.partition("_")
        order.append(names.index(f"{_SIDES[side]}_{rest}"))
        # Turning about the axis from left to right (pitch) looks the same in the mirror.
        signs.append(1.0 if np.abs(model.joint(name).axis).argmax() == 1 else -1.0)
    return np.array(order), np.array(signs, np.float32)
