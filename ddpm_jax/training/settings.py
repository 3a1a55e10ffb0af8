"""What a training run is told: every number that decides the result, and a few that do not.

The groups are a frozen dataclass each; on the command line their fields are plain flags.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

from ddpm_jax import validation
from ddpm_jax.config import (
    DIFFUSERS_BETA_SCHEDULES,
    ORIGINAL_BETA_SCHEDULES,
    PREDICTION_TYPES,
)
from ddpm_jax.images.picture import ground_of
from ddpm_jax.losses import Objective
from ddpm_jax.random_keys import check_seed
from ddpm_jax.validation import (
    FLAG,
    POSITIVE,
    Rule,
    check,
    check_acts,
    check_settings,
    choice,
    freeze,
    integer,
    is_int,
    is_number,
    nearest,
    number,
    optional,
    several,
    where,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images.

    A folder is searched with all folders below, links followed, for every kind of picture that Pillow decodes; of an
    animation the first frame counts. Left out, and counted in the first line of a run, are hidden files and folders
    (.ipynb_checkpoints), those of a system (__MACOSX, Thumbs.db), folders that hold a run, a set of samples or a
    checkpoint, the run's own folder, and files of other kinds. Pictures stand as their camera was held, 16 bits are
    scaled to 8; 32 bits are refused. An array is taken as it is.

    Attributes:
        data: a folder of images (sub-folders are searched), an .npz or .npy of uint8 images [n, h, w, c], or "digits"
            (scikit-learn's 1797).
        held_out: the same, for the validation loss.
        resolution: side of the square images; if None, that of the network that is brought, or of the arrays.
        image_channels: 1 makes all images grey, 3 colour; if None they stay as they are (grey if all are grey), but
            that grey pictures become colour for a network that is brought and takes 3 channels.
        background: what transparent pixels are laid on: a colour as white, black or #rrggbb, or "none" for the colours
            that lie hidden below; if None white (a run that was begun before this setting goes on with "none").
        crop: "center": the largest square in the middle; "random_resized": a square of a random share of its area.
        min_crop: the least share.
        flip: mirror half of the images, drawn anew each time.
        class_conditional: the folders right below are classes, numbered in the order of their names, by value if all
            are integers; one without images is none, and is named. Arrays: `labels`, integers from 0 up, in the .npz,
            and `class_names` if there are names.
        skip_broken: leave broken image files out, instead of refusing the folder.
        accept_changed_data: with `resume`, go on though files are new, gone or changed; what there is now is recorded.
        workers: threads that decode images.
    """

    data: str
    held_out: str | None = None
    resolution: int | None = None
    image_channels: int | None = None
    background: str | None = None
    crop: Literal["center", "random_resized"] = "center"
    min_crop: float = 0.5
    flip: bool = True
    class_conditional: bool = False
    skip_broken: bool = False
    accept_changed_data: bool = False
    workers: int = 8

    def __post_init__(self):
        known = self.image_channels in (None, 1, 3)
        check(known, f"`image_channels` is 1 (grey) or 3 (colour), not {self.image_channels!r}.")
        if self.background is not None:
            ground_of(self.background)
        check(self.resolution is None or is_int(self.resolution), f"`resolution` must be positive: {self.resolution}.")
        check(self.crop in ("center", "random_resized"), f"`crop` is center or random_resized, not {self.crop!r}.")
        check(0 < self.min_crop <= 1, f"`min_crop` must be above 0 and at most 1, not {self.min_crop}.")
        check(self.crop != "center" or self.min_crop == 0.5, "`min_crop` belongs to `crop` random_resized.")
        check(is_int(self.workers), f"`workers` must be at least 1, not {self.workers}.")


