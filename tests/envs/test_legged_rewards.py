"""Reward terms on hand-made motions, their weights, and the rewards of real steps against C MuJoCo and numpy."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from envs.robots_under_test import (
    DT,
    FEET,
    FOOT_POINT,
    HEIGHT_TARGETS,
    HIPS,
    ROBOTS,
    WEIGHTS,
    N,
    by_joint,
    contact_forces,
    random_states,
    robot,
    rotation,
    simulate,
)

from galvanax.envs.legged.g1 import G1
from galvanax.envs.legged.rewards import TERMS, Motion
from galvanax.envs.legged.settings import RewardScales
from galvanax.envs.registry import load
from galvanax.errors import ConfigError

# Three joints and two feet, at rest, as asked.
REST = {
    "lin_vel": [0, 0, 0],
    "ang_vel": [0, 0, 0],
    "gravity": [0, 0, -1],
    "height": 0.8,
    "joint_pos": [0.1, 0.2, 0.3],
    "default_joint_pos": [0.1, 0.2, 0.3],
    "soft_limits": [[-1, 1]] * 3,
    "joint_vel": [0, 0, 0],
    "last_joint_vel": [0, 0, 0],
    "torques": [0, 0, 0],
    "action": [0, 0, 0],
    "last_action": [0, 0, 0],
    "command": [0, 0, 0],
    "foot_forces": [[0, 0, 0], [0, 0, 0]],
    "foot_heights": [0.08, 0.08],
    "foot_velocities": [[0, 0, 0], [0, 0, 0]],
    "air_time": [0, 0],
    "first_contact": [0, 0],
    "stance": [1, 0],
    "collisions": 0,
    "fallen": 0,
}
CONSTANTS = {"control_dt": 0.02, "tracking_sigma": 0.25, "height_target": 0.78, "swing_height": 0.08}
LEFT_STANDS = [[0, 0, 100], [0, 0, 0]]

CASES = [
    ("tracking_lin_vel", {}, 1.0),
    ("tracking_lin_vel", {"command": [0.5, 0, 9], "lin_vel": [0, 0, 7]}, 0.36787944),  # 1/e; neither yaw nor vertical
    ("tracking_lin_vel", {"command": [0.3, -0.4, 0]}, 0.36787944),
    ("tracking_lin_vel", {"command": [1, 0, 0], "lin_vel": [1, 0, 0], "ang_vel": [3, 3, 3]}, 1.0),
    ("tracking_ang_vel", {"command": [9, 9, 0.5], "ang_vel": [4, 4, 0]}, 0.36787944),
    ("tracking_ang_vel", {"command": [0, 0, -1], "ang_vel": [0, 0, -1]}, 1.0),
    ("lin_vel_z", {"lin_vel": [3, 3, -0.5]}, 0.25),
    ("ang_vel_xy", {"ang_vel": [0.3, -0.4, 5]}, 0.25),
    ("orientation", {}, 0.0),
    ("orientation", {"gravity": [0.48, -0.36, -0.8]}, 0.36),
    ("base_height", {"height": 0.68}, 0.01),
    ("base_height", {"height": 0.88}, 0.01),
    ("torques", {"torques": [1, -2, 3]}, 14.0),
    ("joint_vel", {"joint_vel": [1, -2, 3], "last_joint_vel": [9, 9, 9]}, 14.0),
    ("joint_acc", {"joint_vel": [0.1, 0, 0], "last_joint_vel": [0.3, 0, 0.2]}, 200.0),  # (0.2 / 0.02)², twice
    ("action_rate", {"action": [1, 0, -1], "last_action": [0, 0, 1]}, 5.0),
    ("joint_pos_limits", {"joint_pos": [1.5, -1.25, 0.9]}, 0.75),
    ("collision", {"collisions": 3}, 3.0),
    ("feet_air_time", {"command": [0.2, 0, 0], "air_time": [0.7, 0.3], "first_contact": [1, 0]}, 0.2),
    ("feet_air_time", {"command": [0, -0.2, 0], "air_time": [0.7, 0.3], "first_contact": [0, 1]}, -0.2),
    ("feet_air_time", {"command": [0.2, 0, 0], "air_time": [0.7, 0.9]}, 0.0),
    ("feet_air_time", {"command": [0.05, 0, 2], "air_time": [0.7, 0.3], "first_contact": [1, 0]}, 0.0),
    ("stand_still", {"joint_pos": [0.2, 0.1, 0.3]}, 0.2),
    ("stand_still", {"joint_pos": [0.2, 0.1, 0.3], "command": [0.2, 0, 0]}, 0.0),
    ("termination", {}, 0.0),
    ("termination", {"fallen": 1}, 1.0),
    ("alive", {}, 1.0),
    ("hip_pos", {"joint_pos": [9, 0.3, -0.4]}, 0.25),  # joints 1 and 2
    ("contact", {"foot_forces": LEFT_STANDS}, 2.0),
    ("contact", {"foot_forces": LEFT_STANDS, "stance": [0, 1]}, 0.0),
    ("contact", {"foot_forces": LEFT_STANDS, "stance": [1, 1]}, 1.0),
    ("contact", {"foot_forces": [[0, 0, 0.9], [0, 0, 0]], "stance": [0, 0]}, 2.0),  # below 1 N
    ("contact", {"foot_forces": [[5, 0, 0.9], [0, 0, 0]], "stance": [0, 0]}, 2.0),  # the vertical part counts
    ("contact_no_vel", {"foot_forces": LEFT_STANDS, "foot_velocities": [[1, -2, 2], [3, 0, 0]]}, 9.0),
    ("contact_no_vel", {"foot_forces": [[5, 0, 0], [0, 0, 0]], "foot_velocities": [[1, -2, 2], [3, 0, 0]]}, 9.0),
    ("feet_swing_height", {"foot_heights": [0.18, 0.28]}, 0.05),
    ("feet_swing_height", {"foot_heights": [0.18, 0.28], "foot_forces": LEFT_STANDS}, 0.04),
    ("feet_swing_height", {"foot_heights": [0.18, 0.28], "foot_forces": [[5, 0, 0], [0, 0, 0]]}, 0.04),
]


def motion(**changes) -> Motion:
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in (REST | changes).items()}
    return Motion(**arrays, **CONSTANTS, hip_joints=(1, 2))


def test_every_term_has_a_case():
    assert {name for name, _, _ in CASES} == set(TERMS)


@pytest.mark.parametrize(("name", "changes", "wanted"), CASES)
def test_term(name, changes, wanted):
    np.testing.assert_allclose(TERMS[name](motion(**changes)), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ROBOTS)
def test_weights_are_the_facts(name):
    found = {term: weight for term, weight in dataclasses.asdict(load(name).rewards).items() if weight}
    assert found == WEIGHTS[name]


@pytest.mark.parametrize("name", ROBOTS)
def test_numbers_of_the_facts(name):
    env = load(name)
    assert env.height_target == HEIGHT_TARGETS[name]
    assert list(env.hip_joints) == HIPS[name]
    assert (env.tracking_sigma, env.soft_limit, env.control_dt, env.only_positive_rewards) == (0.25, 0.9, 0.02, True)
    assert (env.gait.period, env.gait.stance, env.gait.swing_height) == (0.8, 0.55, 0.08)
    assert name == "go2" or env.gait.offset == (0.0, 0.5)
    random = env.randomization
    friction, push = ((0.5, 1.25), (15.0, 1.0)) if name == "go2" else ((0.1, 1.25), (5.0, 1.5))
    assert (random.friction, random.push_interval, random.push_velocity) == (friction, *push)
    assert random.added_trunk_mass == (None if name == "go2" else (-1.0, 3.0))


def test_weighted_sum():
    """G1 at rest, its hips bent, one foot in four wrong: 0.02 s times weights times values."""
    reward, terms = G1()._reward(motion())
    wanted = {
        "tracking_lin_vel": 0.02,
        "tracking_ang_vel": 0.01,
        "base_height": -10 * 0.0004 * 0.02,
        "alive": 0.15 * 0.02,
        "hip_pos": -0.13 * 0.02,
        "contact": 0.18 * 0.02,
    }
    assert set(terms) == {f"reward/{name}" for name in WEIGHTS["g1"]}
    for name, value in terms.items():
        np.testing.assert_allclose(value, wanted.get(name.removeprefix("reward/"), 0.0), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(reward, 0.03392, rtol=1e-5)


def test_only_positive_rewards():
    """A step is never worse than nothing, but for the fall itself; the terms are logged as they are."""
    bad = motion(lin_vel=[0, 0, 10], fallen=1)
    reward, terms = G1()._reward(bad)
    np.testing.assert_allclose(reward, 0)
    np.testing.assert_allclose(terms["reward/lin_vel_z"], -4.0)
    reward, _ = G1(only_positive_rewards=False)._reward(bad)
    np.testing.assert_allclose(reward, 0.03392 - 4.0, rtol=1e-6)
    rewards = dataclasses.replace(G1().rewards, termination=-5.0)
    np.testing.assert_allclose(G1(rewards=rewards)._reward(bad)[0], -0.1, rtol=1e-6)
    np.testing.assert_allclose(
        G1(rewards=rewards, only_positive_rewards=False)._reward(bad)[0], 0.03392 - 4.1, rtol=1e-6
    )


def test_a_term_of_a_users_own():
    @dataclasses.dataclass(frozen=True)
    class Scales(RewardScales):
        speed: float = 2.0

    class Fast(G1):
        reward_terms: ClassVar[dict] = {**TERMS, "speed": lambda motion: motion.lin_vel[0]}

    _, terms = Fast(rewards=Scales())._reward(motion(lin_vel=[3, 0, 0]))
    np.testing.assert_allclose(terms["reward/speed"], 2 * 3 * 0.02)
    with pytest.raises(ConfigError, match=r"G1\.rewards names 'speed'"):
        G1(rewards=Scales()).check()


def expected_terms(this, before, data, torques, action, last_action, command, step) -> dict[str, float]:
    """Every reward term of a control step that C MuJoCo made, unweighted, in numpy."""
    model, facts = this.model, this.facts
    positions, velocities = by_joint(model, this.joints)
    into_trunk = rotation(data.qpos[3:7]).T
    v, w, gravity = into_trunk @ data.qvel[:3], data.qvel[3:6], into_trunk @ [0, 0, -1]
    q, dq = data.qpos[positions], data.qvel[velocities]
    low, high = np.array([model.joint(name).range for name in facts["default_joint_pos"]]).T
    slack = (high - low) * 0.05  # 90 % of the range are free
    bodies = [model.body(name).id for name in FEET[this.name]]
    forces = contact_forces(model, data, bodies)
    heights, speeds = [], []
    for body in bodies:
        arm = data.xmat[body].reshape(3, 3) @ FOOT_POINT[this.name]
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_XBODY, body, velocity, 0)
        heights.append((data.xpos[body] + arm)[2])
        speeds.append(np.sum((velocity[3:] + np.cross(velocity[:3], arm)) ** 2))
    heights, speeds = np.array(heights), np.array(speeds)
    touching = np.linalg.norm(forces, axis=1) > 1
    phases = (step * DT / 0.8 + np.array([0.0, 0.5])) % 1
    return {
        "tracking_lin_vel": np.exp(-np.sum((command[:2] - v[:2]) ** 2) / 0.25),
        "tracking_ang_vel": np.exp(-((command[2] - w[2]) ** 2) / 0.25),
        "lin_vel_z": v[2] ** 2,
        "ang_vel_xy": w[0] ** 2 + w[1] ** 2,
        "orientation": gravity[0] ** 2 + gravity[1] ** 2,
        "base_height": (data.qpos[2] - HEIGHT_TARGETS[this.name]) ** 2,
        "torques": np.sum(torques**2),
        "joint_vel": np.sum(dq**2),
        "joint_acc": np.sum(((dq - before) / DT) ** 2),
        "action_rate": np.sum((action - last_action) ** 2),
        "joint_pos_limits": np.sum(np.maximum(low + slack - q, 0) + np.maximum(q - high + slack, 0)),
        "collision": 0.0,
        "feet_air_time": 0.0,
        "alive": 1.0,
        "hip_pos": np.sum(q[HIPS[this.name]] ** 2),
        "contact": 0.0 if this.name == "go2" else np.sum((forces[:, 2] > 1) == (phases < 0.55)),
        "contact_no_vel": np.sum(speeds[touching]),
        "feet_swing_height": np.sum((heights[~touching] - 0.08) ** 2),
    }


@pytest.mark.parametrize("name", ["go2", pytest.param("g1", marks=pytest.mark.slow)])
def test_rewards_of_real_steps(name):
    """From random states in contact: what each term makes of a step is what numpy makes of C MuJoCo's."""
    this, rng = robot(name), np.random.default_rng(11)
    qpos, qvel = random_states(this, seed=12)
    joints = len(this.joints)
    action, last = rng.uniform(-1, 1, (2, N, joints))
    before = rng.uniform(-1, 1, (N, joints))
    steps = np.arange(N) * 4 + 1  # on neither of the gait's edges, 2 and 22 of 40
    qpos[0, 7 + 3] = this.model.jnt_range[4, 1] + 0.02  # a knee or hip beyond its range, and held there
    action[0, 3] = (qpos[0, 7 + 3] - this.default_pose[3]) / 0.25
    state = this.place(qpos, qvel, last_action=last, last_joint_vel=before, step=steps - 1, heading=0.5)
    state = jax.device_get(this.step(state, action))
    found = {}
    for row in range(N):
        data, torques = simulate(this, qpos[row], qvel[row], action[row])
        terms = expected_terms(
            this, before[row], data, torques, action[row], last[row], state.info["command"][row], steps[row]
        )
        assert set(terms) >= set(WEIGHTS[name])
        total = 0.0
        for term, weight in WEIGHTS[name].items():
            wanted = terms[term] * weight * DT
            np.testing.assert_allclose(
                state.metrics[f"reward/{term}"][row],
                wanted,
                rtol=5e-3,
                atol=3e-3 * abs(weight) * DT,
                err_msg=f"{term}, row {row}",
            )
            found.setdefault(term, []).append(wanted)
            total += wanted
        np.testing.assert_allclose(state.reward[row], max(total, 0), rtol=5e-3, atol=1e-4)
    # Terms that are the same in all states show little; joints seldom leave their ranges.
    still = {"collision", "feet_air_time", "alive"}
    assert {term for term, values in found.items() if np.ptp(values) == 0} <= still
