"""A model's parameters by name, `body_mass/pole`: which there are, what they are, how to set them."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from galvanax.callbacks.patterns import check_patterns, matching
from galvanax.errors import ConfigError, nearest
from galvanax.physics.derived_constants import refresh_constants
from galvanax.physics.quiet_mjx import mjx

DELAY = "action_delay"
# MJX leaves out the friction of joints that have none when it takes the model; and a limit of exactly 0, put in later,
# would lock the joint: between its ends, where the solver sees a spring, nothing is left.
LEAST_FRICTION = 1e-6
_SCALAR = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One number of a model.

    Attributes:
      path: its name, `field/name`.
      field: one of `FIELDS`, or `action_delay`.
      index: its place in the field.
      initial: its value in the model.
      positive: it keeps its sign and is fitted in log space; otherwise it is 0 or more and fitted as it is.
      scale: of what is fitted as it is: about how much of it shows in the motion.
      least: of what is fitted as it is.
    """

    path: str
    field: str
    index: int
    initial: float
    positive: bool
    scale: float = 1.0
    least: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Field:
    """Parameters of one kind.

    Attributes:
      names: of the places that can be fitted.
      read: the numbers, as many as the model has places.
      put: the changed arrays of a model, given places and their new numbers; for MuJoCo's and MJX's models alike.
      positive: see `Parameter`.
      scale: see `Parameter`; as many as `read` gives.
      least: see `Parameter`.
    """

    names: Callable[[mujoco.MjModel], dict[int, str]]
    read: Callable[[mujoco.MjModel], np.ndarray]
    put: Callable[[Any, np.ndarray, Any], dict[str, Any]]
    positive: bool = True
    scale: Callable[[mujoco.MjModel], np.ndarray] | None = None
    least: float = 0.0


def _set(array: Any, places: Any, values: Any) -> Any:
    if isinstance(array, np.ndarray):
        array = array.copy()
        array[places] = values
        return array
    return jnp.asarray(array).at[places].set(values)


def _name(item: Any) -> str:
    return item.name or str(item.id)


def _bodies(model: mujoco.MjModel) -> dict[int, str]:
    """Those that move and have a mass."""
    moving = np.flatnonzero((model.body_weldid != 0) & (model.body_mass > 0))
    return {int(body): _name(model.body(body)) for body in moving}


def _joints(model: mujoco.MjModel) -> dict[int, str]:
    """Hinges and slides, by their dof."""
    scalar = (joint for joint in range(model.njnt) if mujoco.mjtJoint(int(model.jnt_type[joint])) in _SCALAR)
    return {int(model.jnt_dofadr[joint]): _name(model.joint(joint)) for joint in scalar}


def _springs(model: mujoco.MjModel) -> dict[int, str]:
    return {int(model.dof_jntid[dof]): name for dof, name in _joints(model).items()}


def _actuators(model: mujoco.MjModel) -> dict[int, str]:
    return {int(index): _name(model.actuator(index)) for index in np.flatnonzero(model.actuator_gainprm[:, 0])}


def _geoms(model: mujoco.MjModel) -> dict[int, str]:
    """Those that can touch others, apart from contact pairs."""
    touching = ((model.geom_contype | model.geom_conaffinity) != 0) & (model.geom_friction[:, 0] > 0)
    return {int(geom): _name(model.geom(geom)) for geom in np.flatnonzero(touching)}


def _pairs(model: mujoco.MjModel) -> dict[int, str]:
    return {int(pair): _name(model.pair(pair)) for pair in np.flatnonzero(model.pair_friction[:, 0] > 0)}


def _put_mass(model: Any, places: np.ndarray, values: Any) -> dict[str, Any]:
    mass = _set(model.body_mass, places, values)
    grown = (values / model.body_mass[places])[:, None] * model.body_inertia[places]
    return {"body_mass": mass, "body_inertia": _set(model.body_inertia, places, grown)}


def _put_gain(model: Any, places: np.ndarray, values: Any) -> dict[str, Any]:
    gain, bias = model.actuator_gainprm, model.actuator_biasprm
    grown = (values / gain[places, 0])[:, None] * bias[places, :3]
    return {
        "actuator_gainprm": _set(gain, (places, 0), values),
        "actuator_biasprm": _set(bias, (places, slice(0, 3)), grown),
    }


def _put_pair_friction(model: Any, places: np.ndarray, values: Any) -> dict[str, Any]:
    both = (places, slice(0, 2))  # tangents; torsion and rolling stay
    return {"pair_friction": _set(model.pair_friction, both, values[:, None])}


def _put_geom_friction(model: Any, places: np.ndarray, values: Any) -> dict[str, Any]:
    return {"geom_friction": _set(model.geom_friction, (places, 0), values)}


def _plain(
    field: str, names: Callable[[mujoco.MjModel], dict[int, str]], per_inertia: float, least: float = 0.0
) -> _Field:
    """A field whose numbers are not negative; `per_inertia` of it, for each unit of the joint's inertia, shows."""
    return _Field(
        names,
        lambda model: np.maximum(getattr(model, field), least),
        lambda model, places, values: {field: _set(getattr(model, field), places, values)},
        positive=False,
        scale=lambda model: per_inertia * model.dof_M0[model.jnt_dofadr if field.startswith("jnt") else slice(None)],
        least=least,
    )


