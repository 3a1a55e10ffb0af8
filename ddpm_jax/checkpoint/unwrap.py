"""State dicts without what surrounds them: nested dicts, prefixes, tensors of torch.

A trainer saves {"model": {...}, "optimizer": {...}, "step": 5}. A module that holds a network writes its attribute's
name before every tensor's. Both are treated alike, as dotted names with a common prefix before the network's own.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

_MAX_DEPTH = 8


def flattened(state_dict: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the leaves of nested dicts by their dotted names. A dict that occurs twice is read once.

    Raises:
        TypeError: `state_dict` is no dict; says what to pass.
        ValueError: two leaves have the same dotted name, or the dicts are nested too deep.

    Example:
        >>> flattened({"model": {"conv_in.bias": 1}, "step": 2})
        {'model.conv_in.bias': 1, 'step': 2}
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"`state_dict` must be a dict of tensors by name, not {type(state_dict).__name__}. "
            "Pass `model.state_dict()` of a torch module, or what `read_torch_pickle` reads from a file."
        )
    leaves: dict[str, Any] = {}
    seen: set[int] = set()

    def walk(items: Mapping[Any, Any], prefix: str, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise ValueError(
                f"The state dict is nested more than {_MAX_DEPTH} deep, at `{prefix}`: pass the inner dict."
            )
        seen.add(id(items))
        for key, value in items.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping):
                if id(value) not in seen:
                    walk(value, f"{name}.", depth + 1)
            elif name in leaves:
                raise ValueError(f"The state dict holds `{name}` twice: pass the dict of one of them.")
            else:
                leaves[name] = value

    walk(state_dict, "", 0)
    return leaves


def network_in(leaves: Mapping[str, Any], is_known: Callable[[str], bool]) -> tuple[dict[str, Any], list[str]]:
    """Find the network among leaves by the names of its tensors, under any common prefix.

    Args:
        leaves: tensors and other values by their dotted names.
        is_known: tells whether a name belongs to the network.

    Returns:
        The network's entries without their prefix, and the names of all others. Without a known name, all entries are
        the network's.

    Raises:
        ValueError: the network is there more than once.

    Example:
        >>> network_in({"module.conv_in.bias": 1, "step": 2}, {"conv_in.bias"}.__contains__)
        ({'conv_in.bias': 1}, ['step'])
    """
    places: Counter[str] = Counter()
    for name in leaves:
        words = name.split(".")
        start = next((i for i in reversed(range(len(words))) if is_known(".".join(words[i:]))), None)
        if start is not None:
            places[name[: len(name) - len(".".join(words[start:]))]] += 1
    likely = [prefix for prefix, count in places.items() if 2 * count >= max(places.values())]
    if len(likely) > 1:
        shown = " and ".join(f"`{prefix}`" if prefix else "no prefix" for prefix in likely)
        example = next(prefix for prefix in likely if prefix)
        raise ValueError(
            f"The state dict holds the network {len(likely)} times, under {shown} (averaged weights beside those in "
            "training, perhaps). Pass one of them to `from_state_dict`: "
            f'{{name: value for name, value in tensors.items() if name.startswith("{example}")}}, with `tensors` of '
            "`read_torch_pickle` or safetensors; of nested dicts the inner one."
        )
    prefix = likely[0] if likely else ""
    own = {name.removeprefix(prefix): value for name, value in leaves.items() if name.startswith(prefix)}
    return own, [name for name in leaves if not name.startswith(prefix)]


def as_array(name: str, value: Any) -> np.ndarray:
    """Return a torch tensor, a JAX or numpy array, or a list of numbers as a numpy array.

    torch is not imported: a value that has `detach` is taken for a tensor, on any device and of any dtype.

    Raises:
        ValueError: it is something else; gives its name.
    """
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = value.float() if value.is_floating_point() else value  # numpy has no bfloat16
        array = np.asarray(value)
    except Exception as error:  # tensors without numbers (meta), quantised and sparse ones, ragged lists
        raise ValueError(f"`{name}` cannot become an array of numbers: {error}") from error
    real = jnp.issubdtype(array.dtype, np.integer) or jnp.issubdtype(array.dtype, np.floating)
    if not real and array.dtype != np.bool_:
        raise ValueError(
            f"`{name}` is a {type(value).__name__} of {array.dtype}, not an array of numbers. Leave it out."
        )
    return array
