"""PPO's loss against numpy, and against brax's on the same batch and the same weights.

brax's `compute_ppo_loss` takes no advantages: it estimates them inside, by an estimator of its own (it leaves λ out of
each advantage's first step, see test_gae.py), and normalises them in the minibatch. With λ = 1 and nothing truncated
the two estimators are one, so the whole loss, its gradients included, can be compared.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from brax.training.agents.ppo import losses as brax_losses
from brax.training.agents.ppo import networks as brax_networks
from brax.training.types import Transition
from flax import linen, nnx

from galvanax.envs.symmetry import Symmetry
from galvanax.networks.actor_critic import ActionDistribution, ActorCritic
from galvanax.tasks.gae import generalized_advantages
from galvanax.tasks.ppo_loss import LossWeights, Minibatch, mirror_minibatch, ppo_loss, replay_policy
from galvanax.trainer.state import ModelDef

STEPS, ENVS, OBS, ACTIONS = 11, 6, 5, 3
HIDDEN = (16, 16)
WEIGHTS = LossWeights(clip=0.2, value=0.5, entropy=0.01, clip_value=False, symmetry=0.7)


def actor_critic(**settings):
    return ActorCritic(
        OBS, ACTIONS, **({"policy_hidden": HIDDEN, "value_hidden": HIDDEN, "rngs": nnx.Rngs(0)} | settings)
    )


def moved(model, seed=1, by=0.1):
    """The model after a few updates, say: other weights."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [leaf + by * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves), rest)


def batch_of(model, seed=0):
    """What the model did in a made-up rollout, with advantages and targets out of the blue."""
    rng = np.random.default_rng(seed)
    obs = jnp.asarray(rng.normal(size=(STEPS, ENVS, OBS)), jnp.float32)
    first = jnp.asarray(rng.random((STEPS, ENVS)) < 0.2, jnp.float32)
    memory = jnp.asarray(rng.normal(size=(ENVS, model.memory_size)), jnp.float32)
    zeros = jnp.zeros((STEPS, ENVS))
    batch = Minibatch(obs, jnp.zeros((STEPS, ENVS, ACTIONS)), None, zeros, zeros, zeros, zeros, first, memory)
    policy = replay_policy(model, batch)
    raw = policy.sample(jnp.asarray(rng.normal(size=(STEPS, ENVS, ACTIONS)), jnp.float32))
    advantage, error = (jnp.asarray(rng.normal(size=(STEPS, ENVS)), jnp.float32) for _ in range(2))
    value = model.value(obs)
    return dataclasses.replace(
        batch,
        raw_action=raw,
        policy=policy,
        log_prob=policy.log_prob(raw),
        value=value,
        advantage=advantage,
        target=value + error,
    )


def noise_of(batch, seed=9):
    return jax.random.normal(jax.random.key(seed), batch.raw_action.shape)


