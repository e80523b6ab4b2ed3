"""`identify`: a simulator's parameters from logs, by gradients through it."""

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import mujoco
import numpy as np

from galvanax.errors import ConfigError
from galvanax.identification.identification import Identification
from galvanax.identification.least_squares import LEAST_EIGENVALUE, Fit, fit, reduce, scaled_eigen
from galvanax.identification.logs import (
    Logs,
    check_horizon,
    check_logs,
    cut_windows,
    estimate_noise,
    least_noise,
    read_logs,
    row_differences,
)
from galvanax.identification.parameters import DELAY, Parameter, find_parameters, set_parameters, with_friction
from galvanax.identification.residuals import Problem, controls_to_actions
from galvanax.physics.models import load_model
from galvanax.physics.system import MJXSystem, System

LEAD = 4  # control steps of delay, where nothing is said
ROUNDS = 3  # of the noise's estimate
SETTLED = 0.1  # of a deviation
# Robots' models stop their solver after few iterations, for speed; reality doesn't. A Go2 in C MuJoCo and in MJX, three
# iterations each, come up to 550 deviations of the noise apart within three control steps.
SOLVER_ITERATIONS, LINE_SEARCHES = 30, 50
SHARE = 0.1  # of a direction that the logs don't tell, from which on a parameter is named

logger = logging.getLogger(__name__)


def identify(
    model: System | mujoco.MjModel | str | Path,
    trajectories: Logs,
    parameters: Sequence[str],
    *,
    horizon: int = 20,
    max_windows: int = 100,
    noise: Sequence[float] | np.ndarray | None = None,
    estimate_starts: bool = True,
    max_delay: float | None = None,
    max_iterations: int = 30,
) -> Identification:
    """Fits a model's parameters to logs of the real thing.

    The logs are cut into short windows. Each is simulated from its first state, and what differs from the measured
    states, in units of their noise, is made small by Levenberg-Marquardt: "multiple shooting" (Bock, 1981). The first
    states are measured with noise too: they are fitted along, and eliminated window by window. Jacobians are forward
    mode through `implicit_step`, exact through contact and friction. Contacts are solved to the end, whatever the
    model's number of solver iterations.

    Parameters, by name (a body, joint, actuator, geom or pair without a name has its number):

    - `body_mass/BODY` (kg); the inertia grows with it, at the same density;
    - `dof_damping/JOINT` (N·m·s/rad or N·s/m), `dof_frictionloss/JOINT` (N·m or N), `dof_armature/JOINT` (kg·m² or kg),
      `jnt_stiffness/JOINT` (N·m/rad or N/m), of hinges and slides;
    - `actuator_gain/ACTUATOR`; a servo's bias grows with it;
    - `geom_friction/GEOM`, `pair_friction/PAIR`: sliding friction of contacts;
    - `action_delay` (s), of all actions, from 0 to `max_delay`. Whole control steps are tried first, then it may end
      between them.

    Masses, gains and contact friction keep their sign and are fitted as logarithms; the rest is 0 or more.

    Args:
      model: a MuJoCo model, the name of a bundled one or the path of an MJCF file: the logs' actions are then its
        controls, as `galvanax simulate` writes them. Or a system, whose actions they then are:
        `gx.envs.load_system("go2")` for what `galvanax collect` writes. Its values are where the fit starts.
      trajectories: `gx.Trajectory`s; the path of logs that `gx.read_trajectories` reads; or arrays by name, `states`
        `(N, T, nq + nv)`, `actions` `(N, T, action_dim)` or one less, and `dt` (s).
      parameters: patterns of names, `*` for any characters.
      horizon: control steps of a window. Long ones tell more, until the motion is too unstable to follow.
      max_windows: so many at most, spread over the logs.
      noise: deviation of the noise of each entry of a state's difference `(2 nv,)`: positions (rad or m, rotations as
        rotation vectors), then velocities. By default it is estimated, first from the logs' third differences, then
        from what the fit leaves.
      estimate_starts: False: windows start exactly where they were measured.
      max_delay: s; by default four control steps.
      max_iterations: for each round of the noise's estimate.

    Raises:
      ConfigError: a setting doesn't fit the model; names it.
      DataError: the logs can't be read or aren't the model's; names the log.
    """
    began = time.perf_counter()
    check_horizon(horizon, max_windows)
    logs = read_logs(trajectories)
    system, controls = _system(model, logs[0].dt)
    chosen = find_parameters(system.mj_model, parameters, system.control_dt)
    check_logs(logs, system)
    if controls:
        scaled = controls_to_actions(system, [log.actions for log in logs])
        logs = [dataclasses.replace(log, actions=one) for log, one in zip(logs, scaled, strict=True)]
    lead = _lead(chosen, max_delay, system.control_dt)
    windows = cut_windows(logs, horizon, lead, max_windows)
    fitted = _solved_to_the_end(with_friction(system.mj_model, chosen))
    problem = Problem(_with_model(system, fitted), windows, chosen, lead, estimate_starts)
    steps = row_differences(logs, system)
    size = 2 * system.layout.nv
    sigma = estimate_noise(steps) if noise is None else _check_noise(noise, size)

    x, starts = np.zeros(len(chosen)), np.zeros((len(windows.states), size))
    if lead:
        x = _with_best_delay(problem, x, starts, sigma)
    iterations = 0
    for last in range(ROUNDS) if noise is None else [ROUNDS - 1]:
        found = _fit(problem, x, starts, sigma, max_iterations)
        x, starts, iterations = found.x, found.starts, iterations + found.iterations
        left = np.maximum(_deviation(found.at.value, sigma, estimate_starts), least_noise(steps))
        if last == ROUNDS - 1 or np.all(np.abs(left / sigma - 1) < SETTLED):
            break
        starts, sigma = starts * sigma / left, left
    before = reduce(problem.residuals(np.zeros(len(chosen)), np.zeros_like(starts), sigma))
    estimate = _estimate(problem, found)
    if estimate["undetermined"]:
        logger.warning("identify: the logs don't tell %s.", ", ".join(estimate["undetermined"]))
    changed = set_parameters(system.mj_model, estimate["values"])
    return Identification(
        **estimate,
        error_before=math.sqrt(2 * before.cost / before.freedom),
        noise=sigma,
        windows=len(windows.states),
        horizon=horizon,
        iterations=iterations,
        converged=found.converged,
        seconds=time.perf_counter() - began,
        model=changed,
        system=_with_model(system, changed),
    )


