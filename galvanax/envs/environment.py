"""The contract of an environment, which is brax's and MuJoCo Playground's own, and the base of those on MJX."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
import mujoco

from galvanax.errors import ConfigError
from galvanax.physics.models import load_model
from galvanax.physics.quiet_mjx import mjx

Observation = jax.Array | Mapping[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What an environment is in, for one environment; `vmap` makes it many.

    Attributes:
      pipeline_state: the physics; in our environments `mjx.Data`. Playground calls it `data`, and so may you.
      obs: `(observation_size,)`, or a dict of arrays `{"state", "privileged_state"}`.
      reward: scalar.
      done: 1.0 where the episode has ended (a time limit is no end: whoever unrolls the environment sets one).
      metrics: scalars to log, by name.
      info: everything else that the next step needs. Keys that an environment doesn't know pass through `step`.
    """

    pipeline_state: Any
    obs: Any
    reward: jax.Array
    done: jax.Array
    metrics: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    info: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def data(self) -> Any:
        """`pipeline_state`, under Playground's name."""
        return self.pipeline_state

    def replace(self, **changes: Any) -> "State":
        """A copy with these fields changed; `data` is `pipeline_state`."""
        if "data" in changes:
            changes["pipeline_state"] = changes.pop("data")
        return dataclasses.replace(self, **changes)


@runtime_checkable
class Environment(Protocol):
    """Any environment of brax's convention: ours, brax's, Playground's, your own. One environment, no batch axis."""

    @property
    def action_size(self) -> int:
        """Length of an action, each entry meant for [-1, 1]."""

    @property
    def observation_size(self) -> Any:
        """Length of the observation, or shapes by name."""

    def reset(self, rng: jax.Array) -> Any:
        """A fresh episode's `State`."""

    def step(self, state: Any, action: jax.Array) -> Any:
        """The `State` one control step later."""


@dataclasses.dataclass(frozen=True)
class MJXEnvironment:
    """An environment on one MuJoCo model. It IS its configuration: the fields are settings, flags and JSON.

    Subclasses define `reset`, `step` and `default_model`. Methods are pure and may be jitted and vmapped; the compiled
    model is made at first use.

    Attributes:
      xml_path: an MJCF file of your own in place of the bundled model; "" for that one.
      control_dt: seconds (s) between actions, a multiple of the model's timestep.
      episode_length: control steps after which a trainer ends an episode as truncated.
    """

    default_model: ClassVar[str]  # a bundled model's name

    xml_path: str = ""
    control_dt: float = 0.02
    episode_length: int = 1000

    def reset(self, rng: jax.Array) -> State:
        """A fresh random episode."""
        raise NotImplementedError(f"{type(self).__name__} must define reset(self, rng) -> State.")

    def step(self, state: State, action: jax.Array) -> State:
        """One control step under `action` `(action_size,)`."""
        raise NotImplementedError(f"{type(self).__name__} must define step(self, state, action) -> State.")

    def evaluation(self) -> Self:
        """The environment as it is judged: without what is added for training's sake (noise, pushes, randomisation)."""
        return self

    @functools.cached_property
    def mj_model(self) -> mujoco.MjModel:
        """The compiled MuJoCo model."""
        model = load_model(self.model_name)
        self.check_timestep(model)
        return model

    @functools.cached_property
    def mjx_model(self) -> mjx.Model:
        """The model on the device."""
        with jax.ensure_compile_time_eval():
            return mjx.put_model(self.mj_model, jax.local_devices()[0])

    @functools.cached_property
    def blank_data(self) -> mjx.Data:
        """Data of the model's shapes at `qpos0`, at rest."""
        with jax.ensure_compile_time_eval():
            return mjx.make_data(self.mj_model, jax.local_devices()[0])

    @property
    def model_name(self) -> str:
        """For messages: the file, or the bundled name."""
        return self.xml_path or self.default_model

    @property
    def dt(self) -> float:
        """Seconds (s) between actions."""
        return self.control_dt

    @property
    def sim_dt(self) -> float:
        """The physics' timestep (s)."""
        return float(self.mj_model.opt.timestep)

    @property
    def n_substeps(self) -> int:
        """Physics steps per action."""
        return round(self.control_dt / self.sim_dt)

    @property
    def action_size(self) -> int:
        """Length of an action: one entry per actuator, in [-1, 1]."""
        return int(self.mj_model.nu)

    @functools.cached_property
    def observation_size(self) -> Any:
        """Length of the observation; shapes by name where it is a dict."""
        obs = jax.eval_shape(self.reset, jax.random.key(0)).obs
        return {name: leaf.shape for name, leaf in obs.items()} if isinstance(obs, Mapping) else obs.shape[-1]

    @property
    def unwrapped(self) -> Self:
        """The environment itself: brax and Playground ask wrapped environments for this."""
        return self

    @property
    def backend(self) -> str:
        """The physics engine, as brax names them."""
        return "mjx"

    def check(self) -> None:
        """Compiles the model, and raises ConfigError or DataError where it doesn't fit. `gx.envs.load` calls it."""
        _ = self.mj_model

    def check_timestep(self, model: mujoco.MjModel) -> None:
        """Raises ConfigError where `control_dt` is no multiple of the model's timestep."""
        ratio = self.control_dt / model.opt.timestep
        if ratio < 0.999 or abs(ratio - round(ratio)) > 1e-3:
            raise ConfigError(
                f"{type(self).__name__}.control_dt={self.control_dt} s is no multiple of the timestep of "
                f"{self.model_name}, {model.opt.timestep} s. Nearest: {max(1, round(ratio)) * model.opt.timestep:g} s."
            )

    def check_action(self, action: jax.Array) -> None:
        """Raises ConfigError where an action has the wrong size; shapes are known while tracing."""
        if jnp.shape(action) != (self.action_size,):
            raise ConfigError(
                f"{type(self).__name__}.step got an action of shape {list(jnp.shape(action))}; expected "
                f"[{self.action_size}], one entry per actuator of {Path(self.model_name).name}. For a batch, use vmap."
            )

    def hold(self, model: mjx.Model, data: mjx.Data, control: jax.Array) -> mjx.Data:
        """One control step with `control` `(nu,)` held, in the actuators' units."""
        data = data.replace(ctrl=control)
        return jax.lax.scan(lambda data, _: (mjx.step(model, data), None), data, None, self.n_substeps)[0]


def strong(tree: Any) -> Any:
    """A pytree without weak types, which the carry of a loop can't change."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.asarray(leaf).dtype), tree)


def cast_like(tree: Any, like: Any) -> Any:
    """A pytree with the types of another, so that a loop can carry it: some environments change theirs in a step."""
    return jax.tree.map(lambda leaf, old: jnp.asarray(leaf, old.dtype), tree, like)


def is_broken(data: mjx.Data) -> jax.Array:
    """1.0 where the physics has become NaN or infinite."""
    return 1.0 - (jnp.isfinite(data.qpos).all() & jnp.isfinite(data.qvel).all()).astype(jnp.float32)


def where_finite(tree: Any) -> Any:
    """NaN and infinities as zeros: an episode that ended in broken physics must not poison a batch."""
    return jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, jnp.zeros_like(leaf)), tree)
