"""PPO that sees: depth reaches the networks that are to have it, in 8 bits, and costs nothing where none is."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tasks.test_ppo import SMALL, Watch, assert_same_bits, data_of

import galvanax as gx
from galvanax.envs.environment import State
from galvanax.envs.legged.go2 import Go2
from galvanax.envs.vision import Vision
from galvanax.networks.actor_critic import ActorCritic
from galvanax.networks.depth_encoder import Convolution, DepthEncoder, Sight, depth_levels, depth_metres
from galvanax.tasks.policy_rollout import episode_keys, play_episodes
from galvanax.tasks.ppo import PPOTask
from galvanax.tasks.ppo_loss import replay_policy
from galvanax.tasks.ppo_rollout import collect
from galvanax.tasks.ppo_vision import who_sees

FAR = 4.0
IMAGES = [0]  # made so far, counted on the host


def count(images):
    IMAGES[0] += int(np.prod(images.shape[:-2]))
    return images


@dataclasses.dataclass(frozen=True)
class Wall:
    """Something near is on one side of the image. Pays for going there, nothing for staying; in the vector is no hint.

    Attributes:
      counts: each image is counted on the host; not in programs that are to be cached.
      ends: the episode fails after this many steps, and its time limit.
    """

    counts: bool = False
    ends: int = 1000
    episode_length: int = 6
    action_size: int = 1
    observation_size: ClassVar = {"state": (2,), "depth": (4, 6)}
    vision: ClassVar = Vision(width=6, height=4, max_distance=FAR)

    def reset(self, rng: jax.Array) -> State:
        side_rng, depth_rng = jax.random.split(rng)
        side, zero = jax.random.rademacher(side_rng, (), jnp.float32), jnp.zeros(())
        near = jax.random.uniform(depth_rng, minval=0.5, maxval=2.0)
        info = {"side": side, "near": near, "n": jnp.int32(0)}
        return State({}, self.see(info), zero, zero, {"right": zero}, info)

    def step(self, state: State, action: jax.Array) -> State:
        info = {**state.info, "n": state.info["n"] + 1}
        reward = info["side"] * jnp.clip(action[0], -1, 1)
        done = (info["n"] >= self.ends).astype(jnp.float32)
        return state.replace(obs=self.see(info), reward=reward, done=done, metrics={"right": reward}, info=info)

    def see(self, info: dict[str, Any]) -> dict[str, jax.Array]:
        columns = jnp.arange(6) >= 3
        row = jnp.where(columns == (info["side"] > 0), info["near"], 9.0).at[0].set(jnp.nan)
        image = jnp.broadcast_to(row, (4, 6)) + 0.1 * info["n"]
        if self.counts:
            shape = jax.ShapeDtypeStruct((4, 6), jnp.float32)
            image = jax.pure_callback(count, shape, image, vmap_method="expand_dims")
        return {"state": jnp.ones(2), "depth": image}


def task_of(**changes: Any) -> PPOTask:
    return dataclasses.replace(SMALL, **{"vision_channels": (4,), "vision_features": 8} | changes)


def fit(task, env, steps, **settings):
    watch = Watch()
    data = data_of(env, num_envs=32, num_eval_episodes=40)
    trainer = gx.Trainer(max_steps=steps, callbacks=[watch, *settings.pop("callbacks", ())], **settings)
    return trainer.fit(task, data), watch


# Learning


@pytest.mark.parametrize("vision", ["auto", pytest.param("critic", marks=pytest.mark.slow)])
def test_what_cannot_be_done_blind(vision):
    """6 steps of at most 1 each for who sees the side; 0 on average for who doesn't, whatever the critic sees."""
    result, _ = fit(task_of(vision=vision, learning_rate=1e-2), Wall(), 30)
    played = jax.device_get(play_episodes(result.model, Wall(), episode_keys(3, np.arange(200)), 6))
    returns = result.metrics["val/episode_return"], float(played.reward.sum(axis=1).mean())
    print(f"\nreturns: {returns}")
    assert min(returns) > 5 if vision == "auto" else max(returns) < 2


# What is stored, and what is not made


