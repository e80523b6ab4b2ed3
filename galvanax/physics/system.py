"""What moves when it is acted on: one control step from a state to the next, for rollouts and their gradients."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from galvanax.errors import ConfigError, DataError
from galvanax.physics import quaternions
from galvanax.physics.collect import count_substeps
from galvanax.physics.implicit_step import KEEP_SOLUTIONS, check_supported, implicit_step
from galvanax.physics.joint_targets import Joints, JointTargets
from galvanax.physics.layout import StateLayout
from galvanax.physics.models import load_model
from galvanax.physics.quiet_mjx import mjx
from galvanax.physics.solver_step import solver_step

Gradient = Literal["implicit", "solver"]
# A system has no forces from outside.
_STEPS: dict[str, Callable[[mjx.Model, mjx.Data], mjx.Data]] = {
    "implicit": functools.partial(implicit_step, external_forces=False),
    "solver": solver_step,
}


class System(Protocol):
    """A controlled system with a fixed control period.

    A system may also have `layout` (a `StateLayout`), `action_limits` (two arrays `(action_dim,)`), `mj_model` and
    `state_labels` (the entries' names and units): read them with `layout_of`, `action_limits_of`, `model_of` and
    `labels_of`, which know what to do where one is missing.
    """

    @property
    def state_dim(self) -> int:
        """Entries of a state."""

    @property
    def action_dim(self) -> int:
        """Entries of an action."""

    @property
    def control_dt(self) -> float:
        """Seconds (s) that an action is held."""

    def step(self, state: jax.Array, action: jax.Array) -> jax.Array:
        """The state `(state_dim,)` one control period later, under an action `(action_dim,)`.

        Pure and without memory: one sample, no batch axes, a function of its arguments alone. Can be traced, vmapped
        and differentiated.
        """
        ...


def layout_of(system: System) -> StateLayout | None:
    """What the entries of a state mean; None where they are plain numbers."""
    return getattr(system, "layout", None)


def action_limits_of(system: System) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest action, `(action_dim,)` each; infinite where there is no limit."""
    free = np.full(system.action_dim, np.inf, np.float32)
    return getattr(system, "action_limits", (-free, free))


def model_of(system: System) -> mujoco.MjModel | None:
    """The MuJoCo model, where a system has one: for films."""
    return getattr(system, "mj_model", None)


def state_difference(system: System, a: jax.Array, b: jax.Array) -> jax.Array:
    """How far state `a` is from state `b`: `a - b`, or `StateLayout.difference` where there is a layout.

    Quaternions are put to length one first, so that states between the steps of an ODE's solver have differences too. A
    quaternion and its negative are the same rotation. The gradient is right at `a = b` too.

    Args:
      system: whose states they are.
      a: `(..., state_dim)`.
      b: `(..., state_dim)`.

    Returns:
      `(..., state_dim)`, less one entry for each quaternion.
    """
    layout = layout_of(system)
    if layout is None:
        return jnp.asarray(a) - jnp.asarray(b)
    return layout.difference(unit_quaternions(layout, a), unit_quaternions(layout, b))


def unit_quaternions(layout: StateLayout, state: jax.Array) -> jax.Array:
    """A state `(..., state_dim)` with quaternions at length one; as in MuJoCo, one of length zero is no rotation."""
    state = jnp.asarray(state)
    for start, _ in layout.quaternions:
        quaternion = state[..., start : start + 4]
        empty = jnp.sum(quaternion**2, axis=-1, keepdims=True) < np.finfo(np.float32).tiny
        identity = jnp.array([1, 0, 0, 0], state.dtype)
        unit = quaternions.normalize(jnp.where(empty, identity, quaternion))
        state = state.at[..., start : start + 4].set(unit)
    return state


class MJXSystem:
    """A MuJoCo model in MJX. A state is `[qpos, qvel, act]`.

    Without `targets`, an action in [-1, 1] for each actuator spans its control range; it is clipped there. An actuator
    without a range gets the action itself.

    Quaternions of the incoming state are put to length one. The constraint solver starts from nothing in every control
    step, and in each of its physics steps from the one before: so the next state is a function of state and action.

    Attributes:
      mj_model: the MuJoCo model.
      model: the MJX model.
      control_dt: seconds (s) that an action is held.
      substeps: physics steps in a control step.
      targets: how actions move joints, or None.
      layout: of a state's `[qpos, qvel]`.
      action_limits: lowest and highest useful action `(action_dim,)` each.
    """

    def __init__(
        self,
        model: mujoco.MjModel | str | Path,
        control_dt: float,
        *,
        targets: JointTargets | None = None,
        gradient: Gradient = "implicit",
        iterations: int | None = None,
    ):
        """Takes a model.

        Args:
          model: a MuJoCo model, the name of a bundled one, or the path of an MJCF file.
          control_dt: a multiple of the model's timestep (s).
          targets: actions are joint targets; None for actions on the actuators.
          gradient: `"implicit"`: exact at any number of solver iterations, see `implicit_step`. `"solver"`: plain
            `mjx.step`, for comparisons; reverse mode then needs `iterations=1` where there are constraints, and raises
            a ConfigError while tracing otherwise.
          iterations: of the constraint solver; by default the model's own.

        Raises:
          ConfigError: a setting doesn't fit the model; names it.
          DataError: the model can't be loaded.
        """
        if gradient not in _STEPS:
            raise ConfigError(f"MJXSystem: gradient={gradient!r}; expected one of {', '.join(_STEPS)}")
        if not isinstance(model, mujoco.MjModel):
            model = load_model(model)
        self.substeps = count_substeps(model, control_dt)
        if iterations is not None:
            if iterations < 1:
                raise ConfigError(f"MJXSystem: iterations={iterations}; expected 1 or more")
            model = copy.copy(model)
            model.opt.iterations = iterations
        self.mj_model, self.control_dt, self.targets, self.gradient = model, control_dt, targets, gradient
        with jax.ensure_compile_time_eval():
            self.model = mjx.put_model(model, jax.local_devices()[0])
            self._blank = mjx.make_data(model, jax.local_devices()[0])
        check_supported(self.model)
        self.layout = StateLayout.from_model(model)
        self.state_dim = int(model.nq + model.nv + model.na)
        self._drive = _Actuators(model) if targets is None else Joints(model, targets)
        self.action_dim = self._drive.action_dim
        self.action_limits = self._drive.action_limits

    def step(self, state: jax.Array, action: jax.Array) -> jax.Array:
        """See `System.step`. Raises DataError where a size is wrong."""
        for name, array, size in (("state", state, self.state_dim), ("action", action, self.action_dim)):
            if jnp.shape(array) != (size,):
                raise DataError(
                    f"MJXSystem.step: the {name} has shape {jnp.shape(array)}; expected ({size},). For a batch: vmap."
                )
        nq, nv = self.layout.nq, self.layout.nv
        command, advance = self._drive.command(action), _STEPS[self.gradient]
        state = unit_quaternions(self.layout, state)
        warm_start = jnp.zeros(nv, state.dtype)

        # Everything else in mjx.Data follows from these; carrying it would only move memory.
        def substep(carry: Any, _: None) -> tuple[Any, None]:
            qpos, qvel, act, warm_start = carry
            data = self._blank.replace(qpos=qpos, qvel=qvel, act=act, qacc_warmstart=warm_start)
            data = advance(self.model, data.replace(ctrl=self._drive.control(command, qpos, qvel)))
            after = data.qpos, data.qvel, data.act, jax.lax.stop_gradient(data.qacc_warmstart)
            return tuple(new.astype(old.dtype) for new, old in zip(after, carry, strict=True)), None

        # Of a physics step the backward pass gets state and solution: more would cost more to keep than to find.
        substep = jax.checkpoint(substep, policy=KEEP_SOLUTIONS, prevent_cse=False)
        carry = (state[:nq], state[nq : nq + nv], state[nq + nv :], warm_start)
        (qpos, qvel, act, _), _ = jax.lax.scan(substep, carry, None, length=self.substeps)
        return jnp.concatenate([qpos, qvel, act])


class _Actuators:
    """Actions that span the actuators' control ranges."""

    def __init__(self, model: mujoco.MjModel):
        self.action_dim = int(model.nu)
        limited = model.actuator_ctrllimited.astype(bool)
        low, high = np.where(limited[:, None], model.actuator_ctrlrange, [-1.0, 1.0]).T
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        self._limit = np.where(limited, 1.0, np.inf).astype(np.float32)
        self.action_limits = -self._limit, self._limit

    def command(self, action: jax.Array) -> jax.Array:
        """What holds for the control step: the control."""
        return self._middle + self._half * jnp.clip(action, *self.action_limits)

    def control(self, command: jax.Array, qpos: jax.Array, qvel: jax.Array) -> jax.Array:
        """The control in a physics step."""
        return command
