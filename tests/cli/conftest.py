"""A short PPO run, trained once for the commands that look at one."""

import pytest

from galvanax.cli.main import main

EXPERIMENT = """
import galvanax as gx

experiment = gx.Experiment(
    gx.PPOTask(unroll_length=10, num_minibatches=2, num_epochs=1, policy_hidden=(16,), value_hidden=(16,)),
    gx.EnvironmentDataModule("cart-pole-balance", num_envs=16, num_eval_episodes=4, episode_length=50),
    gx.Trainer(max_steps=2, val_every=gx.Steps(1)),
    {
        "checkpoint": gx.Checkpoint(monitor="val/episode_return", mode="max"),
        "video": gx.VideoRecorder(formats=("npz",), num_steps=1000),
    },
)
"""


@pytest.fixture(scope="session")
def tiny_ppo(tmp_path_factory):
    """The experiment of `ppo_run`, as the command line takes it."""
    file = tmp_path_factory.mktemp("ppo") / "tiny_ppo.py"
    file.write_text(EXPERIMENT)
    return f"{file}:experiment"


@pytest.fixture(scope="session")
def ppo_run(tiny_ppo, tmp_path_factory):
    """The folder of a run on cart-pole-balance: 2 iterations, so that its poles fall, some after 50 steps."""
    folder = tmp_path_factory.mktemp("ppo_run")
    main(["fit", tiny_ppo, "--trainer.run-dir", str(folder / "run"), "--no-evaluate"])
    return folder / "run"
