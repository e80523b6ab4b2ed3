"""brax's and Playground's training wrappers: what is taken off them, what is kept, and what is refused."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs as brax_envs
from brax.envs.base import Wrapper
from brax.envs.fast import Fast
from brax.envs.wrappers import training as brax_wrappers

import galvanax as gx
from galvanax.envs.auto_reset import AutoReset
from galvanax.envs.environment import State
from galvanax.envs.unwrap import ActionRepeat, unwrap


@dataclasses.dataclass(frozen=True)
class Count:
    """Counts its steps; the reward is the count, the end at `end`."""

    end: int = 100
    bonus: float = 0.0
    action_size: int = 1
    observation_size: int = 1
    dt: float = 0.1
    backend: str = "none"

    @property
    def unwrapped(self):
        return self

    def evaluation(self):
        return dataclasses.replace(self, bonus=1.0)

    def reset(self, rng):
        zero = jnp.zeros(())
        return State({"n": zero}, zero[None], zero, zero, {"n": zero}, {"action": zero})

    def step(self, state, action):
        n = state.pipeline_state["n"] + 1
        done = (n >= self.end).astype(jnp.float32)
        info = {**state.info, "action": action[0]}
        return state.replace(
            pipeline_state={"n": n}, obs=n[None], reward=n + self.bonus, done=done, metrics={"n": n}, info=info
        )


class Halved(Wrapper):
    """Somebody's own wrapper."""

    def step(self, state, action):
        after = self.env.step(state, action)
        return after.replace(reward=after.reward / 2)


def columns(envs, steps, count=2):
    """Figures of the first of some environments, stacked over the steps."""
    state, step, rows = jax.jit(envs.reset)(jax.random.split(jax.random.key(0), count)), jax.jit(envs.step), []
    for _ in range(steps):
        state = step(state, jnp.ones((count, 1)))
        names = ("truncation", "steps", "final_observation", "episode_return")
        rows.append({"done": state.done, "reward": state.reward} | {name: state.info[name] for name in names})
    return {name: np.array([np.ravel(row[name])[0] for row in rows]) for name in rows[0]}


@pytest.mark.behaviour("reports 6c")
def test_the_usual_call_of_brax(caplog):
    """`brax.envs.create` wraps twice, three times with a batch size."""
    with caplog.at_level(logging.WARNING, "galvanax"):
        env, limit = unwrap(brax_envs.create("fast", episode_length=3))
    assert type(env) is Fast
    assert limit == 3
    assert "Fast: took off AutoResetWrapper, EpisodeWrapper(episode_length=3, action_repeat=1)" in caplog.text
    assert "kept: a time limit of 3 control steps" in caplog.text
    batched, limit = unwrap(brax_envs.create("fast", batch_size=8))
    assert (type(batched), limit) == (Fast, 1000)
    assert unwrap(env) == (env, None)


@pytest.mark.parametrize("settings", [{}, {"auto_reset": False}, {"batch_size": 4}])
def test_it_is_the_environment_under_its_time_limit(settings):
    plain = columns(AutoReset(brax_envs.get_environment("fast"), 3), 7)
    wrapped = columns(AutoReset(brax_envs.create("fast", episode_length=3, **settings)), 7)
    np.testing.assert_array_equal(wrapped["truncation"], [0, 0, 1, 0, 0, 1, 0])
    for name, array in plain.items():
        np.testing.assert_array_equal(wrapped[name], array, err_msg=name)


def test_playgrounds_wrappers():
    wrap = pytest.importorskip("mujoco_playground").wrapper.wrap_for_brax_training
    assert unwrap(wrap(Count(), episode_length=7)) == (Count(), 7)
    assert unwrap(wrap(Count(), episode_length=7, full_reset=True)) == (Count(), 7)


@pytest.mark.behaviour("peers 126")
def test_an_action_is_held():
    """Three steps for each action; 7 are over after the third action, and the seventh is the last of whole thirds."""
    env, limit = unwrap(brax_wrappers.EpisodeWrapper(Count(), 7, 3))
    assert isinstance(env, ActionRepeat)
    assert limit == 3
    assert env.dt == pytest.approx(0.3)
    found = columns(AutoReset(brax_wrappers.EpisodeWrapper(Count(), 7, 3)), 4)
    np.testing.assert_array_equal(found["reward"], [1 + 2 + 3, 4 + 5 + 6, 7 + 8 + 9, 1 + 2 + 3])
    np.testing.assert_array_equal(found["final_observation"], [3, 6, 9, 3])
    np.testing.assert_array_equal(found["truncation"], [0, 0, 1, 0])
    np.testing.assert_array_equal(found["steps"], [1, 2, 3, 1])
    theirs = brax_wrappers.EpisodeWrapper(Count(), 7, 3)
    state = theirs.reset(jax.random.key(0))
    for reward, truncation in zip(found["reward"][:3], found["truncation"], strict=False):
        state = theirs.step(state, jnp.ones(1))
        assert (float(state.reward), float(state.info["truncation"])) == (reward, truncation)


