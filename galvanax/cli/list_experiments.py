"""`galvanax list`: what can be trained."""

from rich.table import Table

from galvanax.experiments.registry import EXPERIMENTS
from galvanax.terminal import print_table


def list_experiments(arguments: list[str]) -> None:
    """Prints the experiments, a line each, with their presets."""
    table = Table.grid(padding=(0, 2))
    for name, experiment in EXPERIMENTS.items():
        presets = f" Presets: {', '.join(experiment.presets)}." if experiment.presets else ""
        table.add_row(name, experiment.about + presets)
    print_table(table)
