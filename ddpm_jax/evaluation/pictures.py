"""Draw what `figures`, `neighbours` and `copies` return: images in a table with titles, as np.uint8 [h, w, c]."""

from collections.abc import Sequence

import numpy as np

from ddpm_jax import pixels, plotting
from ddpm_jax.evaluation.figures import Interpolations, SharedLatents
from ddpm_jax.sampling import Trajectory
from ddpm_jax.types import Array, Images

SIDE = 64  # pixels; smaller images are enlarged to about this


def progressive(path: Trajectory) -> np.ndarray:
    """Draw x_0_hat on its way, an image a row: figures 6 and 14.

    Args:
        path: of `sample_path`.

    Example:
        >>> frames = np.zeros((3, 2, 32, 32, 1), np.float32)
        >>> progressive(Trajectory(frames, frames, np.array([999.0, 500.0, 0.0]))).shape
        (145, 196, 1)
    """
    images = np.asarray(path.x_0_hat).swapaxes(0, 1)
    return _table(images, columns=[_of_t(t) for t in path.t])


def shared_latents(shared: SharedLatents, data_range: pixels.DataRange) -> np.ndarray:
    """Draw the noisy image and its samples, a timestep a row: figure 7.

    Args:
        shared: of `figures.shared_latents`.
        data_range: `params.config.schedule.data_range`, of the noisy images.

    Example:
        >>> shared = SharedLatents(np.array([500.0]), np.zeros((1, 32, 32, 1)), np.zeros((1, 3, 32, 32, 1)))
        >>> shared_latents(shared, (-1, 1)).shape
        (79, 299, 1)
    """
    noisy = np.asarray(pixels.to_images(shared.x_t, data_range))[:, None]
    images = np.concatenate([noisy, shared.images], axis=1)
    titles = ["x_t", *(f"sample {j + 1}" for j in range(shared.images.shape[1]))]
    return _table(images, rows=[_of_t(t) for t in shared.t], columns=titles)


def interpolations(made: Interpolations, first: Images, second: Images) -> np.ndarray:
    """Draw mixtures made at one timestep, a pair of images a row, or of one pair, a timestep a row: figures 8 and 9.

    The two images stand at both ends. Below several timesteps comes the mixture of the images themselves, which the
    paper shows as that after 0 steps.

    Args:
        made: of `figures.interpolate`, at one timestep or of one pair.
        first, second: the images [b, h, w, c] in [0, 1].

    Example:
        >>> image = np.zeros((1, 32, 32, 1), np.float32)
        >>> made = Interpolations(np.array([500.0, 250.0]), np.array([0.0, 1.0]), np.zeros((2, 2, 1, 32, 32, 1)))
        >>> interpolations(made, image, image).shape
        (211, 299, 1)
    """
    first, second = np.asarray(first, np.float32), np.asarray(second, np.float32)
    several = len(made.t) > 1
    if several:
        weights = np.reshape(made.weights, (-1, 1, 1, 1)).astype(np.float32)
        mixed = (1 - weights) * first[:1] + weights * second[:1]
        rows = np.concatenate([made.images[:, :, 0], mixed[None]])
        titles = [*(_of_t(t) for t in made.t), "pixels"]
        first, second = (np.repeat(image[:1], len(rows), axis=0) for image in (first, second))
    else:
        rows, titles = made.images[0].swapaxes(0, 1), None
    images = np.concatenate([first[:, None], rows, second[:, None]], axis=1)
    ends = {0.0: "rec.", 1.0: "rec."}
    weights = [ends.get(float(weight), f"{weight:.2g}") for weight in made.weights]
    return _table(images, rows=titles, columns=["source", *weights, "source"])


def beside_neighbours(
    images: np.ndarray, training: np.ndarray, indices: Array, titles: Sequence[str] | None = None
) -> np.ndarray:
    """Draw images and their nearest training images, an image a row: figures 12 and 15.

    Args:
        images: np.uint8 [n, h, w, c].
        training: np.uint8 [m, h, w, c].
        indices: [n, k] into `training`, the nearest first.
        titles: one for each row.

    Example:
        >>> images = np.zeros((5, 64, 64, 3), np.uint8)
        >>> beside_neighbours(images[:2], images, np.array([[0, 1, 2], [3, 4, 0]])).shape
        (145, 262, 3)
    """
    rows = np.concatenate([images[:, None], training[np.asarray(indices)]], axis=1)
    columns = ["sample", "nearest", *(f"{j + 2}." for j in range(indices.shape[1] - 1))]
    return _table(rows.astype(np.float32) / 255, rows=titles, columns=columns)


def _table(images: Array, *, rows: Sequence[str] | None = None, columns: Sequence[str]) -> np.ndarray:
    scale = max(SIDE // min(images.shape[2:4]), 1)
    return plotting.labelled(images, rows=rows, columns=columns, scale=scale)


def _of_t(t: float) -> str:
    return f"t = {t:.4g}"