def test_a_held_action_ends_with_its_episode():
    found = columns(AutoReset(brax_wrappers.EpisodeWrapper(Count(end=4), 100, 3)), 3)
    np.testing.assert_array_equal(found["reward"], [6, 4, 6])
    np.testing.assert_array_equal(found["done"], [0, 1, 0])
    np.testing.assert_array_equal(found["truncation"], 0)
    np.testing.assert_array_equal(found["final_observation"], [3, 4, 3])


def test_wrappers_in_wrappers():
    """6 steps of 2, 30 of which the inner one allows 4 of 6."""
    inner = brax_wrappers.EpisodeWrapper(Count(), 24, 3)
    env, limit = unwrap(brax_wrappers.AutoResetWrapper(brax_wrappers.EpisodeWrapper(inner, 30, 2)))
    assert limit == min(24 / 6, 30 / 2)
    assert columns(AutoReset(env, 4), 1)["reward"] == sum(range(1, 7))


def test_the_same_actions_are_held_in_evaluation():
    data = gx.EnvironmentDataModule(brax_wrappers.EpisodeWrapper(Count(), 7, 3))
    assert data.eval_env == ActionRepeat(dataclasses.replace(Count(), bonus=1.0), 3)
    assert data.max_episode_length == 3


def test_somebody_elses_wrapper_over_brax():
    """EpisodeWrapper under it keeps its own counts, under AutoReset's names, and cuts off by itself."""
    found = columns(AutoReset(Halved(brax_wrappers.EpisodeWrapper(Count(), 3, 1)), 1000), 7)
    np.testing.assert_array_equal(found["reward"], [0.5, 1, 1.5, 0.5, 1, 1.5, 0.5])
    np.testing.assert_array_equal(found["truncation"], [0, 0, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(found["steps"], [1, 2, 3, 1, 2, 3, 1])
    np.testing.assert_array_equal(found["final_observation"], [1, 2, 3, 1, 2, 3, 1])
    np.testing.assert_array_equal(found["episode_return"], [0.5, 1.5, 3, 0.5, 1.5, 3, 0.5])


def randomized():
    env = object.__new__(brax_wrappers.DomainRandomizationVmapWrapper)
    env.env = Count()
    return brax_wrappers.AutoResetWrapper(brax_wrappers.EpisodeWrapper(env, 5, 1))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (lambda: Halved(brax_envs.create("fast")), "Halved holds a AutoResetWrapper.*auto_reset=False"),
        (lambda: Halved(brax_wrappers.VmapWrapper(Count())), "Halved holds a VmapWrapper"),
        (randomized, "DomainRandomizationVmapWrapper draws properties for a batch.*in `reset`"),
    ],
)
def test_what_can_not_be_taken_off(env, message):
    for use in (AutoReset, lambda env: gx.EnvironmentDataModule(env).setup()):
        with pytest.raises(gx.ConfigError, match=message):
            use(env())


def test_whose_time_limit():
    wrapped = brax_envs.create("fast", episode_length=50)
    assert AutoReset(wrapped).episode_length == 50
    assert AutoReset(wrapped, 20).episode_length == 20
    assert gx.EnvironmentDataModule(wrapped).max_episode_length == 50
    assert gx.EnvironmentDataModule(wrapped, episode_length=20).max_episode_length == 20
    message = r"\.episode_length=60, and .* EpisodeWrapper cuts off after 50 control steps. Nearest: 50"
    for use in (lambda: AutoReset(wrapped, 60), gx.EnvironmentDataModule(wrapped, episode_length=60).setup):
        with pytest.raises(gx.ConfigError, match=message):
            use()
    judged = gx.EnvironmentDataModule(Count(), eval_environment=brax_wrappers.EpisodeWrapper(Count(), 40, 1))
    with pytest.raises(gx.ConfigError, match=r"eval_environment has an EpisodeWrapper .* after 40 .* episode's 1000"):
        judged.setup()
    dataclasses.replace(judged, episode_length=40).setup()


@pytest.mark.behaviour("reports 6c")
def test_ppo_learns_from_the_usual_call_of_brax():
    """To the time limit that it was given."""
    data = gx.EnvironmentDataModule(brax_envs.create("fast", episode_length=6), num_envs=8, num_eval_episodes=2)
    task = gx.PPOTask(unroll_length=4, num_epochs=1, num_minibatches=2, policy_hidden=(4,), value_hidden=(4,))
    result = gx.Trainer(max_steps=3).fit(task, data)
    assert result.metrics["val/episode_length"] == 6
