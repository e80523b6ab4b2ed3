"""Actions as joint targets, which PD control or a model's own servos turn into torques. All is matched by name."""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from galvanax.errors import ConfigError, nearest

_SCALAR = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)


@dataclasses.dataclass(frozen=True)
class JointTargets:
    """Actions that move joint targets around a default pose: `target = default + action_scale · action`.

    A joint with a torque motor gets `clip(kp (target - q) - kd q̇, ± torque_limit)` anew in every physics step; one
    with a position servo gets its target, and then `kp`, `kd` and `torque_limits` may be empty. Joints that have an
    actuator and are not named hold `qpos0`, motors with the largest gains.

    Attributes:
      joints: names, in the order of an action. Actuators are found by the joint that they drive.
      default: pose (rad or m).
      action_scale: rad or m for each unit of action.
      kp: stiffness (N·m/rad), one for each joint.
      kd: damping (N·m·s/rad).
      torque_limits: N·m.
      clip: keep targets in the joints' ranges.

    Raises:
      ConfigError: lengths differ, a joint is named twice, or the scale is not positive.
    """

    joints: tuple[str, ...]
    default: tuple[float, ...]
    action_scale: float = 1.0
    kp: tuple[float, ...] = ()
    kd: tuple[float, ...] = ()
    torque_limits: tuple[float, ...] = ()
    clip: bool = True

    def __post_init__(self) -> None:
        for field in ("joints", "default", "kp", "kd", "torque_limits"):
            values = tuple(getattr(self, field))
            object.__setattr__(self, field, values)
            if len(values) != len(self.joints) and (values or field == "default"):
                raise ConfigError(
                    f"JointTargets.{field} has {len(values)} entries; expected {len(self.joints)}, one for each joint"
                )
        if len(set(self.joints)) != len(self.joints) or not self.joints:
            raise ConfigError(f"JointTargets.joints={self.joints}; expected one or more different names")
        if not self.action_scale > 0:
            raise ConfigError(f"JointTargets.action_scale={self.action_scale}; expected more than 0")


class Joints:
    """`JointTargets` in a model. Arrays are of the named joints, then of all others with an actuator.

    Attributes:
      action_dim: the number of named joints.
      action_limits: the actions that lead to the ends of the joints' ranges, `(action_dim,)` each.

    Raises:
      ConfigError: a joint or an actuator is missing, or an actuator is of another kind; names it.
    """

    def __init__(self, model: mujoco.MjModel, targets: JointTargets):
        names = [model.joint(index).name for index in range(model.njnt)]
        driven = _driven_joints(model)
        for name in targets.joints:
            if name not in names:
                raise ConfigError(f"JointTargets.joints: the model has no joint {name!r}.{nearest(name, names)}")
            if names.index(name) not in driven:
                raise ConfigError(f"JointTargets.joints: no actuator drives the joint {name!r}.")
        joints = [names.index(name) for name in targets.joints]
        joints += [joint for joint in driven if joint not in joints]
        order = np.array([driven[joint] for joint in joints])  # of the actuators
        self.action_dim = len(targets.joints)
        self._qpos, self._qvel = model.jnt_qposadr[joints], model.jnt_dofadr[joints]
        self._places = np.argsort(order)
        self._gears = model.actuator_gear[order, 0]
        others = len(joints) - self.action_dim
        self._default = np.concatenate([targets.default, model.qpos0[self._qpos[self.action_dim :]]])
        self._scale = np.append(np.full(self.action_dim, targets.action_scale), np.zeros(others))
        limited = model.jnt_limited[joints].astype(bool) & targets.clip
        self._low, self._high = np.where(limited[:, None], model.jnt_range[joints], [-np.inf, np.inf]).T
        # A joint that nobody moves stays where it is, even where that is out of its range.
        self._low[self.action_dim :], self._high[self.action_dim :] = -np.inf, np.inf
        self._servo = model.actuator_biastype[order] != mujoco.mjtBias.mjBIAS_NONE
        self._kp, self._kd, self._limits = self._gains(model, targets, joints)
        count = self.action_dim
        low, high = ((end - self._default)[:count] / targets.action_scale for end in (self._low, self._high))
        self.action_limits = low.astype(np.float32), high.astype(np.float32)

    def _gains(self, model: mujoco.MjModel, targets: JointTargets, joints: list[int]) -> tuple[np.ndarray, ...]:
        motors = ~self._servo
        for field in ("kp", "kd", "torque_limits"):
            if motors.any() and not getattr(targets, field):
                name = model.joint(joints[int(np.argmax(motors))]).name
                raise ConfigError(
                    f"JointTargets.{field} is empty; the joint {name!r} has a torque motor, which needs it."
                )
        if not motors.any():
            return (np.zeros(len(joints)),) * 3
        others = joints[self.action_dim :]
        limits = np.concatenate([targets.torque_limits, [torque_limit(model, joint) for joint in others]])
        gains = (np.append(gain, np.full(len(others), max(gain))) for gain in (targets.kp, targets.kd))
        return *gains, limits

    def command(self, action: jax.Array) -> jax.Array:
        """What holds for the control step: all targets."""
        action = jnp.concatenate([action, jnp.zeros(len(self._default) - self.action_dim, action.dtype)])
        return jnp.clip(self._default + self._scale * action, self._low, self._high)

    def control(self, command: jax.Array, qpos: jax.Array, qvel: jax.Array) -> jax.Array:
        """The control in a physics step, in the model's order of actuators."""
        torque = self._kp * (command - qpos[self._qpos]) - self._kd * qvel[self._qvel]
        torque = jnp.clip(torque, -self._limits, self._limits)
        # A servo compares its control with gear times the angle.
        return jnp.where(self._servo, command * self._gears, torque / self._gears)[self._places]


