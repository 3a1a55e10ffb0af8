"""How far a metric's value would differ for other images: bootstrap intervals, and real against real."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.evaluation import metrics, pairs
from ddpm_jax.evaluation.moments import Statistics, root_of
from ddpm_jax.validation import as_positive, check

Resampled = tuple[dict[str, float], dict[str, np.ndarray]]  # values of the images, values of each bootstrap sample [r]


class Estimate(NamedTuple):
    """A value with its interval.

    Attributes:
        value: of the images.
        low, high: ends of the interval.
    """

    value: float
    low: float
    high: float


class _Draws:
    """How often each image counts in each bootstrap sample: as many images as there are, drawn with replacement."""

    def __init__(self, seed: int, number: int, watch: pairs.Watch):
        self.generator, self.number, self.watch = np.random.default_rng(seed), number, watch

    def one(self, count: int, distinct: int = 1) -> np.ndarray:
        """Return the counts of one sample [n], of at least so many distinct images."""
        while True:
            counts = np.bincount(self.generator.integers(count, size=count), minlength=count)
            if np.count_nonzero(counts) >= distinct:
                return counts

    def all(self, count: int, distinct: int = 1) -> np.ndarray:
        """Return the counts of all samples [n, r]."""
        return np.stack([self.one(count, distinct) for _ in range(self.number)], axis=1).astype(np.float64)

    def with_once(self, count: int, distinct: int = 1) -> np.ndarray:
        """Return a column that counts every image once, before those of all samples, [n, 1 + r]."""
        return np.concatenate([np.ones((count, 1)), self.all(count, distinct)], axis=1)


def estimate(
    metric: Callable[..., Any],
    *data: np.ndarray | Statistics,
    num_resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
    watch: pairs.Watch = pairs.unwatched,
    **options: Any,
) -> dict[str, Estimate]:
    """Compute a metric and a bootstrap interval.

    The interval says where the metric lies on average for sets of so many images. It is the percentile interval, moved
    so that the mean of the bootstrap samples lies on the value: a sample with copies has a larger FID than the set, and
    the move takes out what the copies add. The bias of the metric itself, such as the FID's for few images, stays in
    value and interval.

    What is drawn with replacement:

    * fid, kid, energy_distance: the real images and the fakes; `Statistics` stay as they are. For kid and
      energy_distance all samples are computed in one pass over the pairs; where the distributions are equal, their
      intervals are too wide.
    * inception_score: the images within each part.
    * precision_recall, density_coverage: the images whose share is counted, before manifolds that stay as they are,
      since copies would shrink the balls.

    Args:
        metric: one of the functions named above.
        *data: its arguments: real and fake, or logits.
        num_resamples: number of bootstrap samples. Of the FID every one takes a covariance and its root.
        level: how often the interval holds that average, in the long run.
        seed: of the drawing.
        watch: called with the share of the work that is done, 0 to 1. Of 50,000 images, all but the inception score
            takes minutes.
        **options: further arguments of the metric.

    Returns:
        An `Estimate` by name: "fid", "kid", "energy_distance", "inception_score", "precision" and "recall", "density"
        and "coverage".

    Raises:
        ValueError: another metric, a level outside (0, 1), what the metric refuses.

    Example:
        >>> images = np.random.default_rng(0).normal(size=(2, 500, 1)) + [[[0.0]], [[3.0]]]
        >>> found = estimate(metrics.fid, *images)["fid"]  # of N(0, 1) and N(3, 1): 9
        >>> bool(found.low < found.value < found.high), round(found.value)
        (True, 9)
    """
    check(
        metric in _RESAMPLED,
        f"`metric` is {getattr(metric, '__name__', metric)}, which has no interval; "
        f"{', '.join(known.__name__ for known in _RESAMPLED)} have. Take one of these.",
    )
    check(0 < level < 1, f"`level` is {level}; it must lie between 0 and 1. 0.95 is usual.")
    draws = _Draws(seed, as_positive("num_resamples", num_resamples), watch)
    values, samples = _RESAMPLED[metric](draws, *data, **options)
    estimates = {}
    for name, value in values.items():
        moved = samples[name] - samples[name].mean() + value
        low, high = np.quantile(moved, [(1 - level) / 2, (1 + level) / 2])
        estimates[name] = Estimate(value, float(low), float(high))
    return estimates


def floor(
    metric: Callable[..., Any],
    real: np.ndarray,
    *,
    size: int | None = None,
    against: int | None = None,
    num_splits: int = 1,
    seed: int = 0,
    **options: Any,
) -> dict[str, float]:
    """Compute a metric of real against real images: what a perfect model would have.

    Two sets without a common image are drawn. The FID falls with the number of images, so the floor belongs to that
    number alone: compare it with the FID of as many fakes, against as many real images.

    Args:
        metric: a function of real and fake.
        real: features [n, d].
        size: images of each of the two sets; None is half of all.
        against: images of the first one, which stands for the real images, if it is to have more or less than `size`.
        num_splits: how often the sets are drawn; the mean is returned.
        seed: of the drawing.
        **options: further arguments of the metric.

    Returns:
        Mean values by the names of `estimate`.

    Raises:
        ValueError: the inception score, which compares nothing; fewer images than the two sets have.

    Example:
        >>> floor(metrics.energy_distance, np.array([[0.0], [2.0], [0.0], [2.0]]), seed=1)
        {'energy_distance': -2.0}
    """
    check(
        metric is not metrics.inception_score,
        "`metric` is inception_score, which compares no two sets; a floor is of real against real images. Take the "
        "inception score of the real images themselves: it is the ceiling.",
    )
    half = len(real) // 2 if size is None else as_positive("size", size)
    others = half if against is None else as_positive("against", against)
    sizes = f"`size` is {half}" if against is None else f"`size` is {half} and `against` {others}"
    check(
        half and half + others <= len(real),
        f"{sizes}, but `real` has {len(real)} images; two sets of that size have no common image only with "
        f"{max(half + others, 2)}. Use a smaller size, or more images.",
    )
    generator, found = np.random.default_rng(seed), []
    for _ in range(as_positive("num_splits", num_splits)):
        order = generator.permutation(len(real))
        one, other = (real[np.sort(part)] for part in np.split(order[: others + half], [others]))
        found.append(values_of(metric, metric(one, other, **options)))
    return {name: float(np.mean([values[name] for values in found])) for name in found[0]}


def values_of(metric: Callable[..., Any], result: Any) -> dict[str, float]:
    """Return what a metric returned as numbers by name; of a `Spread` the mean.

    Example:
        >>> values_of(metrics.precision_recall, metrics.PrecisionRecall(0.5, 0.25))
        {'precision': 0.5, 'recall': 0.25}
    """
    if isinstance(result, metrics.Spread):
        return {metric.__name__: result.mean}
    if isinstance(result, metrics.PrecisionRecall | metrics.DensityCoverage):
        return result._asdict()
    return {metric.__name__: float(result)}


def _of_fid(draws: _Draws, real: np.ndarray | Statistics, fake: np.ndarray | Statistics) -> Resampled:
    check(
        not (isinstance(real, Statistics) and isinstance(fake, Statistics)),
        "`real` and `fake` are both statistics; an interval needs the single images of one of them, an array [n, d]. "
        "Keep the features of the fakes.",
    )
    value = metrics.fid(real, fake)

    def samples(data: np.ndarray | Statistics) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if isinstance(data, Statistics):
            yield from itertools.repeat(root_of(data))
        else:
            while True:
                yield root_of(data, draws.one(len(data)))

    found, pair = np.empty(draws.number), zip(samples(real), samples(fake), strict=True)
    for number in range(draws.number):
        one, other = next(pair)
        found[number] = metrics.frechet(*one, *other)
        draws.watch((number + 1) / draws.number)
    return {"fid": value}, {"fid": found}


def _of_kid(draws: _Draws, real: np.ndarray, fake: np.ndarray) -> Resampled:
    metrics.check_pair(real, fake, least=2, statistics=False)
    return _of_discrepancy(draws, "kid", pairs.cubic, real, fake, 0.0)


def _of_energy_distance(draws: _Draws, real: np.ndarray, fake: np.ndarray) -> Resampled:
    metrics.check_pair(real, fake, least=2, statistics=False)
    centre = real.mean(axis=0, dtype=np.float64)
    return _of_discrepancy(draws, "energy_distance", pairs.negative_distance, real, fake, centre)


def _of_discrepancy(
    draws: _Draws, name: str, kernel: pairs.Kernel, real: np.ndarray, fake: np.ndarray, centre: np.ndarray | float
) -> Resampled:
    counts = draws.with_once(len(real), 2), draws.with_once(len(fake), 2)  # one image alone has no pairs
    value, *samples = pairs.discrepancy(kernel, real, fake, *counts, centre=centre, watch=draws.watch)
    return {name: float(value)}, {name: np.array(samples)}


def _of_inception_score(draws: _Draws, logits: np.ndarray, **options: Any) -> Resampled:
    scores = []  # [1 + r] of each part
    parts = metrics.splits(logits, **options)
    for number, part in enumerate(parts):
        scores.append(np.exp(metrics.information(*metrics.entropy_terms(part), draws.with_once(len(part)))))
        draws.watch((number + 1) / len(parts))
    value, *samples = np.mean(scores, axis=0)
    return {"inception_score": float(value)}, {"inception_score": np.array(samples)}


def _of_precision_recall(draws: _Draws, real: np.ndarray, fake: np.ndarray, **options: Any) -> Resampled:
    return _of_shares(draws, metrics.manifolds(real, fake, watch=draws.watch, **options))


def _of_density_coverage(draws: _Draws, real: np.ndarray, fake: np.ndarray, **options: Any) -> Resampled:
    return _of_shares(draws, metrics.real_balls(real, fake, watch=draws.watch, **options))


def _of_shares(draws: _Draws, shares: dict[str, np.ndarray]) -> Resampled:
    values = {name: float(of_image.mean()) for name, of_image in shares.items()}
    samples = {name: of_image @ draws.all(len(of_image)) / len(of_image) for name, of_image in shares.items()}
    return values, samples


_RESAMPLED: dict[Callable[..., Any], Callable[..., Resampled]] = {
    metrics.fid: _of_fid,
    metrics.kid: _of_kid,
    metrics.energy_distance: _of_energy_distance,
    metrics.inception_score: _of_inception_score,
    metrics.precision_recall: _of_precision_recall,
    metrics.density_coverage: _of_density_coverage,
}
