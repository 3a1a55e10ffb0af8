"""The network that a run trains: built from its settings and its images, or brought by `init` or `model_config`."""

import contextlib
import dataclasses
from pathlib import Path

import jax
import numpy as np

from ddpm_jax import checkpoint
from ddpm_jax.checkpoint.folder import read_config
from ddpm_jax.config import Config, SamplerConfig, ScheduleConfig, UNetConfig
from ddpm_jax.files import read_json
from ddpm_jax.images.source import Source
from ddpm_jax.losses import check_objective
from ddpm_jax.params import init
from ddpm_jax.random_keys import key_from_seed
from ddpm_jax.training.settings import OF_THE_NETWORK, OF_THE_SCHEDULE, ModelConfig, TrainConfig
from ddpm_jax.types import PyTree
from ddpm_jax.validation import check, differences, is_int


def new_network(config: TrainConfig, source: Source) -> tuple[Config, PyTree]:
    """Return the network that a new run trains, and its first weights, on the host.

    Args:
        config: of the run.
        source: its data.

    Raises:
        FileNotFoundError: there is no such checkpoint or file.
        ValueError: a network that does not fit the data or the objective.
    """
    with _on_host():
        if config.model.init is not None:
            built, weights = _of_checkpoint(config, source)
            check_objective(built, config.objective)
        else:
            resolution = config.data.resolution or own_resolution(config.model) or _side(source)
            channels = source.fitting(own_channels(config.model)).channels
            built = network(config, resolution, channels, source.classes)
            check_objective(built, config.objective)
            weights = init(key_from_seed(config.loop.seed), built).weights
    return built, weights


def resumed_network(config: TrainConfig, folder: Path) -> Config:
    """Return the network of the run in a folder, with what its ddpm_jax.json does not hold: how it is computed."""
    described = read_config(folder)
    unet = dataclasses.replace(
        described.unet, dtype=config.loop.dtype, remat=config.loop.remat, dropout=config.model.dropout
    )
    return dataclasses.replace(described, unet=unet)


def network(config: TrainConfig, resolution: int, channels: int, classes: tuple[str, ...] = ()) -> Config:
    """Return the network and schedule that a run without `init` trains.

    Args:
        config: of the run.
        resolution: side of the images.
        channels: of the images.
        classes: their names; with label dropout one more row stands for no class.

    Raises:
        ValueError: a resolution that the levels cannot halve, or that no level brings to an attention resolution; a
            `model_config` that does not fit.
    """
    model, objective = config.model.resolved(), config.objective
    learned = objective.variance_type == "learned_range"
    null_class = len(classes) if classes and objective.label_dropout else None
    of_the_data = {
        "sample_size": resolution,
        "in_channels": channels,
        "out_channels": channels * (1 + learned),
        "num_class_embeds": len(classes) + (null_class is not None) or None,
    }
    if model.model_config is None:
        unet = _paper_unet(of_the_data, **{name: getattr(model, name) for name in OF_THE_NETWORK})
    else:
        unet = _read_unet(model.model_config, of_the_data)
    unet = dataclasses.replace(unet, dropout=model.dropout, dtype=config.loop.dtype, remat=config.loop.remat)
    schedule = ScheduleConfig(**{name: getattr(model, name) for name in OF_THE_SCHEDULE})
    items = (("clip_sample", True), ("variance_type", objective.variance_type))
    return Config(unet, schedule, SamplerConfig("DDPMScheduler", items), classes, null_class)


def own_resolution(model: ModelConfig) -> int | None:
    """Return the side of the images that a `model_config` is for, if it is square and given there."""
    if model.model_config is None:
        return None
    size = read_json(model.model_config).get("sample_size")
    return size if is_int(size) else None


def own_channels(model: ModelConfig) -> int | None:
    """Return the channels of the images that a `model_config` is for, if they are given there."""
    return None if model.model_config is None else read_json(model.model_config).get("in_channels")


