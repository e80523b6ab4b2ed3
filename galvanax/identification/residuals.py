"""How far simulated windows are from measured ones, with Jacobians: what is fitted."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from galvanax.identification.logs import Windows
from galvanax.identification.parameters import DELAY, Parameter, with_parameters
from galvanax.physics.integrators import integrate_positions
from galvanax.physics.rollout import rollout
from galvanax.physics.system import MJXSystem, state_difference

CHUNK = 32  # windows simulated side by side


class Residuals(NamedTuple):
    """At one guess, in units of the noise.

    Attributes:
      value: `(windows, rows)`.
      by_parameter: `(windows, rows, parameters)`.
      by_start: `(windows, rows, 2 nv)`; no columns where starts are taken as measured.
    """

    value: np.ndarray
    by_parameter: np.ndarray
    by_start: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Windows of logs and a system whose parameters are in question.

    A guess is `x` `(parameters,)`, without units, and `starts` `(windows, 2 nv)`, how far the first states are from the
    measured ones, in units of the noise. Of a positive parameter, `x` is the logarithm of its ratio to the initial
    value; of another, its difference in units of `Parameter.scale`.
    """

    system: MJXSystem
    windows: Windows
    parameters: tuple[Parameter, ...]
    lead: int
    estimate_starts: bool
    _compiled: list[Callable[..., tuple[jax.Array, jax.Array]]] = dataclasses.field(default_factory=list)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest `x`, `(parameters,)` each."""
        low = [-np.inf if p.positive else (p.least - p.initial) / p.scale for p in self.parameters]
        high = [self.lead if p.path == DELAY else np.inf for p in self.parameters]
        return np.array(low, float), np.array(high, float)

    def values(self, x: jax.Array) -> jax.Array:
        """The parameters `(parameters,)`, in their units."""
        positive = np.array([p.positive for p in self.parameters])
        initial, scale = (np.array([getattr(p, name) for p in self.parameters]) for name in ("initial", "scale"))
        return jnp.where(positive, initial * jnp.exp(jnp.where(positive, x, 0)), initial + scale * x)

    def residuals(self, x: np.ndarray, starts: np.ndarray, noise: np.ndarray) -> Residuals:
        """Simulates every window, and differentiates by everything that is fitted."""
        if not self._compiled:
            self._compiled.append(jax.jit(jax.vmap(self._one, in_axes=(None, 0, None, 0, 0))))
        count, parts = len(starts), []
        for first in range(0, count, CHUNK):
            # As many in every chunk, for one program.
            rows = np.minimum(np.arange(first, first + min(CHUNK, count)), count - 1)
            part = self._compiled[0](
                *(jnp.asarray(array, jnp.float32) for array in (x, starts[rows], noise)),
                self.windows.states[rows],
                self.windows.actions[rows],
            )
            parts.append([np.asarray(array, np.float64)[: count - first] for array in part])
        value, jacobian = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        split = len(self.parameters)
        return Residuals(value, jacobian[..., :split], jacobian[..., split:])

    def _one(
        self, x: jax.Array, start: jax.Array, noise: jax.Array, states: jax.Array, actions: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The residuals of a window `(rows,)` and their Jacobian `(rows, parameters + 2 nv)`."""
        split = len(x)

        # By the change of a guess, not the guess: what only parameters change isn't computed anew for each window.
        def residual(change: jax.Array) -> jax.Array:
            moved = start + change[split:] if self.estimate_starts else start
            return self._simulate(x + change[:split], moved, noise, states, actions)

        zero = jnp.zeros(split + (len(start) if self.estimate_starts else 0))
        push = functools.partial(jax.jvp, residual, (zero,))
        return jax.vmap(lambda change: push((change,)), out_axes=(None, 1))(jnp.eye(len(zero)))

    def _simulate(
        self, x: jax.Array, start: jax.Array, noise: jax.Array, states: jax.Array, actions: jax.Array
    ) -> jax.Array:
        values = self.values(x)
        system = copy.copy(self.system)
        system.model = with_parameters(system.model, self.parameters, values)
        nq, nv = system.layout.nq, system.layout.nv
        qpos = integrate_positions(system.layout, states[0, :nq], start[:nv] * noise[:nv], 1.0)
        first = jnp.concatenate([qpos, states[0, nq:] + start[nv:] * noise[nv:]])
        delayed = [row for row, parameter in enumerate(self.parameters) if parameter.path == DELAY]
        every = 1
        if delayed:
            # An action may begin between two control steps.
            every, system.substeps = system.substeps, 1
            actions = delay_actions(actions, values[delayed[0]] / system.control_dt, every, self.lead)
        simulated = rollout(system, first, actions)[::every]
        residual = state_difference(system, simulated, states) / noise
        return (residual if self.estimate_starts else residual[1:]).reshape(-1)


def delay_actions(actions: jax.Array, delay: jax.Array, substeps: int, lead: int) -> jax.Array:
    """What acts in each physics step when actions come late.

    Args:
      actions: each held for a control step, `(lead + horizon, action_dim)`.
      delay: control steps, 0 to `lead`. Its derivative at a whole physics step is that towards more delay.
      substeps: physics steps in a control step.
      lead: actions before the first control step.

    Returns:
      `(horizon * substeps, action_dim)`: in the physics step in which one action follows another, their mean, weighted
      by how long each acts.
    """
    horizon = actions.shape[0] - lead
    begin = jnp.arange(horizon * substeps) + lead * substeps - delay * substeps
    place = jnp.ceil(jax.lax.stop_gradient(begin))
    earlier = (place - begin)[:, None]

    def held(step: jax.Array) -> jax.Array:
        return actions[jnp.clip(step.astype(int) // substeps, 0, actions.shape[0] - 1)]

    return (1 - earlier) * held(place) + earlier * held(place - 1)


def controls_to_actions(system: MJXSystem, controls: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Actions of a system without targets, from what its actuators got: `MJXSystem` scales actions to their ranges."""
    model = system.mj_model
    limited = model.actuator_ctrllimited.astype(bool)
    low, high = np.where(limited[:, None], model.actuator_ctrlrange, [-1.0, 1.0]).T
    # MuJoCo clips controls to their ranges.
    ranged = [np.clip((one - (low + high) / 2) / ((high - low) / 2), -1, 1) for one in controls]
    return [np.where(limited, scaled, one).astype(np.float32) for scaled, one in zip(ranged, controls, strict=True)]
