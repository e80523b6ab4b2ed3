"""Levenberg-Marquardt for parameters that all windows share, beside a first state of each window."""

import logging
from typing import NamedTuple

import numpy as np

from galvanax.errors import DataError
from galvanax.identification.residuals import Problem, Residuals

# Of the information matrix with a diagonal of ones. Jacobians in float32 have some 5 digits, their squares 10.
LEAST_EIGENVALUE = 1e-8
CONVERGED = 1e-6  # of the cost
LARGEST_DAMPING = 1e6
LARGEST_STEP = 1.0  # of a logarithm: a factor of e

logger = logging.getLogger(__name__)


class Reduced(NamedTuple):
    """A linearised problem from which the starts are eliminated, each window's by its own QR decomposition.

    Attributes:
      cost: half the squares that are left when starts follow the parameters.
      gradient: by the parameters, `(parameters,)`.
      information: `(parameters, parameters)`, the Schur complement of the starts.
      freedom: how many residuals there are more than starts.
    """

    cost: float
    gradient: np.ndarray
    information: np.ndarray
    freedom: int


class Fit(NamedTuple):
    """Where the iterations ended; see `Problem` for `x` and `starts`."""

    x: np.ndarray
    starts: np.ndarray
    at: Residuals
    iterations: int
    converged: bool


def reduce(at: Residuals) -> Reduced:
    """Eliminates the starts."""
    value, by_parameter = at.value, at.by_parameter
    if at.by_start.shape[2]:
        q, _ = np.linalg.qr(at.by_start)
        value = value - np.einsum("wri,wi->wr", q, np.einsum("wri,wr->wi", q, value))
        by_parameter = by_parameter - q @ (q.transpose(0, 2, 1) @ by_parameter)
    flat = by_parameter.reshape(-1, by_parameter.shape[2])
    freedom = at.value.size - at.by_start.shape[0] * at.by_start.shape[2]
    return Reduced(float(np.sum(value**2) / 2), flat.T @ value.reshape(-1), flat.T @ flat, freedom)


def fit(problem: Problem, x: np.ndarray, starts: np.ndarray, noise: np.ndarray, most: int) -> Fit:
    """Minimises the squares of the residuals, from a guess.

    Args:
      problem: what is fitted.
      x: `(parameters,)`.
      starts: `(windows, 2 nv)`.
      noise: `(2 nv,)`.
      most: iterations.

    Raises:
      DataError: simulated with the guess, the windows leave the finite numbers.
    """
    low, high = problem.bounds
    at, damping, done = problem.residuals(x, starts, noise), 1e-3, False
    cost, iteration = _cost(at), 0
    if not np.isfinite(cost):
        bad = int(np.argmax(~np.isfinite(at.value).all(axis=1) | ~np.isfinite(at.by_parameter).all(axis=(1, 2))))
        raise DataError(
            f"identify: window {bad} of {len(at.value)}, simulated with the initial parameters, doesn't stay finite; "
            "expected a model that is nearer to what was logged, or a shorter horizon."
        )
    for iteration in range(1, most + 1):
        reduced = reduce(at)
        change = np.clip(x + _step(reduced, x, low, high, damping, problem), low, high) - x
        # Marquardt's damping of the starts, by their own Hessian: else a kink (stick and slip) could refuse every step.
        moved = _follow(at, change, starts.shape) / (1 + damping)
        predicted = _predict(at, change, moved)
        if cost - predicted < CONVERGED * cost:
            done = True
            break
        trial = problem.residuals(x + change, starts + moved, noise)
        new = _cost(trial)
        logger.info("identify: iteration %d, cost %.6g to %.6g, damping %.1g", iteration, cost, new, damping)
        if new < cost:
            x, starts, at, cost = x + change, starts + moved, trial, new
            damping = max(damping / 10, 1e-9)
        else:
            damping *= 10
            if damping > LARGEST_DAMPING:  # no step helps: the rest is rounding
                done = True
                break
    return Fit(x, starts, at, iteration, done)


def scaled_eigen(information: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues, eigenvectors (columns) of the matrix with a diagonal of ones, and the scales it was divided by."""
    scale = np.sqrt(np.diag(information))
    scale = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(information / np.outer(scale, scale))
    return values, vectors, scale


def _step(
    reduced: Reduced, x: np.ndarray, low: np.ndarray, high: np.ndarray, damping: float, problem: Problem
) -> np.ndarray:
    """A damped step that leaves alone what is at its bound and would cross it, and what the logs don't tell."""
    free = np.ones(len(x), bool)
    step = np.zeros(len(x))
    for _ in range(len(x)):
        step[:] = 0
        if not free.any():
            return step
        values, vectors, scale = scaled_eigen(reduced.information[np.ix_(free, free)])
        told = values > LEAST_EIGENVALUE
        inverse = np.where(told, 1 / (np.where(told, values, 1) + damping), 0)
        step[free] = -(vectors @ (inverse * (vectors.T @ (reduced.gradient[free] / scale)))) / scale
        crossing = free & (((x <= low) & (step < 0)) | ((x >= high) & (step > 0)))
        if not crossing.any():
            break
        free &= ~crossing
    logarithms = np.array([p.positive for p in problem.parameters])
    longest = np.abs(step[logarithms]).max(initial=0)
    return step * min(1.0, LARGEST_STEP / longest) if longest > 0 else step


def _follow(at: Residuals, change: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The best change of the starts beside a change of the parameters, to first order."""
    if not at.by_start.shape[2]:
        return np.zeros(shape)
    q, r = np.linalg.qr(at.by_start)
    left = at.value + at.by_parameter @ change
    return -np.linalg.solve(r, np.einsum("wri,wr->wi", q, left)[..., None])[..., 0]


def _predict(at: Residuals, change: np.ndarray, moved: np.ndarray) -> float:
    left = at.value + at.by_parameter @ change
    if at.by_start.shape[2]:
        left = left + np.einsum("wri,wi->wr", at.by_start, moved)
    return float(np.sum(left**2) / 2)


def _cost(at: Residuals) -> float:
    """Half the squares; infinite where a simulation or a derivative blew up."""
    finite = all(np.isfinite(array).all() for array in at)
    return float(np.sum(at.value**2) / 2) if finite else np.inf
