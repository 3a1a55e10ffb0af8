"""The shapes of a network's weights and convolutions, found without making weights."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax.config.unet import UNetConfig
from ddpm_jax.models.layers import shapes_only
from ddpm_jax.models.unet import UNet
from ddpm_jax.types import PyTree


class Convolution(NamedTuple):
    """One convolution of a network, with the shape [h, w, c] of its input."""

    path: tuple[str, ...]
    kernel_size: Any
    strides: Any
    padding: Any
    in_shape: tuple[int, int, int]
    features: int


class Layout(NamedTuple):
    """The shapes of a network's weights, and its convolutions in the order in which they run."""

    weights: PyTree
    convolutions: tuple[Convolution, ...]


@functools.lru_cache(maxsize=64)
def layout(config: UNetConfig) -> Layout:
    """Trace a network on one image, without making weights; cached by the config.

    Example:
        >>> layout(ddpm_jax.load("digits-16").config.unet).convolutions[0].in_shape
        (16, 16, 1)
    """
    size, labels = config.image_size, None
    if size is None or any(side % config.smallest_size for side in size):
        size = (config.smallest_size,) * 2
    if config.class_embed_type == "identity":
        labels = jax.ShapeDtypeStruct((1, config.time_embed_dim), jnp.float32)
    elif config.has_classes:
        labels = jax.ShapeDtypeStruct((1,), jnp.int32)
    x = jax.ShapeDtypeStruct((1, *size, config.in_channels), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    convolutions = []

    def note(next_function, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return next_function(*args, **kwargs)
        if isinstance(module, nn.GroupNorm):  # its arithmetic, which changes no shape, is 40 % of the time of a trace
            for name in ("scale", "bias"):
                module.param(name, nn.initializers.zeros, args[0].shape[-1:])
            return args[0]
        if isinstance(module, nn.Conv):
            shapes = (args[0].shape[1:], module.features)
            convolutions.append(Convolution(module.path, module.kernel_size, module.strides, module.padding, *shapes))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(note), shapes_only():
        weights = jax.eval_shape(UNet(config).init, jax.random.key(0), x, t, labels)["params"]
    return Layout(weights, tuple(convolutions))
