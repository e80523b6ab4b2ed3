"""How a run's arrays are split over its devices, as typed values: `DataParallel()`, `FSDP()`, `Partitioned(...)`."""

import abc
import dataclasses
import fnmatch
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from jax.sharding import PartitionSpec

from galvanax.callbacks.patterns import matching
from galvanax.errors import ConfigError, nearest
from galvanax.trainer.data_axis import DATA

Shapes: TypeAlias = Mapping[str, Any]  # arrays, or what has their shape and dtype, by path
Split: TypeAlias = str | tuple[str, ...] | None  # of one dimension: over an axis, several, or none


@dataclasses.dataclass(frozen=True)
class Strategy(abc.ABC):
    """Says how parameters lie on the devices. Optimizer state and averages lie as the parameter that they belong to.

    Batches are always split along the mesh's axis `"data"`. A strategy changes where numbers are, never what they are,
    but for the order of sums.
    """

    @property
    def needs(self) -> int | None:
        """The number of devices, where the strategy says it."""
        return None

    def mesh_axes(self, count: int) -> dict[str, int]:
        """The mesh's axes and their sizes for so many devices, `"data"` among them.

        Raises:
          ConfigError: it needs another number of devices.
        """
        return {DATA: count}

    @abc.abstractmethod
    def param_specs(self, params: Shapes, axes: Mapping[str, int]) -> dict[str, PartitionSpec]:
        """How each parameter is split over the mesh's axes.

        Raises:
          ConfigError: a setting doesn't fit the parameters.
        """

    def warning(self, params: Shapes, axes: Mapping[str, int]) -> str | None:
        """What cannot be split as one would expect, if anything."""
        return None


@dataclasses.dataclass(frozen=True)
class DataParallel(Strategy):
    """Each device holds the whole state and its part of every batch: one all-reduce of the gradients a step."""

    def param_specs(self, params: Shapes, axes: Mapping[str, int]) -> dict[str, PartitionSpec]:
        """See `Strategy`."""
        return {name: PartitionSpec() for name in params}


@dataclasses.dataclass(frozen=True)
class FSDP(Strategy):
    """Fully sharded data parallelism: each device keeps 1/N of the large parameters and of their optimizer state.

    A step begins by gathering the parameters, all in one all-gather, and ends by updating each device's part: between
    steps a device holds 1/N, during one a whole copy of the parameters and gradients besides (Rajbhandari et al., 2020,
    "ZeRO").

    Attributes:
      min_size: parameters with fewer entries stay whole on each device.
    """

    min_size: int = 4096

    def __post_init__(self) -> None:
        if isinstance(self.min_size, bool) or not isinstance(self.min_size, int) or self.min_size < 1:
            raise ConfigError(f"FSDP.min_size={self.min_size!r}: expected a whole number of at least 1.")

    def param_specs(self, params: Shapes, axes: Mapping[str, int]) -> dict[str, PartitionSpec]:
        """Each along its largest dimension that the number of devices divides (of equal ones, the first)."""
        specs = {}
        for name, leaf in params.items():
            fitting = [place for place, size in enumerate(leaf.shape) if size % axes[DATA] == 0]
            split = max(fitting, key=lambda place: leaf.shape[place]) if fitting and self._is_large(leaf) else None
            specs[name] = PartitionSpec() if split is None else PartitionSpec(*[None] * split, DATA)
        return specs

    def warning(self, params: Shapes, axes: Mapping[str, int]) -> str | None:
        """See `Strategy`."""
        specs = self.param_specs(params, axes)
        whole = [
            f"{name} {tuple(leaf.shape)}"
            for name, leaf in params.items()
            if self._is_large(leaf) and specs[name] == PartitionSpec()
        ]
        if not whole:
            return None
        more = f" (and {len(whole) - 5} more)" if len(whole) > 5 else ""
        return f"FSDP: whole on each of {axes[DATA]} devices, which divide no dimension: {', '.join(whole[:5])}{more}."

    def _is_large(self, leaf: Any) -> bool:
        return math.prod(leaf.shape) >= self.min_size