def _system(model: System | mujoco.MjModel | str | Path, dt: float) -> tuple[MJXSystem, bool]:
    """The system, and whether its logs hold controls rather than its own actions."""
    controls = isinstance(model, str | Path | mujoco.MjModel)
    if isinstance(model, str | Path):
        model = load_model(model)
    if isinstance(model, mujoco.MjModel):
        timestep = model.opt.timestep
        model = MJXSystem(model, max(round(dt / timestep), 1) * timestep)
    if not isinstance(model, MJXSystem):
        raise ConfigError(
            f"identify: model is {type(model).__name__}; expected an MJXSystem, a mujoco.MjModel, the name of a "
            "bundled model or the path of an MJCF file."
        )
    if model.mj_model.na:
        raise ConfigError(
            f"identify: the model has {model.mj_model.na} activations of actuators, which logs of qpos and qvel don't "
            "tell; expected actuators without (dyntype none)."
        )
    return model, controls


def _with_model(system: MJXSystem, model: mujoco.MjModel) -> MJXSystem:
    return MJXSystem(model, system.control_dt, targets=system.targets, gradient=system.gradient)


def _solved_to_the_end(model: mujoco.MjModel) -> mujoco.MjModel:
    model = copy.copy(model)
    model.opt.iterations = max(model.opt.iterations, SOLVER_ITERATIONS)
    model.opt.ls_iterations = max(model.opt.ls_iterations, LINE_SEARCHES)
    return model


