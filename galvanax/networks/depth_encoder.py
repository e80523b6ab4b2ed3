"""What a network sees of a depth image: a few convolutions, and features that go beside the other observations."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from galvanax.networks.mlp import get_activation

LEVELS = 255  # of a stored image: 8 bits
KERNEL, STRIDE, PADDING = 3, 2, 1


@dataclasses.dataclass(frozen=True)
class Sight:
    """Which depth images a network gets, and how large its encoder is.

    Attributes:
      shape: `(height, width)` of an image, pixels.
      far: the depth (m) that counts as 1; what is farther, or not finite, counts as this far.
      channels: of each convolution, 3x3 with stride 2.
      features: entries that are handed on.
    """

    shape: tuple[int, int]
    far: float
    channels: tuple[int, ...] = (16, 32)
    features: int = 64


class DepthEncoder(nnx.Module):
    """Convolutions of a depth image, flattened, and a dense layer; an activation after each.

    Depth is divided by `sight.far`, no running statistics: a pixel's scale is known beforehand.

    Args:
      sight: of the images.
      activation: name of a function of `flax.nnx`.
      rngs: for the weights.

    Raises:
      ConfigError: the activation is unknown.
    """

    def __init__(self, sight: Sight, *, activation: str = "swish", rngs: nnx.Rngs):
        self.sight, self.activation = sight, get_activation(activation)
        before, (height, width) = 1, sight.shape
        convolutions = []
        for channels in sight.channels:
            convolutions.append(Convolution(before, channels, rngs=rngs))
            before, height, width = channels, -(-height // STRIDE), -(-width // STRIDE)
        self.convolutions = nnx.List(convolutions)
        self.dense = nnx.Linear(before * height * width, sight.features, rngs=rngs)

    def __call__(self, depth: jax.Array) -> jax.Array:
        """Features `(..., features)` of images `(..., height, width)`: depth (m), or its levels in uint8."""
        lead = depth.shape[:-2]
        images = scaled_depth(depth, self.sight.far).reshape(-1, *self.sight.shape, 1)
        for convolution in self.convolutions:
            images = self.activation(convolution(images))
        flat = images.reshape(images.shape[0], -1)
        return self.activation(self.dense(flat)).reshape(*lead, -1)


class Convolution(nnx.Module):
    """3x3, stride 2, one pixel of zeros around: as `nnx.Conv`, in one matrix product.

    XLA's own runs on one thread inside a loop on CPUs: with its gradient it took 11 to 46 times as long as this.
    """

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        shape = (KERNEL, KERNEL, in_channels, out_channels)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(out_channels))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps `(batch, height, width, in)` to `(batch, ceil(height / 2), ceil(width / 2), out)`."""
        batch, height, width, channels = images.shape
        padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
        rows, columns = -(-height // STRIDE), -(-width // STRIDE)
        neighbours = [
            padded[:, y : y + STRIDE * rows - 1 : STRIDE, x : x + STRIDE * columns - 1 : STRIDE]
            for y in range(KERNEL)
            for x in range(KERNEL)
        ]
        patches = jnp.concatenate(neighbours, axis=-1).reshape(-1, KERNEL * KERNEL * channels)
        kernel = self.kernel[...].reshape(KERNEL * KERNEL * channels, -1)
        return (patches @ kernel + self.bias[...]).reshape(batch, rows, columns, -1)


def scaled_depth(depth: jax.Array, far: float) -> jax.Array:
    """Depth (m), or its levels in uint8, as float32 in [0, 1]; NaN, where a camera knows nothing, is 1."""
    if depth.dtype == jnp.uint8:
        return depth.astype(jnp.float32) / LEVELS
    return jnp.clip(jnp.where(jnp.isnan(depth), far, depth) / far, 0.0, 1.0)


def depth_levels(depth: jax.Array, far: float) -> jax.Array:
    """Depth (m) in 8 bits, to `far / 510` at worst: what a rollout stores."""
    return jnp.round(scaled_depth(depth, far) * LEVELS).astype(jnp.uint8)


def depth_metres(levels: jax.Array, far: float) -> jax.Array:
    """The depth (m) that `depth_levels` made levels of, but for rounding."""
    return scaled_depth(levels, far) * far