@pytest.mark.behaviour("peers 104", "peers 105")
@pytest.mark.parametrize("clip_value", [False, True])
@pytest.mark.parametrize("distribution", ["tanh_normal", "normal"])
def test_the_loss_is_numpys(distribution, clip_value):
    old = actor_critic(distribution=distribution)
    batch, new = batch_of(old), moved(old)
    noise = noise_of(batch)
    weights = dataclasses.replace(WEIGHTS, clip_value=clip_value)
    loss, metrics = ppo_loss(new, batch, noise, weights)

    policy = new.act(batch.obs, new.initial_memory(STEPS, ENVS))[0]
    loc, scale, raw, z = (np.asarray(a, np.float64) for a in (policy.loc, policy.scale, batch.raw_action, noise))
    slope = (lambda x: np.log1p(-(np.tanh(x) ** 2))) if distribution == "tanh_normal" else np.zeros_like
    log_prob = (scipy.stats.norm.logpdf(raw, loc, scale) - slope(raw)).sum(-1)
    ratio = np.exp(log_prob - np.asarray(batch.log_prob, np.float64))
    surrogate, outside = [], 0
    for r, advantage in zip(ratio.ravel(), np.asarray(batch.advantage, np.float64).ravel(), strict=True):
        best = 1.2 if advantage > 0 else 0.8  # beyond it there is nothing to gain
        surrogate.append(min(r, best) * advantage if advantage > 0 else max(r, best) * advantage)
        outside += not 0.8 <= r <= 1.2
    assert outside > 10
    value, before, target = (np.asarray(a, np.float64) for a in (new.value(batch.obs), batch.value, batch.target))
    squared = (value - target) ** 2
    if clip_value:
        close = np.minimum(np.maximum(value, before - 0.2), before + 0.2)
        assert (close != value).any()
        squared = np.maximum(squared, (close - target) ** 2)
    entropy = (scipy.stats.norm.entropy(loc, scale) + slope(loc + scale * z)).sum(-1).mean()

    expected = {
        "policy_loss": -np.mean(surrogate),
        "value_loss": np.mean(squared),
        "entropy": entropy,
        "clip_fraction": outside / ratio.size,
        "action_std": scale.mean(),
    }
    for name, figure in expected.items():
        assert float(metrics[name]) == pytest.approx(figure, rel=1e-5), name
    total = expected["policy_loss"] + 0.5 * expected["value_loss"] - 0.01 * entropy
    assert float(loss) == pytest.approx(total, rel=1e-5)


def test_nothing_has_moved_at_the_first_update():
    for distribution in ("tanh_normal", "normal"):
        model = actor_critic(distribution=distribution)
        batch = batch_of(model)
        _, metrics = ppo_loss(model, batch, noise_of(batch), WEIGHTS)
        assert metrics["kl"] == 0
        assert metrics["clip_fraction"] == 0
        assert float(metrics["policy_loss"]) == pytest.approx(-float(batch.advantage.mean()), rel=1e-5)


@pytest.mark.behaviour("peers 104")
def test_no_gradient_beyond_the_clip():
    """Only samples that are inside, or that would come back, pull."""
    old = actor_critic(distribution="normal", normalize=False, policy_hidden=())
    definition = ModelDef(lambda rngs: actor_critic(distribution="normal", normalize=False, policy_hidden=()))
    params, variables = definition.split(moved(old))
    batch = batch_of(old)
    ratio = jnp.exp(
        definition.merge(params, variables).act(batch.obs, 0)[0].log_prob(batch.raw_action) - batch.log_prob
    )
    weights = dataclasses.replace(WEIGHTS, value=0.0, entropy=0.0)

    def gradient(advantage):
        part = dataclasses.replace(batch, advantage=advantage)
        objective = lambda p: ppo_loss(definition.merge(p, variables), part, noise_of(batch), weights)[0]  # noqa: E731
        return jax.grad(objective)(params)["policy/layers/0/kernel"]

    beyond = jnp.where(ratio > 1.2, 1.0, 0.0) - jnp.where(ratio < 0.8, 1.0, 0.0)
    assert jnp.abs(beyond).sum() > 5
    np.testing.assert_array_equal(gradient(beyond), 0)
    assert jnp.abs(gradient(-beyond)).max() > 1e-3


# brax


def brax_side(model):
    """brax's networks, and our weights as its parameters."""
    networks = brax_networks.make_ppo_networks(
        OBS,
        ACTIONS,
        policy_hidden_layer_sizes=HIDDEN,
        value_hidden_layer_sizes=HIDDEN,
        activation=linen.swish,
        distribution_type="tanh_normal",
    )

    def dense(mlp):
        layers = enumerate(mlp.layers)
        return {"params": {f"hidden_{i}": {"kernel": x.kernel[...], "bias": x.bias[...]} for i, x in layers}}

    params = brax_losses.PPONetworkParams(policy=dense(model.policy), value=dense(model.value_function))
    return networks, params


