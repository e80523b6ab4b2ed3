"""The experiments that the package brings, by name. Naming them imports none of them, nor JAX."""

import ast
import dataclasses
import importlib
from pathlib import Path
from typing import Any

from galvanax.errors import ConfigError, nearest
from galvanax.experiments.own_code import names_file


@dataclasses.dataclass(frozen=True)
class Shipped:
    """An experiment of the package; calling it makes it.

    Attributes:
      module: in `galvanax.experiments`.
      function: what makes it there.
      presets: their names.
    """

    module: str
    function: str
    presets: tuple[str, ...] = ()

    def __call__(self) -> Any:
        """Makes the `Experiment`."""
        return getattr(importlib.import_module(f"galvanax.experiments.{self.module}"), self.function)()

    @property
    def about(self) -> str:
        """The first line of what its docstring says."""
        source = (Path(__file__).parent / f"{self.module}.py").read_text()
        functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
        (about,) = [ast.get_docstring(node) for node in functions if node.name == self.function]
        return (about or "").partition("\n")[0]


EXPERIMENTS: dict[str, Shipped] = {
    "pendulum": Shipped("pendulum", "pendulum", ("paper",)),
    "double-cart-pole-gru": Shipped("double_cart_pole_gru", "double_cart_pole_gru", ("paper",)),
    "ppo": Shipped("ppo", "ppo"),
    "cartpole-ppo": Shipped("ppo", "cartpole_ppo"),
    "hopper-ppo": Shipped("ppo", "hopper_ppo"),
    "ledge-ppo": Shipped("ppo", "ledge_ppo"),
    "go2-ppo": Shipped("ppo", "go2_ppo", ("paper", "guide")),
    "g1-ppo": Shipped("ppo", "g1_ppo", ("paper",)),
    "h1-ppo": Shipped("ppo", "h1_ppo", ("paper",)),
    "h1_2-ppo": Shipped("ppo", "h1_2_ppo", ("paper",)),
    "pendulum-dynaflow": Shipped("dynaflow", "pendulum_dynaflow", ("paper", "guide", "small", "medium", "large")),
    "pendulum-stateflow": Shipped("dynaflow", "pendulum_stateflow", ("paper", "guide", "small", "medium", "large")),
    "cartpole-dynaflow": Shipped("dynaflow", "cartpole_dynaflow", ("paper", "guide", "small", "medium", "large")),
    "go2-dynaflow": Shipped("dynaflow", "go2_dynaflow", ("paper", "guide", "small", "medium", "large")),
}


def check_known(reference: str) -> None:
    """Raises ConfigError where a reference is neither an experiment's name nor `path/to/file.py:name`."""
    if reference not in EXPERIMENTS and not names_file(reference):
        raise ConfigError(f"Unknown experiment {reference!r}.{nearest(reference, EXPERIMENTS)}")
