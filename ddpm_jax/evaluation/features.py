"""Features of images: an `Extractor` maps bytes to vectors, of which FID, KID, precision and recall are computed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ddpm_jax.validation import check, nearest


class Features(NamedTuple):
    """What an extractor says of a batch of images.

    Attributes:
        values: np.float32 [b, d].
        logits: np.float32 [b, k], of the classifier that the inception score needs, or None where there is none.
    """

    values: np.ndarray
    logits: np.ndarray | None


@runtime_checkable
class Extractor(Protocol):
    """A function from images to `Features`, with the name of its whole protocol.

    `name` says everything that the numbers depend on: network, level, weights and the way images are resized and
    scaled. Statistics may be compared only if their names are equal.
    """

    @property
    def name(self) -> str:
        """The whole protocol in words, such as "pixels"."""
        ...

    def __call__(self, images: np.ndarray) -> Features:
        """Return the features of np.uint8 [b, h, w, 1 or 3]; b is any number from 1 up."""
        ...


def check_images(images: np.ndarray) -> None:
    """Refuse what is no batch of grey or RGB images in bytes.

    Args:
        images: np.uint8 [b, h, w, 1 or 3].

    Raises:
        ValueError: says what is wrong with the dtype or the shape.

    Example:
        >>> check_images(np.zeros((2, 8, 8, 3), np.float32))
        Traceback (most recent call last):
        ValueError: Features are taken of bytes, not of float32: round the images first (`to_uint8`).
    """
    check(
        images.dtype == np.uint8,
        f"Features are taken of bytes, not of {images.dtype}: round the images first (`to_uint8`).",
    )
    check(
        images.ndim == 4 and images.shape[-1] in (1, 3) and images.size > 0,
        f"`images` must be [b, h, w, 1 or 3] with at least one image, not {list(images.shape)}. Drop an alpha channel "
        "first, and give a single image a first axis of 1.",
    )


class _Function:
    def __init__(self, name: str, function: Callable[[np.ndarray], Any]):
        self.name, self._function = name, function

    def __call__(self, images: np.ndarray) -> Features:
        check_images(images)
        found = self._function(images)
        values, logits = found if isinstance(found, tuple) else (found, None)
        return Features(
            self._checked("values", values, len(images)),
            None if logits is None else self._checked("logits", logits, len(images)),
        )

    def _checked(self, what: str, array: Any, count: int) -> np.ndarray:
        array = np.asarray(array, np.float32)
        check(
            array.ndim == 2 and len(array) == count and array.size > 0,
            f"{self.name}: the {what} of {count} images must have the shape [{count}, d], not {list(array.shape)}. "
            "Return one vector an image.",
        )
        check(
            np.all(np.isfinite(array)),
            f"{self.name}: {np.count_nonzero(~np.isfinite(array))} of {array.size} {what} are NaN or infinite. "
            "No statistic of them means anything: mend the function, or leave such images out.",
        )
        return array


def from_function(function: Callable[[np.ndarray], Any], name: str) -> Extractor:
    """Make an extractor of any function from images to vectors.

    Args:
        function: maps np.uint8 [b, h, w, 1 or 3] to an array [b, d], or to a pair of it and logits [b, k].
        name: names network, weights, level and preprocessing: statistics of equal names are compared.

    Raises:
        ValueError: the name is empty, or that of a built-in extractor. When the extractor is called: the images are no
            bytes, the vectors are not one an image, or they hold NaN.

    Example:
        >>> brightness = from_function(lambda images: images.mean(axis=(1, 2)), "mean colour")
        >>> brightness(np.full((2, 8, 8, 3), 7, np.uint8)).values.tolist()
        [[7.0, 7.0, 7.0], [7.0, 7.0, 7.0]]
    """
    check(name.strip(), "`name` is empty. Statistics of equal names are compared: name what the numbers depend on.")
    check(name not in NAMES, f"`name` {name!r} is that of a built-in extractor: choose another one.")
    return _Function(name, function)


def _unit_pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255


pixels: Extractor = _Function("pixels", _unit_pixels)
"""The pixels themselves in [0, 1], row by row, channels last: values [b, h w c], no logits, no download.

[0, 1] and not the scale of some network's data, so that two models of one resolution are compared whatever their scale.
"""

NAMES = ("pixels",)


def extractor(name: str, *, weights: str | Path | None = None) -> Extractor:
    """Return a built-in extractor by its name.

    Args:
        name: "pixels".
        weights: the file of a network's weights; None for extractors that have none.

    Raises:
        ValueError: the name is unknown, or weights are given to an extractor that has none.

    Example:
        >>> extractor("pixels")(np.full((2, 4, 4, 1), 255, np.uint8)).values.shape
        (2, 16)
    """
    check(name in NAMES, f"There is no extractor {name!r}.{nearest(name, NAMES)} Choose one of: {', '.join(NAMES)}.")
    check(weights is None, f"`weights` is {str(weights)!r}, but {name!r} has no network: leave `weights` out.")
    return pixels
