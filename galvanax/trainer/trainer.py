"""The Trainer: WHEN things happen. Read `fit` first; the rest of this file are its parts, from top to bottom."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Self

from flax import nnx

from galvanax.datamodules.datamodule import DataModule
from galvanax.errors import ConfigError
from galvanax.runs.lock import hold
from galvanax.tasks.task import Task
from galvanax.trainer import processes, rendezvous
from galvanax.trainer.compile_cache import enable_compile_cache
from galvanax.trainer.devices import Devices
from galvanax.trainer.result import FitResult
from galvanax.trainer.settings import TrainerSettings
from galvanax.trainer.start import check_shared_settings, evaluator_for, start_run, weights_for


@dataclasses.dataclass(frozen=True)
class Trainer(TrainerSettings):
    """Runs a task on data. A plain record of settings: it can be used again, and for several tasks.

    Its fields, and what they mean, are in `TrainerSettings`.
    """

    def fit(self, task: Task, data: DataModule, *, resume: str | int | Path | None = None) -> FitResult:
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
        self, task: Task, data: DataModule, checkpoint: str | Path = "best", *, model: nnx.Module | None = None
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
        self, task: Task, data: DataModule, checkpoint: str | Path = "best", *, model: nnx.Module | None = None
    ) -> dict[str, float]:
        """Metrics over the whole test set, `{"test/loss": ...}`; arguments as in `validate`."""
        return self._evaluate("test", self.limit_test_batches, task, data, checkpoint, model)

    def predict(
        self, task: Task, data: DataModule, checkpoint: str | Path = "best", *, model: nnx.Module | None = None
    ) -> Any:
        """`Task.predict` of every example of `predict_dataset`, `(examples, ...)`; arguments as in `validate`."""
        return self._evaluate("predict", self.limit_predict_batches, task, data, checkpoint, model)

    def _evaluate(
        self,
        split: str,
        limit: int | None,
        task: Task,
        data: DataModule,
        checkpoint: str | Path,
        model: nnx.Module | None,
    ) -> Any:
        check_shared_settings(self)
        limit = 1 if self.fast_dev_run else limit
        enable_compile_cache()
        devices = Devices.choose(self.devices, self.strategy)
        # What one process measures on its own devices is no business of the others.
        alone = rendezvous.is_alone_on(devices.mesh)
        with contextlib.nullcontext() if alone else processes.together():
            data.setup() if alone else processes.main_first("data", data.setup)
            task = task.setup(data)
            definition, params, variables = weights_for(self, task, checkpoint, model)
            evaluator = evaluator_for(self, task, definition, data, devices, split, limit)
            if evaluator is None:
                raise ConfigError(f"{type(data).__name__} has no {split}_dataset.")
            run = evaluator.per_example if split == "predict" else evaluator.evaluate
            return run(params, variables)

    def _one_batch(self) -> Self:
        return dataclasses.replace(
            self,
            fast_dev_run=False,
            max_steps=1,
            limit_val_batches=1,
            run_dir=None,
            callbacks=[callback for callback in self.callbacks if not callback.writes_files],
        )
