"""A trained recurrent model as planners use it."""

import dataclasses
from pathlib import Path
from typing import Self, get_args

import jax
import jax.numpy as jnp
import mujoco

from galvanax.errors import ConfigError, DataError
from galvanax.networks.gru_dynamics import GRUEnsemble, History
from galvanax.networks.gru_rollout import Propagation, read_history, rollout, step_with_variance
from galvanax.physics.hydrax import refresh_kinematics
from galvanax.physics.models import load_model
from galvanax.physics.quiet_mjx import mjx
from galvanax.tasks.gru_dynamics import GRUDynamicsTask


@dataclasses.dataclass(frozen=True, eq=False)
class GRUDynamics:
    """`init_history`, `step` and `rollout` of a trained `GRUDynamicsTask`: the `Dynamics` protocol of the planners.

    All three are pure: jit, vmap and differentiate them at will.

    Attributes:
      task: what was trained, with the layout and sizes.
      model: its weights.
      propagation: how an ensemble goes on. "moment": the members' mean state is what all of them see next, and what
        a step returns. "member": each member follows its own states, as one particle per member (TS∞ of PETS, Chua et
        al. 2018), and states have a leading axis `(members, ...)`.
      system: the MJX model for `kinematics`, or None.
    """

    task: GRUDynamicsTask
    model: GRUEnsemble
    propagation: Propagation = "moment"
    system: mjx.Model | None = None

    @classmethod
    def load(
        cls,
        run_dir: str | Path,
        checkpoint: str | Path = "best",
        *,
        system: str | Path | mujoco.MjModel | None = None,
        propagation: Propagation = "moment",
    ) -> Self:
        """Loads a run of `GRUDynamicsTask`; needs none of its data.

        Args:
          run_dir: the run's folder.
          checkpoint: as of `Task.load`.
          system: a bundled model's name, an MJCF file or a compiled model, for `kinematics`.
          propagation: see the class.

        Raises:
          CheckpointError: as `Task.load`.
          ConfigError: the system is not the one that was learned, or the propagation is unknown.
        """
        if propagation not in get_args(Propagation):
            raise ConfigError(f'propagation={propagation!r}: expected "moment" or "member".')
        task, model = GRUDynamicsTask.load(run_dir, checkpoint)
        compiled = load_model(system) if isinstance(system, str | Path) else system
        layout = model.layout
        if compiled is not None and (compiled.nq, compiled.nv) != (layout.nq, layout.nv):
            raise ConfigError(
                f"The system has nq={compiled.nq}, nv={compiled.nv}; {run_dir} learned nq={layout.nq}, nv={layout.nv}."
            )
        put = None if compiled is None else mjx.put_model(compiled, jax.local_devices()[0])
        return cls(task, model, propagation, put)

    @property
    def dt(self) -> float:
        """Seconds a step."""
        assert self.task.dt is not None
        return self.task.dt

    def init_history(self, states: jax.Array, actions: jax.Array) -> History:
        """What the model keeps of the past.

        Args:
          states: `(..., history, state_dim)`, the last one present; as many as in training, or another number.
          actions: `(..., history, action_dim)`; the last is still to be taken and is not looked at. One less will do.

        Returns:
          A pytree whose arrays have the leading axes `(..., members)`.
        """
        states, actions = jnp.asarray(states, jnp.float32), jnp.asarray(actions, jnp.float32)
        found = states.shape[-1], actions.shape[-1]
        expected = self.model.layout.state_dim, self.task.action_dim
        if found != expected or states.shape[-2] - actions.shape[-2] not in (0, 1):
            raise DataError(
                f"states {list(states.shape)} and actions {list(actions.shape)}; expected "
                f"(..., history, {expected[0]}) and (..., history, {expected[1]})."
            )
        return read_history(self.model, states, actions)

    def step(self, history: History, action: jax.Array) -> tuple[History, jax.Array]:
        """Holds `action (..., action_dim)` for a step; returns the next state `(..., state_dim)` too."""
        history, state, _ = self.step_with_variance(history, action)
        return history, state

    def step_with_variance(self, history: History, action: jax.Array) -> tuple[History, jax.Array, jax.Array]:
        """`step`, and the variance of the next state in the space of `StateLayout.difference`, `(..., 2 nv)`.

        With "moment", that of the mixture of the members' Gaussians: the mean of the variances and the variance of the
        means. With "member", each member's own.
        """
        return step_with_variance(self.model, history, action, self.propagation)

    def rollout(self, history: History, actions: jax.Array) -> jax.Array:
        """The states after each of the actions `(..., horizon, action_dim)`: `(..., horizon, state_dim)`."""
        return rollout(self.model, history, actions, self.propagation)

    def kinematics(self, state: jax.Array) -> mjx.Data:
        """`mjx.Data` at `state (state_dim,)` with `xpos`, `xmat`, `site_xpos` and the like as they are there.

        Raises:
          ConfigError: no system was given.
        """
        if self.system is None:
            raise ConfigError("kinematics needs the system: GRUDynamics.load(run_dir, system=...).")
        return refresh_kinematics(self.system, mjx.make_data(self.system), state)
