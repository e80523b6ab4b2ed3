import mujoco
import numpy as np
import pytest

from galvanax.datamodules.rollouts import RolloutDataModule
from galvanax.errors import ConfigError


@pytest.fixture(scope="module")
def module():
    module = RolloutDataModule(num_rollouts=10, rollout_length=6, val_ratio=0.2, test_ratio=0.3, batch_size=5)
    module.setup()
    return module


def test_parts(module):
    parts = (module.train, module.val, module.test)
    assert [part.num_rollouts for part in parts] == [5, 2, 3]
    firsts = [tuple(row) for part in parts for row in part.states[:, 0]]
    assert len(set(firsts)) == 10
    assert len(list(module.train_dataset(seed=0))) == 6


def test_setup_works_once(module):
    train = module.train
    module.setup()
    assert module.train is train


def test_starts_are_wide(module):
    starts = np.concatenate([part.states[:, 0] for part in (module.train, module.val, module.test)])
    assert np.ptp(starts[:, 0]) > np.pi
    assert np.ptp(starts[:, 1]) > 6


def test_references(module):
    references = module.reference_trajectories()
    states, actions = references[""]
    assert (states.shape, actions.shape) == ((128, 7, 2), (128, 6, 1))
    data = mujoco.MjData(module.model)
    data.qpos, data.qvel, data.ctrl = states[5, 2, :1], states[5, 2, 1:], actions[5, 2]
    mujoco.mj_step(module.model, data)
    np.testing.assert_allclose(states[5, 3], [*data.qpos, *data.qvel], atol=1e-9)
    held = {tuple(row) for row in np.round(references["mjx"][0][:, 0], 4)}
    assert not held & {tuple(row) for row in np.round(states[:, 0], 4)}


def test_action_range_without_limits(tmp_path):
    path = tmp_path / "slide.xml"
    path.write_text(
        "<mujoco><worldbody><body><joint name='x' type='slide'/><geom size='.1'/></body></worldbody><actuator>"
        "<motor joint='x'/><motor joint='x' ctrllimited='true' ctrlrange='-3 4'/></actuator></mujoco>"
    )
    low, high = RolloutDataModule(system=str(path), action_limit=0.5).action_range()
    assert (list(low), list(high)) == ([-0.5, -3.0], [0.5, 4.0])


def test_empty_part():
    with pytest.raises(ConfigError, match=r"val_ratio=0.1.*of 5 rollouts are 0 and 0"):
        RolloutDataModule(num_rollouts=5).setup()
