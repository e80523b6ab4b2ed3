"""Episodes of a policy: the same as evaluation's, and what MuJoCo makes of their actions."""

import types

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from flax import nnx

import galvanax as gx
from galvanax.envs.classic.cart_pole import CartPole
from galvanax.envs.legged.go2 import Go2
from galvanax.networks.actor_critic import ActorCritic
from galvanax.physics import load_model
from galvanax.tasks.collect_motions import collect_motions
from galvanax.tasks.policy_rollout import episode_clip, episode_keys, play_episodes, record_motion, with_command
from galvanax.tasks.ppo_rollout import episode

STEPS = 400  # more than an episode lasts


@pytest.fixture(scope="module")
def env():
    return CartPole(start="upright")


@pytest.fixture(scope="module")
def keys():
    return episode_keys(0, np.arange(4))


@pytest.fixture(scope="module")
def played(env, keys):
    return play_episodes(policy(env), env, keys, STEPS)


def policy(env, **settings):
    sizes = {"policy_hidden": (16,), "value_hidden": (16,)}
    return ActorCritic(env.observation_size, env.action_size, **(sizes | settings), rngs=nnx.Rngs(3))


class Toy:
    """A pendulum that turns at the rate of the action; as brax's environments are, or Playground's."""

    action_size, observation_size = 1, 1

    def __init__(self, style="brax", breaks_at=None, falls_at=None, cut_off_at=None):
        self.style, self.breaks_at = style, jnp.inf if breaks_at is None else breaks_at
        self.falls_at, self.cut_off_at = falls_at, cut_off_at
        model = load_model("pendulum")
        self.dt = np.float32(0.04)
        if style == "brax":
            self.sys = types.SimpleNamespace(mj_model=model)
        else:
            self.mj_model = model

    def reset(self, rng):
        return self.state(jax.random.uniform(rng, (1,)), jnp.zeros(1), jnp.int32(0))

    def step(self, state, action):
        qpos = state["obs"] + self.dt * action
        return self.state(qpos, action, state["info"]["count"] + 1)

    def state(self, qpos, qvel, count):
        qpos = jnp.where(count >= self.breaks_at, jnp.nan, qpos)
        fell, cut_off = (jnp.float32(count == at if at else 0) for at in (self.falls_at, self.cut_off_at))
        info = {"count": count} | ({"truncation": cut_off} if self.cut_off_at else {})
        done = jnp.maximum(fell, cut_off)
        return ToyState(self.style, {"obs": qpos, "qvel": qvel, "info": info, "reward": -qpos[0], "done": done})


@jax.tree_util.register_pytree_node_class
class ToyState:
    def __init__(self, style, fields):
        self.style, self.fields, self.metrics = style, fields, {}
        self.obs, self.info, self.reward, self.done = (fields[name] for name in ("obs", "info", "reward", "done"))
        if style == "brax":
            self.pipeline_state = types.SimpleNamespace(q=self.obs, qd=fields["qvel"])
        else:
            self.data = types.SimpleNamespace(qpos=self.obs, qvel=fields["qvel"], ctrl=fields["qvel"])

    def __getitem__(self, name):
        return self.fields[name]

    def tree_flatten(self):
        return (self.fields,), self.style

    @classmethod
    def tree_unflatten(cls, style, children):
        return cls(style, *children)


def test_the_same_episodes_as_evaluation(env, keys, played):
    model = policy(env)
    expected = jax.jit(jax.vmap(lambda key: episode(env, model, key, STEPS)))(keys)
    np.testing.assert_array_equal(played.length, expected["episode_length"])
    np.testing.assert_allclose(played.reward.sum(1), expected["episode_return"], rtol=1e-5)
    np.testing.assert_allclose(played.metrics["upright"], expected["env/upright"], rtol=1e-5)


@pytest.mark.behaviour("reports 6")
@pytest.mark.parametrize(
    ("ends", "length", "fell"),
    [
        ({"falls_at": 5}, 5, True),
        ({"cut_off_at": 7}, 7, False),
        ({"falls_at": 5, "cut_off_at": 7}, 5, True),
        ({"cut_off_at": 70}, 20, False),
    ],
)
def test_an_environments_own_time_limit_is_no_fall(keys, ends, length, fell):
    toy = Toy(**ends)
    played = play_episodes(policy(toy), toy, keys, 20)
    np.testing.assert_array_equal(played.length, length)
    np.testing.assert_array_equal(played.fell, fell)


def test_an_episode_ends_at_its_first_end(env, played):
    lengths = np.asarray(played.length)
    assert played.qpos.shape == (4, STEPS, 2)
    assert played.fell.all()
    assert lengths.max() < STEPS
    for qpos, reward, length in zip(played.qpos, played.reward, lengths, strict=True):
        assert (np.abs(qpos[:length, 1]) <= env.fall).all()
        assert (reward[:length] > 0).all()
        assert not qpos[length:].any()
        assert not reward[length:].any()


def test_mujoco_itself_makes_the_same_states_of_the_actions(env, played):
    clip = episode_clip(env, played, 1)
    model = load_model("cart-pole")
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = clip.qpos[0], clip.qvel[0]
    for row in range(len(clip.qpos)):
        np.testing.assert_allclose(data.qpos, clip.qpos[row], atol=1e-4)
        np.testing.assert_allclose(data.qvel, clip.qvel[row], atol=1e-4)
        np.testing.assert_allclose(
            clip.ctrl[row], clip.extra["action"][row] * model.actuator_ctrlrange[:, 1], rtol=1e-6
        )
        data.ctrl[:] = clip.ctrl[row]
        mujoco.mj_step(model, data, round(env.dt / model.opt.timestep))
    assert row > 10
    assert clip.dt == pytest.approx(0.02)
    assert clip.extra["reward"].shape == (len(clip.qpos),)
    assert "command" not in clip.extra


