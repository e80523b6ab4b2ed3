"""`galvanax doctor`: does this machine have what training needs, and does it compute the right numbers?"""

import contextlib
import dataclasses
import functools
import json
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import tyro
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from galvanax.cli.doctor_checks import CHECKS, Result, check_environment, installed_versions
from galvanax.errors import ConfigError, nearest

COLOURS = {"pass": "green", "warn": "yellow", "fail": "bold red"}
NARROW = 110  # columns of a terminal below which "what to do" gets lines of its own
LONGEST = 600  # characters of an exception's message


@dataclasses.dataclass
class DoctorCommand:
    """Check the machine: packages, GPU, physics, checkpoints, rendering. Status 1 if a check fails, 0 for warnings.

    Attributes:
      json: print one JSON object and nothing else.
      only: run these checks alone, of versions, devices, jit, mjx, brax, environment, orbax, rendering, precision,
        compile-cache, machine, optional.
      robot: the environment that is made and stepped, such as go2 or g1; a legged robot takes half a minute to compile.
    """

    json: bool = False
    only: tuple[str, ...] = ()
    robot: str = "cart-pole-balance"


def doctor(arguments: list[str]) -> None:
    """Parses the flags, runs the checks and prints what they saw.

    Raises:
      ConfigError: `--only` names no check.
      SystemExit: with status 1, if a check failed.
    """
    command = tyro.cli(DoctorCommand, args=arguments, prog="galvanax doctor")
    for name in command.only:
        if name not in CHECKS:
            raise ConfigError(f"only={name}: there is no such check.{nearest(name, CHECKS)}")
    checks: dict[str, Callable[[], Result]] = {
        **CHECKS,
        "environment": functools.partial(check_environment, command.robot),
    }
    # Beside a training run, which may have taken three quarters of the GPU's memory, there is none to reserve.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with contextlib.suppress(ImportError):  # jax, or what it needs, may be what is missing
        from galvanax.trainer.compile_cache import enable_compile_cache

        enable_compile_cache()
    results = run_checks({name: checks[name] for name in checks if name in command.only or not command.only})
    counts = Counter[str](result.status for result in results)
    if command.json:
        report = {
            "results": [dataclasses.asdict(result) for result in results],
            "versions": installed_versions(),
            "summary": {status: counts[status] for status in COLOURS} | {"ok": not counts["fail"]},
        }
        print(json.dumps(report, indent=1))
    else:
        print_table(results, Console())
    if counts["fail"]:
        raise SystemExit(1)


def run_checks(checks: Mapping[str, Callable[[], Result]]) -> list[Result]:
    """Runs checks, each to its end: what one raises is its result, "fail"."""
    results = []
    # To stderr, and only where that is a terminal.
    with Console(stderr=True).status("") as status, _silent_stdout(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, check in checks.items():
            status.update(f"checking {name}")
            start = time.perf_counter()
            try:
                result = check()
            except Exception as error:
                result = _failure(name, error)
            results.append(dataclasses.replace(result, name=name, seconds=round(time.perf_counter() - start, 3)))
    return results


def print_table(results: Sequence[Result], console: Console) -> None:
    """Prints a row a check, and a line that sums them up."""
    stacked = console.width < NARROW
    table = Table("check", "status", "found, and what to do" if stacked else "found", show_lines=stacked)
    if not stacked:
        table.add_column("what to do")
    for column in table.columns:
        column.no_wrap, column.overflow = column in table.columns[:2], "fold"  # a command must be whole
    for result in results:
        # As Text, for rich takes the [gpu] of galvanax[gpu] in a string for a colour.
        found, advice = Text(result.found), Text(("→ " if stacked else "") + result.advice, COLOURS[result.status])
        cells = [Group(found, advice) if result.advice else found] if stacked else [found, advice]
        table.add_row(result.name, Text(result.status, COLOURS[result.status]), *cells)
    console.print(table)
    counts = Counter[str](result.status for result in results)
    worst = next((status for status in ("fail", "warn") if counts[status]), "pass")
    said = {"pass": "all is well", "warn": "training works", "fail": "training may not work"}[worst]
    line = f"{len(results)} check{'' if len(results) == 1 else 's'}: " + ", ".join(
        f"{counts[status]} {status}" for status in COLOURS
    )
    seconds = sum(result.seconds for result in results)
    console.print(Text(f"{line} ({seconds:.0f} s); {said}.", COLOURS[worst]))


def _failure(name: str, error: Exception) -> Result:
    message = " ".join(f"{type(error).__name__}: {error}".split())
    if not str(error):  # as of an assert
        last = traceback.extract_tb(error.__traceback__)[-1]
        message += f" {last.line} ({last.filename}:{last.lineno})"
    return Result(
        "fail",
        message if len(message) <= LONGEST else message[: LONGEST - 4] + " ...",
        f"If versions passes: `galvanax doctor --only {name} --json` shows the traceback.",
        traceback="".join(traceback.format_exception(error)),
    )


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Swallows what libraries print while they are imported; the file descriptor too, for native code's sake."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
