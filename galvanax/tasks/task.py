"""The contract of a task: WHAT is learned. Pure methods, traced into one compiled program by the Trainer."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from galvanax.datamodules.datamodule import DataModule
from galvanax.errors import ConfigError
from galvanax.runs.checkpoints import CheckpointFolder, check_task, verified_meta
from galvanax.runs.config import from_json
from galvanax.runs.integrity import META
from galvanax.runs.run_folder import find_run
from galvanax.runs.weights import load_model
from galvanax.trainer.data_axis import WHOLE
from galvanax.trainer.metric_window import check_metrics
from galvanax.trainer.state import ModelDef, TrainState

Model = TypeVar("Model", bound=nnx.Module)
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Task(Generic[Model]):
    """Subclass it as a frozen dataclass whose fields are the hyperparameters: `class Spring(gx.Task[gx.networks.MLP])`.

    The brackets name the model for type checkers and can be left out.

    The fields become command-line flags, the run's `config.json` and what `load` rebuilds the model from, so they hold
    plain values (numbers, strings, tuples, dataclasses of those), never arrays. Write `build_model`, `build_optimizer`
    and `loss`; everything else has a default.

    Attributes:
      totals: names of training metrics that count: each step's value is what it adds, over all examples, and what is
        logged is the exact sum from the run's start to that step. All others are logged as means.
    """

    totals: ClassVar[tuple[str, ...]] = ()

    def setup(self, datamodule: DataModule) -> Self:
        """Returns the task with the fields that the data decides (shapes, layouts) filled in; called first."""
        return self

    def build_model(self, rngs: nnx.Rngs) -> Model:
        """Makes the model. Any arrays that are not `nnx.Param` are state that is saved but gets no gradient."""
        raise NotImplementedError(f"{type(self).__name__} must define build_model(self, rngs) -> nnx.Module.")

    def set_statistics(self, model: Model, datamodule: DataModule) -> None:
        """Writes dataset statistics into a fresh model's normalisers; a loaded or resumed model has them already."""

    def build_optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """Makes the optimizer for a run of `num_steps` updates (for learning-rate schedules).

        `optax.inject_hyperparams(optax.adam)(learning_rate=schedule)` keeps the rate in its state, and it is logged.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define build_optimizer(self, num_steps) -> optax.GradientTransformation."
        )

    def init_carry(self, rng: jax.Array, datamodule: DataModule) -> Any:
        """A pytree of the task's own that travels in `TrainState.carry` (environment states, running statistics)."""
        return ()

    def carry_specs(self, carry: Any) -> Any:
        """How the carry lies on the devices: `ROWS` where an array is split along its leading axis, `WHOLE` where not.

        Returns:
          `galvanax.trainer.data_axis`' specs, for each array of the carry or for subtrees of it.
        """
        return jax.tree.map(lambda _: WHOLE, carry)

    def loss(self, model: Model, batch: Any, rng: jax.Array) -> tuple[jax.Array, Metrics]:
        """The scalar to minimise, a mean over the batch, and metrics by name.

        What it changes in the model lasts if it lies in an `nnx.Variable` that `build_model` made.

        Args:
          model: the model in training mode (in evaluation mode where `evaluate` calls it).
          batch: a pytree of arrays `(batch, ...)`.
          rng: a key that depends on the run's seed and the step alone.

        Returns:
          `(loss, {name: scalar or per-example (batch,) array})`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define loss(self, model, batch, rng), or train_step.")

    def train_step(self, state: TrainState, batch: Any, rng: jax.Array) -> tuple[TrainState, Metrics]:
        """One step. The default is one gradient step on `loss`, with the gradients' norm as the metric `"grad_norm"`.

        Where the optimizer keeps its rate, that is the metric `"learning_rate"`.

        Args:
          state: before the step.
          batch: a pytree of arrays `(batch, ...)`.
          rng: a key that depends on the run's seed and the step alone.

        Returns:
          The new state, and metrics as in `loss` with `"loss"` among them, a float scalar: the run ends where it is NaN
          or infinite.
        """
        model_rng, loss_rng = jax.random.split(rng)

        def objective(params: dict[str, jax.Array]) -> tuple[jax.Array, tuple[Metrics, dict[str, jax.Array]]]:
            model = state.model(params, rng=model_rng)
            attributes = _attributes(model)
            loss, metrics = self.checked_loss(model, batch, loss_rng)
            _check_attributes(attributes, model, f"{type(self).__name__}.loss")
            return loss, (metrics, state.definition.split(model)[1])

        (loss, (metrics, variables)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        if "grad_norm" in metrics:
            raise ValueError(
                f'{type(self).__name__}.loss returned a metric named "grad_norm", the name of the gradients\' norm; '
                "give it another one."
            )
        state = state.apply_gradients(grads, variables=variables)
        rates = {name: rate for name, rate in state.hyperparameters.items() if name == "learning_rate"}
        return state, {**rates, "loss": loss, **metrics, "grad_norm": optax.tree.norm(grads)}

    def evaluate(self, model: Model, batch: Any, rng: jax.Array) -> Metrics:
        """Metrics by name for validation and test, `"loss"` by default among them.

        The Trainer calls it for one example at a time (arrays `(1, ...)`, vectorised by `vmap`) with a key per example,
        and averages in float64, so that a result depends on neither the batch size nor padding nor the device count.
        A loss that compares the examples of a batch (contrastive) has nothing to compare then: define metrics that one
        example has by itself, or let an example hold those that belong together.

        Returns:
          `{name: scalar or array (1,)}`.
        """
        loss, metrics = self.checked_loss(model, batch, rng)
        return {"loss": loss, **metrics}

    def predict(self, model: Model, batch: Any, rng: jax.Array) -> Any:
        """A pytree of predictions `(batch, ...)` for `Trainer.predict`."""
        raise NotImplementedError(f"{type(self).__name__} defines no predict(self, model, batch, rng).")

    def explain_non_finite(self, metrics: Mapping[str, float]) -> str:
        """What the error says after a loss that is NaN or infinite, from the metrics of that step."""
        return "Lower the learning rate, clip the gradients, or look at that step's batch."

    def report(
        self,
        model: Model,
        datamodule: DataModule,
        output_dir: Path,
        *,
        num_examples: int | None = None,
        beside: Mapping[str, "tuple[Task[Any], nnx.Module]"] | None = None,
    ) -> dict[str, Any]:
        """Figures of merit beyond the test metrics, for `evaluations/STEP/`; may leave PNG plots in `output_dir`.

        Args:
          model: with evaluation weights.
          datamodule: the run's data, or other data of the kind.
          output_dir: for plots.
          num_examples: how many examples to look at, where there are many.
          beside: other runs, by name, to set beside this one: what `load` gives of them.
        """
        return {}

    def models_beside(self, beside: "Mapping[str, tuple[Task[Any], nnx.Module]] | None") -> dict[str, nnx.Module]:
        """The models of `report`'s `beside`.

        Raises:
          ConfigError: one is of another task.
        """
        for name, (task, _) in (beside or {}).items():
            if type(task) is not type(self):
                raise ConfigError(f"{name} is a run of {type(task).__name__}; expected one of {type(self).__name__}.")
        return {name: model for name, (_, model) in (beside or {}).items()}

    @classmethod
    def load(cls, run_dir: str | Path, checkpoint: str | Path = "best", *, averaged: bool = True) -> tuple[Self, Model]:
        """Loads `(task, model)` from a run folder: no data and no pickle needed.

        Args:
          run_dir: the run's folder.
          checkpoint: `"best"` (by the monitored metric; the last one where nothing was monitored), `"last"`, a step's
            folder name, or a path.
          averaged: take the averaged weights, where a callback averages, as evaluation does; else those in training.

        Raises:
          CheckpointError: there is none, it is damaged, or it is of another task.
        """
        folder = CheckpointFolder(find_run(run_dir)).find(checkpoint)
        meta = verified_meta(folder)
        task = from_json(cls, check_task(folder, meta, cls.__name__), str(folder / META))
        model: Any = load_model(ModelDef(task.build_model), folder, meta, averaged)
        return task, model

    def checked_loss(self, model: Model, batch: Any, rng: jax.Array) -> tuple[jax.Array, Metrics]:
        """`loss`, with its result's form checked while tracing."""
        name = f"{type(self).__name__}.loss"
        result = self.loss(model, batch, rng)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise TypeError(f"{name} returned {type(result).__name__}; expected (loss, {{name: metric}}).")
        loss, metrics = jnp.asarray(result[0]), result[1]
        if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
            raise TypeError(
                f"{name} returned a loss of {loss.dtype}{list(loss.shape)}; expected a float scalar: take the mean."
            )
        if "loss" in metrics:
            raise ValueError(f'{name} returned a metric named "loss", which is the loss itself; give it another name.')
        check_metrics(metrics, jax.tree.leaves(batch)[0].shape[0], name)
        return loss.astype(jnp.float32), metrics


def _attributes(model: nnx.Module) -> dict[tuple[str, ...], Any]:
    """What lies in a model's modules beside arrays in variables, by path: settings, and what a loss may leave there."""
    return {
        (*map(str, path), name): value
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Pytree)
        for name, value in vars(node).items()
        if not name.startswith("_pytree__") and not isinstance(value, nnx.Variable | nnx.Pytree)
    }


def _check_attributes(before: dict[tuple[str, ...], Any], model: nnx.Module, name: str) -> None:
    """Raises ConfigError where a traced call changed attributes, of which nothing is left after the step."""
    after, missing = _attributes(model), object()
    for path in before | after:
        old, new = before.get(path, missing), after.get(path, missing)
        if old is new or (type(old) is type(new) and not hasattr(new, "shape") and old == new):
            continue
        raise ConfigError(
            f"{name} changed the model's attribute {'.'.join(path)}, which is lost after the step: keep it in an "
            "nnx.Variable that build_model makes, or return it as a metric."
        )
