"""Model predictive control by sampling: MPPI and the cross-entropy method, over any `Dynamics`."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from galvanax.errors import ConfigError
from galvanax.physics.dynamics import Dynamics, History


class PlanInfo(NamedTuple):
    """What a planning step found.

    Attributes:
      actions: the plan from now on, `(horizon, action_dim)`.
      best_cost: the lowest cost of a sample in the last iteration; infinite when all diverged.
      effective_samples: `1 / Σ w²` of the last iteration's weights: 1 when a single sample decides,
        0 when all diverged.
      diverged: the fraction of samples with a state or cost that isn't finite.
    """

    actions: jax.Array
    best_cost: jax.Array
    effective_samples: jax.Array
    diverged: jax.Array


# Equality by identity: the fields hold functions and arrays, and jax.jit(planner.plan) must hash it.
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SamplingMPC(abc.ABC):
    """Improves a sequence of actions by simulating noisy copies of it.

    A planner holds settings only; its methods are pure, and `jax.jit(planner.plan)` is one program::

        plan, step = planner.init(), jax.jit(planner.plan)
        while True:
            history = dynamics.init_history(states, actions)        # observed up to now
            plan, action, info = step(plan, history, jax.random.fold_in(rng, t))

    Attributes:
      dynamics: the model to plan with.
      cost: `(state, action) -> scalar`, of an action and the state that it leads to, summed over the horizon.
      action_min: lowest action, `(action_dim,)`.
      action_max: highest action, likewise.
      noise_std: standard deviation of the noise, in the action's units: one number, or one for each entry.
      terminal_cost: `(state) -> scalar`, added for the last state.
      horizon: number of control steps to look ahead.
      num_samples: number of simulated sequences. The first is the plan itself, without noise.
      num_knots: noise is drawn at this many times and linear in between; by default at every step. Fewer knots give
        smoother actions that move a heavy system further.
      iterations: rounds of sampling for each control step.

    Raises:
      ConfigError: a setting is out of its range, or the action's limits and noise don't fit each other.
    """

    dynamics: Dynamics
    cost: Callable[[jax.Array, jax.Array], jax.Array]
    action_min: Sequence[float] | np.ndarray
    action_max: Sequence[float] | np.ndarray
    noise_std: float | Sequence[float] | np.ndarray
    terminal_cost: Callable[[jax.Array], jax.Array] | None = None
    horizon: int = 30
    num_samples: int = 128
    num_knots: int | None = None
    iterations: int = 1

    def __post_init__(self) -> None:
        for name in ("horizon", "num_samples", "iterations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected at least 1")
        if self.num_knots is not None and not 2 <= self.num_knots <= self.horizon:
            raise ConfigError(f"num_knots={self.num_knots}; expected 2 to {self.horizon}, the horizon, or None")
        low, high, std = (np.asarray(x, float) for x in (self.action_min, self.action_max, self.noise_std))
        if low.ndim != 1 or low.shape != high.shape or not np.all(low <= high):
            raise ConfigError(
                f"action_min={low.tolist()} and action_max={high.tolist()}; expected two lists, one entry for each "
                "actuator, none below its minimum"
            )
        if std.shape not in ((), low.shape) or not np.all((std > 0) & np.isfinite(std)):
            raise ConfigError(f"noise_std={std.tolist()}; expected one positive number, or {low.size} of them")

    @abc.abstractmethod
    def weights(self, costs: jax.Array) -> jax.Array:
        """How much each sample counts, `(num_samples,)`: zero at infinite costs, with sum one unless all are."""

    def next_std(self, std: jax.Array, weights: jax.Array, samples: jax.Array, mean: jax.Array) -> jax.Array:
        """The noise of the next iteration, `(horizon, action_dim)`; here, the same."""
        del weights, samples, mean
        return std

    def init(self) -> jax.Array:
        """The plan to start from, `(horizon, action_dim)`: zero, or the limit nearest to it."""
        return self._clip(jnp.zeros((self.horizon, len(self.action_min))))

    def plan(self, plan: jax.Array, history: History, rng: jax.Array) -> tuple[jax.Array, jax.Array, PlanInfo]:
        """Improves a plan and takes its first action.

        Args:
          plan: from `init` or the control step before, `(horizon, action_dim)`.
          history: where the system is now, from `dynamics.init_history`.
          rng: a JAX random key; a new one each control step.

        Returns:
          The plan for the next control step, shifted by one; the action for now, `(action_dim,)`; and details.
        """
        std = jnp.broadcast_to(jnp.asarray(self.noise_std, jnp.float32), plan.shape)

        def improve(carry: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[tuple[jax.Array, jax.Array], PlanInfo]:
            mean, std = carry
            samples = self.sample(mean, std, key)
            costs = self.evaluate(history, samples)
            weights = self.weights(costs)
            # With nothing to go by, the plan stays.
            mean = jnp.where(jnp.sum(weights) > 0, jnp.tensordot(weights, samples, 1), mean)
            effective = jnp.sum(weights) / jnp.maximum(jnp.sum(weights**2), 1e-30)
            info = PlanInfo(mean, jnp.min(costs), effective, jnp.mean(~jnp.isfinite(costs)))
            return (mean, self.next_std(std, weights, samples, mean)), info

        (mean, _), infos = jax.lax.scan(improve, (plan, std), jax.random.split(rng, self.iterations))
        return jnp.concatenate([mean[1:], mean[-1:]]), mean[0], jax.tree.map(lambda x: x[-1], infos)

    def sample(self, mean: jax.Array, std: jax.Array, rng: jax.Array) -> jax.Array:
        """Noisy copies of a plan, within the limits: `(num_samples, horizon, action_dim)`."""
        knots = self.num_knots or self.horizon
        noise = jax.random.normal(rng, (self.num_samples, knots, mean.shape[-1])).at[0].set(0.0)
        # Row t holds the weights of the knots at step t.
        places = np.linspace(0, knots - 1, self.horizon)[:, None]
        hat = np.maximum(0.0, 1 - np.abs(places - np.arange(knots))).astype(np.float32)
        return self._clip(mean + std * jnp.einsum("tk,nka->nta", hat, noise))

    def evaluate(self, history: History, samples: jax.Array) -> jax.Array:
        """The costs of sequences `(num_samples, horizon, action_dim)`; infinite where a state or cost isn't finite."""
        states = jax.vmap(self.dynamics.rollout, in_axes=(None, 0))(history, samples)
        costs = jnp.sum(jax.vmap(jax.vmap(self.cost))(states, samples), axis=1)
        if self.terminal_cost is not None:
            costs += jax.vmap(self.terminal_cost)(states[:, -1])
        # A cost may hide a state that is not a number, say behind a comparison.
        finite = jnp.isfinite(costs) & jnp.all(jnp.isfinite(states), axis=(1, 2))
        return jnp.where(finite, costs, jnp.inf)

    def _clip(self, actions: jax.Array) -> jax.Array:
        low, high = jnp.asarray(self.action_min, jnp.float32), jnp.asarray(self.action_max, jnp.float32)
        return jnp.clip(actions, low, high)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MPPI(SamplingMPC):
    """Model predictive path integral control.

    The plan becomes the mean of its noisy copies weighted with `exp(-cost / temperature)`: algorithm 2 of Williams et
    al., "Information theoretic MPC for model-based reinforcement learning", 2017, without its term for the
    likelihood of the noise (as in MPPI-Generic, arXiv:2409.07563): what an action costs, `cost` says.

    Attributes:
      temperature: a difference of cost that matters; towards zero, the best sample takes all.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ConfigError(f"temperature={self.temperature}; expected a positive number")

    def weights(self, costs: jax.Array) -> jax.Array:
        """`exp(-cost / temperature)`, normalised."""
        finite = jnp.isfinite(costs)
        # The lowest cost is taken off, so that not all the exponentials vanish; 0 where that would be ∞ - ∞.
        above = jnp.where(finite, costs, 0.0) - jnp.min(costs, where=finite, initial=jnp.inf)
        weights = jnp.where(finite, jnp.exp(-above / self.temperature), 0.0)
        return weights / jnp.maximum(jnp.sum(weights), 1e-30)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CEM(SamplingMPC):
    """The cross-entropy method: the plan becomes the mean of the best samples, the noise their standard deviation.

    As the planner of PETS (Chua et al. 2018). The noise is back at `noise_std` at every control step, so it takes
    several `iterations` to differ from keeping the best.

    Attributes:
      num_elites: how many samples count.
    """

    num_elites: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_elites <= self.num_samples:
            raise ConfigError(f"num_elites={self.num_elites}; expected 1 to {self.num_samples}, num_samples")

    def weights(self, costs: jax.Array) -> jax.Array:
        """The same for each of the best, zero for the others."""
        _, best = jax.lax.top_k(-costs, self.num_elites)
        weights = jnp.zeros_like(costs).at[best].set(1.0) * jnp.isfinite(costs)
        return weights / jnp.maximum(jnp.sum(weights), 1.0)

    def next_std(self, std: jax.Array, weights: jax.Array, samples: jax.Array, mean: jax.Array) -> jax.Array:
        """The elites' standard deviation, at every step of the horizon."""
        spread = jnp.sqrt(jnp.tensordot(weights, (samples - mean) ** 2, 1))
        return jnp.where(jnp.sum(weights) > 0, spread, std)
