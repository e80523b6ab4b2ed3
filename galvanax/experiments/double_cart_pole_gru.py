"""A double cart-pole's dynamics, many steps ahead, from CSV logs."""

import dataclasses
from pathlib import Path

from galvanax.cli.simulate import simulate
from galvanax.datamodules.trajectories import TrajectoryDataModule
from galvanax.experiments.experiment import Experiment
from galvanax.experiments.standard_callbacks import standard_callbacks
from galvanax.runs.checkpoint import Checkpoint
from galvanax.tasks.gru_dynamics import GRUDynamicsTask
from galvanax.trainer.schedule import Epochs
from galvanax.trainer.trainer import Trainer

LOGS = "logs/double-cart-pole"

# The older scripts' values where ours are others: AdamW at one rate and nothing else around it, the cart seen from the
# history's first point alone, and the plain mean of the squared errors of changes.
PAPER = {
    "task.learning_rate_schedule": "constant",
    "task.loss_of": "changes",
    "task.loss_units": "natural",
    "task.loss_weights": "uniform",
    "task.coordinate_indices": (0,),
    "task.absolute_coordinates": False,
    "callbacks.clip": None,
    "callbacks.ema": None,
}


@dataclasses.dataclass
class DoubleCartPoleLogs(TrajectoryDataModule):
    """Logs in a folder; the default folder is filled by `galvanax simulate double-cart-pole` where there is none."""

    data: str | tuple[str, ...] = LOGS
    system: str | None = "double-cart-pole"

    def setup(self) -> None:
        """See `TrajectoryDataModule`."""
        if self.data == LOGS and not Path(LOGS).exists():
            simulate(["double-cart-pole", "--output", LOGS])
        super().setup()


def double_cart_pole_gru() -> Experiment:
    """A GRU learns a double cart-pole from CSV logs, fed with its own predictions nine steps ahead."""
    return Experiment(
        # The rail ends, so the network must see where the cart is.
        task=GRUDynamicsTask(absolute_coordinates=True),
        data=DoubleCartPoleLogs(),
        trainer=Trainer(max_epochs=100, seed=42, run_dir="runs/double-cart-pole-gru"),
        callbacks=standard_callbacks(Checkpoint(monitor="val/loss", mode="min", keep_every=Epochs(10)), ema=0.99),
        presets={"paper": PAPER},
    )
