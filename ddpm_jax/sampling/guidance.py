"""Classifier-free guidance: a network that is told classes becomes one that exaggerates them.

out = out_null + s (out_class - out_null)        (Ho & Salimans 2022, eq. 6, with s = 1 + w)
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from ddpm_jax.config import Config
from ddpm_jax.params import check_labels
from ddpm_jax.types import Array, Labels
from ddpm_jax.validation import as_integer, check

LabelledNet = Callable[[jax.Array, Any, Any], jax.Array]  # (x, cond, labels) -> raw output


class Condition(NamedTuple):
    """Class labels, and the scale and the null class of guidance.

    Attributes:
        labels: [b], or None for a network without classes.
        guidance_scale: s, or None without guidance.
        null_class: the class that stands for none; None without guidance.
    """

    labels: Array | None
    guidance_scale: Any = None
    null_class: Any = None


def guided(net_fn: LabelledNet, condition: Condition, channels: int) -> LabelledNet:
    """Return the network with guidance: it evaluates a batch of twice the size.

    Args:
        net_fn: net_fn(x, cond, labels) -> raw output.
        condition: with a `guidance_scale`.
        channels: of an image. Guidance acts on that many channels of the output; a learned variance beside them stays
            that of the class.

    Example:
        >>> net_fn = lambda x, cond, labels: x * labels[:, None, None, None]
        >>> twice = guided(net_fn, Condition(jnp.array([5]), 2.0, 1), channels=1)
        >>> float(twice(jnp.ones((1, 1, 1, 1)), None, jnp.array([5]))[0, 0, 0, 0])  # 1 + 2 (5 - 1)
        9.0
    """
    _, scale, null_class = condition

    def net(x: jax.Array, cond: Any, labels: jax.Array) -> jax.Array:
        pairs = jnp.stack([labels, jnp.full_like(labels, null_class)], axis=1).reshape(-1)
        out = net_fn(jnp.repeat(x, 2, axis=0), cond, pairs)
        of_class, of_none = out[::2], out[1::2]
        mean = slice(channels)
        return of_class.at[..., mean].add((scale - 1) * (of_class - of_none)[..., mean])

    return net


def condition_of(config: Config, batch_size: int, class_labels: Labels, scale: Any, null_class: Any) -> Condition:
    """Return the checked condition of a batch.

    Raises:
        ValueError: labels that do not fit the network; as `check_guidance`.
    """
    labels = check_labels(config.unet, class_labels, batch_size)
    return Condition(labels, *check_guidance(config, scale, null_class))


def check_guidance(config: Config, scale: Any, null_class: Any) -> tuple[Any, np.int32 | None]:
    """Return the scale of guidance and the class that stands for none; (None, None) without guidance.

    Raises:
        ValueError: a network without a table of classes, a scale that is no finite number, a null class that the
            network does not have, or none where the config names none either.
    """
    if scale is None:
        check(
            null_class is None,
            f"`null_class` acts beside `guidance_scale` alone, not {null_class!r} by itself: give both, or neither.",
        )
        return None, None
    count = config.unet.num_classes
    if not count:
        raise ValueError(
            "`guidance_scale` needs a network with a table of classes, of which one stands for none; this checkpoint's "
            "has no such table. Leave `guidance_scale` out."
        )
    traced = isinstance(scale, jax.core.Tracer)
    good = traced or (isinstance(scale, numbers.Real) and math.isfinite(scale))
    check(good, f"`guidance_scale` must be a finite number, not {scale!r}.")
    null = config.null_class if null_class is None else as_integer("null_class", null_class)
    check(null is None or 0 <= null < count, f"`null_class` must be one of the classes 0 .. {count - 1}, not {null!r}.")
    if not traced and scale == 1:
        return None, None
    if null is None:
        raise ValueError(
            "`guidance_scale` guides away from the class that stands for none, and this checkpoint does not say which "
            f"of its {count} does. Where it was trained with dropped labels, pass `null_class` (often the last, "
            f"{count - 1}), or note it once: params.replace(config=dataclasses.replace(params.config, "
            f"null_class={count - 1})). Where every class is a real one, leave `guidance_scale` out."
        )
    return scale if traced else np.float32(scale), np.int32(null)