OF_THE_NETWORK = (
    *("channels", "channel_multipliers", "layers_per_block", "attention_resolutions", "attention_head_dim"),
    "norm_num_groups",
)
OF_THE_SCHEDULE = ("prediction_type", "beta_schedule", "num_train_timesteps")
_NEW_NETWORK = Rule(
    "a run without `init` and `model_config`, which bring their own",
    lambda model: model.init is None and model.model_config is None,
)
_NEW_SCHEDULE = Rule("a run without `init`, which brings its own", lambda model: model.init is None)


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

    VALUES: ClassVar[dict[str, Rule]] = {
        "init": Rule("a folder or an id of the hub, or None", lambda value: value is None or bool(str(value))),
        "dropout": number(0, 1),
        "channels": integer(),
        "channel_multipliers": several(integer(), least=1),
        "layers_per_block": integer(),
        "attention_resolutions": several(integer()),
        "attention_head_dim": optional(integer()),
        "norm_num_groups": integer(),
        "prediction_type": choice(*PREDICTION_TYPES),
        "beta_schedule": choice(*DIFFUSERS_BETA_SCHEDULES, *ORIGINAL_BETA_SCHEDULES),
        "num_train_timesteps": integer(),
    }
    ACTS: ClassVar[dict[str, Rule]] = dict.fromkeys(OF_THE_NETWORK, _NEW_NETWORK) | dict.fromkeys(
        ("model_config", *OF_THE_SCHEDULE), _NEW_SCHEDULE
    )

    def __post_init__(self):
        check_settings(self)


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

    VALUES: ClassVar[dict[str, Rule]] = {
        "optimizer": choice("adam", "adamw"),
        "learning_rate": POSITIVE,
        "lr_schedule": choice("constant", "linear", "cosine"),
        "warmup_steps": integer(0),
        "adam_b1": number(0, 1),
        "adam_b2": number(0, 1),
        "adam_eps": POSITIVE,
        "weight_decay": number(0),
        "clip_norm": number(0),
        "accumulate": integer(),
    }
    ACTS: ClassVar[dict[str, Rule]] = {"weight_decay": where("optimizer", "adamw")}

    def __post_init__(self):
        check_settings(self)


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

    VALUES: ClassVar[dict[str, Rule]] = {
        "ema_decay": number(0, 1),
        "ema_power": number(0),
        "ema_inv_gamma": POSITIVE,
        "power_ema": Rule(
            "relative lengths above 0 and below 0.28, each another, as 0.05 0.10",
            lambda value: all(is_number(x) and 0 < x < 0.28 for x in value) and len(set(value)) == len(value),
        ),
        "snapshot_every": integer(),
    }
    ACTS: ClassVar[dict[str, Rule]] = {
        "ema_power": Rule("`ema_decay` above 0", lambda ema: ema.ema_decay > 0),
        "ema_inv_gamma": Rule("`ema_power` above 0", lambda ema: ema.ema_power > 0 and ema.ema_decay > 0),
        "snapshot_every": Rule("`power_ema`", lambda ema: bool(ema.power_ema)),
    }

    def __post_init__(self):
        check_settings(self)


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

    VALUES: ClassVar[dict[str, Rule]] = {
        "batch_size": integer(),
        "seed": integer(0),
        "dtype": choice("float32", "bfloat16"),
        "remat": FLAG,
        "sharding": choice("data", "fsdp"),
        "steps": integer(),
        "save_every": integer(),
        "keep_last": integer(),
        "keep_every": integer(0),
        "log_every": integer(),
        "validate_every": integer(),
        "sample_every": integer(0),
        "num_samples": integer(),
        "sample_evals": integer(),
        "tensorboard": FLAG,
    }
    ACTS: ClassVar[dict[str, Rule]] = dict.fromkeys(
        ("num_samples", "sample_evals"), Rule("`sample_every` above 0", lambda run: run.sample_every > 0)
    )

    def __post_init__(self):
        check_settings(self)


# What may change when a run goes on: no weight does. That `data` is the same is seen in the images, not in their place.
MAY_CHANGE = (
    *("data", "held_out", "accept_changed_data", "workers", "steps", "save_every", "keep_last", "keep_every"),
    *("log_every", "validate_every", "sample_every", "num_samples", "sample_evals", "tensorboard"),
)


# Where a setting acts, as far as other groups decide it: group -> field -> rule.
_ACTS_ACROSS = {
    "run": {"validate_every": Rule("`held_out`", lambda config: config.data.held_out is not None)},
    "objective": {
        "variance_type": Rule(
            "a run without `init`, which brings its own, or to `loss_type` vlb",
            lambda config: config.model.init is None or _variance_is_trained(config.objective),
        )
    },
}


def _variance_is_trained(objective: Objective) -> bool:
    return objective.loss_type == "vlb" or objective.variance_type == "learned_range"


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
        for group, rules in _ACTS_ACROSS.items():
            check_acts(getattr(self, group), rules, self)

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


def differences(record: dict[str, Any], config: TrainConfig) -> list[str]:
    """Name what differs between a run's config, as its record has it, and the one it is to go on with.

    What may change is passed over, and so is what does nothing in this run: older versions wrote it down.

    Example:
        >>> config = TrainConfig(data=DataConfig(data="photos/"))
        >>> differences(config.to_dict(), dataclasses.replace(config, run=RunConfig(batch_size=32, steps=7)))
        ['batch_size 64 there, 32 here']
    """
    lines, rate = [], config.optimizer.lr_schedule
    for group in dataclasses.fields(config):
        settings, there = getattr(config, group.name), record.get(group.name, {})
        for field in dataclasses.fields(settings):
            before, now = freeze(there.get(field.name, field.default)), getattr(settings, field.name)
            fixed = field.name not in MAY_CHANGE or (field.name == "steps" and rate != "constant")
            if fixed and _acts(config, settings, group.name, field.name):
                why = f" (the learning rate is {rate})" if field.name == "steps" else ""
                lines += [f"{line}{why}" for line in validation.differences({field.name: before}, {field.name: now})]
        unknown = set(there) - {field.name for field in dataclasses.fields(settings)}
        lines += [f"{name} {there[name]!r} there, unknown to this version" for name in sorted(unknown)]
    return lines


def _acts(config: TrainConfig, settings: Any, group: str, name: str) -> bool:
    own, across = getattr(settings, "ACTS", {}).get(name), _ACTS_ACROSS.get(group, {}).get(name)
    return (own is None or own.holds(settings)) and (across is None or across.holds(config))


def check_new_run(config: TrainConfig) -> None:
    """Refuse what a new run could do nothing with. An old one goes on as it began."""
    warmup, steps, seed = config.optimizer.warmup_steps, config.run.steps, config.run.seed
    check(
        warmup < steps,
        f"`warmup_steps` {warmup} is not below `steps` {steps}, so that the learning rate would never be reached: take "
        f"fewer, as {steps // 10}.",
    )
    check_seed(seed)
    check(
        config.data.class_conditional or not config.objective.label_dropout,
        "`label_dropout` is for data with classes (`class_conditional`).",
    )
