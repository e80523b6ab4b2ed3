"""`galvanax fit EXPERIMENT`: every field of the experiment is a flag."""

import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Any

import tyro

from galvanax.cli.callback_flags import choose_callbacks
from galvanax.cli.dry_run import dry_run
from galvanax.cli.evaluate import evaluate_run
from galvanax.cli.preset_flag import take_presets
from galvanax.cli.strategy_flag import strategy_rule
from galvanax.datamodules.environment import EnvironmentDataModule
from galvanax.envs.registry import register_own
from galvanax.errors import ConfigError, nearest
from galvanax.experiments.experiment import Experiment, find_experiment
from galvanax.experiments.own_code import from_file, names_file
from galvanax.experiments.registry import EXPERIMENTS
from galvanax.tasks.ppo import PPOTask
from galvanax.trainer import processes, rendezvous
from galvanax.trainer.schedule import Epochs, Minutes, Steps
from galvanax.trainer.trainer import Trainer

SHORT = {
    "--data": "--data.data",
    "--data.env": "--data.environment",
    "--devices": "--trainer.devices",
    "--freeze": "--callbacks.freeze",
    "--warm-start": "--callbacks.warm-start",
    "--partial": "--callbacks.warm-start.partial",
}
INTERVALS: dict[str, Any] = {"steps": Steps, "epochs": Epochs, "minutes": Minutes}


@dataclasses.dataclass
class FitCommand:
    """Train an experiment: a flag for every field of its task, data, trainer and callbacks.

    `--callbacks.NAME [VALUE]` adds a callback (summary, freeze, warm-start, accumulate, clip, ema, early-stopping,
    checkpoint, csv, tensorboard, wandb, video, progress, or NAME path/to/file.py:Class of one's own), or changes the
    one of that name; `none` takes it away; `--callbacks.NAME.FIELD VALUE` sets a field, and `--callbacks.NAME --help`
    shows those of one that is not there yet.

    Short for longer flags: --data FILES, --data.env NAME, --devices N, --freeze PATTERN ..., --warm-start RUN (a run's
    folder, a checkpoint or an exported file) with --partial.

    Attributes:
      experiment: what to train.
      resume: continue the run in its folder: "last" (a bare --resume), "best", a step, a path, or "auto".
      overwrite: delete the run in the folder first.
      preset: start from these settings of the experiment, the later ones over the earlier ones; other flags change
        them. `galvanax list` says which there are.
      evaluate: measure the best checkpoint afterwards.
      env_steps: of PPO: end after so many control steps of all environments together, instead of --trainer.max-steps.
      dry_run: train nothing; compile for as many simulated devices as --devices says, and print what a step costs.
      json: of a dry run: print one JSON object and nothing else.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    resume: str | None = None
    overwrite: bool = False
    preset: tuple[str, ...] = ()
    evaluate: bool = True
    env_steps: int | None = None
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
        rendezvous.initialize()  # first: an experiment may compute while it is made
    command = build(reference, flags)
    experiment = command.experiment
    if command.resume and experiment.trainer.overwrite:
        raise ConfigError("--resume and --overwrite contradict each other.")
    if command.dry_run:
        return dry_run(experiment, arguments, command.json)
    if command.json:
        raise ConfigError("--json is of a --dry-run.")
    result = experiment.fit(resume=command.resume)
    run_dir = None if experiment.trainer.fast_dev_run or not command.evaluate else experiment.trainer.run_dir
    if run_dir is not None and processes.is_main():  # on its own devices, while the others wait for it to end
        evaluate_run(run_dir, experiment.data, result=result)


def build(reference: str, flags: list[str]) -> FitCommand:
    """Makes the experiment that a name or `path/to/file.py:name` stands for, with its fields as the flags say.

    Raises:
      ConfigError: there is no such experiment, or a flag contradicts it.
    """
    command = parse(reference, find_experiment(reference), flags)
    experiment = command.experiment
    absolute = reference if reference in EXPERIMENTS else str(Path(reference).absolute())
    experiment.trainer = dataclasses.replace(experiment.trainer, name=absolute, overwrite=command.overwrite)
    if command.env_steps is not None:
        experiment.trainer = _until(experiment, command.env_steps, flags)
    _load_own_environment(experiment.data)
    return command


def parse(reference: str, experiment: Experiment, flags: list[str]) -> FitCommand:
    """The command with the experiment's fields changed as its presets and the flags say."""
    prog, registry = f"galvanax fit {reference}", _registry()
    experiment, flags = choose_callbacks(take_presets(experiment, flags), _spell_out(flags), prog, registry)
    return tyro.cli(FitCommand, args=flags, default=FitCommand(experiment), prog=prog, registry=registry)


def _load_own_environment(data: Any) -> None:
    """Loads an environment that settings name as `path/to/file.py:name`; from then on they have the absolute path.

    Raises:
      ConfigError: there is no such file, or no such name in it.
    """
    reference = getattr(data, "environment", None)
    if isinstance(data, EnvironmentDataModule) and isinstance(reference, str) and names_file(reference):
        found = from_file(reference, object, "environment")
        data.environment = str(Path(reference).absolute())
        register_own(data.environment, found)


def _until(experiment: Experiment, env_steps: int, flags: list[str]) -> Trainer:
    """The trainer with the iterations that make so many control steps."""
    task, data = experiment.task, experiment.data
    if not isinstance(task, PPOTask) or not isinstance(data, EnvironmentDataModule):
        raise ConfigError(f"--env-steps {env_steps}: {type(task).__name__} makes none; expected --trainer.max-steps.")
    if "--trainer.max-steps" in flags:
        raise ConfigError("--env-steps and --trainer.max-steps contradict each other.")
    if env_steps < 1:
        raise ConfigError(f"--env-steps {env_steps}: expected at least 1.")
    return dataclasses.replace(experiment.trainer, max_steps=-(-env_steps // (task.unroll_length * data.num_envs)))


def _spell_out(flags: list[str]) -> list[str]:
    """A bare `--resume` is of the last checkpoint; and flags that are short for others (`SHORT`)."""
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
