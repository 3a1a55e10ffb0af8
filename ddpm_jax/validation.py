"""Checks of configs, settings and arguments, with the words of their messages; JSON values as hashable ones."""

import dataclasses
import difflib
import math
import operator
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard


def nearest(name: str, known, cutoff: float = 0.6) -> str:
    """Return " Did you mean `...`?" for a misspelt name, or nothing where no known name is near.

    Example:
        >>> nearest("block_out_chanels", ["block_out_channels", "act_fn"])
        ' Did you mean `block_out_channels`?'
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" Did you mean `{close[0]}`?" if close else ""


def known_items(items: Mapping[str, Any], known: Collection[str], owner: str) -> dict[str, Any]:
    """Return the items of a JSON file that are fields of what it describes.

    An unknown key is ignored, as in diffusers: without a warning if it asks for nothing (null, false, empty). A key
    that is nearly the name of a field is refused, since it was meant to act. A key that asks for something is compared
    more loosely with the fields that the file leaves out.

    Args:
        items: the contents of the file.
        known: names of the fields.
        owner: what has those fields, for the messages: "A scheduler".

    Raises:
        ValueError: a misspelt field.

    Example:
        >>> known_items({"act_fn": "relu", "cross_attention": None}, ["act_fn", "dropout"], "A network")
        {'act_fn': 'relu'}
    """
    foreign = {name: value for name, value in items.items() if name not in known and value is not None}
    for name, value in foreign.items():
        meant = nearest(name, known, 0.9) or (value and nearest(name, set(known) - items.keys(), 0.8))
        check(not meant, f"{owner} has no field `{name}`.{meant} Correct its name, or take it out of the file.")
    listed = ", ".join(f"`{name}`" for name, value in foreign.items() if value)
    if listed:
        warnings.warn(f"{owner} has no field {listed}: ignored, as in diffusers.", stacklevel=3)
    return {name: value for name, value in items.items() if name in known}


def some(names: Sequence[str], most: int) -> str:
    """List the first names, and count the others.

    Example:
        >>> some(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def differences(there: Mapping[str, Any], here: Mapping[str, Any], *, place: str = "here") -> list[str]:
    """Name the items that differ between what was recorded and what is given; an absent one counts as None.

    A list equals a tuple, and a path its text, since a JSON file knows neither tuples nor paths.

    Args:
        there: the recorded items.
        here: the given ones.
        place: what the given ones are called.

    Example:
        >>> differences({"steps": 5, "sides": [1, 2]}, {"steps": 7, "sides": (1, 2)})
        ['steps 5 there, 7 here']
    """
    text = lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value
    pairs = {name: (text(there.get(name)), text(here.get(name))) for name in sorted({*there, *here})}
    changed = {name: pair for name, pair in pairs.items() if freeze(pair[0]) != freeze(pair[1])}
    return [f"{name} {one!r} there, {other!r} {place}" for name, (one, other) in changed.items()]


def freeze(value: Any) -> Any:
    """Return a JSON value with tuples for lists and sorted pairs for objects, which can be hashed."""
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    if isinstance(value, dict):
        return tuple(sorted((key, freeze(item)) for key, item in value.items()))
    return value


def thaw(value: Any) -> Any:
    """Return a JSON value with lists for tuples."""
    return [thaw(item) for item in value] if isinstance(value, tuple) else value


def check(condition: Any, message: str) -> None:
    """Raise a ValueError with the message unless the condition is true."""
    if not condition:
        raise ValueError(message)


def is_int(value: Any, least: int = 1) -> TypeGuard[int]:
    """Tell whether a value is an integer, not a bool, of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> TypeGuard[int | float]:
    """Tell whether a value is a number, not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


class Rule(NamedTuple):
    """A condition on a value, or on settings as a whole.

    Attributes:
        words: the condition, as it stands in a message.
        holds: tells whether it is met.
    """

    words: str
    holds: Callable[[Any], bool]


FLAG = Rule("true or false", lambda value: isinstance(value, bool))


def integer(least: int = 1) -> Rule:
    """Ask for an integer of at least `least`."""
    return Rule(f"an integer from {least} up", lambda value: is_int(value, least))


def number(least: int, below: int | None = None) -> Rule:
    """Ask for a finite number.

    Example:
        >>> number(0, 1).words, number(0).holds(float("inf"))
        ('a number from 0 to below 1', False)
    """
    words = f"a number from {least} up" if below is None else f"a number from {least} to below {below}"
    high = math.inf if below is None else below
    return Rule(words, lambda value: is_number(value) and least <= value < high)


POSITIVE = Rule("a number above 0", lambda value: is_number(value) and 0 < value < math.inf)


def choice(*values: Any) -> Rule:
    """Ask for one of some values."""
    return Rule(f"one of {list(values)}", lambda value: value in values)


def optional(rule: Rule) -> Rule:
    """Ask for None, or for what another rule asks for."""
    return Rule(f"{rule.words} or None", lambda value: value is None or rule.holds(value))


def several(rule: Rule, least: int = 0) -> Rule:
    """Ask for a tuple whose items each meet a rule."""
    words = f"a tuple, of at least {least}, of which each is {rule.words}" if least else f"a tuple, each {rule.words}"
    return Rule(words, lambda value: isinstance(value, tuple) and len(value) >= least and all(map(rule.holds, value)))


def check_settings(settings: Any) -> None:
    """Check a dataclass by its tables VALUES, of ranges, and ACTS, of where a field acts.

    Raises:
        ValueError: a field is out of range, or was set and would do nothing; names it, its value and what would be
            right.
    """
    for name, rule in settings.VALUES.items():
        value = getattr(settings, name)
        check(rule.holds(value), f"`{name}` must be {rule.words}, not {value!r}.")
    check_acts(settings, settings.ACTS, settings)


def check_acts(settings: Any, rules: Mapping[str, Rule], whole: Any) -> None:
    """Refuse fields of a dataclass that were set but would do nothing.

    A field with its default value passes: it cannot be told from one that was left out.

    Args:
        settings: the dataclass.
        rules: where a field acts, by its name.
        whole: what the rules look at.
    """
    for field in dataclasses.fields(settings):
        rule, value = rules.get(field.name), getattr(settings, field.name)
        if rule is not None and value != field.default and not rule.holds(whole):
            raise ValueError(f"`{field.name}` belongs to {rule.words}; here {value!r} would do nothing: leave it out.")


def where(name: str, *values: Any) -> Rule:
    """Ask that another field has one of some values."""
    return Rule(f"`{name}` {' or '.join(map(str, values))}", lambda settings: getattr(settings, name) in values)


def as_integer(name: str, value: Any) -> int:
    """Return an argument as an int.

    Raises:
        TypeError: it is no integer; names the argument and its value.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer, not {value!r}.") from None


def as_positive(name: str, value: Any) -> int:
    """Return an argument as an int of at least 1.

    Raises:
        TypeError, ValueError: it is no integer, or less than 1.
    """
    value = as_integer(name, value)
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, not {value}.")
    return value
