"""A pendulum's dynamics, learned from random motion in MJX."""

from galvanax.callbacks.checkpoint import Checkpoint
from galvanax.callbacks.csv_logger import CSVLogger
from galvanax.callbacks.ema import EMA
from galvanax.callbacks.gradient_clipping import GradientClipping
from galvanax.callbacks.model_summary import ModelSummary
from galvanax.callbacks.progress_bar import ProgressBar
from galvanax.callbacks.tensorboard_logger import TensorBoardLogger
from galvanax.callbacks.wandb_logger import WandBLogger
from galvanax.datamodules.rollouts import RolloutDataModule
from galvanax.experiments.experiment import Experiment
from galvanax.tasks.acceleration import AccelerationTask
from galvanax.trainer.trainer import Trainer


def pendulum() -> Experiment:
    """An MLP learns the acceleration of a torque-driven pendulum from wide starts (angles over the whole circle)."""
    return Experiment(
        task=AccelerationTask(),
        data=RolloutDataModule(system="pendulum"),
        trainer=Trainer(max_epochs=40, run_dir="runs/pendulum"),
        callbacks={
            "summary": ModelSummary(),
            "clip": GradientClipping(1.0),
            "ema": EMA(0.995),
            "checkpoint": Checkpoint(monitor="val/loss", mode="min"),
            "csv": CSVLogger(),
            "tensorboard": TensorBoardLogger(),
            "wandb": WandBLogger(mode="disabled"),
            "progress": ProgressBar(),
        },
    )
