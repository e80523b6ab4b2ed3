"""The train state: everything that training changes, as one pytree of plain arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

Arrays = dict[str, jax.Array]

STATE_FIELDS = ("step", "params", "variables", "opt_state", "carry", "slots")  # what a checkpoint holds


class ModelDef:
    """A model without its arrays: what turns flat dicts of arrays into an `nnx.Module` and back.

    The arrays are named by their path in the module, `"layers/0/kernel"`. Random-number streams are no state: they
    are made anew from the step's key at every `merge`, so nothing random is stored.

    Args:
      build: makes the module, `build(rngs) -> nnx.Module`. It is traced for its structure, never run here.
      compute_dtype: what the layers that have a `dtype` compute in (`None`: as the module was built). Parameters,
        statistics, and arithmetic outside such layers keep their own precision.
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module], compute_dtype: Any = None):
        self._build = build
        self._compute_dtype = compute_dtype
        abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
        self._graphdef, *states = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
        self._params, self._rngs, self._variables = map(_by_name, states)

    @property
    def params(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the parameters."""
        return {name: variable.get_value() for name, (_, variable) in self._params.items()}

    def init(self, key: jax.Array) -> tuple[Arrays, Arrays]:
        """Builds a fresh model and returns its `(params, variables)`. Meant to be traced."""
        return self.split(self._build(nnx.Rngs(key)))

    def split(self, model: nnx.Module) -> tuple[Arrays, Arrays]:
        """The `(params, variables)` that a module holds."""
        params, _, variables = nnx.state(model, nnx.Param, nnx.RngState, ...)
        return _values(params), _values(variables)

    def merge(self, params: Arrays, variables: Arrays, rng: jax.Array | None = None) -> nnx.Module:
        """The module around these arrays.

        With `rng` it is in training mode and its streams (dropout) derive from that key; without, in evaluation mode.
        """
        flat = [(path, v.replace(params[name])) for name, (path, v) in self._params.items()]
        flat += [(path, v.replace(variables[name])) for name, (path, v) in self._variables.items()]
        key = jax.random.key(0) if rng is None else rng
        for index, (path, variable) in enumerate(self._rngs.values()):
            fresh = jax.random.fold_in(key, index) if isinstance(variable, nnx.RngKey) else jnp.uint32(0)
            flat.append((path, variable.replace(fresh)))
        model = nnx.merge(self._graphdef, nnx.from_flat_state(flat))
        if self._compute_dtype is not None:
            model.set_attributes(dtype=self._compute_dtype, raise_if_not_found=False)
        model.eval() if rng is None else model.train()
        return model


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes. Donated to every dispatch and saved whole in a checkpoint.

    Attributes:
      step: optimizer steps done, int32 scalar.
      params: trainable arrays by path, `{"layers/0/kernel": ...}`.
      variables: the model's other arrays by path (batch statistics, normalisers).
      opt_state: the optimizer's state.
      carry: the task's own pytree (`Task.init_carry`): environment states, running statistics.
      slots: one pytree per callback that keeps one (`Callback.init_slot`): averaged weights.
      definition: turns `params` and `variables` into the model; static.
      optimizer: the gradient transformation, callbacks' wrappers included; static.
    """

    step: jax.Array
    params: Arrays
    variables: Arrays
    opt_state: Any
    carry: Any
    slots: dict[str, Any]
    definition: ModelDef = dataclasses.field(metadata={"static": True})
    optimizer: optax.GradientTransformation = dataclasses.field(metadata={"static": True})

    def replace(self, **changes: Any) -> "TrainState":
        """A copy with these fields changed."""
        return dataclasses.replace(self, **changes)

    def model(self, params: Arrays | None = None, rng: jax.Array | None = None) -> Any:
        """The task's model; in training mode if `rng` is given (see `ModelDef.merge`)."""
        return self.definition.merge(self.params if params is None else params, self.variables, rng)

    @property
    def hyperparameters(self) -> Arrays:
        """What `optax.inject_hyperparams` keeps, by name, below all wrappers; not what two optimizers have."""
        found: dict[str, list[jax.Array]] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.opt_state):
            kind, key = [None, None, *path][-2:]
            if getattr(kind, "name", None) == "hyperparams" and isinstance(key, jax.tree_util.DictKey):
                found.setdefault(key.key, []).append(leaf)
        return {name: values[0] for name, values in found.items() if len(values) == 1}

    def apply_gradients(self, grads: Arrays, **changes: Any) -> "TrainState":
        """One optimizer update from gradients shaped like `params`; `changes` as in `replace`."""
        updates, opt_state = self.optimizer.update(grads, self.opt_state, self.params)
        return self.replace(params=optax.apply_updates(self.params, updates), opt_state=opt_state, **changes)


def _by_name(state: nnx.State) -> dict[str, tuple[tuple[Any, ...], nnx.Variable]]:
    return {"/".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(state)}


def _values(state: nnx.State) -> Arrays:
    return {name: variable.get_value() for name, (_, variable) in _by_name(state).items()}
