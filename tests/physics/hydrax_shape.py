"""Stand-ins for hydrax's classes, with the public signatures of its commit e06f1446 (March 2026).

`test_hydrax.py` compares the signatures with the real ones where hydrax is installed. Inside, they do as little as
shows what a controller asks of `eval_rollouts`: a spline of constant pieces, and the mean over domains.
"""

import abc

import flax.struct
import jax
import jax.numpy as jnp

from galvanax.physics.quiet_mjx import mjx


class Task(abc.ABC):
    def __init__(self, mj_model, trace_sites=None, impl="jax"):
        self.mj_model, self.model = mj_model, mjx.put_model(mj_model, impl=impl)
        limited, (low, high) = mj_model.actuator_ctrllimited, mj_model.actuator_ctrlrange.T
        self.u_min, self.u_max = jnp.where(limited, low, -jnp.inf), jnp.where(limited, high, jnp.inf)
        self.dt = mj_model.opt.timestep
        self.trace_site_ids = jnp.array([mj_model.site(name).id for name in trace_sites or ()], int)

    @abc.abstractmethod
    def running_cost(self, state, control): ...

    @abc.abstractmethod
    def terminal_cost(self, state): ...

    def get_trace_sites(self, state):
        return state.site_xpos[self.trace_site_ids]

    def domain_randomize_model(self, rng):
        return {}

    def domain_randomize_data(self, data, rng):
        return {}

    def make_data(self, **kwargs):
        return mjx.make_data(self.mj_model, **kwargs)


class SamplingParams(flax.struct.PyTreeNode):
    tk: jax.Array
    mean: jax.Array
    rng: jax.Array


class SamplingBasedController(abc.ABC):
    def __init__(
        self, task, num_randomizations, risk_strategy, seed, plan_horizon, spline_type="zero", num_knots=4, iterations=1
    ):
        assert risk_strategy is None
        assert spline_type == "zero"
        self.task, self.model, self.dt = task, task.model, task.dt
        self.plan_horizon, self.num_knots, self.iterations = plan_horizon, num_knots, iterations
        self.ctrl_steps = round(plan_horizon / task.dt)
        self.num_randomizations, self.randomized_axes = num_randomizations, None
        if num_randomizations > 1:
            drawn = jax.vmap(task.domain_randomize_model)(jax.random.split(jax.random.key(seed), num_randomizations))
            self.model = task.model.tree_replace(drawn)
            nothing = jax.tree.map(lambda leaf: None, task.model)
            self.randomized_axes = nothing.tree_replace(dict.fromkeys(drawn, 0))

    def interp_func(self, times, knot_times, knots):
        return knots[:, jnp.searchsorted(knot_times, times, side="right") - 1]

    def optimize(self, state, params):
        times = state.time + jnp.linspace(0.0, self.plan_horizon, self.num_knots)
        params = params.replace(tk=times, mean=self.interp_func(times, params.tk, params.mean[None])[0])

        def improve(params, _):
            knots, params = self.sample_knots(params)
            rng, key = jax.random.split(params.rng)
            limited = jnp.clip(knots, self.task.u_min, self.task.u_max)
            rollouts = self.rollout_with_randomizations(state, times, limited, key)
            return self.update_params(params.replace(rng=rng), rollouts), rollouts

        params, rollouts = jax.lax.scan(improve, params, length=self.iterations)
        return params, jax.tree.map(lambda leaf: leaf[-1], rollouts)

    def rollout_with_randomizations(self, state, tk, knots, rng):
        count = self.num_randomizations
        states = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), state)
        if count > 1:
            drawn = jax.vmap(self.task.domain_randomize_data)(states, jax.random.split(rng, count))
            states = states.tree_replace(drawn)
        controls = self.interp_func(jnp.linspace(tk[0], tk[-1], self.ctrl_steps), tk, knots)
        over_domains = jax.vmap(self.eval_rollouts, in_axes=(self.randomized_axes, 0, None, None))
        _, rollouts = over_domains(self.model, states, controls, knots)
        first = jax.tree.map(lambda leaf: leaf[0], rollouts)
        return first.replace(costs=rollouts.costs.mean(0))

    def eval_rollouts(self, model, state, controls, knots):
        raise AssertionError("the adapter should have taken over")

    def init_params(self, initial_knots=None, seed=0):
        mean = jnp.zeros((self.num_knots, self.task.model.nu)) if initial_knots is None else initial_knots
        return SamplingParams(jnp.linspace(0.0, self.plan_horizon, self.num_knots), mean, jax.random.key(seed))

    @abc.abstractmethod
    def sample_knots(self, params): ...

    @abc.abstractmethod
    def update_params(self, params, rollouts): ...

    def get_action(self, params, t):
        return self.interp_func(t, params.tk, params.mean[None])[0]


class MPPI(SamplingBasedController):
    def __init__(
        self,
        task,
        num_samples,
        noise_level,
        temperature,
        num_randomizations=1,
        risk_strategy=None,
        seed=0,
        plan_horizon=1.0,
        spline_type="zero",
        num_knots=4,
        iterations=1,
    ):
        super().__init__(
            task, num_randomizations, risk_strategy, seed, plan_horizon, spline_type, num_knots, iterations
        )
        self.num_samples, self.noise_level, self.temperature = num_samples, noise_level, temperature

    def sample_knots(self, params):
        rng, key = jax.random.split(params.rng)
        noise = jax.random.normal(key, (self.num_samples, *params.mean.shape))
        return params.mean + self.noise_level * noise, params.replace(rng=rng)

    def update_params(self, params, rollouts):
        weights = jax.nn.softmax(-rollouts.costs.sum(1) / self.temperature)
        return params.replace(mean=jnp.tensordot(weights, rollouts.knots, 1))
