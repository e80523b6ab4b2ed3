"""The experiments that the package brings."""

from collections.abc import Callable

from galvanax.experiments.double_cart_pole_gru import double_cart_pole_gru
from galvanax.experiments.dynaflow import cartpole_dynaflow, go2_dynaflow, pendulum_dynaflow, pendulum_stateflow
from galvanax.experiments.experiment import Experiment
from galvanax.experiments.pendulum import pendulum
from galvanax.experiments.ppo import cartpole_ppo, g1_ppo, go2_ppo, h1_2_ppo, h1_ppo, hopper_ppo, ledge_ppo

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "pendulum": pendulum,
    "double-cart-pole-gru": double_cart_pole_gru,
    "cartpole-ppo": cartpole_ppo,
    "hopper-ppo": hopper_ppo,
    "ledge-ppo": ledge_ppo,
    "go2-ppo": go2_ppo,
    "g1-ppo": g1_ppo,
    "h1-ppo": h1_ppo,
    "h1_2-ppo": h1_2_ppo,
    "pendulum-dynaflow": pendulum_dynaflow,
    "pendulum-stateflow": pendulum_stateflow,
    "cartpole-dynaflow": cartpole_dynaflow,
    "go2-dynaflow": go2_dynaflow,
}
