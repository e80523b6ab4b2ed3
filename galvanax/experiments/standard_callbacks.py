"""The callbacks that every shipped experiment has."""

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.csv_logger import CSVLogger
from galvanax.callbacks.ema import EMA
from galvanax.callbacks.gradient_clipping import GradientClipping
from galvanax.callbacks.model_summary import ModelSummary
from galvanax.callbacks.progress_bar import ProgressBar
from galvanax.callbacks.tensorboard_logger import TensorBoardLogger
from galvanax.callbacks.wandb_logger import WandBLogger
from galvanax.runs.checkpoint import Checkpoint


def standard_callbacks(checkpoint: Checkpoint, ema: float | None = None) -> dict[str, Callback]:
    """Gradients clipped to a norm of 1, weights averaged, and all loggers; W&B waits for `--callbacks.wandb.mode`.

    Args:
      checkpoint: what is saved, and which one is best.
      ema: the averaged weights' decay a step; None keeps none.
    """
    return {
        "summary": ModelSummary(),
        "clip": GradientClipping(1.0),
        **({} if ema is None else {"ema": EMA(ema)}),
        "checkpoint": checkpoint,
        "csv": CSVLogger(),
        "tensorboard": TensorBoardLogger(),
        "wandb": WandBLogger(mode="disabled"),
        "progress": ProgressBar(),
    }
