"""Control, learned by PPO: classic systems that a laptop solves, and Unitree's robots for a GPU."""

import dataclasses
from typing import Any

from galvanax.datamodules.environment import EnvironmentDataModule
from galvanax.envs.classic.cart_pole import CartPole
from galvanax.envs.classic.hopper import Hopper
from galvanax.envs.classic.ledge import Ledge
from galvanax.envs.legged.g1 import G1
from galvanax.envs.legged.go2 import Go2
from galvanax.envs.legged.h1 import H1
from galvanax.envs.legged.h1_2 import H1_2
from galvanax.experiments.experiment import Experiment
from galvanax.experiments.standard_callbacks import standard_callbacks
from galvanax.runs.checkpoint import Checkpoint
from galvanax.tasks.ppo import PPOTask
from galvanax.trainer.schedule import Steps
from galvanax.trainer.trainer import Trainer

# What is asked of a legged robot's training: 100 million control steps in 4096 environments.
_PAPER_ENVS, _PAPER_STEPS = 4096, 100_000_000
_PAPER = {"data.num_envs": _PAPER_ENVS, "task.learning_rate": 3e-4, "task.learning_rate_schedule": "constant"}
# DynaFlow's guide, of the Go2 that it collects motions from.
GO2_GUIDE = {"data.num_envs": 4096, "trainer.max_steps": 10_000}


def ppo() -> Experiment:
    """PPO on any environment: --data.env NAME, brax:NAME, playground:NAME, or path/to/file.py:name of your own."""
    return _experiment(PPOTask(), EnvironmentDataModule(), "runs/ppo", iterations=500, every=50)


def cartpole_ppo() -> Experiment:
    """PPO swings a pole up on a cart and holds it there: minutes on two cores."""
    task = PPOTask(
        unroll_length=40,
        num_epochs=4,
        num_minibatches=8,
        learning_rate=1e-3,
        learning_rate_schedule="adaptive",
        discount=0.995,
        entropy_coef=1e-2,
        final_entropy_coef=1e-4,
        # Returns near 100 would let the value's gradients crowd out the policy's where both are clipped together.
        reward_scaling=0.1,
        policy_hidden=(64, 64),
        value_hidden=(64, 64),
        activation="tanh",
    )
    # From hanging alone, one seed in three learns to turn and turn and never sees what it is to be up.
    data = EnvironmentDataModule(CartPole(random_starts=0.5), num_envs=512, num_eval_episodes=64)
    return _experiment(task, data, "runs/cartpole-ppo", iterations=250, every=50)


def ledge_ppo() -> Experiment:
    """PPO learns to drive up to an edge that it sees, and to stand there."""
    task = PPOTask(
        unroll_length=25,
        num_epochs=4,
        num_minibatches=4,
        learning_rate=1e-3,
        learning_rate_schedule="adaptive",
        discount=0.98,
        entropy_coef=3e-3,
        final_entropy_coef=1e-4,
        reward_scaling=0.1,
        policy_hidden=(64, 64),
        value_hidden=(64, 64),
        activation="tanh",
        vision_channels=(8, 16),
        vision_features=32,
    )
    data = EnvironmentDataModule(Ledge(), num_envs=256, num_eval_episodes=256)
    return _experiment(task, data, "runs/ledge-ppo", iterations=60, every=30)


def hopper_ppo() -> Experiment:
    """PPO teaches a one-legged hopper to go forward."""
    task = PPOTask(unroll_length=32, num_minibatches=8, num_epochs=8, discount=0.99, entropy_coef=1e-3)
    data = EnvironmentDataModule(Hopper(), num_envs=512, num_eval_episodes=32)
    return _experiment(task, data, "runs/hopper-ppo", iterations=600, every=100)


def go2_ppo() -> Experiment:
    """PPO teaches a Unitree Go2 to walk where a joystick says."""
    experiment = _legged(Go2(), (512, 256, 128), initial_std=1.0, run_dir="runs/go2-ppo")
    return dataclasses.replace(experiment, presets={**experiment.presets, "guide": GO2_GUIDE})


def g1_ppo() -> Experiment:
    """PPO teaches a Unitree G1 to walk where a joystick says, with a critic that sees its true velocity."""
    return _legged(G1(privileged=True), (512, 256, 128), initial_std=0.8, run_dir="runs/g1-ppo")


def h1_ppo() -> Experiment:
    """PPO teaches a Unitree H1 to walk where a joystick says, with a critic that sees its true velocity."""
    return _legged(H1(privileged=True), (512, 256, 128), initial_std=0.8, run_dir="runs/h1-ppo")


def h1_2_ppo() -> Experiment:
    """PPO teaches a Unitree H1-2 to walk where a joystick says, with a critic that sees its true velocity."""
    return _legged(H1_2(privileged=True), (512, 256, 128), initial_std=0.8, run_dir="runs/h1_2-ppo")


def _legged(env: Any, hidden: tuple[int, ...], initial_std: float, run_dir: str) -> Experiment:
    """rsl_rl's settings: those that unitree_rl_gym and mjlab train these robots with.

    The networks are those of unitree_rl_gym's Go2 and of mjlab's robots. unitree_rl_gym's humanoids have an LSTM of 64
    and a layer of 32 in place of them, which neither mirrors nor exports as a function of the observation alone.
    """
    task = PPOTask(
        unroll_length=24,
        num_epochs=5,
        num_minibatches=4,
        learning_rate=1e-3,
        learning_rate_schedule="adaptive",
        discount=0.99,
        gae_lambda=0.95,
        clip_value=True,
        value_coef=1.0,
        entropy_coef=0.01,
        policy_hidden=hidden,
        value_hidden=hidden,
        activation="elu",
        distribution="normal",
        initial_std=initial_std,
    )
    data = EnvironmentDataModule(env, num_envs=4096, num_eval_episodes=128)
    experiment = _experiment(task, data, run_dir, iterations=1500, every=100)
    iterations = -(-_PAPER_STEPS // (_PAPER_ENVS * task.unroll_length))
    return dataclasses.replace(experiment, presets={"paper": {**_PAPER, "trainer.max_steps": iterations}})


def _experiment(task: PPOTask, data: EnvironmentDataModule, run_dir: str, iterations: int, every: int) -> Experiment:
    return Experiment(
        task=task,
        data=data,
        trainer=Trainer(max_steps=iterations, run_dir=run_dir, val_every=Steps(every), log_every=10),
        callbacks=standard_callbacks(Checkpoint(monitor="val/episode_return", mode="max")),
    )
