"""The mesh's axis along which batches are split, as traced code sees it: what runs on each device's rows alone.

The Trainer's programs are traced with a mesh in context. XLA cuts what they compute over the devices by itself, which
is right for networks. It is wrong for loops that run until all is done, as in physics: each turn would wait for all
devices. `over_data_axis` makes such code local.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

DATA = "data"
ROWS, WHOLE = PartitionSpec(DATA), PartitionSpec()  # split along the leading axis; the same on every device


def in_mesh(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Puts a mesh in context, for what is traced inside."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def over_data_axis(function: Callable[..., Any], in_specs: Any = ROWS, out_specs: Any = ROWS) -> Callable[..., Any]:
    """`function`, run by each device on its own rows: it waits for no other device, unless it says so itself.

    Calls `function` plainly where there is no mesh in context or one device, where it is local already (inside another
    `over_data_axis`, and in evaluation), and where rows cannot be split evenly. Can be nested in `vmap` and `grad`.

    Args:
      function: of pytrees of arrays. Over rows alone, it must be a function of each row by itself; where it says what
        it needs of the others (`sum_over_devices`), it may not do so in a loop or branch that depends on the rows.
      in_specs: for each argument `ROWS` or `WHOLE`, or a pytree of those; one for all.
      out_specs: likewise for its result.
    """

    def wrapped(*arguments: Any) -> Any:
        shards = data_shards()
        if shards == 1 or not _divisible(arguments, in_specs, shards):
            return function(*arguments)
        # Without check_vma: MJX's own loops don't pass it. Devices along the mesh's other axes repeat the work: cut
        # over them too (`axis_names={DATA}`), each turn of a loop would exchange data.
        mesh = jax.sharding.get_abstract_mesh()
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arguments)

    return wrapped


def data_shards() -> int:
    """Over how many devices rows are split here; 1 where code is local already."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or DATA not in mesh.axis_names or is_local() else mesh.shape[DATA]


def is_local() -> bool:
    """Whether this is traced inside `over_data_axis`, on one device's rows."""
    return DATA in jax.sharding.get_abstract_mesh().manual_axes


def sum_over_devices(tree: Any) -> Any:
    """Sums of local values over all devices, in one all-reduce; the values themselves where code is not local."""
    return jax.lax.psum(tree, DATA) if is_local() else tree


def mean_over_devices(tree: Any) -> Any:
    """As `sum_over_devices`, divided by the number of devices."""
    return jax.lax.pmean(tree, DATA) if is_local() else tree


def _divisible(arguments: tuple[Any, ...], specs: Any, shards: int) -> bool:
    specs = (specs,) * len(arguments) if isinstance(specs, PartitionSpec) else specs
    rows: list[int] = []
    for argument, spec in zip(arguments, specs, strict=True):
        jax.tree.map(
            lambda spec, part: rows.extend(leaf.shape[0] for leaf in jax.tree.leaves(part)) if spec == ROWS else None,
            spec,
            argument,
            is_leaf=lambda node: isinstance(node, PartitionSpec),
        )
    return all(count % shards == 0 for count in rows)
