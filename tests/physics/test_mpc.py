import jax
import jax.numpy as jnp
import numpy as np
import pytest

from galvanax import ConfigError
from galvanax.physics import CEM, MPPI, unroll

DT, HORIZON = 0.1, 30
A, B = np.array([[1, DT], [0, 1]]), np.array([[DT**2 / 2], [DT]])
Q, R = np.diag([1.0, 0.1]), np.array([[0.1]])


class Plant:
    """Dynamics in closed form, whose history is the state."""

    def __init__(self, step):
        self._step = step

    def init_history(self, states, actions):
        return states[..., -1, :]

    def step(self, history, action):
        state = self._step(history, action)
        return state, state

    def rollout(self, history, actions):
        return unroll(self.step, history, actions)


def quadratic(state, action):
    return state @ Q @ state + action @ R @ action


DOUBLE_INTEGRATOR = Plant(lambda x, u: x @ A.T + u @ B.T)


def pendulum_step(state, action):
    """A rod of 1 m with a motor of 2 N·m, which can't lift it (m g l / 2 = 4.9 N·m) at once; zero is upright."""
    angle, rate = state[..., 0], state[..., 1]
    rate = rate + 0.05 * (14.7 * jnp.sin(angle) + 3.0 * action[..., 0])
    return jnp.stack([angle + 0.05 * rate, rate], axis=-1)


def make(kind=MPPI, **changes):
    settings = dict(
        dynamics=DOUBLE_INTEGRATOR,
        cost=quadratic,
        action_min=[-5.0],
        action_max=[5.0],
        noise_std=1.0,
        horizon=HORIZON,
        num_knots=10,
        num_samples=128,
    )
    return kind(**(settings | changes))


def control(planner, state, steps, seed=0):
    """States and actions of the closed loop, in one program."""

    @jax.jit
    def run(state, rng):
        def advance(carry, key):
            plan, state = carry
            plan, action, _ = planner.plan(plan, state, key)
            return (plan, planner.dynamics.step(state, action)[1]), (state, action)

        (_, last), (states, actions) = jax.lax.scan(advance, (planner.init(), state), jax.random.split(rng, steps))
        return jnp.concatenate([states, last[None]]), actions

    return jax.tree.map(np.asarray, run(jnp.asarray(state), jax.random.key(seed)))


def riccati_cost(state, steps):
    """The lowest cost of `steps` steps, where the state that an action leads to counts."""
    P = np.zeros((2, 2))
    for _ in range(steps):
        M = Q + P
        P = A.T @ M @ A - A.T @ M @ B @ np.linalg.solve(R + B.T @ M @ B, B.T @ M @ A)
    return state @ P @ state


@pytest.mark.parametrize(
    "planner",
    [
        make(temperature=0.05, noise_std=0.5, iterations=3),
        make(CEM, iterations=4, num_elites=12),
        make(temperature=0.05, noise_std=0.5, iterations=3, num_knots=None, horizon=20),
    ],
    ids=["mppi", "cem", "mppi, a knot each step"],
)
def test_closed_loop_is_near_the_riccati_optimum(planner):
    start = np.array([1.0, 0.0])
    states, actions = control(planner, start, 60)
    cost = sum(quadratic(x, u) for x, u in zip(states[1:], actions, strict=True))
    optimum = riccati_cost(start, 60)
    assert 0.999 < cost / optimum < 1.1


def test_pendulum_swings_up():
    planner = make(
        dynamics=Plant(pendulum_step),
        cost=lambda x, u: 1 - jnp.cos(x[0]) + 0.01 * x[1] ** 2 + 0.001 * u @ u,
        terminal_cost=lambda x: 10 * (1 - jnp.cos(x[0])),
        action_min=[-2.0],
        action_max=[2.0],
        horizon=40,
        temperature=0.5,
    )
    states, actions = control(planner, [np.pi, 0.0], 150)
    assert np.all(np.cos(states[-40:, 0]) > 0.95)
    assert np.abs(actions).max() <= 2.0


def test_limits_hold_and_keys_decide():
    planner = make(action_min=[-0.5], action_max=[0.25], temperature=0.1)
    step = jax.jit(planner.plan)
    far = jnp.array([-30.0, 0.0])
    plan, action, info = step(planner.init(), far, jax.random.key(1))
    assert info.actions.min() >= -0.5
    assert info.actions.max() <= 0.25
    for ours, again in zip((plan, action), step(planner.init(), far, jax.random.key(1)), strict=False):
        np.testing.assert_array_equal(ours, again)
    assert np.any(plan != step(planner.init(), far, jax.random.key(2))[0])
    # Where zero isn't allowed, a plan doesn't start there.
    np.testing.assert_array_equal(make(action_min=[1.0]).init(), np.ones((HORIZON, 1)))


