"""Distances between two sets of images, in numbers of their features, in float64 and bounded memory.

`real` and `fake` are features [n, d] and [m, d] of one extractor. No network and no files: features come from
`evaluation.features`, statistics from files by `evaluation.reference`, intervals from `evaluation.intervals`.
"""

import warnings
from typing import NamedTuple

import numpy as np

from ddpm_jax.evaluation import pairs
from ddpm_jax.evaluation.moments import Statistics, check_features, root_of
from ddpm_jax.validation import as_positive, check


class Spread(NamedTuple):
    """Mean and standard deviation over subsets of the images.

    Attributes:
        mean, std: over the subsets; std is divided by their number, as in the papers' code.
    """

    mean: float
    std: float


class PrecisionRecall(NamedTuple):
    """How many fakes look real, and how much of the real is covered.

    Attributes:
        precision: share of the fakes that lie in the manifold of the real images, 0 to 1.
        recall: share of the real images that lie in the manifold of the fakes, 0 to 1.
    """

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Precision and recall that outliers do not spoil.

    Attributes:
        density: mean number of real balls that hold a fake, over k; 1 is expected of equal distributions.
        coverage: share of the real balls that hold a fake, 0 to 1.
    """

    density: float
    coverage: float


def fid(real: np.ndarray | Statistics, fake: np.ndarray | Statistics) -> float:
    """Compute the Frechet distance of two Gaussians with the moments of the features (Heusel et al. 2017).

        FID = |m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^(1/2)

    With C = F^T F the last trace is the sum of the singular values of F_1 F_2^T. It stays exact for covariances without
    full rank, where roots of the product's eigenvalues are noise: of fewer images than features, F is made of the
    features themselves. Agrees with torch-fidelity, pytorch-fid and clean-fid for equal moments.

    The FID falls with the number of images, whatever the model: compare only values of equally many (50,000 in the
    papers), and always state it.

    Args:
        real, fake: features [n, d] or their `Statistics`.

    Returns:
        The distance, 0 or more.

    Raises:
        ValueError: different numbers of features, less than two images, NaN.

    Warns:
        UserWarning: there are too few images for a covariance of full rank.

    Example:
        >>> standard = Statistics(mean=np.zeros(2), covariance=np.eye(2))
        >>> fid(standard, Statistics(mean=np.array([3.0, 0.0]), covariance=4 * np.eye(2)))  # 9 + 2 (2 - 1)^2
        11.0
    """
    check_pair(real, fake, least=2)
    for name, data in (("real", real), ("fake", fake)):
        _warn_of_few(data, name)
    return frechet(*root_of(real), *root_of(fake))


def frechet(mean_1: np.ndarray, root_1: np.ndarray, mean_2: np.ndarray, root_2: np.ndarray) -> float:
    """Return the Frechet distance of Gaussians with means [d] and covariances F^T F of roots F [r, d]."""
    cross = root_1 @ root_2.T
    overlap = np.linalg.svd(cross, compute_uv=False).sum() if cross.size else 0.0  # features may be constant
    distance = ((mean_1 - mean_2) ** 2).sum() + (root_1**2).sum() + (root_2**2).sum() - 2 * overlap
    return max(float(distance), 0.0)  # rounding alone makes it negative


def kid(real: np.ndarray, fake: np.ndarray) -> float:
    """Compute the kernel inception distance over all pairs of images (Binkowski et al. 2018).

    It is the unbiased squared maximum mean discrepancy with the kernel (x . y / d + 1)^3. Unlike the FID it is as large
    for few images as for many on average, and near 0, also below, for equal distributions. `kid_subsets` is what
    torch-fidelity and clean-fid print, an average over random subsets; this is the value without their choice.

    Args:
        real, fake: features [n, d] and [m, d].

    Returns:
        The distance; many print it times 1000.

    Raises:
        ValueError: different numbers of features, less than two images, NaN.

    Example:
        >>> round(kid(np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])), 10)  # 1 + 27 - (1 + 1 + 8 + 27) / 2
        9.5
    """
    check_pair(real, fake, least=2, statistics=False)
    return float(pairs.discrepancy(pairs.cubic, real, fake, *_once(real, fake))[0])


def kid_subsets(
    real: np.ndarray, fake: np.ndarray, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> Spread:
    """Compute the kernel inception distance as torch-fidelity prints it: over random subsets.

    The subsets are torch-fidelity's where the fakes are its input 1, the real images its input 2, and the seed its
    `rng_seed`. It computes in the features' dtype, here float64 is used: give it float64 features for equal digits.
    clean-fid's subsets differ from call to call.

    Args:
        real, fake: features [n, d] and [m, d].
        num_subsets: how many subsets are drawn of each.
        subset_size: images of a subset, drawn without replacement.
        seed: of the choice.

    Returns:
        Mean and standard deviation over the subsets. The latter says how far subsets differ, not how exact the mean is.

    Raises:
        ValueError: as for `kid`; fewer images than `subset_size`.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(2, 50, 4))
        >>> kid_subsets(*features, num_subsets=5, subset_size=50).std < 1e-12  # one subset alone is possible
        True
    """
    check_pair(real, fake, least=2, statistics=False)
    num_subsets, subset_size = as_positive("num_subsets", num_subsets), as_positive("subset_size", subset_size)
    fewest = min(len(real), len(fake))
    check(
        2 <= subset_size <= fewest,
        f"`subset_size` is {subset_size}, but `real` has {len(real)} images and `fake` {len(fake)}; a subset has from "
        "2 to as many as both have. Use a smaller one and state it, or `kid` of all pairs.",
    )
    generator = np.random.RandomState(seed)  # that of torch-fidelity, for its subsets
    found = []
    for _ in range(num_subsets):
        chosen_fake = fake[generator.choice(len(fake), subset_size, replace=False)]
        chosen_real = real[generator.choice(len(real), subset_size, replace=False)]
        found.append(kid(chosen_real, chosen_fake))
    return Spread(float(np.mean(found)), float(np.std(found)))


def inception_score(logits: np.ndarray, *, num_splits: int = 10, seed: int | None = 2020) -> Spread:
    """Compute the inception score (Salimans et al. 2016, section 4).

        IS = exp(E_x KL(p(y | x) || p(y)))

    The images are shuffled and split, and each part has its score. Agrees with torch-fidelity, seed included. It tells
    nothing of images unlike those of the classifier's training, and rises with the number of images.

    Args:
        logits: [n, classes] of the fakes. The published numbers take those of the inception network without its bias.
        num_splits: number of parts.
        seed: of the shuffle; None leaves the order.

    Returns:
        Mean and standard deviation over the parts; the mean is from 1 to the number of classes.

    Raises:
        ValueError: fewer images than parts, NaN.

    Example:
        >>> sure = np.where(np.eye(4), 0.0, -1e3)  # four images, of one class each
        >>> round(inception_score(sure, num_splits=1).mean, 12)
        4.0
    """
    scores = [
        np.exp(information(*entropy_terms(part), np.ones((len(part), 1)))[0])
        for part in splits(logits, num_splits, seed)
    ]
    return Spread(float(np.mean(scores)), float(np.std(scores)))


def splits(logits: np.ndarray, num_splits: int = 10, seed: int | None = 2020) -> list[np.ndarray]:
    """Return the parts of which the inception score is taken, each [n / num_splits, classes].

    Raises:
        ValueError: fewer images than parts, NaN.
    """
    check_features(logits, "logits")
    count, num_splits = len(logits), as_positive("num_splits", num_splits)
    check(
        num_splits <= count,
        f"`num_splits` is {num_splits}, but `logits` has {count} images; every part needs one. Use fewer parts, or "
        "more images: the published scores have 10 parts of 5,000.",
    )
    order = np.arange(count)
    if seed is not None:
        order = np.random.RandomState(seed).permutation(count)  # the order of torch-fidelity
    return [logits[order[part * count // num_splits : (part + 1) * count // num_splits]] for part in range(num_splits)]


def entropy_terms(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return p(y | x) [n, classes] and its negative entropy [n], in nats."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    return p, (p * log_p).sum(axis=1)


def information(p: np.ndarray, negative_entropies: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return E_x KL(p(y | x) || p(y)) for images that count differently, counts [n, r], as [r]."""
    shares = counts / counts.sum(axis=0)
    q = shares.T @ p  # [r, classes]
    log_q = np.log(q, out=np.zeros_like(q), where=q > 0)  # a class that no image has adds nothing
    return negative_entropies @ shares - (q * log_q).sum(axis=1)


