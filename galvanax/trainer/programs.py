"""The compiled programs: up to K steps, evaluations or predictions in one dispatch.

Each is a `fori_loop` whose trip count is traced, so one executable serves every number of steps up to K, and the steps'
arithmetic is the same, bit for bit, however they are cut into dispatches.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from galvanax.callbacks.callback import Callback
from galvanax.errors import ConfigError
from galvanax.trainer.batch import Spec
from galvanax.trainer.devices import Devices
from galvanax.trainer.state import Arrays, TrainState

if TYPE_CHECKING:
    from galvanax.tasks.task import Task

# Randomness is a function of (seed, stream, step, example index); these are the streams.
INIT, TRAIN, EVALUATE = range(3)


def stream_key(seed: int, stream: int) -> jax.Array:
    """The key of one of the run's random streams."""
    return jax.random.fold_in(jax.random.key(seed), stream)


def train_program(
    task: "Task", callbacks: dict[str, Callback], state: TrainState, batch: Spec, capacity: int, devices: Devices
) -> tuple[Callable[..., Any], list[str]]:
    """Returns `run(state, stack, count, key) -> (state, {metric: (capacity,)})`, uncompiled, and the metrics' names.

    Args:
      task: whose `train_step` is run.
      callbacks: their slots are updated after each step.
      state: abstract or concrete.
      batch: what one batch looks like.
      capacity: K, the number of batches in a stack.
      devices: where.
    """

    def one_step(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        new, metrics = task.train_step(state, batch, jax.random.fold_in(key, state.step))
        new = new.replace(step=state.step + 1)
        slots = {name: callbacks[name].update_slot(slot, new) for name, slot in new.slots.items()}
        return new.replace(slots=slots), {name: jnp.mean(value, dtype=jnp.float32) for name, value in metrics.items()}

    key = jax.eval_shape(lambda: jax.random.key(0))
    after, metrics = jax.eval_shape(one_step, state, batch, key)
    _check_same(type(task).__name__, state, after)

    def run_steps(state: TrainState, stack: Any, count: jax.Array, key: jax.Array) -> tuple[TrainState, Any]:
        def body(index: jax.Array, carry: tuple[TrainState, Any]) -> tuple[TrainState, Any]:
            state, rows = carry
            # The barrier keeps the slicing out of the step's fusions, which must not depend on the stack's size.
            batch = jax.lax.optimization_barrier(jax.tree.map(lambda leaf: leaf[index], stack))
            state, values = one_step(state, batch, key)
            return state, {name: rows[name].at[index].set(value) for name, value in values.items()}

        return jax.lax.fori_loop(0, count, body, (state, {name: jnp.zeros(capacity) for name in metrics}))

    placed = jax.tree.map(lambda _: devices.replicated, state)
    return jax.jit(run_steps, donate_argnums=0, out_shardings=(placed, devices.replicated)), list(metrics)


def evaluate_program(task: "Task", definition: Any, arrays: Any, batch: Spec, capacity: int, devices: Devices) -> Any:
    """As `example_program`, for `Task.evaluate`: returns `(run, names of the metrics)`."""

    def evaluate(model: Any, example: Any, rng: jax.Array) -> dict[str, jax.Array]:
        metrics = task.evaluate(model, example, rng)
        return {name: jnp.mean(value, dtype=jnp.float32) for name, value in metrics.items()}

    run, shapes = example_program(evaluate, definition, arrays, batch, capacity, devices)
    return run, list(shapes)


def predict_program(task: "Task", definition: Any, arrays: Any, batch: Spec, capacity: int, devices: Devices) -> Any:
    """As `example_program`, for `Task.predict`."""

    def predict(model: Any, example: Any, rng: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[0], task.predict(model, example, rng))

    return example_program(predict, definition, arrays, batch, capacity, devices)[0]


def example_program(
    function: Callable[..., Any],
    definition: Any,
    arrays: Any,
    batch: Spec,
    capacity: int,
    devices: Devices,
) -> tuple[Callable[..., Any], Any]:
    """Applies `function(model, example, rng)` to each example of a stack of batches on its own.

    Returns `run((params, variables), stack, count, firsts, key) -> pytree of (capacity, batch, ...)`, in which `firsts`
    `(capacity,)` are the indices of the batches' first examples in the dataset, and the shapes of one batch's results.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]

    def one_batch(arrays: tuple[Arrays, Arrays], batch: Any, first: jax.Array, key: jax.Array) -> Any:
        def one(example: Any, index: jax.Array) -> Any:
            single = jax.tree.map(lambda leaf: leaf[None], example)
            return function(definition.merge(*arrays), single, jax.random.fold_in(key, index))

        return jax.vmap(one)(batch, first + jnp.arange(rows))

    result = jax.eval_shape(one_batch, arrays, batch, jnp.int32(0), jax.eval_shape(lambda: jax.random.key(0)))

    def run(arrays: Any, stack: Any, count: jax.Array, firsts: jax.Array, key: jax.Array) -> Any:
        def body(index: jax.Array, filled: Any) -> Any:
            values = one_batch(arrays, jax.tree.map(lambda leaf: leaf[index], stack), firsts[index], key)
            return jax.tree.map(lambda all_, new: all_.at[index].set(new), filled, values)

        empty = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), result)
        return jax.lax.fori_loop(0, count, body, empty)

    return jax.jit(run, out_shardings=devices.replicated), result


def _check_same(name: str, before: TrainState, after: TrainState) -> None:
    """A step must return the state in the form it got it: else no loop can carry it."""
    old = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(before)}
    new = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(after)}
    if old.keys() != new.keys():
        raise ConfigError(
            f"{name}.train_step changed the state's structure at {', '.join(sorted(old.keys() ^ new.keys())[:5])}."
        )
    for path, leaf in old.items():
        if (leaf.shape, leaf.dtype) != (new[path].shape, new[path].dtype):
            raise ConfigError(
                f"{name}.train_step changed state{path} from {leaf.dtype}{list(leaf.shape)} "
                f"to {new[path].dtype}{list(new[path].shape)}; a step must keep shapes and dtypes."
            )