def test_noise_is_a_function_of_the_key_alone(env, keys, played):
    model = policy(env)
    noisy = play_episodes(model, env, keys, STEPS, deterministic=False)
    turned = play_episodes(model, env, keys[::-1], STEPS, deterministic=False)
    np.testing.assert_array_equal(noisy.action, turned.action[::-1])
    assert np.std(noisy.action[:, :10], axis=1).min() > 0.1
    assert np.abs(np.diff(noisy.action[:, 0], axis=0)).min() > 1e-3
    np.testing.assert_array_equal(noisy.qpos[:, 0], played.qpos[:, 0])
    assert np.std(played.action[:, :10], axis=1).max() < 0.1


def test_a_policys_memory_is_carried():
    env = Toy()
    model = policy(env, memory_size=4)
    played = play_episodes(model, env, episode_keys(0, np.arange(2)), 8)
    memory = model.initial_memory(2)
    for row in range(8):
        distribution, memory = model.act(played.qpos[:, row], memory)
        np.testing.assert_allclose(played.action[:, row], distribution.mode(), rtol=1e-5)
    fresh = model.act(played.qpos[:, 7], model.initial_memory(2))[0].mode()
    assert not np.allclose(fresh, played.action[:, 7], rtol=1e-3)


@pytest.mark.parametrize("style", ["brax", "playground"])
def test_other_libraries_states(style):
    env = Toy(style)
    clip = record_motion(policy(env), env, num_steps=10, rng=jax.random.key(0))
    np.testing.assert_allclose(np.diff(clip.qpos[:, 0]), 0.04 * clip.extra["action"][:-1, 0], rtol=1e-4)
    np.testing.assert_allclose(clip.qvel[1:], clip.extra["action"][:-1])
    np.testing.assert_allclose(clip.time, 0.04 * np.arange(10), atol=1e-12)
    assert (clip.ctrl is None) == (style == "brax")


def test_physics_that_breaks():
    env = Toy(breaks_at=6)
    assert len(record_motion(policy(env), env, num_steps=10, rng=jax.random.key(0)).qpos) == 6
    with pytest.raises(gx.DataError, match="Episode 0 has a state that is not finite"):
        next(collect_motions(policy(env), env, 2, 10))
    env = Toy(breaks_at=0)
    with pytest.raises(gx.DataError, match=r"Toy\.reset gave a state that is not finite"):
        record_motion(policy(env), env, num_steps=10, rng=jax.random.key(0))


@pytest.mark.parametrize("command", [(0.6, -0.2, 0.3), (0.05, 0.0, 0.0), (0.0, 0.0, 0.0)])
def test_a_command_of_ones_own(command):
    env = with_command(Go2().evaluation(), command)
    state = jax.jit(env.reset)(jax.random.key(5))
    np.testing.assert_allclose(state.info["command"], command, rtol=1e-6)
    layout, scales = env.observation_layout, env.scales
    expected = np.array(command) * [scales.lin_vel, scales.lin_vel, scales.ang_vel]
    np.testing.assert_allclose(state.obs[layout["command"]], expected, rtol=1e-6)


def test_go2_states_are_those_of_motion_data():
    env = Go2()
    state = jax.jit(env.reset)(jax.random.key(5))
    data = state.pipeline_state
    assert env.motion_state(state).shape == (37,)
    np.testing.assert_array_equal(env.motion_state(state), jnp.concatenate([data.qpos, data.qvel]))


@pytest.mark.slow
def test_go2_keeps_to_its_command_while_it_walks():
    env = Go2().evaluation()
    clip = record_motion(policy(env), env, num_steps=30, rng=jax.random.key(0), command=(0.5, 0.1, -0.3))
    np.testing.assert_allclose(clip.extra["command"], np.tile([0.5, 0.1, -0.3], (len(clip.qpos), 1)), rtol=1e-6)
    (batch,) = collect_motions(policy(env), env, 2, 5, keep_short=True)
    assert batch.states.shape == (2, 5, 37)
    assert batch.conditionings.shape == (2, 5, 3)


def test_what_does_not_work(env):
    from brax.envs.fast import Fast

    fast = Fast()
    model = policy(fast)
    with pytest.raises(gx.ConfigError, match=r"Fast has no MuJoCo model.*expected env.mj_model"):
        record_motion(model, fast, num_steps=10, rng=jax.random.key(0))
    with pytest.raises(gx.ConfigError, match="Fast has no MuJoCo model"):
        next(collect_motions(model, fast, 1, 10))
    with pytest.raises(gx.ConfigError, match="CartPole takes none"):
        record_motion(policy(env), env, num_steps=10, rng=jax.random.key(0), command=(1.0, 0.0, 0.0))
    with pytest.raises(gx.ConfigError, match="num_steps=0"):
        record_motion(policy(env), env, num_steps=0, rng=jax.random.key(0))
    with pytest.raises(gx.ConfigError, match="num_envs=0"):
        next(collect_motions(policy(env), env, 1, 10, num_envs=0))
