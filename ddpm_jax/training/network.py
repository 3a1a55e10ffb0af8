"""The network that a run trains: from its settings and its images."""

import dataclasses

from ddpm_jax.config import Config, SamplerConfig, ScheduleConfig, UNetConfig
from ddpm_jax.files import read_json
from ddpm_jax.training.settings import ModelConfig, TrainConfig
from ddpm_jax.validation import check, differences, is_int


def own_resolution(model: ModelConfig) -> int | None:
    """Return the side of the images that a `model_config` is for, if it is square and says so."""
    if model.model_config is None:
        return None
    size = read_json(model.model_config).get("sample_size")
    return size if is_int(size) else None


def own_channels(model: ModelConfig) -> int | None:
    """Return the channels of the images that a `model_config` is for, if it says so."""
    return None if model.model_config is None else read_json(model.model_config).get("in_channels")


def advice_on_channels(wanted: int, given: int) -> str:
    """Say how images of so many channels come to those that a network takes, or nothing where they cannot."""
    if wanted in (1, 3) and given in (1, 3) and wanted != given:
        return f" `image_channels` {wanted} makes them {'grey' if wanted == 1 else 'colour'}."
    return ""


def check_resolution(resolution: int, levels: int) -> None:
    """Refuse images that the levels of a network cannot halve."""
    least = 2 ** (levels - 1)
    near = sorted({max(resolution // least, 1) * least, (resolution // least + 1) * least})
    check(
        resolution % least == 0,
        f"`resolution` {resolution} cannot be halved {levels - 1} times: use {' or '.join(map(str, near))}.",
    )


def network(config: TrainConfig, resolution: int, channels: int, classes: tuple[str, ...] = ()) -> Config:
    """Return the network and schedule that a run trains from nothing.

    Args:
        config: of the run.
        resolution: side of the images.
        channels: of the images.
        classes: their names; with label dropout one more row stands for no class.

    Raises:
        ValueError: a resolution that the levels cannot halve, or that never comes down to an attention resolution.
    """
    model, objective = config.model, config.objective
    learned = objective.variance_type == "learned_range"
    null_class = len(classes) if classes and objective.label_dropout else None
    common = {
        "sample_size": resolution,
        "in_channels": channels,
        "out_channels": channels * (1 + learned),
        "num_class_embeds": len(classes) + (null_class is not None) or None,
    }
    if model.model_config is not None:
        items = {name: value for name, value in read_json(model.model_config).items() if not name.startswith("_")}
        of_data = {name: value for name, value in common.items() if name in items and name != "sample_size"}
        other = differences({name: items[name] for name in of_data}, of_data, place="of the data")
        advice = advice_on_channels(items.get("in_channels", channels), channels)
        check(not other, f"{model.model_config} does not fit: {'; '.join(other)}.{advice}")
        unet = UNetConfig.from_dict(items | common)
        check(unet.class_embed_type is None, f"{model.model_config}: `class_embed_type` cannot be trained here.")
        check_resolution(resolution, len(unet.block_out_channels))
    else:
        check_resolution(resolution, len(model.channel_multipliers))
        sides = [resolution // 2**level for level in range(len(model.channel_multipliers))]
        attends = [side in model.attention_resolutions for side in sides]
        missed = set(model.attention_resolutions) - set(sides)
        check(not missed, f"`attention_resolutions` {sorted(missed)}: the levels have {sides} pixels.")
        unet = UNetConfig(
            **common,
            block_out_channels=tuple(model.channels * multiplier for multiplier in model.channel_multipliers),
            down_block_types=tuple("AttnDownBlock2D" if attends_ else "DownBlock2D" for attends_ in attends),
            up_block_types=tuple("AttnUpBlock2D" if attends_ else "UpBlock2D" for attends_ in reversed(attends)),
            layers_per_block=model.layers_per_block,
            attention_head_dim=model.attention_head_dim,
            norm_num_groups=model.norm_num_groups,
            norm_eps=1e-6,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
        )
    unet = dataclasses.replace(unet, dropout=model.dropout, dtype=config.run.dtype, remat=config.run.remat)
    schedule = ScheduleConfig(
        beta_schedule=model.beta_schedule,
        num_train_timesteps=model.num_train_timesteps,
        prediction_type=model.prediction_type,
    )
    items = (("clip_sample", True), ("variance_type", objective.variance_type))
    return Config(unet, schedule, SamplerConfig("DDPMScheduler", items), classes, null_class)
