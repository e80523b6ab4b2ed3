"""How exact gradients through contact are, in float64: a table over models and solver iterations.

    uv run python benchmarks/physics_gradients.py [--models hopper walker go2 g1] [--iterations 1 4 30]

For each, the Jacobian of the state after some physics steps in contact, by reverse mode through `implicit_step`, beside

- forward mode through `mjx.step` with as many iterations;
- central differences of `mjx.step` with as many iterations;
- forward mode through `mjx.step` with many iterations, in which what the solver left unbalanced is applied as a force
  in each step: what the gradient of an unfinished solution means (see `implicit_step`). Where it has converged, that
  force is zero. With implicit damping (Euler without `eulerdamp="disable"`) the two differ at an unfinished solution.

Errors are relative to the largest entry of the Jacobian. It takes a quarter of an hour on two quiet cores.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import tyro

import galvanax as gx
from galvanax.physics.implicit_step import implicit_step
from galvanax.physics.quiet_mjx import mjx
from galvanax.trainer.compile_cache import enable_compile_cache

COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
LEG = """
  <body name="{side}_thigh" pos="0 {y} 0">
    <joint name="{side}_hip" axis="0 1 0" range="-1 1"/>
    <geom fromto="0 0 0 0 0 -.4" size=".05"/>
    <body pos="0 0 -.4">
      <joint name="{side}_knee" axis="0 1 0" range="-2 0"/>
      <geom fromto="0 0 0 0 0 -.4" size=".04"/>
      <body pos="0 0 -.4">
        <joint name="{side}_ankle" axis="0 1 0" range="-.7 .7"/>
        <geom name="{side}_heel" type="sphere" pos="-.05 0 -.05" size=".05"/>
        <geom name="{side}_toe" type="sphere" pos=".15 0 -.05" size=".05"/>
      </body>
    </body>
  </body>
"""
WALKER = f"""
<mujoco model="walker">
  <compiler autolimits="true" angle="radian"/>
  <option timestep=".004"/>
  <default>
    <geom type="capsule" contype="0" conaffinity="0"/>
    <joint damping=".5" armature=".01" frictionloss=".1"/>
    <pair friction=".8 .8"/>
  </default>
  <worldbody>
    <geom name="floor" type="plane" size="10 10 .1"/>
    <body name="torso" pos="0 0 .9">
      <joint type="slide" axis="1 0 0" damping="0" armature="0" frictionloss="0"/>
      <joint type="slide" axis="0 0 1" damping="0" armature="0" frictionloss="0"/>
      <joint axis="0 1 0" damping="0" armature="0" frictionloss="0"/>
      <geom fromto="0 0 0 0 0 .5" size=".07"/>
      {LEG.format(side="left", y=0.1)}{LEG.format(side="right", y=-0.1)}
    </body>
  </worldbody>
  <contact>
    {"".join(f'<pair geom1="floor" geom2="{s}_{p}"/>' for s in ("left", "right") for p in ("heel", "toe"))}
  </contact>
  <actuator>
    {"".join(f'<motor joint="{s}_{j}" gear="50"/>' for s in ("left", "right") for j in ("hip", "knee", "ankle"))}
  </actuator>
