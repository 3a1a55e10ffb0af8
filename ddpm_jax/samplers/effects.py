"""Sampler knobs that have no effect beside the others: refuse them, or drop them where a file sets them."""

import types
from collections.abc import Mapping
from typing import Any

from ddpm_jax.validation import Rule


def idle_knobs(sampler: type, knobs: Mapping[str, Any]) -> dict[str, Rule]:
    """Return the knobs that are set and have no effect beside the others, each with the rule that says where it acts.

    Args:
        sampler: a dataclass; its rules are the `ACTS` of the class and of its parents.
        knobs: the knobs that are set, by name; they may not be checked yet.

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
    """Refuse a sampler with a knob that has no effect.

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
    """Return a sampler with the knobs of a file and given ones.

    Given ones win. A knob of the file that has no effect beside them is dropped.

    Example:
        >>> own = {"timestep_spacing": "leading", "steps_offset": 1}
        >>> with_effects(ddpm_jax.samplers.Euler, own, {"timestep_spacing": "karras"}).steps_offset
        0
    """
    knobs = {**own, **given}
    dropped = idle_knobs(sampler, knobs).keys() - given.keys()
    return sampler(**{name: value for name, value in knobs.items() if name not in dropped})
