"""Where arrays live: one axis "data" over all devices, images split along it, weights on each."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddpm_jax.types import PyTree

DATA_AXIS = "data"


def data_mesh(devices: Any = None) -> Mesh:
    """Return the mesh over all devices (or those given) along which batches are split.

    Its axis is of type Auto: linen's layers do not know jax's newer default, explicit axes.

    Example:
        >>> data_mesh().axis_names
        ('data',)
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), (AxisType.Auto,), devices=devices)


def mesh_of(weights: PyTree) -> Mesh:
    """Return the mesh that weights were placed on by their owner, or the mesh over all devices.

    Weights that nobody placed are not committed to a device, and do not decide.
    """
    for leaf in jax.tree.leaves(weights):
        if isinstance(leaf, jax.Array) and leaf.committed:
            if isinstance(leaf.sharding, NamedSharding):
                return auto(leaf.sharding.mesh)
            return data_mesh(sorted(leaf.sharding.device_set, key=lambda device: device.id))
    return data_mesh()


def auto(mesh: Mesh) -> Mesh:
    """Return a mesh with axes of type Auto, whatever type its maker gave them."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def replicate(tree: PyTree, mesh: Mesh | None = None) -> PyTree:
    """Put weights whole on every device, once: calls of `sample` then find them there.

    Without it, `sample` on several devices copies the weights to each of them in every call.

    Args:
        tree: Params, or any tree of arrays.
        mesh: the devices; all of them if None.

    Example:
        >>> params = replicate(ddpm_jax.load())
    """
    return place(tree, data_mesh() if mesh is None else auto(mesh), split=False)


def place(tree: PyTree, mesh: Mesh, *, split: bool) -> PyTree:
    """Put arrays on all devices of a mesh: split along their first axis, or whole on each.

    Weights that stand on the mesh already, in whatever way, stay as they are.
    """
    spec = PartitionSpec(mesh.axis_names[0]) if split else PartitionSpec()
    sharding = NamedSharding(mesh, spec)

    def put(leaf):
        settled = isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)
        settled = settled and auto(leaf.sharding.mesh) == mesh
        if settled and not split:
            return leaf
        return jax.device_put(leaf, sharding) if jax.process_count() == 1 else _put_own_part(leaf, sharding)

    return jax.tree.map(put, tree)


def _put_own_part(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Put an array that every process holds whole on devices of all of them, each on its own."""
    if jnp.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        data = _put_own_part(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def own_rows(array: jax.Array) -> list[tuple[int, np.ndarray]]:
    """Return (first row, rows) for each part of an array, split along its first axis, that this process is to write.

    Among all processes every row comes once.

    Example:
        >>> [(start, rows.shape) for start, rows in own_rows(jnp.zeros((4, 2)))]
        [(0, (4, 2))]
    """
    parts = {}
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            parts[shard.index[0].start or 0] = np.asarray(shard.data)
    return sorted(parts.items(), key=lambda part: part[0])


def constrain(state: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Keep a stack of batches [k, b, ...] split along the mesh inside a compiled program."""
    if mesh is None:
        return state
    sharding = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names[0]))
    return jax.lax.with_sharding_constraint(state, sharding)
