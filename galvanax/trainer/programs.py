"""The compiled programs: up to K steps, evaluations or predictions in one dispatch.

Each is a `fori_loop` whose trip count is traced, so one executable serves every number of steps up to K, and the steps'
arithmetic is the same, bit for bit, however they are cut into dispatches.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from galvanax.callbacks.callback import Callback
from galvanax.errors import ConfigError, nearest
from galvanax.trainer.batch import Spec
from galvanax.trainer.data_axis import DATA, ROWS, WHOLE, in_mesh, over_data_axis
from galvanax.trainer.devices import Devices, constrain
from galvanax.trainer.metric_window import check_metrics
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
    """Returns `run(state, stack, count, key) -> (state, ({metric: (capacity,)}, finite))`, uncompiled, and the metrics.

    `finite` is `finite_weights` after these steps.

    Args:
      task: whose `train_step` is run.
      callbacks: their slots are updated after each step.
      state: abstract, with leaves that say how they lie on the devices (`Devices.place`).
      batch: what one batch looks like.
      capacity: K, the number of batches in a stack.
      devices: where.
    """

    placed, name = state, type(task).__name__
    size = jax.tree.leaves(batch)[0].shape[0]

    def one_step(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        whole = state.replace(params=devices.whole(state.params))
        new, metrics = _check_step(task, task.train_step(whole, batch, jax.random.fold_in(key, state.step)), size)
        new = constrain(_check_same(name, placed, new.replace(step=state.step + 1)), placed)
        slots = {name: callbacks[name].update_slot(slot, new) for name, slot in new.slots.items()}
        new = constrain(_check_same(name, placed, new.replace(slots=slots)), placed)
        reduce = {name: jnp.sum if name in task.totals else jnp.mean for name in metrics}
        return new, {name: reduce[name](value, dtype=jnp.float32) for name, value in metrics.items()}

    with in_mesh(devices.mesh):
        metrics = jax.eval_shape(one_step, state, batch, jax.eval_shape(lambda: jax.random.key(0)))[1]

    def run_steps(state: TrainState, stack: Any, count: jax.Array, key: jax.Array) -> tuple[TrainState, Any]:
        def body(index: jax.Array, carry: tuple[TrainState, Any]) -> tuple[TrainState, Any]:
            state, rows = carry
            # The barrier keeps the slicing out of the step's fusions, which must not depend on the stack's size.
            batch = jax.lax.optimization_barrier(jax.tree.map(lambda leaf: leaf[index], stack))
            state, values = one_step(state, batch, key)
            return state, {name: rows[name].at[index].set(value) for name, value in values.items()}

        with in_mesh(devices.mesh):
            state, rows = jax.lax.fori_loop(0, count, body, (state, {name: jnp.zeros(capacity) for name in metrics}))
            return state, (rows, finite_weights(state))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, placed)
    return jax.jit(run_steps, donate_argnums=0, out_shardings=(shardings, devices.replicated)), list(metrics)


def weight_names(state: TrainState) -> list[str]:
    """The arrays that must stay finite: parameters, and the model's other numbers."""
    return [f"{field}/{name}" for field, name, _ in _weights(state)]


def _weights(state: TrainState) -> list[tuple[str, str, Any]]:
    fields = (("params", state.params), ("variables", state.variables))
    return [
        (field, name, leaf)
        for field, leaves in fields
        for name, leaf in leaves.items()
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]


def finite_weights(state: TrainState) -> jax.Array:
    """Which of `weight_names` are finite, `(weights,)`; one pass over them for a whole dispatch."""
    flags = [jnp.isfinite(leaf).all() for _, _, leaf in _weights(state)]
    return jnp.stack(flags) if flags else jnp.zeros(0, bool)


def lower_train_program(program: Any, state: TrainState, batch: Spec, capacity: int, devices: Devices) -> Any:
    """A `train_program`'s `run` for these shapes, as a `jax.stages.Lowered`: to compile it, and look at it, alone."""
    stack = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((capacity, *leaf.shape), leaf.dtype, sharding=devices.stacked), batch
    )
    count = jax.ShapeDtypeStruct((), np.int32, sharding=devices.replicated)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return program.lower(state, stack, count, jax.ShapeDtypeStruct((), key.dtype, sharding=devices.replicated))


def evaluate_program(task: "Task", definition: Any, arrays: Any, batch: Spec, capacity: int, devices: Devices) -> Any:
    """As `example_program`, for `Task.evaluate`: `(run, names of the metrics, whether it draws random numbers)`."""

    def evaluate(model: Any, example: Any, rng: jax.Array) -> dict[str, jax.Array]:
        metrics = task.evaluate(model, example, rng)
        check_metrics(metrics, 1, f"{type(task).__name__}.evaluate, called for one example at a time,")
        return {name: jnp.mean(value, dtype=jnp.float32) for name, value in metrics.items()}

    run, shapes, draws = example_program(evaluate, definition, arrays, batch, capacity, devices)
    return run, list(shapes), draws


def whole_batch_program(task: "Task", definition: Any, rows: int, devices: Devices) -> Callable[..., Any]:
    """`run((params, variables), stack)`: a stack's first batch evaluated as a whole, by a task that draws nothing."""

    def evaluate(arrays: tuple[Arrays, Arrays], stack: Any) -> dict[str, jax.Array]:
        batch = jax.tree.map(lambda leaf: leaf[0, :rows], stack)
        metrics = task.evaluate(definition.merge(*arrays), batch, jax.random.key(0))
        check_metrics(metrics, rows, "evaluate")
        return {name: jnp.mean(value, dtype=jnp.float32) for name, value in metrics.items()}

    return jax.jit(evaluate, out_shardings=devices.replicated)


