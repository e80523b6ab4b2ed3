"""What a run takes over from a checkpoint: all of it, where nothing was changed."""

import collections
import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from galvanax.errors import ConfigError
from galvanax.runs.arrays import check_fit, describe, name_leaves, read_arrays
from galvanax.runs.checkpoint_meta import CheckpointMeta
from galvanax.runs.checkpoints import CheckpointFolder, check_task, verified_meta
from galvanax.runs.history import read_history
from galvanax.runs.integrity import read_meta
from galvanax.trainer import processes
from galvanax.trainer.settings import TrainerSettings
from galvanax.trainer.state import STATE_FIELDS, Arrays, TrainState

log = logging.getLogger("galvanax")

WRAPPED = "/task/"  # in the paths of `optimizer.TaskOptimizer`
# What a resumed run may well have otherwise.
EXPECTED = {"max_epochs", "max_steps", "run_dir", "name", "overwrite", "devices", "num_nodes", "strategy", "callbacks",
            "steps_per_dispatch", "checkpoint", "type"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Resume:
    """A checkpoint to go on from.

    Attributes:
      folder: the checkpoint's.
      meta: its data.
      auto: whether it was found, and not named.
    """

    folder: Path
    meta: CheckpointMeta
    auto: bool

    def check_end(self, num_steps: int) -> None:
        """Raises ConfigError where the run would have nothing to do; under "auto", that is what it does."""
        done = self.meta.step == num_steps and self.meta.visited == self.meta.step
        if self.meta.step > num_steps or (done and not self.auto):
            raise ConfigError(
                f"{self.folder} is of step {self.meta.step}, and the run ends at step {num_steps}: give it more steps."
            )

    def prolonged(self, config: dict[str, Any], num_steps: int) -> bool:
        """Whether the run is to go on although it may have been stopped."""
        return not self.auto or num_steps > self.meta.num_steps or self._callbacks != config["callbacks"]

    def host_states(self, config: dict[str, Any]) -> dict[str, Any]:
        """What the checkpoint keeps for each of the callbacks that the run has now."""
        saved = match_callbacks(self._callbacks, config["callbacks"])
        return {now: self.meta.host[then] for now, then in saved.items() if then in self.meta.host}

    def warn_of_changes(self, config: dict[str, Any]) -> None:
        """Names what is otherwise than in the run that made the checkpoint."""
        for part in ("task", "data", "trainer"):
            old, new = self.meta.config.get(part, {}), config[part]
            for field in sorted((old.keys() | new.keys()) - (EXPECTED if part == "trainer" else set())):
                if repr(old.get(field)) != repr(new.get(field)):  # NaN is NaN
                    _warn_changed(f"{part}.{field}", old.get(field), new.get(field))
        saved = match_callbacks(self._callbacks, config["callbacks"])
        for now, then in saved.items():
            old, new = self._callbacks[then], config["callbacks"][now]
            for field in sorted((old.keys() | new.keys()) - {"class"}):
                if repr(old.get(field)) != repr(new.get(field)):
                    _warn_changed(f"{now}.{field}", old.get(field), new.get(field))
        for name in sorted(self._callbacks.keys() - set(saved.values())):
            log.warning("resumed without the callback %s: what the checkpoint keeps of it is dropped", name)
        for name in sorted(config["callbacks"].keys() - saved.keys()):
            log.warning("resumed with another callback %s: it starts anew", name)

    def load(
        self, abstract: TrainState, config: dict[str, Any], create: Callable[[Arrays, Arrays], TrainState]
    ) -> TrainState:
        """The state of the checkpoint, on the devices.

        Optimizer state and slots that the checkpoint has not, since callbacks or the optimizer were changed, are made
        anew; a warning names them.

        Args:
          abstract: the state's form, and where each array lies.
          config: of the run.
          create: makes a fresh state around parameters and variables.

        Raises:
          CheckpointError: its weights, or its task's carry, are of another form.
        """
        tree = {field: getattr(abstract, field) for field in STATE_FIELDS}
        wanted = name_leaves(tree)
        slots = match_callbacks(self._callbacks, config["callbacks"])
        sources = match_arrays({name: describe(leaf) for name, leaf in wanted.items()}, self.meta.arrays, slots)
        missing = [name for name in wanted if name not in sources]
        check_fit(self.folder, self.meta, {name: wanted[name] for name in missing if not _may_start_anew(name)})
        loaded = read_arrays(self.folder, self.meta, {source: wanted[name] for name, source in sources.items()})
        arrays = {name: loaded[source] for name, source in sources.items()}
        self._warn_of_arrays(missing, set(sources.values()))
        if missing:
            params, variables = (
                {name: arrays[f"{field}/{name}"] for name in getattr(abstract, field)}
                for field in ("params", "variables")
            )
            fresh = create(params, variables)
            named = name_leaves({field: getattr(fresh, field) for field in STATE_FIELDS})
            arrays |= {name: named[name] for name in missing}
        leaves = [arrays[name] for name in wanted]
        return abstract.replace(**jax.tree.unflatten(jax.tree.structure(tree), leaves))

    @property
    def _callbacks(self) -> dict[str, Any]:
        found = self.meta.config.get("callbacks")
        return found if isinstance(found, dict) else {}

    def _warn_of_arrays(self, missing: list[str], used: set[str]) -> None:
        if not processes.is_main():
            return
        if missing:
            log.warning("made anew, since %s has none that fit: %s", self.folder, _summary(missing))
        if dropped := [name for name in self.meta.arrays if name not in used and _may_start_anew(name)]:
            log.warning("not taken over from %s: %s", self.folder, _summary(dropped))


def find_resume(trainer: TrainerSettings, task_type: str, resume: str | Path | int | None) -> Resume | None:
    """The checkpoint to continue; None for a fresh run.

    Raises:
      ConfigError, CheckpointError: as `Trainer.fit`.
    """
    found = processes.from_main("checkpoint to continue", lambda: _search(trainer, task_type, resume))
    if found is None:
        return None
    folder = Path(found)
    meta = dataclasses.replace(read_meta(folder), history=read_history(folder))
    return Resume(folder, meta, auto=resume == "auto")


def _search(trainer: TrainerSettings, task_type: str, resume: str | Path | int | None) -> str | None:
    if resume is None:
        return None
    if trainer.run_dir is None:
        raise ConfigError(f"resume={str(resume)!r} needs the Trainer's run_dir.")
    folder = CheckpointFolder(trainer.run_dir)
    found = folder.to_continue() if resume == "auto" else folder.find(resume)
    if found is None:
        log.warning("no checkpoint in %s: starting at step 0", folder.path)
        return None
    check_task(found, read_meta(found) if resume == "auto" else verified_meta(found), task_type)
    return str(found)


def match_callbacks(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Which of a checkpoint's callbacks each of a run's continues, `{name now: name then}`.

    Of callbacks of one class, those of the same settings belong together, whatever their order; then, what is left, in
    order. Classes of one name are told apart by their modules, unless only those have changed.
    """
    matched: dict[str, str] = {}
    for alike in (lambda one: one, _without_class, lambda one: one.get("class"), lambda one: one.get("type")):
        for name, described in now.items():
            free = [then for then in saved if then not in matched.values()]
            same = next((then for then in free if repr(alike(saved[then])) == repr(alike(described))), None)
            if name not in matched and same is not None:
                matched[name] = same
    return matched


def match_arrays(wanted: Mapping[str, str], saved: Mapping[str, str], slots: Mapping[str, str]) -> dict[str, str]:
    """Which of a checkpoint's arrays each of a state's is continued from, `{path now: path then}`.

    The task's own optimizer is found again whatever callbacks wrap around it.

    Args:
      wanted: type and shape by path.
      saved: the same, of the checkpoint.
      slots: `match_callbacks`.
    """
    inner = {path.partition(WRAPPED)[2]: path for path in saved if path.startswith("opt_state/") and WRAPPED in path}
    found = {}
    for path, form in wanted.items():
        source: str | None = path
        if path.startswith("slots/"):
            _, name, *rest = path.split("/", 2)
            source = "/".join(["slots", slots[name], *rest]) if name in slots else None
        elif path.startswith("opt_state/") and WRAPPED in path:
            source = inner.get(path.partition(WRAPPED)[2])
        if source is not None and saved.get(source) == form:
            found[path] = source
    return found


def _may_start_anew(path: str) -> bool:
    return path.startswith(("opt_state/", "slots/"))


def _without_class(described: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in described.items() if name != "class"}


def _warn_changed(name: str, old: Any, new: Any) -> None:
    log.warning("resumed with a changed %s: was %s, is %s", name, old, new)


def _summary(paths: list[str]) -> str:
    """`"slots/EMA (4 arrays), opt_state/mini_step"`."""
    groups = collections.Counter("/".join(path.split("/")[:2]) for path in paths)
    return ", ".join(f"{name} ({count} arrays)" if count > 1 else name for name, count in groups.items())
