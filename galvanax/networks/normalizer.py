"""Normalisation by statistics that travel with the weights."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from galvanax.errors import DataError

# A dimension that varies less than this, relative to its mean or to 1, holds rounding errors alone.
RELATIVE_STD_FLOOR = 1e-6


class Statistic(nnx.Variable):
    """A number found in the data: saved with the weights, never trained."""


class Normalizer(nnx.Module):
    """Shifts and scales each dimension by a mean and a standard deviation: the identity until `set`.

    Args:
      dim: number of dimensions.
    """

    def __init__(self, dim: int) -> None:
        self.mean = Statistic(jnp.zeros(dim))
        self.std = Statistic(jnp.ones(dim))

    def set(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Stores statistics, in float32.

        A dimension that is constant in the data is shifted but not scaled, so that a value seen later that differs a
        little stays little.

        Args:
          mean: `(dim,)`, best in float64.
          std: `(dim,)`, likewise.

        Raises:
          DataError: wrong shape, not finite, or a negative deviation; names the dimension.
        """
        for name, values in (("mean", mean), ("std", std)):
            values = np.asarray(values)
            if values.shape != self.mean.shape:
                raise DataError(f"Normalizer.set: {name} has shape {values.shape}; expected {self.mean.shape}")
            bad = ~np.isfinite(values) | ((values < 0) if name == "std" else False)
            if bad.any():
                first = int(np.argmax(bad))
                raise DataError(f"Normalizer.set: {name}[{first}]={values[first]}; expected a finite number >= 0")
        mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        constant = std <= RELATIVE_STD_FLOOR * np.maximum(np.abs(mean), 1.0)
        self.mean[...] = jnp.asarray(mean, jnp.float32)
        self.std[...] = jnp.asarray(np.where(constant, 1.0, std), jnp.float32)

    def normalize(self, values: jax.Array) -> jax.Array:
        """Maps `(..., dim)` in natural units to mean 0 and deviation 1."""
        return (values - self.mean[...]) / self.std[...]

    def denormalize(self, values: jax.Array) -> jax.Array:
        """Maps normalised `(..., dim)` back to natural units."""
        return values * self.std[...] + self.mean[...]
