"""Metrics of features: torch-fidelity's numbers, closed forms, definitions by brute force, memory, what is refused."""

import importlib.util
import math
import tracemalloc
import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch_fidelity_metrics
from conftest import ROOT
from scipy.spatial.distance import cdist

from ddpm_jax.evaluation import metrics
from ddpm_jax.evaluation.metrics import (
    density_coverage,
    energy_distance,
    fid,
    inception_score,
    kid,
    kid_subsets,
    precision_recall,
)
from ddpm_jax.evaluation.moments import Statistics

pytestmark = pytest.mark.filterwarnings("ignore:.*full rank from:UserWarning")  # small sets; one test asks for it
ORACLES = np.load(ROOT / "tests/oracles/metrics.npz")
SETS = sorted({name.partition("/")[0] for name in ORACLES.files})
# torch-fidelity takes roots of eigenvalues that are zero but for rounding, each the root of eps times the norm of the
# product of the covariances. Where few are zero, they add less than 1e-8 of the FID.
ROOTS_OF_ROUNDING = {"full": 1e-8, "one_deficient": 1e-8, "deficient": 1e-8, "very_deficient": 5e-8}


def random_features(seed=0, n=30, m=40, d=5):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)), 1.5 * generator.normal(size=(m, d)) + 0.5


def our_values(real, fake, logits):
    """What `torch_fidelity_metrics.values` returns, by our functions."""
    settings = torch_fidelity_metrics.SETTINGS
    subsets, size, seed = (settings[name] for name in ("kid_subsets", "kid_subset_size", "rng_seed"))
    kid_mean, kid_std = kid_subsets(real, fake, num_subsets=subsets, subset_size=size, seed=seed)
    splits, splits_seed = torch_fidelity_metrics.SPLITS, torch_fidelity_metrics.SPLITS_SEED
    score_mean, score_std = inception_score(logits, num_splits=splits, seed=splits_seed)
    precision, recall = precision_recall(real, fake, k=3)
    return {
        "frechet_inception_distance": fid(real, fake),
        "kernel_inception_distance_mean": kid_mean,
        "kernel_inception_distance_std": kid_std,
        "inception_score_mean": score_mean,
        "inception_score_std": score_std,
        "precision": precision,
        "recall": recall,
    }


def assert_same_values(ours, theirs, fid_tolerance):
    for name, value in ours.items():
        # torch-fidelity takes the mean of precision and recall in float32, the others in float64
        tolerance = {"frechet_inception_distance": fid_tolerance, "precision": 1e-7, "recall": 1e-7}.get(name, 1e-8)
        np.testing.assert_allclose(value, theirs[name], rtol=tolerance, err_msg=name)


class TestTorchFidelity:
    @pytest.mark.parametrize("name", SETS)
    def test_recorded(self, name):
        of_set = {key.partition("/")[2]: ORACLES[key] for key in ORACLES.files if key.startswith(f"{name}/")}
        ours = our_values(of_set["real"], of_set["fake"], of_set["logits"])
        assert_same_values(ours, of_set, ROOTS_OF_ROUNDING[name])

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "num_real, num_fake, dim", [(400, 300, 32), (300, 500, 128), (127, 400, 128), (126, 125, 128)]
    )
    def test_live(self, num_real, num_fake, dim):
        """Mostly overlapping features as those of the inception network: not negative, of very different variances."""
        if not all(map(importlib.util.find_spec, ("torch", "torch_fidelity"))):
            pytest.skip("needs torch and torch-fidelity")
        generator = np.random.default_rng(dim)
        mixing = generator.normal(size=(dim, dim)) * np.exp(-np.arange(dim) / dim * 4)
        real = np.maximum(generator.normal(size=(num_real, dim)) @ mixing + 0.5, 0)
        fake = np.maximum(1.1 * generator.normal(size=(num_fake, dim)) @ mixing, 0)
        logits = 3 * generator.normal(size=(num_fake, 100))
        theirs = torch_fidelity_metrics.values(real, fake, logits)
        assert_same_values(our_values(real, fake, logits), theirs, 1e-8)


