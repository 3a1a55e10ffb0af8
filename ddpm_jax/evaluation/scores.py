"""Compute the metrics of two sets of images one by one, each with its interval and with what real images have."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from ddpm_jax.evaluation import intervals, metrics, pairs
from ddpm_jax.evaluation.reference import FeatureSet

METRICS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        metrics.fid,
        metrics.kid,
        metrics.inception_score,
        metrics.precision_recall,
        metrics.density_coverage,
        metrics.energy_distance,
    )
}


class Score(NamedTuple):
    """A value of a metric.

    Attributes:
        value: of the images.
        low, high: ends of its bootstrap interval; None where none was asked for.
        real: what real images have themselves, which a perfect model would have: as many as there are fakes, or half of
            all, against the others; of the inception score, that of all. None where there are too few, or no features.
        num_real: images in the place of the fakes.
        num_against: images in the place of the real ones; None for the inception score.
    """

    value: float
    low: float | None
    high: float | None
    real: float | None
    num_real: int | None
    num_against: int | None


def why_not(name: str, real: FeatureSet, fake: FeatureSet) -> str | None:
    """Return why a metric cannot be computed of two sets, or None if it can.

    Args:
        name: in METRICS.
        real, fake: the sets; `fake` has features.

    Example:
        >>> from ddpm_jax.evaluation.moments import Statistics
        >>> real = FeatureSet(Statistics(np.zeros(2), np.eye(2)), "mine")
        >>> fake = FeatureSet(Statistics.of(np.eye(2)), "mine", np.eye(2, dtype=np.float32))
        >>> why_not("fid", real, fake), why_not("kid", real, fake)
        (None, 'the reference holds statistics alone; this metric needs the features of every image')
    """
    if name == "inception_score":
        if fake.logits is None:
            return f"{fake.protocol} has no logits"
        return _too_few("images", len(fake.logits), _default(name, "num_splits"))
    if name != "fid" and real.features is None:
        return "the reference holds statistics alone; this metric needs the features of every image"
    least = _least(name)
    short = _too_few("images of the reference", real.statistics.count, least)
    return short or _too_few("images", fake.statistics.count, least)


def score(
    name: str,
    real: FeatureSet,
    fake: FeatureSet,
    *,
    num_resamples: int = 200,
    level: float = 0.95,
    watch: pairs.Watch = pairs.unwatched,
) -> tuple[dict[str, Score], list[str]]:
    """Compute one metric of two sets.

    Args:
        name: in METRICS, of which `why_not` says nothing.
        real, fake: the sets.
        num_resamples: bootstrap samples of the interval; 0 for no interval.
        level: of the interval.
        watch: called with the share of the interval's work that is done.

    Returns:
        Scores by name ("precision" and "recall" of precision_recall), and what the metric warns of.

    Example:
        >>> from ddpm_jax.evaluation.moments import Statistics
        >>> of = lambda values: FeatureSet(Statistics.of(values), "mine", values)
        >>> real = of(np.array([[0.0], [2.0], [0.0], [2.0]]))
        >>> found, said = score("energy_distance", real, of(np.array([[0.0], [2.0]])), num_resamples=0)
        >>> round(found["energy_distance"].value, 3), found["energy_distance"].num_real, said
        (-1.333, 2, [])
    """
    metric, data = METRICS[name], _arguments(name, real, fake)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if num_resamples:
            found = intervals.estimate(metric, *data, num_resamples=num_resamples, level=level, watch=watch)
        else:
            values = intervals.values_of(metric, metric(*data))
            found = {part: intervals.Estimate(value, None, None) for part, value in values.items()}  # pyright: ignore[reportArgumentType]
    of_real, *counts = _of_real(name, real, fake)
    scores = {part: Score(*found[part], of_real.get(part), *counts) for part in found}
    return scores, list(dict.fromkeys(str(warning.message) for warning in caught))


def _arguments(name: str, real: FeatureSet, fake: FeatureSet) -> tuple[Any, ...]:
    if name == "inception_score":
        return (fake.logits,)
    return (real.statistics if real.features is None else real.features, fake.features)


def _of_real(name: str, real: FeatureSet, fake: FeatureSet) -> tuple[dict[str, float], int | None, int | None]:
    """Return the values of real images in the place of the fakes, how many these are, and against how many."""
    metric = METRICS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few images: the metric itself has said it
        if name == "inception_score":
            if real.logits is None or len(real.logits) < _default(name, "num_splits"):
                return {}, None, None
            return intervals.values_of(metric, metric(real.logits)), len(real.logits), None
        size = 0 if real.features is None else min(len(real.features) // 2, fake.statistics.count or 0)
        if real.features is None or size < _least(name):
            return {}, None, None
        against = len(real.features) - size
        return intervals.floor(metric, real.features, size=size, against=against), size, against


def _least(name: str) -> int:
    """Return how many images a metric needs on each side."""
    k = _default(name, "k")
    return 2 if k is None else k + 1


def _default(name: str, argument: str) -> Any:
    parameter = inspect.signature(METRICS[name]).parameters.get(argument)
    return None if parameter is None else parameter.default


def _too_few(what: str, count: int | None, least: int) -> str | None:
    return None if count is None or count >= least else f"{what}: {count}, and this metric needs at least {least}"
