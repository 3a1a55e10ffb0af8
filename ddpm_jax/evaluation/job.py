"""The arguments of an evaluation: opened, as a record holds them, and with hashes of what they name."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.evaluation.features import Extractor, extractor
from ddpm_jax.evaluation.gathering import open_images
from ddpm_jax.evaluation.reference import FeatureSet, read_statistics
from ddpm_jax.evaluation.report import content_of, content_of_file
from ddpm_jax.evaluation.subjects import Drawn
from ddpm_jax.images.source import Source
from ddpm_jax.likelihood.job import check_model
from ddpm_jax.types import Number
from ddpm_jax.validation import as_integer, as_positive, check

_STATISTICS = ({"mu", "sigma"}, {"feats"}, {"pool_3"})  # arrays by which statistics are told from images
MOST_DRAWN = 50_000  # images, where the caller names no number: as many as the papers take


class Job:
    """The arguments of `evaluate`, opened: wrong ones are refused before anything is drawn.

    Attributes:
        images: a `Drawn`, or the opened images.
        reference: the opened images, or their statistics.
        extractor: makes the features.
        resolution: of the images; None leaves them as they are.
        num_resamples, level: of the intervals.
        bits_per_dim: images of the reference whose bound is computed.
        flow: whether their likelihood by the probability flow is, too.
        names: what the arguments `images` and `reference` name; None for a `Drawn`.
    """

    def __init__(
        self,
        images: Drawn | str | Path,
        reference: str | Path,
        *,
        features: str | Extractor,
        weights: str | Path | None,
        resolution: int | None,
        channels: int | None,
        background: str | None,
        skip_broken: bool,
        protocol: str | None,
        num_resamples: int,
        level: Number,
        bits_per_dim: int,
        flow: bool,
    ):
        opening: dict[str, Any] = {"channels": channels, "background": background, "skip_broken": skip_broken}
        self.num_resamples, self.level = _resamples(num_resamples), level
        check(0 < level < 1, f"`level` is {level}; it must lie between 0 and 1. 0.95 is usual.")
        named = isinstance(features, str)
        check(named or weights is None, "`weights` are for an extractor by name; `features` has its own: leave it out.")
        self.features = features if isinstance(features, str) else None
        self.weights = None if weights is None else Path(weights).expanduser()
        self.extractor = extractor(features, weights=self.weights) if isinstance(features, str) else features
        self.opening, self.protocol = opening, protocol
        own = images.resolution if isinstance(images, Drawn) else None
        self.resolution = own if resolution is None else as_positive("resolution", resolution)
        read = reference if _is_statistics(reference) else None
        idle = [name for name, value in opening.items() if value and read and isinstance(images, Drawn)]
        check(not idle, f"`{'` and `'.join(idle)}` is for images that are read, and here none are: leave it out.")
        check(read or protocol is None, f"`protocol` is for statistics, and `reference` {reference} is none: leave it.")
        with said_of("reference"):
            self.reference = self._statistics(reference) if read else self._open(reference)
        with said_of("images"):
            self.images = self._counted(images) if isinstance(images, Drawn) else self._open(images)
        if isinstance(self.reference, Source):
            self.reference = self.reference.fitting(self.channels)
        self.bits_per_dim, self.flow = _of_likelihood(bits_per_dim, flow, self.images, self.reference)
        self.names = {"images": _place(images), "reference": _place(reference)}

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.images.recipe.shape[-1] if isinstance(self.images, Drawn) else self.images.channels

    def settings(self) -> dict[str, Any]:
        """Return all arguments that decide the numbers, as JSON holds them."""
        return {
            "images": self.images.record() if isinstance(self.images, Drawn) else self.names["images"],
            "reference": self.names["reference"],
            "features": self.features,
            "weights": None if self.weights is None else str(self.weights.absolute()),
            "resolution": self.resolution,
            "protocol": self.protocol,
            **self.opening,
            "num_resamples": self.num_resamples,
            "level": self.level,
            "bits_per_dim": self.bits_per_dim,
            "flow": self.flow,
        }

    def inputs(self) -> dict[str, Any]:
        """Return hashes of what the numbers are made from."""
        return {
            "model_weights": self.images.recipe.settings()["weights"] if isinstance(self.images, Drawn) else None,
            "images_content": None if isinstance(self.images, Drawn) else content_of(self.images),
            "reference_content": content_of(self.reference)
            if isinstance(self.reference, Source)
            else content_of_file(self.names["reference"] or ""),
            "extractor": self.extractor.name,
        }

    def _counted(self, images: Drawn) -> Drawn:
        """Return a set that is to be drawn with its number of images."""
        if images.num_images is not None:
            return images
        real = self.reference
        count = len(real) if isinstance(real, Source) else real.statistics.count
        return dataclasses.replace(images, num_images=min(count or MOST_DRAWN, MOST_DRAWN))

    def _open(self, data: str | Path) -> Source:
        options = {name: value for name, value in self.opening.items() if value}
        return open_images(str(data), **options)

    def _statistics(self, path: str | Path) -> FeatureSet:
        found = read_statistics(path, protocol=self.protocol)
        check(
            found.protocol == self.extractor.name,
            f"`reference` {path} has features by {found.protocol!r}, and those of the images are made by "
            f"{self.extractor.name!r}: their distance would mean nothing. Make both by one extractor (`features`).",
        )
        return found


def _is_statistics(path: str | Path) -> bool:
    """Tell an .npz of statistics from one of images."""
    path = Path(path).expanduser()
    if path.suffix != ".npz" or not path.is_file():
        return False
    try:
        with np.load(path) as file:
            return any(arrays <= {*file.files} for arrays in _STATISTICS)
    except Exception:  # numpy and zipfile raise many kinds; whoever opens it says what is wrong
        return False


def _place(data: Any) -> str | None:
    """Return a path that another working directory finds too, or the name that is no path."""
    if isinstance(data, Drawn):
        return None
    path = Path(data).expanduser()
    return str(path.absolute()) if path.exists() and str(data) != "digits" else str(data)


def _of_likelihood(bits_per_dim: Any, flow: bool, images: Any, reference: Any) -> tuple[int, bool]:
    """Return the arguments of the likelihood, or say why it cannot be computed."""
    count = as_integer("bits_per_dim", bits_per_dim)
    check(count >= 0, f"`bits_per_dim` is {count}; it must be a number of images, or 0 for no likelihood.")
    if not count:
        check(not flow, "`flow` adds to `bits_per_dim`, which is 0: give it a number of images, or leave `flow` out.")
        return 0, False
    check(
        isinstance(images, Drawn),
        f"`bits_per_dim` is {count}, but `images` are images; likelihoods are those of a model. Leave it out.",
    )
    check(
        isinstance(reference, Source),
        f"`bits_per_dim` is {count}, but `reference` holds statistics; likelihoods are those of images. Name a folder "
        "or an array of them, or leave it out.",
    )
    check_model(images.recipe.params)
    channels = images.recipe.shape[-1]
    check(
        reference.channels == channels,
        f"`reference` has {reference.channels} channels, and the model {channels}; of others it has no likelihood. "
        "Convert them with `channels`.",
    )
    check(
        count <= len(reference),
        f"`bits_per_dim` is {count}, but `reference` has {len(reference)} images. Take as many at most.",
    )
    return count, flow


def _resamples(num_resamples: Any) -> int:
    number = as_integer("num_resamples", num_resamples)
    check(number >= 0, f"`num_resamples` is {number}; it must be 0, for no intervals, or more. 200 is usual.")
    return number


@contextlib.contextmanager
def said_of(argument: str) -> Iterator[None]:
    """Let messages about images name the argument of `evaluate` that these are."""
    try:
        yield
    except (ValueError, OSError) as error:
        if len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (re.sub("`(data|images|path)`", f"`{argument}`", error.args[0]),)
        raise
