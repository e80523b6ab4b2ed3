"""The Trainer: WHEN things happen. Read `fit` first; the rest of this file are its parts, from top to bottom."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from flax import nnx

from galvanax.callbacks.callback import Callback
from galvanax.errors import ConfigError
from galvanax.runs.lock import hold
from galvanax.trainer import processes, rendezvous
from galvanax.trainer.compile_cache import enable_compile_cache
from galvanax.trainer.devices import Devices
from galvanax.trainer.run import FitResult
from galvanax.trainer.schedule import Epochs, Steps
from galvanax.trainer.start import check_shared_settings, evaluator_for, start_run, weights_for
from galvanax.trainer.strategy import DataParallel, Strategy

if TYPE_CHECKING:
    from galvanax.datamodules.datamodule import DataModule
    from galvanax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Runs a task on data. A plain record of settings: it can be used again, and for several tasks.

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

    def fit(self, task: "Task", data: "DataModule", *, resume: str | int | Path | None = None) -> FitResult:
        """Trains.

        Args:
          task: what to learn.
          data: from what.
          resume: `"last"`, `"best"`, a step or a checkpoint's path continues that run bit for bit; later checkpoints of
            the folder are kept, as `checkpoints/superseded/STEP`. `"auto"` continues the newest intact checkpoint,
            starts afresh if there never was one, and does nothing where the run has ended.

        Raises:
          ConfigError, DataError, RunDirError, CheckpointError: before anything is compiled.
          NonFiniteError: the loss or the weights became NaN or infinite; the last checkpoint is of finite ones.
          ProcessError: another process of this run was lost, or had an error.
        """
        if self.fast_dev_run:
            return self._one_batch().fit(task, data)
        rendezvous.check_met()
        with contextlib.ExitStack() as held, processes.together() as common:
            processes.from_main("lock", lambda: held.enter_context(hold(self.run_dir)))
            run = start_run(self, task, data, resume)
            held.callback(run.feed.close)
            common.on_error = run.fail
            run.begin()
            while run.step < run.num_steps and run.stop_reason is None:
                boundary = run.next_boundary()
                while run.step < boundary and not run.interrupted():
                    run.dispatch(boundary)
                run.drain()
                run.visit()
            return run.end()

    def validate(
        self, task: "Task", data: "DataModule", checkpoint: str | Path = "best", *, model: nnx.Module | None = None
    ) -> dict[str, float]:
        """Metrics over the whole validation set, `{"val/loss": ...}`.

        Args:
          task: whose `evaluate` is run.
          data: whose `val_dataset` is read.
          checkpoint: the weights: `"best"`, `"last"`, a step or a path.
          model: use this model's weights instead of a checkpoint's.
        """
        return self._evaluate("val", self.limit_val_batches, task, data, checkpoint, model)

    def test(
        self, task: "Task", data: "DataModule", checkpoint: str | Path = "best", *, model: nnx.Module | None = None
    ) -> dict[str, float]:
        """Metrics over the whole test set, `{"test/loss": ...}`; arguments as in `validate`."""
        return self._evaluate("test", self.limit_test_batches, task, data, checkpoint, model)

    def predict(
        self, task: "Task", data: "DataModule", checkpoint: str | Path = "best", *, model: nnx.Module | None = None
    ) -> Any:
        """`Task.predict` of every example of `predict_dataset`, `(examples, ...)`; arguments as in `validate`."""
        return self._evaluate("predict", self.limit_predict_batches, task, data, checkpoint, model)

    def _evaluate(
        self,
        split: str,
        limit: int | None,
        task: "Task",
        data: "DataModule",
        checkpoint: str | Path,
        model: nnx.Module | None,
    ) -> Any:
        check_shared_settings(self)
        limit = 1 if self.fast_dev_run else limit
        enable_compile_cache()
        devices = Devices.choose(self.devices, self.strategy)
        # What one process measures on its own devices is no business of the others.
        alone = rendezvous.is_alone_on(devices.mesh)
        if not alone:
            rendezvous.check_met()
        with contextlib.nullcontext() if alone else processes.together():
            data.setup() if alone else processes.main_first("data", data.setup)
            task = task.setup(data)
            definition, params, variables = weights_for(self, task, checkpoint, model)
            evaluator = evaluator_for(self, task, definition, data, devices, split, limit)
            if evaluator is None:
                raise ConfigError(f"{type(data).__name__} has no {split}_dataset.")
            run = evaluator.per_example if split == "predict" else evaluator.evaluate
            return run(params, variables)

    def _one_batch(self) -> "Trainer":
        return dataclasses.replace(
            self,
            fast_dev_run=False,
            max_steps=1,
            limit_val_batches=1,
            run_dir=None,
            callbacks=[callback for callback in self.callbacks if not callback.writes_files],
        )
