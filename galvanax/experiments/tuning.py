"""Hyperparameters by Optuna: each trial is a run in a folder of its own, and a study that was killed goes on."""

import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.run_view import RunView
from galvanax.errors import ConfigError, NonFiniteError
from galvanax.experiments.experiment import Experiment
from galvanax.files import write_json
from galvanax.runs.checkpoint import Checkpoint
from galvanax.runs.checkpoint_meta import check_mode
from galvanax.runs.lock import hold
from galvanax.terminal import say

JOURNAL, BEST = "study.jsonl", "best.json"


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, whole ones where both are; on a logarithmic scale, if `log`."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"Range({self.low}, {self.high}): expected two finite numbers, the lower one first.")
        if self.log and self.low <= 0:
            raise ConfigError(f"Range({self.low}, {self.high}, log=True): expected a low end above 0.")

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values to try whether they are settings at all."""
        return self.low, self.high


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values of any kind, which differ in their `str`."""

    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if len(set(map(str, self.options))) != len(self.options) or len(self.options) < 2:
            raise ConfigError(f"Choice({self.options}): expected two or more values that differ.")

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values to try whether they are settings at all."""
        return self.options


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What `tune` found.

    Attributes:
      metric: what was judged.
      best_value: its best value, over all validations of all trials.
      best_values: the settings of that trial, by the search's names.
      best_run: that trial's run folder.
      num_trials: trials that were trained to their end or pruned.
      num_pruned: of those, the pruned ones and those whose numbers became NaN.
    """

    metric: str
    best_value: float
    best_values: dict[str, Any]
    best_run: Path
    num_trials: int
    num_pruned: int


def tune(
    make: Callable[[dict[str, Any]], Experiment],
    search: Mapping[str, Range | Choice],
    folder: str | Path,
    *,
    num_trials: int = 20,
    metric: str | None = None,
    mode: Literal["min", "max"] | None = None,
    prune: bool = True,
    seed: int = 0,
) -> Tuning:
    """Looks for good settings: tree-structured Parzen estimators choose (Bergstra et al., 2011), validations prune.

    `folder` holds the study (`study.jsonl`), a run a trial (`trials/0003`), `best.json`, `history.png` and
    `importance.png`. Called again with the same folder, it goes on: a trial that was interrupted continues from its
    last checkpoint, and trials are added until there are `num_trials`.

    Args:
      make: the experiment with a trial's values, by the names of `search`; a new one each time.
      search: what to vary.
      folder: where all of it goes.
      num_trials: trials, pruned ones too, with those of earlier calls.
      metric: of validation, such as "val/loss"; by default what the experiment's `Checkpoint` monitors.
      mode: whether less ("min") or more ("max") is better; by default the same callback's.
      prune: end a trial at a validation where its best value is worse than the median of the earlier ones' then (after
        the first five).
      seed: of the choices.

    Raises:
      ConfigError: a setting makes no sense, `folder` holds another study, or Optuna is not installed.
      RunDirError: another process tunes there.
    """
    optuna, folder = _import_optuna(), Path(folder)
    if num_trials < 1:
        raise ConfigError(f"num_trials={num_trials}: expected at least 1.")
    if not search:
        raise ConfigError("tune has nothing to search: expected a Range or a Choice for each setting to vary.")
    first = make({name: space.ends[0] for name, space in search.items()})
    metric, mode = _objective(first, metric, mode)
    with hold(folder):
        study = _open_study(optuna, folder, search, metric, mode, prune, seed)
        spaces = {name: _distribution(optuna, space) for name, space in search.items()}
        _take_up(optuna, study, search)
        while (done := len(_ended(optuna, study))) < num_trials:
            trial = study.ask(spaces)
            values = _values(search, trial.params)
            run = trial.user_attrs.get("run", f"trials/{trial.number:04d}")
            trial.set_user_attr("run", run)
            judge = _Judge()
            judge.watch(trial, metric, prune)
            experiment = make(values)
            experiment = dataclasses.replace(
                experiment,
                trainer=dataclasses.replace(experiment.trainer, run_dir=folder / run),
                callbacks={**experiment.callbacks, "judge": judge},
            )
            value = _train(experiment, metric, mode, resume="auto" if (folder / run).exists() else None)
            if value is None or judge.pruned:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                word = " NaN" if value is None else f" {value:.4g}, pruned at step {judge.step}"
            else:
                study.tell(trial, value)
                word = f" {value:.4g}"
            say(
                f"trial {done + 1}/{num_trials}  {metric}{word}  "
                + "  ".join(f"{k}={_short(v)}" for k, v in values.items())
            )
        return _summary(optuna, study, search, folder, metric)


@dataclasses.dataclass
class _Judge(Callback):
    """Tells Optuna what validations saw, and ends what is not worth its time."""

    runs_last: ClassVar[bool] = True

    def watch(self, trial: Any, metric: str, prune: bool) -> None:
        self._trial, self._metric, self._prune = trial, metric, prune
        self.pruned, self.step = False, 0

    def on_validation_end(self, run: RunView, metrics: dict[str, float]) -> None:
        """See `Callback`."""
        value = metrics.get(self._metric, math.nan)
        if not math.isfinite(value):
            return
        self._trial.report(value, run.step)
        if self._prune and run.step < run.num_steps and self._trial.should_prune():
            self.pruned, self.step = True, run.step
            run.stop("not worth going on, beside earlier trials")