FIELDS: dict[str, _Field] = {
    "body_mass": _Field(_bodies, lambda model: model.body_mass, _put_mass),
    "dof_damping": _plain("dof_damping", _joints, 1.0),  # 1/s
    "dof_frictionloss": _plain("dof_frictionloss", _joints, 1.0, LEAST_FRICTION),  # rad/s²
    "dof_armature": _plain("dof_armature", _joints, 1.0),
    "jnt_stiffness": _plain("jnt_stiffness", _springs, 10.0),  # 1/s²
    "actuator_gain": _Field(_actuators, lambda model: model.actuator_gainprm[:, 0], _put_gain),
    "geom_friction": _Field(_geoms, lambda model: model.geom_friction[:, 0], _put_geom_friction),
    "pair_friction": _Field(_pairs, lambda model: model.pair_friction[:, 0], _put_pair_friction),
}
_OF_INERTIA = ("body_mass", "dof_armature")


def find_parameters(model: mujoco.MjModel, patterns: Sequence[str], control_dt: float) -> tuple[Parameter, ...]:
    """The parameters that any of the patterns matches, in the order of `FIELDS`.

    Raises:
      ConfigError: a pattern matches none; names the nearest.
    """
    known = {parameter.path: parameter for parameter in _all(model)}
    known[DELAY] = Parameter(DELAY, DELAY, 0, 0.0, positive=False, scale=control_dt)
    check_patterns("parameters", patterns)
    if not patterns:
        raise ConfigError(f"parameters=(): expected patterns such as body_mass/*. Known: {', '.join(known)}.")
    found = matching("parameters", patterns, known, "parameters")
    return tuple(parameter for path, parameter in known.items() if path in found)


def set_parameters(model: mujoco.MjModel, values: Mapping[str, float]) -> mujoco.MjModel:
    """A copy of a model with other values of some parameters.

    Args:
      model: the model; it stays as it is.
      values: by name, as `Identification.values` and the file of `Identification.save` have them. A delay of actions
        is no part of a model and passed by.

    Returns:
      The model, with the constants that follow from masses and armatures computed anew (`mujoco.mj_setConst`).

    Raises:
      ConfigError: the model has no such parameter, or a value is not finite or of the wrong sign; names it.
    """
    known = {parameter.path: parameter for parameter in _all(model)}
    chosen = []
    for path, value in values.items():
        if path == DELAY:
            continue
        if path not in known:
            raise ConfigError(f"set_parameters: the model has no parameter {path!r}.{nearest(path, known)}")
        positive = known[path].positive
        good = value * known[path].initial > 0 if positive else value >= 0
        if not (np.isfinite(value) and good):
            expected = (
                f"a finite number of the sign of {known[path].initial:g}" if positive else "0 or more, and finite"
            )
            raise ConfigError(f"set_parameters: {path}={value}; expected {expected}.")
        chosen.append(known[path])
    changed = copy.copy(model)
    for name, array in _changes(model, chosen, np.array([values[parameter.path] for parameter in chosen])).items():
        getattr(changed, name)[:] = array
    if any(parameter.field in _OF_INERTIA for parameter in chosen):
        mujoco.mj_setConst(changed, mujoco.MjData(changed))
    return changed


def with_parameters(model: mjx.Model, parameters: Sequence[Parameter], values: jax.Array) -> mjx.Model:
    """`set_parameters` for a model in MJX and values `(len(parameters),)`: can be traced and differentiated."""
    changes = _changes(model, parameters, values)
    if not changes:
        return model
    changed = model.replace(**changes)
    return refresh_constants(changed) if any(p.field in _OF_INERTIA for p in parameters) else changed


def with_friction(model: mujoco.MjModel, parameters: Sequence[Parameter]) -> mujoco.MjModel:
    """A copy in which every joint whose friction is asked for has some."""
    model = copy.copy(model)
    places = [parameter.index for parameter in parameters if parameter.field == "dof_frictionloss"]
    model.dof_frictionloss[places] = np.maximum(model.dof_frictionloss[places], LEAST_FRICTION)
    return model


def _changes(model: Any, parameters: Sequence[Parameter], values: Any) -> dict[str, Any]:
    """The arrays that differ."""
    changes: dict[str, Any] = {}
    for name, field in FIELDS.items():
        rows = [row for row, parameter in enumerate(parameters) if parameter.field == name]
        if rows:
            places = np.array([parameters[row].index for row in rows])
            changes |= field.put(model, places, values[np.array(rows)])
    return changes


def _all(model: mujoco.MjModel) -> list[Parameter]:
    found = []
    for name, field in FIELDS.items():
        values = field.read(model)
        scales = np.ones(len(values)) if field.scale is None else field.scale(model)
        for place, item in field.names(model).items():
            # What has no inertia at all has a scale all the same.
            scale = float(scales[place]) or 1.0
            found.append(
                Parameter(f"{name}/{item}", name, place, float(values[place]), field.positive, scale, field.least)
            )
    return found
