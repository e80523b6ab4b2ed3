"""The adapter under controllers of hydrax's shape (`hydrax_shape.py`), and under hydrax's own where it is installed."""

import importlib
import importlib.util
import inspect
import types

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from flax import nnx
from physics import hydrax_shape

import galvanax as gx
from galvanax.physics import DynamicsRollouts, StateLayout, load_model, refresh_kinematics, unroll
from galvanax.physics.quiet_mjx import mjx

DT = 0.1

# PyPI's package of that name is another one.
INSTALLED = bool(importlib.util.find_spec("hydrax") and importlib.util.find_spec("hydrax.alg_base"))


def hydrax_itself():
    names = {"Task": "task_base", "SamplingBasedController": "alg_base", "MPPI": "algs"}
    return types.SimpleNamespace(
        **{name: getattr(importlib.import_module(f"hydrax.{module}"), name) for name, module in names.items()}
    )


@pytest.fixture(params=["its shape", *(["hydrax"] if INSTALLED else [])])
def hydrax(request):
    return hydrax_shape if request.param == "its shape" else hydrax_itself()


@pytest.mark.skipif(not INSTALLED, reason="hydrax is not installed")
@pytest.mark.parametrize("name", ["Task", "SamplingBasedController", "MPPI"])
def test_its_shape_is_hydrax_s(name):
    ours, theirs = getattr(hydrax_shape, name), getattr(hydrax_itself(), name)
    methods = {key for key, value in vars(theirs).items() if inspect.isfunction(value) and key != "init_params"}
    assert methods <= set(dir(ours))
    for method in {*methods, "init_params"} & set(dir(theirs)):
        mine, real = (inspect.signature(getattr(one, method)).parameters for one in (ours, theirs))
        assert {key: value.default for key, value in mine.items()} == {key: one.default for key, one in real.items()}
        assert list(mine) == list(real)


FLOATING = """
<mujoco>
  <option timestep="0.1"/>
  <worldbody>
    <body>
      <freejoint/><geom type="box" size=".1 .2 .3"/>
      <body pos="0 0 .4"><joint name="h" axis="0 1 0"/><geom size=".1"/><site name="end" pos=".3 0 .2"/></body>
    </body>
  </worldbody>
  <actuator><motor joint="h"/></actuator>
</mujoco>
"""


def make_task(hydrax, model):
    """Costs that read where the bodies are, the control and the time; two domains that differ in where they start."""

    class Reach(hydrax.Task):
        def __init__(self):
            super().__init__(model, trace_sites=["end"])

        def running_cost(self, state, control):
            return state.site_xpos[0, 2] + jnp.sum(control * state.ctrl) + 100 * state.time

        def terminal_cost(self, state):
            return 3 * state.site_xpos[0, 2] + state.ctrl[0]

        def domain_randomize_model(self, rng):
            return {"body_mass": self.model.body_mass * jax.random.uniform(rng, minval=0.5, maxval=2.0)}

        def domain_randomize_data(self, data, rng):
            return {"qpos": data.qpos.at[0].add(jax.random.uniform(rng))}

    return Reach()