def _paper_unet(
    of_the_data: dict,
    *,
    channels: int,
    channel_multipliers: tuple[int, ...],
    layers_per_block: int,
    attention_resolutions: tuple[int, ...],
    attention_head_dim: int | None,
    norm_num_groups: int,
) -> UNetConfig:
    """Return the network of Ho et al. 2020 with the settings' widths and attention."""
    resolution, levels = of_the_data["sample_size"], len(channel_multipliers)
    _check_resolution(resolution, levels)
    sides = [resolution // 2**level for level in range(levels)]
    attends = [side in attention_resolutions for side in sides]
    missed = sorted(set(attention_resolutions) - set(sides))
    check(not missed, f"`attention_resolutions` {missed}: the levels have {sides} pixels. Take some of these.")
    return UNetConfig(
        **of_the_data,
        block_out_channels=tuple(channels * multiplier for multiplier in channel_multipliers),
        down_block_types=tuple("AttnDownBlock2D" if attends_ else "DownBlock2D" for attends_ in attends),
        up_block_types=tuple("AttnUpBlock2D" if attends_ else "UpBlock2D" for attends_ in reversed(attends)),
        layers_per_block=layers_per_block,
        attention_head_dim=attention_head_dim,
        norm_num_groups=norm_num_groups,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )


def _read_unet(path: Path, of_the_data: dict) -> UNetConfig:
    """Return the network of a `model_config`, at the data's resolution."""
    items = {name: value for name, value in read_json(path).items() if not name.startswith("_")}
    fixed = {name: value for name, value in of_the_data.items() if name in items and name != "sample_size"}
    other = differences({name: items[name] for name in fixed}, fixed, place="of the data")
    channels = of_the_data["in_channels"]
    advice = _advice_on_channels(items.get("in_channels", channels), channels)
    check(not other, f"{path} does not fit: {'; '.join(other)}.{advice}")
    unet = UNetConfig.from_dict(items | of_the_data)
    check(unet.class_embed_type is None, f"{path}: `class_embed_type` cannot be trained here.")
    _check_resolution(of_the_data["sample_size"], len(unet.block_out_channels))
    return unet


def _of_checkpoint(config: TrainConfig, source: Source) -> tuple[Config, PyTree]:
    """Return the network and the weights of the checkpoint that `init` names, at the data's resolution."""
    name, classes, dropped = config.model.init, len(source.classes), config.objective.label_dropout > 0
    params = checkpoint.load(name, dtype=config.loop.dtype)
    unet = dataclasses.replace(params.config.unet, remat=config.loop.remat, dropout=config.model.dropout)
    resolution = config.data.resolution or (unet.image_size or (_side(source),))[0]
    _check_resolution(resolution, len(unet.block_out_channels))
    unet = dataclasses.replace(unet, sample_size=resolution)
    channels = source.fitting(unet.in_channels).channels
    check(
        unet.in_channels == channels,
        f"`init` {name} is a network for {unet.in_channels} channels; the data has {channels}."
        f"{_advice_on_channels(unet.in_channels, channels)}",
    )
    allowed = (classes + 1,) if dropped else (classes, classes + 1) if classes else (0,)
    check(
        unet.class_embed_type is None and unet.num_classes in allowed,
        f"`init` {name} has {unet.num_class_embeds or 'no'} classes; the data has {classes or 'none'}"
        f"{' (and one more row for none)' if dropped else ''}.",
    )
    null_class = classes if dropped and params.config.null_class is None else params.config.null_class
    built = dataclasses.replace(params.config, unet=unet, class_names=source.classes, null_class=null_class)
    return built, params.weights


def _check_resolution(resolution: int, levels: int) -> None:
    """Refuse images that the levels of a network cannot halve."""
    least = 2 ** (levels - 1)
    near = sorted({max(resolution // least, 1) * least, (resolution // least + 1) * least})
    check(
        resolution % least == 0,
        f"`resolution` {resolution} cannot be halved {levels - 1} times: use {' or '.join(map(str, near))}.",
    )


def _advice_on_channels(wanted: int, given: int) -> str:
    """Say which setting brings images to the channels that a network takes, or nothing where none does."""
    if wanted in (1, 3) and given in (1, 3) and wanted != given:
        return f" `image_channels` {wanted} makes them {'grey' if wanted == 1 else 'colour'}."
    return ""


def _side(source: Source) -> int:
    """Return the resolution of an array's images."""
    check(
        isinstance(source.items, np.ndarray),
        "`resolution` is missing: the side to which a folder's images are resized.",
    )
    _, height, width, _ = source.items.shape
    check(height == width, f"The images have {height} x {width} pixels: pass `resolution`, the side of a square.")
    return height


def _on_host() -> contextlib.AbstractContextManager:
    """Keep arrays off the accelerators, where there is a CPU backend beside them."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()
