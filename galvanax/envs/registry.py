"""Environments by name: ours, those that a user registers, and brax's and Playground's by prefix."""

import builtins
import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from galvanax.envs.classic.cart_pole import CartPole, DoubleCartPole
from galvanax.envs.classic.hopper import Hopper
from galvanax.envs.classic.ledge import Ledge
from galvanax.envs.classic.pendulum import Pendulum
from galvanax.envs.environment import MJXEnvironment
from galvanax.envs.legged.g1 import G1
from galvanax.envs.legged.go2 import Go2
from galvanax.envs.legged.h1 import H1
from galvanax.envs.legged.h1_2 import H1_2
from galvanax.errors import ConfigError, nearest

_BUILDERS: dict[str, Callable[[], Any]] = {
    "pendulum": Pendulum,
    "cart-pole-balance": lambda: CartPole(start="upright"),
    "cart-pole-swing-up": CartPole,
    "double-cart-pole": DoubleCartPole,
    "hopper": Hopper,
    "ledge": Ledge,
    "go2": Go2,
    "g1": G1,
    "h1": H1,
    "h1_2": H1_2,
}


def list() -> builtins.list[str]:
    """The registered environments. `"brax:NAME"` and `"playground:NAME"` load those libraries' too."""
    return sorted(name for name in _BUILDERS if ":" not in name)


def register(name: str, build: Callable[[], Any]) -> None:
    """Makes `load(name)`, and so `gx.EnvironmentDataModule(name)`, know an environment.

    Args:
      name: without ":", not taken yet.
      build: a class or function that makes it with default settings; its fields can be overridden if it is a dataclass.

    Raises:
      ConfigError: the name is taken.
    """
    if name in _BUILDERS or ":" in name:
        raise ConfigError(
            f"The environment name {name!r} is {'taken' if name in _BUILDERS else 'not free of a colon'}."
        )
    _BUILDERS[name] = build


def register_own(reference: str, environment: Any) -> None:
    """Makes `load` know an environment of a user's file by its reference, `path/to/file.py:name`.

    Args:
      reference: as settings have it.
      environment: what the file has there: an environment, or a class or function that makes it without arguments.
    """
    _BUILDERS[reference] = environment if callable(environment) else lambda: environment


def load(name: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """Makes an environment.

    Args:
      name: of `list()`, or `"brax:fast"`, `"playground:CartpoleBalance"` where those packages are installed.
      overrides: settings by field, dotted where they lie deeper: `{"action_scale": 0.3, "rewards.alive": 0.2}`. For
        brax they are `get_environment`'s arguments, for Playground its `config_overrides`.

    Raises:
      ConfigError: unknown name or setting, or the package is not installed; says what is near.
      DataError: the environment's model can't be compiled.
    """
    prefix, _, rest = name.partition(":")
    if rest and name not in _BUILDERS:
        if prefix.endswith(".py"):
            raise ConfigError(
                f"environment={name!r} is of a file, whose code is run only where you name it: galvanax fit ppo "
                f"--data.env {name}; in Python, pass the environment itself."
            )
        if prefix not in _FOREIGN:
            raise ConfigError(f"Unknown prefix {prefix!r} in {name!r}.{nearest(prefix, _FOREIGN)}")
        return _FOREIGN[prefix](rest, dict(overrides or {}))
    if name not in _BUILDERS:
        raise ConfigError(f"Unknown environment {name!r}.{nearest(name, list())}")
    try:
        env = _BUILDERS[name]()
    except TypeError as error:
        raise ConfigError(f"The environment {name!r} can't be made without arguments: {error}.") from error
    for path, value in (overrides or {}).items():
        env = _override(env, path.split("."), value, path)
    if isinstance(env, MJXEnvironment):
        env.check()
    return env


def _override(config: Any, path: Sequence[str], value: Any, whole: str) -> Any:
    known = dict(config) if isinstance(config, Mapping) else {}
    if dataclasses.is_dataclass(config):
        known = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if path[0] not in known:
        raise ConfigError(f"{type(config).__name__} has no setting {whole!r}.{nearest(path[0], known)}")
    if len(path) > 1:
        value = _override(known[path[0]], path[1:], value, whole)
    if isinstance(config, Mapping):
        return {**config, path[0]: value}
    return dataclasses.replace(config, **{path[0]: value})


def _load_brax(name: str, overrides: dict[str, Any]) -> Any:
    from brax import envs

    if name not in envs._envs:
        raise ConfigError(f"brax has no environment {name!r}.{nearest(name, envs._envs)}")
    return envs.get_environment(name, **overrides)


def _load_playground(name: str, overrides: dict[str, Any]) -> Any:
    try:
        registry = importlib.import_module("mujoco_playground").registry
    except ImportError as error:
        raise ConfigError(
            f'"playground:{name}" needs the package playground: pip install "galvanax[playground]".'
        ) from error
    if name not in registry.ALL_ENVS:
        raise ConfigError(f"Playground has no environment {name!r}.{nearest(name, registry.ALL_ENVS)}")
    # Its default physics is Warp's, which needs CUDA; MJX proper runs anywhere.
    default = {"impl": "jax"} if "impl" in registry.get_default_config(name) else {}
    return registry.load(name, config_overrides={**default, **overrides})


_FOREIGN: dict[str, Callable[[str, dict[str, Any]], Any]] = {"brax": _load_brax, "playground": _load_playground}
