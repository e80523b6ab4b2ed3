import jax
import jax.numpy as jnp
import numpy as np
import pytest
from envs.robots_under_test import N, batched, random_states, robot

from galvanax import ConfigError
from galvanax.envs import load, load_system, system_of
from galvanax.physics import MJXSystem, PendulumSystem, action_limits_of, rollout


def test_go2s_step_is_the_environments():
    """Within the joints' ranges, from the same states, on the ground."""
    this, system, rng = robot("go2"), load_system("go2"), np.random.default_rng(4)
    qpos, qvel = random_states(this, seed=5)
    actions = rng.uniform(-1, 1, (N, 12))
    low, high = action_limits_of(system)
    assert ((low < -1) & (high > 1)).all()
    expected = this.step(this.place(qpos, qvel), actions).pipeline_state
    assert (expected._impl.efc_force != 0).any(axis=1).mean() > 0.5
    states = jnp.asarray(np.concatenate([qpos, qvel], axis=1), jnp.float32)
    found = batched(system.step)(states, jnp.asarray(actions, jnp.float32))
    np.testing.assert_allclose(found[:, :19], expected.qpos, atol=2e-6)
    np.testing.assert_allclose(found[:, 19:], expected.qvel, atol=2e-4)


def test_cart_poles_step_is_the_environments():
    env, system = load("cart-pole-swing-up"), load_system("cart-pole")
    state = env.reset(jax.random.key(0))
    # At the end of its rail too.
    for qpos in ([0.1, 3.0], [2.01, 0.5]):
        data = state.pipeline_state.replace(qpos=jnp.array(qpos), qvel=jnp.array([1.0, -2.0]))
        for action in ([0.3], [-5.0]):
            after = jax.jit(env.step)(state.replace(pipeline_state=data), jnp.array(action)).pipeline_state
            found = jax.jit(system.step)(jnp.concatenate([data.qpos, data.qvel]), jnp.array(action))
            np.testing.assert_allclose(found, [*after.qpos, *after.qvel], rtol=1e-5, atol=1e-6)


def test_systems_by_name(tmp_path):
    assert load_system("pendulum") == PendulumSystem()
    assert load_system("pendulum", control_dt=0.1).control_dt == 0.1
    sizes = {"double-cart-pole": (6, 1), "hopper": (12, 3), "g1": (37, 12), "h1": (37, 10), "h1_2": (39, 12)}
    for name, size in sizes.items():
        system = load_system(name)
        assert isinstance(system, MJXSystem)
        assert system.action_dim == size[1]
        assert system.state_dim == system.mj_model.nq + system.mj_model.nv
    assert load_system("hopper", control_dt=0.02, iterations=7).substeps == 4
    path = tmp_path / "ball.xml"
    path.write_text(
        "<mujoco><option timestep='0.004'/><worldbody><body><freejoint/><geom size='.1'/></body></worldbody></mujoco>"
    )
    ball = load_system(str(path))
    assert (ball.state_dim, ball.action_dim, ball.control_dt) == (13, 0, 0.004)
    fall = rollout(load_system(str(path), control_dt=0.02), jnp.eye(13)[3], jnp.zeros((2, 0)))
    np.testing.assert_allclose(fall[-1, 9], -9.81 * 0.04, rtol=1e-5)


def test_a_system_of_any_settings():
    env = load("go2", {"action_scale": 0.5, "control_dt": 0.04, "kp": {"joint": 40.0}})
    system = system_of(env)
    assert (system.substeps, system.targets.action_scale, system.targets.kp[0]) == (8, 0.5, 40.0)


def test_errors():
    with pytest.raises(ConfigError, match=r"Unknown system 'go'.*Nearest: go2"):
        load_system("go")
    with pytest.raises(ConfigError, match=r"system_of got object; expected a LeggedEnvironment"):
        system_of(object())
