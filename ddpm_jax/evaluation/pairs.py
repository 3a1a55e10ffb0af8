"""Sums and neighbours over all pairs of images, tile by tile: memory does not grow with the number of pairs."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

TILE = 1024  # images on a side: 8 MiB of float64
_EPS = np.finfo(np.float64).eps
_TIE = 1e-10  # relative: distances nearer than this are equal, whatever two matrix products round

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
Watch = Callable[[float], None]  # told the share of the work that is done, 0 to 1


def unwatched(share: float) -> None:
    """Tell nobody how far the work is."""


def part_of(watch: Watch, number: int, parts: int) -> Watch:
    """Return what watches part `number` of so many parts, which count as equally long."""
    return lambda share: watch((number + share) / parts)


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the kernel of KID, (x . y / d + 1)^3, of all rows [n, d] and [m, d] as [n, m]."""
    linear = x @ y.T / x.shape[1] + 1
    return linear * linear * linear  # `**` would call a general power for every pair


def negative_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return -|x - y| of all rows [n, d] and [m, d] as [n, m]: the kernel of the energy distance."""
    return -np.sqrt(squared_distances(x, y))


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return |x - y|^2 of all rows [n, d] and [m, d] as [n, m]. What rounding leaves of equal rows is 0."""
    norms = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)
    squares = norms - 2 * (x @ y.T)
    squares[squares < x.shape[1] * _EPS * norms] = 0
    return squares


def discrepancy(
    kernel: Kernel,
    x: np.ndarray,
    y: np.ndarray,
    counts_x: np.ndarray,
    counts_y: np.ndarray,
    *,
    centre: np.ndarray | float = 0.0,
    watch: Watch = unwatched,
) -> np.ndarray:
    """Return the unbiased squared maximum mean discrepancy of two sets (Gretton et al. 2012, equation 3).

        mmd^2 = sum_{i != j} k(x_i, x_j) / (n^2 - n) + sum_{i != j} k(y_i, y_j) / (m^2 - m) - 2 mean_{ij} k(x_i, y_j)

    Each of r bootstrap samples counts images differently. Pairs of an image with its own copies are left out there too,
    so that a sample with copies is as unbiased as the sets.

    Args:
        kernel: of rows [a, d] and [b, d], as [a, b].
        x, y: features [n, d] and [m, d].
        counts_x, counts_y: how often each image counts, [n, r] and [m, r].
        centre: what is subtracted from all rows [d]: for kernels of differences, so that less is rounded.
        watch: called after each row of tiles.

    Returns:
        [r].
    """
    within_x = _within(kernel, x, counts_x, centre, part_of(watch, 0, 3))
    within_y = _within(kernel, y, counts_y, centre, part_of(watch, 1, 3))
    between, watch = np.zeros(counts_x.shape[1]), part_of(watch, 2, 3)
    for rows in _blocks(len(x)):
        block = _centred(x[rows], centre)
        for columns in _blocks(len(y)):
            tile = kernel(block, _centred(y[columns], centre))
            between += (counts_x[rows] * (tile @ counts_y[columns])).sum(axis=0)
        watch(rows.stop / len(x))
    return within_x + within_y - 2 * between / (counts_x.sum(axis=0) * counts_y.sum(axis=0))


def _within(kernel: Kernel, x: np.ndarray, counts: np.ndarray, centre: np.ndarray | float, watch: Watch) -> np.ndarray:
    """Return the mean of k(x_i, x_j) over i != j [r]."""
    total = np.zeros(counts.shape[1])
    for rows in _blocks(len(x)):
        block = _centred(x[rows], centre)
        for columns in _blocks(rows.stop):  # half of the tiles: the others mirror them
            tile = kernel(block, _centred(x[columns], centre))
            if columns == rows:
                np.fill_diagonal(tile, 0)
            times = 1 if columns == rows else 2
            total += times * (counts[rows] * (tile @ counts[columns])).sum(axis=0)
        watch((rows.stop / len(x)) ** 2)
    return total / (counts.sum(axis=0) ** 2 - (counts**2).sum(axis=0))


class Held(NamedTuple):
    """Which points lie in which balls.

    Attributes:
        balls: number of balls that hold each point [n].
        points: number of points in each ball [m].
    """

    balls: np.ndarray
    points: np.ndarray


def squared_radii(x: np.ndarray, k: int, watch: Watch = unwatched) -> np.ndarray:
    """Return the squared distance of each row [n, d] to its k-th nearest other row, as [n]."""
    centre, radii = x.mean(axis=0, dtype=np.float64), []
    for rows in _blocks(len(x)):
        block, nearest = _centred(x[rows], centre), np.full((rows.stop - rows.start, k), np.inf)
        for columns in _blocks(len(x)):
            tile = squared_distances(block, _centred(x[columns], centre))
            if rows == columns:
                np.fill_diagonal(tile, np.inf)
            nearest = np.partition(np.concatenate([nearest, tile], axis=1), k - 1, axis=1)[:, :k]
        radii.append(nearest[:, k - 1])
        watch(rows.stop / len(x))
    return np.concatenate(radii)


def held(points: np.ndarray, centres: np.ndarray, radii: np.ndarray, watch: Watch = unwatched) -> Held:
    """Count the points [n, d] in the balls around centres [m, d] with squared radii [m]. The surface belongs to it."""
    middle = centres.mean(axis=0, dtype=np.float64)
    balls, within = np.zeros(len(points), np.int64), np.zeros(len(centres), np.int64)
    for rows in _blocks(len(points)):
        block = _centred(points[rows], middle)
        for columns in _blocks(len(centres)):
            distances = squared_distances(block, _centred(centres[columns], middle))
            inside = distances <= radii[columns] * (1 + _TIE)
            balls[rows] += inside.sum(axis=1)
            within[columns] += inside.sum(axis=0)
        watch(rows.stop / len(points))
    return Held(balls, within)


def _centred(features: np.ndarray, centre: np.ndarray | float) -> np.ndarray:
    return features.astype(np.float64) - centre


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, TILE):
        yield slice(start, min(start + TILE, count))
