"""Episodes that end and begin by themselves, against one environment stepped by a plain loop; and other people's."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs as brax_envs
from brax.envs.wrappers import training as brax_wrappers

import galvanax as gx
from galvanax.envs import auto_reset
from galvanax.envs.auto_reset import AutoReset
from galvanax.envs.classic.cart_pole import CartPole
from galvanax.envs.environment import State
from galvanax.envs.registry import load

LIMIT, ENVS, STEPS = 6, 13, 40


@dataclasses.dataclass(frozen=True)
class Walk:
    """A random walk that ends outside ±2; each step shifts it by the action and noise from a key of its own."""

    action_size: int = 1
    observation_size: int = 2

    def reset(self, rng):
        start_rng, walk_rng = jax.random.split(rng)
        start = jax.random.uniform(start_rng, minval=-1, maxval=1)
        zero = jnp.zeros(())
        return State({"x": start}, jnp.stack([start, zero]), zero, zero, {"distance": zero}, {"rng": walk_rng, "n": 0})

    def step(self, state, action):
        rng, noise_rng = jax.random.split(state.info["rng"])
        x = state.pipeline_state["x"] + action[0] + 0.5 * jax.random.normal(noise_rng)
        n = state.info["n"] + 1
        return state.replace(
            pipeline_state={"x": x},
            obs=jnp.stack([x, n.astype(jnp.float32)]),
            reward=1 - x**2,
            done=(jnp.abs(x) > 2).astype(jnp.float32),
            metrics={"distance": jnp.abs(x)},
            info={**state.info, "rng": rng, "n": n},
        )


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def actions_of(count, seed=1):
    return 0.3 * jax.random.normal(jax.random.key(seed), (STEPS, count, 1))


def unroll(envs, keys, actions):
    """The state at the start, and the states after each step `(steps, envs, ...)`."""

    @jax.jit
    def run(keys, actions):
        state = envs.reset(keys)

        def step(state, action):
            after = envs.step(state, action)
            return after, after

        return state, jax.lax.scan(step, state, actions)[1]

    return run(keys, actions)


def host(state):
    """The figures of a state, as numpy arrays by name."""
    kept = ("final_observation", "truncation", "steps", "episode_return", "n")
    figures = {"obs": state.obs, "reward": state.reward, "done": state.done, "x": state.pipeline_state["x"]}
    figures |= {name: state.info[name] for name in kept} | {"distance": state.metrics["distance"]}
    figures["episode_distance"] = state.info["episode_metrics"]["distance"]
    return {name: np.asarray(array) for name, array in figures.items()}


def by_loop(key, actions):
    """One environment: reset, step, and reset again with the next key of its own stream."""
    env = Walk()
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    first, stream = jax.random.split(key)
    state, steps, total, distance, rows = reset(first), 0, 0.0, 0.0, []
    for action in actions:
        state = step(state, action)
        steps, total, distance = steps + 1, total + state.reward, distance + state.metrics["distance"]
        terminated = bool(state.done)
        over = terminated or steps == LIMIT
        row = {
            "final_observation": state.obs, "reward": state.reward, "done": float(over), "steps": steps,
            "truncation": float(over and not terminated), "episode_return": total,
            "distance": state.metrics["distance"], "episode_distance": distance,
        }  # fmt: skip
        if over:
            fresh, stream = jax.random.split(stream)
            state, steps, total, distance = reset(fresh), 0, 0.0, 0.0
        rows.append(row | {"obs": state.obs, "x": state.pipeline_state["x"], "n": state.info["n"]})
    return {name: np.array([np.asarray(row[name]) for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def walks():
    keys, actions = keys_of(ENVS), actions_of(ENVS)
    start, states = unroll(AutoReset(Walk(), LIMIT), keys, actions)
    return keys, actions, start, states


@pytest.mark.behaviour("peers 129", "reports 25")
def test_it_is_a_plain_loop_over_one_environment(walks):
    keys, actions, _, states = walks
    found = host(states)
    for env in range(ENVS):
        for name, column in by_loop(keys[env], actions[:, env]).items():
            # What is summed may be rounded once more or less inside one fused program.
            np.testing.assert_allclose(found[name][:, env], column, rtol=1e-5, atol=1e-6, err_msg=f"{name} of {env}")


def test_both_kinds_of_end_happen_and_are_told_apart(walks):
    found = host(walks[3])
    done, truncation, steps = found["done"], found["truncation"], found["steps"]
    outside = np.abs(found["final_observation"][..., 0]) > 2
    assert set(np.unique(done)) == set(np.unique(truncation)) == {0, 1}
    np.testing.assert_array_equal(done, outside | (steps == LIMIT))
    np.testing.assert_array_equal(truncation, ~outside & (steps == LIMIT))
    assert (outside & (steps == LIMIT)).any()  # both at once: it would have ended anyway
    assert steps.min() == 1
    assert steps.max() == LIMIT


@pytest.mark.behaviour("reports 25")
def test_the_last_observation_is_kept(walks):
    """`final_observation` is what the step led to; `obs` is what the policy sees next, in a new episode if need be."""
    found = host(walks[3])
    done = found["done"] > 0
    np.testing.assert_array_equal(found["obs"][~done], found["final_observation"][~done])
    np.testing.assert_array_equal(found["final_observation"][..., 1], found["steps"])
    np.testing.assert_array_equal(found["obs"][done][:, 1], 0)
    np.testing.assert_array_equal(found["obs"][..., 0], found["x"])
    np.testing.assert_allclose(found["reward"], 1 - found["final_observation"][..., 0] ** 2, rtol=1e-5, atol=1e-6)


@pytest.mark.behaviour("peers 129", "reports 25")
def test_no_start_is_ever_seen_twice(walks):
    _, _, start, states = walks
    found = host(states)
    starts = np.concatenate([np.asarray(start.obs[:, 0]), found["obs"][found["done"] > 0][:, 0]])
    assert len(starts) > 80
    assert len(np.unique(starts)) == len(starts)
    assert np.abs(starts).max() <= 1
    # Nor do two episodes share their noise: no step is the same twice.
    shifts = found["final_observation"][..., 0].ravel()
    assert len(np.unique(shifts)) == shifts.size


def test_sums_over_an_episode(walks):
    found = host(walks[3])
    for env in range(ENVS):
        total = length = 0.0
        for step in range(STEPS):
            total, length = total + found["reward"][step, env], length + 1
            assert found["episode_return"][step, env] == pytest.approx(total, rel=1e-5, abs=1e-5)
            assert found["steps"][step, env] == length
            if found["done"][step, env]:
                total = length = 0.0


@pytest.mark.parametrize("share", [1, 3, 1000])
def test_how_many_are_reset_in_one_go_changes_nothing(walks, share, monkeypatch):
    keys, actions, _, states = walks
    monkeypatch.setattr(auto_reset, "_RESET_SHARE", share)
    _, others = unroll(AutoReset(Walk(), LIMIT), keys, actions)
    for name, array in host(states).items():
        np.testing.assert_array_equal(array, host(others)[name], err_msg=name)


def test_no_environment_feels_the_others(walks):
    """The same bits for environment 5, alone, in another place and with others that do something else."""
    keys, actions, _, states = walks
    one = {name: array[:, 5] for name, array in host(states).items()}
    others = keys_of(ENVS, 7).at[9].set(keys[5])
    elsewhere = unroll(AutoReset(Walk(), LIMIT), others, actions_of(ENVS, 8).at[:, 9].set(actions[:, 5]))[1]
    for name, array in host(elsewhere).items():
        np.testing.assert_array_equal(array[:, 9], one[name], err_msg=name)
    alone = unroll(AutoReset(Walk(), LIMIT), keys[5:6], actions[:, 5:6])[1]
    for name, array in host(alone).items():
        np.testing.assert_allclose(array[:, 0], one[name], rtol=1e-6, err_msg=name)


@pytest.mark.behaviour("peers 129", "peers 130")
def test_all_may_end_at_once():
    """The time limit of 1: every environment is reset in every step."""
    _, states = unroll(AutoReset(Walk(), 1), keys_of(ENVS), actions_of(ENVS))
    found = host(states)
    np.testing.assert_array_equal(found["done"], 1)
    np.testing.assert_array_equal(found["steps"], 1)
    assert len(np.unique(found["obs"][..., 0])) == STEPS * ENVS


def test_staggered_first_episodes():
    """The first limits are random and spread over the whole range; every later episode has the full one."""
    envs, limit = 64, 10
    _, states = unroll(AutoReset(Walk(), limit, stagger=True), keys_of(envs), jnp.zeros((3 * limit, envs, 1)))
    found = host(states)
    lengths = [found["steps"][found["truncation"][:, env] > 0, env].astype(int).tolist() for env in range(envs)]
    first = [row[0] for row in lengths]
    assert set(first) >= set(range(1, limit)), "64 draws of 10 lengths"
    assert max(first) <= limit
    assert all(length == limit for row in lengths for length in row[1:])
    assert max(np.bincount(np.nonzero(found["truncation"])[0][: 2 * envs])) < envs / 3


def test_a_batch_of_one():
    _, states = unroll(AutoReset(Walk(), LIMIT), keys_of(1), actions_of(1))
    assert 6 < host(states)["done"].sum() < STEPS


def test_an_environment_carries_something_over():
    """`next_episode` in place of `reset`: here a level that rises with every episode that was not cut short."""

    class Levels(Walk):
        def reset(self, rng):
            state = super().reset(rng)
            return state.replace(info={**state.info, "level": jnp.int32(0)})

        def next_episode(self, state, rng):
            level = state.info["level"] + (state.info["truncation"] > 0)
            fresh = self.reset(rng)
            return fresh.replace(info={**fresh.info, "level": level.astype(jnp.int32)})

    _, states = unroll(AutoReset(Levels(), LIMIT), keys_of(ENVS), actions_of(ENVS))
    np.testing.assert_array_equal(states.info["level"], np.cumsum(states.info["truncation"], axis=0))


def test_an_environment_knows_its_time_limit():
    """Whoever sets it: the terrain's curriculum asks what a whole episode's command is."""
    env = load("pendulum")
    assert env.episode_length == 250
    assert AutoReset(env).env is env
    assert AutoReset(env, 40).env == dataclasses.replace(env, episode_length=40)


def test_what_a_wrapper_wrote_into_info_passes_through():
    envs = AutoReset(Walk(), 2)
    state = envs.reset(keys_of(4))
    mine = jnp.arange(4.0)
    state = state.replace(info={**state.info, "mine": mine})
    for action in actions_of(4)[:5]:
        state = jax.jit(envs.step)(state, action)
    np.testing.assert_array_equal(state.info["mine"], mine)


def test_an_environment_that_only_ever_sets_done():
    """One whose step hands the state's `done` on, as that of brax's own "fast": a new episode starts at 0."""

    class Sticky(Walk):
        def step(self, state, action):
            after = super().step(state, action)
            return after.replace(done=jnp.maximum(state.done, after.done))

    keys, actions = keys_of(ENVS), actions_of(ENVS)
    plain, sticky = (unroll(AutoReset(env, LIMIT), keys, actions)[1] for env in (Walk(), Sticky()))
    for name, array in host(plain).items():
        np.testing.assert_array_equal(host(sticky)[name], array, err_msg=name)


@pytest.mark.parametrize("kind", [bool, jnp.int32])
def test_done_of_another_type(kind):
    class Typed(Walk):
        def step(self, state, action):
            after = super().step(state, action)
            return after.replace(done=after.done.astype(kind))

    keys, actions = keys_of(ENVS), actions_of(ENVS)
    plain, typed = (host(unroll(AutoReset(env, LIMIT), keys, actions)[1]) for env in (Walk(), Typed()))
    for name in ("done", "truncation", "steps", "obs"):
        np.testing.assert_array_equal(typed[name], plain[name])


@dataclasses.dataclass(frozen=True)
class Limited(Walk):
    """Ends itself after `LIMIT` steps and says that it was only cut off; counts under a name of AutoReset's."""

    kind: Any = jnp.float32
    at_reset: bool = True

    def reset(self, rng):
        state = super().reset(rng)
        own = {"steps": jnp.int32(0)} | ({"truncation": jnp.zeros((), self.kind)} if self.at_reset else {})
        return state.replace(info={**state.info, **own})

    def step(self, state, action):
        assert state.info["steps"].dtype == jnp.int32
        after, steps = super().step(state, action), state.info["steps"] + 1
        cut_off = (steps >= LIMIT) & (after.done == 0)
        info = {**after.info, "steps": steps, "truncation": cut_off.astype(self.kind)}
        return after.replace(done=jnp.maximum(after.done, cut_off), info=info)


