"""PPO as a task, on environments of a few lines whose best behaviour is known.

A child process of the kill test runs this file: `python tests/tasks/test_ppo.py RUN_FOLDER PAUSE`.
"""

import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))  # for the child

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import pytest  # noqa: E402
from brax.envs import fast as brax_fast  # noqa: E402
from flax import nnx  # noqa: E402
from orbax.checkpoint import v1 as ocp  # noqa: E402
from stress.child import Life  # noqa: E402
from support import line_data  # noqa: E402

import galvanax as gx  # noqa: E402
from galvanax.datamodules.environment import EnvironmentDataModule  # noqa: E402
from galvanax.envs.environment import State  # noqa: E402
from galvanax.envs.symmetry import Symmetry  # noqa: E402
from galvanax.tasks.ppo import PPOTask, _first_bad, _shuffled_parts, adapt_rate  # noqa: E402
from galvanax.tasks.ppo_loss import replay_policy  # noqa: E402
from galvanax.tasks.ppo_rollout import collect  # noqa: E402
from galvanax.trainer.programs import EVALUATE, stream_key  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Point:
    """A point on a line that should be where its goal is; noise pushes it, and at ±1.6 the episode has failed.

    The reward is 1 less the distance: at most 1 a step.

    Attributes:
      nan_reward: the reward is NaN where the goal is beyond this.
      nan_obs: so is the observation after the first step.
    """

    episode_length: int = 12
    nan_reward: float = 9.0
    nan_obs: float = 9.0
    action_size: int = 1
    observation_size: int = 2

    def reset(self, rng: jax.Array) -> State:
        place_rng, noise_rng = jax.random.split(rng)
        place = jax.random.uniform(place_rng, (2,), minval=-1, maxval=1)
        zero = jnp.zeros(())
        return State({"x": place[0], "goal": place[1]}, place, zero, zero, {"distance": zero}, {"rng": noise_rng})

    def step(self, state: State, action: jax.Array) -> State:
        rng, noise_rng = jax.random.split(state.info["rng"])
        goal = state.pipeline_state["goal"]
        x = state.pipeline_state["x"] + 0.5 * jnp.clip(action[0], -1, 1) + 0.05 * jax.random.normal(noise_rng)
        distance = jnp.abs(x - goal)
        return state.replace(
            pipeline_state={"x": x, "goal": goal},
            obs=jnp.where(goal > self.nan_obs, jnp.nan, jnp.stack([x, goal])),
            reward=jnp.where(goal > self.nan_reward, jnp.nan, 1 - distance),
            done=(jnp.abs(x) > 1.6).astype(jnp.float32),
            metrics={"distance": jnp.where(goal > self.nan_reward, jnp.nan, distance)},
            info={**state.info, "rng": rng},
        )


@dataclasses.dataclass(frozen=True)
class Cue(Point):
    """The first observation says which way to push, for the whole episode; the others say nothing."""

    episode_length: int = 6

    def reset(self, rng: jax.Array) -> State:
        cue = jax.random.rademacher(rng, (), jnp.float32)
        zero = jnp.zeros(())
        return State({"cue": cue}, jnp.stack([cue, zero]), zero, zero, {}, {})

    def step(self, state: State, action: jax.Array) -> State:
        reward = state.pipeline_state["cue"] * jnp.clip(action[0], -1, 1)
        return state.replace(obs=jnp.zeros(2), reward=reward)


@dataclasses.dataclass(frozen=True)
class Sides(Point):
    """Two points that should both be at 0, one for each action; the mirror image changes their places."""

    action_size: int = 2
    symmetry = Symmetry(np.array([1, 0]), np.ones(2), np.array([1, 0]), np.ones(2))

    def reset(self, rng: jax.Array) -> State:
        place = jax.random.uniform(rng, (2,), minval=-1, maxval=1)
        zero = jnp.zeros(())
        return State({"x": place}, place, zero, zero, {}, {})

    def step(self, state: State, action: jax.Array) -> State:
        x = state.pipeline_state["x"] + 0.5 * jnp.clip(action, -1, 1)
        return state.replace(pipeline_state={"x": x}, obs=x, reward=2 - jnp.abs(x).sum())


SMALL = PPOTask(
    unroll_length=8,
    num_epochs=3,
    num_minibatches=2,
    learning_rate=5e-3,
    discount=0.9,
    entropy_coef=1e-3,
    policy_hidden=(16,),
    value_hidden=(16,),
)


def small(**changes: Any) -> PPOTask:
    return dataclasses.replace(SMALL, **changes)


def data_of(env: Any = None, **changes: Any) -> EnvironmentDataModule:
    settings = {"num_envs": 64, "iterations_per_epoch": 1000, "num_eval_episodes": 40} | changes
    return EnvironmentDataModule(Point() if env is None else env, **settings)


def ready(**changes: Any) -> EnvironmentDataModule:
    data = data_of(**changes)
    data.setup()
    return data


class Watch(gx.Callback):
    """Keeps each step's metrics and the state at the start; sends SIGTERM at a step."""

    def __init__(self, until: int | None = None):
        self.until, self.rows = until, {}

    def on_fit_start(self, run):
        self.start = jax.device_get(jax.tree.map(plain, run.state))

    def next_step(self, step):
        return self.until if self.until and step < self.until else None

    def on_step(self, run):
        if run.step == self.until:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_metrics(self, run, steps, metrics):
        for index, step in enumerate(steps):
            self.rows[step] = {name.removeprefix("train/"): float(rows[index]) for name, rows in metrics.items()}

    def column(self, name):
        return np.array([self.rows[step][name] for step in sorted(self.rows)])


