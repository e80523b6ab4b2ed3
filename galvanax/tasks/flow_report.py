"""The figures of a flow over trajectories, plots and a film."""

import logging
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from galvanax.errors import ConfigError, RenderError
from galvanax.physics.rollout import rollout
from galvanax.physics.state_labels import labels_of
from galvanax.physics.system import System, model_of, state_difference
from galvanax.rendering.trajectory_npz import MotionClip
from galvanax.rendering.write_clip import write_clip
from galvanax.tasks.flow_metrics import Modes, statewise_admissibility_error

log = logging.getLogger("galvanax")

_EXAMPLES = 100  # starts, by default
_BATCH = 32
_TIMINGS = 20
_TRAINING_WINDOWS = 4000
_ENTRIES, _TRAJECTORIES = 7, 200  # in the plot, at most
_DEMONSTRATED = "0.75"
_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:olive", "tab:cyan")


class TrajectorySampler(Protocol):
    """What the report asks of a task; a `FlowMatchingTask` has it."""

    @property
    def num_samples(self) -> int:
        """Drawn for each start."""

    @property
    def num_modes(self) -> int:
        """Groups of demonstrations to tell apart."""

    @property
    def ode_steps(self) -> int:
        """Steps of the flow from noise to sample."""

    @property
    def dt(self) -> float:
        """Seconds (s) between states."""

    @property
    def physics(self) -> System:
        """The system."""

    def sampler(self, model: Any, *, ode_steps: int | None = None) -> Callable[[Any, Any, jax.Array], Any]:
        """Compiled: trajectories from starts, conditions and a key."""

    def motion(self, states: jax.Array) -> jax.Array:
        """How windows move away from their first state `(batch, horizon, entries of a difference)`."""

    def trajectory_error(self, states: jax.Array, true: jax.Array) -> jax.Array:
        """Mean squared difference over steps and entries `(batch,)`."""


def report_flow(
    task: TrajectorySampler,
    model: Any,
    datamodule: Any,
    output_dir: Path,
    *,
    num_examples: int | None = None,
    beside: Mapping[str, tuple[TrajectorySampler, nnx.Module]] | None = None,
) -> dict[str, Any]:
    """Samples `task.num_samples` trajectories from each of the test trajectories' starts, and looks at them.

    The figures: `tre` (mean squared error, each entry in its own units), `min_tre` (of the best sample for a start),
    `mean_trajectory_tre` (of saying the training data's mean motion always), `mode_shares` and `between_modes` of the
    samples, `demonstration_mode_shares`, `sae` and `demonstration_sae` (is there an action that leads from each state
    to the next?), `replay_error` (the largest difference between the states and where the actions lead), and times.

    Args:
      task: whose settings of sampling are used.
      model: with the weights to judge.
      datamodule: of the demonstrations.
      output_dir: of plots and film.
      num_examples: starts; by default 100.
      beside: other runs on the same system, each a task and its model.
    """
    windows, conditions = _test_windows(datamodule, num_examples or _EXAMPLES)
    judge = _Judge(task, model, windows, conditions, _train_windows(datamodule, windows))
    samples, labels, own = judge.look_at(task, model)
    figures: dict[str, Any] = {
        "starts": len(windows),
        "samples_per_start": task.num_samples,
        "ode_steps": task.ode_steps,
        **own,
        "mean_trajectory_tre": judge.mean_motion_error(),
        "demonstration_sae": float(np.mean(statewise_admissibility_error(judge.system, windows))),
        "demonstration_mode_shares": judge.modes.shares().tolist(),
        **_times(task, model, windows, conditions),
    }
    for name, (other, other_model) in (beside or {}).items():
        figures[f"beside/{name}"] = judge.look_at(other, other_model)[2]
    _plot(task, windows, samples, labels, judge.modes, output_dir / "samples.png")
    film = _film(task, samples[0], output_dir / "samples.mp4")
    return figures | ({"film": str(film)} if film else {})