def logits_of(batch):
    """brax's parameters of the distribution: the mean, and what softplus makes a deviation of."""
    return jnp.concatenate([batch.policy.loc, jnp.log(jnp.expm1(batch.policy.scale - 0.001))], -1)


def test_brax_networks_with_our_weights_say_the_same():
    model = actor_critic(normalize=False)
    networks, params = brax_side(model)
    batch = batch_of(model)
    logits = networks.policy_network.apply(None, params.policy, batch.obs)
    distribution = networks.parametric_action_distribution
    np.testing.assert_array_equal(networks.value_network.apply(None, params.value, batch.obs), batch.value)
    np.testing.assert_array_equal(distribution.create_dist(logits).loc, batch.policy.loc)
    np.testing.assert_array_equal(distribution.create_dist(logits).scale, batch.policy.scale)
    np.testing.assert_array_equal(distribution.mode(logits), batch.policy.mode())
    np.testing.assert_allclose(distribution.log_prob(logits, batch.raw_action), batch.log_prob, atol=1e-5)
    key = jax.random.key(3)
    noise = jax.random.normal(key, batch.raw_action.shape)
    np.testing.assert_allclose(distribution.entropy(logits, key), batch.policy.entropy(noise), rtol=1e-6)
    np.testing.assert_array_equal(distribution.sample(logits, key), batch.policy.action(batch.policy.sample(noise)))


@pytest.mark.parametrize("clip_value", [None, 0.2])
def test_the_whole_loss_and_its_gradient_are_braxs(clip_value):
    """λ = 1, nothing truncated: see the top of the file."""
    definition = ModelDef(lambda rngs: actor_critic(normalize=False, rngs=rngs))
    old = actor_critic(normalize=False)
    new = moved(old, by=0.05)
    networks, params = brax_side(new)
    batch = batch_of(old)
    rng = np.random.default_rng(4)
    reward = jnp.asarray(rng.normal(size=(STEPS, ENVS)), jnp.float32)
    terminated = jnp.asarray(rng.random((STEPS, ENVS)) < 0.15, jnp.float32)
    last = jnp.asarray(rng.normal(size=(ENVS, OBS)), jnp.float32)

    # brax evaluates values and advantages with the weights of the moment.
    value = new.value(batch.obs)
    after = jnp.concatenate([value[1:], new.value(last)[None]]) * (1 - terminated)
    advantage = generalized_advantages(reward, value, after, terminated, 0.9, 1.0)
    ours = dataclasses.replace(
        batch,
        advantage=(advantage - advantage.mean()) / (advantage.std() + 1e-8),
        target=advantage + value,
    )
    key = jax.random.key(5)
    noise = jax.random.normal(key, batch.raw_action.shape)
    # brax halves its weight of the value loss once more.
    weights = dataclasses.replace(WEIGHTS, value=0.5 * 0.5, clip_value=clip_value is not None)
    by_name, variables = definition.split(new)
    (loss, metrics), gradient = jax.value_and_grad(
        lambda p: ppo_loss(definition.merge(p, variables), ours, noise, weights), has_aux=True
    )(by_name)

    data = Transition(
        observation=batch.obs,
        action=batch.policy.action(batch.raw_action),
        reward=reward,
        discount=1 - terminated,
        next_observation=jnp.concatenate([batch.obs[1:], last[None]]),
        extras={
            "state_extras": {"truncation": jnp.zeros((STEPS, ENVS))},
            "policy_extras": {
                "raw_action": batch.raw_action,
                "log_prob": batch.log_prob,
                "distribution_params": logits_of(batch),
                "value": batch.value,
            },
        },
    )
    data = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), data)
    (brax_loss, brax_metrics), brax_gradient = jax.value_and_grad(brax_losses.compute_ppo_loss, has_aux=True)(
        params,
        None,
        data,
        key,
        networks,
        entropy_cost=0.01,
        discounting=0.9,
        gae_lambda=1.0,
        clipping_epsilon=0.2,
        vf_coefficient=0.5,
        clipping_epsilon_value=clip_value,
    )
    pairs = {
        "policy_loss": (metrics["policy_loss"], brax_metrics["policy_loss"]),
        "value_loss": (0.5 * 0.5 * metrics["value_loss"], brax_metrics["v_loss"]),
        "entropy": (-0.01 * metrics["entropy"], brax_metrics["entropy_loss"]),
        "loss": (loss, brax_loss),
        "action_std": (metrics["action_std"], brax_metrics["policy_dist_mean_std"]),
    }
    for name, (one, other) in pairs.items():
        assert float(one) == pytest.approx(float(other), rel=2e-6), name
    # It adds 1e-5 inside a logarithm, once for each entry of an action.
    assert float(metrics["kl"]) == pytest.approx(float(brax_metrics["kl_mean"]), abs=1.2e-5 * ACTIONS)
    for index in range(3):
        for ours_is, theirs in (("policy", brax_gradient.policy), ("value_function", brax_gradient.value)):
            for kind in ("kernel", "bias"):
                expected = theirs["params"][f"hidden_{index}"][kind]
                found = gradient[f"{ours_is}/layers/{index}/{kind}"]
                np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=f"{ours_is}/{index}/{kind}")


