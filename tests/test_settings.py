"""What makes no sense is refused by name, before anything is compiled, in every shipped task."""

import dataclasses

import pytest

import galvanax as gx
from galvanax.physics.layout import StateLayout


@dataclasses.dataclass
class Sizes(gx.DataModule):
    """What the tasks ask data for; nothing is read before settings are checked."""

    layout = StateLayout(nq=1, nv=1)
    state_dim, condition_dim, action_dim, history, horizon, dt = 2, 0, 1, 2, 3, 0.1

    def train_dataset(self, seed):
        raise AssertionError("the settings come first")


ENVIRONMENT = gx.EnvironmentDataModule("cart-pole-balance", num_envs=8)
TASKS = [
    (gx.AccelerationTask(), Sizes()),
    (gx.GRUDynamicsTask(), Sizes()),
    (gx.DynaFlowTask(system="pendulum"), Sizes()),
    (gx.StateFlowTask(system="pendulum"), Sizes()),
    (gx.PPOTask(), ENVIRONMENT),
]


def refuses(task, data, message):
    with pytest.raises(gx.ConfigError, match=message):
        gx.Trainer(max_steps=1).fit(task, data)


@pytest.mark.parametrize(("task", "data"), TASKS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("rate", [-1e-3, float("nan"), float("inf"), "fast"])
def test_learning_rates(task, data, rate):
    name = f"{type(task).__name__}.learning_rate={rate!r}: "
    refuses(dataclasses.replace(task, learning_rate=rate), data, rf"{name}expected a number in \[0, inf\)")


@pytest.mark.parametrize(
    ("task", "data", "changes", "message"),
    [
        (*TASKS[0], {"weight_decay": -1.0}, r"AccelerationTask.weight_decay=-1.0: expected a number in \[0, inf\)"),
        (*TASKS[0], {"hidden_dims": 128}, r"AccelerationTask.hidden_dims=128: expected tuple\[int, \.\.\.\]"),
        (*TASKS[0], {"hidden_dims": (8, 0)}, r"AccelerationTask.hidden_dims=\(8, 0\): expected a tuple of whole"),
        (*TASKS[1], {"hidden_size": 0}, r"GRUDynamicsTask.hidden_size=0: expected a whole number of at least 1"),
        (*TASKS[1], {"members": 1.5}, r"GRUDynamicsTask.members=1.5: expected .* Nearest: 2"),
        (*TASKS[2], {"dropout": 1.0}, r"DynaFlowTask.dropout=1.0: expected a number in \[0, 1\); the default is 0.1"),
        (*TASKS[2], {"condition_dropout": -0.1}, r"DynaFlowTask.condition_dropout=-0.1: expected a number in \[0, 1\]"),
        (*TASKS[3], {"depth": 0}, r"StateFlowTask.depth=0: expected a whole number of at least 1"),
        (*TASKS[4], {"policy_hidden": 128}, r"PPOTask.policy_hidden=128: expected tuple\[int, \.\.\.\]"),
    ],
)
def test_other_settings(task, data, changes, message):
    refuses(dataclasses.replace(task, **changes), data, message)