class TestFid:
    @pytest.mark.parametrize("name", SETS)
    def test_equals_fifty_digits(self, name):
        """Also where torch-fidelity's roots of rounding do not."""
        real, fake = ORACLES[f"{name}/real"], ORACLES[f"{name}/fake"]
        np.testing.assert_allclose(fid(real, fake), ORACLES[f"{name}/exact_fid"], rtol=1e-12)  # float64 sums of 60
        # a covariance holds the zero eigenvalues to 1e-16 of the largest, which are left out, and the others exactly
        of_statistics = fid(Statistics.of(real), Statistics.of(fake))
        np.testing.assert_allclose(of_statistics, ORACLES[f"{name}/exact_fid"], rtol=1e-11)

    def test_gaussians_of_commuting_covariances(self):
        """|m_1 - m_2|^2 + sum (s_1 - s_2)^2, with axes turned by any rotation."""
        generator = np.random.default_rng(0)
        rotation = np.linalg.qr(generator.normal(size=(6, 6)))[0]
        (s_1, s_2), (m_1, m_2) = generator.uniform(0, 3, (2, 6)), generator.normal(size=(2, 6))
        s_1[0] = 1e-5  # a small variance is no rounding: it adds 2e-5 s_2
        one, other = (Statistics(m, rotation * s**2 @ rotation.T) for m, s in ((m_1, s_1), (m_2, s_2)))
        expected = ((m_1 - m_2) ** 2).sum() + ((s_1 - s_2) ** 2).sum()
        # the root of a variance of 1e-10 that the matrix holds to 1e-15
        np.testing.assert_allclose(fid(one, other), expected, rtol=1e-10)

    def test_gaussians_that_do_not_commute(self):
        """By SciPy's root of the product, of covariances of full rank."""
        real, fake = random_features(n=50, m=60)
        one, other = np.cov(real, rowvar=False), np.cov(fake @ np.diag([1, 2, 3, 4, 5]), rowvar=False)
        expected = np.trace(one + other - 2 * scipy.linalg.sqrtm(one @ other).real)
        zeros = np.zeros(5)
        np.testing.assert_allclose(fid(Statistics(zeros, one), Statistics(zeros, other)), expected, rtol=1e-10)

    @pytest.mark.parametrize("n", [4, 300])
    def test_is_zero_between_equal_sets_and_a_shift_between_shifted_ones(self, n):
        real = np.random.default_rng(0).normal(size=(n, 8))
        assert fid(real, real) < 1e-12  # of traces of 8
        np.testing.assert_allclose(fid(real, real + 3), 8 * 9, rtol=1e-12)

    def test_constant_features(self):
        """Covariances without any rank: the distance of the means alone, or a trace."""
        ones = np.ones((4, 2))
        assert fid(ones, 3 * ones) == fid(Statistics.of(ones), Statistics.of(3 * ones)) == 8
        assert fid(ones, np.array([[0.0, 1.0], [2.0, 1.0]])) == 2  # variance 2 and mean 1

    def test_of_arrays_is_that_of_statistics(self):
        real, fake = random_features()
        expected = fid(Statistics.of(real), Statistics.of(fake))
        assert fid(real, fake) == fid(Statistics.of(real), fake) == expected
        np.testing.assert_allclose(fid(fake, real), expected, rtol=1e-12)

    def test_too_few_images_are_warned_of(self):
        real, fake = random_features(n=5, m=6)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            fid(real, fake)
            fid(fake, Statistics.of(real))
            fid(fake, Statistics(np.zeros(5), np.eye(5)))  # of nobody knows how many images
        assert [str(warning.message).partition(":")[0] for warning in said] == [
            f"`{name}` has 5 images, but a covariance of 5 features has full rank from 6 on"
            for name in ("real", "fake")
        ]


class TestKid:
    def test_is_its_definition(self):
        real, fake = random_features()
        kernel = lambda x, y: (x @ y.T / 5 + 1) ** 3
        off = lambda matrix: (matrix.sum() - np.trace(matrix)) / (len(matrix) * (len(matrix) - 1))
        expected = off(kernel(real, real)) + off(kernel(fake, fake)) - 2 * kernel(real, fake).mean()
        np.testing.assert_allclose(kid(real, fake), expected, rtol=1e-12)

    def test_the_whole_set_as_a_subset(self):
        real, fake = random_features(n=30, m=30)
        found = kid_subsets(real, fake, num_subsets=3, subset_size=30)
        np.testing.assert_allclose(found.mean, kid(real, fake), rtol=1e-12)
        assert found.std < 1e-12 * found.mean

    def test_of_gaussians(self):
        """In one dimension E (x y + 1)^3 = 1 + 3 E x E y + 3 E x^2 E y^2 + E x^3 E y^3; unbiased for few images."""
        generator = np.random.default_rng(0)
        found = [kid(generator.normal(size=(5, 1)), 1 + generator.normal(size=(6, 1))) for _ in range(500)]
        kernel = lambda x, y: sum(math.comb(3, power) * x[power] * y[power] for power in range(4))
        standard, shifted = (1, 0, 1, 0), (1, 1, 2, 4)  # the moments of N(0, 1) and N(1, 1)
        expected = kernel(standard, standard) + kernel(shifted, shifted) - 2 * kernel(standard, shifted)
        assert abs(np.mean(found) - expected) < 4 * np.std(found) / 500**0.5  # four standard errors


