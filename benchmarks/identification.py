"""Known parameters, found again in noisy logs of C MuJoCo: a table of errors and seconds.

    uv run python benchmarks/identification.py [--systems pendulum cart-pole go2] [--seed 0]

The logs come from MuJoCo's C engine, with other masses, damping, friction, gains and a delay of actions, at times that
are no multiple of a control step. White noise is added to positions and velocities. `gx.identify` starts from the
unchanged model. A relative error beside its standard error tells whether the latter is honest.
"""

import copy
import dataclasses
from collections.abc import Callable

import mujoco
import numpy as np
import tyro
from rich.table import Table

import galvanax as gx
from galvanax.terminal import print_table
from galvanax.trainer.compile_cache import enable_compile_cache

# Deviations of the noise: of positions (rad, m) and of velocities (rad/s, m/s).
NOISE = {"pendulum": (0.01, 0.05), "cart-pole": (0.005, 0.05), "go2": (0.002, 0.05)}
Control = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass
class Settings:
    """What is measured.

    Attributes:
      systems: of pendulum, cart-pole and go2.
      seed: of motions, changes and noise.
      go2_windows: windows of 10 control steps for Go2; the time grows with them.
    """

    systems: tuple[str, ...] = ("pendulum", "cart-pole", "go2")
    seed: int = 0
    go2_windows: int = 64