def _train(experiment: Experiment, metric: str, mode: str, resume: str | None) -> float | None:
    """The best value that validations saw; None where the numbers became NaN."""
    try:
        history = experiment.fit(resume=resume).history
    except NonFiniteError:
        return None
    seen = [row[metric] for row in history if metric in row]
    if not seen:
        known = sorted({name for row in history for name in row if name.startswith("val/")})
        raise ConfigError(f"metric={metric!r} is none of the run's validation: {', '.join(known) or 'it has none'}.")
    finite = [value for value in seen if math.isfinite(value)]
    return (min if mode == "min" else max)(finite, default=None)


def _objective(experiment: Experiment, metric: str | None, mode: Any) -> tuple[str, Literal["min", "max"]]:
    monitors = [one for one in experiment.callbacks.values() if isinstance(one, Checkpoint) and one.monitor]
    if metric is None and not monitors:
        raise ConfigError("metric=None: the experiment monitors none; expected a metric of validation and its mode.")
    if metric is None or (mode is None and metric == monitors[0].monitor):
        metric, mode = monitors[0].monitor, mode or monitors[0].mode
    assert metric is not None
    check_mode(mode, "tune")
    return metric, mode


def _open_study(
    optuna: Any, folder: Path, search: Mapping[str, Any], metric: str, mode: str, prune: bool, seed: int
) -> Any:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = importlib.import_module("optuna.storages.journal").JournalFileBackend(str(folder / JOURNAL))
    study = optuna.create_study(
        study_name="galvanax",
        storage=optuna.storages.JournalStorage(backend),
        direction="minimize" if mode == "min" else "maximize",
        pruner=optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    # Else a study that goes on would draw what it has drawn.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    about = {"metric": metric, "mode": mode, "search": {name: repr(space) for name, space in search.items()}}
    known = study.user_attrs.get("about", about)
    for name in about:
        if known[name] != about[name]:
            raise ConfigError(
                f"{folder} holds a study of {name}={known[name]}; expected the same, not {about[name]}, or another "
                "folder."
            )
    study.set_user_attr("about", about)
    return study


def _take_up(optuna: Any, study: Any, search: Mapping[str, Any]) -> None:
    """Puts interrupted trials first in line, each with its run, which goes on."""
    states = optuna.trial.TrialState
    for old in study.get_trials(states=(states.RUNNING,)):
        study.tell(old.number, state=states.FAIL)
        if old.params.keys() == search.keys() and "run" in old.user_attrs:
            study.enqueue_trial(old.params, user_attrs={"run": old.user_attrs["run"]})


def _ended(optuna: Any, study: Any) -> list[Any]:
    states = optuna.trial.TrialState
    return study.get_trials(states=(states.COMPLETE, states.PRUNED))


def _distribution(optuna: Any, space: Range | Choice) -> Any:
    kinds = optuna.distributions
    if isinstance(space, Choice):
        return kinds.CategoricalDistribution([str(option) for option in space.options])
    whole = isinstance(space.low, int) and isinstance(space.high, int)
    kind = kinds.IntDistribution if whole else kinds.FloatDistribution
    return kind(space.low, space.high, log=space.log)


def _values(search: Mapping[str, Range | Choice], params: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial's parameters stand for."""
    values = dict(params)
    for name, space in search.items():
        if isinstance(space, Choice):
            values[name] = {str(option): option for option in space.options}[params[name]]
    return values


def _summary(optuna: Any, study: Any, search: Mapping[str, Any], folder: Path, metric: str) -> Tuning:
    # Here, since matplotlib takes a second to import.
    from galvanax.experiments.tuning_plots import plot_history, plot_importances

    states = optuna.trial.TrialState
    ended = _ended(optuna, study)
    complete = [trial for trial in ended if trial.state == states.COMPLETE]
    if not complete:
        raise ConfigError(f"All {len(ended)} trials in {folder} became NaN: search elsewhere, in another folder.")
    best = study.best_trial
    found = Tuning(
        metric=metric,
        best_value=best.value,
        best_values=_values(search, best.params),
        best_run=folder / best.user_attrs["run"],
        num_trials=len(ended),
        num_pruned=len(ended) - len(complete),
    )
    write_json(folder / BEST, json.loads(json.dumps(dataclasses.asdict(found), default=str)))
    plot_history(
        [(trial.number, trial.value) for trial in complete], metric, study.direction.name, folder / "history.png"
    )
    if len(complete) > 1 and len({trial.value for trial in complete}) > 1:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        importances = optuna.importance.get_param_importances(study, evaluator=evaluator)
        plot_importances(importances, metric, folder / "importance.png")
    return found


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _import_optuna() -> Any:
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise ConfigError('Tuning needs the package optuna: pip install "galvanax[tune]".') from error
