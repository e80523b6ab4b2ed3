"""A pendulum's dynamics, learned from random motion in MJX."""

from galvanax.datamodules.rollouts import RolloutDataModule
from galvanax.experiments.experiment import Experiment
from galvanax.experiments.standard_callbacks import standard_callbacks
from galvanax.runs.checkpoint import Checkpoint
from galvanax.tasks.acceleration import AccelerationTask
from galvanax.trainer.trainer import Trainer

# The example configuration of Dynax, which averages no weights.
PAPER = {
    "task.learning_rate": 1e-3,
    "task.learning_rate_schedule": "constant",
    "task.weight_decay": 1e-4,
    "data.batch_size": 256,
    "trainer.max_epochs": 100,
    "callbacks.ema": None,
}


def pendulum() -> Experiment:
    """An MLP learns the acceleration of a torque-driven pendulum from wide starts (angles over the whole circle)."""
    return Experiment(
        task=AccelerationTask(),
        data=RolloutDataModule(system="pendulum"),
        trainer=Trainer(max_epochs=40, run_dir="runs/pendulum"),
        callbacks=standard_callbacks(Checkpoint(monitor="val/loss", mode="min"), ema=0.995),
        presets={"paper": PAPER},
    )
