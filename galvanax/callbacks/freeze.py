"""Parameters that stay as they are."""

import dataclasses
from typing import Any

import optax

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.patterns import check_patterns, matching
from galvanax.errors import ConfigError


@dataclasses.dataclass
class Freeze(Callback):
    """Trains the other parameters only: frozen ones keep every bit, and the optimizer keeps no moments for them.

    Put it before `GradientClipping`, so that the norm that is clipped is of what trains. The metric `train/grad_norm`
    is of all parameters. Statistics that a model collects itself (batch normalisation) are no parameters and go on.

    Attributes:
      patterns: paths of the frozen parameters, such as `("network/layers/0/*",)`; `*` matches slashes too.
    """

    patterns: tuple[str, ...]

    def __post_init__(self) -> None:
        check_patterns("Freeze.patterns", self.patterns)
        if not self.patterns:
            raise ConfigError('Freeze.patterns is empty: name what to freeze, such as ("layers/0/*",).')

    def wrap_optimizer(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """See `Callback`."""
        return optax.partition({"train": optimizer, "freeze": optax.set_to_zero()}, self._labels)

    def _labels(self, params: dict[str, Any]) -> dict[str, str]:
        frozen = matching("Freeze.patterns", self.patterns, params)
        if len(frozen) == len(params):
            raise ConfigError(f"Freeze.patterns={self.patterns} match all {len(params)} parameters: none would train.")
        return {path: "freeze" if path in frozen else "train" for path in params}
