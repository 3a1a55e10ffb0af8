"""Measure how far sets of images are from one another: the energy distance of their pixels.

    ddpm-jax sample run --fast --num-images 1000 --batch-size 100 --format npz --out samples
    python benchmarks/energy_distance.py samples/images.npz photos/train --to photos/test --resolution 32

The energy distance (Szekely & Rizzo 2013) of two sets of images, as vectors of pixels in [0, 1], is

    2 E|X - Y| - E|X - X'| - E|Y - Y'|,        |.| the Euclidean distance,

taken by its U-statistic, with 95 % bootstrap intervals over the images of both sets. It is zero exactly for equal
distributions. A set is a folder of images (cut to squares in the middle and resized), an .npz or .npy, or `digits`.
Needs the extra `train`.
"""

import argparse

import numpy as np

BOOTSTRAPS = 500
MOST = 5000  # images of a set, evenly spread


def main() -> None:
    """Print the distance of every set to the one of `--to`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", metavar="SET")
    parser.add_argument("--to", required=True, metavar="SET")
    parser.add_argument("--resolution", type=int, required=True)
    arguments = parser.parse_args()
    target = read(arguments.to, arguments.resolution)
    within_target = distances(target, target)
    for name in arguments.sets:
        vectors = read(name, arguments.resolution)
        if vectors.shape[1] != target.shape[1]:
            parser.error(f"{name} and {arguments.to} differ in their channels")
        energy = energy_distance(distances(vectors, vectors), within_target, distances(vectors, target))
        print(f"{name:40s} {len(vectors):5d} images  {energy['distance']:.5f}  {energy['interval']}", flush=True)


def read(name: str, resolution: int) -> np.ndarray:
    """Return a set as vectors."""
    from ddpm_jax.images.source import centred, open_source

    images, _ = centred(open_source(name), resolution, MOST)
    return as_vectors(images)


def as_vectors(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64) / 255


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance of every pair."""
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.sqrt(np.maximum(squares, 0))


def energy_distance(within_x: np.ndarray, within_y: np.ndarray, between: np.ndarray) -> dict:
    """Return the U-statistic and its 95 % bootstrap interval.

    A bootstrap sample draws image i w_i times, with (w_1 .. w_n) multinomial. For i != j, E[w_i w_j] = (n - 1) / n. The
    n (n - 1) such pairs thus have weight (n - 1)^2 in all on average, by which the sum within a set is divided.
    """
    n, m = between.shape
    generator = np.random.default_rng(0)
    np.fill_diagonal(within_x, 0), np.fill_diagonal(within_y, 0)
    whole = 2 * between.mean() - within_x.sum() / (n * (n - 1)) - within_y.sum() / (m * (m - 1))
    w = generator.multinomial(n, np.full(n, 1 / n), BOOTSTRAPS).astype(np.float64)
    v = generator.multinomial(m, np.full(m, 1 / m), BOOTSTRAPS).astype(np.float64)
    cross = 2 * ((w @ between) * v).sum(1) / (n * m)
    draws = cross - ((w @ within_x) * w).sum(1) / (n - 1) ** 2 - ((v @ within_y) * v).sum(1) / (m - 1) ** 2
    low, high = np.quantile(draws, (0.025, 0.975))
    return {"distance": float(whole), "interval": [round(float(low), 6), round(float(high), 6)]}


if __name__ == "__main__":
    main()