class _Judge:
    """Looks at samples of one or more tasks: beside the demonstrations of one of them, in its deviations."""

    def __init__(
        self,
        task: TrajectorySampler,
        model: Any,
        windows: np.ndarray,
        conditions: np.ndarray | None,
        training: np.ndarray,
    ):
        self.windows, self.conditions = windows, conditions
        self.change_std = np.asarray(model.change_std[...])
        self._motion = jax.jit(task.motion)
        self._replay = jax.jit(lambda start, actions: rollout(task.physics, start, actions))
        self.system = task.physics
        self.demonstrations = self.motions(training)
        self.modes = Modes.of(self.demonstrations, task.num_modes)

    def motions(self, states: np.ndarray) -> np.ndarray:
        """How windows move away from their first state, in deviations of the data."""
        return in_batches(self._motion, _BATCH, states) / self.change_std

    def mean_motion_error(self) -> float:
        """The trajectory error of one answer for all: the mean of the training motions."""
        difference = self.demonstrations.mean(0) - self.motions(self.windows)
        return float(np.mean((difference * self.change_std) ** 2))

    def look_at(self, task: TrajectorySampler, model: Any) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Samples `(starts, samples, horizon + 1, state_dim)`, their modes `(starts, samples)`, and figures."""
        each = task.num_samples
        compiled = task.sampler(model)
        true = np.repeat(self.windows, each, axis=0)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(len(true)))
        raw = np.asarray(jax.random.key_data(keys))
        inputs = [true[:, 0], raw] + ([] if self.conditions is None else [np.repeat(self.conditions, each, axis=0)])

        def draw(start: np.ndarray, raw: np.ndarray, condition: np.ndarray | None = None) -> Any:
            return compiled(start, condition, jax.random.wrap_key_data(jnp.asarray(raw)))

        drawn = in_batches(draw, _BATCH, *inputs)
        states, actions = drawn.states, drawn.actions
        errors = np.asarray(task.trajectory_error(jnp.asarray(states), jnp.asarray(true))).reshape(-1, each)
        labels = self.modes.assign(self.motions(states))
        figures = {
            "tre": float(errors.mean()),
            "min_tre": float(errors.min(1).mean()),
            "mode_shares": [float(np.mean(labels == mode)) for mode in range(len(self.modes.centres))],
            "between_modes": float(np.mean(labels < 0)),
            "sae": float(np.mean(statewise_admissibility_error(self.system, states, actions))),
        }
        if actions is not None:
            again = in_batches(self._replay, _BATCH, states[:, 0], actions)
            figures["replay_error"] = float(jnp.abs(state_difference(task.physics, again, states)).max())
        return states.reshape(-1, each, *states.shape[1:]), labels.reshape(-1, each), figures


def in_batches(function: Callable[..., Any], size: int, *arrays: np.ndarray) -> Any:
    """Applies a function of rows to at most `size` rows at a time, always as many: it is compiled once."""
    results, size = [], min(size, len(arrays[0]))
    for start in range(0, len(arrays[0]), size):
        rows = np.minimum(np.arange(start, start + size), len(arrays[0]) - 1)
        results.append(jax.device_get(function(*(array[rows] for array in arrays))))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(arrays[0])], *results)


def _test_windows(datamodule: Any, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Windows evenly spread over the test trajectories, and their conditions."""
    for dataset in (datamodule.test_dataset(), datamodule.val_dataset()):
        batches = [] if dataset is None else [dataset[index] for index in range(len(dataset))]
        if batches:
            states = np.concatenate([batch["states"] for batch in batches])
            rows = np.linspace(0, len(states) - 1, min(count, len(states))).astype(int)
            conditions = np.concatenate([b["condition"] for b in batches])[rows] if "condition" in batches[0] else None
            return states[rows], conditions
    raise ConfigError(f"{type(datamodule).__name__} has no test or validation trajectories to evaluate on.")


def _train_windows(datamodule: Any, otherwise: np.ndarray) -> np.ndarray:
    """Windows of the training part; others, where the data is there to be measured on alone."""
    try:
        dataset = datamodule.train_dataset(seed=0)
    except ConfigError:
        return otherwise
    windows: list[np.ndarray] = []
    for batch in dataset:
        windows.extend(batch["states"])
        if len(windows) >= _TRAINING_WINDOWS:
            break
    return np.stack(windows)