def plain(leaf):
    """Keys as numbers."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def by_path(state):
    tree = {name: getattr(state, name) for name in ("step", "params", "variables", "opt_state", "carry", "slots")}
    return {jax.tree_util.keystr(p): np.asarray(plain(x)) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_bits(one, other):
    one, other = by_path(one), by_path(other)
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)
        assert array.tobytes() == other[name].tobytes(), name


def fit(task=SMALL, env=None, steps=3, data=None, **settings):
    """`(result, watch)` of a run without a folder."""
    watch = Watch()
    callbacks = [watch, *settings.pop("callbacks", ())]
    trainer = gx.Trainer(max_steps=steps, callbacks=callbacks, **settings)
    return trainer.fit(task, data_of(env) if data is None else data), watch


# Learning


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run with every callback."""
    folder, watch = tmp_path_factory.mktemp("runs") / "point", Watch()
    callbacks = [
        gx.GradientClipping(1.0),
        gx.EMA(0.9),
        gx.CSVLogger(),
        gx.Checkpoint(monitor="val/episode_return", mode="max"),
        watch,
    ]
    trainer = gx.Trainer(max_steps=80, run_dir=folder, val_every=gx.Steps(40), log_every=10, callbacks=callbacks)
    task, data = small(final_entropy_coef=0.0, learning_rate_schedule="linear"), data_of()
    return trainer, task, data, trainer.fit(task, data), watch


@pytest.mark.behaviour("peers 114")
def test_it_learns(learned):
    """12 steps, 1 each at most, less what it takes to get there (0.67 on average) and the noise."""
    _, _, _, result, watch = learned
    returns = watch.column("episode_return")
    judged = result.metrics["val/episode_return"]
    print(f"\nreturn {returns[2]:.1f} at first, {returns[-1]:.1f} in the end, {judged:.2f} judged")
    assert returns[:4].max() < 5
    assert returns[-1] > 8
    assert result.metrics["val/episode_return"] > 10
    assert result.metrics["val/episode_length"] == 12
    assert watch.column("explained_variance")[-1] > 0.5 > watch.column("explained_variance")[0]


