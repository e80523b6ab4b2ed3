"""The settings of a run, apart from its task and its data."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from galvanax.callbacks.callback import Callback
from galvanax.trainer.schedule import Epochs, Steps
from galvanax.trainer.strategy import DataParallel, Strategy


@dataclasses.dataclass(frozen=True)
class TrainerSettings:
    """What `Trainer` is: a plain record.

    Attributes:
      max_epochs: passes over the training data.
      max_steps: optimizer steps; the run ends at whichever of the two comes first.
      run_dir: where config.json, logs and checkpoints go; None keeps nothing. `~` is the home folder.
      checkpoint: keep the weights in `run_dir`, by a plain `Checkpoint()` where none is among the callbacks.
      overwrite: delete the run that `run_dir` holds, instead of refusing to start.
      name: what config.json calls the run; `galvanax fit` writes the experiment's name.
      seed: of all randomness: initial weights, data order, dropout and noise.
      callbacks: what else happens; gradients pass them in this order.
      val_every: how often to validate, `Epochs(1)` or `Steps(500)`; the last step always is.
      log_every: steps over which training metrics are averaged for the loggers.
      limit_train_batches: at most so many batches an epoch.
      limit_val_batches: at most so many validation batches.
      limit_test_batches: at most so many test batches.
      limit_predict_batches: at most so many batches to predict.
      fast_dev_run: one training and one evaluation batch, no files: does everything run?
      precision: what layers compute in; parameters and everything outside layers stay float32.
      devices: "auto" for all, how many, or their ids; each batch is split over them.
      num_nodes: refuse to train on another number of machines; None takes as many as the run was started on.
      strategy: how parameters and optimizer state are split: `DataParallel()`, `FSDP()`, `Partitioned(...)`.
      steps_per_dispatch: steps that go to the device at once; None chooses. It has no effect on the numbers.
    """

    max_epochs: int | None = None
    max_steps: int | None = None
    run_dir: str | Path | None = None
    checkpoint: bool = True
    overwrite: tyro.conf.Suppress[bool] = False
    name: tyro.conf.Suppress[str | None] = None
    seed: int = 0
    callbacks: tyro.conf.Suppress[Sequence[Callback]] = ()
    val_every: Steps | Epochs = Epochs(1)  # noqa: RUF009
    log_every: int = 50
    limit_train_batches: int | None = None
    limit_val_batches: int | None = None
    limit_test_batches: int | None = None
    limit_predict_batches: int | None = None
    fast_dev_run: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    devices: Literal["auto"] | int | tuple[int, ...] = "auto"
    num_nodes: int | None = None
    strategy: Strategy = DataParallel()  # noqa: RUF009
    steps_per_dispatch: int | None = None
