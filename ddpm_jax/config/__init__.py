"""What a checkpoint is, besides its weights: frozen, hashable configs.

`Config(unet, schedule, sampler)` holds no array. The fields have diffusers' JSON names to the letter, so a published
JSON file is a config. Every value is checked when the config is made.
"""

import dataclasses

from ddpm_jax.config.sampler import SamplerConfig
from ddpm_jax.config.schedule import (
    DIFFUSERS_BETA_SCHEDULES,
    ORIGINAL_BETA_SCHEDULES,
    PREDICTION_TYPES,
    ScheduleConfig,
)
from ddpm_jax.config.schedulers import scheduler_from_dict, scheduler_to_dict
from ddpm_jax.config.unet import UNetConfig
from ddpm_jax.validation import check, freeze, is_int

__all__ = [
    "DIFFUSERS_BETA_SCHEDULES",
    "ORIGINAL_BETA_SCHEDULES",
    "PREDICTION_TYPES",
    "Config",
    "SamplerConfig",
    "ScheduleConfig",
    "UNetConfig",
    "scheduler_from_dict",
    "scheduler_to_dict",
]


@dataclasses.dataclass(frozen=True)
class Config:
    """Describe a checkpoint: the network, the schedule and the sampler.

    Configs are hashable and compared by value, so weights of equal configs share their compiled programs.

    Attributes:
        unet: the network.
        schedule: the forward process, and what the network predicts.
        sampler: the sampler that the checkpoint asks for.
        class_names: names of the classes 0, 1, ... of a network with a table of classes; empty if they have no names.
        null_class: the row of that table that means "no class", for classifier-free guidance. None if there is none,
            or if it is not known; label dropout in training then takes the last row (`dropped_class`).

    Raises:
        ValueError: names or a null class for a network that has no table of classes, more names than classes, a name
            twice, a null class out of range.

    Example:
        >>> config = Config(UNetConfig(block_out_channels=(32,), down_block_types=("DownBlock2D",),
        ...                            up_block_types=("UpBlock2D",)))
        >>> config.sampler.class_name, hash(config) == hash(Config(config.unet))
        ('DDPMScheduler', True)
    """

    unet: UNetConfig
    schedule: ScheduleConfig = ScheduleConfig()
    sampler: SamplerConfig = SamplerConfig()
    class_names: tuple[str, ...] = ()
    null_class: int | None = None

    @property
    def dropped_class(self) -> int:
        """The class that label dropout puts in an image's place: `null_class`, or the last row of the table."""
        return self.unet.num_classes - 1 if self.null_class is None else self.null_class

    def __post_init__(self):
        names, null, count = freeze(self.class_names), self.null_class, self.unet.num_classes
        object.__setattr__(self, "class_names", names)
        good = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
        check(good, f"`class_names` must be a list of strings, not {names!r}.")
        check(len(names) <= count, f"`class_names` has {len(names)} names; the network has {count} classes.")
        check(len(set(names)) == len(names), f"`class_names` holds a name twice: {list(names)}.")
        good = null is None or (is_int(null, 0) and null < count)
        check(good, f"`null_class` must be one of the network's {count} classes or None, not {null!r}.")