@pytest.mark.parametrize("vision", ["both", "none"])
def test_images_are_stored_in_eight_bits_or_not_at_all(vision):
    data = data_of(Wall(ends=4), num_envs=16)
    data.setup()
    task = task_of(vision=vision).setup(data)
    model, start = task.build_model(nnx.Rngs(0)), task.init_carry(jax.random.key(0), data)
    arguments = start.envs, start.memory, jnp.arange(16), jax.random.key(1)
    envs, _, rollout = jax.jit(lambda *rest: collect(task.environments[0], model, *rest, 9))(*arguments)
    if vision == "none":
        assert rollout.obs.keys() == envs.obs.keys() == envs.info["final_observation"].keys() == {"state"}
        assert max(leaf[0].size for leaf in jax.tree.leaves(envs)) < 24  # no image anywhere in a state
        return
    depth = np.asarray(rollout.obs["depth"])
    assert depth.shape == (9, 16, 4, 6)
    assert depth.dtype == envs.info["final_observation"]["depth"].dtype == np.uint8
    # Half of the image is as near as it was drawn, a little farther with each step; the other beyond the range.
    first = depth[0, :, 0]
    side, near = (np.asarray(start.envs.info[name]) for name in ("side", "near"))
    expected = np.where(side > 0, first[:, 4], first[:, 1])
    np.testing.assert_array_equal(expected, np.round(near / FAR * 255))
    assert (np.where(side > 0, first[:, 1], first[:, 4]) == 255).all()
    assert (depth[..., 0] == 255).all()  # NaN is far
    # The loss sees what the policy saw.
    learning = task._learning_data(rollout, start.memory)
    np.testing.assert_allclose(replay_policy(model, learning).log_prob(rollout.raw_action), rollout.log_prob, atol=1e-4)
    np.testing.assert_allclose(model.value(rollout.obs), rollout.value, atol=1e-5)


