"""Nearest neighbours by Euclidean distance: exact, in blocks, in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.types import Array
from ddpm_jax.validation import as_positive, check

_BLOCK = 2**22  # float64 numbers of a block, 32 MB; three blocks are held at a time


class Neighbours(NamedTuple):
    """The nearest vectors of each query, the nearest first.

    Attributes:
        indices: int64 [n, k], into the data; of equally near ones the lower number comes first.
        distances: float64 [n, k], Euclidean.
    """

    indices: np.ndarray
    distances: np.ndarray


def nearest_neighbours(
    queries: Array | tuple[Array, ...],
    data: Array,
    k: int = 1,
    *,
    exclude_self: bool = False,
    watch: Callable[[int], None] | None = None,
) -> Neighbours:
    """Find the k vectors of a set that are nearest to each query.

    Blocks of |q - x|^2 = |q|^2 + |x|^2 - 2 q.x choose the k; their distances are then taken of the differences, so that
    equal vectors have distance 0. Of integers (bytes) the sums are exact, and so are ties.

    Args:
        queries: [n, ...] numbers of any dtype, or a tuple of several such arrays, v versions of the same queries (an
            image and its mirror image, say): the version that is nearest counts, for each vector of the data.
        data: [m, ...] likewise, an array in memory or a memory map; it is read block by block.
        k: neighbours of each query.
        exclude_self: query i is not compared with vector i of the data, for neighbours within one set.
        watch: told how many queries are done.

    Returns:
        Neighbours(indices, distances), [n, k] each.

    Raises:
        ValueError: shapes that do not go together, fewer vectors than neighbours, NaN or infinite numbers.

    Example:
        >>> data = np.array([[0, 0], [3, 4], [0, 1]])
        >>> found = nearest_neighbours(np.array([[0, 0]]), data, k=2)
        >>> found.indices.tolist(), found.distances.tolist()
        ([[0, 2]], [[0.0, 1.0]])
    """
    versions = [np.asarray(version) for version in (queries if isinstance(queries, tuple) else (queries,))]
    data = np.asarray(data)  # of a memory map a view, which is read where it is used
    k = as_positive("k", k)
    count = _check_shapes(versions, data, k, exclude_self)
    width = max(int(np.prod(data.shape[1:])), 1)
    rows = max(_BLOCK // width, 1)
    step = max(min(rows, _BLOCK // min(rows, len(data))) // len(versions), 1)  # a block of distances is no larger
    centre = _vectors("data", data[:rows]).mean(0)  # vectors that are far from 0 lose digits in the products
    centre = centre if data.dtype.kind == "f" else np.rint(centre)
    indices, distances = np.empty((count, k), np.int64), np.empty((count, k))
    for start in range(0, count, step):
        own = np.arange(start, min(start + step, count))
        block = [_vectors("queries", version[own]) for version in versions]
        best = Neighbours(np.empty((len(own), 0), np.int64), np.empty((len(own), 0)))
        for first in range(0, len(data), rows):
            others = _vectors("data", data[first : first + rows])
            squares = _squares([version - centre for version in block], others - centre)
            numbers = np.arange(first, first + len(others))
            if exclude_self:
                squares[own[:, None] == numbers] = np.inf
            best = _merged(best, numbers, squares, k)
        indices[own], distances[own] = _exact(block, data, best.indices)
        if watch is not None:
            watch(int(own[-1]) + 1)
    return Neighbours(indices, distances)


def _check_shapes(versions: list[Any], data: np.ndarray, k: int, exclude_self: bool) -> int:
    """Return the number of queries."""
    shapes = sorted({version.shape for version in versions})
    check(
        len(shapes) == 1 and len(shapes[0]) >= 2 and shapes[0][1:] == data.shape[1:] and shapes[0][0] > 0,
        f"`queries` has the shape {' and '.join(map(str, shapes)) or '()'}, `data` {data.shape}: both must be [number, "
        "...] with the same shape of a vector. Compare images of one size, or features of one extractor.",
    )
    count, most = shapes[0][0], len(data) - exclude_self
    check(
        not exclude_self or count == len(data),
        f"`exclude_self` compares a set with itself, but `queries` has {count} vectors and `data` {len(data)}: pass "
        "the same set twice, or leave it out.",
    )
    what = "others" if exclude_self else "vectors"
    check(k <= most, f"`k` is {k}, but `data` has {most} {what}: ask for at most {most} neighbours, or give more data.")
    return count


def _vectors(name: str, block: np.ndarray) -> np.ndarray:
    vectors = np.asarray(block, np.float64).reshape(len(block), -1)
    bad = np.count_nonzero(~np.isfinite(vectors).all(1))
    check(not bad, f"`{name}` holds NaN or infinite numbers in {bad} vectors: they have no neighbours. Leave them out.")
    return vectors


def _squares(versions: list[np.ndarray], others: np.ndarray) -> np.ndarray:
    """Return the squared distance of each pair, the least over the versions: [n, m]."""
    norms = np.einsum("ij,ij->i", others, others)
    least: Any = np.inf
    for version in versions:
        squares = version @ others.T
        squares *= -2
        squares += np.einsum("ij,ij->i", version, version)[:, None]
        squares += norms
        least = np.minimum(least, squares)
    return least


def _merged(best: Neighbours, numbers: np.ndarray, squares: np.ndarray, k: int) -> Neighbours:
    """Return the k smallest of what was found before and of a block, in the order of their numbers."""
    indices = np.concatenate([best.indices, np.broadcast_to(numbers, squares.shape)], 1)
    squares = np.concatenate([best.distances, squares], 1)
    if squares.shape[1] <= k:
        return Neighbours(indices, squares)
    limit = np.partition(squares, k - 1, axis=1)[:, k - 1 : k]
    kept = squares < limit
    ties = squares == limit  # of which the first ones complete the k
    kept |= ties & (np.cumsum(ties, axis=1) <= k - kept.sum(1, keepdims=True))
    return Neighbours(indices[kept].reshape(-1, k), squares[kept].reshape(-1, k))


def _exact(versions: list[np.ndarray], data: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the chosen numbers, sorted by distance and then by number, and the distances."""
    distances = np.empty(indices.shape)
    for row, chosen in enumerate(indices):
        others = data[chosen].reshape(len(chosen), -1).astype(np.float64)
        away = [np.linalg.norm(others - version[row], axis=1) for version in versions]
        distances[row] = np.min(away, axis=0)
    order = np.argsort(distances, axis=1, kind="stable")  # the numbers rise
    return np.take_along_axis(indices, order, 1), np.take_along_axis(distances, order, 1)
