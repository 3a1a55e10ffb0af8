"""Which images are copies of training images, at a rate of false alarms that held-out images calibrate.

The score of an image is its distance to the nearest training image over the mean distance to the k nearest (Carlini et
al. 2023, "Extracting training data from diffusion models", section 5.1, with k = 50): a copy is near to one image and
not to its neighbours, while a plain image, a white wall say, is near to many. The distance is the least over mirror
images and shifts of the image by some pixels.

An image is flagged if its score is below the m-th smallest of h held-out images' scores, m = floor(level (h + 1)). A
new held-out image is flagged with probability at most `level`, whatever the distribution of scores: it is as likely as
any other to be among the m lowest of h + 1 (split conformal inference; Bates et al. 2023, "Testing for outliers with
conformal p-values"). No other number is fitted.
"""

import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from ddpm_jax import pixels
from ddpm_jax.evaluation.features import Extractor
from ddpm_jax.evaluation.neighbours import nearest_neighbours
from ddpm_jax.validation import check, is_int, is_number

NEIGHBOURS = 50


class CopyScores(NamedTuple):
    """How near images are to training images.

    Attributes:
        scores: [n] nearest distance over the mean of the k nearest: 0 for a copy, at most 1.
        nearest: [n] the number of the nearest training image.
        distances: [n] to it.
    """

    scores: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray


class Memorisation(NamedTuple):
    """What the scores of a set of images say, in numbers that JSON can hold.

    Attributes:
        level: the highest rate at which held-out images are flagged.
        threshold: of the score, from the held-out images.
        num_images, num_held_out: in the two sets.
        flagged: numbers of the images whose score is below the threshold, the lowest score first.
        share: of the images that are flagged.
        p_value: probability that at least as many of num_images held-out images would be flagged.
        closer: probability that an image is closer to its nearest training image than a held-out image is, ties
            counted half: 1/2 where images are like held-out ones (Meehan, Chaudhuri & Dasgupta 2020 test by it).
    """

    level: float
    threshold: float
    num_images: int
    num_held_out: int
    flagged: tuple[int, ...]
    share: float
    p_value: float
    closer: float


def copy_scores(
    images: np.ndarray,
    training: np.ndarray,
    *,
    k: int = NEIGHBOURS,
    shift: int = 1,
    extractor: Extractor | None = None,
    watch: Callable[[int], None] | None = None,
) -> CopyScores:
    """Score how near images are to single training images.

    Args:
        images: np.uint8 [n, h, w, c].
        training: np.uint8 [m, h, w, c], of the same size.
        k: neighbours whose mean distance the nearest one is compared with; the paper's 50.
        shift: images are compared at all shifts of up to this many pixels, without the border that this uncovers. The
            time grows with 2 (2 shift + 1)^2.
        extractor: the features to compare; None compares pixels, whole numbers that they are.
        watch: told how many images are done.

    Returns:
        CopyScores(scores, nearest, distances).

    Raises:
        ValueError: images of several sizes, or that are no bytes; fewer than k + 1 training images; a shift that leaves
            nothing.

    Example:
        >>> training = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
        >>> found = copy_scores(training[[7], :, ::-1], training)
        >>> found.scores.tolist(), found.nearest.tolist()
        ([0.0], [7])
    """
    for name, array in (("images", images), ("training", training)):
        check(
            array.dtype == np.uint8 and array.ndim == 4 and array.size > 0,
            f"`{name}` is an array {array.dtype} {list(array.shape)}; copies are looked for among np.uint8 [n, h, w, "
            "c]. Round images first (`to_uint8`).",
        )
    check(
        images.shape[1:] == training.shape[1:],
        f"`images` are {list(images.shape[1:])}, `training` {list(training.shape[1:])}: bring both to one size.",
    )
    good = is_int(k, 2) and k < len(training)
    check(
        good,
        f"`k` must be an integer from 2 to {len(training) - 1}, one less than there are training images, not {k!r}: "
        "the nearest is compared with its neighbours.",
    )
    sides = images.shape[1:3]
    good = is_int(shift, 0) and 2 * shift < min(sides)
    check(good, f"`shift` must be from 0 to {(min(sides) - 1) // 2}, so that some pixels are left, not {shift!r}.")
    features = (lambda crops: crops) if extractor is None else (lambda crops: features_of(crops, extractor))
    height, width = sides
    inside = training[:, shift : height - shift, shift : width - shift]
    versions = tuple(
        features(turned[:, shift + dy : height - shift + dy, shift + dx : width - shift + dx])
        for turned in (images, images[:, :, ::-1])
        for dy in range(-shift, shift + 1)
        for dx in range(-shift, shift + 1)
    )
    found = nearest_neighbours(versions, features(inside), k, watch=watch)
    mean = found.distances.mean(1)
    scores = np.divide(found.distances[:, 0], mean, out=np.zeros_like(mean), where=mean > 0)
    return CopyScores(scores, found.indices[:, 0], found.distances[:, 0])


