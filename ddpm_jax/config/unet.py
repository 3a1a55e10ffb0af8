"""`UNetConfig`: the fields of diffusers' `UNet2DModel`, checked."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ddpm_jax.types import Number
from ddpm_jax.validation import check, freeze, is_int, is_number, known_items, nearest, thaw

ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")

_LEVELS = ("", "Attn", "Resnet", "Skip", "AttnSkip")
DOWN_BLOCKS = tuple("ResnetDownsampleBlock2D" if kind == "Resnet" else f"{kind}DownBlock2D" for kind in _LEVELS)
UP_BLOCKS = tuple("ResnetUpsampleBlock2D" if kind == "Resnet" else f"{kind}UpBlock2D" for kind in _LEVELS)

# Names of diffusers 0.0.x (listed in its scripts/change_naming_configs_and_checkpoints.py).
_OLD_UNET_NAMES = {
    "image_size": "sample_size",
    "num_res_blocks": "layers_per_block",
    "block_channels": "block_out_channels",
    "down_blocks": "down_block_types",
    "up_blocks": "up_block_types",
    "downscale_freq_shift": "freq_shift",
    "resnet_num_groups": "norm_num_groups",
    "resnet_act_fn": "act_fn",
    "resnet_eps": "norm_eps",
    "num_head_channels": "attention_head_dim",
}
# Fields that only UNet2DConditionModel of diffusers has, with the values that ask for nothing.
_CONDITION_NAMES = {
    **dict.fromkeys(("cross_attention_dim", "encoder_hid_dim", "encoder_hid_dim_type", "num_attention_heads")),
    **dict.fromkeys(("addition_embed_type", "addition_time_embed_dim", "time_embedding_act_fn", "timestep_post_act")),
    **dict.fromkeys(("time_cond_proj_dim", "projection_class_embeddings_input_dim", "cross_attention_norm")),
    **dict.fromkeys(("reverse_transformer_layers_per_block", "mid_block_only_cross_attention")),
    **dict.fromkeys(("only_cross_attention", "dual_cross_attention", "use_linear_projection"), False),
    **dict.fromkeys(("upcast_attention", "resnet_skip_time_act", "class_embeddings_concat"), False),
    **dict.fromkeys(("transformer_layers_per_block", "resnet_out_scale_factor"), 1),
    **dict.fromkeys(("conv_in_kernel", "conv_out_kernel"), 3),
    **{"attention_type": "default", "addition_embed_type_num_heads": 64},
}
# Fields that diffusers does not have.
_OURS = ("dtype", "remat")
# diffusers' `EMAModel.save_pretrained` writes these into the config.json of `unet_ema/`.
_EMA_NAMES = (
    *("decay", "inv_gamma", "power", "min_decay", "optimization_step"),
    *("update_after_step", "use_ema_warmup"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Describe a network, with the fields and defaults of diffusers' `UNet2DModel`.

    Two fields are ours, and are not written to files. `dtype` is "float32" or "bfloat16", for convolutions and dense
    layers; weights, statistics and softmax stay float32. `remat` recomputes each block's activations in the backward
    pass instead of keeping them. Set them when a checkpoint is opened, or by `dataclasses.replace`.

    `sample_size` is the size of the images to draw. The network itself takes any size that its levels can halve;
    another one is refused when images are drawn (`check_size`).

    Raises:
        ValueError: a value out of range, block tuples of unequal length, a number of groups that does not divide the
            channels, skip blocks in an order in which their resolutions do not match.

    Example:
        >>> config = UNetConfig(block_out_channels=(32, 64), norm_num_groups=8, layers_per_block=1,
        ...                     down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        ...                     up_block_types=("AttnUpBlock2D", "UpBlock2D"))
        >>> config.time_embed_dim
        128
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: Number = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", *["AttnDownBlock2D"] * 3)
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = (*["AttnUpBlock2D"] * 3, "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: Number = 1
    downsample_padding: int = 1
    downsample_type: str | None = "conv"
    upsample_type: str | None = "conv"
    dropout: Number = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: Number = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        for name in ("down_block_types", "up_block_types"):
            value = getattr(self, name)
            check(isinstance(value, list | tuple), f"`{name}` must be a list of names, not {value!r}.")
            # diffusers 0.0.x named every block UNetRes...
            names = tuple(str(block).removeprefix("UNetRes") for block in value)
            object.__setattr__(self, name, names)
        for name in ("block_out_channels", "sample_size"):
            object.__setattr__(self, name, freeze(getattr(self, name)))
        if isinstance(self.act_fn, str):
            object.__setattr__(self, "act_fn", self.act_fn.lower())
        self._check_blocks()
        self._check_scalars()
        self._check_groups()
        self._check_skip_blocks()

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of the images, or None where the config does not say it."""
        if isinstance(self.sample_size, int):
            return (self.sample_size, self.sample_size)
        return self.sample_size

    @property
    def time_embed_dim(self) -> int:
        """Width of the time embedding: `time_embedding_dim`, or four times the first level's width."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def smallest_size(self) -> int:
        """The side of the smallest image that the levels can halve; every side must be a multiple of it."""
        return 2 ** (len(self.block_out_channels) - 1)

    def check_size(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return the (height, width) of images to draw.

        Args:
            size: (height, width); None means `sample_size`.

        Raises:
            ValueError: the levels cannot halve this size, or there is no size; names sizes that can be drawn.

        Example:
            >>> dataclasses.replace(ddpm_jax.load("digits-16").config.unet, sample_size=24).check_size()
            (24, 24)
        """
        least, size = self.smallest_size, size or self.image_size
        example = "`dataclasses.replace(unet, sample_size={})`"
        if not size:
            raise ValueError(
                f"The config has no `sample_size`, the size of the images: set it, {example.format(8 * least)}."
            )
        below = tuple(max(side // least, 1) * least for side in size)
        above = tuple(-(-side // least) * least for side in size)
        check(
            above == tuple(size),
            f"`sample_size` {_shown(size)} cannot be halved {len(self.block_out_channels) - 1} times, which the "
            f"{len(self.block_out_channels)} levels of this network need: sides must be multiples of {least}. Draw at "
            f"{' or '.join(dict.fromkeys(map(_shown, (below, above))))} instead: {example.format(_shown(above))}.",
        )
        return size

    @property
    def has_classes(self) -> bool:
        """Whether the network takes class labels."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    @property
    def num_classes(self) -> int:
        """Rows of the table of classes; 0 for a network that has no such table."""
        return (self.num_class_embeds or 0) if self.class_embed_type is None else 0

    @property
    def learns_variance(self) -> bool:
        """Whether the second half of the output channels is a learned variance."""
        return self.out_channels == 2 * self.in_channels

    def check_prediction(self) -> None:
        """Refuse a network whose output is no prediction for an image.

        Raises:
            ValueError: it has neither as many output channels as the image nor twice as many.
        """
        check(
            self.learns_variance or self.out_channels == self.in_channels,
            f"The network's {self.out_channels} output channels are no prediction for the {self.in_channels} of an "
            "image: there must be as many, or twice as many with a learned variance. `apply` returns them as they are.",
        )

    def groups(self, channels: int) -> int:
        """Groups of the norms outside skip blocks; `norm_num_groups=None` means min(channels / 4, 32)."""
        return self.norm_num_groups or min(channels // 4, 32)

    def head_dim(self, channels: int) -> int:
        """Channels of one attention head; `attention_head_dim=None` means a single head."""
        return self.attention_head_dim or channels

    def _check_scalars(self):
        for name in ("in_channels", "out_channels", "layers_per_block"):
            value = getattr(self, name)
            check(is_int(value), f"`{name}` must be a positive integer, not {value!r}.")
        for name in (
            *("time_embedding_dim", "attention_head_dim", "norm_num_groups"),
            *("attn_norm_num_groups", "num_class_embeds", "num_train_timesteps"),
        ):
            value = getattr(self, name)
            good = value is None or is_int(value)
            check(good, f"`{name}` must be a positive integer or null, not {value!r}.")
        size = self.sample_size
        good = size is None or is_int(size) or (isinstance(size, tuple) and len(size) == 2 and all(map(is_int, size)))
        check(good, f"`sample_size` must be an integer, [height, width] or null, not {size!r}.")
        for name in ("center_input_sample", "flip_sin_to_cos", "add_attention", "remat"):
            value = getattr(self, name)
            check(isinstance(value, bool), f"`{name}` must be true or false, not {value!r}.")
        choices = {
            "time_embedding_type": ("positional", "fourier", "learned"),
            "downsample_type": ("conv", "resnet", None),
            "upsample_type": ("conv", "resnet", None),
            "act_fn": ACTIVATIONS,
            "resnet_time_scale_shift": ("default", "scale_shift"),
            "class_embed_type": (None, "timestep", "identity"),
            "downsample_padding": (0, 1),
            "dtype": ("float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            good = value in allowed and not isinstance(value, bool)
            check(good, f"`{name}` must be one of {list(allowed)}, not {value!r}.")
        for name in ("norm_eps", "mid_block_scale_factor"):
            value = getattr(self, name)
            good = is_number(value) and value > 0
            check(good, f"`{name}` must be a positive number, not {value!r}.")
        check(is_number(self.freq_shift), f"`freq_shift` must be a number, not {self.freq_shift!r}.")
        good = is_number(self.dropout) and 0 <= self.dropout < 1
        check(good, f"`dropout` must be in [0, 1), not {self.dropout!r}.")
        good = self.mid_block_type in (None, "UNetMidBlock2D")
        check(good, f"`mid_block_type` must be UNetMidBlock2D or null, not {self.mid_block_type!r}.")
        learned = self.time_embedding_type == "learned"
        check(
            not learned or self.num_train_timesteps is not None,
            '`time_embedding_type` "learned" needs `num_train_timesteps`, the rows of its table.',
        )
        positional = self.time_embedding_type == "positional"
        check(
            not positional or self.block_out_channels[0] // 2 != self.freq_shift,
            f"`freq_shift` {self.freq_shift} equals half of the first level's width: it divides by zero.",
        )

    def _check_blocks(self):
        widths, down, up = self.block_out_channels, self.down_block_types, self.up_block_types
        good = isinstance(widths, tuple) and len(widths) > 0 and all(map(is_int, widths))
        check(good, f"`block_out_channels` must be positive integers, one for each level, not {widths!r}.")
        for name, blocks in (("down_block_types", down), ("up_block_types", up)):
            check(
                len(blocks) == len(widths),
                f"`block_out_channels` has {len(widths)} entries but `{name}` has {len(blocks)}: {widths} "
                f"against {blocks}. Give both one entry for each level.",
            )
        for name, blocks, known in (
            ("down_block_types", down, DOWN_BLOCKS),
            ("up_block_types", up, UP_BLOCKS),
        ):
            for block in blocks:
                check(
                    not block.startswith("K"),
                    f"`{name}` holds {block}: the K-blocks of k-diffusion's upscalers are not offered. "
                    f"There is {', '.join(known)}.",
                )
                check(
                    block in known,
                    f"`{name}` holds {block!r}, which is no block of UNet2DModel."
                    f"{nearest(block, known)} There is {', '.join(known)}.",
                )

    def _check_groups(self):
        plain = [width for block, width in self._levels() if "Skip" not in block]
        check(
            self.norm_num_groups is not None or not plain,
            "`norm_num_groups` is null, which only the skip blocks allow; these levels need a number.",
        )
        for width in {*plain, self.block_out_channels[0]}:
            groups = self.groups(width)
            check(
                groups > 0 and width % groups == 0,
                f"`norm_num_groups` {groups} does not divide the {width} channels of a level "
                f"(`block_out_channels` {self.block_out_channels}).",
            )
        mid = self.block_out_channels[-1]
        if self.mid_block_type is not None:
            for name, groups in (
                ("norm_num_groups", self.groups(mid)),
                ("attn_norm_num_groups", self.attn_norm_num_groups),
            ):
                check(
                    groups is None or (groups > 0 and mid % groups == 0),
                    f"`{name}` {groups} does not divide the {mid} channels of the mid block.",
                )
        attended = [width for block, width in self._levels() if "Attn" in block]
        if self.mid_block_type is not None and self.add_attention:
            attended.append(mid)
        for width in attended:
            check(
                self.head_dim(width) <= width,
                f"`attention_head_dim` {self.attention_head_dim} is more than the {width} channels of a level "
                f"with attention: there would be no head. Take at most {width}, or null for a single head.",
            )

    def _check_skip_blocks(self):
        """Refuse skip blocks that would halve or double their copy of the image more often than the features."""
        down, up = self.down_block_types, self.up_block_types
        plain_seen = False
        for block in down[:-1]:
            skip = "Skip" in block
            check(
                not (skip and plain_seen),
                f"`down_block_types` {down}: {block} comes after a block without skip path, so its image "
                "would be larger than its features. Put the skip blocks first.",
            )
            check(
                not skip or self.in_channels == 3,
                f"{block} needs `in_channels` 3 (its skip path is fixed to 3), not {self.in_channels}.",
            )
            plain_seen |= not skip
        skip_seen = False
        for index, block in enumerate(up):
            skip = "Skip" in block
            check(
                not skip_seen or skip,
                f"`up_block_types` {up}: {block} comes after a skip block, so the image would be smaller than the "
                "features. Put the skip blocks last.",
            )
            if skip and index < len(up) - 1:
                skip_seen = True
                check(
                    self.out_channels == 3,
                    f"{block} needs `out_channels` 3 (its skip path is fixed to 3), not {self.out_channels}.",
                )
        for block, width in self._levels():
            check(
                not block.startswith("AttnSkip") or width % 32 == 0,
                f"{block} normalises its attention in 32 groups, which do not divide its {width} channels.",
            )

    def _levels(self) -> list[tuple[str, int]]:
        """Return every block with its width, down and up."""
        down = zip(self.down_block_types, self.block_out_channels, strict=True)
        up = zip(self.up_block_types, self.block_out_channels[::-1], strict=True)
        return [*down, *up]

    @classmethod
    def from_dict(cls, items: dict[str, Any]) -> "UNetConfig":
        """Read a `config.json` of diffusers, of any of its versions.

        Names of diffusers 0.0.x are replaced by those of today. Keys that start with an underscore, the settings of an
        EMA and keys that ask for nothing are ignored; other unknown keys are ignored with a warning.

        Raises:
            ValueError: a misspelt field (the message names the right one), a field of UNet2DConditionModel that asks
                for something, or a wrong value.

        Example:
            >>> UNetConfig.from_dict({"_class_name": "UNet2DModel", "resnet_eps": 1e-6}).norm_eps
            1e-06
        """
        values = {}
        for name, value in items.items():
            if name.startswith("_") or name in _EMA_NAMES:
                continue
            if name in _CONDITION_NAMES:
                check(
                    not value or value == _CONDITION_NAMES[name],
                    f"`{name}` {value!r} is a field of UNet2DConditionModel, which diffusers opens and ddpm_jax does "
                    "not. If this network is a UNet2DModel, take the key out of its config.",
                )
                continue
            values[_OLD_UNET_NAMES.get(name, name)] = freeze(value)
        known = {field.name for field in dataclasses.fields(cls)} - set(_OURS)
        return cls(**known_items(values, known, "UNet2DModel"))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that diffusers knows, as JSON values."""
        items = {f.name: thaw(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {name: value for name, value in items.items() if name not in _OURS}


def _shown(size: Sequence[int]) -> str:
    """Write a size as `sample_size` takes it."""
    height, width = size
    return str(height) if height == width else str(size)