def _lead(parameters: Sequence[Parameter], max_delay: float | None, control_dt: float) -> int:
    """Control steps that an action may come late."""
    if all(parameter.path != DELAY for parameter in parameters):
        if max_delay is not None:
            raise ConfigError(f"max_delay={max_delay}: {DELAY} is not among the parameters.")
        return 0
    if max_delay is not None and not 0 < max_delay < math.inf:
        raise ConfigError(f"max_delay={max_delay}; expected more than 0 (s).")
    return LEAD if max_delay is None else math.ceil(max_delay / control_dt - 1e-6)


def _check_noise(noise: Sequence[float] | np.ndarray, size: int) -> np.ndarray:
    given = np.asarray(noise, np.float64)
    if given.shape != (size,) or not (np.isfinite(given).all() and (given > 0).all()):
        raise ConfigError(f"noise has shape {given.shape}; expected ({size},) deviations greater than 0.")
    return given


def _with_best_delay(problem: Problem, x: np.ndarray, starts: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """With the whole number of control steps as delay that fits best: there are valleys between them."""
    place = next(row for row, parameter in enumerate(problem.parameters) if parameter.path == DELAY)
    tried = []
    for steps in range(problem.lead + 1):
        trial = x.copy()
        trial[place] = steps
        tried.append((reduce(problem.residuals(trial, starts, noise)).cost, steps, trial))
    return min(tried, key=lambda one: one[:2] if math.isfinite(one[0]) else (math.inf, one[1]))[2]


def _fit(problem: Problem, x: np.ndarray, starts: np.ndarray, noise: np.ndarray, most: int) -> Fit:
    """The fit; once more where another delay is better with the parameters that were found."""
    found = fit(problem, x, starts, noise, most)
    if problem.lead:
        x = _with_best_delay(problem, found.x, found.starts, noise)
        again = fit(problem, x, found.starts, noise, most)
        spent = found.iterations + again.iterations
        best = min(found, again, key=lambda one: reduce(one.at).cost)
        return best._replace(iterations=spent)
    return found


def _deviation(value: np.ndarray, noise: np.ndarray, estimate_starts: bool) -> np.ndarray:
    """Of what a fit leaves, for each entry `(2 nv,)`; a fitted start takes one row's freedom."""
    left = value.reshape(len(value), -1, len(noise))
    rows = left.shape[1] - estimate_starts
    return np.sqrt(np.sum(left**2, axis=(0, 1)) / (len(left) * rows)) * noise


def _estimate(problem: Problem, found: Fit) -> dict[str, Any]:
    """The fields of an `Identification` that follow from the information matrix at the end."""
    parameters, reduced = problem.parameters, reduce(found.at)
    values, vectors, scale = scaled_eigen(reduced.information)
    told = values > LEAST_EIGENVALUE
    variance = 2 * reduced.cost / max(reduced.freedom - len(parameters), 1)
    inverse = (vectors[:, told] / values[told]) @ vectors[:, told].T / np.outer(scale, scale)
    error = np.sqrt(variance * np.diag(inverse))
    # A logarithm that isn't known within a factor of e, another number within itself or its scale.
    known = np.array(
        [1.0 if p.positive else max(abs(x), p.initial / p.scale, 1.0) for p, x in zip(parameters, found.x, strict=True)]
    )
    lost = (np.abs(vectors[:, ~told]) > SHARE).any(1) | (error > known)
    numbers = np.asarray(problem.values(jnp.asarray(found.x)), np.float64)
    units = np.array([abs(n) if p.positive else p.scale for p, n in zip(parameters, numbers, strict=True)])
    error = np.where(lost, np.inf, error * units)
    root = np.sqrt(np.diag(inverse))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.where(lost[:, None] | lost, np.nan, inverse / np.outer(root, root))
    names = [parameter.path for parameter in parameters]
    return {
        "values": dict(zip(names, map(float, numbers), strict=True)),
        "standard_errors": dict(zip(names, map(float, error), strict=True)),
        "initial": {parameter.path: parameter.initial for parameter in parameters},
        "undetermined": tuple(name for name, gone in zip(names, lost, strict=True) if gone),
        "correlation": correlation,
        "error_after": math.sqrt(2 * reduced.cost / reduced.freedom),
    }