class TestInceptionScore:
    def test_two_classes(self):
        """KL of (p, 1 - p) and its mirror image to their mean, (1/2, 1/2): log 2 - H(p)."""
        p = 0.8
        logits = np.log([[p, 1 - p], [1 - p, p]] * 6)
        expected = 2 * p**p * (1 - p) ** (1 - p)
        np.testing.assert_allclose(
            inception_score(logits, num_splits=3, seed=None), (expected, 0), rtol=1e-12, atol=1e-12
        )

    def test_splits_follow_the_order_without_a_seed(self):
        one, other = np.zeros((5, 2)), np.where(np.eye(2), 0.0, -2e3)[[0, 1, 0, 1, 0, 1]]
        found = inception_score(np.concatenate([one, other]), num_splits=2, seed=None)  # parts of 5 and 6 images
        np.testing.assert_allclose(found, (1.5, 0.5), rtol=1e-12)  # of scores 1 and 2
        assert inception_score(np.concatenate([one, other]), num_splits=2) != found

    def test_does_not_change_with_the_level_of_the_logits(self):
        logits = np.random.default_rng(0).normal(size=(30, 4))
        np.testing.assert_allclose(
            inception_score(logits + 1e4), inception_score(logits), rtol=1e-10
        )  # 1e4 takes 4 digits


class TestNeighbours:
    @pytest.mark.parametrize("k", [1, 3, 7, 60])
    def test_are_their_definitions(self, k):
        real, fake = random_features(n=300, m=400)
        between = cdist(real, fake)
        of_real, of_fake = (np.sort(cdist(x, x), axis=1)[:, k] for x in (real, fake))  # the nearest is the image itself
        in_real, in_fake = between <= of_real[:, None], between <= of_fake
        found = precision_recall(real, fake, k=k)
        assert found == pytest.approx((in_real.any(axis=0).mean(), in_fake.any(axis=1).mean()), rel=1e-15)
        expected = (in_real.sum() / (k * 400), in_real.any(axis=1).mean())
        assert density_coverage(real, fake, k=k) == pytest.approx(expected, rel=1e-15)

    def test_equal_sets(self):
        """Every ball holds its own image and k others, the k-th on its surface."""
        real = np.random.default_rng(0).normal(size=(50, 30)) + 1000  # where rounding would decide
        assert precision_recall(real, real.copy()) == (1, 1)
        assert density_coverage(real, real.copy(), k=4) == (5 / 4, 1)

    def test_sets_far_apart(self):
        real, fake = random_features()
        assert precision_recall(real, fake + 100) == density_coverage(real, fake + 100) == (0, 0)

    def test_squares_of_distances(self):
        """Equal rows have the distance 0, whatever a product of matrices leaves, and near ones theirs."""
        rows = np.random.default_rng(0).normal(size=(40, 300)) * 10
        near = rows + 1e-4
        found = metrics.pairs.squared_distances(rows, np.concatenate([rows, near]))
        assert (np.diag(found) == 0).all()
        # squares of norms, 3e4, are rounded by some 1e-12
        expected = cdist(rows, np.concatenate([rows, near]), "sqeuclidean")
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(np.diag(found[:, 40:]), 300e-8, rtol=1e-4)

    def test_copies_lie_in_balls_without_a_size(self):
        real = np.repeat(np.random.default_rng(0).normal(size=(3, 20)) * 10, 4, axis=0)
        assert precision_recall(real, real[:5], k=3).precision == 1

    def test_expected_density_and_coverage(self):
        """1 and 1 - 2^-k for equal distributions and sizes (Naeem et al. 2020, section 3.2)."""
        generator = np.random.default_rng(0)
        found = np.array([density_coverage(*generator.normal(size=(2, 40, 2)), k=3) for _ in range(1000)])
        exact = 1 - math.prod((39 - i) / (79 - i) for i in range(3))  # lemma 2, before its limit of many images
        error = found.std(axis=0) / 1000**0.5
        assert (np.abs(found.mean(axis=0) - (1, exact)) < 4 * error).all()


class TestEnergyDistance:
    def test_is_its_definition(self):
        real, fake = random_features()
        within = cdist(real, real).sum() / (30 * 29) + cdist(fake, fake).sum() / (40 * 39)
        np.testing.assert_allclose(energy_distance(real, fake), 2 * cdist(real, fake).mean() - within, rtol=1e-12)

    def test_scipy_in_one_dimension(self):
        """SciPy's is the root, and counts pairs of an image with itself: n^2 pairs where n^2 - n have a distance."""
        real, fake = random_features(d=1)
        of_pairs = lambda x: np.abs(x - x.T).mean()
        expected = scipy.stats.energy_distance(real[:, 0], fake[:, 0]) ** 2
        expected -= of_pairs(real) / 29 + of_pairs(fake) / 39
        np.testing.assert_allclose(energy_distance(real, fake), expected, rtol=1e-12)

    def test_far_from_the_origin(self):
        """Features are centred first; 1e6 would take 12 of the 16 digits of a square."""
        real, fake = (np.round(features, 3) for features in random_features())  # the sums are exact to 1e-10
        np.testing.assert_allclose(energy_distance(real + 1e6, fake + 1e6), energy_distance(real, fake), rtol=1e-7)


