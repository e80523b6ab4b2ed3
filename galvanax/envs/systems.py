"""Systems by name: the robots of our environments without rewards and episodes, for rollouts and their gradients."""

from collections.abc import Callable
from typing import Any

from galvanax.envs.classic.cart_pole import CartPole, DoubleCartPole
from galvanax.envs.classic.hopper import Hopper
from galvanax.envs.classic.pendulum import Pendulum
from galvanax.envs.environment import MJXEnvironment
from galvanax.envs.legged.g1 import G1
from galvanax.envs.legged.go2 import Go2
from galvanax.envs.legged.h1 import H1
from galvanax.envs.legged.h1_2 import H1_2
from galvanax.envs.legged.legged import LeggedEnvironment
from galvanax.errors import ConfigError, nearest
from galvanax.physics.joint_targets import JointTargets
from galvanax.physics.models import load_model
from galvanax.physics.pendulum import PendulumSystem
from galvanax.physics.system import Gradient, MJXSystem, System

_ENVIRONMENTS: dict[str, Callable[[], MJXEnvironment]] = {
    "cart-pole": CartPole,
    "double-cart-pole": DoubleCartPole,
    "hopper": Hopper,
    "go2": Go2,
    "g1": G1,
    "h1": H1,
    "h1_2": H1_2,
}


def load_system(
    name_or_path: str, control_dt: float | None = None, gradient: Gradient = "implicit", iterations: int | None = None
) -> System:
    """Makes a system.

    Args:
      name_or_path: `"pendulum"`, in plain JAX; `"cart-pole"`, `"double-cart-pole"`, `"hopper"`, `"go2"`, `"g1"`, `"h1"`
        or `"h1_2"`, with the actions, gains and poses of these environments; or the path of an MJCF file (`*.xml`),
        whose actuators an action in [-1, 1] drives.
      control_dt: seconds (s) that an action is held; by default the environment's, for a file one timestep.
      gradient: see `MJXSystem`.
      iterations: of the constraint solver; by default the model's own.

    Raises:
      ConfigError: unknown name, or a setting doesn't fit; says what is near.
      DataError: a file can't be loaded.
    """
    if name_or_path == "pendulum":
        return PendulumSystem() if control_dt is None else PendulumSystem(control_dt=control_dt)
    if name_or_path.endswith(".xml"):
        model = load_model(name_or_path)
        return MJXSystem(model, control_dt or model.opt.timestep, gradient=gradient, iterations=iterations)
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
