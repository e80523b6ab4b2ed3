"""Small steps that add up to a large one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import LineTask, NetTask, Recorder, assert_same_state, line_data, net_data, regression

import galvanax as gx

SMALL, TIMES = 8, 4


@dataclasses.dataclass(frozen=True)
class PlainTask(gx.Task):
    """Regression whose loss is a mean over the batch and nothing else: no noise, no batch statistics."""

    def build_model(self, rngs):
        return gx.networks.MLP(3, (16,), 2, rngs=rngs)

    def build_optimizer(self, num_steps):
        return optax.adamw(optax.cosine_decay_schedule(1e-2, num_steps))

    def loss(self, model, batch, rng):
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2), {}


def train(batch_size, steps, *callbacks):
    data = gx.ArrayDataModule(regression(320), batch_size=batch_size)
    return gx.Trainer(max_steps=steps, callbacks=callbacks).fit(PlainTask(), data).state


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), one, other)


@pytest.fixture(scope="module")
def large():
    return train(SMALL * TIMES, 30)


@pytest.mark.behaviour("peers 62", "peers 64")
def test_is_a_step_on_a_larger_batch(large):
    """Of the same rows, under a schedule that ends where the run does: parameters and Adam's state."""
    small = train(SMALL, 30 * TIMES, gx.GradientAccumulation(TIMES))
    assert_close(small.params, large.params)
    assert_close(small.opt_state.inner_opt_state, large.opt_state)
    assert (int(small.step), int(small.opt_state.gradient_step)) == (30 * TIMES, 30)


def test_one_step_changes_no_bit(large):
    one = train(SMALL * TIMES, 30, gx.GradientAccumulation(1))
    assert_same_state(one.params, large.params)


@pytest.mark.behaviour("peers 63")
def test_leftover_gradients_are_dropped():
    states = [train(SMALL, steps, gx.GradientAccumulation(TIMES)) for steps in (2 * TIMES, 3 * TIMES - 1)]
    assert [int(state.opt_state.mini_step) for state in states] == [0, TIMES - 1]
    assert_same_state(states[0].params, states[1].params)


def test_the_weights_move_at_every_fourth_step():
    recorder = Recorder(tuple(range(1, 13)))
    train(SMALL, 12, gx.GradientAccumulation(TIMES), recorder)
    kernels = [recorder.states[step]["layers/0/kernel"] for step in range(1, 13)]
    moved = [step for step in range(2, 13) if (kernels[step - 1] != kernels[step - 2]).any()]
    assert moved == [4, 8, 12]


@pytest.mark.behaviour("peers 67")
def test_a_schedule_of_ones_own():
    """No callback: one step to each of the first two updates, four to each of the others."""

    @dataclasses.dataclass(frozen=True)
    class Task(LineTask):
        def build_optimizer(self, num_steps):
            steps = lambda updates: jnp.where(updates < 2, 1, 4)  # noqa: E731
            return optax.MultiSteps(optax.sgd(self.learning_rate), steps).gradient_transformation()

    recorder = Recorder(tuple(range(1, 13)))
    gx.Trainer(max_steps=12, callbacks=[recorder]).fit(Task(), line_data())
    weights = [recorder.states[step]["kernel"].item() for step in range(1, 13)]
    assert [step for step in range(2, 13) if weights[step - 1] != weights[step - 2]] == [2, 6, 10]