def _times(task: TrajectorySampler, model: Any, windows: np.ndarray, conditions: np.ndarray | None) -> dict[str, float]:
    """Median seconds (s) of a call, compiled, at batch 1 and 32, in one ODE step and in the task's number of them."""
    times = {}
    for ode_steps in sorted({1, task.ode_steps}):
        compiled = task.sampler(model, ode_steps=ode_steps)
        for batch in (1, _BATCH):
            rows = np.arange(batch) % len(windows)
            condition = None if conditions is None else jnp.asarray(conditions[rows])
            arguments = (jnp.asarray(windows[rows, 0]), condition, jax.random.key(0))
            jax.block_until_ready(compiled(*arguments))
            taken = []
            for _ in range(_TIMINGS):
                start = time.perf_counter()
                jax.block_until_ready(compiled(*arguments))
                taken.append(time.perf_counter() - start)
            times[f"seconds/{ode_steps}_ode_steps/batch_{batch}"] = statistics.median(taken)
    return times


def _plot(
    task: TrajectorySampler, windows: np.ndarray, samples: np.ndarray, labels: np.ndarray, modes: Modes, path: Path
) -> None:
    """Demonstrations in grey and samples in their modes' colours, entry by entry; and how many are of each mode."""
    names = labels_of(task.physics)
    count = min(len(names), _ENTRIES)
    rows = -(-(count + 1) // 4)
    columns = -(-(count + 1) // rows)
    figure = Figure(figsize=(3.6 * columns, 2.8 * rows + 0.8), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    times = task.dt * np.arange(samples.shape[2])
    most = -(-_TRAJECTORIES // samples.shape[1])
    for index in range(count):
        axes = figure.add_subplot(grid[divmod(index, columns)])
        axes.plot(times, windows[:_TRAJECTORIES, :, index].T, color=_DEMONSTRATED, linewidth=0.6)
        for mode in (-1, *range(len(modes.centres))):
            chosen = samples[:most][labels[:most] == mode]
            axes.plot(times, chosen[:, :, index].T, color=_color(mode), linewidth=0.8, alpha=0.6)
        name, _, unit = names[index].rstrip(")").partition(" (")
        axes.set(title=name, ylabel=unit, xlabel="time (s)")
        axes.grid(alpha=0.3)
    # The last row's rest, so that no part of the picture is empty.
    _plot_shares(figure.add_subplot(grid[-1, count % columns :]), labels, modes)
    shown = "" if count == len(names) else f" (the first {count} of {len(names)} entries of the state)"
    figure.suptitle(f"Sampled trajectories beside demonstrations{shown}")
    keys = [("demonstrations", _DEMONSTRATED), *((f"samples, mode {m}", _color(m)) for m in range(len(modes.centres)))]
    keys += [("samples between modes", _color(-1))] if (labels < 0).any() else []
    lines = [Line2D([], [], color=color, linewidth=2, label=name) for name, color in keys]
    figure.legend(handles=lines, loc="outside lower center", ncols=min(len(lines), 2 * columns), frameon=False)
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _plot_shares(axes: Any, labels: np.ndarray, modes: Modes) -> None:
    numbers = np.arange(len(modes.centres))
    colors = [_color(int(mode)) for mode in numbers]
    axes.bar(numbers - 0.2, modes.shares(), 0.4, color=_DEMONSTRATED)
    axes.bar(numbers + 0.2, [np.mean(labels == mode) for mode in numbers], 0.4, color=colors)
    axes.bar(len(numbers), np.mean(labels < 0), 0.4, color=_color(-1))
    axes.set_xticks([*numbers, len(numbers)], [*map(str, numbers), "between"])
    axes.set(title="share of each mode", ylabel="share of the trajectories", xlabel="mode")


def _color(mode: int) -> str:
    """Of a mode's samples, and of those between modes."""
    return "tab:red" if mode < 0 else _COLORS[mode % len(_COLORS)]


def _film(task: TrajectorySampler, samples: np.ndarray, path: Path) -> Path | None:
    """The samples of one start, one after the other, where the system can be drawn and this machine can draw."""
    model = model_of(task.physics)
    if model is None:
        return None
    qpos = samples[..., : model.nq].reshape(-1, model.nq)
    times = np.round(np.arange(len(qpos)) * task.dt, 9)
    try:
        write_clip(path.with_suffix(""), MotionClip(model, qpos, times), ("mp4", "html"))
    except RenderError as error:
        log.warning("%s was not drawn: %s", path.name, error)
        return None
    return path
