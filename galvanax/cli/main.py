"""The `galvanax` command."""

import importlib
import sys
from collections.abc import Sequence

from galvanax.errors import GalvanaxError, ProcessError, nearest
from galvanax.experiments.registry import check_known
from galvanax.trainer import processes

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


# Imported when it is called: `--help`, `list` and a mistyped name need not wait for jax and its friends.
COMMANDS = (
    "fit",
    "launch",
    "tune",
    "evaluate",
    "export",
    "play",
    "collect",
    "sample",
    "simulate",
    "identify",
    "render",
    "list",
    "doctor",
)
# `doctor` asks whether it is there at all; the processes that `launch` starts import it for themselves.
WITHOUT_JAX = ("list", "doctor", "launch")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; ends with status 2 and one message where what the user gave is wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"galvanax: error: unknown command {name!r}.{nearest(name, COMMANDS)}\n\n{USAGE}", file=sys.stderr)
        raise SystemExit(2)
    try:
        _check_experiment(arguments)
        if name not in WITHOUT_JAX:
            from galvanax.trainer.compile_cache import enable_compile_cache

            enable_compile_cache()
        command = "list_experiments" if name == "list" else name
        getattr(importlib.import_module(f"galvanax.cli.{command}"), command)(rest)
    except KeyboardInterrupt as error:
        processes.leave(130, error)
        raise SystemExit(130) from None
    except GalvanaxError as error:
        print(f"galvanax: error: {error}", file=sys.stderr)
        status = 1 if isinstance(error, ProcessError) else 2
        processes.leave(status, error)
        raise SystemExit(status) from error


def _check_experiment(arguments: Sequence[str]) -> None:
    """Raises ConfigError where `fit` is given what is no experiment, under `launch` too."""
    if arguments[0] == "launch" and "fit" in arguments:
        arguments = arguments[arguments.index("fit") :]
    if arguments[0] == "fit" and arguments[1:] and not arguments[1].startswith("-"):
        check_known(arguments[1])


if __name__ == "__main__":
    main()
