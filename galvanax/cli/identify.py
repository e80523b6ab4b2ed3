"""`galvanax identify SYSTEM --data LOGS`: a model's parameters from logs."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from galvanax.envs.systems import load_system
from galvanax.errors import ConfigError
from galvanax.identification.identification import Identification
from galvanax.identification.identify import identify as fit_parameters
from galvanax.terminal import print_table, say


@dataclasses.dataclass
class IdentifyCommand:
    """Fit a model's parameters to logs, by gradients through its simulation; print them with their standard errors.

    What the logs don't tell is named. The JSON file has all that `gx.Identification` has; its `values` are what
    `gx.set_parameters(model, values)` takes.

    Attributes:
      system: a bundled model, such as cart-pole, or the path of an MJCF file.
      data: logs: a folder, a glob or a file, CSV, Parquet or NPZ.
      parameters: patterns of names, such as "body_mass/*" "dof_damping/*" "actuator_gain/*" action_delay.
      output: the JSON file to write.
      actions: what the logs' actions are: the actuators' "controls", as `galvanax simulate` writes them, or actions of
        the "environment" of that name, as `galvanax collect` does.
      horizon: control steps of a window, which is simulated from its first state.
      max_windows: so many at most, spread over the logs.
      max_delay: the longest delay of actions that is tried (s); by default four control steps.
      overwrite: replace the file.
    """

    system: Annotated[str, tyro.conf.Positional]
    data: str
    parameters: tuple[str, ...]
    output: Path | None = None
    actions: Literal["controls", "environment"] = "controls"
    horizon: int = 20
    max_windows: int = 100
    max_delay: float | None = None
    overwrite: bool = False


def identify(arguments: list[str]) -> None:
    """Parses the flags, fits, prints and writes."""
    command = tyro.cli(IdentifyCommand, args=arguments, prog="galvanax identify")
    if command.output is not None and command.output.exists() and not command.overwrite:
        raise ConfigError(f"output={command.output} is there; expected a new name, or --overwrite.")
    found = fit_parameters(
        command.system if command.actions == "controls" else load_system(command.system),
        command.data,
        command.parameters,
        horizon=command.horizon,
        max_windows=command.max_windows,
        max_delay=command.max_delay,
    )
    print_table(_table(found))
    say(
        f"{found.windows} windows of {found.horizon} steps: root mean square error {found.error_before:.3g} "
        f"deviations of the noise before, {found.error_after:.3g} after; {found.seconds:.0f} s"
    )
    if found.undetermined:
        say(f"The logs don't tell: {', '.join(found.undetermined)}.")
    if not found.converged:
        say("The iterations ended before they converged.")
    if command.output is not None:
        found.save(command.output)
        say(f"wrote {command.output}")


def _table(found: Identification) -> Table:
    table = Table("parameter", "before", "after", "standard error")
    for name, value in found.values.items():
        error = "not told" if name in found.undetermined else f"{found.standard_errors[name]:.2g}"
        table.add_row(name, f"{found.initial[name]:.5g}", f"{value:.5g}", error)
    return table
