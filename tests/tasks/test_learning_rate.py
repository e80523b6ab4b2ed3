"""The learning rate of each step is logged, whatever is put around the optimizer."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import LineTask, line_data

import galvanax as gx
from galvanax.experiments.pendulum import pendulum

SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 40)


@dataclasses.dataclass(frozen=True)
class Scheduled(LineTask):
    kept: bool = True

    def build_optimizer(self, num_steps):
        return optax.inject_hyperparams(optax.sgd)(learning_rate=SCHEDULE) if self.kept else optax.sgd(SCHEDULE)


def rates(task, data, **settings):
    result = gx.Trainer(log_every=1, **settings).fit(task, data)
    return [row.get("train/learning_rate") for row in result.history if "train/loss" in row], result


@pytest.mark.parametrize(
    "callbacks",
    [
        (),
        (gx.GradientClipping(1.0), gx.EMA(0.9)),
        (gx.GradientClipping(10.0, by="value"), gx.GradientAccumulation(1)),
    ],
)
def test_is_the_schedules(callbacks):
    found, result = rates(Scheduled(), line_data(), max_steps=20, callbacks=callbacks)
    # Step 1 is update 0.
    np.testing.assert_allclose(found, [SCHEDULE(update) for update in range(20)], rtol=1e-6)
    plain, other = rates(Scheduled(kept=False), line_data(), max_steps=20, callbacks=callbacks)
    assert set(plain) == {None}
    np.testing.assert_allclose(result.model.kernel[...], other.model.kernel[...], rtol=1e-6)


def test_with_accumulation_it_is_that_of_the_last_update():
    found, _ = rates(Scheduled(), line_data(), max_steps=12, callbacks=[gx.GradientAccumulation(4)])
    # An update at steps 4, 8 and 12.
    np.testing.assert_allclose(found[3::4], [SCHEDULE(0), SCHEDULE(1), SCHEDULE(2)], rtol=1e-6)


def test_the_shipped_tasks_have_it():
    experiment = pendulum()
    task = dataclasses.replace(experiment.task, hidden_dims=(4,), learning_rate=0.01)
    data = dataclasses.replace(experiment.data, num_rollouts=10, rollout_length=20, batch_size=16)
    found, _ = rates(task, data, max_steps=40)
    # A warm-up over a twentieth of the run, then a cosine to zero.
    steps = np.arange(40)
    expected = np.where(steps < 2, steps / 2, 0.5 * (1 + np.cos(np.pi * (steps - 2) / 38))) * 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("task", "default", "rising"),
    [
        (gx.AccelerationTask, "cosine", 10),
        (gx.GRUDynamicsTask, "cosine", 4),
        (gx.DynaFlowTask, "constant", 10),
    ],
)
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_schedule_can_be_chosen(task, default, rising, schedule):
    """Adam's steps along a gradient that stays the same are as long as the rate."""
    assert task().learning_rate_schedule == default
    optimizer = task(learning_rate=0.01, weight_decay=0.0, learning_rate_schedule=schedule).build_optimizer(200)
    state = optimizer.init(jnp.zeros(1))
    lengths = []
    for _ in range(200):
        updates, state = optimizer.update(jnp.ones(1), state, jnp.zeros(1))
        lengths.append(-float(updates[0]))
    steps = np.arange(200)
    cosine = np.where(steps < rising, steps / rising, 0.5 * (1 + np.cos(np.pi * (steps - rising) / (200 - rising))))
    expected = np.ones(200) if schedule == "constant" else cosine
    np.testing.assert_allclose(lengths, 0.01 * expected, rtol=1e-4, atol=1e-8)


def test_a_schedule_that_there_is_not():
    experiment = pendulum()
    task = dataclasses.replace(experiment.task, learning_rate_schedule="linear")
    with pytest.raises(gx.ConfigError, match="learning_rate_schedule='linear': expected one of constant, cosine"):
        gx.Trainer(max_steps=1).fit(task, dataclasses.replace(experiment.data, num_rollouts=10, rollout_length=20))
