"""WHERE a run happens: the devices, and how batches and state lie on them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from galvanax.errors import ConfigError
from galvanax.trainer.data_axis import DATA, WHOLE, is_local
from galvanax.trainer.state import Arrays, TrainState
from galvanax.trainer.strategy import DataParallel, Shapes, Strategy

MORE = {
    "cpu": "XLA_FLAGS=--xla_force_host_platform_device_count={count} cuts a CPU into so many",
    "gpu": "CUDA_VISIBLE_DEVICES decides which GPUs a process sees",
}


@dataclasses.dataclass(frozen=True)
class Devices:
    """A mesh of devices, and the strategy that says which part of the state each of them holds.

    Attributes:
      mesh: its axis `"data"` is the one along which batches are split.
      strategy: how parameters are split.
    """

    mesh: Mesh
    strategy: Strategy

    @classmethod
    def choose(cls, devices: "str | int | Sequence[int]", strategy: Strategy | None = None) -> "Devices":
        """Makes the mesh.

        Args:
          devices: `"auto"` for all devices there are (or as many as the strategy needs), how many, or their ids.
          strategy: by default `DataParallel()`.

        Raises:
          ConfigError: there are no such devices, or not as many as the strategy needs.
        """
        strategy = DataParallel() if strategy is None else strategy
        if not isinstance(strategy, Strategy):
            raise ConfigError(
                f"Trainer.strategy={strategy!r}: expected gx.DataParallel(), gx.FSDP(...) or gx.Partitioned(...)."
            )
        available = jax.devices()
        if devices == "auto" and strategy.needs is not None and strategy.needs > len(available):
            raise _too_many(f"{type(strategy).__name__} needs {strategy.needs} devices", strategy.needs, available)
        chosen = available[: strategy.needs] if devices == "auto" else _named(devices, available)
        axes = strategy.mesh_axes(len(chosen))
        types = (AxisType.Auto,) * len(axes)
        return cls(jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=chosen), strategy)

    @property
    def count(self) -> int:
        """How many devices."""
        return self.mesh.devices.size

    @property
    def shards(self) -> int:
        """Parts that a batch is split into."""
        return self.mesh.shape[DATA]

    @property
    def replicated(self) -> NamedSharding:
        """Whole on every device: the step, the keys."""
        return NamedSharding(self.mesh, WHOLE)

    @property
    def stacked(self) -> NamedSharding:
        """A stack of batches `(stack, batch, ...)`, split along the batch."""
        return NamedSharding(self.mesh, PartitionSpec(None, DATA))

    def params(self, params: Shapes) -> dict[str, NamedSharding]:
        """How parameters lie on the devices.

        Raises:
          ConfigError: a setting of the strategy doesn't fit them.
        """
        return {name: NamedSharding(self.mesh, spec) for name, spec in self._specs(params).items()}

    def place(self, state: TrainState, carry: Any) -> TrainState:
        """An abstract state whose leaves say how they lie on the devices.

        Optimizer state and callbacks' slots lie as the parameter whose path their own ends with and whose shape they
        have; everything else is whole on every device, but for the task's carry.

        Args:
          state: shapes and dtypes.
          carry: `PartitionSpec`s of `state.carry`, or of its subtrees.
        """
        params = self.params(state.params)

        def of(path: Any, leaf: Any) -> NamedSharding:
            field, _, rest = jax.tree_util.keystr(path, simple=True, separator="/").partition("/")
            while rest and field in ("params", "opt_state", "slots"):
                if rest in params and state.params[rest].shape == leaf.shape:
                    return params[rest]
                rest = rest.partition("/")[2]
            return self.replicated

        shardings = jax.tree_util.tree_map_with_path(of, state)
        carried = jax.tree.map(
            lambda spec, part: jax.tree.map(lambda _: NamedSharding(self.mesh, spec), part),
            carry,
            state.carry,
            is_leaf=lambda node: isinstance(node, PartitionSpec),
        )
        shardings = shardings.replace(carry=carried)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, shardings
        )

    # Traced.

    def whole(self, params: Arrays) -> Arrays:
        """The parameters as a step computes with them: whole along `"data"`, all gathered at once."""
        if self.shards == 1:
            return params
        specs = self._specs(params)
        packed = {name: spec for name, spec in specs.items() if _axes(spec) == [DATA]}
        # What lies over several axes is left to XLA.
        params = {
            name: jax.lax.with_sharding_constraint(leaf, NamedSharding(self.mesh, _without_data(specs[name])))
            if name not in packed and DATA in _axes(specs[name])
            else leaf
            for name, leaf in params.items()
        }
        if not packed:
            return params
        places = {name: list(spec).index(DATA) for name, spec in packed.items()}
        gather = jax.shard_map(
            lambda parts: _gather(parts, places), mesh=jax.sharding.get_abstract_mesh(), in_specs=(packed,),
            out_specs=WHOLE, axis_names={DATA}, check_vma=False,
        )  # fmt: skip
        return {**params, **gather({name: params[name] for name in packed})}

    def reducing(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimizer, for gradients whose sums over the devices are taken before it sees them, all at once.

        Without that, XLA would take the sum of each part by itself.
        """
        if self.count == 1 or isinstance(self.strategy, DataParallel):
            return optimizer

        def update(grads: Arrays, *rest: Any, **more: Any) -> Any:
            if not is_local():
                specs = self._specs(grads)
                grads = {
                    name: jax.lax.with_sharding_constraint(leaf, NamedSharding(self.mesh, _without_data(specs[name])))
                    for name, leaf in grads.items()
                }
            return optimizer.update(grads, *rest, **more)

        return optimizer._replace(update=update)

    def _specs(self, params: Shapes) -> dict[str, PartitionSpec]:
        return self.strategy.param_specs(params, dict(self.mesh.shape))


