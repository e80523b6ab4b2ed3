"""A fit in progress: what the loop works on and what callbacks see."""

import collections
import contextlib
import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from galvanax.callbacks.callback import Callback, evaluation_params
from galvanax.datamodules.datamodule import DataModule
from galvanax.errors import NonFiniteError, ProcessError
from galvanax.runs import config
from galvanax.runs.arrays import name_leaves
from galvanax.runs.checkpoint_meta import CheckpointMeta
from galvanax.runs.checkpoints import CheckpointFolder
from galvanax.runs.run_folder import write_config
from galvanax.tasks.task import Task
from galvanax.trainer import placement, processes
from galvanax.trainer.devices import Devices
from galvanax.trainer.evaluation import Evaluator
from galvanax.trainer.feed import TrainFeed
from galvanax.trainer.hooks import Hooks
from galvanax.trainer.metric_window import MetricWindow
from galvanax.trainer.pace import Pace
from galvanax.trainer.programs import finite_weights, lower_train_program, weight_names
from galvanax.trainer.result import FitResult
from galvanax.trainer.schedule import next_multiple
from galvanax.trainer.settings import TrainerSettings
from galvanax.trainer.state import STATE_FIELDS, TrainState

log = logging.getLogger("galvanax")


@dataclasses.dataclass
class Run:
    """One fit, between its first and its last step.

    Attributes:
      trainer, task, datamodule: as given; the task has its data-decided fields filled in.
      callbacks: by name, in the order in which they are called.
      run_dir: where files go, or None.
      devices: where the run happens.
      feed: the training batches.
      num_steps: the step at which the run ends.
      state: the current train state. Its buffers are donated to the next dispatch: read it in `on_step`, keep copies.
      step: steps dispatched, an int on the host.
      metric_names: every metric that training and validation will give.
      metrics: the last value of each.
      history: what was logged, a row for each step with any.
      config: JSON of task, data, trainer and callbacks.
      visited: the last step at which all that was due is done.
      validated_at: the step of the last validation, or -1.
      logged_at: the step of the last row of training metrics, or -1.
      settled: whether state, position and what callbacks have been told agree, so that a save would be of this step.
      resumed: whether the state came from a checkpoint.
      prolonged: whether a resumed run was asked to go on although it may have been stopped: by more steps, other
        callbacks, or any `resume` but "auto".
      stop_reason: set by `stop`.
    """

    trainer: TrainerSettings
    task: Task
    datamodule: DataModule
    callbacks: dict[str, Callback]
    run_dir: Path | None
    devices: Devices
    feed: TrainFeed
    num_steps: int
    pace: Pace
    program: Any
    evaluator: Evaluator | None
    state: TrainState
    key: jax.Array
    metric_names: list[str]
    config: dict[str, Any]
    step: int = 0
    resumed: bool = False
    prolonged: bool = False
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    visited: int = 0
    validated_at: int = -1
    logged_at: int = -1
    settled: bool = True
    stop_reason: str | None = None
    started: float = dataclasses.field(default_factory=time.monotonic)
    _in_flight: collections.deque[tuple[range, Any]] = dataclasses.field(default_factory=collections.deque)
    _finite: Any = None  # which weights were, after the last dispatch that was looked at
    _host: dict[str, Any] = dataclasses.field(default_factory=dict)
    _rest_logged: int = -1
    _due: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self._copy = _copy_program(self.callbacks)
        self._weights = weight_names(self.state)
        self._window = MetricWindow(self.log_every, [f"train/{name}" for name in self.task.totals])
        self._hosted = {
            name: callback
            for name, callback in self.callbacks.items()
            if processes.is_main() or not callback.main_process_only
        }
        self._hooks = Hooks(self._hosted)

    @property
    def log_every(self) -> int:
        """Steps over which training metrics are averaged for the loggers."""
        return self.trainer.log_every

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps an epoch; None for a stream."""
        return self.feed.steps_per_epoch

    @property
    def epoch(self) -> float:
        """Epochs done, with the fraction; 0 for a stream."""
        return self.step / self.steps_per_epoch if self.steps_per_epoch else 0.0

    def lower(self) -> jax.stages.Lowered:
        """The training program: `run.lower().compile()` has its text, its memory and its cost."""
        return lower_train_program(self.program, self.state, self.feed.spec, self.feed.capacity, self.devices)

    def stop(self, reason: str) -> None:
        """Ends the run before the next dispatch; a callback's way to say that it has seen enough."""
        self.stop_reason = self.stop_reason or reason

    def next_boundary(self) -> int:
        """The next step at which validation or a callback is due, or the last step; on any process."""
        return min(processes.gather("next boundary", self._next_wish()))

    def dispatch(self, boundary: int) -> None:
        """Sends the next steps to the devices, as many as fit in a stack and before `boundary`."""
        count = min(boundary - self.step, self.pace.steps)
        with self._guard():
            stack = self.feed.take(count)
            size = placement.put(np.int32(count), self.devices.replicated)
            self.settled = False
            self.state, metrics = self.program(self.state, stack, size, self.key)
            self.settled = True
        self._in_flight.append((range(self.step + 1, self.step + count + 1), metrics))
        self.step += count
        # Two in flight keep the device busy while the host reads the older one's metrics.
        if len(self._in_flight) == 2:
            self._collect()

    def drain(self) -> None:
        """Waits for the dispatches in flight and hands out their metrics."""
        if self._in_flight and self.step < self.num_steps:
            # While the devices are busy: the stop at a boundary is then no longer than it must be.
            self.feed.prepare(min(self._next_wish() - self.step, self.pace.steps))
        while self._in_flight:
            self._collect()

    def interrupted(self) -> bool:
        """Whether a callback must see the state now, or has stopped the run; on any process."""
        due = [name for name, callback in self._hosted.items() if callback.due(self)]
        # Once for each dispatch: what depends on a process's clock or signals.
        mine = {"due": due, "steps": self.pace.steps, "stop": self.stop_reason}
        told: list[dict[str, Any]] = processes.gather("dispatch", mine)
        self._due = frozenset(name for one in told for name in one["due"])
        self.pace.steps = told[0]["steps"]
        self.stop_reason = next((one["stop"] for one in told if one["stop"]), None)
        return bool(self._due) or self.stop_reason is not None

    def is_due(self, callback: Callback) -> bool:
        """Whether a callback must see the state now, for what depends on time or signals; the same on all processes."""
        if processes.count() == 1:
            return callback.due(self)
        return any(self.callbacks[name] is callback for name in self._due)

    def model(self) -> nnx.Module:
        """The model with evaluation weights, in evaluation mode, for this process alone; all processes must ask."""
        params, variables = evaluation_params(self.state, self.callbacks), self.state.variables
        return self.state.definition.merge(*placement.local((params, variables)))

    def visit(self) -> None:
        """Does what is due at this step: validation, then the callbacks. Once, also if the run is interrupted here."""
        first = self.visited != self.step
        if self.step == self.num_steps:
            self._log_rest()
        if first and self.validated_at != self.step and self.step == self.next_validation(self.step - 1):
            self._validate()
            self._hooks.raise_first()
        self.visited = self.step
        for callback in self._hosted.values():
            if self.is_due(callback) or (first and callback.next_step(self.step - 1) == self.step):
                self._hooks.call(callback, "on_step", self)
        self._due = frozenset()
        self._hooks.raise_first()
        self._share_stop()
        self.pace.pause()

    def end(self) -> FitResult:
        """Measures and logs what the last step lacks, tells the callbacks that the run is over, returns its outcome."""
        self._log_rest()
        if self.evaluator is not None and self.validated_at != self.step and self.stop_reason is not None:
            self._validate()
        self._hooks.emit("on_train_end", self)
        self._hooks.raise_first()
        result = self._result()
        self._hooks.emit("on_fit_end", self, result)
        self._hooks.raise_first()
        return result

    def fail(self, error: BaseException) -> None:
        """Tells the callbacks that the run ends by an error, once they know all that happened before it."""
        while self._in_flight and self.settled and not isinstance(error, ProcessError):
            try:
                self._collect()
            except Exception as second:  # it must not hide the first
                log.warning("after the error: %s: %s", type(second).__name__, second)
        self._hooks.fail(self, error)

    def snapshot(self) -> tuple[dict[str, Any], CheckpointMeta]:
        """What a checkpoint holds: copies of all arrays by path, and JSON data. Does not wait for the devices."""
        self._hooks.emit("on_save", self)
        arrays = self._copy(self.state)
        meta = CheckpointMeta(
            step=self.step,
            epoch=self.epoch,
            config=self.config,
            position=self.feed.position,
            window={name: list(rows) for name, rows in self._window.rows.items()},
            metrics=dict(self.metrics),
            validated_at=self.validated_at,
            visited=self.visited,
            stop_reason=self.stop_reason,
            num_steps=self.num_steps,
            seconds=time.monotonic() - self.started,
            host=self._hooks.host_states(),
            versions=config.versions(),
            totals=dict(self._window.sums),
            averaged=any(name.startswith("weights/") for name in arrays),
            history=list(self.history),
        )
        return arrays, meta

    def restore(self, state: TrainState, meta: CheckpointMeta, host: dict[str, Any], prolonged: bool) -> None:
        """Continues from a checkpoint's state and meta data, and what it kept for each callback."""
        self.state, self.step, self.resumed, self.prolonged = state, meta.step, True, prolonged
        self.visited, self.validated_at = meta.visited, meta.validated_at
        self._host = host
        self.feed.position = meta.position
        # A run that ended here has logged and measured what one that goes on does not, or not yet.
        self._window.rows = meta.window if self.step % self.log_every else {}
        if unknown := self._window.sums.keys() - meta.totals.keys():
            names = ", ".join(sorted(unknown))
            log.warning("counted from step %d on, as the checkpoint has none: %s", self.step, names)
        self._window.sums = {name: meta.totals.get(name, 0.0) for name in self._window.sums}
        if self.step != self.next_validation(self.step - 1):
            self.validated_at = -1
        if self.step == self.num_steps == meta.num_steps and self.visited == self.step:
            self._rest_logged = self.step
        self.metrics = meta.metrics
        self.history = meta.history
        if self.history and self.history[-1]["step"] == self.step:
            last, again = self.history.pop(), self.logged_again()
            kept = {name: value for name, value in last.items() if "/" in name and not name.startswith(again)}
            if kept:
                self._remember(self.step, kept)
        self.started = time.monotonic() - meta.seconds

    def begin(self) -> None:
        """Starts the callbacks, writes config.json, and does what an interrupted run has left undone at its step."""
        self._hooks.begin(self, self._host)
        if self.run_dir is not None and processes.is_main():
            write_config(self.run_dir, self.config)
        self._share_stop()
        self._finite = jax.jit(finite_weights, out_shardings=self.devices.replicated)(self.state)
        if self.visited != self.step:
            self.visit()

    def logged_again(self) -> tuple[str, ...]:
        """Prefixes of the metrics of this step that a resumed run logs again, or not at all: loggers drop them."""
        again = self.step % self.log_every and self._rest_logged != self.step
        train = ("train/", "speed/") if again else ()
        return (*train, *(("val/",) if self.validated_at != self.step else ()))

    def next_validation(self, step: int) -> int | None:
        """The first step after `step` with a validation, or None where there is no validation data."""
        if self.evaluator is None:
            return None
        return min(self.num_steps, next_multiple(step, self.trainer.val_every.in_steps(self.steps_per_epoch)))

    def _next_wish(self) -> int:
        wishes = [callback.next_step(self.step) for callback in self._hosted.values()]
        steps = [step for step in (*wishes, self.next_validation(self.step), self.num_steps) if step is not None]
        return max(self.step + 1, min(steps))

    def _share_stop(self) -> None:
        self.stop_reason = next((reason for reason in processes.gather("stop", self.stop_reason) if reason), None)

    def _validate(self) -> None:
        assert self.evaluator is not None
        params = evaluation_params(self.state, self.callbacks)
        metrics = self.evaluator.evaluate(params, self.state.variables, self.step)
        self.metrics |= metrics
        self.validated_at = self.step
        self._remember(self.step, metrics)
        self._hooks.emit("on_validation_end", self, metrics)

    @staticmethod
    def _guard() -> contextlib.AbstractContextManager[None]:
        """Nothing waits for the devices in the loop, but where the user looks into each operation."""
        looks = jax.config.jax_disable_jit or jax.config.jax_debug_nans or jax.config.jax_debug_infs  # type: ignore[attr-defined]
        return contextlib.nullcontext() if looks else jax.transfer_guard("disallow")

    def _log_rest(self) -> None:
        """Logs the last, open window; it stays open, for a run that goes on from here."""
        if self._window.rows and self._rest_logged != self.step:
            self._rest_logged = self.step
            self._log(self.step, self._window.means())

    def _log(self, step: int, means: dict[str, float]) -> None:
        self.metrics |= means
        self.logged_at = step
        self._remember(step, means)
        self._hooks.emit("on_train_log", self, step, means)

    def _remember(self, step: int, metrics: dict[str, float]) -> None:
        """Adds to the row of a step, as a new dict: a checkpoint that is yet to be written holds the old one."""
        if self.history and self.history[-1]["step"] == step:
            self.history[-1] = self.history[-1] | metrics
        else:
            epoch = step / self.steps_per_epoch if self.steps_per_epoch else 0.0
            self.history.append({"step": step, "epoch": epoch, **metrics})

    def _result(self) -> FitResult:
        folder = CheckpointFolder(self.run_dir) if self.run_dir else None
        best = folder.find("best") if folder and folder.steps() else None
        return FitResult(
            self.task, self.model(), dict(self.metrics), list(self.history), self.state, best, self.stop_reason
        )

    def _collect(self) -> None:
        self.settled = False
        steps, futures = self._in_flight.popleft()
        rows, finite = jax.device_get(futures)
        values = self._window.count({f"train/{name}": row[: len(steps)] for name, row in rows.items()})
        self.pace.finished(len(steps))
        self._check_finite(steps, values, finite)
        self._hooks.emit("on_train_metrics", self, steps, values)
        for step, means in self._window.add(steps, values):
            self._log(step, means)
        self.settled = True
        self._hooks.raise_first()

    def _check_finite(self, steps: range, values: dict[str, np.ndarray], finite: np.ndarray) -> None:
        losses = values.get("train/loss", np.zeros(len(steps)))
        if not np.isfinite(losses).all():
            at = int(np.argmin(np.isfinite(losses)))
            what = f"train/loss is {losses[at]} at step {steps[at]}."
        elif not finite.all() and (broken := jax.device_get(self._finite) & ~finite).any():
            # A metric may show the step, as grad_norm does.
            odd = ~np.all([np.isfinite(row) for row in (losses, *values.values())], axis=0)
            at = int(np.argmax(odd)) if odd.any() else len(steps) - 1
            when = f"at step {steps[at]}" if odd.any() or len(steps) == 1 else f"in steps {steps[0]} to {steps[-1]}"
            names = [name for name, bad in zip(self._weights, broken, strict=True) if bad]
            more = f" (and {len(names) - 1} more)" if names[1:] else ""
            what = f"{names[0]}{more} became NaN or infinite {when}; the loss was {losses[at]:.6g}."
        else:
            self._finite = finite
            return
        metrics = {name.removeprefix("train/"): float(row[at]) for name, row in values.items()}
        raise NonFiniteError(f"{what} {self.task.explain_non_finite(metrics)}")


def _copy_program(callbacks: dict[str, Callback]) -> Any:
    """Copies of the state's arrays by path: the state is donated, and a save goes on beside the next dispatch."""

    def copy(state: TrainState) -> dict[str, jax.Array]:
        tree = {field: getattr(state, field) for field in STATE_FIELDS}
        params = evaluation_params(state, callbacks)
        if params is not state.params:
            tree["weights"] = params
        return {name: jnp.copy(leaf) for name, leaf in name_leaves(tree).items()}

    return jax.jit(copy)
