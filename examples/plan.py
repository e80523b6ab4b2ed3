"""Swing up a pole on a cart by sampling MPC, on true MuJoCo, with the true model and with a learned one.

    python examples/plan.py --system cart-pole
    python examples/plan.py --system double-cart-pole --run-dir runs/double-cart-pole-gru

Plans with MPPI from several starts, prints the returns, and writes them with a plot of the angles.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import galvanax as gx
from galvanax.physics import MPPI, Dynamics, MJXDynamics, StateLayout, load_model
from galvanax.trainer.compile_cache import enable_compile_cache

CONTROL_DT = 0.02  # s
SATURATION = 10.0  # of the terminal cost: a pole that hangs costs 2 each step


@dataclasses.dataclass
class Plan:
    """Swing up a pole on a cart by MPPI.

    Attributes:
      system: what to swing up.
      run_dir: a run folder with learned dynamics of the system, to plan with beside the true model.
      start: hanging at rest, or near the top.
      seeds: number of starts.
      seconds: length of an episode.
      num_samples: sequences simulated for each control step.
      output_dir: where the figures and the plot go.
    """

    system: Literal["cart-pole", "double-cart-pole"] = "cart-pole"
    run_dir: Path | None = None
    start: Literal["hanging", "near-top"] = "hanging"
    seeds: int = 3
    seconds: float = 8.0
    num_samples: int = 128
    output_dir: Path = Path("runs/plan")


class Episode(NamedTuple):
    """States `(steps + 1, nq + nv)`, actions `(steps, nu)` and the seconds it took, compiling included."""

    states: np.ndarray
    actions: np.ndarray
    wall_clock: float


def pole_angles(state: jax.Array) -> jax.Array:
    """Angles of the poles from upright (rad), `(..., poles)`: each joint counts from the pole before."""
    return jnp.cumsum(state[..., 1 : state.shape[-1] // 2], axis=-1)


def height(state: jax.Array) -> jax.Array:
    """Height of the tip, from 0 (hanging) to 1 (upright)."""
    return (1 + jnp.mean(jnp.cos(pole_angles(state)), axis=-1)) / 2


def cost(state: jax.Array, action: jax.Array) -> jax.Array:
    """Low for poles that stand still upright in the middle of the rail."""
    position, velocity = state[0], state[state.shape[-1] // 2 :]
    poles = jnp.sum(1 - jnp.cos(pole_angles(state)))
    return poles + 0.1 * position**2 + 0.01 * jnp.sum(velocity**2) + 0.01 * jnp.sum(action**2)


def make_terminal_cost(model: mujoco.MjModel) -> Callable[[jax.Array], jax.Array]:
    """What it costs to stay upright from a state on, by the Riccati equation of the system linearised there.

    Two poles fall apart so fast that no open-loop plan holds them for a second: without an end that counts on being
    controlled, the planner can't tell a good plan from a bad one. Far from the top, where the linear system says
    nothing, the cost grows with its logarithm only.
    """
    data, size = mujoco.MjData(model), 2 * model.nv
    a, b = np.zeros((size, size)), np.zeros((size, model.nu))
    mujoco.mjd_transitionFD(model, data, 1e-6, True, a, b, None, None)
    substeps = round(CONTROL_DT / model.opt.timestep)
    b = sum(np.linalg.matrix_power(a, i) @ b for i in range(substeps))
    a = np.linalg.matrix_power(a, substeps)
    upright = jnp.zeros(size)
    with jax.enable_x64(True):
        q = np.asarray(jax.hessian(cost)(jnp.zeros(size), jnp.zeros(model.nu))) / 2
        r = np.asarray(jax.hessian(cost, 1)(jnp.zeros(size), jnp.zeros(model.nu))) / 2
    value = q
    for _ in range(2000):
        gain = np.linalg.solve(r + b.T @ value @ b, b.T @ value @ a)
        value = q + a.T @ value @ (a - b @ gain)
    value = jnp.asarray(value, jnp.float32)
    layout = StateLayout.from_model(model)

    def terminal_cost(state: jax.Array) -> jax.Array:
        error = layout.difference(state, upright)
        return SATURATION * jnp.log1p(error @ value @ error / SATURATION)

    return terminal_cost


def make_planner(model: mujoco.MjModel, dynamics: Dynamics, settings: Plan) -> MPPI:
    """MPPI with settings for these systems."""
    low, high = model.actuator_ctrlrange.T
    # Swinging up takes foresight; holding up is easier without the samples that fall later.
    horizon, num_knots = (50, 13) if settings.start == "hanging" else (25, 7)
    return MPPI(
        dynamics=dynamics,
        cost=cost,
        terminal_cost=make_terminal_cost(model),
        action_min=low,
        action_max=high,
        noise_std=0.5,
        temperature=0.5,
        horizon=horizon,
        num_knots=num_knots,
        num_samples=settings.num_samples,
    )


def draw_start(model: mujoco.MjModel, start: str, seed: int) -> np.ndarray:
    """A state at rest: the poles hang or stand, a little off."""
    rng = np.random.default_rng(seed)
    state = np.zeros(model.nq + model.nv)
    state[1] = math.pi if start == "hanging" else 0.0
    state[: model.nq] += rng.uniform(-0.05, 0.05, model.nq)
    return state


def run_episode(
    model: mujoco.MjModel, step: Callable, plan: jax.Array, length: int, start: np.ndarray, seed: int, num_steps: int
) -> Episode:
    """Control on C MuJoCo, planning anew at every control step from the last `length` states."""
    began, data = time.perf_counter(), mujoco.MjData(model)
    data.qpos, data.qvel = start[: model.nq], start[model.nq :]
    # Before the first step, the poles were held where they start.
    states, actions = [start] * length, [np.zeros(model.nu)] * (length - 1)
    for t in range(num_steps):
        # The action at the present state is what we are looking for.
        past = np.array(states[-length:], np.float32), np.array([*actions, np.zeros(model.nu)][-length:], np.float32)
        plan, action, _ = step(plan, past, jax.random.fold_in(jax.random.key(seed), t))
        data.ctrl = action
        mujoco.mj_step(model, data, round(CONTROL_DT / model.opt.timestep))
        states.append(np.concatenate([data.qpos, data.qvel]))
        actions.append(np.asarray(action))
    seen = np.array(states[length - 1 :])
    return Episode(seen, np.array(actions[length - 1 :]), time.perf_counter() - began)


def summarize(episode: Episode) -> dict[str, float]:
    """Figures of an episode."""
    tip = np.asarray(height(jnp.asarray(episode.states[1:])))
    upright = tip > 0.95
    return {
        "mean_reward": float(tip.mean()),
        "upright": float(upright.mean()),
        "upright_last_2s": float(upright[-round(2 / CONTROL_DT) :].mean()),
        "wall_clock_s": episode.wall_clock,
    }


def plot(episodes: dict[str, list[Episode]], path: Path) -> None:
    """Draws the angles of the poles from upright, a column for each model."""
    figure = Figure(figsize=(5.5 * len(episodes), 6), layout="constrained")
    for column, (name, runs) in zip(figure.subplots(2, len(episodes), squeeze=False).T, episodes.items(), strict=True):
        for seed, episode in enumerate(runs):
            times = CONTROL_DT * np.arange(len(episode.states))
            angles = np.degrees(np.unwrap(pole_angles(jnp.asarray(episode.states)), axis=0))
            for pole, style in zip(range(angles.shape[1]), ("-", ":"), strict=False):
                label = f"start {seed}" if pole == 0 else None
                column[0].plot(times, angles[:, pole], style, color=f"C{seed}", label=label)
            column[1].plot(times, episode.states[:, 0], color=f"C{seed}")
        column[0].set(title=f"{name} model", ylabel="poles from upright (deg)\n2nd pole dotted")
        column[0].legend(frameon=False)
        column[1].set(xlabel="time (s)", ylabel="cart (m)")
        for axes in column:
            axes.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(path)


def main(settings: Plan) -> None:
    """Runs all starts with each model."""
    enable_compile_cache()
    model = load_model(settings.system)
    # Each with the number of past states that it wants to see.
    models: dict[str, tuple[Dynamics, int]] = {"true": (MJXDynamics(model, CONTROL_DT), 1)}
    if settings.run_dir is not None:
        learned = gx.GRUDynamics.load(settings.run_dir, system=model)
        if not math.isclose(learned.dt, CONTROL_DT, rel_tol=1e-3):
            raise gx.ConfigError(f"{settings.run_dir} learned steps of {learned.dt} s; expected {CONTROL_DT} s")
        models["learned"] = learned, learned.task.history
    episodes: dict[str, list[Episode]] = {}
    for name, (dynamics, length) in models.items():
        planner = make_planner(model, dynamics, settings)

        @jax.jit
        def step(plan, past, rng, planner=planner):
            return planner.plan(plan, planner.dynamics.init_history(*past), rng)

        episodes[name] = []
        for seed in range(settings.seeds):
            start = draw_start(model, settings.start, seed)
            num_steps = round(settings.seconds / CONTROL_DT)
            episode = run_episode(model, step, planner.init(), length, start, seed, num_steps)
            episodes[name].append(episode)
            figures = "  ".join(f"{key} {value:6.3f}" for key, value in summarize(episode).items())
            print(f"{settings.system}, {name} model, start {seed}:  {figures}", flush=True)
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    stem = settings.output_dir / f"{settings.system}-{settings.start}"
    report = {name: [summarize(episode) for episode in runs] for name, runs in episodes.items()}
    stem.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    plot(episodes, stem.with_suffix(".png"))
    print(f"Wrote {stem}.json and {stem}.png")


if __name__ == "__main__":
    main(tyro.cli(Plan))