METRICS = [fid, kid, precision_recall, density_coverage, energy_distance]


@pytest.mark.parametrize("metric", METRICS)
def test_float32_and_integers_are_computed_in_float64(metric):
    real, fake = (np.round(10 * features).astype(np.float32) for features in random_features())
    assert metric(real, fake) == metric(*(features.astype(np.float64) for features in (real, fake)))
    assert metric(real, fake) == metric(*(features.astype(np.int16) for features in (real, fake)))


@pytest.mark.parametrize("metric", [kid, precision_recall, density_coverage, energy_distance])
def test_tiles_change_nothing(metric, monkeypatch):
    real, fake = random_features()
    whole = metric(real, fake)
    monkeypatch.setattr(metrics.pairs, "TILE", 7)
    np.testing.assert_allclose(metric(real, fake), whole, rtol=1e-12)  # sums in another order


@pytest.mark.parametrize("metric", [kid, precision_recall, energy_distance])
def test_memory_does_not_grow_with_the_pairs(metric, monkeypatch):
    assert 20 * 8 * metrics.pairs.TILE**2 < 2e8  # the bound below, of tiles of the usual side
    monkeypatch.setattr(metrics.pairs, "TILE", 128)
    real, fake = random_features(n=1500, m=1200, d=2)
    tracemalloc.start()
    metric(real, fake)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 8 * 128**2  # tiles of float64 and what is linear in the images; all pairs are 88 tiles or more


class TestRefusals:
    @pytest.mark.parametrize("metric", METRICS)
    def test_other_dimensions(self, metric):
        real, fake = random_features()
        with pytest.raises(ValueError, match="`real` has 5 features an image and `fake` 4; both .* one extractor"):
            metric(real, fake[:, :4])

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_not_finite(self, metric, value):
        real, fake = random_features()
        fake[17, 2] = value
        with pytest.raises(ValueError, match="`fake` has values that are NaN or infinite, first in row 17 of 40"):
            metric(real, fake)

    @pytest.mark.parametrize("metric", METRICS)
    def test_other_shapes(self, metric):
        real, fake = random_features()
        with pytest.raises(ValueError, match=r"`real` is an array float64 \[30\]; features are numbers \[n, d\]"):
            metric(real[:, 0], fake)
        with pytest.raises(ValueError, match=r"`fake` is an array <U\d+ \[40, 5\]"):
            metric(real, fake.astype(str))

    @pytest.mark.parametrize("metric", [fid, kid, energy_distance])
    def test_one_image(self, metric):
        real, fake = random_features(m=1)
        with pytest.raises(ValueError, match="`fake` has 1 image; at least 2 are needed"):
            metric(real, fake)

    @pytest.mark.parametrize("metric", [precision_recall, density_coverage])
    def test_no_k_neighbours(self, metric):
        real, fake = random_features()
        with pytest.raises(ValueError, match="`real` has 30 images; at least 31 are needed. .* smaller `k`"):
            metric(real, fake, k=30)
        with pytest.raises(ValueError, match="`k` must be at least 1, not 0"):
            metric(real, fake, k=0)
        metric(real, fake, k=29)

    def test_statistics_where_images_are_compared(self):
        real, fake = random_features()
        with pytest.raises(ValueError, match="`real` is a mean and a covariance, .* take the `fid`"):
            metrics.check_pair(Statistics.of(real), fake, least=2, statistics=False)

    def test_subsets_and_splits_that_are_too_large(self):
        real, fake = random_features()
        with pytest.raises(ValueError, match="`subset_size` is 31, but `real` has 30 images and `fake` 40"):
            kid_subsets(real, fake, subset_size=31)
        with pytest.raises(ValueError, match="`num_splits` is 41, but `logits` has 40 images"):
            inception_score(fake, num_splits=41)
        with pytest.raises(ValueError, match="`logits` has values that are NaN"):
            inception_score(fake * np.nan)

    def test_what_is_no_covariance(self):
        with pytest.raises(ValueError, match="`covariance` has the eigenvalue -1 beside the largest, 2"):
            fid(Statistics(np.zeros(2), np.diag([-1.0, 2.0])), Statistics(np.zeros(2), np.eye(2)))
