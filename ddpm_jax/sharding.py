"""Where arrays live: one axis "data" over all devices, images split along it, weights on each."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddpm_jax.files import locked
from ddpm_jax.types import PyTree

DATA_AXIS = "data"
LEAST_SPLIT = 4096  # smaller arrays are not worth a message


def data_mesh(devices: Any = None) -> Mesh:
    """Return the mesh over all devices (or those given) along which batches are split, process by process.

    Its axis is of type Auto: linen's layers do not know jax's newer default, explicit axes.

    Example:
        >>> data_mesh().axis_names
        ('data',)
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda device: device.process_index)  # a process's rows of a batch are neighbours
    return Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def mesh_of(weights: PyTree) -> Mesh:
    """Return the mesh that weights are committed to, or the mesh over all devices.

    Uncommitted weights do not determine the mesh.
    """
    for leaf in jax.tree.leaves(weights):
        if isinstance(leaf, jax.Array) and leaf.committed:
            if isinstance(leaf.sharding, NamedSharding) and isinstance(leaf.sharding.mesh, Mesh):
                return auto(leaf.sharding.mesh)
            return data_mesh(sorted(leaf.sharding.device_set, key=lambda device: device.id))
    return data_mesh()


def auto(mesh: Mesh) -> Mesh:
    """Return a mesh with axes of type Auto, whatever type its maker gave them."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def replicate(tree: PyTree, mesh: Mesh | None = None) -> PyTree:
    """Replicate weights on every device, once for all calls of `sample`.

    Without it, `sample` on several devices copies the weights to each of them in every call.

    Args:
        tree: Params, or any tree of arrays.
        mesh: the devices; all of them if None.

    Example:
        >>> params = replicate(ddpm_jax.load("digits-16"))
    """
    return place(tree, data_mesh() if mesh is None else auto(mesh), split=False)


def place(tree: PyTree, mesh: Mesh, *, split: bool) -> PyTree:
    """Put arrays on all devices of a mesh: split along their first axis, or whole on each.

    Weights that stand on the mesh already, in whatever way, stay as they are.
    """
    spec = PartitionSpec(mesh.axis_names[0]) if split else PartitionSpec()
    sharding = NamedSharding(mesh, spec)

    def settle(leaf):
        placed = leaf.sharding if isinstance(leaf, jax.Array) else None
        there = placed.mesh if isinstance(placed, NamedSharding) else None
        settled = isinstance(there, Mesh) and auto(there) == mesh
        return leaf if settled and not split else put(leaf, sharding)

    return jax.tree.map(settle, tree)


def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Shard an array of which every process has a full copy: each fills its own shards, and nothing is sent."""
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def weight_shardings(tree: PyTree, mesh: Mesh, *, split: bool) -> PyTree:
    """Return where each array of a training state lies.

    The rule: whole on every device; or, with `split`, arrays of at least LEAST_SPLIT numbers are split along the
    longest axis that the devices divide (the last of equals), whatever they are: a weight, its moments and its averages
    have one shape, and so lie alike.

    Example:
        >>> mesh = data_mesh()
        >>> tuple(weight_shardings({"kernel": jnp.zeros((3, 3, 64, 128))}, mesh, split=True)["kernel"].spec)
        (None, None, None, 'data')
    """
    axis, count = mesh.axis_names[0], mesh.shape[mesh.axis_names[0]]

    def of(leaf) -> NamedSharding:
        spec: list[str | None] = [None] * len(leaf.shape)
        divided = [place for place, length in enumerate(leaf.shape) if length % count == 0]
        if split and divided and math.prod(leaf.shape) >= LEAST_SPLIT:
            spec[max(divided, key=lambda place: (leaf.shape[place], place))] = axis
            return NamedSharding(mesh, PartitionSpec(*spec))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(of, tree)


def wait_for_all(moment: str) -> None:
    """Wait until every process has come to this moment, where there are several."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(moment)


def everywhere(good: bool) -> bool:
    """Tell whether something is so in all processes, and wait for them."""
    if jax.process_count() == 1:
        return good
    return bool(multihost_utils.process_allgather(np.array(good)).all())


@contextlib.contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder for this job, as `files.locked`; its first process does so for all of them."""
    with contextlib.ExitStack() as stack:
        error = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(locked(folder, what))
            except OSError as found:
                error = found
        if not everywhere(error is None):
            raise error or BlockingIOError(f"The first process cannot hold {folder}, and says why.")
        yield


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