# Distributions


def normal(loc, scale, squashed=True):
    return ActionDistribution(jnp.asarray(loc, jnp.float32), jnp.asarray(scale, jnp.float32), squashed)


LOC, SCALE = np.array([[0.3, -1.2, 0.0], [2.0, 0.1, -0.4]]), np.array([[0.5, 0.2, 1.3], [0.05, 1.0, 0.7]])


@pytest.mark.behaviour("peers 107", "reports 31")
@pytest.mark.parametrize("squashed", [True, False])
def test_log_prob_is_that_of_the_action(squashed):
    """Change of variables: the density of tanh(x) is the normal's at x over tanh's slope there."""
    raw = np.random.default_rng(0).normal(LOC, SCALE)
    expected = scipy.stats.norm.logpdf(raw, LOC, SCALE)
    if squashed:
        expected -= np.log(1 - np.tanh(raw) ** 2)
    np.testing.assert_allclose(normal(LOC, SCALE, squashed).log_prob(jnp.asarray(raw)), expected.sum(-1), rtol=1e-5)


@pytest.mark.behaviour("reports 31")
def test_the_density_of_actions_integrates_to_one():
    actions = np.linspace(-1, 1, 20_001)[1:-1]
    for loc, scale in ((0.0, 0.5), (0.8, 0.4), (-0.3, 0.9)):
        density = np.exp(normal([[loc]], [[scale]]).log_prob(jnp.arctanh(jnp.asarray(actions, jnp.float32))[:, None]))
        assert np.trapezoid(density, actions) == pytest.approx(1, abs=2e-3)


@pytest.mark.behaviour("peers 107", "reports 31")
def test_far_out_nothing_overflows():
    policy = normal([[0.0]], [[1.0]])
    for raw in (-50.0, 50.0, 1e4):
        value, slope = jax.value_and_grad(lambda x: policy.log_prob(x[None, None])[0])(jnp.float32(raw))
        # log(1 - tanh²) = log 4 - 2|x| out there.
        expected = scipy.stats.norm.logpdf(raw) - (np.log(4) - 2 * abs(raw))
        assert float(value) == pytest.approx(expected, rel=1e-5)
        assert np.isfinite(slope)


@pytest.mark.behaviour("peers 107", "reports 31")
@pytest.mark.parametrize("squashed", [True, False])
def test_entropy(squashed):
    noise = jax.random.normal(jax.random.key(0), (200_000, 2, 3))
    wide = normal(np.broadcast_to(LOC, noise.shape), np.broadcast_to(SCALE, noise.shape), squashed)
    if squashed:  # E[-log p], by Monte Carlo with other noise
        sampled = -np.asarray(wide.log_prob(wide.sample(-noise[::-1])), np.float64).mean(0)
        np.testing.assert_allclose(np.asarray(wide.entropy(noise)).mean(0), sampled, atol=0.02)
    else:
        exact = scipy.stats.norm.entropy(LOC, SCALE).sum(-1)
        np.testing.assert_allclose(wide.entropy(noise)[0], exact, rtol=1e-6)


