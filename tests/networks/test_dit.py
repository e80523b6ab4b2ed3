"""The transformer against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from galvanax.errors import ConfigError
from galvanax.networks import DIT_SIZES, ContinuousCondEmbedder, DiT1d, DiTBlock, TimeEmbedding

IN, OUT, D, HEADS, DEPTH, COND = 5, 3, 16, 4, 2, 2


def make(condition_dim=COND, dropout=0.0, perturbed=True):
    network = DiT1d(
        IN, OUT, d_model=D, num_heads=HEADS, depth=DEPTH, condition_dim=condition_dim, dropout=dropout, rngs=nnx.Rngs(0)
    )
    return perturb(network) if perturbed else network


def perturb(network, scale=0.2):
    """Away from the zeros that a network starts with."""
    rng = np.random.default_rng(0)
    graphdef, state = nnx.split(network)
    return nnx.merge(graphdef, jax.tree.map(lambda p: p + scale * rng.normal(size=p.shape).astype(np.float32), state))


def inputs(batch=6, tokens=7, seed=0):
    rng = np.random.default_rng(seed)
    x, t, condition = rng.normal(size=(batch, tokens, IN)), rng.uniform(size=batch), rng.normal(size=(batch, COND))
    return tuple(jnp.asarray(array, jnp.float32) for array in (x, t, condition))


# The same in numpy and float64.


def linear(layer, x):
    return x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...], np.float64)


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def attention(layer, x, num_heads):
    assert layer.query.kernel.shape == (x.shape[-1], num_heads, x.shape[-1] // num_heads)

    def heads(part):  # (tokens, d) -> (heads, tokens, d / heads)
        kernel, bias = (np.asarray(p[...], np.float64) for p in (part.kernel, part.bias))
        return np.einsum("td,dhk->htk", x, kernel) + bias[:, None]

    query, key, value = map(heads, (layer.query, layer.key, layer.value))
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (
        np.einsum("htk,hkd->td", weights @ value, np.asarray(layer.out.kernel[...], np.float64)) + layer.out.bias[...]
    )


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mish(x):
    return x * np.tanh(np.log1p(np.exp(x)))


def block_of(layer, x, embedding):
    s1, c1, g1, s2, c2, g2 = np.split(linear(layer.modulation, silu(embedding)), 6)
    x = x + g1 * attention(layer.attention, layer_norm(x) * (1 + c1) + s1, HEADS)
    return x + g2 * linear(layer.contract, gelu(linear(layer.expand, layer_norm(x) * (1 + c2) + s2)))


def waves(value, dim):
    phases = value * 10000.0 ** (-np.arange(dim // 2) / (dim // 2))
    return np.concatenate([np.sin(phases), np.cos(phases)])


def network_of(network, x, t, condition):
    embedding = waves(1000.0 * t, D)
    if condition is not None:
        tokens = linear(network.condition.tokens, condition).reshape(COND, 128)
        embedding = embedding + linear(network.condition.out, attention(network.condition.attention, tokens, 2).ravel())
    for layer in network.map:
        embedding = mish(linear(layer, embedding))
    x = linear(network.project, x) + np.stack([waves(place, D) for place in range(len(x))])
    for layer in network.blocks:
        x = block_of(layer, x, embedding)
    shift, scale = np.split(linear(network.modulation, silu(embedding)), 2)
    return linear(network.out, layer_norm(x) * (1 + scale) + shift)


def test_block_is_its_formula():
    block = perturb(DiTBlock(D, HEADS, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    # Far from zero mean: the variance must not cancel.
    x, embedding = rng.normal(size=(3, 7, D)) + 10, rng.normal(size=(3, D))
    expected = [block_of(block, *pair) for pair in zip(x, embedding, strict=True)]
    got = block(jnp.asarray(x, jnp.float32), jnp.asarray(embedding, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("conditioned", [True, False])
def test_network_is_its_formula(conditioned):
    network = make()
    x, t, condition = inputs()
    condition = condition if conditioned else None
    rows = condition if conditioned else [None] * len(x)
    expected = [network_of(network, *map(np.float64, row[:2]), row[2]) for row in zip(x, t, rows, strict=True)]
    assert np.std(expected) > 0.5
    np.testing.assert_allclose(network(x, t, condition), expected, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize(("size", "millions"), [("small", 0.666), ("medium", 3.826), ("large", 8.590)])
@pytest.mark.parametrize("condition_dim", [0, 3])
def test_number_of_parameters(size, millions, condition_dim):
    """Go2's 37 numbers in, 12 out. Each term is weights, then biases."""
    d, depth = DIT_SIZES[size]["d_model"], DIT_SIZES[size]["depth"]
    attention = 4 * d * d + 4 * d
    perceptron = d * 4 * d + 4 * d + 4 * d * d + d
    block = attention + perceptron + d * 6 * d + 6 * d
    ends = 37 * d + d + (d * 2 * d + 2 * d) + (d * 12 + 12)
    expected = depth * block + ends + 2 * (d * d + d)
    if a := condition_dim:
        expected += a * 128 * a + 128 * a + 4 * (128 * 128 + 128) + 128 * a * d + d
    else:
        assert expected == pytest.approx(millions * 1e6, abs=500)
    network = nnx.eval_shape(lambda: DiT1d(37, 12, condition_dim=condition_dim, **DIT_SIZES[size], rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param))) == expected
    assert d % DIT_SIZES[size]["num_heads"] == 0


