"""The settings of a training run: every number that decides its result, and some that only decide what is shown.

Each group is a frozen dataclass. On the command line its fields are flags.
"""

import dataclasses
import types
from pathlib import Path
from typing import Any, ClassVar, Literal

from ddpm_jax.config import (
    DIFFUSERS_BETA_SCHEDULES,
    ORIGINAL_BETA_SCHEDULES,
    PREDICTION_TYPES,
)
from ddpm_jax.images.picture import ground_of
from ddpm_jax.losses import Objective
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

    A folder is searched with all folders below it, links followed, for every kind of picture that Pillow decodes; of an
    animation the first frame counts. Some files are left out, and the first line of a run counts them: hidden files and
    folders (.ipynb_checkpoints), those of a system (__MACOSX, Thumbs.db), folders that hold a run, a set of samples or
    a checkpoint, the run's own folder, and files of other kinds. Pictures are turned upright by their EXIF orientation.
    16 bits are scaled to 8; 32 bits are refused. Arrays are taken as they are.

    Attributes:
        data: a folder of images, an .npz or .npy file of uint8 images [n, h, w, c], or "digits" (scikit-learn's 1797).
        held_out: the same, for the validation loss.
        resolution: side of the square images; None takes that of `init` or `model_config`, or of the arrays.
        image_channels: 1 turns all images grey, 3 turns them to colour. None keeps them as they are (grey if all are
            grey); only grey files become colour for an `init` or `model_config` of 3 channels.
        background: colour below transparent pixels: white, black, #rrggbb, or "none" for the colours that are stored
            under them. None is white; a run that was begun before this setting existed keeps "none".
        crop: "center": the largest square in the middle; "random_resized": a random square of a random share of the
            largest one's area.
        min_crop: the smallest share.
        flip: mirror each image with probability 1/2, drawn again each time.
        class_conditional: take the folders right below `data` as classes, numbered in the order of their names, by
            value if all are integers; folders without images are named and left out. Arrays: `labels` in the .npz,
            integers from 0 up, and optionally `class_names`.
        skip_broken: leave broken image files out instead of refusing the folder.
        accept_changed_data: with `resume`, continue though files are new, gone or changed; the record is updated.
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

    VALUES: ClassVar[dict[str, Rule]] = {
        "resolution": optional(integer()),
        "image_channels": Rule("1 (grey), 3 (colour) or None", lambda value: value in (None, 1, 3)),
        "crop": choice("center", "random_resized"),
        "min_crop": Rule("a number above 0 and at most 1", lambda value: is_number(value) and 0 < value <= 1),
        "flip": FLAG,
        "class_conditional": FLAG,
        "skip_broken": FLAG,
        "accept_changed_data": FLAG,
        "workers": integer(),
    }
    ACTS: ClassVar[dict[str, Rule]] = {"min_crop": where("crop", "random_resized")}

    def __post_init__(self):
        check_settings(self)
        if self.background is not None:
            ground_of(self.background)


# What `init` and `model_config` bring with them, and its values where neither is given.
OF_THE_NETWORK = {
    "channels": 128,
    "channel_multipliers": (1, 2, 2, 2),
    "layers_per_block": 2,
    "attention_resolutions": (16,),
    "attention_head_dim": None,
    "norm_num_groups": 32,
}
OF_THE_SCHEDULE = {"prediction_type": "epsilon", "beta_schedule": "linear", "num_train_timesteps": 1000}
_NEW_NETWORK = Rule(
    "a run without `init` and `model_config`, which bring their own",
    lambda model: model.init is None and model.model_config is None,
)
_NEW_SCHEDULE = Rule("a run without `init`, which brings its own", lambda model: model.init is None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network and the schedule, in the paper's terms. None means "not given".

    Attributes:
        init: fine-tune this checkpoint (hub id or folder). It brings network and schedule; only `dropout` is taken from
            these settings.
        model_config: a UNet2DModel config.json of diffusers. It brings the network; `dropout` and the schedule are
            taken from these settings.
        dropout: rate in the residual blocks.
        channels: of the first level; 128 if not given.
        channel_multipliers: channels of each level, as multiples of the first's; 1 2 2 2 if not given.
        layers_per_block: residual blocks of a level; 2 if not given.
        attention_resolutions: sides of the feature maps that have attention; 16 if not given.
        attention_head_dim: channels of a head; one head if not given.
        norm_num_groups: groups of the group norms; 32 if not given.
        prediction_type: what the network predicts; epsilon if not given.
        beta_schedule: of the noise; linear if not given.
        num_train_timesteps: T; 1000 if not given.
    """

    init: str | None = None
    model_config: Path | None = None
    dropout: float = 0.0
    channels: int | None = None
    channel_multipliers: tuple[int, ...] | None = None
    layers_per_block: int | None = None
    attention_resolutions: tuple[int, ...] | None = None
    attention_head_dim: int | None = None
    norm_num_groups: int | None = None
    prediction_type: Literal["epsilon", "sample", "v_prediction"] | None = None
    beta_schedule: str | None = None
    num_train_timesteps: int | None = None

    VALUES: ClassVar[dict[str, Rule]] = {
        "init": Rule("a folder or an id of the hub, or None", lambda value: value is None or bool(str(value))),
        "dropout": number(0, 1),
        "channels": optional(integer()),
        "channel_multipliers": optional(several(integer(), least=1)),
        "layers_per_block": optional(integer()),
        "attention_resolutions": optional(several(integer())),
        "attention_head_dim": optional(integer()),
        "norm_num_groups": optional(integer()),
        "prediction_type": optional(choice(*PREDICTION_TYPES)),
        "beta_schedule": optional(choice(*DIFFUSERS_BETA_SCHEDULES, *ORIGINAL_BETA_SCHEDULES)),
        "num_train_timesteps": optional(integer()),
    }
    ACTS: ClassVar[dict[str, Rule]] = dict.fromkeys(OF_THE_NETWORK, _NEW_NETWORK) | dict.fromkeys(
        ("model_config", *OF_THE_SCHEDULE), _NEW_SCHEDULE
    )

    def __post_init__(self):
        check_settings(self)

    def resolved(self) -> "ModelConfig":
        """Return the settings with a value for all that was not given, except what `init` or `model_config` brings.

        Example:
            >>> ModelConfig().resolved().channels, ModelConfig(init="google/ddpm-cat-256").resolved().channels
            (128, None)
        """
        values = {
            name: value
            for name, value in (OF_THE_NETWORK | OF_THE_SCHEDULE).items()
            if getattr(self, name) is None and self.ACTS[name].holds(self)
        }
        return dataclasses.replace(self, **values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser.

    Attributes:
        optimizer: "adam", or "adamw" for decoupled weight decay; with `weight_decay` 0 they are the same.
        learning_rate: the highest, reached at the end of the warm-up.
        lr_schedule: shape after the warm-up. "linear" and "cosine" reach 0 at `steps`.
        warmup_steps: steps in which the learning rate rises from 0.
        adam_b1, adam_b2, adam_eps: Adam's beta_1, beta_2 and epsilon.
        weight_decay: AdamW's.
        clip_norm: the gradient's largest global norm; 0 never clips.
        accumulate: split each batch into this many parts and accumulate their gradients.
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
        ema_decay: the largest decay of the average that is sampled from and published.
        ema_power: exponent of the warm-up, in which the decay is 1 - (1 + step / ema_inv_gamma)^-ema_power until it
            reaches ema_decay (diffusers' train_unconditional has 3/4); 0 has no warm-up, as the paper.
        ema_inv_gamma: the gamma of that formula, in steps.
        power_ema: relative lengths of two more averages; from their snapshots, `ddpm-jax ema` computes an average of
            any length afterwards (Karras et al. 2024). Empty keeps none.
        snapshot_every: steps between those snapshots.
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
            "different relative lengths above 0 and below 0.28, as 0.05 0.10",
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
class LoopConfig:
    """The loop: what a step takes, how many there are, and what is written on the way.

    Attributes:
        batch_size: images of a step, on all devices together.
        seed: of everything that is drawn.
        dtype: compute dtype of convolutions and dense layers; weights, optimiser and averages are float32.
        remat: recompute activations in the backward pass: less memory, a third more time.
        sharding: "data": weights on every device; "fsdp": weights, optimiser and averages split over the devices.
        steps: optimiser steps of the whole run.
        save_every: steps between checkpoints.
        keep_last: number of newest checkpoints kept.
        keep_every: checkpoints whose step is a multiple of this are kept for good; 0 for none.
        log_every: steps between lines of metrics.jsonl.
        validate_every: steps between validation losses, with `held_out`.
        sample_every: steps between grids of samples; 0 for none.
        num_samples: images in a grid.
        sample_evals: network evaluations of a sample.
        tensorboard: also write TensorBoard's event files.
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
        ("num_samples", "sample_evals"), Rule("`sample_every` above 0", lambda loop: loop.sample_every > 0)
    )

    def __post_init__(self):
        check_settings(self)


# Settings that act only beside settings of another group: group -> field -> rule for the whole.
_ACTS_ACROSS = {
    "loop": {"validate_every": Rule("`held_out`", lambda config: config.data.held_out is not None)},
    "objective": {
        "variance_type": Rule(
            "a run without `init`, which brings its own, or to `loss_type` vlb",
            lambda config: config.model.init is None or _variance_is_trained(config.objective),
        )
    },
}


def _variance_is_trained(objective: Any) -> bool:
    return objective.loss_type == "vlb" or objective.variance_type == "learned_range"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a run.

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
    loop: LoopConfig = LoopConfig()

    def __post_init__(self):
        for group, rules in _ACTS_ACROSS.items():
            check_acts(getattr(self, group), rules, self)

    def resolved(self) -> "TrainConfig":
        """Return the settings with a value for all that was not given: what a run records."""
        return dataclasses.replace(self, model=self.model.resolved())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, group by group."""
        items = dataclasses.asdict(self)
        if self.model.model_config is not None:
            items["model"]["model_config"] = str(self.model.model_config)
        return items

    @classmethod
    def from_dict(cls, items: dict[str, Any]) -> "TrainConfig":
        """Read what `to_dict` of this version or an earlier one wrote.

        Version 0.1 also recorded settings that did nothing. They are dropped.

        Raises:
            ValueError: a field that no version had, a value out of range.
        """
        given, groups = of_this_version(items), {}
        for group, kind in kinds().items():
            known, found = {field.name for field in dataclasses.fields(kind)}, given.get(group, {})
            for name in found:
                check(name in known, f"`{group}` has no field `{name}`.{nearest(name, known)}")
            values = {name: freeze(value) for name, value in found.items()}
            if values.get("model_config") is not None:
                values["model_config"] = Path(values["model_config"])
            groups[group] = values
        views = {group: types.SimpleNamespace(**defaults(kind) | groups[group]) for group, kind in kinds().items()}
        whole = types.SimpleNamespace(**views)
        return cls(
            **{
                group: kind(**{name: value for name, value in groups[group].items() if acts(whole, kind, group, name)})
                for group, kind in kinds().items()
            }
        )


def of_this_version(items: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded config with the groups named as they are now: version 0.1 called `loop` `run`."""
    return {"loop" if name == "run" else name: group for name, group in items.items()}


def kinds() -> dict[str, Any]:
    """Return the dataclass of each group of settings, by the group's name."""
    return {field.name: field.type for field in dataclasses.fields(TrainConfig)}


def defaults(group: type) -> dict[str, Any]:
    """Return the fields of a group of settings with their defaults."""
    return {field.name: field.default for field in dataclasses.fields(group)}


def acts(whole: Any, group: type, group_name: str, name: str) -> bool:
    """Tell whether a field has an effect beside all others."""
    own, across = group.ACTS.get(name), _ACTS_ACROSS.get(group_name, {}).get(name)
    return (own is None or own.holds(getattr(whole, group_name))) and (across is None or across.holds(whole))