@pytest.mark.behaviour("peers 107", "reports 31")
def test_kl_is_exact():
    """Against numerical integration, and by Monte Carlo between the squashed distributions themselves."""
    other_loc, other_scale = LOC + np.array([0.1, -0.3, 0.5]), SCALE * np.array([1.2, 0.7, 1.5])
    old, new = normal(LOC, SCALE), normal(other_loc, other_scale)
    exact = np.zeros(2)
    for index in np.ndindex(2, 3):
        p, q = scipy.stats.norm(LOC[index], SCALE[index]), scipy.stats.norm(other_loc[index], other_scale[index])
        x = np.linspace(LOC[index] - 12 * SCALE[index], LOC[index] + 12 * SCALE[index], 20_001)
        exact[index[0]] += np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
    np.testing.assert_allclose(new.kl(old), exact, rtol=1e-5)
    assert (np.abs(np.asarray(old.kl(new)) - exact) > 0.1).all()  # the other way round is another number
    raw = old.sample(jax.random.normal(jax.random.key(1), (200_000, 2, 3)))
    np.testing.assert_allclose((old.log_prob(raw) - new.log_prob(raw)).mean(0), exact, rtol=0.02)
    np.testing.assert_array_equal(old.kl(old), 0)


# Memory


@pytest.mark.behaviour("peers 113")
def test_a_memory_is_replayed_with_its_resets():
    """By a loop over steps and environments, one at a time."""
    model = actor_critic(memory_size=7)
    batch = batch_of(model)
    assert 3 < batch.first.sum() < STEPS * ENVS / 2
    found = replay_policy(model, batch)
    for env in range(ENVS):
        memory = batch.memory[env]
        for step in range(STEPS):
            if batch.first[step, env]:
                memory = jnp.zeros(7)
            policy, memory = model.act(batch.obs[step, env], memory)
            np.testing.assert_allclose(found.loc[step, env], policy.loc, atol=1e-6)
            np.testing.assert_allclose(found.scale[step, env], policy.scale, atol=1e-6)


# Symmetry: entries 0 and 1 of the observation are left and right, 2 is forward, 3 and 4 sideways and turning.

MIRROR = Symmetry(
    obs=np.array([1, 0, 2, 3, 4]),
    obs_sign=np.array([1.0, 1, 1, -1, -1]),
    action=np.array([1, 0, 2]),
    action_sign=np.array([1.0, 1, -1]),
)


