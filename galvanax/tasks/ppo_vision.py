"""Who sees what in PPO: the settings' meaning for an environment, checked before anything is compiled."""

from collections.abc import Mapping
from typing import Any, Literal

from galvanax.errors import ConfigError, nearest

Seers = Literal["auto", "none", "actor", "critic", "both"]


def who_sees(vision: Seers, sizes: Mapping[str, int], depth_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Of "actor" and "critic" those that get an encoder.

    By itself (`"auto"`) the actor sees whatever depth there is, and the critic too, unless it has a `privileged_state`
    that says more than an image.
    """
    if vision == "none" or not depth_shape:
        return ()
    if vision == "auto":
        return ("actor",) if "privileged_state" in sizes else ("actor", "critic")
    return ("actor", "critic") if vision == "both" else (vision,)


def depth_of(env: Any, vision: Seers, depth_range: float | None) -> tuple[tuple[int, ...], float]:
    """The shape of an environment's depth images, `()` where nobody is to see any, and how far they go (m).

    Raises:
      ConfigError: they are asked for and not there, are no images, or nothing says how far they go.
    """
    kind, sizes = type(env).__name__, env.observation_size
    if vision == "none":
        return (), 0.0
    if not isinstance(sizes, Mapping) or "depth" not in sizes:
        if vision == "auto":
            return (), 0.0
        known = [str(name) for name in sizes] if isinstance(sizes, Mapping) else []
        raise ConfigError(
            f"PPOTask.vision={vision!r}: {kind} observes {', '.join(map(repr, known)) or 'a vector'} and no 'depth'. "
            "Give its observations a 'depth' (height, width) (m), as a legged environment does with "
            f'vision=gx.envs.Vision(...), or take vision="none".{nearest("depth", known) if known else ""}'
        )
    shape = tuple(sizes["depth"]) if hasattr(sizes["depth"], "__len__") else (sizes["depth"],)
    if len(shape) != 2 or min(shape) < 1:
        raise ConfigError(f"{kind}.observation_size['depth'] is {shape}: expected (height, width) of an image.")
    far = depth_range if depth_range is not None else getattr(getattr(env, "vision", None), "max_distance", None)
    if far is None:
        raise ConfigError(
            f"PPOTask.depth_range=None: {kind} has no `vision` that says how far its depth goes. Expected the depth "
            "(m) that counts as far, such as 5.0."
        )
    return (int(shape[0]), int(shape[1])), float(far)


def check_judged(env: Any, shape: tuple[int, ...]) -> None:
    """Raises ConfigError where the environment that the policy is judged in doesn't give the same images."""
    size = env.observation_size
    found = size.get("depth") if isinstance(size, Mapping) else None
    if shape and (found is None or tuple(found) != tuple(shape)):
        raise ConfigError(
            f"EnvironmentDataModule.eval_environment: {type(env).__name__}'s 'depth' is {found}; expected {shape}, as "
            "where the policy learns."
        )
