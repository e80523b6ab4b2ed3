"""`galvanax fit EXPERIMENT`: every field of the experiment is a flag."""

import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Any

import tyro

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.freeze import Freeze
from galvanax.callbacks.warm_start import WarmStart
from galvanax.cli.dry_run import dry_run
from galvanax.cli.evaluate import evaluate_run
from galvanax.cli.preset_flag import take_presets
from galvanax.cli.strategy_flag import strategy_rule
from galvanax.errors import ConfigError, nearest
from galvanax.experiments.experiment import Experiment, find_experiment
from galvanax.experiments.registry import EXPERIMENTS
from galvanax.trainer import processes
from galvanax.trainer.schedule import Epochs, Minutes, Steps

SHORT = {"--data": "--data.data", "--devices": "--trainer.devices"}
INTERVALS: dict[str, Any] = {"steps": Steps, "epochs": Epochs, "minutes": Minutes}


@dataclasses.dataclass
class FitCommand:
    """Train an experiment.

    Attributes:
      experiment: what to train.
      resume: continue the run in its folder: "last" (a bare --resume), "best", a step, a path, or "auto".
      overwrite: delete the run in the folder first.
      preset: start from these settings of the experiment, the later ones over the earlier ones; other flags change
        them. `galvanax list` says which there are.
      evaluate: measure the best checkpoint afterwards.
      warm_start: start from the weights of this run's folder, checkpoint or exported file.
      partial: of a warm start: what those weights lack, or have in another shape, starts afresh.
      freeze: keep the parameters with these paths as they are, such as "network/layers/0/*".
      dry_run: train nothing; compile for as many simulated devices as --devices says, and print what a step costs.
      json: of a dry run: print one JSON object and nothing else.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    resume: str | None = None
    overwrite: bool = False
    preset: tuple[str, ...] = ()
    evaluate: bool = True
    warm_start: Path | None = None
    partial: bool = False
    freeze: tuple[str, ...] = ()
    dry_run: bool = False
    json: bool = False


def fit(arguments: list[str]) -> None:
    """Parses the flags, trains, and evaluates what was trained."""
    names = "\n".join(f"  {name}" for name in EXPERIMENTS)
    if not arguments or arguments[0].startswith("-"):
        print(f"usage: galvanax fit EXPERIMENT [flags]\n\nexperiments:\n{names}\n  path/to/file.py:name")
        if arguments[:1] in (["-h"], ["--help"]):
            return
        raise ConfigError("fit needs an experiment.")
    reference, *flags = arguments
    if not {"-h", "--help", "--dry-run"} & set(flags):
        processes.initialize()  # first: an experiment may compute while it is made
    experiment = find_experiment(reference, EXPERIMENTS)
    command = parse(reference, experiment, flags)
    experiment = command.experiment
    absolute = reference if reference in EXPERIMENTS else str(Path(reference).absolute())
    experiment.trainer = dataclasses.replace(experiment.trainer, name=absolute, overwrite=command.overwrite)
    if command.resume and experiment.trainer.overwrite:
        raise ConfigError("--resume and --overwrite contradict each other.")
    experiment.callbacks = _with_fine_tuning(experiment.callbacks, command)
    if command.dry_run:
        return dry_run(experiment, arguments, command.json)
    if command.json:
        raise ConfigError("--json is of a --dry-run.")
    result = experiment.fit(resume=command.resume)
    run_dir = None if experiment.trainer.fast_dev_run or not command.evaluate else experiment.trainer.run_dir
    if run_dir is not None and processes.is_main():  # on its own devices, while the others wait for it to end
        evaluate_run(run_dir, experiment.data, result=result)


def parse(reference: str, experiment: Experiment, flags: list[str]) -> FitCommand:
    """The command with the experiment's fields changed as its presets and the flags say."""
    return tyro.cli(
        FitCommand,
        args=_spell_out(flags),
        default=FitCommand(take_presets(experiment, flags)),
        prog=f"galvanax fit {reference}",
        registry=_registry(),
    )


def _with_fine_tuning(callbacks: dict[str, Callback], command: FitCommand) -> dict[str, Callback]:
    added: dict[str, Callback] = {}
    if command.freeze:
        added["freeze"] = Freeze(command.freeze)
    if command.warm_start is not None:
        added["warm_start"] = WarmStart(command.warm_start, partial=command.partial)
    elif command.partial:
        raise ConfigError("--partial is of a --warm-start.")
    for name in added.keys() & callbacks.keys():
        raise ConfigError(f"The experiment has a callback {name!r} of its own: use --callbacks.{name}'s flags.")
    # First, so that clipping sees only what trains.
    return {**added, **callbacks}


def _spell_out(flags: list[str]) -> list[str]:
    """A bare `--resume` is of the last checkpoint; `--data` and `--devices` are short for flags of data and trainer."""
    spelled: list[str] = []
    for index, flag in enumerate(flags):
        spelled.append(SHORT.get(flag, flag))
        if flag == "--resume" and (index + 1 == len(flags) or flags[index + 1].startswith("--")):
            spelled.append("last")
    return spelled


def _registry() -> tyro.constructors.ConstructorRegistry:
    """How intervals (`steps:500`, `epochs:1`, `minutes:10`, `none`) and strategies are written on the command line."""
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(strategy_rule)

    @registry.primitive_rule
    def interval(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        members = typing.get_args(info.type) or (info.type,)
        if not any(member in INTERVALS.values() for member in members):
            return None
        allowed = [name for name, kind in INTERVALS.items() if kind in members]
        optional = type(None) in members
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="|".join([f"{name}:N" for name in allowed] + ["none"] * optional),
            instance_from_str=lambda words: parse_interval(words[0], allowed, optional),
            is_instance=lambda value: value is None or isinstance(value, tuple(INTERVALS.values())),
            str_from_instance=lambda value: [_write_interval(value)],
        )

    return registry


def parse_interval(text: str, allowed: list[str], optional: bool) -> Any:
    """`"steps:500"` to `Steps(500)`."""
    if optional and text == "none":
        return None
    kind, _, number = text.partition(":")
    if kind not in allowed:
        raise ValueError(f"expected such as {allowed[0]}:10, got {text!r}.{nearest(kind, allowed)}")
    return INTERVALS[kind](float(number) if kind == "minutes" else int(number))


def _write_interval(value: Any) -> str:
    return "none" if value is None else f"{type(value).__name__.lower()}:{dataclasses.astuple(value)[0]}"
