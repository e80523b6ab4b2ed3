"""Starting from the weights of another run."""

import dataclasses
import difflib
from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.patterns import check_patterns, matching
from galvanax.errors import CheckpointError, ConfigError
from galvanax.runs.weights import describe, read_weights
from galvanax.terminal import say
from galvanax.trainer import processes
from galvanax.trainer.state import Arrays


@dataclasses.dataclass(frozen=True)
class WarmStartReport:
    """What a warm start did, array by array. Printed as a list.

    Attributes:
      source: what was read.
      loaded: paths of the arrays that start from the source's.
      absent: chosen, but the source has none of that name.
      different: chosen, but of another shape or type: `(here, in the source)`, such as `"float32[8, 2]"`.
      excluded: not chosen by the patterns.
      unused: the source's arrays that this model has no place for.
    """

    source: str
    loaded: tuple[str, ...]
    absent: tuple[str, ...]
    different: dict[str, tuple[str, str]]
    excluded: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        fresh = len(self.absent) + len(self.different) + len(self.excluded)
        lines = [f"warm start from {self.source}: {len(self.loaded)} of {len(self.loaded) + fresh} arrays"]
        lines += [f"  loaded       {path}" for path in self.loaded]
        lines += [f"  not loaded   {path}: absent in the source" for path in self.absent]
        lines += [
            f"  not loaded   {path}: {here} here, {there} in the source"
            for path, (here, there) in self.different.items()
        ]
        lines += [f"  not loaded   {path}: excluded" for path in self.excluded]
        lines += [f"  not used     {path}: only in the source" for path in self.unused]
        return "\n".join(lines)


@dataclasses.dataclass
class WarmStart(Callback):
    """Starts a fresh run from another run's weights: those of evaluation, and its normalisers and other statistics.

    Optimizer state, step and everything else start afresh. A list says what was taken. A resumed run takes nothing: its
    checkpoint holds everything.

    Attributes:
      source: a run's folder, a checkpoint's folder, or a file of `export_safetensors`.
      checkpoint: of a run's folder: "best", "last" or a step.
      include: patterns of paths to load, such as `("network/*",)`; `*` matches slashes too.
      exclude: patterns of paths not to load, of those.
      partial: what was chosen and is absent in the source, or of another shape or type, keeps its fresh value; it is an
        error otherwise.
      report: what was loaded and what was not (`WarmStartReport`), once a run has started; no setting.
    """

    source: str | Path
    checkpoint: str = "best"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    partial: bool = False

    def __post_init__(self) -> None:
        check_patterns("WarmStart.include", self.include)
        check_patterns("WarmStart.exclude", self.exclude)
        self.report: WarmStartReport | None = None

    def init_params(self, params: Arrays, variables: Arrays) -> tuple[Arrays, Arrays]:
        """See `Callback`."""
        here = {**params, **variables}
        chosen = matching("WarmStart.include", self.include, here) - matching("WarmStart.exclude", self.exclude, here)
        if not chosen:
            raise ConfigError(
                f"WarmStart(include={self.include}, exclude={self.exclude}) leaves none of the model's {len(here)} "
                f"arrays to load, such as {', '.join(sorted(here)[:3])}."
            )
        weights = read_weights(self.source, self.checkpoint)
        there = {**weights.params, **weights.variables}
        forms = {path: (describe(here[path]), describe(there[path])) for path in sorted(chosen & there.keys())}
        report = WarmStartReport(
            source=str(weights.source),
            loaded=tuple(path for path, (mine, theirs) in forms.items() if mine == theirs),
            absent=tuple(sorted(chosen - there.keys())),
            different={path: form for path, form in forms.items() if form[0] != form[1]},
            excluded=tuple(sorted(here.keys() - chosen)),
            unused=tuple(sorted(there.keys() - here.keys())),
        )
        if not report.loaded:
            raise CheckpointError(f"Nothing of {weights.source} fits this model. {_mismatch(report, there)}")
        if not self.partial and (report.absent or report.different):
            raise CheckpointError(
                f"{len(report.loaded)} of the {len(chosen)} arrays to load are in {weights.source} as this model has "
                f"them. {_mismatch(report, there)} To start the others afresh: WarmStart.partial=True (--partial), or "
                "leave them out by exclude."
            )
        self.report = report
        if processes.is_main():
            say(report)
        warm: Arrays = {path: jnp.asarray(there[path]) for path in report.loaded}
        return _replace(params, warm), _replace(variables, warm)


def _replace(arrays: Arrays, warm: Arrays) -> Arrays:
    return {path: warm.get(path, array) for path, array in arrays.items()}


def _mismatch(report: WarmStartReport, there: Iterable[str]) -> str:
    """The first few reasons why arrays can't be loaded."""
    reasons = [f"{path} is {here} here and {theirs} there" for path, (here, theirs) in report.different.items()]
    for path in report.absent:
        near = difflib.get_close_matches(path, sorted(there), n=1, cutoff=0.0)
        reasons.append(f"{path} is not there" + "".join(f" (nearest: {name})" for name in near))
    more = f"; and {len(reasons) - 3} more" if reasons[3:] else ""
    return "; ".join(reasons[:3]) + f"{more}."
