"""Tensors by name: the leaves of a tree, and what is wrong with them."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ddpm_jax.types import PyTree

_MAX_LISTED = 8  # of a kind, in a message


def named_leaves(tree: PyTree) -> dict[tuple[str, ...], Any]:
    """Return the leaves of a tree of nested dicts by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(entry.key for entry in path): leaf for path, leaf in leaves}


def raise_if_misfits(
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    owner: str = "the config",
    advice: str = "Is this the config of these weights?",
) -> None:
    """Compare the shapes of tensors by name.

    Args:
        found: the shapes in the file.
        wanted: those that the network has.
        owner: what asks for them, for the message.
        advice: the end of the message.

    Raises:
        ValueError: tensors are missing, unexpected or mis-shaped; lists all kinds at once, and counts what is left out
            of a long list.
    """
    lines = {
        "missing": [f"{name} {list(wanted[name])}" for name in sorted(wanted.keys() - found.keys())],
        "mis-shaped": [
            f"{name}: {list(found[name])} in the file, {list(wanted[name])} by {owner}"
            for name in sorted(wanted.keys() & found.keys())
            if tuple(found[name]) != tuple(wanted[name])
        ],
        "unexpected": [f"{name} {list(found[name])}" for name in sorted(found.keys() - wanted.keys())],
    }
    count = sum(map(len, lines.values()))
    if count:
        listed = [f"{kind:10}  {line}" for kind, names in lines.items() for line in _some(names)]
        none = "No name belongs to this network. " if not wanted.keys() & found.keys() else ""
        raise ValueError(
            f"The weights do not fit {owner}: {count} tensors are wrong, of {len(wanted)} it has.\n  "
            + "\n  ".join(listed)
            + f"\n{none}{advice}"
        )


def _some(lines: list[str]) -> list[str]:
    """Return the first lines of a list, and the number of the others."""
    return lines if len(lines) <= _MAX_LISTED else [*lines[:_MAX_LISTED], f"and {len(lines) - _MAX_LISTED} more"]


def raise_if_not_finite(weights: PyTree) -> None:
    """Refuse weights, as a state dict or a tree, that hold NaN or infinity: such a network draws black images.

    Raises:
        ValueError: a tensor holds NaN or infinity, or more than float32 can.
    """
    leaves, bad = named_leaves(weights), []
    for path, value in leaves.items():
        value = np.asarray(value)
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.isfinite(np.sum(value, dtype=np.float32)):  # quick; a false alarm for huge numbers only
                count = np.count_nonzero(~np.isfinite(value.astype(np.float32)))
                bad += [f"{'/'.join(path)} ({count} of {value.size})"] if count else []
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(leaves)} tensors hold NaN or infinity: {', '.join(_some(bad))}. Such a network draws "
            "only black images. Its training diverged, or its dtype was too narrow: take an earlier checkpoint, or "
            "one in float32."
        )
