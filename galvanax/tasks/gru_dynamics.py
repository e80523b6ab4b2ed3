"""Learning a system's dynamics many steps ahead from logged trajectories."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx
from jax.sharding import PartitionSpec

from galvanax.errors import ConfigError
from galvanax.networks.gru_dynamics import GRUEnsemble, Prediction
from galvanax.physics.layout import StateLayout
from galvanax.settings import check_counts, check_ranges
from galvanax.tasks.optimizers import adamw
from galvanax.tasks.task import Metrics, Task
from galvanax.trainer.data_axis import DATA, ROWS, WHOLE, over_data_axis

if TYPE_CHECKING:
    from galvanax.datamodules.datamodule import DataModule

FROM_DATA = ("layout", "action_dim", "dt", "history", "horizon")


@dataclasses.dataclass(frozen=True)
class GRUDynamicsTask(Task):
    """Fits a recurrent model to windows of trajectories, fed with its own predictions over the horizon.

    The error of the state h steps ahead is measured in deviations of the one-step change, and divided by h: so that, as
    changes grow about as h, each step of the horizon counts the same relative to predicting no change.

    Attributes:
      hidden_size: of the GRU and the layer behind it.
      learning_rate: highest learning rate, after a warm-up; it then falls to zero along a cosine.
      weight_decay: of AdamW.
      absolute_coordinates: show the network coordinates as they are too, not only relative to the history's first
        point; needed where a joint's range ends.
      members: models trained at once, from different first weights.
      gaussian: predict variances too, and fit by likelihood.
      train_horizon: steps ahead that the loss looks at; None is all that the data's windows have.
      layout: what the entries of a state mean; from the data.
      action_dim: entries of an action; from the data.
      dt: seconds from a state to the next; from the data.
      history: past states that the model reads; from the data.
      horizon: steps ahead in the data's windows; from the data.
    """

    hidden_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    absolute_coordinates: bool = False
    members: int = 1
    gaussian: bool = False
    train_horizon: int | None = None
    layout: tyro.conf.Suppress[StateLayout | None] = None
    action_dim: tyro.conf.Suppress[int | None] = None
    dt: tyro.conf.Suppress[float | None] = None
    history: tyro.conf.Suppress[int | None] = None
    horizon: tyro.conf.Suppress[int | None] = None

    def setup(self, datamodule: "DataModule") -> Self:
        """Takes layout, sizes and windows from the data."""
        check_counts(self, "hidden_size", "members")
        check_ranges(self, learning_rate="[0, inf)", weight_decay="[0, inf)")
        missing = [name for name in FROM_DATA if not hasattr(datamodule, name)]
        if missing:
            raise ConfigError(
                f"{type(self).__name__} needs trajectories: {type(datamodule).__name__} has no {', '.join(missing)}. "
                "Use TrajectoryDataModule."
            )
        found = {name: getattr(datamodule, name) for name in FROM_DATA}
        if self.train_horizon is not None and not 1 <= self.train_horizon <= found["horizon"]:
            raise ConfigError(
                f"GRUDynamicsTask.train_horizon={self.train_horizon}: the data's windows have 1 to {found['horizon']}."
            )
        return dataclasses.replace(self, **found)

    def build_model(self, rngs: nnx.Rngs) -> GRUEnsemble:
        """See `Task`."""
        if self.layout is None or self.action_dim is None:
            raise ConfigError(f"{type(self).__name__} has not seen the data yet: call setup(datamodule) first.")
        return GRUEnsemble(
            self.members,
            self.layout,
            self.action_dim,
            self.hidden_size,
            absolute=self.absolute_coordinates,
            gaussian=self.gaussian,
            rngs=rngs,
        )

    def set_statistics(self, model: GRUEnsemble, datamodule: "DataModule") -> None:
        """Gives the model the means and deviations of states, actions and changes."""
        statistics = datamodule.statistics()
        model.set_statistics(*((statistics[n].mean, statistics[n].std) for n in ("states", "actions", "deltas")))

    def build_optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """AdamW, warmed up over a fiftieth of the run, then down to zero along a cosine."""
        warmup = max(num_steps // 50, 1)
        schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, max(num_steps, warmup + 1))
        return adamw(schedule, self.weight_decay)

    def loss(self, model: GRUEnsemble, batch: Any, rng: jax.Array) -> tuple[jax.Array, Metrics]:
        """Mean over members, steps and dimensions of the weighted squared error, or of the negative log-likelihood."""
        predictions = self.unroll(model, batch, self.train_horizon)
        scale = model.members.changes.std[...][0]
        error = self._errors(model, predictions, batch) / scale
        steps = jnp.arange(1, error.shape[-2] + 1, dtype=error.dtype)[:, None]
        squared = error**2
        metrics = {"change_mse": squared.mean((0, 2, 3))}
        if not self.gaussian:
            return jnp.mean(squared / steps**2), metrics
        # One-step errors are taken as independent: their variances add up along the horizon.
        variance = jnp.cumsum(predictions.variance, axis=-2) / scale**2
        likelihood = 0.5 * (squared / variance + jnp.log(variance))
        members = model.members
        bounds = jnp.mean(members.max_log_variance[...]) - jnp.mean(members.min_log_variance[...])
        return jnp.mean(likelihood) + 0.01 * bounds, metrics

    def evaluate(self, model: GRUEnsemble, batch: Any, rng: jax.Array) -> Metrics:
        """The members' mean prediction over the whole horizon, relative to predicting no change."""
        loss, _ = self.loss(model, batch, rng)
        error = self._errors(model, self.unroll(model, batch), batch).mean(0) / model.members.changes.std[...][0]
        return {"loss": loss, "change_mse": jnp.mean(error**2)}

    def unroll(self, model: GRUEnsemble, batch: Any, horizon: int | None = None) -> Prediction:
        """Predictions over a window's horizon, each from the one before: `(members, batch, horizon, ...)`."""
        structure, arrays = nnx.split(model)

        def unroll(arrays: nnx.State, states: jax.Array, actions: jax.Array) -> Prediction:
            assert self.history is not None
            model, start = nnx.merge(structure, arrays), self.history - 1
            stop = states.shape[1] - 1 if horizon is None else start + horizon
            history = model.encode(states[:, : self.history], actions)
            _, predictions = jax.lax.scan(
                lambda history, action: model.step(history, action), history, jnp.swapaxes(actions[:, start:stop], 0, 1)
            )
            return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), predictions)

        # Else the gradients of each step of the horizon would be summed over the devices by themselves.
        members_and_rows = PartitionSpec(None, DATA)
        local = over_data_axis(unroll, (WHOLE, ROWS, ROWS), members_and_rows)
        return local(arrays, batch["states"], batch["actions"])

    def predict(self, model: GRUEnsemble, batch: Any, rng: jax.Array) -> dict[str, jax.Array]:
        """`{"states": (batch, horizon, state_dim)}`, of the first member."""
        return {"states": self.unroll(model, batch).state[0]}

    def _errors(self, model: GRUEnsemble, predictions: Prediction, batch: Any) -> jax.Array:
        assert self.history is not None
        true = batch["states"][:, self.history : self.history + predictions.state.shape[2]]
        return model.layout.difference(predictions.state, jnp.broadcast_to(true, predictions.state.shape))

    def report(
        self,
        model: GRUEnsemble,
        datamodule: "DataModule",
        output_dir: Path,
        *,
        num_examples: int | None = None,
        beside: Mapping[str, tuple[Task, nnx.Module]] | None = None,
    ) -> dict[str, Any]:
        """Error growth over the horizon and ten times beyond it, on the test trajectories, with plots.

        The figures are by predictor ("model", each of `beside`, "persistence", "linear_extrapolation"), by group of
        coordinates and by step: `{"error_growth": {"model": {"mse": {"angles": [...]}}}}`; and
        `mse_over_persistence`, the model's whole error relative to persistence at each step of the horizon.
        """
        from galvanax.tasks.gru_report import report_error_growth

        models = {"model": model, **self.models_beside(beside)}
        return report_error_growth(self, models, datamodule, output_dir, num_examples)
