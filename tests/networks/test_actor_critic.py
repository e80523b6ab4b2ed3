"""The normaliser against numpy in float64, and what policy and value function see and remember."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from brax.training.acme import running_statistics
from flax import nnx

import galvanax as gx
from galvanax.networks.actor_critic import ActorCritic, RunningNormalizer
from galvanax.trainer.state import ModelDef

SIZES = (1, 7, 512, 3, 64, 1000, 2, 33, 5, 4096, 1, 250)


def batches(mean, deviation, seed=0):
    """Uneven batches `(..., dim)` of data that drifts."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(mean, deviation, size=(size, len(mean))) for size in SIZES]
    drift = np.linspace(-1, 1, len(parts))[:, None] * np.asarray(deviation)
    return [(part + shift).astype(np.float32) for part, shift in zip(parts, drift, strict=True)]


def fed(parts, limit=10.0):
    normalizer = RunningNormalizer(parts[0].shape[-1], limit)
    for part in parts:
        normalizer.update(jnp.asarray(part))
    return normalizer


def figures(normalizer):
    count = float(normalizer.count[...])
    return count, np.asarray(normalizer.mean[...]), np.asarray(normalizer.squares[...]) / count


@pytest.mark.behaviour("peers 110", "peers 120", "reports 7")
@pytest.mark.parametrize(
    ("mean", "deviation", "tolerance"),
    [
        ([0.0, 1.0, -3.0], [1.0, 2.0, 0.01], 1e-5),
        ([1000.0, -5e4, 1e6], [1.0, 10.0, 300.0], 5e-4),  # a sum of squares would keep nothing of these variances
    ],
    ids=["ordinary", "far from zero"],
)
def test_statistics_are_numpys(mean, deviation, tolerance):
    parts = batches(mean, deviation)
    count, found_mean, found_variance = figures(fed(parts))
    rows = np.concatenate(parts).astype(np.float64)
    assert count == len(rows) == sum(SIZES)
    np.testing.assert_allclose(found_mean, rows.mean(0), atol=np.max(np.abs(mean)) * 1e-6 + 1e-6)
    np.testing.assert_allclose(found_variance, rows.var(0), rtol=tolerance)
    print(f"\nlargest relative error of a variance: {np.max(np.abs(found_variance / rows.var(0) - 1)):.1e}")


def test_the_order_of_the_data_makes_no_difference():
    parts = batches([3.0, -2.0], [1.0, 5.0])
    one, other = figures(fed(parts)), figures(fed([part[::-1] for part in parts[::-1]]))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_leading_axes_are_all_data():
    rows = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    for shape in ((24, 3), (4, 6, 3), (2, 3, 4, 3)):
        np.testing.assert_array_equal(fed([rows.reshape(shape)]).mean[...], fed([rows]).mean[...])