def simulate(
    model: mujoco.MjModel, starts: np.ndarray, actions: np.ndarray, dt: float, delay: float, control: Control | None
) -> np.ndarray:
    """States `(N, T + 1, nq + nv)` of C MuJoCo, under actions `(N, T, action_dim)` that come `delay` seconds late.

    Contacts are solved to the end, as reality's are; a Go2's model stops after three iterations, for speed.
    """
    model = copy.copy(model)
    model.opt.iterations, model.opt.ls_iterations = 100, 50
    substeps, late = round(dt / model.opt.timestep), round(delay / model.opt.timestep)
    states = np.empty((len(starts), actions.shape[1] + 1, model.nq + model.nv))
    for trajectory, (start, sequence) in enumerate(zip(starts, actions, strict=True)):
        data = mujoco.MjData(model)
        data.qpos, data.qvel = start[: model.nq], start[model.nq :]
        states[trajectory, 0] = start
        for step in range(len(sequence) * substeps):
            action = sequence[max(step - late, 0) // substeps]
            data.ctrl = action if control is None else control(action, data.qpos, data.qvel)
            mujoco.mj_step(model, data)
            if (step + 1) % substeps == 0:
                states[trajectory, (step + 1) // substeps] = np.concatenate([data.qpos, data.qvel])
    return states


def add_noise(model: mujoco.MjModel, states: np.ndarray, noise: tuple[float, float], rng: np.random.Generator):
    """White noise; a rotation is turned."""
    noisy = states.copy()
    for row in noisy.reshape(-1, noisy.shape[-1]):
        qpos = row[: model.nq].copy()
        mujoco.mj_integratePos(model, qpos, noise[0] * rng.normal(size=model.nv), 1.0)
        row[: model.nq] = qpos
        row[model.nq :] += noise[1] * rng.normal(size=model.nv)
    return noisy


def smooth(rng: np.random.Generator, shape: tuple[int, int, int], dt: float) -> np.ndarray:
    """Sums of sines up to 2 Hz, in [-1, 1]."""
    frequency, phase = rng.uniform(0.3, 2, (2, *shape[::2])), rng.uniform(0, 2 * np.pi, (2, *shape[::2]))
    seconds = np.arange(shape[1])[None, :, None] * dt
    return np.sin(2 * np.pi * frequency[:, :, None] * seconds + phase[:, :, None]).mean(0)


def pendulum(rng: np.random.Generator):
    """A pole's mass, its damping and its joint's friction; the torque is known."""
    model = gx.physics.load_model("pendulum")
    truth = {"body_mass/pole": 1.3, "dof_damping/hinge": 0.1, "dof_frictionloss/hinge": 0.08}
    starts = rng.normal(size=(10, 2)) * [1.0, 2.0]
    return model, model, truth, starts, 2 * smooth(rng, (10, 250, 1), 0.02), 0.02, 0.0, None, {}


def cart_pole(rng: np.random.Generator):
    """Both masses, damping of cart and pole, friction of the rail, the delay; the motor is known."""
    model = gx.physics.load_model("cart-pole")
    truth = {
        "body_mass/cart": 1.4,
        "body_mass/pole": 0.15,
        "dof_damping/slider": 0.8,
        "dof_damping/hinge": 0.01,
        "dof_frictionloss/slider": 0.3,
        "action_delay": 0.03,
    }
    starts = rng.normal(size=(10, 4)) * [0.2, 1.0, 0.2, 1.0] + [0, np.pi, 0, 0]
    return model, model, truth, starts, smooth(rng, (10, 250, 1), 0.02), 0.02, 0.03, None, {"horizon": 25}


def go2(rng: np.random.Generator, windows: int):
    """The masses of all twelve links of the legs: 0.8 s each from a stand, joint targets that swing."""
    system = gx.envs.load_system("go2")
    model, targets = system.mj_model, system.targets
    legs = [body for body in range(2, model.nbody)]
    truth = {f"body_mass/{model.body(b).name}": float(model.body_mass[b] * rng.uniform(0.7, 1.4)) for b in legs}
    default, limits = np.array(targets.default), np.array(targets.torque_limits)
    kp, kd = np.array(targets.kp), np.array(targets.kd)
    joints = [model.joint(name) for name in targets.joints]
    qpos, qvel = ([int(getattr(j, name)[0]) for j in joints] for name in ("qposadr", "dofadr"))
    motors = [int(np.flatnonzero(model.actuator_trnid[:, 0] == j.id)[0]) for j in joints]
    low, high = model.jnt_range[[j.id for j in joints]].T

    def control(action: np.ndarray, q: np.ndarray, v: np.ndarray) -> np.ndarray:
        target = np.clip(default + targets.action_scale * action, low, high)
        torque = np.zeros(model.nu)
        torque[motors] = np.clip(kp * (target - q[qpos]) - kd * v[qvel], -limits, limits)
        return torque / model.actuator_gear[:, 0]

    standing = np.concatenate([model.qpos0, np.zeros(model.nv)])
    standing[qpos] = default
    starts = np.repeat(standing[None], 20, 0)
    actions = smooth(rng, (20, 40, 12), 0.02) * 0.5 / targets.action_scale
    return system, model, truth, starts, actions, 0.02, 0.0, control, {"horizon": 10, "max_windows": windows}


def main(settings: Settings) -> None:
    enable_compile_cache()
    build = {"pendulum": pendulum, "cart-pole": cart_pole, "go2": lambda rng: go2(rng, settings.go2_windows)}
    for name in settings.systems:
        rng = np.random.default_rng(settings.seed)
        given, model, truth, starts, actions, dt, delay, control, options = build[name](rng)
        exact = simulate(gx.set_parameters(model, truth), starts, actions, dt, delay, control)
        logs = {"states": add_noise(model, exact, NOISE[name], rng), "actions": actions, "dt": dt}
        found = gx.identify(given, logs, tuple(truth), **options)
        table = Table("parameter", "before", "true", "found", "error", "standard error", title=name)
        for path, true in truth.items():
            value, error = found.values[path], found.standard_errors[path]
            table.add_row(
                path, f"{found.initial[path]:.4g}", f"{true:.4g}", f"{value:.4g}", f"{value / true - 1:+.2%}",
                f"{error / true:.2%}",
            )  # fmt: skip
        print_table(table)
        print(
            f"{found.seconds:.0f} s, {found.iterations} iterations, {found.windows} windows of {found.horizon} steps; "
            f"error {found.error_before:.3g} -> {found.error_after:.3g} deviations of the noise\n"
        )


if __name__ == "__main__":
    main(tyro.cli(Settings))