def test_an_image_for_each_state_and_no_more():
    """Every step makes one in each environment, and one for each that starts anew, in shares of an eighth."""
    data = data_of(Wall(counts=True, ends=3), num_envs=16)
    data.setup()
    envs = task_of().setup(data).environments[0]
    made, step = [], jax.jit(envs.step)
    state = jax.block_until_ready(jax.jit(envs.reset)(jax.random.split(jax.random.key(0), 16)))
    for _ in range(8):
        before = IMAGES[0]
        state = jax.block_until_ready(step(state, jnp.zeros((16, 1))))
        ended = int(state.done.sum())
        made.append((IMAGES[0] - before, 16 + 2 * -(-ended // 2), ended))
    assert [one[0] for one in made] == [one[1] for one in made], made
    assert {bool(one[2]) for one in made} == {True, False}


@pytest.mark.slow
def test_none_is_made_where_nobody_looks():
    """In training, evaluation and play. What only the critic sees is not made in evaluation."""
    made = {}
    for vision in ("none", "critic"):
        before = IMAGES[0]
        result, _ = fit(task_of(vision=vision), Wall(counts=True), 1)
        jax.block_until_ready(play_episodes(result.model, Wall(counts=True), episode_keys(0, np.arange(2)), 3))
        made[vision] = IMAGES[0] - before
    assert made["none"] == 0
    # Starts, 8 steps of 32, and at least the episodes that timed out in them.
    assert 32 * 9 < made["critic"] <= 32 * 9 + 8 * 32


@pytest.mark.slow
def test_rays_are_not_compiled_where_nobody_looks():
    """Of the true environment: as much arithmetic as without its camera."""
    env, flops = gx.envs.load("ledge"), {}
    for name, one in (("sees", env), ("blind", env), ("no camera", dataclasses.replace(env, vision=None))):
        data = gx.EnvironmentDataModule(one, num_envs=8)
        data.setup()
        task = PPOTask(vision="none" if name == "blind" else "auto").setup(data)
        seen = task.environments[0].env
        state = jax.eval_shape(seen.reset, jax.random.key(0))
        compiled = jax.jit(seen.step).lower(state, jnp.zeros(1)).compile()
        flops[name] = compiled.cost_analysis()["flops"]
    print(f"\n{flops}")
    assert flops["blind"] == pytest.approx(flops["no camera"], rel=0.02)
    assert flops["sees"] > 10 * flops["blind"]


# The same run


@pytest.mark.slow
def test_a_resumed_run_that_sees_is_the_same_run(tmp_path):
    whole, _ = fit(task_of(memory_size=3), Wall(ends=4), 3)
    saved = {"run_dir": tmp_path / "run", "callbacks": [gx.Checkpoint()]}
    data = data_of(Wall(ends=4), num_envs=32, num_eval_episodes=40)
    gx.Trainer(max_steps=2, **saved).fit(task_of(memory_size=3), data)
    resumed = gx.Trainer(max_steps=3, **saved).fit(task_of(memory_size=3), data, resume="auto")
    assert_same_bits(whole.state, resumed.state)
    task, model = PPOTask.load(tmp_path / "run")
    assert (task.depth_shape, task.depth_far) == ((4, 6), FAR)
    obs = {"state": jnp.ones((2, 2)), "depth": jnp.ones((2, 4, 6))}
    with jax.numpy_dtype_promotion("strict"):
        assert task.predict(model, obs, jax.random.key(0)).shape == (2, 1)


# Who sees


def test_who_sees_by_default():
    assert who_sees("auto", {"state": 2}, (4, 6)) == ("actor", "critic")
    assert who_sees("auto", {"state": 2, "privileged_state": 3}, (4, 6)) == ("actor",)
    assert who_sees("auto", {"state": 2}, ()) == who_sees("none", {"state": 2}, (4, 6)) == ()
    data = gx.EnvironmentDataModule(Go2(privileged=True, vision=Vision("track", 8, 6, max_distance=3.0)), num_envs=8)
    data.setup()
    model = PPOTask().setup(data).build_model(nnx.Rngs(0))
    assert (model.actor_sight.shape, model.actor_sight.far) == ((6, 8), 3.0)
    assert model.critic_sight is None


class Plain(Wall):
    observation_size: ClassVar = {"state": (2,), "dept": (4, 6)}


class Stack(Wall):
    observation_size: ClassVar = {"state": (2,), "depth": (4, 6, 3)}


class Unknown(Wall):
    vision: ClassVar = None


class Even(Wall):
    symmetry: ClassVar = object()


@pytest.mark.parametrize(
    ("env", "changes", "told"),
    [
        (Plain(), {"vision": "actor"}, r"vision='actor': Plain observes 'state', 'dept' and no 'depth'.*Nearest: dept"),
        (Wall(), {"vision": "actr"}, r"PPOTask.vision='actr'"),
        (Wall(), {"vision_channels": (0,)}, r"PPOTask.vision_channels=\(0,\)"),
        (Wall(), {"vision_features": 0}, r"PPOTask.vision_features=0"),
        (Wall(), {"depth_range": 0.0}, r"PPOTask.depth_range=0.0: expected a number in \(0, inf\)"),
        (Stack(), {}, r"Stack.observation_size\['depth'\] is \(4, 6, 3\): expected \(height, width\)"),
        (Unknown(), {}, r"PPOTask.depth_range=None: Unknown has no `vision`"),
        (Even(), {"symmetry": "augment"}, r"needs an actor that doesn't see.*vision=\"critic\""),
    ],
)
def test_what_cannot_be_seen(env, changes, told):
    with pytest.raises(gx.ConfigError, match=told):
        task_of(**changes).setup(data_of(env))


def test_the_judged_environment_must_show_the_same():
    data = data_of(Wall(), eval_environment=Plain())
    with pytest.raises(gx.ConfigError, match=r"eval_environment: Plain's 'depth' is None; expected \(4, 6\)"):
        task_of().setup(data)
    task_of(vision="none").setup(data)


def test_a_range_of_ones_own():
    data = data_of(Unknown())
    assert task_of(depth_range=2.5).setup(data).depth_far == 2.5


# The encoder


def test_the_convolution_is_xlas():
    for height, width in ((7, 6), (4, 9), (1, 1)):
        convolution = Convolution(3, 5, rngs=nnx.Rngs(0))
        convolution.bias[...] = jnp.arange(5.0)
        images = jax.random.normal(jax.random.key(1), (2, height, width, 3))
        expected = jax.lax.conv_general_dilated(
            images, convolution.kernel[...], (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        np.testing.assert_allclose(convolution(images), expected + jnp.arange(5.0), atol=1e-5)


def test_metres_and_levels_are_seen_alike():
    encoder = DepthEncoder(Sight((5, 4), FAR, (4, 6), 3), rngs=nnx.Rngs(0))
    levels = jax.random.randint(jax.random.key(0), (2, 7, 5, 4), 0, 256).astype(jnp.uint8)
    features = encoder(levels)
    assert features.shape == (2, 7, 3)
    np.testing.assert_allclose(encoder(depth_metres(levels, FAR)), features, atol=1e-6)
    np.testing.assert_array_equal(depth_levels(depth_metres(levels, FAR), FAR), levels)
    edge = jnp.array([-1.0, 0.0, FAR, 9.0, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(depth_levels(edge, FAR), [0, 0, 255, 255, 255, 255])


def test_a_policy_that_sees_wants_an_image():
    model = ActorCritic(
        {"state": 2}, 1, policy_hidden=(), value_hidden=(), actor_sight=Sight((4, 6), FAR), rngs=nnx.Rngs(0)
    )
    with pytest.raises(gx.ConfigError, match="sees 'depth' beside 'state', and the observation is 'state'"):
        model.act({"state": jnp.ones(2)}, jnp.zeros(0))
    assert model.value({"state": jnp.ones(2)}).shape == ()  # the critic doesn't
