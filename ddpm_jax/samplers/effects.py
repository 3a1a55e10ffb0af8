"""Knobs of a sampler that do nothing beside its other knobs: they are refused, or dropped where a file brings them."""

import types
from collections.abc import Mapping
from typing import Any

from ddpm_jax.validation import Rule


def idle_knobs(sampler: type, knobs: Mapping[str, Any]) -> dict[str, Rule]:
    """Return the knobs that are set and do nothing beside the others, with the rule that says where each would act.

    Args:
        sampler: a dataclass; ACTS of it and of its parents are the rules.
        knobs: those that are set; they may not be checked yet.

    Example:
        >>> idle_knobs(ddpm_jax.samplers.Heun, {"s_noise": 1.003})["s_noise"].words
        '`s_churn` is above 0'
    """
    defaults = {name: field.default for name, field in sampler.__dataclass_fields__.items()}
    values = types.SimpleNamespace(**{**defaults, **knobs})
    return {
        name: rule
        for parent in sampler.__mro__
        for name, rule in vars(parent).get("ACTS", {}).items()
        if name in knobs and knobs[name] != defaults[name] and not rule.holds(values)
    }


def check_effects(sampler: Any) -> None:
    """Refuse a sampler with a knob that does nothing.

    Raises:
        ValueError: names the knob, its value, where it would act, and its default.
    """
    fields = type(sampler).__dataclass_fields__
    for name, rule in idle_knobs(type(sampler), {name: getattr(sampler, name) for name in fields}).items():
        value, default = getattr(sampler, name), fields[name].default
        raise ValueError(
            f"`{name}` does nothing here, set to {value!r}: it acts where {rule.words}. Leave it at its default, "
            f"{default!r}."
        )


def with_effects(sampler: type, own: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Return a sampler with knobs of its file and given ones; given ones win, and idle ones of the file are dropped.

    Example:
        >>> own = {"timestep_spacing": "leading", "steps_offset": 1}
        >>> with_effects(ddpm_jax.samplers.Euler, own, {"timestep_spacing": "karras"}).steps_offset
        0
    """
    knobs = {**own, **given}
    dropped = idle_knobs(sampler, knobs).keys() - given.keys()
    return sampler(**{name: value for name, value in knobs.items() if name not in dropped})