@pytest.mark.behaviour("peers 158")
def test_the_mirror_loss_is_numpys_and_nothing_flows_into_its_target():
    model = actor_critic()
    batch = batch_of(model)
    loss, metrics = ppo_loss(model, batch, noise_of(batch), WEIGHTS, MIRROR)
    plain, _ = ppo_loss(model, batch, noise_of(batch), WEIGHTS)
    obs = np.asarray(batch.obs)[..., [1, 0, 2, 3, 4]] * np.array([1, 1, 1, -1, -1], np.float32)
    there = np.asarray(model.act(jnp.asarray(obs), model.initial_memory(STEPS, ENVS))[0].loc)
    here = np.asarray(model.act(batch.obs, model.initial_memory(STEPS, ENVS))[0].loc)
    expected = ((there - here[..., [1, 0, 2]] * [1, 1, -1]) ** 2).sum(-1).mean()
    assert float(metrics["mirror_loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(loss - plain) == pytest.approx(0.7 * float(expected), rel=1e-4)


@pytest.mark.behaviour("peers 158")
@pytest.mark.parametrize("distribution", ["tanh_normal", "normal"])
def test_the_mirrored_batch(distribution):
    """Twice the environments: what was, and what the mirrored robot would have done for the same gain."""
    model = actor_critic(distribution=distribution)
    batch = batch_of(model)
    double = mirror_minibatch(batch, MIRROR)
    for leaf, twice in zip(jax.tree.leaves(batch), jax.tree.leaves(double), strict=True):
        axis = 0 if leaf is batch.memory else 1
        wanted = list(leaf.shape)
        wanted[axis] *= 2
        assert twice.shape == tuple(wanted)
    front, back = (
        jax.tree.map(lambda leaf, s=side: leaf[:, s], dataclasses.replace(double, memory=double.memory[None]))
        for side in (slice(0, ENVS), slice(ENVS, None))
    )
    for name in ("obs", "raw_action", "log_prob", "value", "advantage", "target", "first"):
        np.testing.assert_array_equal(getattr(front, name), getattr(batch, name))
    for name in ("log_prob", "value", "advantage", "target", "first"):
        np.testing.assert_array_equal(getattr(back, name), getattr(batch, name))
    np.testing.assert_array_equal(back.obs, MIRROR.mirror_obs(batch.obs))
    np.testing.assert_array_equal(back.raw_action[..., 0], batch.raw_action[..., 1])
    np.testing.assert_array_equal(back.raw_action[..., 2], -batch.raw_action[..., 2])
    np.testing.assert_array_equal(back.policy.loc[..., 2], -batch.policy.loc[..., 2])
    np.testing.assert_array_equal(back.policy.scale, np.asarray(batch.policy.scale)[..., [1, 0, 2]])
    # The old policy's density at the image is that of the original, and mirroring twice is nothing.
    np.testing.assert_allclose(back.policy.log_prob(back.raw_action), batch.log_prob, rtol=1e-5)
    np.testing.assert_array_equal(MIRROR.mirror_obs(back.obs), batch.obs)
    ppo_loss(model, double, noise_of(double), WEIGHTS)


def test_what_only_the_value_function_sees_is_not_mirrored():
    model = ActorCritic(
        {"state": OBS, "privileged_state": 2}, ACTIONS, policy_hidden=(), value_hidden=(), rngs=nnx.Rngs(0)
    )
    plain = batch_of(actor_critic())
    more = jax.random.normal(jax.random.key(0), (STEPS, ENVS, 2))
    batch = dataclasses.replace(plain, obs={"state": plain.obs, "privileged_state": more})
    double = mirror_minibatch(batch, MIRROR)
    np.testing.assert_array_equal(double.obs["state"][:, ENVS:], MIRROR.mirror_obs(plain.obs))
    np.testing.assert_array_equal(double.obs["privileged_state"], jnp.concatenate([more, more], 1))
    ppo_loss(model, double, noise_of(double), WEIGHTS)
    ppo_loss(model, batch, noise_of(batch), WEIGHTS, MIRROR)


@pytest.mark.behaviour("peers 158")
def test_an_even_policy_has_no_mirror_loss():
    """A linear policy without biases whose weights, and their mirror image, are averaged."""
    model = actor_critic(policy_hidden=(), normalize=False)
    layer = model.policy.layers[0]
    kernel = np.asarray(layer.kernel[...])
    signs = np.concatenate([MIRROR.action_sign, np.ones(ACTIONS)])  # means, and deviations, which have no sign
    outputs = np.concatenate([MIRROR.action, ACTIONS + MIRROR.action])
    image = MIRROR.obs_sign[:, None] * kernel[MIRROR.obs][:, outputs] * signs
    for weights, even in ((kernel, False), ((kernel + image) / 2, True)):
        layer.kernel[...] = jnp.asarray(weights, jnp.float32)
        layer.bias[...] = jnp.zeros(2 * ACTIONS)
        batch = batch_of(model)
        loss = float(ppo_loss(model, batch, noise_of(batch), WEIGHTS, MIRROR)[1]["mirror_loss"])
        assert loss < 1e-12 if even else loss > 1e-2
