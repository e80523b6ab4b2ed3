"""The task's optimizer inside what callbacks wrap around it."""

from typing import TYPE_CHECKING, Any, NamedTuple

import optax

from galvanax.callbacks.callback import Callback

if TYPE_CHECKING:
    from galvanax.tasks.task import Task


def chain_optimizer(task: "Task", callbacks: dict[str, Callback], num_steps: int) -> optax.GradientTransformation:
    """The task's optimizer inside the callbacks' wrappers; gradients pass the callbacks in list order."""
    for callback in callbacks.values():
        num_steps = callback.optimizer_steps(num_steps)
    # A run too short for one update (fast_dev_run) still needs a schedule.
    optimizer = _name_state(task.build_optimizer(max(1, num_steps)))
    for callback in reversed(callbacks.values()):
        optimizer = callback.wrap_optimizer(optimizer)
    return optimizer


class TaskOptimizer(NamedTuple):
    """The state of the task's own optimizer, to be found again inside whatever the callbacks wrap around it."""

    task: optax.OptState


def _name_state(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    inner = optax.with_extra_args_support(optimizer)

    def init(params: optax.Params) -> TaskOptimizer:
        return TaskOptimizer(inner.init(params))

    def update(
        updates: optax.Updates, state: TaskOptimizer, params: optax.Params | None = None, **more: Any
    ) -> tuple[optax.Updates, TaskOptimizer]:
        updates, task = inner.update(updates, state.task, params, **more)
        return updates, TaskOptimizer(task)

    return optax.GradientTransformationExtraArgs(init, update)
