"""A torque-driven pendulum in plain JAX: a system that compiles in a moment."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from galvanax.errors import ConfigError
from galvanax.physics.layout import StateLayout


@dataclasses.dataclass(frozen=True)
class PendulumSystem:
    """A point mass on a massless rod: `m l² θ̈ = τ - b θ̇ - m g l sin θ`, by the classical Runge-Kutta method.

    The state is `[angle (rad), rate (rad/s)]`. The angle is 0 where the pendulum hangs, and a plain number: one turn
    more is another state. An action in [-1, 1] is the torque's part of `max_torque`; beyond, it is clipped.

    Attributes:
      control_dt: seconds (s) that an action is held.
      substeps: Runge-Kutta steps in a control step.
      mass: kg.
      length: m.
      gravity: m/s².
      damping: N·m·s/rad.
      max_torque: N·m; by default just enough to hold the pendulum anywhere.

    Raises:
      ConfigError: a quantity is not positive, or the damping negative.
    """

    control_dt: float = 0.05
    substeps: int = 2
    mass: float = 1.0
    length: float = 1.0
    gravity: float = 9.81
    damping: float = 0.1
    max_torque: float = 10.0

    state_dim: ClassVar[int] = 2
    action_dim: ClassVar[int] = 1
    layout: ClassVar[StateLayout] = StateLayout(1, 1, angles=())
    state_labels: ClassVar[tuple[str, ...]] = ("angle (rad)", "angular velocity (rad/s)")

    def __post_init__(self) -> None:
        for name in ("control_dt", "substeps", "mass", "length", "max_torque"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"PendulumSystem.{name}={getattr(self, name)}; expected more than 0")
        if not self.damping >= 0:
            raise ConfigError(f"PendulumSystem.damping={self.damping}; expected 0 or more")

    @property
    def action_limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest action `(1,)`."""
        return -np.ones(1, np.float32), np.ones(1, np.float32)

    def step(self, state: jax.Array, action: jax.Array) -> jax.Array:
        """The state `(2,)` after `control_dt` seconds under an action `(1,)`."""
        torque = self.max_torque * jnp.clip(action[0], -1, 1)
        inertia, weight = self.mass * self.length**2, self.mass * self.gravity * self.length
        dt = self.control_dt / self.substeps

        def rate(state: jax.Array) -> jax.Array:
            angle, speed = state
            return jnp.stack([speed, (torque - self.damping * speed - weight * jnp.sin(angle)) / inertia])

        for _ in range(self.substeps):
            k1 = rate(state)
            k2 = rate(state + dt / 2 * k1)
            k3 = rate(state + dt / 2 * k2)
            k4 = rate(state + dt * k3)
            state = state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return state
