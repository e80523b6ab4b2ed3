"""Exact evaluation: every example once, averaged in float64, whatever the batch size or the number of devices."""

import logging
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from galvanax.errors import NonFiniteError
from galvanax.trainer import placement, processes
from galvanax.trainer.batch import batch_bytes
from galvanax.trainer.devices import Devices
from galvanax.trainer.feed import EvaluationFeed
from galvanax.trainer.metric_window import mean
from galvanax.trainer.programs import EVALUATE, evaluate_program, predict_program, stream_key, whole_batch_program
from galvanax.trainer.state import Arrays, ModelDef

if TYPE_CHECKING:
    from galvanax.tasks.task import Task

log = logging.getLogger("galvanax")

STACK, STACK_BYTES = 16, 128 * 2**20


class Evaluator:
    """One task on one evaluation dataset; compiles once and is called with new weights.

    Args:
      task: whose `evaluate` (or `predict`) is run.
      definition: the task's model.
      feed: the batches.
      devices: where.
      seed: of the run.
      split: the metrics' prefix, `"val"` or `"test"`.
    """

    def __init__(
        self, task: "Task", definition: ModelDef, feed: EvaluationFeed, devices: Devices, seed: int, split: str
    ):
        self._task, self._definition = task, definition
        self._feed, self._devices, self._split = feed, devices, split
        self._key = placement.put(stream_key(seed, EVALUATE), devices.replicated)
        self._capacity = max(1, min(STACK, feed.count or STACK, STACK_BYTES // max(1, batch_bytes(feed.spec))))
        arrays = jax.eval_shape(definition.init, self._key)
        self._arrays = arrays
        self._placed = (devices.params(arrays[0]), devices.replicated)
        parts = (task, definition, arrays, feed.spec, self._capacity, devices)
        self.metric_names: list[str] = []
        self._compared = True
        if split == "predict":
            self._program = predict_program(*parts)
        else:
            self._program, names, draws = evaluate_program(*parts)
            self._compared = draws or feed.rows == 1
            self.metric_names = [f"{split}/{name}" for name in names]

    def lower(self) -> jax.stages.Lowered:
        """The program, to compile it and look at it: `evaluator.lower().compile()`."""

        def at(sharding: Any, leaf: Any, *stack: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*stack, *leaf.shape), leaf.dtype, sharding=sharding)

        whole, capacity = self._devices.replicated, self._capacity
        params, variables = self._arrays
        arrays = (
            {name: at(self._placed[0][name], leaf) for name, leaf in params.items()},
            jax.tree.map(lambda leaf: at(whole, leaf), variables),
        )
        stack = jax.tree.map(lambda leaf: at(self._devices.stacked, leaf, capacity), self._feed.spec)
        number = jax.ShapeDtypeStruct((), np.int32)
        return self._program.lower(arrays, stack, at(whole, number), at(whole, number, capacity), at(whole, self._key))

    def evaluate(self, params: Arrays, variables: Arrays, step: int | None = None) -> dict[str, float]:
        """Means over all examples, `{"val/loss": ...}`.

        Raises:
          NonFiniteError: a loss is NaN or infinite; names the metric, the step and the first such example.
        """
        whole: dict[str, np.ndarray] = {}
        values = self.per_example(params, variables, whole)
        self._compare(values, whole)
        loss = values.get("loss")
        if loss is not None and not np.isfinite(loss).all():
            bad = np.flatnonzero(~np.isfinite(loss))
            at = "" if step is None else f" at step {step}"
            raise NonFiniteError(
                f"{self._split}/loss is {loss[bad[0]]}{at} for {len(bad)} of {len(loss)} examples; first: {bad[0]}."
            )
        return {f"{self._split}/{name}": mean(rows.tolist()) for name, rows in values.items()}

    def per_example(self, params: Arrays, variables: Arrays, whole: dict[str, np.ndarray] | None = None) -> Any:
        """The program's outputs with the examples `(examples, ...)` in order, padding cut away.

        Args:
          params: by path.
          variables: by path.
          whole: once, is filled with the metrics of the first batch as a whole.
        """
        params, variables = placement.put((params, variables), self._placed)
        waiting: list[tuple[Any, list[int]]] = []
        done: list[Any] = []
        firsts = np.arange(self._capacity, dtype=np.int32) * self._feed.rows
        for stack, rows in self._feed.stacks(self._capacity, self._devices.stacked):
            if whole is not None and not self._compared:
                whole |= self._evaluate_whole(params, variables, stack)
            numbers = placement.put((np.int32(len(rows)), firsts), self._devices.replicated)
            waiting.append((self._program((params, variables), stack, *numbers, self._key), rows))
            firsts = firsts + np.int32(self._capacity * self._feed.rows)
            # As in training, two in flight. Programs with messages between a CPU's devices, waiting in dozens, would
            # take each other the threads that they need to meet.
            if len(waiting) == 2:
                done.append(_unstack(*waiting.pop(0)))
        done.extend(_unstack(*part) for part in waiting)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *done)

    def _evaluate_whole(self, params: Arrays, variables: Arrays, stack: Any) -> dict[str, np.ndarray]:
        self._compared = True
        program = whole_batch_program(self._task, self._definition, self._feed.rows, self._devices)
        try:
            return jax.device_get(program((params, variables), stack))
        except Exception:  # a task that takes one example alone, or no room for a batch: no reason to end a run
            return {}

    def _compare(self, values: dict[str, np.ndarray], whole: dict[str, np.ndarray]) -> None:
        """Says where the mean over single examples isn't what their batch gives."""
        found = []
        for name, together in whole.items():
            alone = values[name][: self._feed.rows].astype(np.float64)
            if not np.isfinite([*alone, together]).all():
                continue
            # bfloat16 rounds to 0.4 %. An `evaluate` that reads the first row alone is right as it is.
            rounding = 0.01 * max(np.abs(alone).mean(), abs(together))
            if min(abs(together - alone.mean()), abs(together - alone[0])) > rounding:
                found.append(f"{self._split}/{name} is {alone.mean():.4g} ({together:.4g} as a batch)")
        if found and processes.is_main():
            log.warning(
                "Over the first %d examples, each evaluated alone, which is what is reported, %s. What compares "
                "examples (a contrastive loss) or is no mean over them (a root, a ratio) needs another %s.evaluate, of "
                "what one example has by itself, or examples that each hold all that belongs together.",
                self._feed.rows, ", ".join(found), type(self._task).__name__,
            )  # fmt: skip


def _unstack(values: Any, rows: list[int]) -> Any:
    """`(stack, batch, ...)` to `(examples, ...)`: the true rows of each batch."""
    return jax.tree.map(
        lambda leaf: np.concatenate([batch[:n] for batch, n in zip(leaf, rows, strict=False)]), jax.device_get(values)
    )