@dataclasses.dataclass(frozen=True)
class Partitioned(Strategy):
    """Parameters split by rules over a mesh of several axes: tensor parallelism beside data parallelism.

    `Partitioned(axes={"data": 2, "model": 4}, rules=[("*/mlp/0/kernel", (None, "model")), ("*/mlp/1/kernel", ("model",
    None))])` cuts a layer's outputs and the next one's inputs over 4 devices, on each half of the batch.

    Attributes:
      axes: names and sizes, `"data"` among them; the sizes' product is the number of devices.
      rules: pairs of a pattern of a parameter's path (as in a shell; `*` matches slashes too) and what its dimensions
        are split over: an axis, a tuple of axes, or None. The first that matches counts; without one, a parameter is
        whole on each device.
    """

    axes: Mapping[str, int]
    rules: tuple[tuple[str, tuple[Split, ...]], ...] = ()

    def __post_init__(self) -> None:
        sizes = dict(self.axes) if isinstance(self.axes, Mapping) else {}
        whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes.values())
        if DATA not in sizes or not whole:
            raise ConfigError(
                f'Partitioned.axes={self.axes!r}: expected names and sizes with "data" among them, such as '
                '{"data": 2, "model": 4}.'
            )
        rules = []
        for rule in self.rules:
            try:
                pattern, splits = rule
                rules.append((pattern, tuple(tuple(one) if isinstance(one, list) else one for one in splits)))
                axes = [axis for split in rules[-1][1] for axis in _axes_of(split)]
                good = isinstance(pattern, str) and not isinstance(splits, str)
            except (TypeError, ValueError):
                good = False
            if not good:
                raise ConfigError(
                    f'Partitioned.rules has {rule!r}: expected pairs such as ("*/kernel", (None, "model")).'
                )
            for axis in axes:
                if axis not in sizes:
                    raise ConfigError(
                        f"Partitioned.rules: {pattern!r} names the axis {axis!r}.{nearest(str(axis), sizes)}"
                    )
            if len(set(axes)) < len(axes):
                raise ConfigError(f"Partitioned.rules: {pattern!r} splits two dimensions over one axis: {splits}.")
        object.__setattr__(self, "rules", tuple(rules))

    @property
    def needs(self) -> int:
        """See `Strategy`."""
        return math.prod(self.axes.values())

    def mesh_axes(self, count: int) -> dict[str, int]:
        """See `Strategy`."""
        if count != self.needs:
            raise ConfigError(
                f"Partitioned.axes={dict(self.axes)} are for {self.needs} devices, not {count}: "
                f"Trainer.devices={self.needs}, or other sizes."
            )
        return dict(self.axes)

    def param_specs(self, params: Shapes, axes: Mapping[str, int]) -> dict[str, PartitionSpec]:
        """See `Strategy`."""
        for pattern, _ in self.rules:
            matching("Partitioned.rules", (pattern,), params)  # raises where it matches none
        specs = {}
        for name, leaf in params.items():
            rule = next((rule for rule in self.rules if fnmatch.fnmatchcase(name, rule[0])), None)
            if rule is not None:
                self._check(rule, name, tuple(leaf.shape))
            specs[name] = PartitionSpec() if rule is None else PartitionSpec(*rule[1])
        return specs

    def _check(self, rule: tuple[str, tuple[Split, ...]], name: str, shape: tuple[int, ...]) -> None:
        pattern, splits = rule
        if len(splits) > len(shape):
            raise ConfigError(
                f"Partitioned.rules: {pattern!r} says {len(splits)} dimensions; {name} has {len(shape)}: {shape}."
            )
        for place, split in enumerate(splits):
            parts = math.prod(self.axes[axis] for axis in _axes_of(split))
            if shape[place] % parts:
                raise ConfigError(
                    f"Partitioned.rules: {pattern!r} splits dimension {place} of {name} {shape} into {parts} parts: "
                    f"{shape[place]} is no multiple of {parts}."
                )


def _axes_of(split: Any) -> tuple[str, ...]:
    return () if split is None else (split,) if isinstance(split, str) else tuple(split)
