"""A dynamics model of ours under the controllers of hydrax.

Hydrax (github.com/vincekurtz/hydrax; not the PyPI package of that name) simulates its samples in
`SamplingBasedController.eval_rollouts`. This is that method over any `Dynamics`, in the shape of commit
e06f1446c78f2d6da3eda24073f30f96208dcb3c. Nothing here imports hydrax: tasks and controllers are taken as they come.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from galvanax.errors import ConfigError
from galvanax.physics.collect import extract_state_features
from galvanax.physics.dynamics import Dynamics, History
from galvanax.physics.quiet_mjx import mjx


class HydraxTask(Protocol):
    """What is used of a `hydrax.task_base.Task`."""

    def running_cost(self, state: mjx.Data, control: jax.Array) -> jax.Array:
        """The cost of a control in a state, each second."""
        ...

    def terminal_cost(self, state: mjx.Data) -> jax.Array:
        """The cost of the last state."""
        ...

    def get_trace_sites(self, state: mjx.Data) -> jax.Array:
        """Positions of the traced sites, `(sites, 3)`."""
        ...


class Trajectory(flax.struct.PyTreeNode):
    """Rollouts, with the fields of `hydrax.alg_base.Trajectory`.

    Attributes:
      controls: `(rollouts, horizon, nu)`.
      knots: the spline's knots that the controls came from, `(rollouts, num_knots, nu)`.
      costs: `(rollouts, horizon + 1)`, the terminal cost last.
      trace_sites: `(rollouts, horizon + 1, sites, 3)`.
    """

    controls: jax.Array
    knots: jax.Array
    costs: jax.Array
    trace_sites: jax.Array

    def __len__(self) -> int:
        """Steps in a rollout."""
        return self.costs.shape[-1] - 1


def refresh_kinematics(model: mjx.Model, data: mjx.Data, state: jax.Array) -> mjx.Data:
    """Writes a state into simulation data and places its bodies.

    Positions and orientations of bodies, geoms and sites (`xpos`, `site_xpos` ...) then fit the state. Sensors,
    contacts, centres of mass and forces don't: they need `mjx.forward`.

    Args:
      model: the MJX model.
      data: data of the model.
      state: `(nq + nv,)`.
    """
    return mjx.kinematics(model, data.replace(qpos=state[: model.nq], qvel=state[model.nq :]))


Refresh = Callable[[mjx.Model, mjx.Data, jax.Array], mjx.Data]


def evaluate_rollouts(
    task: HydraxTask,
    dynamics: Dynamics,
    model: mjx.Model,
    state: mjx.Data,
    history: History,
    controls: jax.Array,
    knots: jax.Array,
    dt: float,
    refresh: Refresh = refresh_kinematics,
) -> tuple[mjx.Data, Trajectory]:
    """Simulates control sequences with a dynamics model and reads their costs off simulation data.

    A control costs what it does in the state that it acts in, ℓ(xₜ, uₜ), as hydrax's `Task` says. Hydrax's own method
    reads that off the state after `mjx.step`, which leaves the bodies where they were before it; here bodies, positions
    and velocities are of one time.

    Args:
      task: whose costs to read.
      dynamics: the model to simulate with; its step should last `dt`.
      model: the MJX model that `state` belongs to, for the kinematics only.
      state: the present.
      history: the same from `dynamics.init_history`.
      controls: `(rollouts, horizon, nu)`.
      knots: handed on, `(rollouts, num_knots, nu)`.
      dt: seconds a control step.
      refresh: writes a state `(nq + nv,)` into data; `mjx.forward` on top of it for costs that read sensors.

    Returns:
      The data after each control, arrays `(rollouts, horizon, ...)`; and the trajectories.
    """

    def evaluate(controls: jax.Array, knots: jax.Array) -> tuple[mjx.Data, Trajectory]:
        states = jnp.concatenate([extract_state_features(state)[None], dynamics.rollout(history, controls)])
        times = state.time + dt * jnp.arange(len(states))
        data = jax.vmap(lambda at, time: refresh(model, state.replace(time=time), at))(states, times)
        start, after = jax.tree.map(lambda x: x[:-1], data), jax.tree.map(lambda x: x[1:], data)
        # As in hydrax, data holds the control that its cost is told; at the end, the last one.
        start, after = start.replace(ctrl=controls), after.replace(ctrl=controls)
        costs = dt * jax.vmap(task.running_cost)(start, controls)
        last = jax.tree.map(lambda x: x[-1], after)
        return after, Trajectory(
            controls=controls,
            knots=knots,
            costs=jnp.append(costs, task.terminal_cost(last)),
            trace_sites=jax.vmap(task.get_trace_sites)(data),
        )

    return jax.vmap(evaluate)(controls, knots)


class DynamicsRollouts:
    """Makes a hydrax controller simulate with a `Dynamics` of ours. Goes before the controller's class::

        class LearnedMPPI(DynamicsRollouts, hydrax.algs.MPPI):
            pass

        mj_model.opt.timestep = 0.02  # of the task's model: hydrax's controllers plan in steps of it
        controller = LearnedMPPI(task, num_samples=512, noise_level=0.5, temperature=0.1)
        controller.dynamics, controller.history_length = gx.GRUDynamics.load(run_dir), 11
        params, rollouts = jax.jit(controller.optimize)(data, params, states, actions)

    Hydrax knows the present state only. Without the past states and actions (so under hydrax's own simulation loops)
    the dynamics are told that the robot has stood still with zero controls until now.

    Attributes:
      dynamics: the model to simulate with; its step should last the controller's `dt`.
      history_length: length of the past when none is given.
      refresh: see `evaluate_rollouts`.
    """

    dynamics: Dynamics
    history_length: int = 1
    refresh: Refresh = staticmethod(refresh_kinematics)
    _past: tuple[jax.Array, jax.Array] | None = None

    def optimize(
        self, state: mjx.Data, params: Any, states: jax.Array | None = None, actions: jax.Array | None = None
    ) -> tuple[Any, Any]:
        """The controller's `optimize`, told the past `(history, nq + nv)` and `(history, nu)` too."""
        # The controller hands only `state` down to eval_rollouts.
        self._past = None if states is None or actions is None else (states, actions)
        try:
            return super().optimize(state, params)  # type: ignore[misc]
        finally:
            self._past = None

    def eval_rollouts(
        self, model: mjx.Model, state: mjx.Data, controls: jax.Array, knots: jax.Array
    ) -> tuple[mjx.Data, Trajectory]:
        """In the place of hydrax's method: see `evaluate_rollouts`.

        Raises:
          ConfigError: the dynamics' step lasts longer or shorter than the controller's.
        """
        task, dt = self.task, float(self.dt)  # type: ignore[attr-defined]
        step = getattr(self.dynamics, "dt", dt)
        if not math.isclose(step, dt, rel_tol=1e-3):
            raise ConfigError(
                f"A step of {type(self.dynamics).__name__} lasts {step:g} s, one of the controller {dt:g} s: make the "
                "task's model with that timestep (mj_model.opt.timestep)."
            )
        if self._past is None:
            standing = extract_state_features(state)
            past = (
                jnp.broadcast_to(standing, (self.history_length, *standing.shape)),
                jnp.zeros((self.history_length, model.nu)),
            )
        else:
            past = self._past
        history = self.dynamics.init_history(*past)
        return evaluate_rollouts(task, self.dynamics, model, state, history, controls, knots, dt, refresh=self.refresh)
