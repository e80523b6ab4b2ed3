"""How good sampled trajectories are: nearness to demonstrations, modes, and whether physics admits them."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.cluster.vq import kmeans2

from galvanax.physics.system import System, action_limits_of, state_difference

_RESTARTS = 10  # of k-means, of which the tightest is taken
_STARTS = 8  # of an action's search
_TRIES = 12  # Gauss-Newton steps from each
_EXACT, _FOUND = 1e-7, 1e-4  # errors below which a search need not go on, and not be begun again
_ROWS = 512  # searches side by side
_MOST_DEMONSTRATIONS = 1000


@dataclasses.dataclass(frozen=True)
class Modes:
    """Groups of demonstrations, found by k-means on how their states move away from the start.

    Attributes:
      centres: `(modes, horizon * entries)`, in deviations of the data.
      demonstrations: `(count, horizon * entries)`, likewise.
      labels: of the demonstrations `(count,)`.
      reach: how far, at most, all but one in a hundred demonstrations are from another one.
    """

    centres: np.ndarray
    demonstrations: np.ndarray
    labels: np.ndarray
    reach: float

    @staticmethod
    def of(demonstrations: np.ndarray, count: int) -> "Modes":
        """Finds `count` groups in motions `(demonstrations, horizon, entries)`, in deviations of the data."""
        flat = _spread(demonstrations, _MOST_DEMONSTRATIONS).reshape(-1, np.prod(demonstrations.shape[1:]))
        count = min(count, len(flat))
        found = [kmeans2(flat, count, minit="++", seed=seed) for seed in range(_RESTARTS)]
        spreads = [np.sum((flat - centres[labels]) ** 2) for centres, labels in found]
        centres, labels = found[int(np.argmin(spreads))]
        distances = _distances(flat, flat)
        np.fill_diagonal(distances, np.inf)
        return Modes(centres, flat, labels, float(np.quantile(distances.min(1), 0.99)))

    def shares(self) -> np.ndarray:
        """Of the demonstrations in each mode `(modes,)`."""
        return np.bincount(self.labels, minlength=len(self.centres)) / len(self.labels)

    def assign(self, motions: np.ndarray) -> np.ndarray:
        """The mode of each motion `(count, horizon, entries)`: that of the nearest demonstration.

        It is -1, between modes, where no demonstration is as near as twice the demonstrations' own `reach`.
        """
        distances = _distances(motions.reshape(len(motions), -1), self.demonstrations)
        nearest = distances.argmin(1)
        return np.where(distances.min(1) <= 2 * self.reach, self.labels[nearest], -1)


def statewise_admissibility_error(
    system: System, states: np.ndarray, actions: np.ndarray | None = None, starts: int = _STARTS
) -> np.ndarray:
    """SAE: the mean over steps of min_a ‖s_{t+1} - f(s_t, a)‖, in the entries' own units, `(batch,)`.

    0 where some actions lead through the states. The best action is searched for by damped Gauss-Newton within the
    system's limits, so this is an upper bound: from the actions given, or from zero, and again, where that finds none,
    from what was found for the step before and the step after. Contacts have many valleys without an exit, and actions
    that follow each other are alike.

    Args:
      system: f.
      states: `(batch, horizon + 1, state_dim)`.
      actions: where to look first `(batch, horizon, action_dim)`, if they are known.
      starts: how often to look for a step's action, at most.
    """
    count, horizon = states.shape[0], states.shape[1] - 1
    before, after = (np.reshape(part, (count * horizon, -1)) for part in (states[:, :-1], states[:, 1:]))
    best = np.zeros((count * horizon, system.action_dim), np.float32)
    if actions is not None:
        best[:] = np.reshape(actions, best.shape)
    errors = np.full(len(best), np.inf, np.float32)
    places = np.arange(len(best)).reshape(count, horizon)
    size = min(_ROWS, len(best))
    for start in range(starts):
        missed = np.flatnonzero(errors > _FOUND)
        # Itself at first, then the step before and the step after by turns.
        shift = 0 if start == 0 else 1 if start % 2 == 0 else -1
        first = best[places[:, np.clip(np.arange(horizon) + shift, 0, horizon - 1)].ravel()]
        for begin in range(0, len(missed), size):
            rows = np.resize(missed[begin : begin + size], size)  # always as many: it is compiled once
            found, error = jax.device_get(_search(system, before[rows], after[rows], first[rows]))
            better = error < errors[rows]
            best[rows[better]], errors[rows[better]] = found[better], error[better]
    return errors.reshape(count, horizon).mean(axis=1)


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, 0, 0, 0))
def _search(system: System, before: jax.Array, after: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The best action between two states that is found from a first one, and its error."""
    low, high = (jnp.asarray(limit, jnp.float32) for limit in action_limits_of(system))

    def residual(action: jax.Array) -> tuple[jax.Array, jax.Array]:
        missed = state_difference(system, system.step(before, action), after)
        return missed, missed

    def attempt(now: _Progress) -> _Progress:
        # A step and its slope in one place: a robot's physics takes a minute to compile each time.
        slope, missed = jax.jacfwd(residual, has_aux=True)(now.candidate)
        error = jnp.linalg.norm(missed)
        better = error < now.error
        found = (now.candidate, error, missed, slope)
        kept = (now.action, now.error, now.missed, now.slope)
        action, error, missed, slope = jax.tree.map(functools.partial(jnp.where, better), found, kept)
        damping = jnp.where(better, now.damping / 5, now.damping * 5)
        gram = slope.T @ slope
        scale = damping * (jnp.diag(gram) + 1e-8 * jnp.trace(gram) + 1e-12)
        move = jnp.linalg.solve(gram + jnp.diag(scale), slope.T @ missed)
        candidate = jnp.clip(action - move, low, high)
        return _Progress(now.attempts + 1, candidate, action, error, missed, slope, damping)

    first = jnp.clip(first, low, high)
    shape = jax.eval_shape(residual, first)[0].shape
    nothing = (first, jnp.asarray(jnp.inf, first.dtype), jnp.zeros(shape), jnp.zeros((*shape, *first.shape)))
    begin = _Progress(jnp.asarray(0), first, *nothing, jnp.asarray(5e-3, first.dtype))
    end = jax.lax.while_loop(lambda now: (now.attempts <= _TRIES) & (now.error > _EXACT), attempt, begin)
    return end.action, end.error


class _Progress(NamedTuple):
    """A Gauss-Newton search: what to try next, and the best so far with its residual and slope."""

    attempts: jax.Array
    candidate: jax.Array
    action: jax.Array
    error: jax.Array
    missed: jax.Array
    slope: jax.Array
    damping: jax.Array


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean squared difference of each row of `a` and each of `b`."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0) / a.shape[1])


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]
