"""Prepare a batch whose likelihood is asked for: check the arguments, place weights and images on the devices."""

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ddpm_jax import sharding
from ddpm_jax.models import winograd
from ddpm_jax.params import Params, check_images, check_labels, check_params
from ddpm_jax.random_keys import image_numbers, threefry_key
from ddpm_jax.types import Array, Images, Labels, PyTree, RandomKey
from ddpm_jax.validation import check

LEVELS = 256
BETWEEN = 2 / (LEVELS - 1)  # from one level of a pixel to the next, on the scale of the data
_OFF_LEVEL = 0.01  # levels by which a float32 pixel may miss its own


class Batch(NamedTuple):
    """What a program takes, its arrays placed.

    Attributes:
        weights: of the network.
        key: of the batch.
        indices: [b] the images' numbers.
        x_0: [b, h, w, c] the images.
        labels: [b], or None for a network without classes.
        count: images without the padding that splits them evenly over the devices.
        quick: compile at LLVM's level 1, which does for plain convolutions.
    """

    weights: PyTree
    key: jax.Array
    indices: Array
    x_0: Array
    labels: Array | None
    count: int
    quick: bool


def prepare(
    params: Params,
    key: RandomKey,
    x_0: Images,
    class_labels: Labels,
    first_index: Any,
    mesh: Mesh | None,
    *,
    on_levels: bool,
    evaluations: int = 0,
) -> Batch:
    """Return the batch of a call of `bits_per_dim` and its kin.

    Args:
        params, key, x_0, class_labels, first_index, mesh: as in `bits_per_dim`.
        on_levels: refuse images whose pixels are not of the 256 levels.
        evaluations: of the network in the program; on a CPU, many of them pay for faster convolutions. 0: plain ones.

    Raises:
        TypeError, ValueError: as `bits_per_dim`.
    """
    check_model(params)
    unet = params.config.unet
    check_images("x_0", unet, x_0)
    check(len(x_0) > 0, f"`x_0` has shape {tuple(x_0.shape)}; it must hold at least one image.")
    if on_levels and not isinstance(x_0, jax.core.Tracer):
        _check_levels(np.asarray(x_0))
    key = threefry_key(key)
    indices = image_numbers(first_index, len(x_0))
    labels = check_labels(unet, class_labels, len(x_0))
    x_0 = jnp.asarray(x_0, jnp.float32)
    batch = Batch(params.weights, key, indices, x_0, labels, len(x_0), unet.dtype == "float32")
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(batch))
    mesh = sharding.mesh_of_call(mesh, params.weights, traced=traced)
    if mesh is None:
        return batch
    split = sharding.padded((indices, x_0, labels), mesh)
    weights = params.weights
    if not traced:
        weights = winograd.fast_weights(unet, weights, len(split[0]) // mesh.size, evaluations)
        weights, key = sharding.place((weights, key), mesh, split=False)
        split = sharding.place(split, mesh, split=True)
    quick = batch.quick and not winograd.is_transformed(weights)
    indices, x_0, labels = split
    return Batch(weights, key, indices, x_0, labels, batch.count, quick)


def check_model(params: Params) -> None:
    """Refuse anything but Params of a variance-preserving process, whose output is a prediction."""
    check_params(params)
    params.config.unet.check_prediction()
    kind = params.config.schedule.kind
    check(
        kind == "vp",
        f"Likelihoods are those of variance-preserving schedules (`kind` 'vp'), not of {kind!r}. Take a DDPM's "
        "checkpoint.",
    )


def _check_levels(x_0: np.ndarray) -> None:
    levels = (np.asarray(x_0, np.float64) + 1) / BETWEEN
    check(np.isfinite(levels).all(), "`x_0` has pixels that are not finite. Leave such images out.")
    low, high = x_0.min(), x_0.max()
    check(
        -1e-4 <= levels.min() and levels.max() <= LEVELS - 1 + 1e-4,
        f"`x_0` reaches from {low:g} to {high:g}; it must lie in -1 .. 1, the scale of the data: bytes / 127.5 - 1.",
    )
    off = np.abs(levels - levels.round()).max()
    check(
        off < _OFF_LEVEL,
        f"`x_0` has pixels {off:.2f} of a level away from the 256 levels k / 127.5 - 1, whose probability is asked "
        "for. Round it: (np.round((x_0 + 1) * 127.5) / 127.5 - 1).astype(np.float32).",
    )
