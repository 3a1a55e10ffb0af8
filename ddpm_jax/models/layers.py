"""The layers of the UNet's blocks, as in diffusers but NHWC.

Convolutions and dense layers compute in `config.dtype`; norms, softmax and the time embedding compute in float32.
Submodules have diffusers' names (`conv1`, `to_q`, `to_out_0`), so a parameter's path gives its name in a state dict.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ddpm_jax.config.unet import UNetConfig
from ddpm_jax.models.pixel_sums import add_to_pixels
from ddpm_jax.types import Number

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}


_shapes_only = contextvars.ContextVar("shapes_only", default=False)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Make kernel initialisers return zeros, for networks whose kernels are not drawn.

    linen calls the initialisers in every `apply` to learn the shapes. Tracing their random numbers took half of the
    time in which a network is traced.
    """
    token = _shapes_only.set(True)
    try:
        yield
    finally:
        _shapes_only.reset(token)


def _draw_kernel(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draw a kernel as linen does by default."""
    return jnp.zeros(shape, dtype) if _shapes_only.get() else nn.initializers.lecun_normal()(key, shape, dtype)


def conv(config: UNetConfig, features: int, size: int, name: str, strides: int = 1, padding=None):
    """Make a convolution; without `strides` and `padding` it keeps the resolution."""
    padding = padding if padding is not None else ((size // 2, size // 2),) * 2
    window = {"kernel_size": (size, size), "strides": strides, "padding": padding}
    return nn.Conv(features, **window, dtype=config.dtype, kernel_init=_draw_kernel, name=name)


def dense(config: UNetConfig, features: int, name: str):
    """Make a dense layer."""
    return nn.Dense(features, dtype=config.dtype, kernel_init=_draw_kernel, name=name)


def group_norm(config: UNetConfig, groups: int, x: jax.Array, name: str) -> jax.Array:
    """Normalise groups of neighbouring channels, with statistics in float32 by two passes.

    linen's fast variance, E[x^2] - E[x]^2, loses digits if the mean is large.
    """
    channels = x.shape[-1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"The norm `{name}` has {groups} groups, which do not divide {channels} channels: change "
            "`block_out_channels` or `norm_num_groups`."
        )
    norm = nn.GroupNorm(groups, epsilon=config.norm_eps, use_fast_variance=False, dtype=config.dtype, name=name)
    return norm(x)


def sinusoidal_embedding(t: jax.Array, dim: int, flip_sin_to_cos: bool, freq_shift: Number) -> jax.Array:
    """Embed timesteps as sines and cosines: [b] -> [b, dim], float32.

    f_k = exp(-ln(10000) k / (dim/2 - freq_shift)), k = 0 .. dim/2 - 1; [sin(t f), cos(t f)], or cosines
    first with `flip_sin_to_cos`. (Vaswani et al. 2017; Ho et al.'s code has freq_shift 1, sines first.)
    """
    half = dim // 2
    frequencies = np.exp(-math.log(10000) * np.arange(half) / (half - freq_shift)).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    parts = [jnp.sin(angles), jnp.cos(angles)]
    embedding = jnp.concatenate(parts[::-1] if flip_sin_to_cos else parts, axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


class TimeProjection(nn.Module):
    """Turn timesteps into features: sinusoids, random Fourier features of log t, or a table's rows."""

    config: UNetConfig

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        config, width = self.config, self.config.block_out_channels[0]
        if config.time_embedding_type == "positional":
            return sinusoidal_embedding(t, width, config.flip_sin_to_cos, config.freq_shift)
        normal = nn.initializers.normal
        if config.time_embedding_type == "fourier":
            weight = self.param("weight", normal(16.0), (width,), jnp.float32)
            angles = jnp.log(t.astype(jnp.float32))[:, None] * weight[None] * (2 * math.pi)
            return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        weight = self.param("weight", normal(1.0), (config.num_train_timesteps, width), jnp.float32)
        return weight[t.astype(jnp.int32)]


class TimestepEmbedding(nn.Module):
    """Two dense layers with a SiLU between them (whatever `act_fn` is)."""

    config: UNetConfig

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        width = self.config.time_embed_dim
        layer = functools.partial(nn.Dense, width, kernel_init=_draw_kernel)
        return layer(name="linear_2")(nn.silu(layer(name="linear_1")(features)))


class Embedding(nn.Module):
    """A table with one row for each class."""

    config: UNetConfig

    @nn.compact
    def __call__(self, labels: jax.Array) -> jax.Array:
        shape = (self.config.num_class_embeds, self.config.time_embed_dim)
        return self.param("weight", nn.initializers.normal(1.0), shape, jnp.float32)[labels]


class ResnetBlock2D(nn.Module):
    """Two convolutions with the time embedding between them, around a shortcut.

    `resample` is a key of `RESAMPLE`, which both branches go through after the first norm, or None. `groups` and
    `groups_out` are the groups of the two norms.
    """

    config: UNetConfig
    features: int
    groups: int
    groups_out: int
    output_scale_factor: Number = 1.0
    always_shortcut: bool = False
    resample: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array, deterministic: bool) -> jax.Array:
        config, act = self.config, ACTIVATIONS[self.config.act_fn]
        scale_shift = config.resnet_time_scale_shift == "scale_shift"

        h = act(group_norm(config, self.groups, x, "norm1"))
        if self.resample:
            x, h = RESAMPLE[self.resample](x), RESAMPLE[self.resample](h)
        h = conv(config, self.features, 3, "conv1")(h)

        width = 2 * self.features if scale_shift else self.features
        emb = dense(config, width, "time_emb_proj")(act(emb))
        if scale_shift:
            scale, shift = jnp.split(emb[:, None, None, :], 2, axis=-1)
            h = group_norm(config, self.groups_out, h, "norm2") * (1 + scale) + shift
        else:
            h = group_norm(config, self.groups_out, add_to_pixels(h, emb), "norm2")
        h = nn.Dropout(config.dropout)(act(h), deterministic=deterministic)
        h = conv(config, self.features, 3, "conv2")(h)

        if self.always_shortcut or x.shape[-1] != self.features:
            x = conv(config, self.features, 1, "conv_shortcut")(x)
        return (x + h) / self.output_scale_factor


class Attention(nn.Module):
    """Multi-head self-attention over all pixels, around a residual; `groups` None means no norm before it."""

    config: UNetConfig
    groups: int | None
    rescale_output_factor: Number = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, (batch, height, width, channels) = self.config, x.shape
        head_dim = config.head_dim(channels)
        num_heads = channels // head_dim
        h = x if self.groups is None else group_norm(config, self.groups, x, "group_norm")
        h = h.reshape(batch, height * width, channels)

        def heads(name: str) -> jax.Array:  # [b, hw, c] -> [b, hw, heads, head_dim]
            projected = dense(config, num_heads * head_dim, name)(h)
            return projected.reshape(batch, height * width, num_heads, head_dim)

        h = jax.nn.dot_product_attention(heads("to_q"), heads("to_k"), heads("to_v"))
        h = dense(config, channels, "to_out_0")(h.reshape(batch, height * width, -1))
        return (h.reshape(x.shape) + x) / self.rescale_output_factor


class Downsample2D(nn.Module):
    """Halve the resolution by a convolution of stride 2.

    `downsample_padding` 0 pads only below and on the right, as TensorFlow's "SAME" does in the code of Ho et al.
    """

    config: UNetConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        before = self.config.downsample_padding
        return conv(self.config, x.shape[-1], 3, "conv", strides=2, padding=((before, 1),) * 2)(x)


class Upsample2D(nn.Module):
    """Double the resolution by repeating pixels, then convolve."""

    config: UNetConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return conv(self.config, x.shape[-1], 3, "conv")(nearest_upsample(x))


def nearest_upsample(x: jax.Array) -> jax.Array:
    """Repeat every pixel twice along both sides."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def average_downsample(x: jax.Array) -> jax.Array:
    """Average squares of two by two pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def fir_downsample(x: jax.Array) -> jax.Array:
    """Halve the resolution through the filter [1, 3, 3, 1] of StyleGAN2 and NCSN++."""
    return _fir(x, gain=1.0, strides=2, dilation=1, padding=1)


def fir_upsample(x: jax.Array) -> jax.Array:
    """Double the resolution through the filter [1, 3, 3, 1]: zeros between the pixels, then four times the filter."""
    return _fir(x, gain=4.0, strides=1, dilation=2, padding=2)


def _fir(x: jax.Array, gain: float, strides: int, dilation: int, padding: int) -> jax.Array:
    channels = x.shape[-1]
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) * (gain / 64)
    kernel = jnp.asarray(taps, x.dtype)[:, :, None, None]
    return jax.lax.conv_general_dilated(
        x,
        jnp.broadcast_to(kernel, (4, 4, 1, channels)),
        window_strides=(strides, strides),
        padding=((padding, padding),) * 2,
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


RESAMPLE = {
    "average_down": average_downsample,
    "nearest_up": nearest_upsample,
    "fir_down": fir_downsample,
    "fir_up": fir_upsample,
}