</mujoco>
"""


@dataclasses.dataclass
class Settings:
    """What is measured.

    Attributes:
      models: "walker" (planar, with implicit damping and friction loss), or a name that `gx.envs.load` knows.
      iterations: of the constraint solver.
      steps: physics steps.
      many: iterations of a solver that has converged.
    """

    models: tuple[str, ...] = ("hopper", "walker", "go2", "g1")
    iterations: tuple[int, ...] = (1, 4, 30)
    steps: int = 3
    many: int = 60


def in_contact(name: str) -> tuple[mujoco.MjModel, jax.Array]:
    """A model, and qpos, qvel and ctrl in one array: feet 2 mm in the ground, everything moving."""
    rng = np.random.default_rng(1)
    if name == "walker":
        model = mujoco.MjModel.from_xml_string(WALKER)
        qpos, height = np.array([0, 0, 0.05, 0.3, -0.5, 0.2, -0.2, -0.3, 0.3]), 1
    else:
        env = gx.envs.load(name)
        model, qpos, height = env.mj_model, env.mj_model.qpos0 + 0.05 * rng.normal(size=env.mj_model.nq), 1
        if isinstance(env, gx.envs.LeggedEnvironment):
            qpos, height = env.mj_model.qpos0.copy(), 2
            qpos[env.layout.qpos] = env.reference_pose
            qpos[3:7] = [0.999, 0.01, -0.02, 0.3]
            qpos[3:7] /= np.linalg.norm(qpos[3:7])
    data = mujoco.MjData(model)
    data.qpos = qpos
    mujoco.mj_kinematics(model, data)
    lowest = min(
        data.geom_xpos[g, 2] - model.geom_size[g, 0] for g in set(model.pair_geom1) | set(model.pair_geom2) if g
    )
    qpos[height] -= lowest + 0.002
    ctrl = 0.1 * rng.normal(size=model.nu) * np.where(model.actuator_ctrllimited, model.actuator_ctrlrange[:, 1], 1.0)
    return model, jnp.concatenate([jnp.asarray(part) for part in (qpos, 0.3 * rng.normal(size=model.nv), ctrl)])


def simulate(model: mjx.Model, step, steps: int):
    """A function of `[qpos, qvel, ctrl]` and forces `(steps, nv)` that returns `[qpos, qvel]`, and what is missing."""

    def run(inputs, forces):
        qpos, qvel, ctrl = jnp.split(inputs, [model.nq, model.nq + model.nv])
        blank = mjx.make_data(model).replace(ctrl=ctrl)

        def advance(carry, force):
            qpos, qvel, warm = carry
            data = blank.replace(qpos=qpos, qvel=qvel, qacc_warmstart=warm, qfrc_applied=force)
            data = step(model, data)
            missing = mjx.mul_m(model, data, data.qacc) - data.qfrc_smooth - data.qfrc_constraint
            return (data.qpos, data.qvel, jax.lax.stop_gradient(data.qacc_warmstart)), missing

        (qpos, qvel, _), missing = jax.lax.scan(advance, (qpos, qvel, jnp.zeros(model.nv)), forces)
        return jnp.concatenate([qpos, qvel]), missing

    return run


def reverse_mode(run):
    """Makes a function that returns the Jacobian `(outputs, inputs)`, the state, and what is missing."""

    def jacobian(inputs, forces):
        value, pullback, missing = jax.vjp(lambda x: run(x, forces), inputs, has_aux=True)
        return jax.vmap(pullback)(jnp.eye(value.size))[0], value, missing

    return jax.jit(jacobian, compiler_options=COMPILE)


def forward_mode(run):
    """Makes a function that returns the Jacobian."""

    def jacobian(inputs, forces):
        return jax.jacfwd(lambda x: run(x, forces)[0])(inputs)

    return jax.jit(jacobian, compiler_options=COMPILE)


def central_differences(run, nudge=1e-6):
    """Makes a function that returns the Jacobian, and the state."""
    states_of = jax.jit(jax.vmap(lambda x, forces: run(x, forces)[0], (0, None)), compiler_options=COMPILE)

    def jacobian(inputs, forces):
        nudges = nudge * jnp.concatenate([jnp.eye(inputs.size), -jnp.eye(inputs.size), jnp.zeros((1, inputs.size))])
        states = states_of(inputs + nudges, forces)
        return (states[: inputs.size] - states[inputs.size : -1]).T / (2 * nudge), states[-1]

    return jacobian


def error(found, expected) -> float:
    """Relative to the largest entry."""
    return float(jnp.max(jnp.abs(found - expected)) / jnp.max(jnp.abs(expected)))


def main(settings: Settings) -> None:
    """Prints a row for each model and number of iterations."""
    jax.config.update("jax_enable_x64", True)
    enable_compile_cache()
    print("| model | iterations | forward mode | central differences | missing as a force | states | missing | |")
    print("|---|---|---|---|---|---|---|---|")
    for name in settings.models:
        model, inputs = in_contact(name)
        model.opt.ls_iterations, model.opt.tolerance, model.opt.iterations = 50, 0, settings.many
        none = jnp.zeros((settings.steps, model.nv))
        exact = forward_mode(simulate(mjx.put_model(model), mjx.step, settings.steps))
        for iterations in settings.iterations:
            begin = time.perf_counter()
            model.opt.iterations = iterations
            ours, plain = (simulate(mjx.put_model(model), step, settings.steps) for step in (implicit_step, mjx.step))
            found, state, missing = reverse_mode(ours)(inputs, none)
            differences, plain_state = central_differences(plain)(inputs, none)
            print(
                f"| {name} | {iterations} | {error(found, forward_mode(plain)(inputs, none)):.1e} "
                f"| {error(found, differences):.1e} | {error(found, exact(inputs, missing)):.1e} "
                f"| {jnp.max(jnp.abs(state - plain_state)):.0e} | {jnp.max(jnp.abs(missing)):.1e} N·m "
                f"| {time.perf_counter() - begin:.0f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Settings))
