"""Frozen parameters keep their bits, whatever the optimizer does to the others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import NetTask, net_data

import galvanax as gx

FROZEN = {"first/kernel", "first/bias"}
TINY = np.array([-0.0, 0.0, 1e-40, -1e-45, 1.0, -1 / 3], np.float32)


class Tiny(gx.Callback):
    """Starts with numbers that a careless addition of zero would change; remembers the start."""

    def init_params(self, params, variables):
        kernel = np.array(params["first/kernel"])
        kernel.flat[: len(TINY)] = TINY
        self.params = {**params, "first/kernel": jnp.asarray(kernel)}
        return self.params, variables


def train(*callbacks, task=None, steps=12, **settings):
    tiny = Tiny()
    trainer = gx.Trainer(max_steps=steps, callbacks=[tiny, *callbacks], **settings)
    return trainer.fit(task or NetTask(), net_data()), tiny.params


def bits(array):
    return np.asarray(array).tobytes()


class DecayTask(NetTask):
    def build_optimizer(self, num_steps):
        return optax.adamw(1e-2, weight_decay=0.1)


@pytest.mark.behaviour("peers 79")
@pytest.mark.parametrize(
    "callbacks",
    [
        [gx.Freeze(("first/*",))],
        [gx.Freeze(("first/*",)), gx.GradientClipping(0.1), gx.EMA(0.9)],
        [gx.GradientClipping(0.1), gx.EMA(0.9), gx.Freeze(("first/kernel", "*/bias"))],
        [gx.Freeze(("first/kernel",)), gx.Freeze(("first/bias", "first/kernel"))],
    ],
    ids=["alone", "before clipping", "after clipping", "twice"],
)
def test_frozen_parameters_keep_their_bits_and_the_others_move(callbacks):
    result, begin = train(*callbacks, task=DecayTask())
    patterns = [pattern for callback in callbacks for pattern in getattr(callback, "patterns", ())]
    for name, value in result.state.params.items():
        if name in FROZEN:
            assert bits(value) == bits(begin[name]), name
            if "EMA" in result.state.slots:
                # Arithmetic on a CPU flushes the tiniest numbers to zero, which an average may.
                np.testing.assert_allclose(result.state.slots["EMA"][name], begin[name], rtol=0, atol=1e-37)
        elif not (name.endswith("/bias") and "*/bias" in patterns):
            assert (np.asarray(value) != np.asarray(begin[name])).any(), name


@pytest.mark.behaviour("peers 144")
def test_the_optimizer_has_no_moments_for_them():
    result, _ = train(gx.Freeze(("first/*",)))
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(result.state.opt_state)}
    assert any("second/kernel" in path for path in paths)
    assert not any("first/" in path for path in paths)


class SlopesTask(NetTask):
    """Gradients known by hand: 3 for `first/bias`, 4 for each of the two entries of `second/bias`, and no others."""

    def build_optimizer(self, num_steps):
        return optax.sgd(1.0)

    def loss(self, model, batch, rng):
        return 3 * model.first.bias[...][0] + 4 * model.second.bias[...].sum(), {}


def test_what_clipping_sees():
    def step_of(*callbacks):
        result, begin = train(*callbacks, task=SlopesTask(), steps=1)
        return np.asarray(result.state.params["second/bias"]) - np.asarray(begin["second/bias"])

    freeze, clip = gx.Freeze(("first/bias",)), gx.GradientClipping(1.0)
    np.testing.assert_allclose(step_of(freeze, clip), -4 / np.sqrt(4**2 + 4**2), rtol=1e-6)
    np.testing.assert_allclose(step_of(clip, freeze), -4 / np.sqrt(3**2 + 4**2 + 4**2), rtol=1e-6)


def test_a_frozen_run_is_one_with_only_the_others_to_train():
    class Only(NetTask):
        """The first layer is no parameter."""

        def build_model(self, rngs):
            model = super().build_model(rngs)
            for name in ("kernel", "bias"):
                setattr(model.first, name, nnx.Variable(getattr(model.first, name)[...]))
            return model

    frozen = gx.Trainer(max_steps=20, callbacks=[gx.Freeze(("first/*",)), gx.GradientClipping(0.5)]).fit(
        NetTask(), net_data()
    )
    other = gx.Trainer(max_steps=20, callbacks=[gx.GradientClipping(0.5)]).fit(Only(), net_data())
    for name, value in other.state.params.items():
        np.testing.assert_allclose(frozen.state.params[name], value, rtol=1e-5, atol=1e-6)


def test_a_frozen_run_resumes(tmp_path):
    def run(folder, steps, **settings):
        callbacks = [gx.Freeze(("first/*",)), gx.Checkpoint()]
        return gx.Trainer(max_steps=steps, run_dir=folder, callbacks=callbacks).fit(NetTask(), net_data(), **settings)

    # A schedule would see the number of steps; AdamW's moments alone go on here.
    class Stop(gx.Callback):
        def next_step(self, step):
            return 10 if step < 10 else None

        def on_step(self, run):
            run.stop("half of it")

    whole = run(tmp_path / "whole", 20)
    callbacks = [gx.Freeze(("first/*",)), Stop(), gx.Checkpoint()]
    gx.Trainer(max_steps=20, run_dir=tmp_path / "cut", callbacks=callbacks).fit(NetTask(), net_data())
    resumed = run(tmp_path / "cut", 20, resume="last")
    for name, value in whole.state.params.items():
        assert bits(resumed.state.params[name]) == bits(value)


def test_what_is_wrong(tmp_path):
    def fails(match, patterns):
        run_dir = tmp_path / "run"
        with pytest.raises(gx.ConfigError, match=match):
            gx.Trainer(max_steps=1, run_dir=run_dir, callbacks=[gx.Freeze(patterns)]).fit(NetTask(), net_data())
        assert not run_dir.exists()

    fails(r"Freeze.patterns has the pattern 'frist/\*', which matches none.*Nearest: first/", ("first/*", "frist/*"))
    fails(r"'norm/mean', which matches none of the model's 6 arrays", ("norm/mean",))  # a variable, which never trains
    fails(r"match all 6 parameters: none would train", ("*",))
    fails(r"Freeze.patterns='first/\*': expected a tuple", "first/*")
    fails(r"Freeze.patterns is empty", ())
