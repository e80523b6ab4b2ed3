"""Learning a system's dynamics from transitions: state and action to acceleration."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx

from galvanax.datamodules.dynamics import DynamicsDataModule
from galvanax.datamodules.rollouts import RolloutDataModule
from galvanax.errors import ConfigError
from galvanax.networks.dynamics import BaseDynamicsModel, MLPDynamicsModel
from galvanax.physics.layout import StateLayout
from galvanax.physics.open_loop import max_contacts, one_step_velocity_error, open_loop_error
from galvanax.settings import check_choice, check_ranges, check_widths
from galvanax.tasks.optimizers import Schedule, adamw, scheduled
from galvanax.tasks.task import Metrics, Task

if TYPE_CHECKING:
    from galvanax.datamodules.datamodule import DataModule

# Steps of the open-loop figures, where trajectories are long enough.
OPEN_LOOP_HORIZON = 50


@dataclasses.dataclass(frozen=True)
class AccelerationTask(Task[BaseDynamicsModel]):
    """Fits a model of accelerations to transitions; a semi-implicit Euler step makes them states.

    For another architecture, subclass this and override `build_model` with a subclass of `BaseDynamicsModel`.

    Attributes:
      hidden_dims: width of each hidden layer.
      activation: name of a function of `flax.nnx`.
      learning_rate: highest learning rate.
      learning_rate_schedule: `"cosine"` (up from 0 over a twentieth of the run, then down to 0 along a cosine) or
        `"constant"` (from the first step on, no warm-up).
      weight_decay: of AdamW.
      angles: places in qpos to treat as angles; by default those of the data.
      layout: what the entries of a state mean; from the data.
      action_dim: entries of an action; from the data.
      dt: seconds from a state to the next; from the data.
    """

    hidden_dims: tuple[int, ...] = (128, 128)
    activation: str = "swish"
    learning_rate: float = 3e-3
    learning_rate_schedule: Schedule = "cosine"
    weight_decay: float = 1e-5
    angles: tuple[int, ...] | None = None
    layout: tyro.conf.Suppress[StateLayout | None] = None
    action_dim: tyro.conf.Suppress[int | None] = None
    dt: tyro.conf.Suppress[float | None] = None

    def setup(self, datamodule: "DataModule") -> Self:
        """Takes layout, action size and time step from the data, where the task doesn't say them."""
        check_widths(self, "hidden_dims")
        check_ranges(self, learning_rate="[0, inf)", weight_decay="[0, inf)")
        check_choice(self, "learning_rate_schedule", get_args(Schedule))
        found: dict[str, Any] = {}
        for name in ("layout", "action_dim", "dt"):
            value = getattr(self, name)
            found[name] = getattr(datamodule, name, None) if value is None else value
            if found[name] is None:
                raise ConfigError(
                    f"{type(self).__name__}.{name} is None and {type(datamodule).__name__} has no {name}: use "
                    f"DynamicsDataModule or RolloutDataModule, or pass {name} to the task."
                )
        if self.angles is not None:
            found["layout"] = dataclasses.replace(found["layout"], angles=self.angles)
        return dataclasses.replace(self, **found)

    def build_model(self, rngs: nnx.Rngs) -> BaseDynamicsModel:
        """See `Task`."""
        return MLPDynamicsModel(*self.dimensions, self.hidden_dims, self.activation, rngs=rngs)

    @property
    def dimensions(self) -> tuple[StateLayout, int, float]:
        """What every dynamics model is made from: `(layout, action_dim, dt)`.

        Raises:
          ConfigError: the data hasn't been seen and the task doesn't say them.
        """
        if self.layout is None or self.action_dim is None or self.dt is None:
            raise ConfigError(
                f"{type(self).__name__} has layout={self.layout}, action_dim={self.action_dim}, dt={self.dt}: call "
                "setup(datamodule) first, as the Trainer does, or pass them."
            )
        return self.layout, self.action_dim, self.dt

    def set_statistics(self, model: BaseDynamicsModel, datamodule: "DataModule") -> None:
        """Gives the model the means and deviations of states, actions and accelerations."""
        statistics = datamodule.statistics()
        model.set_statistics(
            *((statistics[name].mean, statistics[name].std) for name in ("states", "actions", "accelerations"))
        )

    def build_optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """AdamW, at the scheduled rate."""
        rate = scheduled(self.learning_rate, self.learning_rate_schedule, num_steps, warmup=num_steps // 20)
        return adamw(rate, self.weight_decay)

    def loss(self, model: BaseDynamicsModel, batch: Any, rng: jax.Array) -> tuple[jax.Array, Metrics]:
        """Mean squared error of normalised accelerations; the metric has natural units."""
        error = model(batch["states"], batch["actions"]) - batch["accelerations"]
        normalised = error / model.acceleration.std[...]
        return jnp.mean(normalised**2), {"acceleration_mse": jnp.mean(error**2, axis=-1)}

    def evaluate(self, model: BaseDynamicsModel, batch: Any, rng: jax.Array) -> Metrics:
        """Adds the mean squared errors of the next state: positions and velocities."""
        error = model.layout.difference(model.step(batch["states"], batch["actions"]), batch["next_states"])
        position, velocity = jnp.split(error**2, 2, axis=-1)
        return {
            **super().evaluate(model, batch, rng),
            "position_mse": position.mean(-1),
            "velocity_mse": velocity.mean(-1),
        }

    def predict(self, model: BaseDynamicsModel, batch: Any, rng: jax.Array) -> dict[str, jax.Array]:
        """`{"accelerations": (batch, nv), "next_states": (batch, state_dim)}`."""
        state, action = batch["states"], batch["actions"]
        return {"accelerations": model(state, action), "next_states": model.step(state, action)}

    def report(
        self,
        model: BaseDynamicsModel,
        datamodule: "DataModule",
        output_dir: Path,
        *,
        num_examples: int | None = None,
        beside: Mapping[str, tuple[Task, nnx.Module]] | None = None,
    ) -> dict[str, Any]:
        """One-step and open-loop errors relative to persistence (predict no change), with two plots.

        `one_step_velocity_mse_over_persistence`, `open_loop_50_mse_over_persistence` (averaged over the steps) and
        `open_loop_50_final_mse_over_persistence` (the last step alone) are of fresh trajectories of C MuJoCo; with
        the prefix `mjx_` they are of the test part. Data with no system behind it has the test part alone, with the
        prefix `test_`. Shorter trajectories put their own length in place of 50. Models of `beside` have the same
        figures with their names before.
        """
        # Here, since matplotlib takes a second to import and training has no use for it.
        from galvanax.tasks import dynamics_plots

        if not isinstance(datamodule, DynamicsDataModule):
            return {}
        figures: dict[str, Any] = {}
        curves = {}
        references = {
            name: (states[:num_examples], actions[:num_examples])
            for name, (states, actions) in datamodule.reference_trajectories().items()
        }
        models = {"": model, **self.models_beside(beside)}
        for (label, judged), (name, (states, actions)) in itertools.product(models.items(), references.items()):
            horizon = min(OPEN_LOOP_HORIZON, actions.shape[1])
            open_loop = open_loop_error(judged.step, judged.layout, states, actions, horizon)
            prefix = "".join(f"{part}_" for part in (label, name) if part)
            figures |= {
                f"{prefix}one_step_velocity_mse_over_persistence": one_step_velocity_error(
                    judged.step, judged.layout, states, actions
                ).ratio,
                f"{prefix}open_loop_{horizon}_mse_over_persistence": open_loop.ratio,
                f"{prefix}open_loop_{horizon}_final_mse_over_persistence": float(
                    open_loop.model[-1] / open_loop.persistence[-1]
                ),
                f"{prefix}open_loop_mse": open_loop.model.tolist(),
                f"{prefix}open_loop_persistence_mse": open_loop.persistence.tolist(),
            }
            if judged is model:
                curves[name] = open_loop
        if isinstance(datamodule, RolloutDataModule):
            figures["max_contacts"] = max(max_contacts(datamodule.model, states) for states, _ in references.values())
        if references:
            first = next(iter(references))
            dynamics_plots.plot_open_loop_error(curves[first], model.dt, output_dir / "open_loop_error.png")
            dynamics_plots.plot_predicted_vs_true(model, *references[first], output_dir / "predicted_vs_true.png")
        return figures