@pytest.mark.behaviour("reports 6", "reports 18")
@pytest.mark.parametrize("limit", [1000, LIMIT])
@pytest.mark.parametrize(("kind", "at_reset"), [(jnp.float32, True), (bool, True), (jnp.int32, False)])
def test_an_environment_that_cuts_itself_off(walks, kind, at_reset, limit):
    """The same figures as under AutoReset's own time limit."""
    keys, actions, _, states = walks
    found = host(unroll(AutoReset(Limited(kind=kind, at_reset=at_reset), limit), keys, actions)[1])
    assert found["truncation"].sum() > 20
    for name, array in host(states).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6, err_msg=name)


def test_a_truncation_that_ends_nothing_says_nothing():
    """brax's convention: `truncation` tells what kind of end `done` is."""

    class Talks(Walk):
        def step(self, state, action):
            after = super().step(state, action)
            return after.replace(done=jnp.zeros(()), info={**after.info, "truncation": jnp.ones(())})

    found = host(unroll(AutoReset(Talks(), LIMIT), keys_of(ENVS), actions_of(ENVS))[1])
    np.testing.assert_array_equal(found["truncation"], found["steps"] == LIMIT)
    np.testing.assert_array_equal(found["done"], found["truncation"])


@pytest.mark.parametrize("limit", [-1, 2.5])
def test_a_time_limit_that_makes_no_sense(limit):
    with pytest.raises(gx.ConfigError, match="whole number of at least 1"):
        AutoReset(Walk(), limit)


