"""The contract of a callback: WHAT ELSE happens in a run."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import optax

from galvanax.callbacks.run_view import RunView
from galvanax.trainer.result import FitResult
from galvanax.trainer.state import Arrays, TrainState


@dataclasses.dataclass
class Callback:
    """Subclass it as a dataclass whose fields are its settings; override what it needs.

    *Traced* methods become part of the compiled step. *Host* methods run between dispatches: `on_step` on exactly the
    steps that `next_step` names. Host state belongs in attributes set by `on_fit_start`, and, if a resumed run must
    continue it, in `host_state` and `restore_host_state`.

    The order is that of the list, with those that `runs_last` behind; and at the end of a run: `on_step`, where one is
    due; `on_train_end`; the last checkpoint, with `on_save` before it; `on_fit_end`. An error in one of them ends the
    run, once all others have been told what it was told; the last whole step is saved first.

    With several processes, each has the callback and calls its host methods at the same steps with the same metrics,
    unless `main_process_only`. What computes with `run.state` must then do so in all of them.
    """

    writes_files: ClassVar[bool] = False  # needs a run_dir; left out of a fast_dev_run
    one_of_a_kind: ClassVar[bool] = False  # two in a run would write the same files
    runs_last: ClassVar[bool] = False  # after all others at a step, to see what they did
    main_process_only: ClassVar[bool] = False  # of several processes, only process 0 calls its host methods

    # Traced.

    def wrap_optimizer(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """Wraps the task's optimizer (clipping, accumulation). Gradients pass the callbacks in list order."""
        return optimizer

    def optimizer_steps(self, num_steps: int) -> int:
        """How many updates the wrapped optimizer makes in `num_steps` steps: the length of learning-rate schedules."""
        return num_steps

    def init_slot(self, params: Arrays) -> Any:
        """A pytree to keep in the train state, or None for none. It is donated, sharded and checkpointed with it."""
        return None

    def update_slot(self, slot: Any, state: TrainState) -> Any:
        """The slot after a step; `state` is the one that the step has just made."""
        return slot

    def eval_params(self, slot: Any) -> Arrays | None:
        """The parameters that evaluation, `Task.load` and the result use instead of the raw ones, or None."""
        return None

    # Host.

    def init_params(self, params: Arrays, variables: Arrays) -> tuple[Arrays, Arrays]:
        """The weights that a fresh run starts from, of the same names, shapes and types.

        Called once, after `Task.set_statistics` and before optimizer state and slots are made from them; not in a
        resumed run.
        """
        return params, variables

    def on_fit_start(self, run: RunView) -> None:
        """Before the first dispatch; after the state is restored, in a resumed run."""

    def next_step(self, step: int) -> int | None:
        """The first step after `step` at which `on_step` must see the state, or None."""
        return None

    def due(self, run: RunView) -> bool:
        """Whether `on_step` must see the state now; asked between dispatches, for what depends on time or signals."""
        return False

    def on_step(self, run: RunView) -> None:
        """At the steps that `next_step` named, or when `due`; after validation where the step has one.

        `run.state` is current, and every metric up to `run.step` has been handed out.
        """

    def on_save(self, run: RunView) -> None:
        """Before a checkpoint is taken: write out what is buffered, so that files and checkpoint agree."""

    def on_train_metrics(self, run: RunView, steps: range, metrics: dict[str, np.ndarray]) -> None:
        """Training metrics `(len(steps),)` of a finished dispatch. They arrive one dispatch late."""

    def on_train_log(self, run: RunView, step: int, metrics: dict[str, float]) -> None:
        """Training metrics at every multiple of `log_every`: means over the steps since the last, and `Task.totals`."""

    def on_validation_end(self, run: RunView, metrics: dict[str, float]) -> None:
        """After a validation, with names such as `"val/loss"`."""

    def on_train_end(self, run: RunView) -> None:
        """After the last step, also when the run was stopped early, while everything still works."""

    def on_fit_end(self, run: RunView, result: FitResult) -> None:
        """After the last checkpoint: time to close what is open."""

    def on_exception(self, run: RunView, error: BaseException) -> None:
        """When the run ends by an exception, which is raised again; also where that came from an `on_fit_end`."""

    def host_state(self) -> dict[str, Any]:
        """JSON data that a checkpoint keeps for `restore_host_state`; copied at once."""
        return {}

    def restore_host_state(self, state: dict[str, Any]) -> None:
        """Continues from `host_state`'s data; called after `on_fit_start` in a resumed run."""


def evaluation_params(state: TrainState, callbacks: dict[str, Callback]) -> Arrays:
    """The parameters that evaluation uses: the last callback's that gives any, else the raw ones."""
    params = state.params
    for name, callback in callbacks.items():
        if name in state.slots:
            chosen = callback.eval_params(state.slots[name])
            params = params if chosen is None else chosen
    return params


def name_callbacks(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    """Names callbacks by class, `"EMA"`, `"EMA_2"`: the keys of their slots and host state."""
    named: dict[str, Callback] = {}
    for callback in sorted(callbacks, key=lambda c: c.runs_last):
        base = type(callback).__name__
        count = sum(type(other).__name__ == base for other in named.values())
        named[base if count == 0 else f"{base}_{count + 1}"] = callback
    return named