@pytest.mark.behaviour("reports 34")
def test_a_long_run_does_not_lose_its_way():
    """2000 equal batches leave the statistics where one leaves them."""
    part = np.random.default_rng(1).normal(100.0, 3.0, size=(4096, 2)).astype(np.float32)
    definition = ModelDef(lambda rngs: RunningNormalizer(2))
    params, variables = definition.init(jax.random.key(0))

    def update(variables, _):
        normalizer = definition.merge(params, variables)
        normalizer.update(jnp.asarray(part))
        return definition.split(normalizer)[1], None

    variables, _ = jax.jit(lambda v: jax.lax.scan(update, v, None, 2000))(variables)
    count, mean, variance = figures(definition.merge(params, variables))
    assert count == 2000 * 4096
    np.testing.assert_allclose(mean, part.mean(0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(variance, part.var(0, dtype=np.float64), rtol=1e-3)


@pytest.mark.behaviour("peers 117")
def test_brax_finds_the_same_statistics():
    parts = batches([1.0, -4.0, 0.5], [1.0, 3.0, 0.2])
    state = running_statistics.init_state(jax.ShapeDtypeStruct((3,), jnp.float32))
    for part in parts:
        state = running_statistics.update(state, jnp.asarray(part))
    _, mean, variance = figures(fed(parts))
    np.testing.assert_allclose(mean, state.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.sqrt(variance), state.std, rtol=1e-4)


@pytest.mark.behaviour("peers 110", "peers 117")
def test_normalising_and_clipping():
    normalizer = RunningNormalizer(2, limit=5.0)
    values = jnp.array([[1.0, -2.0], [40.0, -7.0]])
    np.testing.assert_array_equal(normalizer(values), [[1, -2], [5, -5]])  # the identity at first, but for the limit
    parts = batches([10.0, -3.0], [2.0, 0.5])
    normalizer = fed(parts, limit=5.0)
    rows = np.concatenate(parts).astype(np.float64)
    expected = np.clip((rows - rows.mean(0)) / rows.std(0), -5, 5)
    np.testing.assert_allclose(normalizer(jnp.asarray(np.concatenate(parts))), expected, atol=1e-4)
    np.testing.assert_array_equal(normalizer(jnp.array([[1e9, -1e9]])), [[5, -5]])


@pytest.mark.behaviour("reports 7")
def test_what_never_varied_does_not_explode():
    normalizer = fed([np.full((10, 2), [3.0, 0.0], np.float32)] * 3)
    np.testing.assert_array_equal(normalizer(jnp.array([[3.0, 0.0]])), [[0, 0]])
    assert np.abs(normalizer(jnp.array([[3.1, 1e-5]]))).max() <= 10
    seen_once = fed([np.array([[2.0, 5.0]], np.float32)])
    assert np.isfinite(seen_once(jnp.array([[2.0, 6.0]]))).all()


def test_devices_together_see_what_one_sees():
    """`axis_name` adds up; vmap stands for the devices."""
    rows = np.random.default_rng(2).normal(50.0, 2.0, size=(4, 30, 3)).astype(np.float32)
    definition = ModelDef(lambda rngs: RunningNormalizer(3))
    params, variables = definition.init(jax.random.key(0))

    def update(part):
        normalizer = definition.merge(params, variables)
        normalizer.update(part, "data")
        normalizer.update(part + 1, "data")
        return definition.split(normalizer)[1]

    many = jax.vmap(update, axis_name="data")(rows)
    count, mean, variance = figures(fed([rows, rows + 1]))
    np.testing.assert_array_equal(many["count"], np.full(4, count))
    np.testing.assert_allclose(many["mean"], np.tile(mean, (4, 1)), rtol=1e-6)
    np.testing.assert_allclose(many["squares"] / count, np.tile(variance, (4, 1)), rtol=1e-5)


# Policy and value function


def actor_critic(size=4, **settings):
    defaults = {"policy_hidden": (8,), "value_hidden": (8,), "rngs": nnx.Rngs(0)}
    return ActorCritic(size, 2, **(defaults | settings))


@pytest.mark.behaviour("peers 122")
def test_a_privileged_critic():
    """The policy sees `state` alone, the value function `privileged_state` alone, each normalised by its own."""
    model = actor_critic({"state": 4, "privileged_state": 6})
    rng = np.random.default_rng(0)
    obs = {
        "state": jnp.asarray(rng.normal(5, 2, (9, 4)), jnp.float32),
        "privileged_state": jnp.asarray(rng.normal(-3, 1, (9, 6)), jnp.float32),
    }
    model.update_statistics(obs)
    np.testing.assert_allclose(model.normalizer.mean[...], obs["state"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.value_normalizer.mean[...], obs["privileged_state"].mean(0), rtol=1e-5)
    none = model.initial_memory(9)
    policy, value = model.act(obs, none)[0].loc, model.value(obs)
    for name, sees in (("state", "policy"), ("privileged_state", "value")):
        changed = {**obs, name: obs[name] + 1}
        assert np.array_equal(model.act(changed, none)[0].loc, policy) == (sees != "policy")
        assert np.array_equal(model.value(changed), value) == (sees != "value")
    # The policy alone needs only what the robot can measure.
    np.testing.assert_array_equal(model.act({"state": obs["state"]}, none)[0].loc, policy)


@pytest.mark.parametrize("size", [4, {"state": 4}])
def test_one_observation_for_both(size):
    model = actor_critic(size)
    obs = jax.random.normal(jax.random.key(0), (3, 4)) + 2
    model.update_statistics(obs if size == 4 else {"state": obs})
    np.testing.assert_allclose(model.normalizer.mean[...], obs.mean(0), rtol=1e-5)
    same = [model.value(obs), model.value({"state": obs})]
    np.testing.assert_array_equal(*same)
    assert same[0].shape == (3,)


def test_networks_get_normalised_observations():
    """The same as a network without a normaliser on observations that numpy normalised."""
    model, plain = actor_critic(), actor_critic(normalize=False)
    rows = np.random.default_rng(3).normal(20, 4, (500, 4)).astype(np.float32)
    model.update_statistics(jnp.asarray(rows))
    normalised = jnp.asarray(np.clip((rows - rows.mean(0)) / rows.std(0), -10, 10))
    none = model.initial_memory(500)
    np.testing.assert_allclose(model.act(jnp.asarray(rows), none)[0].loc, plain.act(normalised, none)[0].loc, atol=1e-5)
    np.testing.assert_allclose(model.value(jnp.asarray(rows)), plain.value(normalised), atol=1e-5)
    assert plain.normalizer is None
    plain.update_statistics(jnp.asarray(rows))  # nothing to do


@pytest.mark.behaviour("peers 110")
def test_acting_and_judging_leave_the_statistics_alone():
    """Only `update_statistics` moves them, so evaluation is of a frozen normaliser."""
    definition = ModelDef(lambda rngs: actor_critic(rngs=rngs))
    params, variables = definition.init(jax.random.key(0))
    model = definition.merge(params, variables)
    model.update_statistics(jax.random.normal(jax.random.key(1), (50, 4)))
    before = definition.split(model)[1]
    assert before["normalizer/count"] == 50
    far = 100 + jax.random.normal(jax.random.key(2), (50, 4))
    model.act(far, model.initial_memory(50))
    model.value(far)
    after = definition.split(model)[1]
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name])


def test_statistics_are_no_parameters():
    params, variables = ModelDef(lambda rngs: actor_critic(rngs=rngs)).init(jax.random.key(0))
    assert not any("normalizer" in name for name in params)
    assert {name.split("/")[-1] for name in variables} == {"count", "mean", "squares"}


def test_a_memory_remembers_and_an_empty_one_does_not():
    model = actor_critic(memory_size=5)
    assert model.initial_memory(3).shape == (3, 5)
    first, second = jax.random.normal(jax.random.key(0), (2, 3, 4))
    fresh, memory = model.act(second, model.initial_memory(3))
    assert memory.shape == (3, 5)
    _, after_first = model.act(first, model.initial_memory(3))
    remembered, _ = model.act(second, after_first)
    assert np.abs(fresh.loc - remembered.loc).max() > 1e-3
    again, _ = model.act(second, model.initial_memory(3))
    np.testing.assert_array_equal(again.loc, fresh.loc)
    single, _ = model.act(second[0], model.initial_memory())
    np.testing.assert_allclose(single.loc, fresh.loc[0], atol=1e-6)


def test_without_memory_there_is_nothing_to_carry():
    model = actor_critic()
    policy, memory = model.act(jnp.ones((3, 4)), model.initial_memory(3))
    assert memory.shape == (3, 0)
    assert policy.loc.shape == (3, 2)


def test_the_two_distributions():
    obs = jax.random.normal(jax.random.key(0), (6, 4))
    squashed = actor_critic().act(obs, jnp.zeros((6, 0)))[0]
    assert np.abs(squashed.action(100 * squashed.loc)).max() <= 1
    assert np.ptp(np.asarray(squashed.scale), axis=0).min() > 0  # depends on the observation
    free = actor_critic(distribution="normal", initial_std=0.3)
    policy = free.act(obs, jnp.zeros((6, 0)))[0]
    np.testing.assert_allclose(policy.scale, 0.3, rtol=1e-6)
    np.testing.assert_array_equal(policy.mode(), policy.loc)
    np.testing.assert_allclose(policy.sample(jnp.ones((6, 2))), policy.loc + 0.3, rtol=1e-5)


@pytest.mark.behaviour("peers 108")
@pytest.mark.parametrize("log_std", [-200.0, -15.0, -13.0, 0.3])
def test_a_deviation_has_a_floor(log_std):
    """1e-6: what is above stays as it is, and no density is NaN; against scipy's."""
    model = actor_critic(distribution="normal", normalize=False)
    definition = ModelDef(lambda rngs: actor_critic(distribution="normal", normalize=False, rngs=rngs))
    params, variables = definition.split(model)
    params = {**params, "log_std": jnp.full(2, log_std)}
    obs = jax.random.normal(jax.random.key(0), (6, 4))
    policy = definition.merge(params, variables).act(obs, jnp.zeros((6, 0)))[0]
    deviation = np.maximum(np.exp(np.float32(log_std)), np.float32(1e-6))
    np.testing.assert_allclose(policy.scale, deviation, rtol=1e-5)
    if log_std > -13.8:
        np.testing.assert_array_equal(policy.scale, jnp.broadcast_to(jnp.exp(params["log_std"]), (6, 2)))
    off = policy.loc + 1e-3
    distance = np.asarray(off, np.float64) - np.asarray(policy.loc, np.float64)
    expected = scipy.stats.norm.logpdf(distance, 0, float(deviation)).sum(-1)
    np.testing.assert_allclose(policy.log_prob(off), expected, rtol=1e-4)

    def likelihood(params):
        return definition.merge(params, variables).act(obs, jnp.zeros((6, 0)))[0].log_prob(policy.loc).sum()

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(likelihood)(params)))


@pytest.mark.behaviour("peers 108")
def test_what_it_does_not_know():
    for initial_std in (0, -1.0, 1e-7, float("nan"), float("inf")):
        with pytest.raises(gx.ConfigError, match=rf"initial_std={initial_std}: expected a standard deviation of at l"):
            actor_critic(distribution="normal", initial_std=initial_std)
    with pytest.raises(gx.ConfigError, match=r"Observations hold 'pixels', 'privileged_state'; expected 'state'"):
        actor_critic({"pixels": 3, "privileged_state": 4})
    with pytest.raises(gx.ConfigError, match=r"distribution='beta'.*tanh_normal, normal"):
        actor_critic(distribution="beta")
    with pytest.raises(gx.ConfigError, match=r"did you mean 'swish'"):
        actor_critic(activation="swich")


@pytest.mark.behaviour("peers 118")
def test_observations_of_another_size_are_refused():
    normalizer = RunningNormalizer(3)
    for use in (normalizer, normalizer.update):
        with pytest.raises((TypeError, ValueError), match=r"[Ii]ncompatible shapes"):
            use(jnp.ones((5, 4)))