def test_whose_time_limit():
    @dataclasses.dataclass(frozen=True)
    class Limited(Walk):
        episode_length: int = 17

    assert AutoReset(Walk()).episode_length == 1000
    assert AutoReset(Limited()).episode_length == 17
    assert AutoReset(Limited(), 5).episode_length == 5


# Other people's wrappers around our environments, and ours around theirs


def old_keys(count):
    """Raw keys, which brax's wrappers count on: they take the last axis for the key's words."""
    return jax.random.split(jax.random.PRNGKey(0), count)


def test_brax_wraps_ours():
    env = brax_wrappers.wrap(CartPole(start="upright"), episode_length=2)
    state = jax.jit(env.reset)(old_keys(3))
    step = jax.jit(env.step)
    steps, ends = [], []
    for _ in range(3):
        state = step(state, jnp.zeros((3, 1)))
        steps.append(np.asarray(state.info["steps"]))
        ends.append(np.asarray(state.info["truncation"]))
    np.testing.assert_array_equal(steps, [[1] * 3, [2] * 3, [1] * 3])
    np.testing.assert_array_equal(ends, [[0] * 3, [1] * 3, [0] * 3])
    assert (np.asarray(state.reward) > 0.5).all()
    assert np.isfinite(state.obs).all()


def test_playground_wraps_ours():
    wrapper = pytest.importorskip("mujoco_playground").wrapper
    env = wrapper.wrap_for_brax_training(CartPole(start="upright"), episode_length=2, full_reset=True)
    state = jax.jit(env.reset)(old_keys(3))
    step, starts = jax.jit(env.step), [np.asarray(state.obs)]
    for _ in range(4):
        state = step(state, jnp.zeros((3, 1)))
        if (np.asarray(state.done) > 0).all():
            starts.append(np.asarray(state.obs))
    assert len(np.unique(np.array(starts)[..., 0])) == 9  # two fresh starts and the first, of three environments
    np.testing.assert_array_equal(state.info["AutoResetWrapper_done_count"], 2)