def constrain(tree: Any, like: Any) -> Any:
    """A traced pytree, lying on the devices as `like`'s leaves say; plainly where there is one device."""
    return jax.tree.map(
        lambda leaf, wanted: (
            jax.lax.with_sharding_constraint(leaf, wanted.sharding) if len(wanted.sharding.device_set) > 1 else leaf
        ),
        tree,
        like,
    )


def _named(devices: Any, available: list[Any]) -> list[Any]:
    """The first so many devices, or those with these ids."""
    platform = available[0].platform
    if isinstance(devices, int) and not isinstance(devices, bool) and devices >= 1:
        if devices > len(available):
            raise _too_many(f"Trainer.devices={devices}", devices, available)
        return available[:devices]
    by_id = {device.id: device for device in available}
    known = ", ".join(map(str, by_id))
    expected = f'expected "auto", 1 to {len(available)}, or ids of devices, of {known} ({platform}).'
    if isinstance(devices, str | int) or not isinstance(devices, Sequence) or not devices:
        raise ConfigError(f"Trainer.devices={devices!r}: {expected}")
    if len(set(devices)) < len(devices):
        raise ConfigError(f"Trainer.devices={devices!r} names a device twice: {expected}")
    for one in devices:
        if one not in by_id:
            raise ConfigError(f"Trainer.devices={devices!r}: there is no device {one!r}: {expected}")
    return [by_id[one] for one in devices]


def _too_many(what: str, count: int, available: list[Any]) -> ConfigError:
    platform = available[0].platform
    more = MORE.get(platform, "").format(count=count)
    return ConfigError(f"{what}: there are {len(available)} ({platform}).{f' {more}.' if more else ''}")


def _axes(spec: PartitionSpec) -> list[str]:
    return [axis for split in spec for axis in ((split,) if isinstance(split, str) else split or ())]


def _without_data(spec: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(
        *(tuple(axis for axis in split if axis != DATA) or None if isinstance(split, tuple) else
          None if split == DATA else split for split in spec)
    )  # fmt: skip


def _gather(parts: Arrays, places: dict[str, int]) -> Arrays:
    """Local parts to whole arrays, through one flat array for each dtype.

    Args:
      parts: by name.
      places: the dimension that each is split along.
    """
    whole: Arrays = {}
    for dtype in dict.fromkeys(leaf.dtype for leaf in parts.values()):
        names = [name for name, leaf in parts.items() if leaf.dtype == dtype]
        flat = jnp.concatenate([parts[name].ravel() for name in names])
        rows = jax.lax.all_gather(flat, DATA)
        ends = np.cumsum([parts[name].size for name in names]).tolist()
        for name, end in zip(names, ends, strict=True):
            shape, place = parts[name].shape, places[name]
            blocks = rows[:, end - math.prod(shape) : end].reshape(-1, *shape)
            full = (*shape[:place], shape[place] * blocks.shape[0], *shape[place + 1 :])
            whole[name] = jnp.moveaxis(blocks, 0, place).reshape(full)
    return whole
