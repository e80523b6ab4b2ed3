"""A trained policy as one file, for a robot or a program that knows neither Galvanax nor, with ONNX, JAX."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from importlib import metadata as packages
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import nnx

from galvanax.envs.legged.legged import LeggedEnvironment
from galvanax.envs.vision import Vision
from galvanax.errors import ConfigError
from galvanax.files import partial_file
from galvanax.networks.actor_critic import ActorCritic, observed_size
from galvanax.networks.mlp import MLP
from galvanax.tasks.policy_rollout import control_dt, mujoco_model

if TYPE_CHECKING:
    import onnx

PLATFORMS = ("cpu", "cuda", "tpu")

# Rows that a graph is tried on before it is written, and how far it may be off: rounding is a hundred times less.
_TRIED, _TOLERANCE = 16, 1e-4


def export_onnx(path: str | Path, model: nnx.Module, metadata: Mapping[str, Any] | None = None) -> Path:
    """Writes a deterministic policy, its normaliser included, as ONNX, and its metadata beside it as PATH.json.

    Inputs are `obs` `(batch, observation)` (`state`, where observations are dicts); where the policy sees, `depth`
    `(batch, height, width)` (m; NaN where the camera knows nothing); where it has a memory, `memory` `(batch, memory)`,
    zeros at first. Outputs are `action` `(batch, action)` and `memory_out`, the next step's `memory`. All are float32,
    and the batch may have any size. The graph is tried against the model before it is written. The file holds the
    metadata too, each key's value as JSON, in `metadata_props`.

    Args:
      path: the file; one that is there is replaced, once the new one is whole.
      model: a PPO task's.
      metadata: JSON data by name, such as `policy_metadata(env)`.

    Returns:
      The path.

    Raises:
      ConfigError: the package onnx is not installed, or the model is none that can be written as ONNX.
      DataError: the file cannot be written.
    """
    policy = _policy_of(model)
    try:
        from galvanax.tasks.policy_onnx import policy_graph
    except ImportError as error:
        raise ConfigError(f'Export to ONNX needs a package: {error}. pip install "galvanax[onnx]".') from error
    about = _describe(policy, metadata)
    if not isinstance(policy.policy, MLP):
        raise ConfigError(f"The policy is a {type(policy.policy).__name__}, not an MLP. {_INSTEAD}")
    graph = policy_graph(policy)
    for name, text in about.items():
        graph.metadata_props.add(key=name, value=text)
    _try(graph, policy)
    return _write(Path(path), graph.SerializeToString(), about)


def export_stablehlo(path: str | Path, model: nnx.Module, metadata: Mapping[str, Any] | None = None) -> Path:
    """Writes a deterministic policy as StableHLO, which `jax.export.deserialize` reads, for CPU, CUDA and TPU.

    `deserialize(bytearray(Path(path).read_bytes())).call(obs)` gives the action; with a memory, `.call(obs, memory)`
    gives `(action, memory)`. `depth` comes second, where the policy sees. Arguments are as in `export_onnx`.

    Raises:
      ConfigError: the model is no policy.
      DataError: the file cannot be written.
    """
    policy = _policy_of(model)
    about = _describe(policy, metadata)
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = [jax.ShapeDtypeStruct((batch, *shape), jnp.float32) for shape in _input_shapes(policy).values()]
    with _exact_products():
        exported = jax.export.export(jax.jit(_function_of(policy)), platforms=PLATFORMS)(*shapes)
    return _write(Path(path), exported.serialize(), about)


def policy_metadata(env: Any) -> dict[str, Any]:
    """What a robot must know to run a policy of this environment, as JSON data.

    Every environment of brax's convention: `environment` (its class) and, as far as it tells, `control_dt` (s),
    `actuator_names` and `actuator_ranges` (the controls' units, None where unlimited).

    A `LeggedEnvironment`, with arrays in the order of `joint_names`: the joints that the action moves, in its order,
    then any others with a motor, which are held at their `default_pose`:

    - `joint_names`, `default_pose` (rad), `kp` (N·m/rad), `kd` (N·m·s/rad), `torque_limits` (N·m);
    - `actuator_names`, the motors in the robot's order, and `actuator_joints`: for each of them, the index into
      `joint_names`;
    - `action_scale` (rad per unit), `clip_actions` (± this, before anything else and in `last_action`);
    - `observation_layout` (name to [start, stop]), `observation_scales` (name to a number or a list: what the quantity
      is multiplied by), `observation_clip` (± this, last of all); `joint_pos` is counted from `default_pose`;
    - `command_ranges` (m/s, rad/s); with a stepping clock `gait_period` (s) and `gait_offset` (part of a period, the
      first foot's, whose sine and cosine are observed); with a height scan its settings.

    An environment with a `vision`: `camera`, its pixels, range, field of view and place on its body.
    """
    env = getattr(env, "unwrapped", env)
    if isinstance(env, LeggedEnvironment):
        return _legged_metadata(env) | _camera(env)
    found: dict[str, Any] = {"environment": type(env).__name__}
    with contextlib.suppress(ConfigError):
        found["control_dt"] = control_dt(env)
    with contextlib.suppress(ConfigError):
        model = mujoco_model(env)
        names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, index) or "" for index in range(model.nu)]
        ranges = zip(model.actuator_ctrllimited, model.actuator_ctrlrange.tolist(), strict=True)
        found |= {"actuator_names": names, "actuator_ranges": [ends if limited else None for limited, ends in ranges]}
    return found | _camera(env)


def _camera(env: Any) -> dict[str, Any]:
    vision = getattr(env, "vision", None)
    if not isinstance(vision, Vision):
        return {}
    model = mujoco_model(env)
    camera = vision.camera_id(model)
    seen = {
        "width": vision.width,
        "height": vision.height,
        "max_distance": vision.max_distance,
        "fovy": float(model.cam_fovy[camera]),
        "body": mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_BODY, model.cam_bodyid[camera]) or "",
        "position": model.cam_pos[camera].tolist(),
        "quaternion": model.cam_quat[camera].tolist(),
    }
    return {"camera": seen}


def _legged_metadata(env: LeggedEnvironment) -> dict[str, Any]:
    layout, scales, commands = env.layout, env.scales, env.commands
    kp, kd = env.gains
    parts = {name: [part.start, part.stop] for name, part in env.observation_layout.items()}
    multipliers: dict[str, Any] = {
        "lin_vel": scales.lin_vel,
        "ang_vel": scales.ang_vel,
        "command": [scales.lin_vel, scales.lin_vel, scales.ang_vel],
        "joint_pos": scales.joint_pos,
        "joint_vel": scales.joint_vel,
    }
    found = {
        "environment": type(env).__name__,
        "model": env.model_name,
        "control_dt": env.control_dt,
        "joint_names": list(layout.joints),
        "default_pose": env.reference_pose.tolist(),
        "kp": kp.tolist(),
        "kd": kd.tolist(),
        "torque_limits": layout.limits.tolist(),
        "actuator_names": list(layout.actuators),
        "actuator_joints": layout.torque_of.tolist(),
        "action_scale": env.action_scale,
        "clip_actions": env.clip_actions,
        "observation_layout": parts,
        "observation_scales": {name: multipliers.get(name, 1.0) for name in parts},
        "observation_clip": scales.clip,
        "command_ranges": {name: list(getattr(commands, name)) for name in ("lin_vel_x", "lin_vel_y", "ang_vel_yaw")},
    }
    if "phase" in parts:
        found |= {"gait_period": env.gait.period, "gait_offset": env.gait.offset[0]}
    if "height_scan" in parts and env.height_scan is not None:
        found["height_scan"] = dataclasses.asdict(env.height_scan)
        found["observation_scales"]["height_scan"] = env.height_scan.scale
    return found


_INSTEAD = "A .jax file (export_stablehlo) can hold any ActorCritic."


def _policy_of(model: nnx.Module) -> ActorCritic:
    if not isinstance(model, ActorCritic):
        raise ConfigError(f"A {type(model).__name__} is no policy: expected the ActorCritic of a PPOTask.")
    return model


def _input_shapes(policy: ActorCritic) -> dict[str, tuple[int, ...]]:
    """The inputs' shapes without the batch, in their order."""
    shapes: dict[str, tuple[int, ...]] = {"obs": (observed_size(policy),)}
    if policy.actor_sight is not None:
        shapes["depth"] = tuple(policy.actor_sight.shape)
    if policy.memory is not None:
        shapes["memory"] = (policy.memory_size,)
    return shapes


def _function_of(policy: ActorCritic) -> Callable[..., Any]:
    # Host arrays, so that no device is written into the file.
    definition, leaves = nnx.split(policy)
    leaves = jax.device_get(leaves)

    names = list(_input_shapes(policy))

    def act(*arrays: jax.Array) -> Any:
        policy, given = nnx.merge(definition, leaves), dict(zip(names, arrays, strict=True))
        obs, remembers = given["obs"], "memory" in given
        seen = {"state": obs, "depth": given["depth"]} if "depth" in given else obs
        distribution, after = policy.act(seen, given["memory"] if remembers else jnp.zeros((*obs.shape[:-1], 0)))
        return (distribution.mode(), after) if remembers else distribution.mode()

    return act


def _exact_products() -> Any:
    """GPUs and TPUs round the factors of a matrix product by default; a deployed policy should act alike everywhere."""
    return jax.default_matmul_precision("highest")


def _describe(policy: ActorCritic, metadata: Mapping[str, Any] | None) -> dict[str, str]:
    """All metadata, each value as JSON."""
    shapes = _input_shapes(policy)
    own: dict[str, Any] = {
        "galvanax_version": packages.version("galvanax"),
        "inputs": {name: ["batch", *shape] for name, shape in shapes.items()},
        "outputs": {"action": ["batch", policy.action_size]},
    }
    if "memory" in shapes:
        own["outputs"] |= {"memory_out": ["batch", *shapes["memory"]]}
    if policy.actor_sight is not None:
        own["depth_range"] = policy.actor_sight.far
    texts = {}
    for name, value in {**own, **(metadata or {})}.items():
        try:
            texts[name] = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"metadata[{name!r}]={value!r} is no JSON: {error}.") from error
    return texts


def _try(graph: "onnx.ModelProto", policy: ActorCritic) -> None:
    """Raises ConfigError where the graph computes something else than the model, which a subclass's may."""
    from onnx.reference import ReferenceEvaluator

    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=(_TRIED, *shape)).astype(np.float32) for name, shape in _input_shapes(policy).items()
    }
    if policy.normalizer is not None:
        statistics = jax.device_get([policy.normalizer.mean[...], policy.normalizer.squares[...]])
        count = max(float(policy.normalizer.count[...]), 1.0)
        arrays["obs"] = (statistics[0] + arrays["obs"] * np.sqrt(statistics[1] / count)).astype(np.float32)
    if policy.actor_sight is not None:  # some of it beyond the range, either way
        arrays["depth"] = (0.5 + arrays["depth"]) * np.float32(policy.actor_sight.far)
    if "memory" in arrays:
        arrays["memory"] = np.tanh(arrays["memory"])
    with _exact_products():
        wanted = jax.device_get(jax.tree.leaves(jax.jit(_function_of(policy))(*arrays.values())))
    found = ReferenceEvaluator(graph).run(None, arrays)
    for one, other in zip(found, wanted, strict=True):
        if not np.allclose(one, other, atol=_TOLERANCE, rtol=_TOLERANCE):
            off = np.abs(one - other).max()
            raise ConfigError(
                f"{type(policy).__name__} doesn't compute what its ONNX graph does (off by {off:.2g}): it is "
                f"not finite, or overrides a part of ActorCritic. {_INSTEAD}"
            )


def _write(path: Path, content: bytes | bytearray, about: Mapping[str, str]) -> Path:
    with partial_file(path) as partial:
        partial.write_bytes(content)
    with partial_file(path.with_name(f"{path.name}.json")) as partial:
        partial.write_text(json.dumps({name: json.loads(text) for name, text in about.items()}, indent=1) + "\n")
    return path