def precision_recall(real: np.ndarray, fake: np.ndarray, *, k: int = 3) -> PrecisionRecall:
    """Compute precision and recall by nearest neighbours (Kynkaanniemi et al. 2019).

    The manifold of a set is the union of balls around its images, each as large as the distance to the k-th nearest
    other image. A point on a ball's surface lies in it. Agrees with torch-fidelity, whose input 1 is `fake`.

    Args:
        real, fake: features [n, d] and [m, d]; the papers take equally many, 50,000.
        k: which neighbour.

    Raises:
        ValueError: different numbers of features, k or fewer images, NaN.

    Example:
        >>> real, fake = np.array([[0.0], [1.0], [2.0], [9.0]]), np.array([[0.5], [1.0], [2.5], [30.0]])
        >>> precision_recall(real, fake, k=1)  # 30 is an outlier, whose ball reaches to 9
        PrecisionRecall(precision=0.75, recall=1.0)
    """
    near = manifolds(real, fake, k=k)
    return PrecisionRecall(float(near["precision"].mean()), float(near["recall"].mean()))


def manifolds(
    real: np.ndarray, fake: np.ndarray, *, k: int = 3, watch: pairs.Watch = pairs.unwatched
) -> dict[str, np.ndarray]:
    """Return which fakes lie in the manifold of the real images ("precision" [m]), and the converse ("recall" [n])."""
    check_pair(real, fake, least=as_positive("k", k) + 1, statistics=False)
    parts = [pairs.part_of(watch, number, 4) for number in range(4)]
    of_real, of_fake = pairs.squared_radii(real, k, parts[0]), pairs.squared_radii(fake, k, parts[1])
    return {
        "precision": pairs.held(fake, real, of_real, parts[2]).balls > 0,
        "recall": pairs.held(real, fake, of_fake, parts[3]).balls > 0,
    }


