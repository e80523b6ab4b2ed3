"""WHERE a run happens: the devices, and how batches and state lie on them."""

import dataclasses

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from galvanax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Devices:
    """Data parallelism over a row of devices: each holds the whole state and its part of every batch.

    Attributes:
      mesh: one axis, `"data"`.
    """

    mesh: Mesh

    @classmethod
    def choose(cls, devices: "str | int") -> "Devices":
        """`"auto"` for all devices there are, or how many.

        Raises:
          ConfigError: there are not so many.
        """
        available = jax.devices()
        count = len(available) if devices == "auto" else devices
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(available):
            raise ConfigError(
                f'devices={devices!r}: expected "auto" or 1 to {len(available)} ({available[0].platform}).'
            )
        return cls(jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=available[:count]))

    @property
    def count(self) -> int:
        """How many devices."""
        return self.mesh.devices.size

    @property
    def replicated(self) -> NamedSharding:
        """Whole on every device: the state, the keys."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def stacked(self) -> NamedSharding:
        """A stack of batches `(stack, batch, ...)`, split along the batch."""
        return NamedSharding(self.mesh, PartitionSpec(None, "data"))
