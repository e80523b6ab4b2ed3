"""Learning a system's dynamics many steps ahead from logged trajectories."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx
from jax.sharding import PartitionSpec

from galvanax.errors import ConfigError
from galvanax.networks.gru_dynamics import GRUEnsemble, Prediction, angle_dofs
from galvanax.physics.layout import StateLayout
from galvanax.settings import check_choice, check_counts, check_ranges
from galvanax.tasks.optimizers import Schedule, adamw, scheduled
from galvanax.tasks.task import Metrics, Task
from galvanax.trainer.data_axis import DATA, ROWS, WHOLE, over_data_axis

if TYPE_CHECKING:
    from galvanax.datamodules.datamodule import DataModule

FROM_DATA = ("layout", "action_dim", "dt", "history", "horizon")

LossOf = Literal["states", "changes"]
LossUnits = Literal["deviations", "natural"]
LossWeights = Literal["relative", "uniform"]


@dataclasses.dataclass(frozen=True)
class GRUDynamicsTask(Task[GRUEnsemble]):
    """Fits a recurrent model to windows of trajectories, fed with its own predictions over the horizon.

    The error of the state h steps ahead is measured in deviations of the one-step change, and divided by h: so that, as
    changes grow about as h, each step of the horizon counts the same relative to predicting no change. The plain mean
    over the steps of the squared error of each predicted change, Δŝ_h - Δs_h, is `loss_of="changes"`,
    `loss_units="natural"`, `loss_weights="uniform"`.

    Attributes:
      hidden_size: of the GRU and the layer behind it.
      dropout: share of the GRU's outputs that the layer behind it does not get in training; the same ones at all steps
        of a window (Gal and Ghahramani, 2016).
      learning_rate: highest learning rate.
      learning_rate_schedule: `"cosine"` (up from 0 over a fiftieth of the run, then down to 0 along a cosine) or
        `"constant"` (from the first step on, no warm-up).
      weight_decay: of AdamW.
      loss_of: `"states"` at each step of the horizon, or their `"changes"` in that step: what the model adds to its own
        state before it, against what was added to the true one.
      loss_units: what an error is measured in: `"deviations"` of the one-step change in the data, or `"natural"` (m,
        rad, m/s, rad/s).
      loss_weights: `"relative"`: the error h steps ahead is divided by h; `"uniform"`: it is not.
      coordinate_indices: places in qpos of the coordinates that the network sees relative to the history's first point;
        it sees the others as they are. By default all that are neither angles nor rotations are relative.
      absolute_coordinates: show the network relative coordinates as they are too; needed where a joint's range ends.
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
    dropout: float = 0.0
    learning_rate: float = 1e-3
    learning_rate_schedule: Schedule = "cosine"
    weight_decay: float = 1e-5
    loss_of: LossOf = "states"
    loss_units: LossUnits = "deviations"
    loss_weights: LossWeights = "relative"
    coordinate_indices: tuple[int, ...] | None = None
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
        check_ranges(self, learning_rate="[0, inf)", weight_decay="[0, inf)", dropout="[0, 1)")
        check_choice(self, "learning_rate_schedule", get_args(Schedule))
        check_choice(self, "loss_of", get_args(LossOf))
        check_choice(self, "loss_units", get_args(LossUnits))
        check_choice(self, "loss_weights", get_args(LossWeights))
        plain = self.loss_of, self.loss_units, self.loss_weights
        if self.gaussian and plain != ("states", "deviations", "relative"):
            raise ConfigError(
                f"GRUDynamicsTask.gaussian=True fits by likelihood: loss_of={plain[0]!r}, loss_units={plain[1]!r} and "
                f"loss_weights={plain[2]!r} would change nothing. Leave them out, or gaussian."
            )
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
        check_coordinates(self.coordinate_indices, found["layout"])
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
            relative=self.coordinate_indices,
            absolute=self.absolute_coordinates,
            gaussian=self.gaussian,
            rngs=rngs,
        )

    def set_statistics(self, model: GRUEnsemble, datamodule: "DataModule") -> None:
        """Gives the model the means and deviations of states, actions and changes."""
        statistics = datamodule.statistics()
        model.set_statistics(*((statistics[n].mean, statistics[n].std) for n in ("states", "actions", "deltas")))

    def build_optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """AdamW, at the scheduled rate."""
        rate = scheduled(self.learning_rate, self.learning_rate_schedule, num_steps, warmup=num_steps // 50)
        return adamw(rate, self.weight_decay)

    def loss(self, model: GRUEnsemble, batch: Any, rng: jax.Array) -> tuple[jax.Array, Metrics]:
        """Mean over members, steps and dimensions of the weighted squared error, or of the negative log-likelihood."""
        return self._loss(model, batch, self._keep(len(batch["states"]), rng))

    def _loss(self, model: GRUEnsemble, batch: Any, keep: jax.Array | None) -> tuple[jax.Array, Metrics]:
        predictions = self.unroll(model, batch, self.train_horizon, keep)
        scale = model.members.changes.std[...][0]
        error = self._errors(model, predictions, batch) / scale
        squared = error**2
        metrics = {"change_mse": squared.mean((0, 2, 3))}
        if not self.gaussian:
            if self.loss_of == "changes":
                squared = (self._change_errors(model, predictions, batch) / scale) ** 2
            if self.loss_units == "natural":
                squared = squared * scale**2
            if self.loss_weights == "relative":
                squared = squared / jnp.arange(1, error.shape[-2] + 1, dtype=error.dtype)[:, None] ** 2
            return jnp.mean(squared), metrics
        # One-step errors are taken as independent: their variances add up along the horizon.
        variance = jnp.cumsum(predictions.variance, axis=-2) / scale**2
        likelihood = 0.5 * (squared / variance + jnp.log(variance))
        members = model.members
        bounds = jnp.mean(members.max_log_variance[...]) - jnp.mean(members.min_log_variance[...])
        return jnp.mean(likelihood) + 0.01 * bounds, metrics

    def evaluate(self, model: GRUEnsemble, batch: Any, rng: jax.Array) -> Metrics:
        """The members' mean prediction over the whole horizon, relative to predicting no change."""
        loss, _ = self._loss(model, batch, keep=None)
        error = self._errors(model, self.unroll(model, batch), batch).mean(0) / model.members.changes.std[...][0]
        return {"loss": loss, "change_mse": jnp.mean(error**2)}

    def unroll(
        self, model: GRUEnsemble, batch: Any, horizon: int | None = None, keep: jax.Array | None = None
    ) -> Prediction:
        """Predictions over a window's horizon, each from the one before: `(members, batch, horizon, ...)`.

        Args:
          model: the network.
          batch: windows.
          horizon: steps ahead; by default all that the windows have.
          keep: factors of the GRU's outputs `(batch, members, hidden_size)`.
        """
        structure, arrays = nnx.split(model)

        def unroll(arrays: nnx.State, states: jax.Array, actions: jax.Array, keep: jax.Array | None) -> Prediction:
            assert self.history is not None
            model, start = nnx.merge(structure, arrays), self.history - 1
            stop = states.shape[1] - 1 if horizon is None else start + horizon
            history = model.encode(states[:, : self.history], actions)
            masks = None if keep is None else jnp.swapaxes(keep, 0, 1)
            _, predictions = jax.lax.scan(
                lambda history, action: model.step(history, action, masks),
                history,
                jnp.swapaxes(actions[:, start:stop], 0, 1),
            )
            return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), predictions)

        # Else the gradients of each step of the horizon would be summed over the devices by themselves.
        members_and_rows = PartitionSpec(None, DATA)
        local = over_data_axis(unroll, (WHOLE, ROWS, ROWS, ROWS), members_and_rows)
        return local(arrays, batch["states"], batch["actions"], keep)

    def predict(self, model: GRUEnsemble, batch: Any, rng: jax.Array) -> dict[str, jax.Array]:
        """`{"states": (batch, horizon, state_dim)}`, of the first member."""
        return {"states": self.unroll(model, batch).state[0]}

    def _errors(self, model: GRUEnsemble, predictions: Prediction, batch: Any) -> jax.Array:
        assert self.history is not None
        true = batch["states"][:, self.history : self.history + predictions.state.shape[2]]
        return model.layout.difference(predictions.state, jnp.broadcast_to(true, predictions.state.shape))

    def _change_errors(self, model: GRUEnsemble, predictions: Prediction, batch: Any) -> jax.Array:
        """Of the change in each step: the model's from its own state before, the true one's from the true one."""
        assert self.history is not None
        layout, start = model.layout, self.history - 1
        true = batch["states"][:, start : start + predictions.state.shape[2] + 1]
        present = jnp.broadcast_to(true[:, :1], (*predictions.state.shape[:2], 1, true.shape[-1]))
        path = jnp.concatenate([present, predictions.state], axis=2)
        error = layout.difference(path[:, :, 1:], path[:, :, :-1]) - layout.difference(true[:, 1:], true[:, :-1])
        if layout.angles:
            dofs = angle_dofs(layout)
            error = error.at[..., dofs].set(jnp.mod(error[..., dofs] + jnp.pi, 2 * jnp.pi) - jnp.pi)
        return error

    def _keep(self, rows: int, rng: jax.Array) -> jax.Array | None:
        """Dropout's factors, of each row by itself: 0, or what makes up for those."""
        if not self.dropout:
            return None
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(rows))
        shape = (self.members, self.hidden_size)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, shape))(keys)
        return kept / (1 - self.dropout)

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
        assert self.history is not None
        assert self.horizon is not None
        return report_error_growth(
            models,
            datamodule,
            output_dir,
            num_examples,
            history=self.history,
            horizon=self.horizon,
            dt=self.dt or 1.0,
        )


def check_coordinates(indices: tuple[int, ...] | None, layout: StateLayout) -> None:
    """Raises ConfigError where `coordinate_indices` names a place twice, or one that is no plain coordinate."""
    wrong = [place for place in indices or () if place not in layout.coordinates]
    if wrong or len(set(indices or ())) < len(indices or ()):
        rotations = [f"{q} to {q + 3}" for q, _ in layout.quaternions]
        raise ConfigError(
            f"GRUDynamicsTask.coordinate_indices={indices}: "
            + (f"{wrong} are no plain coordinates of qpos" if wrong else "a place is named twice")
            + f". Of {layout.nq} places, those are {layout.coordinates}; angles: {layout.angles}; rotations: "
            + (", ".join(rotations) or "none")
            + "."
        )