def test_what_is_logged(learned):
    trainer, _, _, result, watch = learned
    assert set(watch.rows[1]) >= {
        "loss", "policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "action_std", "grad_norm",
        "learning_rate", "episode_return", "episode_length", "episodes", "env_steps", "explained_variance", "reward",
        "env/distance",
    }  # fmt: skip
    np.testing.assert_array_equal(watch.column("env_steps"), 64 * 8 * np.arange(1, 81))
    # The reward is 1 less the distance, on the same steps.
    np.testing.assert_allclose(watch.column("reward"), 1 - watch.column("env/distance"), atol=1e-5)
    assert (watch.column("bad_environment") == -1).all()
    with (trainer.run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    # 64 environments, 8 control steps each: as many as there have been, at each of the steps that are logged.
    counted = [(int(row["step"]), float(row["train/env_steps"])) for row in rows if row["train/env_steps"]]
    assert counted == [(step, 64 * 8 * step) for step in range(10, 81, 10)]
    assert {"val/episode_return", "val/episode_length", "val/env/distance"} <= set(rows[0])
    assert result.metrics["val/env/distance"] < 0.2


def test_episodes_are_counted_as_they_end(learned):
    """No more can end than steps allow; nearly all reach the time limit in the end."""
    watch = learned[4]
    ended, length = np.diff(watch.column("episodes"), prepend=0), watch.column("episode_length")
    assert (length <= 12).all()
    assert length[-1] > 11.5
    assert ended.sum() >= 80 * 8 * 64 / 12 - 64
    assert ended.max() <= 64 * 8


def test_a_linear_rate_and_the_entropy_weight_end_where_they_should(learned):
    _, task, _, result, watch = learned
    updates, rates = 80 * 3 * 2, watch.column("learning_rate")
    # The rate of an iteration's last update; the very last of all is one step from zero.
    np.testing.assert_allclose(rates, 5e-3 * (1 - (6 * np.arange(1, 81) - 1) / updates), rtol=1e-4)
    assert rates[-1] == pytest.approx(5e-3 / updates, rel=1e-3)
    weight = optax.tree_utils.tree_get(
        result.state.opt_state, "entropy_coef", filtering=lambda _, value: isinstance(value, jax.Array)
    )
    assert float(weight) == pytest.approx(1e-3 / updates, rel=1e-3)
    assert task.entropy_coef == 1e-3


@pytest.mark.behaviour("peers 123")
def test_the_weights_load_and_act_without_data(learned):
    trainer, _, data, result, _ = learned
    task, model = PPOTask.load(trainer.run_dir)
    assert dataclasses.asdict(task) == {**dataclasses.asdict(result.task), "environments": None}
    obs = jnp.array([[0.0, 0.9], [0.0, -0.9], [0.5, 0.5]])
    actions = task.predict(model, obs, jax.random.key(0))
    assert actions.shape == (3, 1)
    assert actions[0, 0] > 0.5 > -0.5 > actions[1, 0]
    assert abs(actions[2, 0]) < 0.3
    _, last = PPOTask.load(trainer.run_dir, "last")
    np.testing.assert_array_equal(
        task.predict(last, obs, jax.random.key(0)), task.predict(result.model, obs, jax.random.key(0))
    )
    same = gx.Trainer(max_steps=1, run_dir=trainer.run_dir).validate(task, data)
    assert same["val/episode_return"] == pytest.approx(
        max(result.metrics["val/episode_return"], same["val/episode_return"]), rel=1e-6
    )


def test_test_episodes_are_others_than_validations(learned):
    trainer, _, data, _, _ = learned
    task, model = PPOTask.load(trainer.run_dir)
    tested, validated = trainer.test(task, data), trainer.validate(task, data)
    assert tested["test/episode_return"] > 10
    assert tested["test/episode_return"] != validated["val/episode_return"]
    assert tested == trainer.test(task, data, model=model)


@pytest.mark.behaviour("peers 114")
def test_the_normaliser_is_saved_and_frozen_at_evaluation(learned):
    trainer, _, data, result, _ = learned
    _, model = PPOTask.load(trainer.run_dir, "last")
    count = float(model.normalizer.count[...])
    assert count == 80 * 8 * 64
    np.testing.assert_array_equal(model.normalizer.mean[...], result.model.normalizer.mean[...])
    trainer.validate(result.task, data, model=model)
    assert float(model.normalizer.count[...]) == count


@pytest.mark.behaviour("peers 121")
def test_braxs_fast_is_solved():
    """It pays its position, and any action above 0 pushes: at best Σ dt² k (k + 1) / 2 over an episode's steps k."""
    data = data_of(brax_fast.Fast(obs_mode="dict_state"), episode_length=16, num_eval_episodes=4)
    best = 0.02**2 * 16 * 17 * 18 / 6
    result, watch = fit(small(discount=0.95), steps=25, data=data)
    assert watch.column("episode_return")[1] < 0.8 * best
    assert result.metrics["val/episode_return"] == pytest.approx(best, rel=1e-4)


# Evaluation


@pytest.mark.behaviour("peers 127")
def test_evaluation_is_a_plain_loop_over_whole_episodes(learned):
    """Short episodes count as much as long ones: an average over episodes, each to its own end."""
    _, _, _, result, _ = learned

    @dataclasses.dataclass(frozen=True)
    class Harsh(Point):
        """Ends as soon as the point is near the middle: most episodes are short, and of different lengths."""

        def step(self, state, action):
            after = super().step(state, action)
            return after.replace(done=(jnp.abs(after.obs[0]) < 0.15).astype(jnp.float32))

    env, data = Harsh(), data_of(Harsh(), num_eval_episodes=25)
    trainer = gx.Trainer(max_steps=1, seed=5)
    found = trainer.validate(small(), data, model=result.model)

    step, act = jax.jit(env.step), jax.jit(lambda obs: result.model.act(obs, jnp.zeros(0))[0].mode())
    reset = jax.jit(env.reset)
    returns, lengths, distances = [], [], []
    for index in range(25):
        key = jax.random.fold_in(stream_key(5, EVALUATE), index)
        state, total, length, distance = reset(jax.random.fold_in(key, index)), 0.0, 0, 0.0
        while length < 12 and not state.done:
            state = step(state, act(state.obs))
            total, length = total + float(state.reward), length + 1
            distance += float(state.metrics["distance"])
        returns.append(total)
        lengths.append(length)
        distances.append(distance / length)
    assert len(set(lengths)) > 2
    assert found["val/episode_return"] == pytest.approx(np.mean(returns), rel=1e-5)
    assert found["val/episode_length"] == pytest.approx(np.mean(lengths), rel=1e-6)
    assert found["val/env/distance"] == pytest.approx(np.mean(distances), rel=1e-5)


def test_an_environment_is_judged_as_it_says():
    """`evaluation()` takes training's disturbances away; another one may be given."""

    @dataclasses.dataclass(frozen=True)
    class Paid(Point):
        bonus: float = 5.0

        def evaluation(self):
            return dataclasses.replace(self, bonus=100.0)

        def step(self, state, action):
            return super().step(state, action).replace(reward=jnp.float32(self.bonus), done=jnp.zeros(()))

    result, watch = fit(env=Paid(), steps=2)
    assert watch.column("reward").tolist() == [5, 5]
    assert result.metrics["val/episode_return"] == 1200
    data = data_of(Paid(), eval_environment=Paid(bonus=1.0))
    found = gx.Trainer(max_steps=1).validate(SMALL, data, model=result.model)
    assert found["val/episode_return"] == 12


@pytest.mark.slow
def test_an_environment_may_write_into_its_state():
    """As brax's hopper does: Python numbers, into the dict of metrics that it was given."""

    class Writing(Point):
        def reset(self, rng):
            return super().reset(rng).replace(metrics={"distance": 0.0, "alive": 0.0})

        def step(self, state, action):
            after = super().step(state, action)
            state.metrics.update(distance=after.metrics["distance"], alive=1.0)
            return after.replace(metrics=state.metrics)

    (plain, _), (writing, _) = (fit(env=env, steps=1) for env in (Point(), Writing()))
    assert writing.metrics["val/env/alive"] == 1
    for name, value in plain.metrics.items():
        if name.startswith("val/"):
            np.testing.assert_allclose(writing.metrics[name], value, rtol=1e-6)


@pytest.mark.behaviour("peers 130")
def test_a_shorter_time_limit_holds_for_training_and_evaluation():
    result, watch = fit(data=data_of(episode_length=3), steps=2)
    assert result.metrics["val/episode_length"] == 3
    assert watch.column("episode_length").max() <= 3


# Collecting


@pytest.mark.behaviour("peers 102")
@pytest.mark.parametrize("memory_size", [0, 4])
def test_what_is_collected(memory_size):
    """The same actions sent through the environments again, and every value asked for again."""
    data = ready(num_envs=16, episode_length=5)
    task = small(memory_size=memory_size).setup(data)
    model, envs = task.build_model(nnx.Rngs(0)), task.environments[0]
    model.update_statistics(3 * jax.random.normal(jax.random.key(1), (100, 2)))
    start = task.init_carry(jax.random.key(2), data)
    memory = jax.random.normal(jax.random.key(3), start.memory.shape)
    ids = jnp.arange(16)
    run = jax.jit(lambda state, memory, ids: collect(envs, model, state, memory, ids, jax.random.key(4), 30))
    after, _, rollout = run(start.envs, memory, ids)

    state, step, ends = start.envs, jax.jit(envs.step), set()
    for index in range(30):
        np.testing.assert_allclose(rollout.obs[index], state.obs, atol=1e-5)
        np.testing.assert_array_equal(rollout.first[index], state.done)
        np.testing.assert_allclose(rollout.value[index], model.value(state.obs), atol=1e-5)
        state = step(state, jnp.tanh(rollout.raw_action[index]))
        np.testing.assert_allclose(rollout.reward[index], state.reward, atol=1e-5)
        np.testing.assert_array_equal(rollout.done[index], state.done)
        np.testing.assert_array_equal(rollout.episode_length[index], state.info["steps"])
        np.testing.assert_allclose(rollout.episode_return[index], state.info["episode_return"], atol=1e-4)
        np.testing.assert_allclose(rollout.metrics["distance"][index], state.metrics["distance"], atol=1e-5)
        # The value of the true last observation, whether the episode goes on or was cut off; 0 where it failed.
        truncated = state.info["truncation"]
        terminated = state.done * (1 - truncated)
        expected = model.value(state.info["final_observation"]) * (1 - terminated)
        np.testing.assert_allclose(rollout.next_value[index], expected, atol=1e-5)
        ends |= set(zip(np.asarray(state.done).tolist(), np.asarray(truncated).tolist(), strict=True))
    assert ends == {(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)}
    np.testing.assert_allclose(after.obs, state.obs, atol=1e-5)

    learning = task._learning_data(rollout, memory)
    replayed = replay_policy(model, learning)
    np.testing.assert_allclose(replayed.loc, rollout.policy.loc, atol=1e-5)
    np.testing.assert_allclose(replayed.log_prob(rollout.raw_action), rollout.log_prob, atol=1e-4)
    # Advantages have mean 0 and deviation 1 over the rollout; targets are not scaled.
    assert float(learning.advantage.mean()) == pytest.approx(0, abs=1e-5)
    assert float(learning.advantage.std()) == pytest.approx(1, abs=1e-4)
    error = rollout.reward + 0.9 * rollout.next_value - rollout.value
    np.testing.assert_allclose(learning.target[rollout.done > 0], (error + rollout.value)[rollout.done > 0], atol=1e-5)

    # Noise is the environment's own, wherever it is.
    some = jnp.array([3, 11, 12, 14])
    part = jax.tree.map(lambda leaf: leaf[some], start.envs)
    _, _, alone = run(part, memory[some], some)
    np.testing.assert_allclose(alone.raw_action, rollout.raw_action[:, some], atol=1e-4)
    noise = (rollout.raw_action - rollout.policy.loc) / rollout.policy.scale
    assert abs(float(noise.mean())) < 0.2
    assert float(noise.std()) == pytest.approx(1, abs=0.15)
    assert len(np.unique(noise)) == noise.size


@dataclasses.dataclass(frozen=True)
class Five:
    """Pays 1 a step. After 5 it truly ends, or ends itself and says that it was only cut off, or goes on for ever.

    With an end, the observation is how many steps were made, one-hot; without one the state does not matter.
    """

    kind: str = "cut off"
    action_size: int = 1
    observation_size: int = 6

    def see(self, n):
        return jax.nn.one_hot(n, 6) if self.kind == "end" else jnp.ones(6)

    def reset(self, rng):
        zero, n = jnp.zeros(()), jnp.int32(0)
        info = {"n": n, "truncation": zero} if self.kind == "cut off" else {"n": n}
        return State({}, self.see(n), zero, zero, {}, info)

    def step(self, state, action):
        n = state.info["n"] + 1
        over = (n >= 5).astype(jnp.float32)
        info = {**state.info, "n": n} | ({"truncation": over} if self.kind == "cut off" else {})
        done = jnp.zeros(()) if self.kind == "endless" else over
        return state.replace(obs=self.see(n), reward=jnp.ones(()), done=done, info=info)


@pytest.mark.behaviour("peers 103", "reports 6", "reports 18")
@pytest.mark.parametrize("memory_size", [0, 3])
@pytest.mark.parametrize(("kind", "limit"), [("cut off", 1000), ("cut off", 5), ("endless", 5), ("end", 1000)])
def test_true_values_are_what_the_critic_is_taught(kind, limit, memory_size):
    """Σ γ^k in closed form, 10 or what is left until the end, is a fixed point: targets equal values."""
    data = ready(env=Five(kind), num_envs=16, episode_length=limit)
    task = small(value_hidden=(), normalize_observations=False, gae_lambda=0.9, memory_size=memory_size).setup(data)
    model = task.build_model(nnx.Rngs(0))
    worth = np.array([(1 - 0.9 ** (5 - n)) / 0.1 for n in range(6)]) if kind == "end" else np.full(6, 10 / 6)
    model.value_function.layers[0].kernel[...] = jnp.asarray(worth, jnp.float32)[:, None]
    start = task.init_carry(jax.random.key(0), data)
    _, _, rollout = collect(
        task.environments[0], model, start.envs, start.memory, jnp.arange(16), jax.random.key(1), 17
    )
    assert rollout.done.sum() >= 16 * 3
    expected = 10.0 if kind != "end" else np.array([4.0951, 3.439, 2.71, 1.9, 1.0])[np.argmax(rollout.obs, axis=-1)]
    np.testing.assert_allclose(rollout.value, np.broadcast_to(expected, rollout.value.shape), rtol=1e-5)
    np.testing.assert_allclose(task._learning_data(rollout, start.memory).target, rollout.value, rtol=1e-5)
    np.testing.assert_array_equal(rollout.first[1:], rollout.done[:-1])


def test_the_loss_is_the_weighted_sum_that_the_task_says(learned):
    """Of the means that are logged; the entropy's weight moves by a part in 80 over the iteration."""
    task, row = learned[1], learned[4].rows[1]
    wanted = row["policy_loss"] + task.value_coef * row["value_loss"] - task.entropy_coef * row["entropy"]
    assert row["value_loss"] > 0.1
    assert row["loss"] == pytest.approx(wanted, abs=5e-5)


# The adaptive rate


@pytest.mark.behaviour("peers 106")
@pytest.mark.parametrize(
    ("rate", "kl", "expected"),
    [
        (1e-3, 0.0201, 1e-3 / 1.5),
        (1e-3, 0.02, 1e-3),
        (1e-3, 0.01, 1e-3),
        (1e-3, 0.005, 1e-3),
        (1e-3, 0.0049, 1.5e-3),
        (1e-3, 0.0, 1e-3),  # nothing has moved yet: says nothing
        (1e-3, 50.0, 1e-3 / 1.5),
        (1.2e-5, 1.0, 1e-5),
        (1e-5, 1.0, 1e-5),
        (9e-3, 1e-4, 1e-2),
        (1e-2, 1e-4, 1e-2),
    ],
)
def test_the_rule_of_the_adaptive_rate(rate, kl, expected):
    assert float(adapt_rate(jnp.float32(rate), jnp.float32(kl), 0.01)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.behaviour("peers 167")
def test_the_adaptive_rate_moves():
    """With a goal out of reach it goes up to its limit, with one too strict down; always by 1.5."""
    rates = {}
    for desired in (1.0, 1e-7):
        task = small(learning_rate_schedule="adaptive", desired_kl=desired, learning_rate=1e-3)
        rates[desired] = fit(task, steps=6)[1].column("learning_rate")
    assert rates[1.0][-1] == pytest.approx(1e-2)
    assert rates[1e-7][-1] < 1e-3 / 1.5**9
    for column in rates.values():
        # Until it meets a limit, from which it may come back, by 1.5 again.
        free = np.logical_and.accumulate((column > 1.01e-5) & (column < 0.99e-2))
        assert free.any()
        powers = np.log(column[free] / 1e-3) / np.log(1.5)
        np.testing.assert_allclose(powers, np.round(powers), atol=1e-3)


# Accumulated gradients


@pytest.mark.slow
def test_two_minibatches_of_half_the_size_are_one():
    """And a schedule still ends where the run does. The normal distribution's entropy needs no noise."""
    task = small(num_epochs=1, distribution="normal", learning_rate_schedule="linear")
    whole, watch = fit(dataclasses.replace(task, num_minibatches=1), steps=4)
    halves, halves_watch = fit(task, steps=4, callbacks=[gx.GradientAccumulation(2)])
    np.testing.assert_allclose(halves_watch.column("learning_rate"), watch.column("learning_rate"), rtol=1e-6)
    for name, value in whole.state.params.items():
        np.testing.assert_allclose(halves.state.params[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_step_has_the_rate_that_its_own_divergence_asks_for():
    """rsl_rl's order: the second update is 1.5 times as long as the first, not the third.

    Adam moves by its rate where two gradients agree, and never by 1.002 of it in two steps. Biases start at 0.
    """
    task = small(learning_rate=1e-3, learning_rate_schedule="adaptive", desired_kl=1.0, num_minibatches=1, num_epochs=2)
    params = fit(task, steps=1)[0].state.params
    furthest = max(np.abs(value).max() for name, value in params.items() if name.endswith("bias"))
    assert furthest == pytest.approx(1e-3 + 1.5e-3, rel=0.01)


@pytest.mark.slow
def test_the_adaptive_rate_moves_between_updates():
    task = small(learning_rate_schedule="adaptive", desired_kl=1.0, learning_rate=1e-3)
    result, watch = fit(task, steps=3, callbacks=[gx.GradientAccumulation(3)])
    assert int(result.state.opt_state.gradient_step) == 3 * 6 / 3
    # The first 3 of an iteration's 6 minibatches see the policy that collected: no divergence, which says nothing.
    np.testing.assert_allclose(watch.column("learning_rate")[:2], [1e-3 * 1.5**3, 1e-2], rtol=1e-5)


# Variants


def mirrored(params):
    """The weights of a linear policy, averaged with their mirror image."""
    kernel, bias = params["policy/layers/0/kernel"], params["policy/layers/0/bias"]
    swap = np.array([1, 0, 3, 2])  # two means, two deviations
    return {
        **params,
        "policy/layers/0/kernel": (kernel + kernel[np.array([1, 0])][:, swap]) / 2,
        "policy/layers/0/bias": (bias + bias[swap]) / 2,
    }


def unevenness(params):
    """How far a linear policy is from its mirror image, relative to its size."""
    gap = params["policy/layers/0/kernel"] - mirrored(params)["policy/layers/0/kernel"]
    return float(jnp.linalg.norm(gap) / jnp.linalg.norm(params["policy/layers/0/kernel"]))


class Mirrored(gx.Callback):
    """Starts from weights that treat both sides alike."""

    def init_params(self, params, variables):
        return mirrored(params), variables


@pytest.mark.slow
def test_a_mirrored_policy_stays_mirrored():
    """On the batch and its image together, gradients of both sides are alike; on the batch alone they are not."""
    task = small(policy_hidden=(), normalize_observations=False)
    found = {}
    for symmetry in ("none", "augment"):
        result, watch = fit(dataclasses.replace(task, symmetry=symmetry), Sides(), 10, callbacks=[Mirrored()])
        assert unevenness(watch.start.params) < 1e-6
        found[symmetry] = unevenness(result.state.params)
    print(f"\nunevenness after 60 updates: {found}")
    assert found["augment"] < 1e-4
    assert found["none"] > 100 * found["augment"]


@pytest.mark.slow
def test_the_mirror_loss_makes_a_policy_even():
    """That of its means: the loss says nothing of the deviations."""
    task = small(policy_hidden=(), normalize_observations=False, symmetry="loss")
    found = {}
    for coefficient in (0.0, 10.0):
        _, watch = fit(dataclasses.replace(task, symmetry_coef=coefficient), Sides(), 12)
        found[coefficient] = watch.column("mirror_loss")
        assert found[coefficient][0] > 0.05
    print(f"\nmirror loss, first and last: { {c: (v[0], v[-1]) for c, v in found.items()} }")
    assert found[10.0][-1] < 0.1 * found[10.0][0]
    assert found[10.0][-1] < 0.2 * found[0.0][-1]


@pytest.mark.slow
def test_a_memory_solves_what_needs_one():
    """6 if it remembers the first observation, 1 if it sees no more than the present one.

    Rollouts of 4 steps begin in the middle of episodes of 6, so the memory must last from one iteration to the next.
    """
    found = {}
    for size in (0, 8):
        task = small(memory_size=size, learning_rate=1e-2, unroll_length=4, normalize_observations=False)
        result, _ = fit(task, steps=100, data=data_of(Cue(), num_eval_episodes=1000))
        found[size] = result.metrics["val/episode_return"]
        assert result.state.carry.memory.shape == (64, size)
    print(f"\nreturn by memory: {found}")
    assert found[0] < 2
    assert found[8] > 5


@pytest.mark.behaviour("peers 122", "peers 167")
def test_a_privileged_critic_and_unbounded_actions():
    class Both(Point):
        @property
        def observation_size(self):
            return {"state": (2,), "privileged_state": (3,)}

        def reset(self, rng):
            state = super().reset(rng)
            return state.replace(obs=self.both(state))

        def step(self, state, action):
            after = super().step(state.replace(obs=state.obs["state"]), action)
            return after.replace(obs=self.both(after))

        def both(self, state):
            distance = jnp.abs(state.obs[0] - state.obs[1])
            return {"state": state.obs, "privileged_state": jnp.append(state.obs, distance)}

    # No dataclass, and `observation_size` is a property: an environment need be neither ours nor frozen.
    env = object.__new__(Both)
    for name, value in (("episode_length", 12), ("nan_reward", 9.0), ("nan_obs", 9.0), ("action_size", 1)):
        object.__setattr__(env, name, value)
    result, _ = fit(small(distribution="normal", clip_value=True, initial_std=0.5), env, 30)
    assert result.task.observation_size == {"state": 2, "privileged_state": 3}
    assert result.metrics["val/episode_return"] > 8
    assert result.state.params["value_function/layers/0/kernel"].shape == (3, 16)


def test_reward_scaling_is_not_reported(learned):
    """The same first rollout as without."""
    one, watch = learned[4], fit(small(reward_scaling=10.0), steps=1)[1]
    for name in ("reward", "episode_return", "env/distance"):
        assert watch.rows[1][name] == pytest.approx(one.rows[1][name], rel=1e-5), name
    assert watch.rows[1]["value_loss"] > 20 * one.rows[1]["value_loss"]


# Batches


@pytest.mark.behaviour("peers 112")
@pytest.mark.parametrize(("num_envs", "parts"), [(64, 2), (64, 8), (6, 2), (7, 7), (7, 1), (40, 5), (24, 3), (512, 32)])
def test_each_environment_is_in_one_minibatch(num_envs, parts):
    rows = np.asarray(_shuffled_parts(jax.random.key(0), num_envs, parts))
    assert rows.shape == (parts, num_envs // parts)
    np.testing.assert_array_equal(np.sort(rows.ravel()), np.arange(num_envs))
    if num_envs >= 40:
        assert not np.array_equal(rows, _shuffled_parts(jax.random.key(1), num_envs, parts))
        assert not np.array_equal(np.sort(rows, axis=1), np.arange(num_envs).reshape(parts, -1))


def test_a_minibatch_takes_as_much_from_every_eighth():
    """So that 8 devices, each with an eighth of the environments, have the same to do."""
    rows = np.asarray(_shuffled_parts(jax.random.key(0), 512, 4))
    for part in rows:
        np.testing.assert_array_equal(np.bincount(part // 64, minlength=8), 16)


@pytest.mark.behaviour("peers 115")
def test_steps_in_one_dispatch_or_in_many_are_the_same_bits():
    assert_same_bits(*(fit(steps=5, steps_per_dispatch=count)[0].state for count in (1, 5)))


@pytest.mark.behaviour("peers 115")
def test_another_seed_is_another_run(learned):
    """Weights and environments differ from the start on."""

    class Seen(Exception):
        pass

    class Look(Watch):
        def on_fit_start(self, run):
            super().on_fit_start(run)
            raise Seen

    starts = []
    for seed in (0, 1):
        look = Look()
        with pytest.raises(Seen):
            gx.Trainer(max_steps=1, seed=seed, callbacks=[look]).fit(SMALL, data_of())
        starts.append(look.start)
    one, other = starts
    np.testing.assert_array_equal(one.carry.envs.obs, learned[4].start.carry.envs.obs)
    for name in ("policy/layers/0/kernel", "value_function/layers/0/kernel"):
        np.testing.assert_array_equal(one.params[name], learned[4].start.params[name])
        assert (other.params[name] != one.params[name]).mean() > 0.9
    assert len(np.intersect1d(one.carry.envs.obs, other.carry.envs.obs)) == 0


# What goes wrong


@pytest.mark.parametrize(
    ("kind", "unroll_length"), [("nan_reward", 4), pytest.param("nan_obs", 4, marks=pytest.mark.slow), ("nan_obs", 1)]
)
def test_an_environment_that_turns_nan_is_named(learned, kind, unroll_length):
    """With one step an iteration the observation is the rollout's last, which no policy sees."""
    goals = learned[4].start.carry.envs.pipeline_state["goal"]  # the same at the start of every run of this seed
    worst, second = np.argsort(goals)[::-1][:2]
    env = Point(**{kind: float(goals[worst] + goals[second]) / 2})
    with pytest.raises(gx.NonFiniteError, match=rf"train/loss is nan at step 1.*Environment {worst} gave") as caught:
        fit(small(unroll_length=unroll_length), env, steps=1)
    if kind == "nan_reward":
        assert "so did its env/distance" in str(caught.value)


def test_a_loss_that_explodes_is_not_the_environments_fault():
    with pytest.raises(gx.NonFiniteError, match="All observations and rewards were finite: lower the learning rate"):
        fit(small(learning_rate=1e25), steps=4)


@pytest.mark.slow
def test_settings_that_explode_are_not_the_environments_fault():
    """Unbounded actions that no environment can bear, and rewards beyond what float32 holds."""

    @dataclasses.dataclass(frozen=True)
    class Fragile(Point):
        def step(self, state, action):
            after = super().step(state, action)
            return after.replace(obs=after.obs + jnp.where(jnp.abs(action[0]) > 1e6, jnp.inf, 0))

    with pytest.raises(gx.NonFiniteError, match=r"beyond 1000 .*lower the learning rate, initial_std=1e\+30") as caught:
        fit(small(distribution="normal", initial_std=1e30), Fragile(), 1)
    assert "Environment" not in str(caught.value)
    with pytest.raises(gx.NonFiniteError, match=r"rewards were finite: lower the learning rate, reward_scaling=1e\+38"):
        fit(small(reward_scaling=1e38), steps=1)


def test_who_broke_first():
    """Environment 2's reward is NaN; a policy that is NaN itself is told apart, and what it breaks is not blamed."""
    data = ready(num_envs=4)
    task = small(distribution="normal").setup(data)
    model, carry = task.build_model(nnx.Rngs(0)), task.init_carry(jax.random.key(0), data)
    ids = jnp.arange(4)
    envs, _, rollout = collect(task.environments[0], model, carry.envs, carry.memory, ids, jax.random.key(1), 6)

    def blamed(last=envs.obs, **changes):
        return float(_first_bad(dataclasses.replace(rollout, **changes), last, ids))

    nan = jnp.nan
    assert blamed() == -1
    assert blamed(reward=rollout.reward.at[3, 2].set(nan)) == 2
    assert blamed(obs=rollout.obs.at[0, 3].set(nan)) == 3
    assert blamed(last=envs.obs.at[1].set(jnp.inf)) == (1 if rollout.done[-1, 1] == 0 else -1)
    acted = rollout.raw_action.at[2, 1].set(nan)
    assert blamed(raw_action=acted) == -2
    assert blamed(raw_action=acted, obs=rollout.obs.at[3, 1].set(nan)) == -2
    assert blamed(raw_action=acted, reward=rollout.reward.at[1, 1].set(nan)) == 1  # before it acted so
    assert blamed(raw_action=rollout.raw_action.at[2, 1].set(1e9)) == -1  # and nothing broke
    assert blamed(raw_action=rollout.raw_action.at[2, 1].set(1e9), reward=rollout.reward.at[4, 1].set(nan)) == -2
    assert blamed(value=jnp.full_like(rollout.value, nan), next_value=jnp.full_like(rollout.value, nan)) == -1


@pytest.mark.behaviour("peers 124")
def test_observations_that_no_policy_sees():
    """brax's own environment of pixels alone, or of an image called "state"."""
    data = data_of(brax_fast.Fast(obs_mode="dict_pixels"))
    with pytest.raises(gx.ConfigError, match=r"Fast observes 'pixels/view_0', 'pixels/view_1': .* sees 'state'"):
        fit(data=data)
    image = object.__new__(type("Image", (Point,), {"observation_size": {"state": (4, 4, 3)}}))
    with pytest.raises(gx.ConfigError, match=r"Image.observation_size\['state'\] is \(4, 4, 3\): expected a vector"):
        fit(data=data_of(image))


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ({"num_minibatches": 3}, {}, r"num_envs=64 is no multiple of PPOTask.num_minibatches=3. Nearest: 66"),
        ({"num_minibatches": 0}, {}, r"num_minibatches=0: expected a whole number of at least 1"),
        ({"unroll_length": 0}, {}, r"unroll_length=0: expected a whole number of at least 1"),
        ({"num_epochs": 0}, {}, r"num_epochs=0: expected a whole number of at least 1"),
        ({"learning_rate_schedule": "cosine"}, {}, r"learning_rate_schedule='cosine'.*constant, linear, adaptive"),
        ({"symmetry": "both"}, {}, r"symmetry='both'.*none, augment, loss"),
        ({"symmetry": "loss"}, {}, r"symmetry='loss': Point has no `symmetry`"),
        ({"symmetry": "augment", "memory_size": 4}, {"environment": Sides()}, r"without memory"),
        ({"distribution": "beta"}, {}, r"distribution='beta'.*tanh_normal, normal"),
        ({"activation": "swich"}, {}, r"did you mean 'swish'"),
        ({}, {"num_envs": 0}, r"num_envs=0: expected a whole number of at least 1"),
        ({}, {"num_envs": 63.6}, r"num_envs=63.6: expected a whole number of at least 1. Nearest: 64"),
        ({}, {"num_eval_episodes": 0}, r"num_eval_episodes=0: expected a whole number of at least 1"),
        ({}, {"iterations_per_epoch": True}, r"iterations_per_epoch=True: expected a whole number of at least 1"),
        ({}, {"episode_length": -3}, r"episode_length=-3: expected a whole number of at least 1"),
        ({}, {"episode_length": 0}, r"EnvironmentDataModule.episode_length=0: expected a whole number of at least 1"),
        (
            {},
            {"environment": Point(episode_length=0)},
            r"Point.episode_length=0: expected a whole number of at least 1",
        ),
        ({}, {"environment": Point}, r"Point is a class; expected an environment. Nearest: Point\(\)"),
        ({}, {"eval_environment": Sides()}, r"eval_environment: Sides.action_size is 2; expected 1, as in Point"),
        ({}, {"environment": Point(action_size=0)}, r"Point.action_size=0: expected a whole number of at least 1"),
        ({"discount": 0.0}, {}, r"PPOTask.discount=0.0: expected a number in \(0, 1\]; the default is 0.99"),
        ({"discount": 1.5}, {}, r"PPOTask.discount=1.5: expected a number in \(0, 1\]"),
        ({"discount": float("nan")}, {}, r"PPOTask.discount=nan: expected a number in \(0, 1\]"),
        ({"discount": "0.9"}, {}, r"PPOTask.discount='0.9': expected a number in \(0, 1\]"),
        ({"gae_lambda": -0.1}, {}, r"PPOTask.gae_lambda=-0.1: expected a number in \[0, 1\]; the default is 0.95"),
        ({"gae_lambda": 1.1}, {}, r"PPOTask.gae_lambda=1.1: expected a number in \[0, 1\]"),
        ({"clip": 0.0}, {}, r"PPOTask.clip=0.0: expected a number in \(0, inf\]; the default is 0.2"),
        ({"clip": -0.2}, {}, r"PPOTask.clip=-0.2: expected a number in \(0, inf\]"),
        ({"learning_rate": -1e-3}, {}, r"PPOTask.learning_rate=-0.001: expected a number in \[0, inf\)"),
        ({"value_coef": -0.5}, {}, r"PPOTask.value_coef=-0.5: expected a number in \[0, inf\)"),
        ({"entropy_coef": float("nan")}, {}, r"PPOTask.entropy_coef=nan: expected a number in \(-inf, inf\)"),
        ({"final_entropy_coef": float("inf")}, {}, r"PPOTask.final_entropy_coef=inf: expected a number in"),
        ({"reward_scaling": 0.0}, {}, r"PPOTask.reward_scaling=0: nothing would be learned"),
        ({"symmetry_coef": -1.0}, {}, r"PPOTask.symmetry_coef=-1.0: expected a number in \[0, inf\)"),
        (
            {"learning_rate_schedule": "adaptive", "desired_kl": 0.0},
            {},
            r"PPOTask.desired_kl=0.0: expected a number in \(0, inf\), such as 0.01",
        ),
        ({"memory_size": -1}, {}, r"PPOTask.memory_size=-1: expected a whole number of at least 0"),
        (
            {"policy_hidden": (16, 0)},
            {},
            r"PPOTask.policy_hidden=\(16, 0\): expected a tuple of whole numbers of at least 1",
        ),
        (
            {"value_hidden": (1.5,)},
            {},
            r"PPOTask.value_hidden=\(1.5,\): expected a tuple of whole numbers of at least 1",
        ),
        ({"distribution": "normal", "initial_std": 0.0}, {}, r"initial_std=0.0: expected a standard deviation"),
        ({"distribution": "normal", "initial_std": -1.0}, {}, r"initial_std=-1.0: expected a standard deviation"),
        ({}, {"environment": object()}, r"object is no environment: it has no reset, step"),
        ({}, {"environment": "cart-pole-balanse"}, r"Unknown environment.*cart-pole-balance"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value) or "plain",
)
def test_settings_that_make_no_sense(task, data, message):
    settings = {"environment": Point(), "num_envs": 64} | data
    with pytest.raises(gx.ConfigError, match=message):
        gx.Trainer(max_steps=1).fit(small(**task), EnvironmentDataModule(**settings))


def test_it_needs_environments():
    with pytest.raises(gx.ConfigError, match="PPOTask needs an EnvironmentDataModule, not a ArrayDataModule"):
        gx.Trainer(max_steps=1).fit(SMALL, line_data())


# Resuming


KILLED = 40  # steps of the run that is killed
SCHEDULED = small(learning_rate_schedule="linear", final_entropy_coef=0.0)


def saving(run_dir: Path, *more: gx.Callback, steps: int = 9, every: int = 100) -> gx.Trainer:
    callbacks = [
        gx.GradientClipping(1.0),
        gx.EMA(0.9),
        gx.CSVLogger(),
        gx.Checkpoint(every=gx.Steps(every), keep_last=2),
        *more,
    ]
    return gx.Trainer(max_steps=steps, run_dir=run_dir, val_every=gx.Steps(7), log_every=3, callbacks=callbacks)


@pytest.mark.slow
@pytest.mark.behaviour("peers 114", "peers 115")
def test_a_resumed_run_is_the_same_run(tmp_path):
    """Parameters, normaliser, environments, memories, the optimizer and its rate: bit for bit."""
    task = small(learning_rate_schedule="adaptive", memory_size=4, unroll_length=5)
    whole = saving(tmp_path / "whole").fit(task, data_of())
    with pytest.raises(gx.Preempted):
        saving(tmp_path / "parts", Watch(4)).fit(task, data_of())
    parts = saving(tmp_path / "parts").fit(task, data_of(), resume="last")
    assert_same_bits(whole.state, parts.state)
    names = by_path(whole.state)
    for part in ("params", "normalizer/mean", "envs.pipeline_state", "auto_reset_rng", "memory", "opt_state", "EMA"):
        assert any(part in name for name in names), part
    tables = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "parts")]
    assert tables[0] == tables[1]


def main(folder: str, pause: float) -> None:
    """The child: fits, and tells its parent where it is."""

    class Report(gx.Callback):
        def on_train_metrics(self, run, steps, metrics):
            for step in steps:
                print("steps", step, flush=True)
                time.sleep(pause)

    saving(Path(folder), Report(), steps=KILLED, every=4).fit(SCHEDULED, data_of(), resume="auto")
    print("bye", flush=True)


def live(folder: Path, pause: float, log: Path) -> Life:
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, __file__, str(folder), str(pause)],
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return Life(process, log)


def saved(checkpoint: Path) -> dict[str, np.ndarray]:
    """A checkpoint's arrays."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sharding info not provided")
        arrays = ocp.load((checkpoint / "arrays").absolute())
    return {name: np.asarray(plain(array)) for name, array in arrays.items()}


def test_a_killed_run_is_the_same_run(tmp_path):
    """SIGKILL after some steps: the same checkpoint and the same log in the end."""
    saving(tmp_path / "whole", steps=KILLED, every=4).fit(SCHEDULED, data_of())
    with live(tmp_path / "killed", 0.05, tmp_path / "first.log") as life:
        life.wait_for("steps 14")
        assert life.end(signal.SIGKILL) == -signal.SIGKILL
    with live(tmp_path / "killed", 0.0, tmp_path / "last.log") as life:
        assert life.end() == 0, life.text
        assert "bye" in life.said
        first = next(line for line in life.said if line.startswith("steps"))
        assert int(first.split()[1]) in (5, 9, 13)
    whole, killed = (saved(tmp_path / name / "checkpoints" / str(KILLED)) for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(array, killed[name], err_msg=name)
    for kind in ("params/", "variables/normalizer", "carry/envs", "opt_state/", "slots/EMA"):
        assert any(name.startswith(kind) for name in whole), kind
    tables = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "killed")]
    assert tables[0] == tables[1]


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
