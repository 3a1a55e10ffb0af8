"""What a run may begin with, and what may differ when it is resumed."""

from typing import Any

from ddpm_jax import validation
from ddpm_jax.random_keys import check_seed
from ddpm_jax.training.settings import (
    OF_THE_NETWORK,
    OF_THE_SCHEDULE,
    TrainConfig,
    acts,
    defaults,
    kinds,
    of_this_version,
)
from ddpm_jax.validation import check, freeze

# Settings that may change on resume because they do not affect the weights. `data` may move: a fingerprint checks the
# images.
MAY_CHANGE = (
    *("data", "held_out", "accept_changed_data", "workers", "steps", "save_every", "keep_last", "keep_every"),
    *("log_every", "validate_every", "sample_every", "num_samples", "sample_evals", "tensorboard"),
)


def differences(record: dict[str, Any], config: TrainConfig) -> list[str]:
    """Name the settings that differ between a run's record and the config that is to continue it.

    Settings that may change are skipped, and so are settings without effect, which earlier versions recorded.

    Args:
        record: the `config` of a run's train.json.
        config: of the resumed run.

    Example:
        >>> from ddpm_jax.training import DataConfig, LoopConfig
        >>> config = TrainConfig(data=DataConfig(data="photos/"))
        >>> differences(config.to_dict(), TrainConfig(data=config.data, loop=LoopConfig(batch_size=32, steps=7)))
        ['batch_size 64 there, 32 here']
    """
    config, record = config.resolved(), of_this_version(record)
    lines, rate = [], config.optimizer.lr_schedule
    for group, kind in kinds().items():
        settings, there = getattr(config, group), record.get(group, {})
        for name, default in defaults(kind).items():
            now, before = getattr(settings, name), freeze(there.get(name))
            if before is None:  # not recorded, or not given
                before = (OF_THE_NETWORK | OF_THE_SCHEDULE).get(name, default)
            fixed = name not in MAY_CHANGE or (name == "steps" and rate != "constant")
            if fixed and acts(config, kind, group, name):
                why = f" (the learning rate is {rate})" if name == "steps" else ""
                lines += [f"{line}{why}" for line in validation.differences({name: before}, {name: now})]
        unknown = set(there) - defaults(kind).keys()
        lines += [f"{name} {there[name]!r} there, unknown to this version" for name in sorted(unknown)]
    return lines


def check_new_run(config: TrainConfig) -> None:
    """Refuse settings that no run should begin with. A run that was begun with them can be resumed."""
    warmup, steps, seed = config.optimizer.warmup_steps, config.loop.steps, config.loop.seed
    check(
        warmup < steps,
        f"`warmup_steps` {warmup} is not below `steps` {steps}, so the learning rate would never be reached: take "
        f"fewer, as {steps // 10}.",
    )
    check_seed(seed)
    check(
        config.data.class_conditional or not config.objective.label_dropout,
        "`label_dropout` is for data with classes (`class_conditional`).",
    )


def check_batch(config: TrainConfig, num_devices: int) -> None:
    """Refuse a batch that cannot be split evenly over the devices and the parts of gradient accumulation."""
    batch, count = config.loop.batch_size, config.optimizer.accumulate
    parts = num_devices * count
    near = sorted({max(batch // parts, 1) * parts, -(-batch // parts) * parts})
    check(
        batch % parts == 0,
        f"`batch_size` {batch} does not divide over {num_devices} device{'s' if num_devices > 1 else ''} x {count} "
        f"part{'s' if count > 1 else ''} (`accumulate`): use {' or '.join(map(str, near))}.",
    )
