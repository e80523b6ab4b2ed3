"""The terrain's curriculum under a robot that can't walk yet: where early falls leave the levels, by two rules.

    uv run python benchmarks/terrain_curriculum.py [--robot g1] [--num-robots 64] [--episodes 5]

Robots start on levels drawn at random, get random actions, and fall. Rule "whole episode" is legged_gym's and the
library's: a level down after less than half of |command| times the time limit. Rule "time lived", for comparison,
multiplies by the time until the fall instead. The steps are C MuJoCo's on the environment's own model with its own
gains, so that nothing has to be compiled; the levels are those of `Terrain.next_level`. Nothing is learned.
"""

import dataclasses
from typing import Literal

import jax
import mujoco
import numpy as np
import tyro

import galvanax as gx


@dataclasses.dataclass
class Settings:
    """What is tried.

    Attributes:
      robot: which.
      terrain: its kind.
      levels: from the easiest to the hardest.
      tile_size: m.
      num_robots: how many.
      episodes: one after the other.
      limit: control steps until a robot that hasn't fallen is taken away; its command asks for a whole episode's way.
      action_std: of the actions; they are random around the default pose.
      seed: of all.
    """

    robot: Literal["go2", "g1", "h1", "h1_2"] = "g1"
    terrain: Literal["slopes", "stairs", "rough", "mixed"] = "mixed"
    levels: int = 6
    tile_size: float = 3.0
    num_robots: int = 64
    episodes: int = 5
    limit: int = 250
    action_std: float = 0.5
    seed: int = 0


@dataclasses.dataclass
class Episode:
    """What the curriculum sees of one episode: m, m/s, s."""

    walked: float
    speed: float
    seconds: float
    fallen: bool


def play(env: gx.envs.LeggedEnvironment, origin: np.ndarray, settings: Settings, rng: np.random.Generator) -> Episode:
    """One robot's episode on its tile, from the environment's random start to its fall."""
    model, layout, (kp, kd) = env.mj_model, env.layout, env.gains
    data, default = mujoco.MjData(model), env.reference_pose
    data.qpos[:3] = origin + np.array([0, 0, env.initial_height])
    data.qpos[layout.qpos] = default * rng.uniform(*env.initial_joint_scale, default.size)
    data.qvel[:6] = rng.uniform(-env.initial_velocity, env.initial_velocity, 6)
    low, high = np.transpose([env.commands.lin_vel_x, env.commands.lin_vel_y])
    speed = float(np.linalg.norm(rng.uniform(low, high)))
    speed *= speed > env.commands.dead_zone
    fallen, steps, into_trunk = False, 0, np.zeros(9)
    while steps < settings.limit and not fallen:
        target = default + env.action_scale * settings.action_std * rng.normal(size=default.size)
        for _ in range(env.n_substeps):
            torque = kp * (target - data.qpos[layout.qpos]) - kd * data.qvel[layout.qvel]
            torque = np.clip(torque, -layout.limits, layout.limits)
            data.ctrl[:] = torque[layout.torque_of] / layout.gears
            mujoco.mj_step(model, data)
        steps += 1
        mujoco.mju_quat2Mat(into_trunk, data.qpos[3:7])
        gravity = -into_trunk.reshape(3, 3)[2]
        roll, pitch = np.arctan2(-gravity[1], -gravity[2]), np.arcsin(np.clip(gravity[0], -1, 1))
        fallen = abs(roll) > env.termination.roll or abs(pitch) > env.termination.pitch
    walked = float(np.linalg.norm(data.qpos[:2] - origin[:2]))
    return Episode(walked, speed, steps * env.control_dt, bool(fallen))


def main(settings: Settings) -> None:
    """Prints the levels after each episode."""
    terrain = gx.envs.Terrain(
        settings.terrain, levels=settings.levels, columns=4, tile_size=settings.tile_size, platform=1.0
    )
    env = dataclasses.replace(gx.envs.load(settings.robot), terrain=terrain)
    start = np.random.default_rng(settings.seed)
    first = start.integers(settings.levels, size=settings.num_robots)
    columns = start.integers(terrain.columns, size=settings.num_robots)
    print(settings)
    for rule in ("whole episode", "time lived"):
        level = first
        print(f"{rule}: mean level {level.mean():.2f}; robots by level {counts(level, settings)}")
        for number in range(1, settings.episodes + 1):
            origins = np.asarray(terrain.origin(level, columns))
            seeds = [np.random.default_rng((settings.seed, number, row)) for row in range(settings.num_robots)]
            episodes = [play(env, origin, settings, rng) for origin, rng in zip(origins, seeds, strict=True)]
            whole = env.episode_length * env.control_dt
            asked = [each.speed * (whole if rule == "whole episode" else each.seconds) for each in episodes]
            walked = np.array([each.walked for each in episodes])
            level = np.asarray(terrain.next_level(level, walked, np.array(asked), jax.random.key(number)))
            print(
                f"  after episode {number}: mean level {level.mean():.2f}; robots by level {counts(level, settings)}; "
                f"{sum(each.fallen for each in episodes)} fell, lived {np.mean([e.seconds for e in episodes]):.2f} s, "
                f"went {walked.mean():.2f} m",
                flush=True,
            )


def counts(level: np.ndarray, settings: Settings) -> str:
    """Robots on each level."""
    return " ".join(map(str, np.bincount(level, minlength=settings.levels)))


if __name__ == "__main__":
    main(tyro.cli(Settings))