def test_a_fresh_network_is_zero_and_its_blocks_are_the_identity():
    network, (x, t, condition) = make(perturbed=False), inputs()
    np.testing.assert_array_equal(network(x, t, condition), np.zeros((6, 7, OUT)))
    tokens, embedding = jnp.ones((6, 7, D)) * jnp.arange(D), jnp.ones((6, D))
    np.testing.assert_array_equal(network.blocks[0](tokens, embedding), tokens)


def test_initialisation():
    network = DiT1d(64, 8, d_model=256, num_heads=4, depth=1, condition_dim=3, rngs=nnx.Rngs(0))
    flat = {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(network))}
    zero = {name for name, leaf in flat.items() if not leaf.any()}
    biases = {name for name in flat if name.endswith("bias")}
    assert zero == biases | {"blocks/0/modulation/kernel", "modulation/kernel", "out/kernel"}
    for name in flat.keys() - zero:
        fan = {"contract": (1024, 256), "expand": (256, 1024), "project": (64, 256)}.get(
            name.split("/")[-2], (256, 256)
        )
        if name.startswith("condition/"):
            fan = {"tokens": (3, 384), "out": (384, 256)}[name.split("/")[1]] if name.count("/") == 2 else (128, 128)
        std = 0.02 if name.startswith("map/") else np.sqrt(2 / sum(fan))
        assert flat[name].std() == pytest.approx(std, rel=0.05), name
        if not name.startswith("map/"):  # uniform
            assert np.abs(flat[name]).max() <= np.sqrt(6 / sum(fan)) * (1 + 1e-6), name


