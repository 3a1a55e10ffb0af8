"""The sampler and the table that go with a checkpoint's network, or why they do not go together."""

import dataclasses
import functools

import numpy as np

from ddpm_jax.config import Config, ScheduleConfig
from ddpm_jax.samplers import registry
from ddpm_jax.samplers.base import Sampler, Table


def table_of(sampler: Sampler | str | None, config: Config) -> Table:
    """Return the table of a sampler for a checkpoint's network.

    Args:
        sampler: an instance, a name in SAMPLERS, or None for the one that the checkpoint's scheduler config names.
        config: of the checkpoint.

    Raises:
        TypeError: no sampler.
        ValueError: a name that is unknown, a schedule or output channels that the sampler cannot do with.

    Example:
        >>> table_of("ddim", ddpm_jax.load("digits-16").config).num_evals
        50
    """
    unet, table = config.unet, _cached_table(_resolved(sampler, config), config.schedule)
    if unet.time_embedding_type == "learned":  # one row for each whole timestep
        table = dataclasses.replace(table, t=np.round(table.t))
    allowed = tuple(unet.in_channels * factor for factor in ((1, 2) if table.variance == "fixed" else (2,)))
    if unet.out_channels not in allowed:
        raise ValueError(
            f"The network puts out {unet.out_channels} channels for {unet.in_channels} of the image; variance "
            f"{table.variance!r} needs {' or '.join(map(str, allowed))} (twice as many with a learned variance)."
        )
    return table


@functools.lru_cache(maxsize=128)
def _cached_table(sampler: Sampler, schedule: ScheduleConfig) -> Table:
    return sampler.table(schedule)


def _resolved(sampler: Sampler | str | None, config: Config) -> Sampler:
    if sampler is None:
        return registry.from_config(config.sampler)
    if isinstance(sampler, str):
        return registry.by_name(sampler)
    if not isinstance(sampler, Sampler):
        raise TypeError(
            f"`sampler` must be a sampler such as samplers.DDIM(num_steps=50), a name in samplers.SAMPLERS, or None; "
            f"not {sampler!r}."
        )
    return sampler