@pytest.mark.behaviour("peers 64", "reports 5")
@pytest.mark.parametrize("times", [1, 3, 1000])
def test_schedules_are_as_long_as_there_are_updates(times):
    """Also where there is none: fast_dev_run takes one step."""
    lengths = []

    class Length(PlainTask):
        def build_optimizer(self, num_steps):
            lengths.append(num_steps)
            return super().build_optimizer(num_steps)

    data = gx.ArrayDataModule(regression(320), batch_size=SMALL)
    callbacks = [gx.GradientAccumulation(times)]
    gx.Trainer(max_steps=20, callbacks=callbacks).fit(Length(), data)
    gx.Trainer(max_steps=20, callbacks=callbacks, fast_dev_run=True).fit(Length(), data)
    assert lengths == [max(1, 20 // times), 1]


def test_two_of_them_multiply(large):
    state = train(SMALL, 30 * TIMES, gx.GradientAccumulation(2), gx.GradientAccumulation(TIMES // 2))
    assert_close(state.params, large.params)


class ZeroTask(LineTask):
    """Starts at weight 0, where the gradient of a row is -2 x y."""

    def build_model(self, rngs):
        return nnx.Linear(1, 1, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs)


@pytest.mark.parametrize(
    ("order", "gradient"),
    [
        ("clip each", (-1 + 0.2) / 2),
        ("clip the mean", -1),  # (-200 + 0.2) / 2, clipped
    ],
)
def test_clipping_before_is_of_each_step_and_after_of_the_mean(order, gradient):
    rows = {"x": np.ones((2, 1), np.float32), "y": np.array([[100.0], [-0.1]], np.float32)}
    callbacks = [gx.GradientClipping(1.0), gx.GradientAccumulation(2)]
    if order == "clip the mean":
        callbacks.reverse()
    trainer = gx.Trainer(max_steps=2, callbacks=callbacks)
    result = trainer.fit(ZeroTask(), gx.ArrayDataModule(rows, batch_size=1))
    assert result.state.params["kernel"].item() == pytest.approx(-0.1 * gradient, rel=1e-6)


@pytest.mark.parametrize("first", [gx.Freeze, gx.GradientAccumulation])
def test_frozen_parameters_stay(first):
    callbacks = [gx.Freeze(("layers/0/*",)), gx.GradientAccumulation(2)]
    callbacks.sort(key=lambda callback: not isinstance(callback, first))
    begin, end = train(SMALL, 1, *callbacks), train(SMALL, 8, *callbacks)
    for name, value in end.params.items():
        assert (value == begin.params[name]).all() == name.startswith("layers/0"), name
    size = 16 * 2 + 2 if first is gx.Freeze else sum(leaf.size for leaf in end.params.values())
    accumulators = optax.tree_utils.tree_get(end.opt_state, "acc_grads")
    assert sum(leaf.size for leaf in jax.tree.leaves(accumulators)) == size


def test_an_average_moves_at_every_step():
    recorder = Recorder(tuple(range(1, 10)))
    state = train(SMALL, 9, gx.GradientAccumulation(3), gx.EMA(0.5), recorder)
    average = train(SMALL, 1, gx.GradientAccumulation(3)).params["layers/0/kernel"]  # the start: no update so far
    for step in range(1, 10):
        keep = min(0.5, (1 + step) / (10 + step))
        average = keep * average + (1 - keep) * recorder.states[step]["layers/0/kernel"]
    np.testing.assert_allclose(state.slots["EMA"]["layers/0/kernel"], average, rtol=1e-5)


class Crash(gx.Callback):
    def __init__(self, at):
        self.at = at

    def next_step(self, step):
        return self.at if step < self.at else None

    def on_step(self, run):
        raise RuntimeError("crash")


@pytest.mark.behaviour("peers 66")
@pytest.mark.parametrize("saved", [13, 14, 15])
def test_resumes_between_two_updates(tmp_path, saved):
    """Bit for bit, whatever the number of steps in a dispatch."""

    def fit(*extra, resume=None, steps_per_dispatch=None):
        callbacks = [gx.GradientAccumulation(3), gx.GradientClipping(0.5), gx.EMA(0.9), *extra]
        folder = tmp_path / "run" if extra else None
        trainer = gx.Trainer(max_steps=25, run_dir=folder, steps_per_dispatch=steps_per_dispatch, callbacks=callbacks)
        return trainer.fit(NetTask(), net_data(), resume=resume).state

    saving = gx.Checkpoint(every=gx.Steps(1000))
    with pytest.raises(RuntimeError, match="crash"):
        fit(saving, Crash(saved), steps_per_dispatch=1)
    assert [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()] == [saved]
    assert_same_state(fit(saving, resume="last"), fit())


@pytest.mark.parametrize("steps", [0, -1, 2.0, True])
def test_needs_a_whole_number(steps):
    with pytest.raises(gx.ConfigError, match=rf"GradientAccumulation\.steps={steps}: expected a whole number"):
        gx.GradientAccumulation(steps)
