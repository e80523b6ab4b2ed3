"""Systems by name: the robots of our environments without rewards and episodes, for rollouts and their gradients."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args, get_type_hints

import mujoco
import numpy as np

from galvanax.envs.classic.cart_pole import CartPole, DoubleCartPole
from galvanax.envs.classic.hopper import Hopper
from galvanax.envs.classic.pendulum import Pendulum
from galvanax.envs.environment import MJXEnvironment
from galvanax.envs.legged.g1 import G1
from galvanax.envs.legged.go2 import Go2
from galvanax.envs.legged.h1 import H1
from galvanax.envs.legged.h1_2 import H1_2
from galvanax.envs.legged.layout import match_values
from galvanax.envs.legged.legged import LeggedEnvironment
from galvanax.errors import ConfigError, DataError, nearest
from galvanax.physics.joint_targets import JointTargets, torque_limit
from galvanax.physics.models import load_model
from galvanax.physics.pendulum import PendulumSystem
from galvanax.physics.system import Gradient, MJXSystem, System
from galvanax.settings import check_choice
from galvanax.terminal import say

_ENVIRONMENTS: dict[str, Callable[[], MJXEnvironment]] = {
    "cart-pole": CartPole,
    "double-cart-pole": DoubleCartPole,
    "hopper": Hopper,
    "go2": Go2,
    "g1": G1,
    "h1": H1,
    "h1_2": H1_2,
}


@dataclasses.dataclass(frozen=True)
class Drive:
    """What an action means in a model of a file of one's own.

    Attributes:
      kind: `"joint-targets"`: residuals to a default pose, which PD control turns into torques; `"actuators"`: an
        action in [-1, 1] spans each actuator's control range; `"auto"`: joint targets with the gains and the pose of a
        Go2, G1, H1 or H1-2 where the file's joints and bodies have that robot's names, else the actuators.
      kp: of joint targets: stiffness (N·m/rad) by joint name or part of it; by default the known robot's.
      kd: damping (N·m·s/rad), likewise.
      action_scale: rad for each unit of action; by default the known robot's, else 0.25.
    """

    kind: Literal["auto", "actuators", "joint-targets"] = "auto"
    kp: dict[str, float] = dataclasses.field(default_factory=dict)
    kd: dict[str, float] = dataclasses.field(default_factory=dict)
    action_scale: float | None = None

    def __post_init__(self) -> None:
        check_choice(self, "kind", get_args(get_type_hints(Drive)["kind"]))


def load_system(
    name_or_path: str,
    control_dt: float | None = None,
    gradient: Gradient = "implicit",
    iterations: int | None = None,
    drive: Drive = Drive(),
) -> System:
    """Makes a system.

    Args:
      name_or_path: `"pendulum"`, in plain JAX; `"cart-pole"`, `"double-cart-pole"`, `"hopper"`, `"go2"`, `"g1"`, `"h1"`
        or `"h1_2"`, with the actions, gains and poses of these environments; or the path of an MJCF file (`*.xml`).
      control_dt: seconds (s) that an action is held; by default the environment's, for another file one timestep.
      gradient: see `MJXSystem`.
      iterations: of the constraint solver; by default the model's own.
      drive: how actions drive a file's model. What was chosen is said once.

    Raises:
      ConfigError: unknown name, or a setting doesn't fit; says what is near.
      DataError: a file can't be loaded.
    """
    of_file = name_or_path.endswith(".xml")
    if drive != Drive() and not of_file:
        raise ConfigError(f"drive={drive} is of a file's model; system={name_or_path!r} has actions of its own.")
    if name_or_path == "pendulum":
        return PendulumSystem() if control_dt is None else PendulumSystem(control_dt=control_dt)
    if of_file:
        return _system_of_file(name_or_path, control_dt, gradient, iterations, drive)
    if name_or_path not in _ENVIRONMENTS:
        known = nearest(name_or_path, ["pendulum", *_ENVIRONMENTS])
        raise ConfigError(f"Unknown system {name_or_path!r}; expected a name or the path of an .xml file.{known}")
    return system_of(_ENVIRONMENTS[name_or_path](), control_dt, gradient, iterations)


def system_of(
    env: Any, control_dt: float | None = None, gradient: Gradient = "implicit", iterations: int | None = None
) -> MJXSystem:
    """The system inside an environment: the same model, and the same effect of an action.

    From the same state, a step is the environment's own without noise, random properties, pushes and delays, as long as
    targets are in the joints' ranges, where the system keeps them and the environment doesn't.

    Args:
      env: a `LeggedEnvironment`, or a classic environment of ours, with any settings.
      control_dt: seconds (s) that an action is held; by default the environment's.
      gradient: see `MJXSystem`.
      iterations: of the constraint solver; by default the model's own.

    Raises:
      ConfigError: another kind of environment.
    """
    env = getattr(env, "unwrapped", env)
    settings: dict[str, Any] = {"gradient": gradient, "iterations": iterations}
    if isinstance(env, LeggedEnvironment):
        layout, count = env.layout, env.layout.controlled
        kp, kd = env.gains
        settings["targets"] = JointTargets(
            joints=env.joints,
            default=env.default_pose,
            action_scale=env.action_scale,
            kp=tuple(kp[:count]),
            kd=tuple(kd[:count]),
            torque_limits=tuple(layout.limits[:count]),
        )
    elif not isinstance(env, CartPole | Hopper | Pendulum):
        raise ConfigError(
            f"system_of got {type(env).__name__}; expected a LeggedEnvironment, CartPole, DoubleCartPole, Hopper or "
            "Pendulum. For any other model: MJXSystem."
        )
    return MJXSystem(env.mj_model, env.control_dt if control_dt is None else control_dt, **settings)


def _system_of_file(
    path: str, control_dt: float | None, gradient: Gradient, iterations: int | None, drive: Drive
) -> MJXSystem:
    model = load_model(path)
    robot = None if drive.kind == "actuators" else _known_robot(path, model)
    if robot is not None:
        changes = {name: value for name in ("kp", "kd", "action_scale") if (value := getattr(drive, name))}
        robot = dataclasses.replace(robot, **changes)
        known = "" if changes else " with its gains"
        _say_once(f"{path}: driven as a {type(robot).__name__}{known}, by joint targets around its default pose.")
        return system_of(robot, control_dt, gradient, iterations)
    targets = None
    if drive.kind == "joint-targets":
        targets = _joint_targets(path, model, drive)
        _say_once(f"{path}: driven by joint targets around its {_pose(model)[0]}, with the given gains.")
    else:
        if drive.kp or drive.kd or drive.action_scale:
            raise ConfigError(f"drive={drive}: gains and a scale are of joint targets; expected kind='joint-targets'.")
        _say_once(f"{path}: driven by its own actuators, an action in [-1, 1] for each control range.")
    dt = model.opt.timestep if control_dt is None else control_dt
    return MJXSystem(model, dt, targets=targets, gradient=gradient, iterations=iterations)


def _known_robot(path: str, model: mujoco.MjModel) -> LeggedEnvironment | None:
    """The environment of the robot whose joints and bodies a file has; of several, the one nearest in mass."""
    fits: dict[float, LeggedEnvironment] = {}
    for build in _ENVIRONMENTS.values():
        env = build()
        if not isinstance(env, LeggedEnvironment):
            continue
        own = dataclasses.replace(env, xml_path=path)
        with contextlib.suppress(DataError):
            own.layout  # noqa: B018
            fits[abs(np.log(model.body_mass.sum() / env.mj_model.body_mass.sum()))] = own
    return fits[min(fits)] if fits else None


def _joint_targets(path: str, model: mujoco.MjModel, drive: Drive) -> JointTargets:
    """Of every joint with an actuator, around the keyframe "home", the first one, or `qpos0`."""
    if not drive.kp or not drive.kd:
        raise ConfigError(
            f"drive={drive}: {path} is no robot whose gains we know; expected kp and kd, by joint name or part of it."
        )
    joints = [int(joint) for joint in dict.fromkeys(model.actuator_trnid[:, 0].tolist())]
    names = [model.joint(joint).name for joint in joints]
    pose = _pose(model)[1]
    return JointTargets(
        joints=tuple(names),
        default=tuple(pose[model.jnt_qposadr[joints]].tolist()),
        action_scale=0.25 if drive.action_scale is None else drive.action_scale,
        kp=tuple(match_values(drive.kp, names, "drive.kp").tolist()),
        kd=tuple(match_values(drive.kd, names, "drive.kd").tolist()),
        torque_limits=tuple(torque_limit(model, joint) for joint in joints),
    )


def _pose(model: mujoco.MjModel) -> tuple[str, np.ndarray]:
    names = [model.key(index).name for index in range(model.nkey)]
    if not names:
        return "qpos0", model.qpos0
    index = names.index("home") if "home" in names else 0
    return f"keyframe {names[index] or index!r}", model.key_qpos[index]


@functools.cache
def _say_once(text: str) -> None:
    say(text)
