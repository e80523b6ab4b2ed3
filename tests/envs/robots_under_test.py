"""The legged robots as the tests step them, and what a step should give: C MuJoCo and plain numpy.

Compiling a robot's step takes tens of seconds, so there is one program per robot, for `N` environments, in which noise
and pushes are on and the observation is a dict. Its random properties are off. What is expected here is computed by
names from `robot_facts.json`, without the library.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from galvanax.envs.environment import State
from galvanax.envs.legged.legged import LeggedEnvironment
from galvanax.envs.randomization import Randomization
from galvanax.envs.registry import load

FACTS = json.loads((Path(__file__).parent / "robot_facts.json").read_text())
ROBOTS = tuple(FACTS)
HUMANOIDS = ("g1", "h1", "h1_2")
N = 16  # environments side by side
DT = 0.02
ACTION_SCALE = 0.25
FEET = {
    "go2": ("FL_calf", "FR_calf", "RL_calf", "RR_calf"),
    "g1": ("left_ankle_roll_link", "right_ankle_roll_link"),
    "h1": ("left_ankle_link", "right_ankle_link"),
    "h1_2": ("left_ankle_roll_link", "right_ankle_roll_link"),
}
FOOT_POINT = {"go2": (-0.002, 0, -0.213), "g1": (0, 0, 0), "h1": (0, 0, 0), "h1_2": (0, 0, 0)}
HIPS = {"go2": [], "g1": [1, 2, 7, 8], "h1": [0, 1, 5, 6], "h1_2": [0, 2, 6, 8]}
HEIGHT_TARGETS = {"go2": 0.25, "g1": 0.78, "h1": 1.05, "h1_2": 1.0}
PUSH_INTERVAL = 5.0  # s

_LEGGED = {"tracking_lin_vel": 1.0, "tracking_ang_vel": 0.5, "lin_vel_z": -2.0, "ang_vel_xy": -0.05}
_LEGGED |= {"joint_acc": -2.5e-7, "action_rate": -0.01}
_HUMANOID = _LEGGED | {"orientation": -1.0, "base_height": -10.0, "joint_pos_limits": -5.0, "alive": 0.15}
_HUMANOID |= {"hip_pos": -1.0, "contact_no_vel": -0.2, "feet_swing_height": -20.0, "contact": 0.18}
WEIGHTS = {
    "go2": _LEGGED | {"torques": -0.0002, "feet_air_time": 1.0, "collision": -1.0, "joint_pos_limits": -10.0},
    "g1": _HUMANOID | {"joint_vel": -0.001, "torques": -1e-5},
    "h1": _HUMANOID | {"collision": -1.0},
    "h1_2": _HUMANOID | {"joint_vel": -0.001, "torques": -1e-5},
}  # robots.json, by the names of our terms; all others are 0


@dataclasses.dataclass(frozen=True)
class Robot:
    """A robot, its environment and the environment's compiled functions on `N` states."""

    name: str
    env: LeggedEnvironment  # with noise, pushes and privileged observations
    model: mujoco.MjModel

    @property
    def facts(self) -> dict:
        return FACTS[self.name]

    @property
    def joints(self) -> list[str]:
        """In the order of actions and observations."""
        return list(self.facts["default_joint_pos"])

    @property
    def default_pose(self) -> np.ndarray:
        return np.array(list(self.facts["default_joint_pos"].values()), float)

    @property
    def standing(self) -> np.ndarray:
        """qpos of the default pose, feet on the ground."""
        return np.concatenate([[0, 0, self.facts["standing_height"], 1, 0, 0, 0], self.default_pose])

    @functools.cached_property
    def quiet(self) -> LeggedEnvironment:
        """As it is judged."""
        return load(self.name).evaluation()

    @functools.cached_property
    def resets(self) -> State:
        """N fresh episodes of the quiet environment."""
        return batched(self.quiet.reset)(jax.random.split(jax.random.key(1), N))

    @functools.cached_property
    def _step(self):
        return batched(self.env.step)

    def step(self, state: State, action: np.ndarray) -> State:
        # A fresh state has other observations than a stepped one: what is given must have one type.
        return self._step(state.replace(obs=jnp.zeros(N)), jnp.asarray(action, jnp.float32))

    def place(self, qpos=None, qvel=None, **info) -> State:
        """N states; what has no leading axis of N is the same for all."""
        model, start = self.model, self.resets
        qpos = self.standing if qpos is None else qpos
        data = start.pipeline_state.replace(
            qpos=jnp.asarray(np.broadcast_to(qpos, (N, model.nq)), jnp.float32),
            qvel=jnp.asarray(np.broadcast_to(0.0 if qvel is None else qvel, (N, model.nv)), jnp.float32),
        )
        changes = {
            name: jnp.asarray(np.broadcast_to(value, start.info[name].shape), start.info[name].dtype)
            for name, value in info.items()
        }
        return start.replace(pipeline_state=data, info={**start.info, **changes})