def _driven_joints(model: mujoco.MjModel) -> dict[int, int]:
    """The actuator of each joint that has one, by ids. Every actuator has to be a joint's own motor or servo."""
    driven: dict[int, int] = {}
    for index in range(model.nu):
        joint = int(model.actuator_trnid[index, 0])
        of_joint = model.actuator_trntype[index] == mujoco.mjtTrn.mjTRN_JOINT and joint not in driven
        if not (of_joint and mujoco.mjtJoint(int(model.jnt_type[joint])) in _SCALAR and _is_plain(model, index)):
            raise ConfigError(
                f"JointTargets: the actuator {model.actuator(index).name!r} is not the only <motor> or <position> of "
                "one hinge or slide; expected that of every actuator."
            )
        driven[joint] = index
    return driven


def _is_plain(model: mujoco.MjModel, actuator: int) -> bool:
    """Whether an actuator is a motor, whose control is a torque, or a position servo, whose control is a target."""
    stiffness, bias = model.actuator_gainprm[actuator, 0], model.actuator_biasprm[actuator]
    motor = model.actuator_biastype[actuator] == mujoco.mjtBias.mjBIAS_NONE and stiffness == 1
    servo = model.actuator_biastype[actuator] == mujoco.mjtBias.mjBIAS_AFFINE and tuple(bias[:2]) == (0, -stiffness)
    fixed = model.actuator_gaintype[actuator] == mujoco.mjtGain.mjGAIN_FIXED
    return bool((motor or servo) and fixed and model.actuator_dyntype[actuator] == mujoco.mjtDyn.mjDYN_NONE)


def torque_limit(model: mujoco.MjModel, joint: int) -> float:
    """The largest torque (N·m) that a joint's actuators can give it; infinite where nothing limits it."""
    limits = [np.inf]
    if model.jnt_actfrclimited[joint]:
        limits.append(model.jnt_actfrcrange[joint, 1])
    for index in np.flatnonzero(model.actuator_trnid[:, 0] == joint):
        gear = abs(model.actuator_gear[index, 0])
        if model.actuator_ctrllimited[index]:
            limits.append(model.actuator_ctrlrange[index, 1] * gear)
        if model.actuator_forcelimited[index]:
            limits.append(model.actuator_forcerange[index, 1] * gear)
    return float(min(limits))
