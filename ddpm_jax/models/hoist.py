"""Work hoisted out of the sampling loop: casting weights, time projections.

Each is one plain function. The network stays as it is: `flax.linen.intercept_methods` puts the hoisted results in the
place of its layers. `models.winograd` says what its convolutions gain.
"""

from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax.config.unet import UNetConfig
from ddpm_jax.models import winograd
from ddpm_jax.models.layers import ACTIVATIONS, TimeProjection, TimestepEmbedding, shapes_only
from ddpm_jax.models.unet import UNet
from ddpm_jax.types import PyTree

TIME_LAYERS = ("time_proj", "time_embedding", "class_embedding")


def cast_weights(config: UNetConfig, weights: PyTree) -> PyTree:
    """Return the weights, with kernels in the dtype in which the network computes."""
    if config.dtype == "float32":
        return weights
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _cast(config, path, leaf), weights)


def _cast(config: UNetConfig, path: tuple, leaf: jax.Array) -> jax.Array:
    names = [entry.key for entry in path]
    computes_low = names[-1] == "kernel" and names[0] not in TIME_LAYERS  # norms and the time embedding stay float32
    return leaf.astype(config.dtype) if computes_low else leaf


def project_times(config: UNetConfig, weights: PyTree, t: jax.Array) -> dict[str, jax.Array]:
    """Return the output of every `time_emb_proj` layer at n times, as path -> [n, width].

    This is for networks without classes, whose time embedding depends on t alone.
    """
    features = TimeProjection(config).apply({"params": weights.get("time_proj", {})}, t)
    emb = TimestepEmbedding(config).apply({"params": weights["time_embedding"]}, features)
    emb = ACTIVATIONS[config.act_fn](emb)
    projections = {}

    def visit(layer: PyTree, path: tuple[str, ...]) -> None:
        if path and path[-1] == "time_emb_proj":
            dense = nn.Dense(layer["kernel"].shape[-1], dtype=config.dtype)
            projections["/".join(path)] = dense.apply({"params": layer}, emb)
            return
        for name, inner in layer.items():
            if isinstance(inner, dict):
                visit(inner, (*path, name))

    visit(weights, ())
    return projections


def run(
    config: UNetConfig,
    weights: PyTree,
    x: jax.Array,
    t: jax.Array,
    labels: jax.Array | None = None,
    projections: dict[str, jax.Array] | None = None,
) -> jax.Array:
    """Run a network on cast weights, with or without transformed kernels.

    `projections` holds the rows of `project_times` for one time; None computes them.
    """

    def use_projections(next_function, args, kwargs, context):
        path = "/".join(context.module.path)
        if projections is not None and path in projections and context.method_name == "__call__":
            return projections[path][None]
        return next_function(*args, **kwargs)

    with nn.intercept_methods(use_projections), nn.intercept_methods(winograd.intercept), shapes_only():
        out = UNet(config).apply({"params": weights}, x, jnp.asarray(t), labels)
    return cast(jax.Array, out)  # `apply` returns collections too, where some are mutable