def batched(function):
    """Vmapped and compiled, in half the time that it would take to compile it for speed."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(jax.vmap(function), compiler_options=options)


@functools.cache
def robot(name: str) -> Robot:
    """Compiled at most once in a test session."""
    pushes = Randomization(push_interval=PUSH_INTERVAL, push_velocity=1.5, push_angular=0.5)
    env = dataclasses.replace(load(name), privileged=True, randomization=pushes)
    model = mujoco.MjModel.from_xml_path(str(_file(name)))
    # As many iterations of the solver. But in a line search C gets less far in 5 steps than MJX: its answer with 50 is
    # MJX's with 5 (`test_one_physics_step`).
    model.opt.ls_iterations = 50
    return Robot(name, env, model)


def _file(name: str) -> Path:
    return Path(__file__).parents[2] / "galvanax" / "envs" / "robots" / f"{name}.xml"


def rotation(quat: np.ndarray) -> np.ndarray:
    """The matrix that turns the trunk's frame into the world's."""
    w, x, y, z = np.asarray(quat, float) / np.linalg.norm(quat)
    return np.array(
        [
            [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
        ]
    )


def quat_of(roll: float = 0.0, pitch: float = 0.0, yaw: float = 0.0) -> np.ndarray:
    """First roll about x, then pitch about y, then yaw about z, all fixed axes of the world."""
    quat = np.array([1.0, 0, 0, 0])
    for axis, angle in enumerate((roll, pitch, yaw), start=1):
        turn = np.zeros(4)
        turn[0], turn[axis] = np.cos(angle / 2), np.sin(angle / 2)
        product = np.zeros(4)
        mujoco.mju_mulQuat(product, turn, quat)
        quat = product
    return quat


def by_joint(model: mujoco.MjModel, joints: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Indices into qpos and qvel."""
    found = [model.joint(name) for name in joints]
    return np.array([j.qposadr[0] for j in found]), np.array([j.dofadr[0] for j in found])


def random_states(this: Robot, seed: int, count: int = N) -> tuple[np.ndarray, np.ndarray]:
    """qpos and qvel, turned any way round, tilted, moving, with the lowest foot a little in the ground.

    Some are nearly level, on many feet, others on one.
    """
    rng = np.random.default_rng(seed)
    model, data = this.model, mujoco.MjData(this.model)
    feet = np.unique(model.pair_geom2)
    rows = []
    for _ in range(count):
        data.qpos[:] = this.standing
        data.qpos[:2] = rng.uniform(-1, 1, 2)
        wild = rng.uniform(0, 1) ** 2
        data.qpos[3:7] = quat_of(*rng.uniform(-0.25, 0.25, 2) * wild, rng.uniform(-np.pi, np.pi))
        data.qpos[7:] += rng.uniform(-0.15, 0.15, model.nq - 7) * wild
        mujoco.mj_kinematics(model, data)
        lowest = (data.geom_xpos[feet, 2] - model.geom_size[feet, 0]).min()
        data.qpos[2] -= lowest + rng.uniform(0, 0.004)
        rows.append(data.qpos.copy())
    return np.array(rows), rng.uniform(-0.5, 0.5, (count, model.nv))


def observation_parts(this: Robot, qpos, qvel, command, last_action, step) -> dict[str, np.ndarray]:
    """What each part of the observation should be, without noise, for one state."""
    into_trunk = rotation(qpos[3:7]).T
    positions, velocities = by_joint(this.model, this.joints)
    phase = 2 * np.pi * (step * DT % 0.8) / 0.8
    parts = {
        "lin_vel": into_trunk @ qvel[:3] * 2.0,
        "ang_vel": qvel[3:6] * 0.25,
        "gravity": into_trunk @ [0, 0, -1],
        "command": np.asarray(command) * [2.0, 2.0, 0.25],
        "joint_pos": np.asarray(qpos)[positions] - this.default_pose,
        "joint_vel": np.asarray(qvel)[velocities] * 0.05,
        "last_action": np.asarray(last_action),
        "phase": np.array([np.sin(phase), np.cos(phase)]),
    }
    parts.pop("phase" if this.name == "go2" else "lin_vel")
    return parts


def simulate(this: Robot, qpos, qvel, action, steps: int = 1) -> tuple[mujoco.MjData, np.ndarray]:
    """Control steps in C MuJoCo, PD torques anew in each timestep; and the last torques by joint."""
    model, facts = this.model, this.facts
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = qpos, qvel
    positions, velocities = by_joint(model, this.joints)
    kp, kd, limit = (np.array([facts[key][joint] for joint in this.joints]) for key in ("kp", "kd", "effort"))
    motors = [model.actuator(joint.removesuffix("_joint")).id for joint in this.joints]
    for _ in range(steps * round(DT / model.opt.timestep)):
        target = this.default_pose + ACTION_SCALE * np.asarray(action)
        torques = np.clip(kp * (target - data.qpos[positions]) - kd * data.qvel[velocities], -limit, limit)
        data.ctrl[motors] = torques
        mujoco.mj_step(model, data)
    return data, torques


def contact_forces(model: mujoco.MjModel, data: mujoco.MjData, bodies: list[int]) -> np.ndarray:
    """Sum of the contact forces on each body (N, world), of the last step."""
    total = np.zeros((model.nbody, 3))
    for index in range(data.ncon):
        force = np.zeros(6)
        mujoco.mj_contactForce(model, data, index, force)
        world = data.contact[index].frame.reshape(3, 3).T @ force[:3]
        first, second = model.geom_bodyid[data.contact[index].geom]
        total[first] -= world
        total[second] += world
    return total[bodies]