def test_a_plan_moves_on_by_one_step():
    planner = make()
    plan, action, info = jax.jit(planner.plan)(planner.init(), jnp.array([1.0, 0.0]), jax.random.key(0))
    np.testing.assert_array_equal(action, info.actions[0])
    np.testing.assert_array_equal(plan[:-1], info.actions[1:])
    np.testing.assert_array_equal(plan[-1], info.actions[-1])


def test_mppi_step_in_numpy():
    planner = make(temperature=3.0, terminal_cost=lambda x: 5 * x @ x)
    plan, start, key = np.full((HORIZON, 1), 0.3, np.float32), np.array([1.0, -0.5]), jax.random.key(3)
    _, _, info = jax.jit(planner.plan)(plan, jnp.asarray(start), key)
    samples = np.asarray(planner.sample(plan, np.ones_like(plan), jax.random.split(key, 1)[0]), np.float64)
    np.testing.assert_array_equal(samples[0], plan)
    costs = np.zeros(len(samples))
    for i, actions in enumerate(samples):
        x = start
        for u in actions:
            x = A @ x + B @ u
            costs[i] += quadratic(x, u)
        costs[i] += 5 * x @ x
    weights = np.exp(-(costs - costs.min()) / 3.0)
    weights /= weights.sum()
    np.testing.assert_allclose(info.actions, np.tensordot(weights, samples, 1), atol=1e-4)
    np.testing.assert_allclose(info.best_cost, costs.min(), rtol=1e-5)
    np.testing.assert_allclose(info.effective_samples, 1 / np.sum(weights**2), rtol=1e-3)


def test_noise_is_linear_between_knots():
    planner = make(num_knots=3, horizon=5, num_samples=2000, action_min=[-99.0], action_max=[99.0])
    noise = np.asarray(planner.sample(jnp.zeros((5, 1)), jnp.full((5, 1), 2.0), jax.random.key(0)))[..., 0]
    np.testing.assert_allclose(noise[:, 1], (noise[:, 0] + noise[:, 2]) / 2, atol=1e-5)
    np.testing.assert_allclose(noise[:, 3], (noise[:, 2] + noise[:, 4]) / 2, atol=1e-5)
    np.testing.assert_allclose(noise[:, ::2].std(axis=0), 2.0, rtol=0.1)


def test_cem_keeps_the_elites():
    planner = make(CEM, num_elites=2, num_samples=4)
    weights = planner.weights(jnp.array([3.0, 1.0, jnp.inf, 2.0]))
    np.testing.assert_allclose(weights, [0, 0.5, 0, 0.5])
    samples = jnp.array([9.0, 1.0, 9.0, 2.0])[:, None, None]
    np.testing.assert_allclose(planner.next_std(jnp.ones((1, 1)), weights, samples, jnp.full((1, 1), 1.5)), [[0.5]])
    # One finite sample is an elite, infinite ones never are.
    np.testing.assert_allclose(planner.weights(jnp.array([jnp.inf, 1.0, jnp.inf, jnp.inf])), [0, 1, 0, 0])


@pytest.mark.parametrize("kind", [MPPI, CEM])
def test_diverged_samples_dont_count(kind):
    """Positive actions lead to NaN, which the cost doesn't look at."""

    def step(state, action):
        broken = jnp.any(action > 0, axis=-1, keepdims=True)
        return jnp.concatenate([state[..., :1] + action, jnp.where(broken, jnp.nan, state[..., 1:])], axis=-1)

    planner = make(kind, dynamics=Plant(step), cost=lambda x, u: (x[0] - 100) ** 2, horizon=2, num_knots=None)
    plan = jnp.full((2, 1), -1.0)
    _, _, info = jax.jit(planner.plan)(plan, jnp.zeros(2), jax.random.key(0))
    assert 0 < info.diverged < 1
    assert np.all(np.isfinite(info.actions))
    assert np.all(info.actions <= 0)
    assert np.all(info.actions > -1)
    # When all diverge, the plan stays.
    kept, _, info = jax.jit(planner.plan)(plan, jnp.array([jnp.nan, 0.0]), jax.random.key(0))
    assert info.diverged == 1
    assert info.effective_samples == 0
    np.testing.assert_array_equal(kept, plan)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (MPPI, {"horizon": 0}, r"horizon=0; expected at least 1"),
        (MPPI, {"num_knots": 31}, r"num_knots=31; expected 2 to 30"),
        (MPPI, {"action_min": [6.0]}, r"action_min=\[6.0\] and action_max=\[5.0\]"),
        (MPPI, {"noise_std": [1.0, 1.0]}, r"noise_std=\[1.0, 1.0\]; expected one positive number, or 1"),
        (MPPI, {"temperature": 0.0}, r"temperature=0.0; expected a positive"),
        (CEM, {"num_elites": 129}, r"num_elites=129; expected 1 to 128"),
    ],
)
def test_errors(kind, changes, message):
    with pytest.raises(ConfigError, match=message):
        make(kind, **changes)
