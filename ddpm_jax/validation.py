"""What every config's fields are checked with, and how JSON's lists become hashable."""

import difflib
from typing import Any


def nearest(name: str, known) -> str:
    """Return " Did you mean `...`?" for a misspelt name, or nothing where no known name is near.

    Example:
        >>> nearest("block_out_chanels", ["block_out_channels", "act_fn"])
        ' Did you mean `block_out_channels`?'
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


def freeze(value: Any) -> Any:
    """Turn JSON's lists into tuples, which hash."""
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    if isinstance(value, dict):
        return tuple(sorted((key, freeze(item)) for key, item in value.items()))
    return value


def thaw(value: Any) -> Any:
    return [thaw(item) for item in value] if isinstance(value, tuple) else value


def check(condition: Any, message: str) -> None:
    if not condition:
        raise ValueError(message)


def is_int(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