def density_coverage(real: np.ndarray, fake: np.ndarray, *, k: int = 5) -> DensityCoverage:
    """Compute density and coverage (Naeem et al. 2020, equations 3 and 4).

        density  = mean_j #{i: fake_j in B(real_i)} / k      coverage = mean_i [some fake_j in B(real_i)]

    B(real_i) reaches to the k-th nearest other real image; its surface belongs to it, as in the paper (the authors'
    code leaves it out). For equal distributions and sizes density is 1, and coverage 1 - 2^-k, in expectation.

    Args:
        real, fake: features [n, d] and [m, d].
        k: which neighbour.

    Raises:
        ValueError: different numbers of features, k or fewer images, NaN.

    Example:
        >>> density_coverage(np.array([[0.0], [1.0], [5.0]]), np.array([[0.5], [3.0]]), k=1)  # in 2 balls, and in 1
        DensityCoverage(density=1.5, coverage=1.0)
    """
    near = real_balls(real, fake, k=k)
    return DensityCoverage(float(near["density"].mean()), float(near["coverage"].mean()))


def real_balls(
    real: np.ndarray, fake: np.ndarray, *, k: int = 5, watch: pairs.Watch = pairs.unwatched
) -> dict[str, np.ndarray]:
    """Return how many real balls hold each fake, over k ("density" [m]), and which hold one ("coverage" [n])."""
    check_pair(real, fake, least=as_positive("k", k) + 1, statistics=False)
    radii = pairs.squared_radii(real, k, pairs.part_of(watch, 0, 2))
    held = pairs.held(fake, real, radii, pairs.part_of(watch, 1, 2))
    return {"density": held.balls / k, "coverage": held.points > 0}


def energy_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Compute the squared energy distance (Szekely and Rizzo 2013), unbiased.

        D^2 = 2 E|x - y| - E|x - x'| - E|y - y'|

    Pairs of an image with itself are left out, so that it is 0 on average for equal distributions, and may be negative.
    It needs neither a covariance nor a choice of neighbours, and tells any two distributions apart.

    Args:
        real, fake: features [n, d] and [m, d].

    Raises:
        ValueError: different numbers of features, less than two images, NaN.

    Example:
        >>> energy_distance(np.array([[0.0], [1.0]]), np.array([[5.0], [6.0]]))  # 2 * 5 - 1 - 1
        8.0
    """
    check_pair(real, fake, least=2, statistics=False)
    centre = real.mean(axis=0, dtype=np.float64)
    return float(pairs.discrepancy(pairs.negative_distance, real, fake, *_once(real, fake), centre=centre)[0])


def check_pair(
    real: np.ndarray | Statistics, fake: np.ndarray | Statistics, *, least: int, statistics: bool = True
) -> None:
    """Refuse two sets of features that cannot be compared.

    Args:
        real, fake: the arguments of a metric.
        least: number of images that each must have.
        statistics: whether `Statistics` will do.

    Raises:
        ValueError: says which argument is wrong, and what to do.
    """
    dims = {}
    for name, data in (("real", real), ("fake", fake)):
        if isinstance(data, Statistics):
            check(
                statistics,
                f"`{name}` is a mean and a covariance, but this metric compares single images; it needs an array "
                "[n, d]. Keep the features when the statistics are made, or take the `fid`.",
            )
            dims[name], count = data.dim, data.count
        else:
            check_features(data, name)
            count, dims[name] = data.shape
        enough = f"; at least {least} are needed. Add images" + (", or take a smaller `k`." if least > 2 else ".")
        check(count is None or count >= least, f"`{name}` has {count} image{'s' * (count != 1)}{enough}")
    check(
        dims["real"] == dims["fake"],
        f"`real` has {dims['real']} features an image and `fake` {dims['fake']}; both must come from one extractor, "
        "and for `pixels` of images of one size. Take the features of both alike.",
    )


def _warn_of_few(data: np.ndarray | Statistics, name: str) -> None:
    """Say how many images are missing for a covariance of full rank."""
    count, dim = (data.count, data.dim) if isinstance(data, Statistics) else data.shape
    if count is not None and count <= dim:
        warnings.warn(
            f"`{name}` has {count} images, but a covariance of {dim} features has full rank from {dim + 1} on: this "
            "FID is larger than that of more images. Take more, or compare only with an FID of as many.",
            stacklevel=3,
        )


def _once(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count every image once."""
    return np.ones((len(real), 1)), np.ones((len(fake), 1))