def test_dropout_is_on_with_a_key_and_off_without():
    network, (x, t, condition) = make(dropout=0.3), inputs()
    still, plain = network(x, t, condition), make()(x, t, condition)
    np.testing.assert_array_equal(still, plain)
    one, same, other = (network(x, t, condition, rng=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    for pair in ((one, still), (one, other)):
        assert (np.abs(pair[0] - pair[1]).max((1, 2)) > 1e-3).all()
    np.testing.assert_array_equal(make()(x, t, condition, rng=jax.random.key(1)), plain)
    # Neither the trainer's mode nor anything stored decides.
    network.eval()
    np.testing.assert_array_equal(network(x, t, condition, rng=jax.random.key(1)), one)
    network.train()
    np.testing.assert_array_equal(network(x, t, condition), still)
    assert not jax.tree.leaves(nnx.state(network, nnx.RngState))


def test_dropout_acts_in_attention_and_in_the_perceptron():
    x, embedding = jnp.ones((7, D)) * jnp.linspace(-1, 1, 7)[:, None] * jnp.arange(D), jnp.ones(D)
    for off in ("attention", "contract"):
        block = perturb(DiTBlock(D, HEADS, dropout=0.5, rngs=nnx.Rngs(0)))
        layer = block.attention.out if off == "attention" else block.contract
        layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
        assert np.abs(block(x, embedding, rng=jax.random.key(0)) - block(x, embedding)).max() > 1e-3


def test_dropout_differs_between_heads():
    """Each head hands on ones, weighted equally: what it gives is the share of places that are left."""
    layer = DiTBlock(D, HEADS, dropout=0.5, rngs=nnx.Rngs(0)).attention
    layer.query.kernel[...] = jnp.zeros_like(layer.query.kernel[...])
    layer.value.kernel[...] = jnp.eye(D).reshape(D, HEADS, D // HEADS)
    layer.out.kernel[...] = jnp.eye(D).reshape(HEADS, D // HEADS, D)
    shares = layer(jnp.ones((7, D)), deterministic=False, rngs=nnx.Rngs(dropout=jax.random.key(0)))
    assert np.ptp(shares.reshape(7, HEADS, -1), axis=1).max() > 0.1
    assert np.mean(shares) == pytest.approx(1, abs=0.3)


def test_dropout_differs_between_blocks(monkeypatch):
    seen, call = [], DiTBlock.__call__
    monkeypatch.setattr(DiTBlock, "__call__", lambda *args, rng: seen.append(rng) or call(*args, rng=rng))
    make(dropout=0.3)._transform(jnp.ones((7, IN)), jnp.ones(D), jax.random.key(0))
    assert len({tuple(jax.random.key_data(rng).tolist()) for rng in seen}) == DEPTH


def test_dropout_of_an_example_knows_no_neighbours():
    network, (x, t, condition) = make(dropout=0.3), inputs()
    key = jax.random.key(3)
    whole, part = network(x, t, condition, rng=key), network(x[:2], t[:2], condition[:2], rng=key)
    np.testing.assert_allclose(whole[:2], part, atol=1e-5)
    keys, order = jax.random.split(key, 6), np.array([4, 0, 5, 2, 1, 3])
    own = network(x, t, condition, rng=keys)
    moved = network(x[order], t[order], condition[order], rng=keys[order])
    np.testing.assert_allclose(own[order], moved, atol=1e-5)
    alike = network(*(jnp.repeat(array[:1], 6, 0) for array in (x, t, condition)), rng=key)
    assert len(np.unique(np.asarray(alike)[:, 0, 0])) == 6


def test_mask_switches_the_condition_off():
    network, (x, t, condition) = make(), inputs()
    without = network(x, t)
    mask = jnp.array([0, 1, 0, 1, 1, 0])
    mixed, on = network(x, t, condition, mask), network(x, t, condition, jnp.ones(6))
    np.testing.assert_array_equal(mixed[mask == 0], without[mask == 0])
    np.testing.assert_array_equal(mixed[mask == 1], on[mask == 1])
    np.testing.assert_array_equal(on, network(x, t, condition))
    assert (np.abs(on - without).max((1, 2)) > 1e-3).all()
    # Whatever is masked, even NaN: in gradients as well.
    broken = condition.at[mask == 0].set(jnp.nan)
    graphdef, state = nnx.split(network)
    loss = lambda state, c: jnp.sum(nnx.merge(graphdef, state)(x, t, c, mask) ** 2)  # noqa: E731
    for one, other in zip(*(jax.tree.leaves(jax.grad(loss)(state, c)) for c in (condition, broken)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_place_time_and_order_matter():
    network, (x, t, condition) = make(), inputs()
    result, turned = network(x, t, condition), network(x[:, ::-1], t, condition)[:, ::-1]
    assert np.abs(result - turned).max() > 1e-2
    alike = network(jnp.ones_like(x), t, condition)
    assert np.ptp(alike, axis=1).max() > 1e-2
    assert np.abs(network(x, t + 0.01, condition) - result).max() > 1e-3
    np.testing.assert_array_equal(network(x, 0.3, condition), network(x, jnp.full(6, 0.3), condition))


def test_gradients_reach_every_parameter():
    network, (x, t, condition) = make(), inputs()
    graphdef, state = nnx.split(network)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(6, 7, OUT)), jnp.float32)
    grads = jax.grad(lambda state: jnp.sum(weights * nnx.merge(graphdef, state)(x, t, condition)))(state)
    for path, leaf in nnx.to_flat_state(grads):
        # A key's bias adds the same to all scores of a query: the softmax doesn't see it.
        reached = np.abs(leaf.get_value()).max() > 1e-4
        assert reached == (path[-2:] != ("key", "bias")), path


def test_jit_and_vmap():
    network, (x, t, condition) = make(dropout=0.3), inputs()
    graphdef, state = nnx.split(network)
    keys = jax.random.split(jax.random.key(0), 6)

    def apply(state, x, t, condition, keys):
        return nnx.merge(graphdef, state)(x, t, condition, rng=keys)

    expected = apply(state, x, t, condition, keys)
    rounding = 2e-5 * np.abs(expected).max()  # of sums as large as the values, in another order
    np.testing.assert_allclose(jax.jit(apply)(state, x, t, condition, keys), expected, atol=rounding)
    single = [array[:, None] for array in (x, t, condition, keys)]
    mapped = jax.jit(jax.vmap(apply, (None, 0, 0, 0, 0)))(state, *single)
    np.testing.assert_allclose(mapped[:, 0], expected, atol=rounding)


def test_embedding_of_time_tells_times_apart():
    embedding = TimeEmbedding(32)
    assert embedding(jnp.zeros((2, 3))).shape == (2, 3, 32)
    np.testing.assert_allclose(embedding(jnp.array(0.25)), waves(250.0, 32), atol=2e-4)
    times = embedding(jnp.linspace(0, 1, 21))
    apart = np.linalg.norm(times[:, None] - times, axis=-1)[~np.eye(21, dtype=bool)]
    assert apart.min() > 1
    assert not nnx.state(embedding)


def test_condition_of_any_batch_shape():
    embedder = ContinuousCondEmbedder(3, 8, rngs=nnx.Rngs(0))
    condition = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), jnp.float32)
    rows = jnp.stack([jnp.stack([embedder(row) for row in rows]) for rows in condition])
    np.testing.assert_allclose(embedder(condition), rows, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, r"num_heads=5 doesn't divide d_model=16; the nearest that does is 4"),
        ({"num_heads": 0}, "num_heads=0; expected at least 1"),
        ({"depth": 0}, "depth=0; expected at least 1"),
        ({"in_dim": 0}, "in_dim=0; expected at least 1"),
        ({"out_dim": -1}, "out_dim=-1; expected at least 1"),
        ({"d_model": 15, "num_heads": 3}, "d_model=15; expected an even number"),
        ({"condition_dim": -1}, "condition_dim=-1; expected 0"),
        ({"dropout": 1.0}, "dropout=1.0; expected 0 or more and less than 1"),
    ],
)
def test_impossible_sizes(changes, message):
    sizes = {"in_dim": IN, "out_dim": OUT, "d_model": D, "num_heads": HEADS, "depth": DEPTH} | changes
    with pytest.raises(ConfigError, match=message):
        DiT1d(**sizes, rngs=nnx.Rngs(0))


