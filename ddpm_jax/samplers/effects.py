"""Sampler knobs that have no effect beside the others: refuse them, or drop them where a file sets them."""

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ddpm_jax.validation import check


class Acts(NamedTuple):
    """A rule: some knobs act only under a condition. Where it does not hold they must have their defaults.

    Attributes:
        names: the knobs.
        where: the condition, a function of all knobs, which may not be checked yet.
        words: the condition in words, which follow "it acts".
    """

    names: tuple[str, ...]
    where: Callable[[Any], bool]
    words: str


def idle_knobs(sampler: type, knobs: Mapping[str, Any]) -> dict[str, str]:
    """Return the knobs that are set and have no effect beside the others, each with the condition under which it acts.

    Args:
        sampler: a dataclass; its rules are the `_acts` of the class and of its parents.
        knobs: the knobs that are set, by name.

    Example:
        >>> idle_knobs(ddpm_jax.samplers.Heun, {"s_noise": 1.003})
        {'s_noise': 'where `s_churn` is above 0'}
    """
    defaults = {name: field.default for name, field in sampler.__dataclass_fields__.items()}
    values = types.SimpleNamespace(**(defaults | knobs))
    rules = (rule for parent in sampler.__mro__ for rule in vars(parent).get("_acts", ()))
    return {
        name: words
        for names, where, words in rules
        for name in names
        if name in knobs and knobs[name] != defaults[name] and not where(values)
    }


def check_effects(sampler: Any) -> None:
    """Refuse a sampler with a knob that has no effect."""
    fields = type(sampler).__dataclass_fields__
    for name, words in idle_knobs(type(sampler), {name: getattr(sampler, name) for name in fields}).items():
        value, default = getattr(sampler, name), fields[name].default
        check(
            False,
            f"`{name}` does nothing here, set to {value!r}: it acts {words}. Leave it at its default, {default!r}.",
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
