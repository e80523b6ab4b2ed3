"""Where a legged robot's joints, actuators, feet and bodies are in a MuJoCo model: found by name, never by index."""

import dataclasses
from collections.abc import Mapping, Sequence

import mujoco
import numpy as np

from galvanax.errors import DataError, nearest
from galvanax.physics.joint_targets import torque_limit

_OBJECTS = {
    "body": (mujoco.mjtObj.mjOBJ_BODY, "nbody"),
    "joint": (mujoco.mjtObj.mjOBJ_JOINT, "njnt"),
    "geom": (mujoco.mjtObj.mjOBJ_GEOM, "ngeom"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Indices and constants of the controlled joints, in the environment's order, then of any others that have motors.

    Attributes:
      qpos: indices into qpos `(joints,)`.
      qvel: indices into qvel `(joints,)`.
      torque_of: for each actuator, the joint (in this order) whose torque it gets `(nu,)`.
      gears: of the actuators: torque per unit of control `(nu,)`.
      limits: largest torque of each joint (N·m) `(joints,)`.
      ranges: of the joints (rad) `(joints, 2)`.
      trunk: id of the trunk's body.
      feet: ids of the feet's bodies `(f,)`.
      fatal: ids of geoms whose contact with the ground ends an episode.
      penalised: ids of geoms, body by body, whose contact is penalised.
      controlled: number of joints that the action moves.
      joints: names.
      actuators: names, in the model's order.
    """

    qpos: np.ndarray
    qvel: np.ndarray
    torque_of: np.ndarray
    gears: np.ndarray
    limits: np.ndarray
    ranges: np.ndarray
    trunk: int
    feet: np.ndarray
    fatal: np.ndarray
    penalised: tuple[np.ndarray, ...]
    controlled: int
    joints: tuple[str, ...]
    actuators: tuple[str, ...]


def find_layout(
    model: mujoco.MjModel,
    source: str,
    *,
    joints: Sequence[str],
    trunk: str,
    feet: Sequence[str],
    fatal: Sequence[str],
    penalised: Sequence[str],
) -> Layout:
    """Matches names to a model.

    Args:
      model: bundled, or a user's own of the same robot: more joints, other orders and other geometry are fine.
      source: the model's file or name, for messages.
      joints: the controlled joints.
      trunk: the body that a free joint moves.
      feet: the feet's bodies.
      fatal: bodies, by name or part of it.
      penalised: bodies, by name or part of it.

    Raises:
      DataError: a body, joint or actuator is missing; names it, and what is near.
    """
    ids = np.array([_find(model, source, "joint", name) for name in joints])
    trunk_id = _find(model, source, "body", trunk)
    root = model.body_jntadr[trunk_id]
    if root < 0 or model.jnt_type[root] != mujoco.mjtJoint.mjJNT_FREE or model.jnt_qposadr[root] != 0:
        raise DataError(f"{source}: the trunk {trunk!r} has no free joint at the start of qpos; expected <freejoint/>.")
    driven = _driven_joints(model, source)
    for name, joint in zip(joints, ids, strict=True):
        if joint not in driven:
            has = [_name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, index) for index in range(model.nu)]
            raise DataError(f"{source}: no actuator drives the joint {name!r}.{nearest(name, has)}")
    order = [*ids, *(joint for joint in driven.values() if joint not in ids)] if model.nu else list(ids)
    order = list(dict.fromkeys(order))
    place = {joint: index for index, joint in enumerate(order)}
    return Layout(
        qpos=model.jnt_qposadr[order],
        qvel=model.jnt_dofadr[order],
        torque_of=np.array([place[model.actuator_trnid[index, 0]] for index in range(model.nu)]),
        gears=model.actuator_gear[:, 0].copy(),
        limits=np.array([_limit(model, joint, source) for joint in order]),
        ranges=np.where(model.jnt_limited[order][:, None], model.jnt_range[order], [-np.inf, np.inf]),
        trunk=trunk_id,
        feet=np.array([_find(model, source, "body", name) for name in feet]),
        fatal=np.concatenate([_geoms(model, body) for body in _matching(model, source, fatal)] or [np.zeros(0, int)]),
        penalised=tuple(_geoms(model, body, without_feet=True) for body in _matching(model, source, penalised)),
        controlled=len(ids),
        joints=tuple(_name(model, mujoco.mjtObj.mjOBJ_JOINT, joint) for joint in order),
        actuators=tuple(_name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, index) for index in range(model.nu)),
    )


def make_torque_motors(model: mujoco.MjModel) -> None:
    """Turns position and velocity servos of a user's model into plain motors, and takes away joint damping.

    The environment's own PD control gives the torques: a servo or a damper in the model would act a second time.
    """
    for index in range(model.nu):
        joint = model.actuator_trnid[index, 0]
        servo = model.actuator_biastype[index] != mujoco.mjtBias.mjBIAS_NONE
        if servo:
            limited = model.actuator_forcelimited[index]
            high = model.actuator_forcerange[index, 1] if limited else model.jnt_actfrcrange[joint, 1]
            model.actuator_gaintype[index] = mujoco.mjtGain.mjGAIN_FIXED
            model.actuator_gainprm[index] = 0
            model.actuator_gainprm[index, 0] = 1
            model.actuator_biastype[index] = mujoco.mjtBias.mjBIAS_NONE
            model.actuator_biasprm[index] = 0
            model.actuator_ctrllimited[index] = high > 0
            model.actuator_ctrlrange[index] = (-high, high)
        model.dof_damping[model.jnt_dofadr[joint]] = 0


def match_values(values: Mapping[str, float], names: Sequence[str], field: str) -> np.ndarray:
    """One number per joint, by the longest key that is part of the joint's name.

    Raises:
      DataError: no key fits a joint.
    """
    found = []
    for name in names:
        keys = [key for key in values if key in name]
        if not keys:
            raise DataError(f"{field} has no value for the joint {name!r}.{nearest(name, values)}")
        found.append(values[max(keys, key=len)])
    return np.array(found)


def _find(model: mujoco.MjModel, source: str, kind: str, name: str) -> int:
    obj, count = _OBJECTS[kind]
    found = mujoco.mj_name2id(model, obj, name)
    if found < 0:
        names = [_name(model, obj, index) for index in range(getattr(model, count))]
        raise DataError(f"{source} has no {kind} named {name!r}.{nearest(name, filter(None, names))}")
    return found


def _name(model: mujoco.MjModel, obj: mujoco.mjtObj, index: int) -> str:
    return mujoco.mj_id2name(model, obj, index) or ""


def _driven_joints(model: mujoco.MjModel, source: str) -> dict[int, int]:
    """Joint ids that actuators drive directly, by themselves."""
    driven: dict[int, int] = {}
    motors: dict[int, str] = {}
    for index in range(model.nu):
        name = _name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, index)
        if model.actuator_trntype[index] != mujoco.mjtTrn.mjTRN_JOINT:
            raise DataError(f"{source}: the actuator {name!r} drives no joint directly; expected <motor joint=.../>.")
        joint = int(model.actuator_trnid[index, 0])
        if joint in driven:
            raise DataError(
                f"{source}: {motors[joint]!r} and {name!r} both drive the joint "
                f"{_name(model, mujoco.mjtObj.mjOBJ_JOINT, joint)!r}; expected one motor a joint."
            )
        driven[joint], motors[joint] = joint, name
    return driven


def _limit(model: mujoco.MjModel, joint: int, source: str) -> float:
    limit = torque_limit(model, joint)
    if not np.isfinite(limit):
        name = _name(model, mujoco.mjtObj.mjOBJ_JOINT, joint)
        raise DataError(f"{source}: no torque limit for the joint {name!r}: give its motor a ctrlrange (N·m).")
    return limit


def _matching(model: mujoco.MjModel, source: str, parts: Sequence[str]) -> list[int]:
    names = [_name(model, mujoco.mjtObj.mjOBJ_BODY, index) for index in range(model.nbody)]
    found = []
    for part in parts:
        bodies = [index for index, name in enumerate(names) if part in name]
        if not bodies:
            raise DataError(f"{source} has no body whose name contains {part!r}.{nearest(part, names)}")
        found += bodies
    return found


def _geoms(model: mujoco.MjModel, body: int, without_feet: bool = False) -> np.ndarray:
    """A body's geoms; `without_feet`, those that no explicit pair lets touch the ground."""
    geoms = np.arange(model.body_geomadr[body], model.body_geomadr[body] + model.body_geomnum[body])
    feet = np.concatenate([model.pair_geom1, model.pair_geom2])
    return geoms[~np.isin(geoms, feet)] if without_feet else geoms
