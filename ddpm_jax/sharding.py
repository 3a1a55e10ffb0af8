"""Placement of arrays: a mesh of one axis "data" over all devices, images sharded along it, weights replicated."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from ddpm_jax.files import locked
from ddpm_jax.types import PyTree

DATA_AXIS = "data"
LEAST_SPLIT = 4096  # smaller arrays are replicated: sending their shards costs more than it saves


def data_mesh(devices: Any = None) -> Mesh:
    """Return the mesh over all devices, or the given ones, along which batches are sharded.

    The devices of a process are neighbours. The axis has type Auto, since linen's layers do not support explicit axes,
    jax's newer default.

    Example:
        >>> data_mesh().axis_names
        ('data',)
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(
        devices, key=lambda device: device.process_index
    )  # so that each process has neighbouring rows of a batch
    return Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def mesh_of(weights: PyTree) -> Mesh:
    """Return the mesh of the devices that the weights are committed to, or the mesh over all devices.

    Uncommitted weights do not determine the mesh.
    """
    for leaf in jax.tree.leaves(weights):
        if isinstance(leaf, jax.Array) and leaf.committed:
            if isinstance(leaf.sharding, NamedSharding) and isinstance(leaf.sharding.mesh, Mesh):
                return auto(leaf.sharding.mesh)
            return data_mesh(sorted(leaf.sharding.device_set, key=lambda device: device.id))
    return data_mesh()


def mesh_of_call(mesh: Any, weights: PyTree, *, traced: bool) -> Mesh | None:
    """Return the mesh that a public function runs on, or None for a caller's trace, which places its arrays itself.

    Args:
        mesh: the function's argument; None leaves the choice to the weights (`mesh_of`).
        weights: of the network.
        traced: whether an argument is a tracer.

    Raises:
        TypeError: another object than a mesh.
    """
    if mesh is None:
        return None if traced else mesh_of(weights)
    if not isinstance(mesh, Mesh):
        raise TypeError(f"`mesh` must be a jax.sharding.Mesh, as sharding.data_mesh() makes one, not {mesh!r}.")
    return auto(mesh)


def padded(tree: PyTree, mesh: Mesh) -> PyTree:
    """Return arrays with copies of their last row added, so that their first axis splits evenly over the mesh.

    Example:
        >>> padded(jnp.arange(3), data_mesh()).shape  # on one device
        (3,)
    """
    count = mesh.shape[mesh.axis_names[0]]

    def pad(array: Any) -> Any:
        padding = -array.shape[0] % count
        return jnp.pad(array, ((0, padding), *[(0, 0)] * (array.ndim - 1)), mode="edge") if padding else array

    return jax.tree.map(pad, tree)


def auto(mesh: Mesh) -> Mesh:
    """Return the mesh with all axes of type Auto."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def replicate(tree: PyTree, mesh: Mesh | None = None) -> PyTree:
    """Replicate weights on every device once, so that calls of `sample` do not copy them.

    Without this, each call of `sample` on several devices copies the weights to all of them.

    Args:
        tree: Params, or any tree of arrays.
        mesh: the devices; None for all of them.

    Example:
        >>> params = replicate(ddpm_jax.load("digits-16"))
    """
    return place(tree, data_mesh() if mesh is None else auto(mesh), split=False)


def place(tree: PyTree, mesh: Mesh, *, split: bool) -> PyTree:
    """Put arrays on the devices of a mesh: sharded along their first axis, or replicated.

    Weights that are on the mesh already keep their sharding.
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
    """Shard an array of which every process has a full copy; each process fills its own shards, nothing is sent."""
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def weight_shardings(tree: PyTree, mesh: Mesh | AbstractMesh, *, split: bool) -> PyTree:
    """Return the sharding of each array of a training state.

    Arrays are replicated. With `split`, those of at least LEAST_SPLIT numbers are sharded along the longest axis that
    the number of devices divides (the last of equally long ones). The rule looks at shapes only, so a weight, its
    moments and its averages have the same sharding.

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
    """Wait until every process has reached this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(moment)


def everywhere(good: bool) -> bool:
    """Wait for all processes, and tell whether `good` is true in all of them."""
    if jax.process_count() == 1:
        return good
    return bool(multihost_utils.process_allgather(np.array(good)).all())


@contextlib.contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Lock a folder for this job, as `files.locked` does; the first process holds the lock for all."""
    with contextlib.ExitStack() as stack:
        error = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(locked(folder, what))
            except OSError as found:
                error = found
        if not everywhere(error is None):
            raise error or BlockingIOError(f"The first process cannot lock {folder}; its message says why.")
        yield


def own_rows(array: jax.Array) -> list[tuple[int, np.ndarray]]:
    """Return (first row, rows) of each shard that this process is to write, of an array sharded along its first axis.

    Over all processes every row occurs once.

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
    """Keep a stack of batches [k, b, ...] sharded along the mesh inside a compiled program."""
    if mesh is None:
        return state
    sharding = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names[0]))
    return jax.lax.with_sharding_constraint(state, sharding)
