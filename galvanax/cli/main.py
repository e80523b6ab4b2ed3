"""The `galvanax` command."""

import inspect
import sys
from collections.abc import Callable, Sequence

from galvanax.errors import GalvanaxError, ProcessError, nearest
from galvanax.trainer import processes
from galvanax.trainer.compile_cache import enable_compile_cache

USAGE = """usage: galvanax COMMAND ...

  fit EXPERIMENT [--resume [CHECKPOINT]] [--overwrite] [--preset NAME] [flags]
      train; `galvanax fit EXPERIMENT --help` lists the flags
  launch --processes N fit EXPERIMENT ...
      the same, in several processes: one for each GPU
  tune EXPERIMENT --search FLAG VALUES --output DIR [flags]
      look for good settings: a run for each trial
  evaluate RUN_DIR [--checkpoint CHECKPOINT]
      measure a finished run again
  export RUN_DIR --output FILE [--checkpoint CHECKPOINT]
      its weights (.safetensors) or policy (.onnx, .jax)
  play RUN_DIR [--num-episodes N] [--command VX VY YAW] [flags]
      measure and film a PPO run's policy
  collect RUN_DIR --num-episodes N --output FILE.npz [flags]
      write down a PPO run's motions, as data
  sample RUN_DIR --num-samples N --output FILE.npz [flags]
      trajectories of a flow-matching run, as data
  simulate SYSTEM --output DIR [flags]
      write CSV logs of a system's random motion
  identify SYSTEM --data LOGS --parameters PATTERN ... [--output FILE.json]
      fit masses, friction, gains, delay to logs
  render SOURCE [--output DIR] [--camera NAME] [flags]
      film, contact sheet, web page of a trajectory or model
  list
      the experiments and their presets
  doctor [--json] [--only CHECK ...]
      check this machine: packages, GPU, physics, rendering

EXPERIMENT is a name from `galvanax list`, or path/to/file.py:name of your own
gx.Experiment. Commands on a run of your own take it again, as --experiment
path/to/file.py:name: a run folder is data, and no code that it names is run."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; ends with status 2 and one message where what the user gave is wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    try:
        enable_compile_cache()
        _command(arguments[0])(arguments[1:])
    except KeyboardInterrupt as error:
        processes.leave(130, error)
        raise SystemExit(130) from None
    except GalvanaxError as error:
        print(f"galvanax: error: {error}", file=sys.stderr)
        status = 1 if isinstance(error, ProcessError) else 2
        processes.leave(status, error)
        raise SystemExit(status) from error


def _command(name: str) -> Callable[[list[str]], None]:
    # Imported late: `galvanax --help` need not load jax's friends.
    if name == "doctor":  # before the others: what it is to find may be what they fail to import
        from galvanax.cli.doctor import doctor

        return doctor
    if name == "launch":  # likewise: the processes that it starts import them for themselves
        from galvanax.cli.launch import launch

        return launch
    from galvanax.cli.collect import collect
    from galvanax.cli.evaluate import evaluate
    from galvanax.cli.export import export
    from galvanax.cli.fit import fit
    from galvanax.cli.identify import identify
    from galvanax.cli.play import play
    from galvanax.cli.render import render
    from galvanax.cli.sample import sample
    from galvanax.cli.simulate import simulate
    from galvanax.cli.tune import tune

    commands = {
        "fit": fit,
        "tune": tune,
        "evaluate": evaluate,
        "export": export,
        "play": play,
        "collect": collect,
        "sample": sample,
        "simulate": simulate,
        "identify": identify,
        "render": render,
        "list": _list,
    }
    if name not in commands:
        print(
            f"galvanax: error: unknown command {name!r}.{nearest(name, [*commands, 'doctor', 'launch'])}\n\n{USAGE}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return commands[name]


def _list(arguments: list[str]) -> None:
    from rich.table import Table

    from galvanax.experiments.registry import EXPERIMENTS
    from galvanax.terminal import print_table

    table = Table.grid(padding=(0, 2))
    for name, build in EXPERIMENTS.items():
        presets = ", ".join(build().presets)
        about = (inspect.getdoc(build) or "").partition("\n")[0]
        table.add_row(name, about + (f" Presets: {presets}." if presets else ""))
    print_table(table)


if __name__ == "__main__":
    main()
