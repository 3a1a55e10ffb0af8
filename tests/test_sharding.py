"""Where arrays are placed. What needs several devices runs in test_parallel.py."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from ddpm_jax import sharding


def rule(shape, devices, split=True):
    """The axes of an array, of that shape, in a training state on so many devices."""
    mesh = AbstractMesh((devices,), (sharding.DATA_AXIS,))
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    return sharding.weight_shardings({"x": leaf}, mesh, split=split)["x"].spec


@pytest.mark.parametrize(
    "shape, devices, axis",
    [
        ((3, 3, 300, 128), 8, 3),  # 300 is longer, but no multiple of 8
        ((3, 3, 300, 128), 6, 2),
        ((3, 3, 128, 300), 6, 3),
        ((3, 3, 128, 300), 8, 2),
        ((512, 512), 4, 1),  # the last of equals
        ((64, 64), 8, 1),  # just large enough
        ((64, 63), 8, None),  # too small
        ((67, 71), 8, None),  # nothing divides
        ((300, 301), 7, 1),
        ((), 8, None),
    ],
)
def test_the_rule_for_weights(shape, devices, axis):
    split = [None] * len(shape)
    if axis is not None:
        split[axis] = sharding.DATA_AXIS
    assert rule(shape, devices) == (PartitionSpec(*split) if axis is not None else PartitionSpec())
    assert rule(shape, devices, split=False) == PartitionSpec()


def test_placed_weights_stay_where_they_are():
    mesh = sharding.data_mesh()
    weights = sharding.place({"x": np.ones(3, np.float32)}, mesh, split=False)
    assert sharding.place(weights, mesh, split=False)["x"] is weights["x"]
    assert sharding.mesh_of(weights) == mesh
    assert sharding.mesh_of({"x": jnp.ones(3), "y": np.ones(3)}) == sharding.data_mesh()  # committed to no device


def test_the_mesh_of_committed_weights():
    explicit = Mesh(np.array(jax.devices()[:1]), ("rows",), axis_types=(AxisType.Explicit,))
    weights = jax.device_put(jnp.ones(3), jax.sharding.NamedSharding(explicit, PartitionSpec()))
    found = sharding.mesh_of({"x": weights})
    assert found.axis_names == ("rows",) and found.axis_types == (AxisType.Auto,)
    alone = sharding.mesh_of(jax.device_put(jnp.ones(3), jax.devices()[0]))
    assert alone.axis_names == (sharding.DATA_AXIS,) and alone.size == 1


def test_a_process_writes_only_its_own_copies(untyped):
    """Of rows that several processes hold, the one with replica 0 writes them."""
    part = lambda replica, start: SimpleNamespace(replica_id=replica, index=(slice(start, None),), data=np.zeros(1))
    held = SimpleNamespace(addressable_shards=[part(1, 0), part(0, 4)])
    assert [start for start, _ in sharding.own_rows(held)] == [4]
