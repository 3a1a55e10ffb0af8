"""Samplers: `DDPM`, `DDIM`, the list `SAMPLERS` by name, and `run`, which runs a sampler's table on any network."""

import dataclasses
from typing import Any

from ddpm_jax.config import SamplerConfig, scheduler_from_dict
from ddpm_jax.samplers.ancestral import DDIM, DDPM
from ddpm_jax.samplers.base import Sampler, Switches, Table, run
from ddpm_jax.validation import nearest

__all__ = [
    "DDIM",
    "DDPM",
    "SAMPLERS",
    "Sampler",
    "Switches",
    "Table",
    "by_name",
    "from_config",
    "is_built",
    "run",
]

SAMPLERS: dict[str, type[Sampler]] = {"ddpm": DDPM, "ddim": DDIM}

_OF_SCHEDULER = {
    "DDPMScheduler": DDPM,
    "DDPMParallelScheduler": DDPM,
    "DDIMScheduler": DDIM,
    "DDIMParallelScheduler": DDIM,
}


def by_name(name: str) -> Sampler:
    """Return the sampler of a name in SAMPLERS, with its default knobs.

    Raises:
        ValueError: an unknown name; the message lists the known ones.

    Example:
        >>> by_name("ddim").num_steps
        50
    """
    if name not in SAMPLERS:
        raise ValueError(f"There is no sampler {name!r}.{nearest(str(name), SAMPLERS)} There is {', '.join(SAMPLERS)}.")
    return SAMPLERS[name]()


def is_built(config: SamplerConfig) -> bool:
    """Tell whether the scheduler that a checkpoint names has a sampler here."""
    return config.class_name in _OF_SCHEDULER


def from_config(config: dict[str, Any] | SamplerConfig, *, num_steps: int | None = None) -> Sampler:
    """Return the sampler that a scheduler config of diffusers names, with its knobs.

    Keys that the scheduler does not have are passed over, as diffusers does (its files carry those of other
    schedulers along); so are those of the forward process.

    Args:
        config: the contents of a `scheduler_config.json`, or `params.config.sampler`.
        num_steps: steps of the grid; by default all for DDPM and 50 for DDIM, as in diffusers' pipelines.

    Raises:
        ValueError: a scheduler that is not built yet.

    Example:
        >>> from_config({"_class_name": "DDPMScheduler", "clip_sample": False}).clip is None
        True
    """
    if not isinstance(config, SamplerConfig):
        _, config = scheduler_from_dict(config)
    class_name, items = config.class_name, config.to_dict()
    if class_name not in _OF_SCHEDULER:
        raise ValueError(
            f"The checkpoint's scheduler, {class_name}, has no sampler here yet. Pass one of SAMPLERS "
            f"({', '.join(SAMPLERS)}) as `sampler`; `apply` and `predict` work with any checkpoint."
        )
    sampler = _OF_SCHEDULER[class_name]
    names = {field.name for field in dataclasses.fields(sampler)}
    knobs = {name: value for name, value in items.items() if name in names and value is not None}
    clip_range = items.get("clip_sample_range")
    knobs["clip"] = (1.0 if clip_range is None else clip_range) if items.get("clip_sample", True) else None
    if num_steps is not None:
        knobs["num_steps"] = num_steps
    return sampler(**knobs)
