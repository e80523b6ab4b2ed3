"""The adapter under minimal stand-ins with the shape of hydrax's Task and SamplingBasedController."""

from functools import partial

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from galvanax.physics import DynamicsRollouts, refresh_kinematics, unroll
from galvanax.physics.quiet_mjx import mjx

DT = 0.1


FLOATING = """
<mujoco>
  <worldbody>
    <body>
      <freejoint/><geom type="box" size=".1 .2 .3"/>
      <body pos="0 0 .4"><joint name="h" axis="0 1 0"/><geom size=".1"/><site name="end" pos=".3 0 .2"/></body>
    </body>
  </worldbody>
  <actuator><motor joint="h"/></actuator>
</mujoco>
"""


class Task:
    """Costs that read where the bodies are."""

    def __init__(self, model):
        self.model, self.dt = mjx.put_model(model), model.opt.timestep

    def running_cost(self, state, control):
        return state.site_xpos[0, 2] + jnp.sum(control**2) + 100 * state.time

    def terminal_cost(self, state):
        return 3 * state.site_xpos[0, 2] + state.ctrl[0]

    def get_trace_sites(self, state):
        return state.site_xpos


class Controller:
    """What hydrax's controller does around eval_rollouts, domain randomisation included."""

    def __init__(self, task, dt):
        self.task, self.dt = task, dt

    def optimize(self, state, params):
        states = jax.tree.map(lambda x: x[None], state)
        knots = params
        controls = jnp.repeat(knots, 2, axis=1)
        _, rollouts = jax.vmap(self.eval_rollouts, in_axes=(None, 0, None, None))(
            self.task.model, states, controls, knots
        )
        rollouts = rollouts.replace(costs=rollouts.costs[0])
        return params, rollouts

    @partial(jax.vmap, in_axes=(None, None, None, 0, 0))
    def eval_rollouts(self, model, state, controls, knots):
        raise AssertionError("the adapter should have taken over")


class Learned(DynamicsRollouts, Controller):
    pass


class Memory:
    """Positions drift by the history's mean action: shows which past was given."""

    def init_history(self, states, actions):
        return states[..., -1, :], jnp.mean(actions, axis=-2), jnp.array(states.shape[-2])

    def step(self, history, action):
        state, mean, length = history
        state = state.at[..., 2].add(action[..., 0] + mean[..., 0] + 10.0 * (length == 4))
        return (state, mean, length), state

    def rollout(self, history, actions):
        return unroll(self.step, history, actions)


@pytest.fixture(scope="module")
def floating():
    return mujoco.MjModel.from_xml_string(FLOATING)


def random_state(model, seed=0):
    rng = np.random.default_rng(seed)
    state = rng.normal(size=model.nq + model.nv)
    state[3:7] /= np.linalg.norm(state[3:7])
    return state


def true_site(model, state):
    data = mujoco.MjData(model)
    data.qpos = state[: model.nq]
    mujoco.mj_kinematics(model, data)
    return data.site_xpos.copy(), data.xpos.copy()


def test_kinematics_are_mujocos(floating):
    model, state = floating, random_state(floating)
    device_model = mjx.put_model(model)
    data = jax.jit(refresh_kinematics)(device_model, mjx.make_data(model), jnp.asarray(state))
    sites, bodies = true_site(model, state)
    np.testing.assert_allclose(data.site_xpos, sites, atol=1e-5)
    np.testing.assert_allclose(data.xpos, bodies, atol=1e-5)
    np.testing.assert_allclose(data.qvel, state[model.nq :], atol=1e-6)


@pytest.mark.parametrize("told", [True, False], ids=["past", "no past"])
def test_a_controller_simulates_with_our_dynamics(floating, told):
    model, state = floating, random_state(floating)
    controller = Learned(Task(model), DT)
    controller.dynamics, controller.history_length = Memory(), 4
    data = mjx.make_data(model).replace(
        qpos=jnp.asarray(state[: model.nq], jnp.float32), qvel=jnp.asarray(state[model.nq :], jnp.float32), time=0.5
    )
    knots = jnp.array([[[0.1], [0.2]], [[-0.1], [0.4]], [[0.0], [0.3]]])
    past = (jnp.tile(jnp.asarray(state), (3, 1)), jnp.array([[0.0], [3.0], [0.0]])) if told else (None, None)
    _, rollouts = jax.jit(controller.optimize)(data, knots, *past)
    assert len(rollouts) == 4
    assert rollouts.trace_sites.shape == (1, 3, 5, 1, 3)
    drift = 1.0 if told else 10.0
    for i in range(3):
        controls, at, costs, heights = np.repeat(knots[i, :, 0], 2), state.copy(), [], []
        for t, control in enumerate(controls):
            heights.append(true_site(model, at)[0][0, 2])
            costs.append(DT * (heights[-1] + control**2 + 100 * (0.5 + DT * t)))
            at[2] += control + drift
        heights.append(true_site(model, at)[0][0, 2])
        costs.append(3 * heights[-1] + controls[-1])
        np.testing.assert_allclose(rollouts.costs[i], costs, rtol=1e-4)
        np.testing.assert_allclose(rollouts.trace_sites[0, i, :, 0, 2], heights, rtol=1e-4)
    np.testing.assert_array_equal(rollouts.controls[0, :, :, 0], np.repeat(knots[..., 0], 2, axis=1))
