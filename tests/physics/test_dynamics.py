import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from galvanax import ConfigError, DataError
from galvanax.physics import MJXDynamics, load_model, mujoco_rollout, unroll

# A cart that its actuator pushes through a filter: the activation is a state that qpos and qvel don't show.
FILTERED = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody><body><joint name="s" type="slide" axis="1 0 0" damping="1"/><geom size=".1"/></body></worldbody>
  <actuator><general joint="s" dyntype="filter" dynprm="0.2" gainprm="50"/></actuator>
</mujoco>
"""


@pytest.fixture(scope="module")
def pendulum_dynamics(pendulum):
    return MJXDynamics(pendulum, control_dt=0.04)


def past(states, nu=1):
    """Histories of three states that end in `states`: only the last one counts."""
    older = jnp.full((*states.shape[:-1], 2, states.shape[-1]), jnp.nan)
    states = jnp.concatenate([older, jnp.asarray(states)[..., None, :]], axis=-2)
    return states, jnp.zeros((*states.shape[:-1], nu))


def test_rollouts_are_mujocos(pendulum, pendulum_dynamics):
    rng = np.random.default_rng(0)
    starts, actions = rng.normal(size=(2, 3, 2)), rng.uniform(-2, 2, (2, 3, 8, 1))
    # Two leading axes, without vmap.
    history = pendulum_dynamics.init_history(*past(starts))
    states = jax.jit(pendulum_dynamics.rollout)(history, jnp.asarray(actions))
    expected = mujoco_rollout(pendulum, starts.reshape(6, 2), actions.reshape(6, 8, 1), control_dt=0.04)
    np.testing.assert_allclose(states.reshape(6, 8, 2), expected[:, 1:], atol=2e-4)


def test_steps_are_a_rollout(pendulum_dynamics):
    actions = jnp.linspace(-2, 2, 4)[:, None]
    history = pendulum_dynamics.init_history(*past(jnp.array([1.0, -1.0])))
    states, step = jax.jit(pendulum_dynamics.rollout)(history, actions), jax.jit(pendulum_dynamics.step)
    for action, expected in zip(actions, states, strict=True):
        history, state = step(history, action)
        np.testing.assert_allclose(state, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_rollout_has_a_gradient(pendulum_dynamics):
    history = pendulum_dynamics.init_history(*past(jnp.array([1.0, -1.0])))
    final = jax.jit(lambda actions: pendulum_dynamics.rollout(history, actions)[-1, 0])
    actions = jnp.array([[0.5], [-1.0], [0.3]])
    gradient = jax.jit(jax.grad(final))(actions)
    for i in range(3):
        nudge = jnp.zeros_like(actions).at[i].set(0.1)
        np.testing.assert_allclose(gradient[i, 0], (final(actions + nudge) - final(actions - nudge)) / 0.2, rtol=2e-2)


def test_gradients_go_through_many_solver_iterations():
    """Their values are `test_implicit_step`'s matter; MJX's own step would raise an error."""
    model = load_model("cart-pole")
    model.opt.iterations = 4
    dynamics = MJXDynamics(model)
    history = dynamics.init_history(*past(jnp.zeros(4)))
    jax.make_jaxpr(jax.grad(lambda actions: dynamics.rollout(history, actions).sum()))(jnp.zeros((2, 1)))


def test_hidden_state_of_actuators_goes_on():
    model = mujoco.MjModel.from_xml_string(FILTERED)
    actions = np.array([[[1.0], [1.0], [-1.0], [0.0], [0.0]]])
    dynamics = MJXDynamics(model)
    states = jax.jit(dynamics.rollout)(dynamics.init_history(*past(np.zeros((1, 2)))), jnp.asarray(actions))
    np.testing.assert_allclose(states, mujoco_rollout(model, np.zeros((1, 2)), actions)[:, 1:], atol=1e-6)


def test_any_step_can_be_rolled_out():
    def step(history, action):
        history = history + jnp.sum(action, axis=-1, keepdims=True)
        return history, history * 10

    states = unroll(step, jnp.zeros((2, 1)), jnp.arange(6.0).reshape(2, 3, 1))
    np.testing.assert_allclose(states[..., 0], [[0, 10, 30], [30, 70, 120]])


def test_errors(pendulum, pendulum_dynamics):
    with pytest.raises(ConfigError, match=r"control_dt=0.03 s is no multiple"):
        MJXDynamics(pendulum, control_dt=0.03)
    with pytest.raises(DataError, match=r"states have 3 entries and actions 1; expected 2 and 1"):
        pendulum_dynamics.init_history(jnp.zeros((1, 3)), jnp.zeros((1, 1)))


@pytest.mark.behaviour("reports 23b")
def test_in_64_bits_rollouts_are_mujocos_to_rounding(pendulum):
    rng = np.random.default_rng(1)
    starts, actions = rng.normal(size=(3, 2)), rng.uniform(-2, 2, (3, 20, 1))
    with jax.enable_x64(True):
        dynamics = MJXDynamics(pendulum, control_dt=0.04)
        history = dynamics.init_history(*past(starts))
        states = np.asarray(jax.jit(dynamics.rollout)(history, jnp.asarray(actions)))
    expected = mujoco_rollout(pendulum, starts, actions, control_dt=0.04)
    assert states.dtype == np.float64
    np.testing.assert_allclose(states, expected[:, 1:], atol=1e-12)
