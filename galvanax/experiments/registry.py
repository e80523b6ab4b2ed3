"""The experiments that the package brings."""

from collections.abc import Callable

from galvanax.experiments.double_cart_pole_gru import double_cart_pole_gru
from galvanax.experiments.experiment import Experiment
from galvanax.experiments.pendulum import pendulum

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "pendulum": pendulum,
    "double-cart-pole-gru": double_cart_pole_gru,
}
