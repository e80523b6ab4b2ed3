"""The experiments that the package brings."""

from collections.abc import Callable

from galvanax.experiments.double_cart_pole_gru import double_cart_pole_gru
from galvanax.experiments.dynaflow import cartpole_dynaflow, go2_dynaflow, pendulum_dynaflow, pendulum_stateflow
from galvanax.experiments.experiment import Experiment, find_experiment
from galvanax.experiments.pendulum import pendulum
from galvanax.experiments.ppo import cartpole_ppo, g1_ppo, go2_ppo, h1_2_ppo, h1_ppo, hopper_ppo, ledge_ppo, ppo

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "pendulum": pendulum,
    "double-cart-pole-gru": double_cart_pole_gru,
    "ppo": ppo,
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


def load_experiment(name: str, *presets: str) -> Experiment:
    """An experiment as `galvanax fit` makes it: `load_experiment("pendulum", "paper").fit()`.

    Args:
      name: of `galvanax list`, or `"path/to/file.py:name"` of your own.
      presets: what `--preset` takes, the later ones over the earlier ones.

    Raises:
      ConfigError: there is no such experiment or preset.
    """
    return find_experiment(name, EXPERIMENTS).with_preset(*presets)