def test_impossible_embeddings():
    with pytest.raises(ConfigError, match="TimeEmbedding: dim=7; expected an even number"):
        TimeEmbedding(7)
    with pytest.raises(ConfigError, match="condition_dim=0; expected at least 1"):
        ContinuousCondEmbedder(0, 8, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match=r"condition has shape \(4, 2\); expected \(..., 3\)"):
        ContinuousCondEmbedder(3, 8, rngs=nnx.Rngs(0))(jnp.ones((4, 2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": (6, 7, 4)}, r"x has shape \(6, 7, 4\); expected \(batch, tokens, 5\)"),
        ({"x": (7, 5)}, r"x has shape \(7, 5\)"),
        ({"t": (6, 1)}, r"t has shape \(6, 1\); expected \(6,\)"),
        ({"condition": (2,)}, r"condition has shape \(2,\); expected \(6, 2\)"),
        ({"condition_mask": (1,)}, r"condition_mask has shape \(1,\); expected \(6,\)"),
    ],
)
def test_arguments_of_other_shapes(changes, message):
    shapes = {"x": (6, 7, IN), "t": (6,), "condition": (6, COND)} | changes
    with pytest.raises(ConfigError, match=message):
        make()(**{name: jnp.ones(shape) for name, shape in shapes.items()})


def test_arguments_of_another_kind():
    x, t, condition = inputs()
    with pytest.raises(ConfigError, match="for a network with condition_dim=0"):
        make(condition_dim=0)(x, t, condition)
    for rng in (jax.random.split(jax.random.key(0), 5), jax.random.PRNGKey(0)):
        with pytest.raises(ConfigError, match=r"rng is .*; expected jax.random.key\(...\), or \(6,\) of them"):
            make(dropout=0.1)(x, t, condition, rng=rng)
