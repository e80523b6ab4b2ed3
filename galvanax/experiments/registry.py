"""The experiments that the package brings."""

from collections.abc import Callable

from galvanax.experiments.experiment import Experiment
from galvanax.experiments.pendulum import pendulum

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {"pendulum": pendulum}
