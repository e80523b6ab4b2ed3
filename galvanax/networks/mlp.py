"""A multilayer perceptron."""

import difflib
import itertools
from collections.abc import Callable, Sequence

import jax
from flax import nnx

from galvanax.errors import ConfigError

# The functions of `flax.nnx` that act on one number, by name.
ACTIVATIONS = (
    "celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "identity", "leaky_relu",
    "log_sigmoid", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softplus", "swish", "tanh",
)  # fmt: skip


def get_activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation function of `flax.nnx` by this name.

    Raises:
      ConfigError: there is none; names the nearest.
    """
    if name not in ACTIVATIONS:
        near = difflib.get_close_matches(name, ACTIVATIONS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"activation={name!r} is none of flax.nnx; {hint}known: {', '.join(ACTIVATIONS)}")
    return getattr(nnx, name)


class MLP(nnx.Module):
    """Dense layers with an activation after each but the last.

    Args:
      in_features: entries of the input.
      hidden: width of each hidden layer; `()` makes an affine map.
      out_features: entries of the output.
      activation: name of a function of `flax.nnx`.
      rngs: streams of random numbers for the weights.

    Raises:
      ConfigError: the activation is unknown.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        *,
        activation: str = "swish",
        rngs: nnx.Rngs,
    ) -> None:
        widths = (in_features, *hidden, out_features)
        self.activation = get_activation(activation)
        self.layers = nnx.List(nnx.Linear(before, after, rngs=rngs) for before, after in itertools.pairwise(widths))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `(..., in_features)` to `(..., out_features)`."""
        *hidden, last = self.layers
        for layer in hidden:
            inputs = self.activation(layer(inputs))
        return last(inputs)