def make_controller(hydrax, task, dynamics, **settings):
    class Learned(DynamicsRollouts, hydrax.MPPI):
        pass

    controller = Learned(task, num_samples=3, noise_level=0.3, temperature=0.5, num_knots=2, **settings)
    controller.dynamics, controller.history_length = dynamics, 4
    return controller


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
def test_a_controller_simulates_with_our_dynamics(hydrax, floating, told):
    model, state = floating, random_state(floating)
    domains = 2 if told else 1  # which differ sideways: heights, and so costs, are the same
    settings = {"plan_horizon": 4 * DT, "num_randomizations": domains, "iterations": domains}
    controller = make_controller(hydrax, make_task(hydrax, model), Memory(), **settings)
    data = mjx.make_data(model).replace(
        qpos=jnp.asarray(state[: model.nq], jnp.float32),
        qvel=jnp.asarray(state[model.nq :], jnp.float32),
        time=jnp.float32(0.5),
    )
    past = (jnp.tile(jnp.asarray(state), (3, 1)), jnp.array([[0.0], [3.0], [0.0]])) if told else ()
    params = controller.init_params(seed=1)
    after, rollouts = jax.jit(controller.optimize)(data, params, *past)
    assert len(rollouts) == 4
    assert rollouts.trace_sites.shape == (3, 5, 1, 3)
    assert rollouts.knots.shape == (3, 2, 1)
    assert after.mean.shape == (2, 1)
    assert float(after.tk[0]) == pytest.approx(0.5)
    drift = 1.0 if told else 10.0
    for i in range(3):
        controls, at, costs, heights = np.asarray(rollouts.controls[i, :, 0], float), state.copy(), [], []
        for t, control in enumerate(controls):
            heights.append(true_site(model, at)[0][0, 2])
            costs.append(DT * (heights[-1] + control**2 + 100 * (0.5 + DT * t)))
            at[2] += control + drift
        heights.append(true_site(model, at)[0][0, 2])
        costs.append(3 * heights[-1] + controls[-1])
        np.testing.assert_allclose(rollouts.costs[i], costs, rtol=1e-4)
        np.testing.assert_allclose(rollouts.trace_sites[i, :, 0, 2], heights, rtol=1e-4)
    # MPPI's own update: the knots, weighted by what they cost.
    total = np.asarray(rollouts.costs, float).sum(1)
    weights = np.exp(-(total - total.min()) / 0.5)
    mean = (weights[:, None, None] * np.asarray(rollouts.knots)).sum(0) / weights.sum()
    np.testing.assert_allclose(after.mean, mean, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_learned_model_under_a_controller(hydrax):
    """What the controller sees is where the network says that the poles go; its steps are those of the network."""
    model = load_model("double-cart-pole")
    task = gx.GRUDynamicsTask(
        hidden_size=8, layout=StateLayout.from_model(model), action_dim=1, dt=0.02, history=4, horizon=5
    )
    network = task.build_model(nnx.Rngs(0))
    kernel = network.members.head.layers[-1].kernel
    kernel[...] = jax.random.normal(jax.random.key(0), kernel.shape)
    dynamics = gx.GRUDynamics(task, network)

    class SwingUp(hydrax.Task):
        def running_cost(self, state, control):
            return -state.site_xpos[self.trace_site_ids[0], 2] + jnp.sum(control**2)

        def terminal_cost(self, state):
            return jnp.sum(state.qvel**2)

    tip = model.site(model.nsite - 1).name
    controller = make_controller(hydrax, SwingUp(model, [tip]), dynamics, plan_horizon=0.1)
    data, params = controller.task.make_data(), controller.init_params()
    with pytest.raises(gx.ConfigError, match=r"GRUDynamics lasts 0.02 s, one of the controller 0.0\d+ s.*opt.timestep"):
        controller.optimize(data, params)
    model.opt.timestep = 0.02
    controller = make_controller(hydrax, SwingUp(model, [tip]), dynamics, plan_horizon=0.1)
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=(4, 1)).astype(np.float32)
    data = controller.task.make_data().replace(qpos=jnp.asarray(states[-1, :3]), qvel=jnp.asarray(states[-1, 3:]))
    params, rollouts = jax.jit(controller.optimize)(data, controller.init_params(), states, actions)
    history = dynamics.init_history(np.tile(states, (3, 1, 1)), np.tile(actions, (3, 1, 1)))
    predicted = np.asarray(jax.jit(dynamics.rollout)(history, rollouts.controls))
    for i in range(3):
        path = np.concatenate([states[-1:], predicted[i]])
        heights = [true_site(model, at)[0][model.site(tip).id, 2] for at in path]
        controls = np.asarray(rollouts.controls[i])
        costs = [*(0.02 * (controls[:, 0] ** 2 - heights[:-1])), (path[-1, 3:] ** 2).sum()]
        np.testing.assert_allclose(rollouts.costs[i], costs, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(rollouts.trace_sites[i, :, 0, 2], heights, atol=1e-4)
    low, high = model.actuator_ctrlrange[0]
    assert low <= float(controller.get_action(params, 0.0)[0]) <= high
