"""Advantages against plain loops, a case worked out by hand, and brax's estimator where the two must agree."""

import jax.numpy as jnp
import numpy as np
import pytest
from brax.training.agents.ppo.losses import compute_gae

from galvanax.tasks.gae import generalized_advantages

STEPS, ENVS = 23, 7
DISCOUNT, GAE_LAMBDA = 0.97, 0.9


def rollout(seed, terminations=0.0, truncations=0.0):
    """Rewards, values of the observations before the steps and after them, and how episodes ended, in float64.

    `after` is the value of the true observation that a step led to; where an episode ended, that is not the value of
    the next row, which belongs to a new one.
    """
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, STEPS, ENVS))
    terminated = rng.random((STEPS, ENVS)) < terminations
    truncated = ~terminated & (rng.random((STEPS, ENVS)) < truncations)
    after = np.concatenate([values[1:], rng.normal(size=(1, ENVS))])
    after = np.where(terminated | truncated, rng.normal(size=after.shape), after)
    return rewards, values, after, terminated, truncated


def by_loops(rewards, values, after, terminated, truncated, discount, gae_lambda):
    """The definition: a sum over the rest of the episode of (γλ)^l δ_{t+l}."""
    advantages = np.zeros_like(rewards)
    for env in range(rewards.shape[1]):
        for start in range(rewards.shape[0]):
            weight = 1.0
            for step in range(start, rewards.shape[0]):
                future = 0.0 if terminated[step, env] else after[step, env]
                error = rewards[step, env] + discount * future - values[step, env]
                advantages[start, env] += weight * error
                weight *= discount * gae_lambda
                if terminated[step, env] or truncated[step, env]:
                    break
    return advantages


def ours(rewards, values, after, terminated, truncated, discount=DISCOUNT, gae_lambda=GAE_LAMBDA):
    next_values = np.where(terminated, 0.0, after)
    done = (terminated | truncated).astype(np.float32)
    arrays = (jnp.asarray(array, jnp.float32) for array in (rewards, values, next_values, done))
    return np.asarray(generalized_advantages(*arrays, discount, gae_lambda))


@pytest.mark.behaviour("peers 100", "peers 101")
@pytest.mark.parametrize("gae_lambda", [0.0, GAE_LAMBDA, 1.0])
@pytest.mark.parametrize(("terminations", "truncations"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.2), (0.15, 0.15)])
def test_it_is_the_sum_over_the_rest_of_the_episode(terminations, truncations, gae_lambda):
    parts = rollout(int(100 * terminations + 10 * truncations), terminations, truncations)
    assert parts[3].any() == bool(terminations)
    assert parts[4].any() == bool(truncations)
    expected = by_loops(*parts, DISCOUNT, gae_lambda)
    np.testing.assert_allclose(ours(*parts, gae_lambda=gae_lambda), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.behaviour("peers 100", "peers 101")
def test_a_case_worked_out_by_hand():
    """γ = ½, λ = ½. Four steps: the second is cut off at a state worth 8, the third terminates, the fourth goes on."""
    rewards, values = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([[4.0], [6.0], [2.0], [1.0]])
    after = np.array([[6.0], [8.0], [100.0], [10.0]])  # nobody looks at the terminated one's
    terminated, truncated = np.array([[0], [0], [1], [0]], bool), np.array([[0], [1], [0], [0]], bool)
    # δ: 1 + 3 - 4 = 0; 2 + 4 - 6 = 0; 3 - 2 = 1; 4 + 5 - 1 = 8. Over no border does anything flow back.
    found = ours(rewards, values, after, terminated, truncated, 0.5, 0.5)
    np.testing.assert_array_equal(found[:, 0], [0, 0, 1, 8])
    # Without the borders the second would be 0 + ¼ (1 + ¼ 8), with the third bootstrapped from 0 as before.
    found = ours(rewards, values, np.array([[6.0], [8.0], [0.0], [10.0]]), 0 * terminated, 0 * truncated, 0.5, 0.5)
    np.testing.assert_array_equal(found[:, 0], [0.1875, 0.75, 3, 8])


def test_with_lambda_1_it_is_the_discounted_return_less_the_value():
    rewards, values, after, terminated, truncated = rollout(5, 0.1, 0.1)
    returns = np.zeros_like(rewards)
    for env in range(ENVS):
        for step in reversed(range(STEPS)):
            if terminated[step, env]:
                future = 0.0
            elif truncated[step, env] or step == STEPS - 1:
                future = after[step, env]
            else:
                future = returns[step + 1, env]
            returns[step, env] = rewards[step, env] + DISCOUNT * future
    found = ours(rewards, values, after, terminated, truncated, gae_lambda=1.0)
    np.testing.assert_allclose(found, returns - values, atol=1e-5)


@pytest.mark.parametrize("terminations", [0.0, 0.2])
def test_brax_agrees_where_nothing_is_truncated(terminations):
    """Its targets less the values are these advantages; its own advantages leave λ out of their first step."""
    rewards, values, after, terminated, truncated = rollout(6, terminations)
    found = ours(rewards, values, after, terminated, truncated)
    arrays = [jnp.asarray(a, jnp.float32) for a in (truncated, terminated, rewards, values, after[-1])]
    targets, advantages = compute_gae(*arrays, lambda_=GAE_LAMBDA, discount=DISCOUNT)
    np.testing.assert_allclose(found, targets - values, atol=2e-6)
    assert np.abs(found - advantages).max() > 0.1


@pytest.mark.behaviour("peers 103")
def test_brax_learns_nothing_from_a_truncated_step_and_we_do():
    rewards, values, after, terminated, truncated = rollout(7, 0.0, 0.2)
    found = ours(rewards, values, after, terminated, truncated)
    arrays = [jnp.asarray(a, jnp.float32) for a in (truncated, terminated, rewards, values, after[-1])]
    targets, _ = compute_gae(*arrays, lambda_=GAE_LAMBDA, discount=DISCOUNT)
    np.testing.assert_allclose((targets - values)[truncated], 0, atol=1e-6)
    exact = rewards + DISCOUNT * after - values
    np.testing.assert_allclose(found[truncated], exact[truncated], atol=1e-6)


def test_it_is_exact_beside_float64():
    """A long rollout at a high discount loses nothing but rounding."""
    rng = np.random.default_rng(8)
    rewards, values = 1 + 0.1 * rng.normal(size=(2, 1000, 1))
    after = np.concatenate([values[1:], values[:1]])
    never = np.zeros_like(rewards, bool)
    errors, expected, running = rewards + 0.999 * after - values, np.zeros(1000), 0.0
    for step in reversed(range(1000)):
        running = errors[step, 0] + 0.999 * 0.98 * running
        expected[step] = running
    found = ours(rewards, values, after, never, never, 0.999, 0.98)
    np.testing.assert_allclose(found[:, 0], expected, rtol=2e-6)