def predict_program(task: "Task", definition: Any, arrays: Any, batch: Spec, capacity: int, devices: Devices) -> Any:
    """As `example_program`, for `Task.predict`."""

    def predict(model: Any, example: Any, rng: jax.Array) -> Any:
        result = task.predict(model, example, rng)
        _check_rows(f"{type(task).__name__}.predict", result)
        return jax.tree.map(lambda leaf: leaf[0], result)

    return example_program(predict, definition, arrays, batch, capacity, devices)[0]


def example_program(
    function: Callable[..., Any],
    definition: Any,
    arrays: Any,
    batch: Spec,
    capacity: int,
    devices: Devices,
) -> tuple[Callable[..., Any], Any, bool]:
    """Applies `function(model, example, rng)` to each example of a stack of batches on its own.

    Each device works on its own examples: those that take long (an episode) keep no other device waiting.

    Returns `run((params, variables), stack, count, firsts, key) -> pytree of (capacity, batch, ...)`, in which `firsts`
    `(capacity,)` are the indices of the batches' first examples in the dataset, the shapes of one batch's results, and
    whether `function` draws random numbers.
    """
    offsets = np.arange(jax.tree.leaves(batch)[0].shape[0], dtype=np.int32)

    def each(arrays: tuple[Arrays, Arrays], batch: Any, keys: jax.Array) -> Any:
        def one(example: Any, key: jax.Array) -> Any:
            return function(definition.merge(*arrays), jax.tree.map(lambda leaf: leaf[None], example), key)

        return jax.vmap(one)(batch, keys)

    def one_batch(arrays: tuple[Arrays, Arrays], batch: Any, indices: jax.Array, key: jax.Array) -> Any:
        return each(arrays, batch, jax.vmap(functools.partial(jax.random.fold_in, key))(indices))

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), len(offsets)))
    traced, result = jax.make_jaxpr(each, return_shape=True)(arrays, batch, keys)
    draws = any(traced.jaxpr.invars[-1] is variable for equation in traced.eqns for variable in equation.invars)

    def all_batches(
        arrays: Any, stack: Any, offsets: jax.Array, count: jax.Array, firsts: jax.Array, key: jax.Array
    ) -> Any:
        def body(index: jax.Array, filled: Any) -> Any:
            values = one_batch(arrays, jax.tree.map(lambda leaf: leaf[index], stack), firsts[index] + offsets, key)
            return jax.tree.map(lambda all_, new: all_.at[index].set(new), filled, values)

        rows = offsets.shape[0]
        empty = jax.tree.map(lambda leaf: jnp.zeros((capacity, rows, *leaf.shape[1:]), leaf.dtype), result)
        return jax.lax.fori_loop(0, count, body, empty)

    def run(arrays: Any, stack: Any, count: jax.Array, firsts: jax.Array, key: jax.Array) -> Any:
        stacked = PartitionSpec(None, DATA)
        local = over_data_axis(all_batches, (WHOLE, stacked, ROWS, WHOLE, WHOLE, WHOLE), stacked)
        with in_mesh(devices.mesh):
            params, variables = arrays
            return local((devices.whole(params), variables), stack, jnp.asarray(offsets), count, firsts, key)

    return jax.jit(run, out_shardings=devices.replicated), result, draws


def _check_step(task: "Task", result: Any, rows: int) -> tuple[TrainState, dict[str, Any]]:
    """What `train_step` returned, in the form that the loop reads."""
    name = type(task).__name__
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], TrainState)):
        raise ConfigError(f"{name}.train_step returned {type(result).__name__}; expected (state, {{name: metric}}).")
    state, metrics = result
    check_metrics(metrics, rows, f"{name}.train_step")
    if "loss" not in metrics:
        raise ConfigError(
            f'{name}.train_step returned no metric "loss", in which the Trainer looks for NaN; it returned '
            f"{', '.join(sorted(metrics)) or 'none'}. Return the loss, or another number that shows when a run fails."
        )
    if missing := [total for total in task.totals if total not in metrics]:
        raise ConfigError(
            f"{name}.totals names {missing[0]!r}; {name}.train_step returned {', '.join(sorted(metrics))}."
            f"{nearest(missing[0], metrics)}"
        )
    loss = jnp.asarray(metrics["loss"])
    if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ConfigError(
            f'{name}.train_step returned a "loss" of {loss.dtype}{list(loss.shape)}; '
            "expected a float scalar: take the mean."
        )
    return state, metrics


def _check_rows(name: str, result: Any) -> None:
    """Raises TypeError where predictions aren't one row for the one example."""
    leaves = jax.tree_util.tree_leaves_with_path(result)
    if not leaves:
        raise TypeError(f"{name} returned {result!r}; expected arrays (batch, ...).")
    for path, leaf in leaves:
        shape = getattr(leaf, "shape", None)
        if shape is None or shape[:1] != (1,):
            seen = type(leaf).__name__ if shape is None else f"{leaf.dtype}{list(shape)}"
            raise TypeError(
                f"{name} returned {seen}{f' at {jax.tree_util.keystr(path)}' if path else ''} for a batch of 1 "
                "example; expected one row for each, (batch, ...)."
            )


def _check_same(name: str, before: TrainState, after: TrainState) -> TrainState:
    """The state after a step, which must have the form that it had before: else no loop can carry it."""
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
    return after