def memorisation(found: CopyScores, held_out: CopyScores, *, level: float = 0.01) -> Memorisation:
    """Report which images are copies of training images.

    Args:
        found: scores of the images, a model's samples say.
        held_out: scores of real images that the model was not trained on, of the same training images, k and shift.
        level: the highest rate at which held-out images are flagged.

    Returns:
        Memorisation(...).

    Raises:
        ValueError: a level that is no rate, or is too low for so few held-out images.

    Example:
        >>> scores = lambda numbers: CopyScores(np.array(numbers), np.zeros(len(numbers), int), np.array(numbers))
        >>> report = memorisation(scores([0.1, 0.9, 0.8]), scores([0.7, 0.8, 0.9]), level=0.25)
        >>> report.threshold, report.flagged, report.share
        (0.7, (0,), 0.333...)
    """
    n, h = len(found.scores), len(held_out.scores)
    check(n > 0, "`found` holds no scores: draw some images first.")
    m = check_level(h, level)
    threshold = float(np.sort(held_out.scores)[m - 1])
    order = np.argsort(found.scores, kind="stable")
    flagged = tuple(order[found.scores[order] < threshold].tolist())
    return Memorisation(
        level=float(level),
        threshold=threshold,
        num_images=n,
        num_held_out=h,
        flagged=flagged,
        share=len(flagged) / n,
        p_value=_as_many(len(flagged), n, m, h),
        closer=_share_below(found.distances, held_out.distances),
    )


def check_level(num_held_out: int, level: float) -> int:
    """Return m, of which the m-th smallest held-out score is the threshold; refuse a level that has none.

    Raises:
        ValueError: a level that is no rate, or is too low for so few held-out images.

    Example:
        >>> check_level(99, 0.01), check_level(878, 0.01)
        (1, 8)
    """
    check(is_number(level) and 0 < level < 1, f"`level` must be a rate between 0 and 1, not {level!r}.")
    m = math.floor(level * (num_held_out + 1) * (1 + 1e-12))  # 0.01 * 100 is 1, whatever its last bit says
    check(
        m >= 1,
        f"`held_out` has {num_held_out} images, by which a rate of {level:g} cannot be told: give at least "
        f"{math.ceil(1 / level) - 1} of them, or a `level` of {1 / (num_held_out + 1):.3g} or more.",
    )
    return m


def describe(report: Memorisation) -> str:
    """Say in two sentences what a report holds.

    Example:
        >>> describe(Memorisation(0.01, 0.8, 100, 500, (7,), 0.01, 0.6, 0.5))[:67]
        '1 of 100 images is flagged as a copy, their score being below 0.800'
    """
    count = len(report.flagged)
    return (
        f"{count} of {report.num_images} images {'is' if count == 1 else 'are'} flagged as "
        f"{'a copy' if count == 1 else 'copies'}, their score being below {report.threshold:.3f}; as many or more of "
        f"{report.num_images} held-out images would be with probability {report.p_value:.2g}. An image is closer to "
        f"the training images than a held-out one with probability {report.closer:.3f}."
    )


def planted_copies(images: np.ndarray) -> dict[str, np.ndarray]:
    """Make copies of training images, to measure how many of them are found.

    Args:
        images: np.uint8 [n, h, w, 1 or 3].

    Returns:
        By name, np.uint8 of the same shape: "exact", "mirrored", "shifted" (a pixel down and to the right, the border
        repeated), "jpeg" (of quality 75) and "resampled" (a pixel of border cut off and enlarged again).

    Example:
        >>> list(planted_copies(np.zeros((2, 16, 16, 3), np.uint8)))
        ['exact', 'mirrored', 'shifted', 'jpeg', 'resampled']
    """
    height, width = images.shape[1:3]
    box = (1, 1, width - 1, height - 1)
    enlarged = lambda image: image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    each = lambda change: np.stack([pixels.pixels_of(change(pixels.picture(image))) for image in images])
    return {
        "exact": images.copy(),
        "mirrored": images[:, :, ::-1].copy(),
        "shifted": np.pad(images, ((0, 0), (1, 0), (1, 0), (0, 0)), "edge")[:, :-1, :-1],
        "jpeg": each(_through_jpeg),
        "resampled": each(enlarged),
    }


def features_of(images: np.ndarray, extractor: Extractor, batch_size: int = 256) -> np.ndarray:
    """Return the features [n, d] of images, taken batch by batch."""
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    return np.concatenate([np.asarray(extractor(np.ascontiguousarray(batch)).values) for batch in batches])


def _through_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75)
    return Image.open(file)


def _share_below(x: np.ndarray, y: np.ndarray) -> float:
    """Return the probability that one of x is below one of y, ties counted half."""
    ordered = np.sort(y)
    not_above = np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right")
    return float(1 - not_above.mean() / (2 * len(y)))


def _as_many(count: int, n: int, m: int, h: int) -> float:
    """Return the probability that at least `count` of n exchangeable scores are below the m-th smallest of h others.

    That j are is C(j + m - 1, j) C(n - j + h - m, n - j) / C(n + h, n), in each order of n + h scores the m-th of the h
    coming after exactly j of the n (the negative hypergeometric distribution).
    """
    log_choose = lambda a, b: math.lgamma(a + 1) - math.lgamma(b + 1) - math.lgamma(a - b + 1)
    logs = [
        log_choose(j + m - 1, j) + log_choose(n - j + h - m, n - j) - log_choose(n + h, n) for j in range(count, n + 1)
    ]
    return min(float(np.exp(logs).sum()), 1.0)
