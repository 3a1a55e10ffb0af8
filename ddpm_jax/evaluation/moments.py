"""Mean and covariance of features, gathered batch by batch, and the features of which they are taken."""

import dataclasses

import numpy as np

from ddpm_jax.validation import check

BLOCK = 1024  # images that are brought to float64 at a time: 16 MiB of 2048 features
_EPS = np.finfo(np.float64).eps
_NEGATIVE = 1e-3  # of the largest eigenvalue: below its negative lies no rounding, not even that of float32


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of features in float64: all that the FID needs of a set of images.

    They are gathered by `update` and `merge`, which equal one batch of all features to rounding, in any order (Chan,
    Golub and LeVeque 1979, equation 2.1: deviations from the means are added, never raw squares):

        C = [(n_1 - 1) C_1 + (n_2 - 1) C_2 + n_1 n_2 / n (m_2 - m_1)(m_2 - m_1)^T] / (n - 1)

    Attributes:
        mean: np.float64 [d].
        covariance: np.float64 [d, d], divided by count - 1 as `np.cov` does; zeros for less than two images.
        count: number of images, or None where nobody knows it: files of other programs do not tell.

    Raises:
        ValueError: on creation, for shapes that do not fit, or values that are not finite.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(100, 3))
        >>> whole, half = Statistics.of(features), Statistics.of(features[:50])
        >>> bool(np.allclose(half.update(features[50:]).covariance, whole.covariance, rtol=1e-12))
        True
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "mean", np.asarray(self.mean, np.float64))
        object.__setattr__(self, "covariance", np.asarray(self.covariance, np.float64))
        shapes, dim = f"{list(self.mean.shape)} and {list(self.covariance.shape)}", self.mean.size
        check(
            self.mean.ndim == 1 and dim and self.covariance.shape == (dim, dim),
            f"`mean` and `covariance` have the shapes {shapes}; they must be [d] and [d, d]. Take both of one set.",
        )
        for name in ("mean", "covariance"):
            wrong = int(np.count_nonzero(~np.isfinite(getattr(self, name))))
            check(
                not wrong,
                f"`{name}` holds {wrong} values that are NaN or infinite; all must be finite. Make the statistics "
                "again, of features that are.",
            )

    @classmethod
    def empty(cls, dim: int) -> "Statistics":
        """Return the statistics of no image, to begin with.

        Args:
            dim: number of features.
        """
        return cls(np.zeros(dim), np.zeros((dim, dim)), 0)

    @classmethod
    def of(cls, features: np.ndarray, counts: np.ndarray | None = None) -> "Statistics":
        """Take the statistics of features, in blocks.

        Args:
            features: [n, d].
            counts: how often each image counts [n], as in a bootstrap; None counts each once.

        Raises:
            ValueError: as in `check_features`.
        """
        check_features(features, "features")
        gathered = cls.empty(features.shape[1])
        for start in range(0, len(features), BLOCK):
            rows = slice(start, start + BLOCK)
            block = _deviations(features[rows], None if counts is None else counts[rows])
            if block.count:
                scatter = block.weighted.T @ block.weighted
                covariance = scatter / max(block.count - 1, 1)
                gathered = gathered.merge(cls(block.mean, covariance, block.count))
        return gathered

    @property
    def dim(self) -> int:
        """Number of features."""
        return len(self.mean)

    def update(self, features: np.ndarray) -> "Statistics":
        """Return the statistics of these images and of more.

        Args:
            features: [n, d] of the further images.
        """
        return self.merge(Statistics.of(features))

    def merge(self, other: "Statistics") -> "Statistics":
        """Return the statistics of two sets of images together.

        Raises:
            ValueError: they have different numbers of features, or one does not know its number of images.
        """
        check(
            self.dim == other.dim,
            f"The statistics are of {self.dim} and of {other.dim} features, but only those of one extractor can be "
            "merged. Make both with the same one.",
        )
        if self.count is None or other.count is None:
            raise ValueError(
                "`count` is None: of merged statistics the numbers of images must be known. Give it on creation."
            )
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        scatter = max(self.count - 1, 0) * self.covariance + max(other.count - 1, 0) * other.covariance
        scatter += np.outer(apart, apart * (self.count * other.count / count))
        return Statistics(self.mean + apart * (other.count / count), scatter / max(count - 1, 1), count)

    def factor(self) -> np.ndarray:
        """Return F [rank, d] with F^T F = covariance. Eigenvalues that are zero but for rounding are left out.

        Raises:
            ValueError: an eigenvalue is negative beyond rounding.
        """
        values, vectors = np.linalg.eigh(self.covariance)
        check(
            values[0] >= -_NEGATIVE * abs(values[-1]),
            f"`covariance` has the eigenvalue {values[0]:.3g} beside the largest, {values[-1]:.3g}; none may be "
            "negative. This is no covariance: make the statistics again.",
        )
        kept = values > self.dim * _EPS * values[-1]
        return (vectors[:, kept] * np.sqrt(values[kept])).T


def check_features(features: np.ndarray, name: str) -> None:
    """Refuse what is no array of finite features.

    Args:
        features: [n, d].
        name: of the argument, for the message.

    Raises:
        ValueError: another shape or dtype, no image, NaN or infinite values; the message names the first such image.

    Example:
        >>> check_features(np.array([[1.0, 2.0], [np.nan, 0.0]]), "real")
        Traceback (most recent call last):
        ValueError: `real` has values that are NaN or infinite, first in row 1 of 2; all must be finite. Look at that image and at the extractor, or leave the row out.
    """  # noqa: E501
    shape = list(features.shape)
    check(
        features.ndim == 2 and 0 not in shape and features.dtype.kind in "fiu",
        f"`{name}` is an array {features.dtype} {shape}; features are numbers [n, d], one row an image. Take them of "
        "an extractor, or flatten them (`.reshape(len(images), -1)`).",
    )
    for start in range(0, len(features), BLOCK):
        wrong = ~np.isfinite(features[start : start + BLOCK]).all(axis=1)
        check(
            not wrong.any(),
            f"`{name}` has values that are NaN or infinite, first in row {start + int(wrong.argmax())} of {shape[0]}; "
            "all must be finite. Look at that image and at the extractor, or leave the row out.",
        )


def root_of(data: "np.ndarray | Statistics", counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean [d] and F [r, d] with F^T F = covariance.

    Of no more images than features, F is made of the features themselves: their covariance would square what rounding
    leaves of its many zero eigenvalues' roots.

    Args:
        data: features [n, d], or their statistics.
        counts: as in `Statistics.of`.
    """
    if isinstance(data, Statistics):
        return data.mean, data.factor()
    if len(data) > data.shape[1]:
        whole = Statistics.of(data, counts)
        return whole.mean, whole.factor()
    few = _deviations(data, counts)
    return few.mean, few.weighted / np.sqrt(few.count - 1)


@dataclasses.dataclass(frozen=True)
class _Deviations:
    """Features less their mean, each row times the root of how often it counts."""

    mean: np.ndarray
    weighted: np.ndarray
    count: int


def _deviations(features: np.ndarray, counts: np.ndarray | None) -> _Deviations:
    if counts is None:
        block = features.astype(np.float64)
        mean = block.mean(axis=0)
        return _Deviations(mean, block - mean, len(block))
    there = counts > 0
    block, times = features[there].astype(np.float64), counts[there]
    total = int(times.sum())
    mean = times @ block / max(total, 1)
    return _Deviations(mean, (block - mean) * np.sqrt(times)[:, None], total)
