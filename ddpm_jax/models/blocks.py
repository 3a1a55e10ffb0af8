"""The levels of the UNet, by diffusers' block names.

A down block takes and returns the features `h` and the `skip` image, which only the skip blocks of NCSN++ change. It
also returns residuals for the up path. An up block consumes residuals, the last one first.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax.config.unet import UNetConfig
from ddpm_jax.models.layers import (
    Attention,
    Downsample2D,
    ResnetBlock2D,
    Upsample2D,
    conv,
    fir_downsample,
    fir_upsample,
    group_norm,
)

SQRT_2 = math.sqrt(2.0)


def _quarter(channels: int) -> int:
    """Groups of the norms in skip blocks."""
    return min(channels // 4, 32)


class DownBlock2D(nn.Module):
    """Resnets, each followed by attention if `attention` is True; then half the resolution.

    `downsample` is "conv" or "resnet"; None, for the last level, keeps the resolution.
    """

    config: UNetConfig
    features: int
    attention: bool
    downsample: str | None

    @nn.compact
    def __call__(self, h, skip, emb, deterministic):
        config, groups = self.config, self.config.groups(self.features)
        resnet = functools.partial(ResnetBlock2D, config, self.features, groups=groups, groups_out=groups)
        residuals = []
        for j in range(config.layers_per_block):
            h = resnet(name=f"resnets_{j}")(h, emb, deterministic)
            if self.attention:
                h = Attention(config, groups, name=f"attentions_{j}")(h)
            residuals.append(h)
        if self.downsample == "conv":
            h = Downsample2D(config, name="downsamplers_0")(h)
        elif self.downsample == "resnet":
            h = resnet(resample="average_down", name="downsamplers_0")(h, emb, deterministic)
        if self.downsample:
            residuals.append(h)
        return h, skip, residuals


class UpBlock2D(nn.Module):
    """Resnets on features joined with residuals, each followed by attention if `attention` is True.

    Then double the resolution. `upsample` is "conv" or "resnet"; None, for the last level, keeps the resolution.
    """

    config: UNetConfig
    features: int
    attention: bool
    upsample: str | None

    @nn.compact
    def __call__(self, h, skip, residuals, emb, deterministic):
        config, groups = self.config, self.config.groups(self.features)
        resnet = functools.partial(ResnetBlock2D, config, self.features, groups=groups, groups_out=groups)
        for j, residual in enumerate(reversed(residuals)):
            joined = jnp.concatenate([h, residual], axis=-1)
            h = resnet(name=f"resnets_{j}")(joined, emb, deterministic)
            if self.attention:
                h = Attention(config, groups, name=f"attentions_{j}")(h)
        if self.upsample == "conv":
            h = Upsample2D(config, name="upsamplers_0")(h)
        elif self.upsample == "resnet":
            h = resnet(resample="nearest_up", name="upsamplers_0")(h, emb, deterministic)
        return h, skip


class SkipDownBlock2D(nn.Module):
    """A level of NCSN++: branches scaled by 1/sqrt(2), FIR resampling, the input image fed in at every resolution.

    (Song et al. 2021, appendix H.) Attention, if `attention` is True, follows each resnet.
    """

    config: UNetConfig
    features: int
    attention: bool
    downsample: bool

    @nn.compact
    def __call__(self, h, skip, emb, deterministic):
        config, features = self.config, self.features
        residuals = []
        for j in range(config.layers_per_block):
            h = _skip_resnet(config, features, h, name=f"resnets_{j}")(h, emb, deterministic)
            if self.attention:
                h = Attention(config, 32, SQRT_2, name=f"attentions_{j}")(h)
            residuals.append(h)
        if self.downsample:
            resnet = _skip_resnet(config, features, h, resample="fir_down", name="resnet_down")
            skip = fir_downsample(skip)
            h = conv(config, features, 1, "skip_conv")(skip) + resnet(h, emb, deterministic)
            residuals.append(h)
        return h, skip, residuals


class SkipUpBlock2D(nn.Module):
    """A level of NCSN++ on the way up: every resolution adds to an image, which becomes the output.

    Attention, if `attention` is True, comes once, after all resnets. A level computes what it adds before its features
    are upsampled; the next level upsamples the image.
    """

    config: UNetConfig
    features: int
    attention: bool
    upsample: bool

    @nn.compact
    def __call__(self, h, skip, residuals, emb, deterministic):
        config, features = self.config, self.features
        for j, residual in enumerate(reversed(residuals)):
            joined = jnp.concatenate([h, residual], axis=-1)
            groups = _quarter(joined.shape[-1])
            if self.attention:  # a bug of diffusers' AttnSkipUpBlock2D: (a + b) // 4 without its brackets
                groups = min(h.shape[-1] + residual.shape[-1] // 4, 32)
            resnet = _skip_resnet(config, features, joined, groups=groups, name=f"resnets_{j}")
            h = resnet(joined, emb, deterministic)
        if self.attention:
            h = Attention(config, 32, SQRT_2, name="attentions_0")(h)
        skip = 0 if skip is None else fir_upsample(skip)
        if self.upsample:
            normed = nn.silu(group_norm(config, _quarter(features), h, "skip_norm"))
            skip = skip + conv(config, 3, 3, "skip_conv")(normed)
            resnet = _skip_resnet(config, features, h, resample="fir_up", name="resnet_up")
            h = resnet(h, emb, deterministic)
        return h, skip


def _skip_resnet(
    config: UNetConfig,
    features: int,
    x: jax.Array,
    name: str,
    groups: int | None = None,
    resample: str | None = None,
):
    """Make a resnet of a skip block for the input x; one that resamples always has a convolution as its shortcut."""
    return ResnetBlock2D(
        config,
        features,
        groups=groups if groups is not None else _quarter(x.shape[-1]),
        groups_out=_quarter(features),
        output_scale_factor=SQRT_2,
        always_shortcut=resample is not None,
        resample=resample,
        name=name,
    )


class UNetMidBlock2D(nn.Module):
    """Resnet, attention (unless `add_attention` is false), resnet, at the lowest resolution."""

    config: UNetConfig

    @nn.compact
    def __call__(self, h, emb, deterministic):
        config = self.config
        features = config.block_out_channels[-1]
        groups, scale = config.groups(features), config.mid_block_scale_factor
        resnet = functools.partial(ResnetBlock2D, config, features, groups, groups, output_scale_factor=scale)
        h = resnet(name="resnets_0")(h, emb, deterministic)
        if config.add_attention:
            normed = config.resnet_time_scale_shift == "default"
            attention_groups = config.attn_norm_num_groups or (groups if normed else None)
            h = Attention(config, attention_groups, scale, name="attentions_0")(h)
        return resnet(name="resnets_1")(h, emb, deterministic)


def make_down_block(config: UNetConfig, index: int) -> nn.Module:
    """Make the down block of a level, named as in diffusers."""
    kind, last = config.down_block_types[index], index == len(config.down_block_types) - 1
    features, name = config.block_out_channels[index], f"down_blocks_{index}"
    if "Skip" in kind:
        block = _remat(SkipDownBlock2D, config, 4)
        return block(config, features, kind.startswith("Attn"), not last, name=name)
    how = {"AttnDownBlock2D": config.downsample_type or "conv", "DownBlock2D": "conv"}
    downsample = None if last else how.get(kind, "resnet")
    block = _remat(DownBlock2D, config, 4)
    return block(config, features, kind.startswith("Attn"), downsample, name=name)


def make_up_block(config: UNetConfig, index: int) -> nn.Module:
    """Make the up block of a level, named as in diffusers; index 0 is the lowest resolution."""
    kind, last = config.up_block_types[index], index == len(config.up_block_types) - 1
    features, name = config.block_out_channels[-1 - index], f"up_blocks_{index}"
    if "Skip" in kind:
        block = _remat(SkipUpBlock2D, config, 5)
        return block(config, features, kind.startswith("Attn"), not last, name=name)
    how = {"AttnUpBlock2D": config.upsample_type or "conv", "UpBlock2D": "conv"}
    upsample = None if last else how.get(kind, "resnet")
    block = _remat(UpBlock2D, config, 5)
    return block(config, features, kind.startswith("Attn"), upsample, name=name)


def make_mid_block(config: UNetConfig) -> nn.Module:
    """Make the mid block."""
    return _remat(UNetMidBlock2D, config, 3)(config, name="mid_block")


def _remat(block: type[nn.Module], config: UNetConfig, deterministic_argument: int):
    """Return the block, which with `config.remat` recomputes its activations in the backward pass."""
    if not config.remat:
        return block
    return nn.remat(block, static_argnums=(deterministic_argument,))
