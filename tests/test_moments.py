"""Statistics gathered in parts: those of one batch, in any order and split; what is refused."""

import numpy as np
import pytest

from ddpm_jax.evaluation import moments
from ddpm_jax.evaluation.moments import Statistics

FEATURES = np.random.default_rng(0).normal(size=(200, 6)) @ np.diag([1, 2, 3, 4, 5, 1e-3]) + 7


def assert_equal(statistics, features):
    assert statistics.count == len(features) and statistics.mean.dtype == statistics.covariance.dtype == np.float64
    np.testing.assert_allclose(statistics.mean, features.mean(axis=0), rtol=1e-13)
    expected = np.cov(features, rowvar=False)
    # sums of 200 products, in another order: 1e-13 of the product of both standard deviations
    deviations = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(
        statistics.covariance / deviations / deviations[:, None], np.corrcoef(features.T), atol=1e-13
    )


@pytest.mark.parametrize("parts", [[200], [1, 199], [1, 1, 1, 97, 100], [50] * 4, [1] * 200])
def test_parts_equal_one_batch(parts):
    gathered = Statistics.empty(6)
    for part in np.split(FEATURES, np.cumsum(parts)[:-1]):
        gathered = gathered.update(part)
    assert_equal(gathered, FEATURES)


def test_blocks_equal_one_batch(monkeypatch):
    monkeypatch.setattr(moments, "BLOCK", 7)
    assert_equal(Statistics.of(FEATURES), FEATURES)


def test_order_does_not_matter():
    one, two, three = (Statistics.of(part) for part in np.split(FEATURES, [20, 90]))
    for merged in (one.merge(two).merge(three), three.merge(one.merge(two)), two.merge(three).merge(one)):
        assert_equal(merged, FEATURES)
    empty = Statistics.empty(6)
    for merged in (empty.merge(one), one.merge(empty)):
        assert_equal(merged, FEATURES[:20])
    assert empty.merge(empty).count == 0


def test_a_mean_far_from_the_origin_costs_no_digits():
    """Raw squares of 1e8 would leave none of a variance of 1."""
    features = np.round(np.random.default_rng(0).normal(size=(300, 3)), 2)
    expected = Statistics.of(features).covariance
    gathered = Statistics.empty(3)
    for part in np.array_split(features, 9):
        gathered = gathered.update(part + 1e8)
    np.testing.assert_allclose(gathered.covariance, expected, atol=1e-7)  # 1e8 is held to 1.5e-8


def test_float32_features_are_summed_in_float64():
    features = FEATURES.astype(np.float32)
    assert_equal(Statistics.of(features), features.astype(np.float64))


def test_counts_are_copies():
    counts = np.random.default_rng(1).integers(0, 4, 200)
    assert_equal(Statistics.of(FEATURES, counts), np.repeat(FEATURES, counts, axis=0))


@pytest.mark.parametrize("num", [3, 200])
@pytest.mark.parametrize("counted", [True, False])
def test_roots_give_the_covariance(num, counted):
    counts = np.random.default_rng(2).integers(0, 4, num) + np.arange(num) % 2 if counted else None
    features = np.repeat(FEATURES[:num], counts, axis=0) if counted else FEATURES[:num]
    mean, root = moments.root_of(FEATURES[:num], counts)
    np.testing.assert_allclose(mean, features.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(root.T @ root, np.cov(features, rowvar=False), atol=1e-12)  # of up to 25
    assert len(root) <= min(num, 6)


def test_a_covariance_without_full_rank_has_a_smaller_root():
    assert Statistics.of(FEATURES[:4]).factor().shape == (3, 6)
    assert Statistics.of(np.ones((4, 6))).factor().shape == (0, 6)


@pytest.mark.parametrize(
    "mean, covariance, words",
    [
        (np.zeros(2), np.eye(3), r"shapes \[2\] and \[3, 3\]; they must be \[d\] and \[d, d\]"),
        (np.zeros((2, 1)), np.eye(2), r"shapes \[2, 1\]"),
        (np.zeros(0), np.zeros((0, 0)), r"shapes \[0\]"),
        (np.array([0, np.nan]), np.eye(2), "`mean` holds 1 values that are NaN"),
        (np.zeros(2), np.full((2, 2), np.inf), "`covariance` holds 4 values"),
    ],
)
def test_what_is_no_statistics_is_refused(mean, covariance, words):
    with pytest.raises(ValueError, match=words):
        Statistics(mean, covariance)


def test_what_cannot_be_merged_is_refused():
    whole = Statistics.of(FEATURES)
    with pytest.raises(ValueError, match="of 6 and of 2 features"):
        whole.merge(Statistics.empty(2))
    with pytest.raises(ValueError, match="`count` is None: .* Give it on creation"):
        whole.merge(Statistics(whole.mean, whole.covariance))
    with pytest.raises(ValueError, match="NaN or infinite, first in row 1030 of 1100"):
        whole.update(np.where(np.arange(1100) < 1030, 0.0, np.nan)[:, None] * np.ones(6))
