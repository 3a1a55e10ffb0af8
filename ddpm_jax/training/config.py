"""What a training run is told: every number that decides the result, and a few that do not.

The groups are a frozen dataclass each; on the command line their fields are plain flags.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from ddpm_jax.config import Config, SamplerConfig, ScheduleConfig, UNetConfig
from ddpm_jax.files import read_json
from ddpm_jax.losses import Objective
from ddpm_jax.random_keys import check_seed
from ddpm_jax.validation import check, freeze, is_int, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images.

    Attributes:
        data: a folder of images (sub-folders are searched), an .npz or .npy of uint8 images [n, h, w, c], or "digits"
            (scikit-learn's 1797).
        held_out: the same, for the validation loss.
        resolution: side of the square images; if None, that of the network that is brought, or of the arrays.
        crop: "center": the largest square in the middle; "random_resized": a square of a random share of its area.
        min_crop: the least share.
        flip: mirror half of the images, drawn anew each time.
        class_conditional: sub-folders are classes (arrays: `labels` in the .npz).
        skip_broken: leave broken image files out, instead of refusing the folder.
        workers: threads that decode images.
    """

    data: str
    held_out: str | None = None
    resolution: int | None = None
    crop: Literal["center", "random_resized"] = "center"
    min_crop: float = 0.5
    flip: bool = True
    class_conditional: bool = False
    skip_broken: bool = False
    workers: int = 8

    def __post_init__(self):
        check(self.resolution is None or is_int(self.resolution), f"`resolution` must be positive: {self.resolution}.")
        check(self.crop in ("center", "random_resized"), f"`crop` is center or random_resized, not {self.crop!r}.")
        check(0 < self.min_crop <= 1, f"`min_crop` must be above 0 and at most 1, not {self.min_crop}.")
        check(self.crop != "center" or self.min_crop == 0.5, "`min_crop` belongs to `crop` random_resized.")
        check(is_int(self.workers), f"`workers` must be at least 1, not {self.workers}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network and the schedule, in the paper's terms.

    Attributes:
        init: fine-tune this checkpoint (hub id or folder): all but the dropout is its own.
        model_config: a UNet2DModel config.json of diffusers, for the network but its dropout.
        dropout: in the residual blocks.
        channels: of the first level.
        channel_multipliers: of each level.
        layers_per_block: residual blocks of a level.
        attention_resolutions: sides of the images at which there is attention.
        attention_head_dim: channels of a head; one head if left out.
        norm_num_groups: of the group norms.
        prediction_type: what the network learns to predict.
        beta_schedule: of the noise.
        num_train_timesteps: T.
    """

    init: str | None = None
    model_config: Path | None = None
    dropout: float = 0.0
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    layers_per_block: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    attention_head_dim: int | None = None
    norm_num_groups: int = 32
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    beta_schedule: str = "linear"
    num_train_timesteps: int = 1000

    def __post_init__(self):
        check(
            self.init is None or self.model_config is None, "`init` brings its own network: leave `model_config` out."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser.

    Attributes:
        optimizer: "adam" or "adamw".
        learning_rate: after the warm-up.
        lr_schedule: how it goes on, until `steps`.
        warmup_steps: it rises from 0 for so long.
        adam_b1, adam_b2, adam_eps: Adam's.
        weight_decay: AdamW's.
        clip_norm: of the gradient's global norm; 0 never clips.
        accumulate: batches are run in so many parts.
    """

    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 500
    adam_b1: float = 0.9
    adam_b2: float = 0.999
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    accumulate: int = 1

    def __post_init__(self):
        check(self.optimizer in ("adam", "adamw"), f"`optimizer` is adam or adamw, not {self.optimizer!r}.")
        known = ("constant", "linear", "cosine")
        check(self.lr_schedule in known, f"`lr_schedule` must be one of {list(known)}, not {self.lr_schedule!r}.")
        check(self.learning_rate > 0, f"`learning_rate` must be above 0, not {self.learning_rate}.")
        check(is_int(self.accumulate), f"`accumulate` must be at least 1, not {self.accumulate}.")
        check(is_int(self.warmup_steps, 0), f"`warmup_steps` must not be negative: {self.warmup_steps}.")
        check(self.clip_norm >= 0, f"`clip_norm` must not be negative: {self.clip_norm}.")
        decays = self.weight_decay == 0 or self.optimizer == "adamw"
        check(decays, "`weight_decay` belongs to `optimizer` adamw.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """The averages of the weights.

    Attributes:
        ema_decay: greatest decay of the average that is sampled from and published.
        ema_power: warm-up, decay 1 - (1 + step / ema_inv_gamma)^-ema_power until it reaches ema_decay (diffusers'
            train_unconditional has 3/4); 0 has none, as the paper.
        ema_inv_gamma: see there.
        power_ema: relative lengths of two more averages, from whose snapshots `ddpm-jax ema` makes one of any length
            afterwards (Karras et al. 2024); empty keeps none.
        snapshot_every: steps between their snapshots.
    """

    ema_decay: float = 0.9999
    ema_power: float = 0.75
    ema_inv_gamma: float = 1.0
    power_ema: tuple[float, ...] = ()
    snapshot_every: int = 10_000

    def __post_init__(self):
        check(0 <= self.ema_decay < 1, f"`ema_decay` must be from 0 to below 1, not {self.ema_decay}.")
        check(self.ema_power >= 0 and self.ema_inv_gamma > 0, "`ema_power` and `ema_inv_gamma` must not be negative.")
        good = all(0 < length < 0.28 for length in self.power_ema)
        check(good, f"`power_ema` must be relative lengths above 0 and below 0.28, as 0.05 0.10; not {self.power_ema}.")
        check(is_int(self.snapshot_every), f"`snapshot_every` must be at least 1, not {self.snapshot_every}.")
        check(self.power_ema or self.snapshot_every == 10_000, "`snapshot_every` belongs to `power_ema`.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run.

    Attributes:
        batch_size: images of a step, on all devices together.
        seed: of everything that is drawn.
        dtype: what convolutions and dense layers compute in; weights, optimiser and averages are float32.
        remat: compute activations again in the backward pass: less memory, a third more time.
        sharding: "data": weights on every device; "fsdp": weights, optimiser and averages split over them.
        steps: of the optimiser.
        save_every: steps between checkpoints.
        keep_last: how many stay.
        keep_every: those whose step is a multiple of it stay for good; 0 for none.
        log_every: steps between lines of metrics.jsonl.
        validate_every: steps between validation losses, with `held_out`.
        sample_every: steps between grids of samples; 0 for none.
        num_samples: in a grid.
        sample_evals: evaluations of the network a sample takes.
        tensorboard: also write its event files.
    """

    batch_size: int = 64
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    sharding: Literal["data", "fsdp"] = "data"
    steps: int = 100_000
    save_every: int = 1000
    keep_last: int = 2
    keep_every: int = 0
    log_every: int = 100
    validate_every: int = 1000
    sample_every: int = 5000
    num_samples: int = 64
    sample_evals: int = 20
    tensorboard: bool = False

    def __post_init__(self):
        positive = ("batch_size", "steps", "save_every", "keep_last", "log_every", "validate_every", "num_samples")
        for name in (*positive, "sample_evals"):
            check(is_int(getattr(self, name)), f"`{name}` must be at least 1, not {getattr(self, name)!r}.")
        for name in ("keep_every", "sample_every"):
            check(is_int(getattr(self, name), 0), f"`{name}` must not be negative: {getattr(self, name)!r}.")
        check(self.sharding in ("data", "fsdp"), f"`sharding` is data or fsdp, not {self.sharding!r}.")
        check_seed(self.seed)


# What may change when a run goes on: no weight does. That `data` is the same is seen in the images, not in their place.
MAY_CHANGE = (
    *("data", "held_out", "workers", "steps", "save_every", "keep_last", "keep_every", "log_every", "validate_every"),
    *("sample_every", "num_samples", "sample_evals", "tensorboard"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All of it.

    Example:
        >>> config = TrainConfig(data=DataConfig(data="photos/", resolution=64))
        >>> TrainConfig.from_dict(config.to_dict()) == config
        True
    """

    data: DataConfig
    model: ModelConfig = ModelConfig()
    objective: Objective = Objective()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self):
        batch, parts = self.run.batch_size, self.optimizer.accumulate
        check(batch % parts == 0, f"`batch_size` {batch} does not divide into {parts} parts (`accumulate`).")
        idle = self.run.validate_every != 1000 and self.data.held_out is None
        check(not idle, "`validate_every` belongs to `held_out`.")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, group by group."""
        items = dataclasses.asdict(self)
        if self.model.model_config is not None:
            items["model"]["model_config"] = str(self.model.model_config)
        return items

    @classmethod
    def from_dict(cls, items: dict[str, Any]) -> "TrainConfig":
        """Read what `to_dict` wrote."""
        groups = {}
        for field in dataclasses.fields(cls):
            group, given = field.type, items.get(field.name, {})
            known = {inner.name for inner in dataclasses.fields(group)}
            for name in given:
                check(name in known, f"`{field.name}` has no field `{name}`.{nearest(name, known)}")
            values = {name: freeze(value) for name, value in given.items()}
            if values.get("model_config") is not None:
                values["model_config"] = Path(values["model_config"])
            groups[field.name] = group(**values)
        return cls(**groups)


def differences(one: TrainConfig, other: TrainConfig) -> list[str]:
    """Name what differs between a run's config and the one it is to go on with, but for what may.

    Example:
        >>> config = TrainConfig(data=DataConfig(data="photos/"))
        >>> changed = dataclasses.replace(config, run=RunConfig(batch_size=32, steps=7))
        >>> differences(config, changed)
        ['batch_size 64 there, 32 here']
    """
    lines, here = [], other.to_dict()
    for group, items in one.to_dict().items():
        for name, value in items.items():
            now = here[group][name]
            fixed = name not in MAY_CHANGE or (name == "steps" and one.optimizer.lr_schedule != "constant")
            if fixed and now != value:
                why = f" (the learning rate is {one.optimizer.lr_schedule})" if name == "steps" else ""
                lines.append(f"{name} {value!r} there, {now!r} here{why}")
    return lines


def own_resolution(model: ModelConfig) -> int | None:
    """Return the side of the images that a `model_config` is for, if it is square and says so."""
    if model.model_config is None:
        return None
    size = read_json(model.model_config).get("sample_size")
    return size if is_int(size) else None


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
        other = [
            f"{name} {items[name]!r} there, {value!r} of the data"
            for name, value in common.items()
            if name != "sample_size" and items.get(name, value) != value
        ]
        check(not other, f"{model.model_config} does not fit: {'; '.join(other)}.")
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
