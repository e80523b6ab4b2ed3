import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from galvanax.datamodules.arrays import ArrayDataModule
from galvanax.datamodules.rollouts import RolloutDataModule
from galvanax.errors import ConfigError
from galvanax.networks import MLP, BaseDynamicsModel
from galvanax.tasks.acceleration import AccelerationTask


@pytest.fixture(scope="module")
def data():
    data = RolloutDataModule(num_rollouts=60, rollout_length=60)
    data.setup()
    return data


def fit(task, data, epochs):
    """A plain training loop, independent of the Trainer."""
    model = task.build_model(nnx.Rngs(0))
    task.set_statistics(model, data)
    definition, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = task.build_optimizer(epochs * len(data.train_dataset(seed=0)))

    def objective(params, batch):
        return task.loss(nnx.merge(definition, params, rest), batch, jax.random.key(0))[0]

    @jax.jit
    def step(params, state, batch):
        updates, state = optimizer.update(jax.grad(objective)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for batch in data.train_dataset(seed=0).repeat(epochs):
        params, state = step(params, state, batch)
    return nnx.merge(definition, params, rest)


def test_learns_the_pendulum(data, tmp_path):
    """Half of the default rollouts and epochs leave a margin of 10 to the figures asked for."""
    task = AccelerationTask().setup(data)
    figures = task.report(fit(task, data, epochs=20), data, tmp_path)
    for prefix in ("", "mjx_"):
        assert figures[f"{prefix}one_step_velocity_mse_over_persistence"] < 1e-3
        assert figures[f"{prefix}open_loop_50_mse_over_persistence"] < 5e-3
        assert figures[f"{prefix}open_loop_50_final_mse_over_persistence"] < 5e-3
        assert len(figures[f"{prefix}open_loop_mse"]) == 50
    assert figures["max_contacts"] == 0
    json.dumps(figures)
    for name in ("open_loop_error.png", "predicted_vs_true.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_data_fills_the_fields(data):
    task = AccelerationTask(angles=()).setup(data)
    assert (task.action_dim, task.dt, task.layout.angles, task.layout.nq) == (1, 0.02, (), 1)
    json.dumps(dataclasses.asdict(task))


def test_data_that_says_too_little():
    rows = {"states": np.zeros((200, 2), np.float32)}
    with pytest.raises(ConfigError, match=r"AccelerationTask.layout is None and ArrayDataModule has no layout"):
        AccelerationTask().setup(ArrayDataModule(rows))
    with pytest.raises(ConfigError, match="call setup"):
        AccelerationTask().build_model(nnx.Rngs(0))


def test_statistics_are_those_of_the_training_part(data):
    task = AccelerationTask().setup(data)
    model = task.build_model(nnx.Rngs(0))
    task.set_statistics(model, data)
    rows = {name: array.astype(np.float64) for name, array in data.train.flat().items()}
    # The rows of the last, incomplete batch are left out.
    np.testing.assert_allclose(model.acceleration.std[...], rows["accelerations"].std(0), rtol=0.03)
    np.testing.assert_allclose(model.features.std[...], [1, 1, rows["states"][:, 1].std()], rtol=0.03)
    np.testing.assert_allclose(model.features.mean[...], [0, 0, rows["states"][:, 1].mean()], atol=0.1)


class Exact(BaseDynamicsModel):
    """Knows the acceleration and is 0.5 off in the first position."""

    def __call__(self, state, action):
        return action

    def step(self, state, action):
        return super().step(state, action).at[..., 0].add(0.5)


@dataclasses.dataclass(frozen=True)
class ExactTask(AccelerationTask):
    def build_model(self, rngs):
        return Exact(*self.dimensions)


def test_own_architecture_and_step(data):
    task = ExactTask().setup(data)
    model = task.build_model(nnx.Rngs(0))
    model.acceleration.set(np.zeros(1), np.full(1, 4.0))
    state, action = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[5.0], [6.0]])
    batch = {
        "states": state,
        "actions": action,
        "next_states": Exact(*task.dimensions).step(state, action) - jnp.array([0.5 + 2 * np.pi, 0.1]),
        "accelerations": action + jnp.array([[2.0], [4.0]]),
    }
    metrics = task.evaluate(model, batch, jax.random.key(0))
    assert float(metrics["loss"]) == pytest.approx((0.25 + 1) / 2)
    np.testing.assert_allclose(metrics["acceleration_mse"], [4, 16])
    np.testing.assert_allclose(metrics["position_mse"], [0.25, 0.25], rtol=1e-4)
    np.testing.assert_allclose(metrics["velocity_mse"], [0.01, 0.01], rtol=1e-4)
    predicted = task.predict(model, batch, jax.random.key(0))
    np.testing.assert_allclose(predicted["next_states"], model.step(state, action))
    np.testing.assert_allclose(predicted["accelerations"], action)


def test_own_network_gets_normalised_inputs(data):
    class Narrow(BaseDynamicsModel):
        def __init__(self, layout, action_dim, dt, rngs):
            super().__init__(layout, action_dim, dt)
            self.network = MLP(self.input_dim, (16,), layout.nv, rngs=rngs)

        def __call__(self, state, action):
            return self.acceleration.denormalize(self.network(self.inputs(state, action)))

    @dataclasses.dataclass(frozen=True)
    class NarrowTask(AccelerationTask):
        def build_model(self, rngs):
            return Narrow(*self.dimensions, rngs)

    task = NarrowTask().setup(data)
    model = task.build_model(nnx.Rngs(0))
    task.set_statistics(model, data)
    loss, _ = task.loss(model, data.example_batch(), jax.random.key(0))
    # A fresh network of normalised inputs and outputs is off by about one standard deviation.
    assert 0.2 < float(loss) < 5


def test_other_data_has_no_report(data, tmp_path):
    task = AccelerationTask().setup(data)
    rows = ArrayDataModule(data.train.flat())
    assert task.report(task.build_model(nnx.Rngs(0)), rows, tmp_path) == {}
    assert not list(tmp_path.iterdir())
