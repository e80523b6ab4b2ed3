"""Flow matching over short trajectories: what DynaFlow and its comparator share."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from galvanax.envs.systems import Drive, load_system
from galvanax.errors import ConfigError, nearest
from galvanax.networks.flow_model import TrajectoryFlow
from galvanax.physics.frames import to_start_frame
from galvanax.physics.layout import StateLayout
from galvanax.physics.system import System, layout_of, model_of, state_difference
from galvanax.settings import check_choice, check_counts, check_ranges
from galvanax.tasks.optimizers import Schedule, adamw, scheduled
from galvanax.tasks.task import Metrics, Task

if TYPE_CHECKING:
    from galvanax.datamodules.datamodule import DataModule

FROM_DATA = ("state_dim", "condition_dim", "horizon", "dt")
ODEMethod = Literal["euler", "heun"]
LossUnits = Literal["deviations", "natural"]

# Windows from which normalisers take their statistics.
_STATISTICS_WINDOWS = 20_000


class Samples(NamedTuple):
    """Trajectories that were drawn.

    Attributes:
      states: `(batch, horizon + 1, state_dim)`, the first row being the start.
      actions: that lead through them `(batch, horizon, action_dim)`, or None where the task has none.
    """

    states: jax.Array
    actions: jax.Array | None


class Denoised(NamedTuple):
    """The trajectories that noisy ones are taken for: states and actions as in `Samples`, not seen from their start."""

    states: jax.Array
    actions: jax.Array | None


@dataclasses.dataclass(frozen=True)
class FlowMatchingTask(Task[TrajectoryFlow], abc.ABC):
    """Learns to turn noise into trajectories from a given start (Lipman et al., 2023).

    A trajectory is `horizon + 1` states, the first of which is known. There is one noise, in training as in sampling:
    X₀ ~ N(0, I) on normalised states, whose deviation is thereby that of the data. X_t = (1 - t) X₀ + t X₁, the first
    state always being the true one. A subclass says what trajectory X̂₁ it takes X_t for; the flow's velocity is
    (X̂₁ - X_t) / (1 - t).

    The loss is the mean over steps and entries of the squared difference between X̂₁ and X₁, each entry in deviations
    of the data, or as it is; quaternions are compared as rotations, and the first state, which is given, is left out.

    A robot with a floating base is seen from where a window starts: there x, y and heading are 0. Physics does not
    notice, so a gait that was shown in one place is known everywhere.

    Attributes:
      system: what moves: see `load_system`. Its states are those of the data.
      drive: what an action means where `system` is a file of one's own; see `gx.envs.Drive`.
      solver_iterations: of the physics' constraint solver; by default the model's own.
      d_model: width of the transformer.
      num_heads: of its attention.
      depth: its blocks.
      dropout: share of its activations dropped in training.
      learning_rate: of AdamW.
      learning_rate_schedule: `"constant"`, or `"cosine"` (up from 0 over a twentieth of the run, then down to 0 along a
        cosine).
      weight_decay: of AdamW.
      loss_units: what an entry's error is measured in: `"deviations"` of the data, or `"natural"`, its own units (m,
        rad, m/s, rad/s), in which velocities count for more than positions.
      condition_dropout: share of training examples whose condition is hidden, so that samples can be guided.
      joint_weights: what errors of a joint's position and velocity are multiplied by, by the joint's name or a part of
        it; 1 for the others.
      start_frame: whether windows are seen from their start, where the system has a floating base.
      ode_steps: steps of the flow from noise to sample.
      ode_method: `"euler"` or `"heun"` (whose last step is Euler's).
      guidance: how far samples follow the condition: 0 not at all, 1 as learned, more beyond that.
      num_samples: drawn for each start in validation and evaluation.
      num_modes: groups of demonstrations that evaluation tells apart.
      state_dim: entries of a state; from the data.
      condition_dim: entries of a condition; from the data.
      horizon: steps of a trajectory; from the data.
      dt: seconds (s) between states; from the data.
    """

    system: str = "pendulum"
    drive: Drive = Drive()  # noqa: RUF009
    solver_iterations: int | None = None
    d_model: int = 128
    num_heads: int = 4
    depth: int = 2
    dropout: float = 0.1
    learning_rate: float = 2e-4
    learning_rate_schedule: Schedule = "constant"
    weight_decay: float = 1e-4
    loss_units: LossUnits = "deviations"
    condition_dropout: float = 0.1
    joint_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    start_frame: bool = True
    ode_steps: int = 10
    ode_method: ODEMethod = "euler"
    guidance: float = 1.0
    num_samples: int = 8
    num_modes: int = 2
    state_dim: tyro.conf.Suppress[int] = 0
    condition_dim: tyro.conf.Suppress[int] = 0
    horizon: tyro.conf.Suppress[int] = 0
    dt: tyro.conf.Suppress[float] = 0.0

    # What a subclass says.

    @property
    @abc.abstractmethod
    def out_dim(self) -> int:
        """Entries of the network's output for each step."""

    @abc.abstractmethod
    def denoise(self, model: TrajectoryFlow, noisy: jax.Array, output: jax.Array, start: jax.Array) -> Denoised:
        """The trajectories that the network's output stands for.

        Args:
          model: for its normalisers.
          noisy: `(batch, horizon + 1, state_dim)`, normalised.
          output: the network's `(batch, horizon + 1, out_dim)`.
          start: states, in their units `(batch, state_dim)`, where they really are: physics knows its directions, by
            the sides of its friction pyramids.
        """

    def build_system(self) -> System:
        """The physics. Override it for a system of your own."""
        return load_system(self.system, self.dt, iterations=self.solver_iterations, drive=self.drive)

    # The task.

    def setup(self, datamodule: "DataModule") -> Self:
        """Takes sizes from the data, and checks that they are the system's."""
        missing = [name for name in FROM_DATA if not hasattr(datamodule, name)]
        if missing:
            raise ConfigError(
                f"{type(self).__name__} needs motions: {type(datamodule).__name__} has no {', '.join(missing)}. "
                "Use MotionDataModule."
            )
        task = dataclasses.replace(self, **{name: getattr(datamodule, name) for name in FROM_DATA})
        task._check()
        return task

    def build_model(self, rngs: nnx.Rngs) -> TrajectoryFlow:
        """See `Task`."""
        if not self.state_dim:
            raise ConfigError(f"{type(self).__name__} has not seen the data yet: call setup(datamodule) first.")
        return TrajectoryFlow(
            self.state_dim,
            self.out_dim,
            len(self.weights),
            self.condition_dim,
            d_model=self.d_model,
            num_heads=self.num_heads,
            depth=self.depth,
            dropout=self.dropout,
            rngs=rngs,
        )

    def set_statistics(self, model: TrajectoryFlow, datamodule: "DataModule") -> None:
        """Gives the model the deviations of states, as it will see them, and of conditions."""
        windows, conditions, seen = [], [], 0
        for batch in datamodule.train_dataset(seed=0):
            windows.append(np.asarray(jax.jit(self.seen_from_start)(batch["states"])))
            conditions.append(batch.get("condition"))
            seen += len(windows[-1])
            if seen >= _STATISTICS_WINDOWS:
                break
        states = np.concatenate(windows).reshape(-1, self.state_dim)
        mean = jnp.asarray(states.mean(0))
        changes = np.asarray(jax.jit(lambda rows: state_difference(self.physics, rows, mean))(states))
        model.set_statistics(states, changes, np.concatenate(conditions) if self.condition_dim else None)

    def build_optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """AdamW, at the scheduled rate."""
        rate = scheduled(self.learning_rate, self.learning_rate_schedule, num_steps, warmup=num_steps // 20)
        return adamw(rate, self.weight_decay)

    def loss(self, model: TrajectoryFlow, batch: Any, rng: jax.Array) -> tuple[jax.Array, Metrics]:
        """The conditional matching loss (Lee et al., 2025, eq. 4), with dropout and hidden conditions."""
        loss, metrics = self._matching_loss(model, batch, rng, training=True)
        return jnp.mean(loss), metrics

    def evaluate(self, model: TrajectoryFlow, batch: Any, rng: jax.Array) -> Metrics:
        """The loss without dropout, and how near samples come: `tre` on average, `min_tre` the best of `num_samples`.

        Trajectory errors are mean squared differences, in the entries' own units.
        """
        loss_rng, sample_rng = jax.random.split(rng)
        loss, metrics = self._matching_loss(model, batch, loss_rng, training=False)
        repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, self.num_samples, axis=0), batch)
        samples = self.sample(model, repeated["states"][:, 0], repeated.get("condition"), sample_rng)
        error = self.trajectory_error(samples.states, repeated["states"])
        return {"loss": jnp.mean(loss), **metrics, "tre": jnp.mean(error), "min_tre": jnp.min(error)}

    def predict(self, model: TrajectoryFlow, batch: Any, rng: jax.Array) -> dict[str, jax.Array]:
        """One sample from the first state of each example: `states`, and `actions` where there are any."""
        samples = self.sample(model, batch["states"][:, 0], batch.get("condition"), rng)
        return {name: array for name, array in samples._asdict().items() if array is not None}

    def sample(
        self,
        model: TrajectoryFlow,
        start: jax.Array,
        condition: jax.Array | None,
        rng: jax.Array,
        *,
        ode_steps: int | None = None,
        guidance: float | None = None,
    ) -> Samples:
        """Draws a trajectory from each start: the flow's ODE in steps of equal length.

        The last step ends exactly at its X̂₁ = Φ(x₀, U), so the actions returned lead through the states returned.
        Guidance (Ho and Salimans, 2022) acts on the network's output, before physics, for the same reason.

        Args:
          model: the network.
          start: `(batch, state_dim)`.
          condition: `(batch, condition_dim)`, or None for none.
          rng: one key, or one for each `(batch,)`.
          ode_steps: instead of the task's.
          guidance: instead of the task's.
        """
        steps = self.ode_steps if ode_steps is None else ode_steps
        guidance = self.guidance if guidance is None else guidance
        first = model.states.normalize(self.seen_from_start(start[:, None])[:, 0])
        keys = _example_keys(rng, start.shape[0])
        shape = (self.horizon + 1, self.state_dim)
        noisy = jax.vmap(lambda key: jax.random.normal(key, shape))(keys).at[:, 0].set(first)

        def denoise(noisy: jax.Array, time: jax.Array) -> Denoised:
            times = jnp.full(start.shape[:1], time)
            on, off = jnp.ones_like(times), jnp.zeros_like(times)
            if condition is None or not self.condition_dim:
                output = model(noisy, times, self._no_condition(start), off)
            else:
                output = model(noisy, times, condition, on)
                if guidance != 1.0:
                    without = model(noisy, times, condition, off)
                    output = without + guidance * (output - without)
            return self.denoise(model, noisy, output, start)

        def velocity(noisy: jax.Array, time: jax.Array) -> jax.Array:
            seen = self.seen_from_start(denoise(noisy, time).states)
            return (model.states.normalize(seen) - noisy) / (1 - time)

        def step(index: jax.Array, noisy: jax.Array) -> jax.Array:
            time, after = index / steps, (index + 1) / steps
            slope = velocity(noisy, time)
            if self.ode_method == "heun":
                slope = (slope + velocity(noisy + slope / steps, after)) / 2
            return noisy + slope / steps

        noisy = jax.lax.fori_loop(0, steps - 1, step, noisy)
        states, actions = denoise(noisy, jnp.float32(1 - 1 / steps))
        return Samples(states.at[:, 0].set(start), actions)

    def sampler(
        self, model: TrajectoryFlow, *, ode_steps: int | None = None, guidance: float | None = None
    ) -> Callable[[Any, Any, jax.Array], Samples]:
        """`sample` compiled, as a function of start, condition and rng."""
        structure, weights = nnx.split(model)

        @jax.jit
        def draw(weights: nnx.State, start: jax.Array, condition: jax.Array | None, rng: jax.Array) -> Samples:
            model = nnx.merge(structure, weights)
            return self.sample(model, start, condition, rng, ode_steps=ode_steps, guidance=guidance)

        return functools.partial(draw, weights)

    def trajectory_error(self, states: jax.Array, true: jax.Array) -> jax.Array:
        """Mean squared difference over steps and entries, in the entries' own units; the start is left out."""
        return jnp.mean(state_difference(self.physics, states[:, 1:], true[:, 1:]) ** 2, axis=(1, 2))

    def seen_from_start(self, states: jax.Array) -> jax.Array:
        """Windows `(batch, horizon + 1, state_dim)` as the network sees them, but for normalisation."""
        return to_start_frame(self._layout, jnp.asarray(states), states[:, 0]) if self.start_frame else states

    def motion(self, states: jax.Array) -> jax.Array:
        """How windows move away from their first state `(batch, horizon, entries of a difference)`."""
        seen = self.seen_from_start(states)
        return state_difference(self.physics, seen[:, 1:], jnp.broadcast_to(seen[:, :1], seen[:, 1:].shape))

    def report(self, model: Any, datamodule: "DataModule", output_dir: Path, **options: Any) -> dict[str, Any]:
        """Errors, modes, admissibility and times of samples, on the test trajectories, with plots and a film."""
        from galvanax.tasks.flow_report import report_flow

        return report_flow(self, model, datamodule, output_dir, **options)

    # Parts.

    @functools.cached_property
    def physics(self) -> System:
        """The system, made once."""
        return self.build_system()

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """What the entries of a difference of states are multiplied by in the loss."""
        layout = self._layout
        size = self.state_dim if layout is None else 2 * layout.nv
        weights = np.ones(size, np.float32)
        if not self.joint_weights:
            return weights
        model = model_of(self.physics)
        if model is None:
            raise ConfigError(f"joint_weights={self.joint_weights}: system={self.system!r} has no named joints.")
        names = [model.joint(index).name for index in range(model.njnt)]
        ends = [*model.jnt_dofadr[1:], model.nv]
        for part, weight in self.joint_weights.items():
            chosen = [index for index, name in enumerate(names) if part in name]
            if not chosen:
                raise ConfigError(f"joint_weights names {part!r}, which is in no joint's name.{nearest(part, names)}")
            for index in chosen:
                dofs = np.arange(model.jnt_dofadr[index], ends[index])
                weights[dofs] = weights[model.nv + dofs] = weight
        return weights

    @property
    def _layout(self) -> StateLayout | None:
        return layout_of(self.physics)

    def _no_condition(self, start: jax.Array) -> jax.Array | None:
        return jnp.zeros((start.shape[0], self.condition_dim)) if self.condition_dim else None

    def _matching_loss(
        self, model: TrajectoryFlow, batch: Any, rng: jax.Array, training: bool
    ) -> tuple[jax.Array, Metrics]:
        """Of each example `(batch,)`."""
        true = self.seen_from_start(batch["states"])
        data = model.states.normalize(true)
        keys = jax.vmap(lambda key: jax.random.split(key, 4))(_example_keys(rng, len(true)))
        time = jax.vmap(jax.random.uniform)(keys[:, 0])
        noise = jax.vmap(lambda key: jax.random.normal(key, data.shape[1:]))(keys[:, 1])
        share = time[:, None, None]
        noisy = ((1 - share) * noise + share * data).at[:, 0].set(data[:, 0])
        condition, mask = self._no_condition(true[:, 0]), jnp.zeros(len(true))
        if self.condition_dim:
            hidden = jax.vmap(jax.random.uniform)(keys[:, 2]) < (self.condition_dropout if training else 0.0)
            condition, mask = batch["condition"], 1.0 - hidden
        output = model(noisy, time, condition, mask, rng=keys[:, 3] if training and self.dropout else None)
        found = self.seen_from_start(self.denoise(model, noisy, output, batch["states"][:, 0]).states)
        difference = state_difference(self.physics, found, true)
        # The start is given: W is 0 there.
        units = model.change_std[...] if self.loss_units == "deviations" else 1.0
        squared = (difference[:, 1:] / units * self.weights) ** 2
        half = squared.shape[-1] // 2
        metrics = {
            "position_mse": jnp.mean(squared[..., :half], (1, 2)),
            "velocity_mse": jnp.mean(squared[..., half:], (1, 2)),
        }
        return jnp.mean(squared, (1, 2)), metrics

    def _check(self) -> None:
        check_counts(self, "d_model", "num_heads", "depth", "ode_steps", "num_samples", "num_modes")
        check_ranges(
            self,
            dropout="[0, 1)",
            learning_rate="[0, inf)",
            weight_decay="[0, inf)",
            condition_dropout="[0, 1]",
            guidance="(-inf, inf)",
        )
        check_choice(self, "ode_method", get_args(ODEMethod))
        check_choice(self, "learning_rate_schedule", get_args(Schedule))
        check_choice(self, "loss_units", get_args(LossUnits))
        if self.physics.state_dim != self.state_dim:
            raise ConfigError(
                f"The data's states have {self.state_dim} entries; those of system={self.system!r} have "
                f"{self.physics.state_dim}."
            )
        _ = self.weights


def _example_keys(rng: jax.Array, count: int) -> jax.Array:
    return rng if rng.ndim else jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(count))