def run_theirs(env, action, limit=3, count=3, steps=7):
    """Steps with a time limit and the same action throughout; returns the figures, stacked."""
    envs = AutoReset(env, limit)
    state, step, rows = jax.jit(envs.reset)(keys_of(count)), jax.jit(envs.step), []
    for _ in range(steps):
        state = step(state, jnp.full((count, env.action_size), action))
        names = ("truncation", "steps", "episode_return", "final_observation")
        rows.append({"obs": state.obs, "done": state.done, "reward": state.reward} | {n: state.info[n] for n in names})
    return {name: np.array([np.asarray(row[name]) for row in rows]) for name in rows[0]}


def test_ours_runs_brax_fast():
    """Its step hands the old state's `done` on: after a time limit it would never be 0 again."""
    found = run_theirs(brax_envs.get_environment("fast"), 1.0)
    np.testing.assert_array_equal(found["done"][:, 0], [0, 0, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(found["truncation"], found["done"])
    np.testing.assert_array_equal(found["steps"][:, 0], [1, 2, 3, 1, 2, 3, 1])
    np.testing.assert_allclose(found["final_observation"][:3], found["final_observation"][3:6])
    np.testing.assert_array_equal(found["obs"][2], 0)


def test_ours_runs_brax_inverted_pendulum():
    found = run_theirs(load("brax:inverted_pendulum", {"backend": "generalized"}), 0.0)
    np.testing.assert_array_equal(found["steps"][:, 0], [1, 2, 3, 1, 2, 3, 1])
    np.testing.assert_array_equal(found["truncation"][:, 0], [0, 0, 1, 0, 0, 1, 0])
    assert len(np.unique(found["obs"][..., 0])) == found["obs"][..., 0].size
    np.testing.assert_array_equal(found["episode_return"][:, 0], [1, 2, 3, 1, 2, 3, 1])


@pytest.mark.slow
@pytest.mark.behaviour("peers 133")
def test_ours_runs_playground():
    pytest.importorskip("mujoco_playground")
    found = run_theirs(load("playground:CartpoleBalance"), 0.1)
    np.testing.assert_array_equal(found["steps"][:, 0], [1, 2, 3, 1, 2, 3, 1])
    np.testing.assert_array_equal(found["truncation"][:, 0], [0, 0, 1, 0, 0, 1, 0])
    assert len(np.unique(found["obs"][..., 0])) == found["obs"][..., 0].size
    assert (found["reward"] > 0.1).all()
