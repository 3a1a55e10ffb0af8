"""Nearest neighbours against brute force: blocks, ties, versions, and numbers that cannot be compared."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ddpm_jax.evaluation import neighbours
from ddpm_jax.evaluation.neighbours import nearest_neighbours

GENERATOR = np.random.default_rng(0)


def brute(queries, data, k, exclude_self=False):
    """By the definition: all distances, sorted by (distance, number)."""
    distances = cdist(queries.astype(np.float64), data.astype(np.float64))
    if exclude_self:
        np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, 1)


@pytest.mark.parametrize("block", [8, 60, 2**22])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_equal_brute_force(monkeypatch, block, k):
    """With blocks of a few vectors of queries and data, and with one block."""
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    queries, data = GENERATOR.standard_normal((33, 5)), GENERATOR.standard_normal((40, 5))
    indices, distances = nearest_neighbours(queries, data, k)
    expected, expected_distances = brute(queries, data, k)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-14)  # another order of the sums


@pytest.mark.parametrize("block", [8, 2**22])
def test_ties_go_to_the_lower_number(monkeypatch, block):
    """Bytes of few values: nearly all distances are ties, across blocks too."""
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    data = GENERATOR.integers(0, 2, (50, 2, 2, 1), np.uint8)
    for k in (1, 6, 50):
        indices, distances = nearest_neighbours(data[:20], data, k)
        expected, expected_distances = brute(data[:20].reshape(20, -1), data.reshape(50, -1), k)
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(distances, expected_distances)


def test_within_one_set():
    data = GENERATOR.standard_normal((30, 3))
    data[7] = data[3]
    indices, distances = nearest_neighbours(data, data, 29, exclude_self=True)
    expected, _ = brute(data, data, 29, exclude_self=True)
    np.testing.assert_array_equal(indices, expected)
    assert indices[7, 0] == 3 and distances[7, 0] == 0
    assert all(i not in row for i, row in enumerate(indices))


def test_the_nearest_version_counts(monkeypatch):
    """For each vector of the data on its own."""
    monkeypatch.setattr(neighbours, "_BLOCK", 40)
    versions = tuple(GENERATOR.standard_normal((12, 4)) for _ in range(3))
    data = GENERATOR.standard_normal((25, 4))
    least = np.min([cdist(version, data) for version in versions], axis=0)
    indices, distances = nearest_neighbours(versions, data, 5)
    np.testing.assert_array_equal(indices, np.argsort(least, axis=1)[:, :5])
    np.testing.assert_allclose(distances, np.sort(least, axis=1)[:, :5], rtol=1e-13)


@pytest.mark.parametrize("offset, dtype", [(1e7, np.float64), (1e5, np.float32), (2**23, np.int32)])
def test_vectors_far_from_zero(offset, dtype):
    """|q|^2 + |x|^2 - 2 q.x of numbers around 1e7 has errors of 0.1, larger than the distances here."""
    data = (offset + GENERATOR.integers(0, 64, (300, 6)) / (1 if dtype == np.int32 else 32)).astype(dtype)
    indices, distances = nearest_neighbours(data[:50], data, 3)
    expected, expected_distances = brute(data[:50], data, 3)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-12)  # ties of floats may change places
    np.testing.assert_array_equal(indices[:, 0], expected[:, 0])


def test_a_memory_map_and_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK", 16 * 10)
    data = GENERATOR.integers(0, 256, (200, 4, 4, 1), np.uint8)
    np.save(tmp_path / "x.npy", data)
    done = []
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    indices, distances = nearest_neighbours(data[50:75], mapped, watch=done.append)
    np.testing.assert_array_equal(indices[:, 0], np.arange(50, 75))
    assert not distances.any() and done[-1] == 25 and len(done) > 1 and done == sorted(done)


@pytest.mark.parametrize(
    "queries, data, options, message",
    [
        (np.zeros((2, 3)), np.zeros((4, 5)), {}, r"`queries` has the shape \(2, 3\), `data` \(4, 5\): both must be"),
        (np.zeros(3), np.zeros((4, 3)), {}, r"`queries` has the shape \(3,\).*both must be \[number, ...\]"),
        (np.zeros((0, 3)), np.zeros((4, 3)), {}, r"`queries` has the shape \(0, 3\)"),
        ((np.zeros((2, 3)), np.zeros((1, 3))), np.zeros((4, 3)), {}, r"the shape \(1, 3\) and \(2, 3\)"),
        (np.zeros((2, 3)), np.zeros((4, 3)), {"k": 5}, "`k` is 5, but `data` has 4 vectors: ask for at most 4"),
        (np.zeros((4, 3)), np.zeros((4, 3)), {"k": 4, "exclude_self": True}, "`k` is 4, but `data` has 3 others"),
        (np.zeros((2, 3)), np.zeros((4, 3)), {"exclude_self": True}, "`queries` has 2 vectors and `data` 4"),
        (np.zeros((2, 3)), np.zeros((4, 3)), {"k": 0}, "`k` must be at least 1, not 0"),
        (np.full((2, 3), np.nan), np.zeros((4, 3)), {}, "`queries` holds NaN or infinite numbers in 2 vectors"),
        (np.zeros((2, 3)), np.full((4, 3), np.inf), {}, "`data` holds NaN or infinite numbers in 4 vectors"),
    ],
)
def test_bad_input(queries, data, options, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(queries, data, **options)
