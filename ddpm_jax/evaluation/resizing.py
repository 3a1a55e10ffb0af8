"""How FID tools bring images to the 299 x 299 pixels of their network, and to its scale.

The tools differ, and so do their numbers: Parmar et al. 2022 (arXiv:2104.11222) show how much. Each resize is linear
and treats rows and columns alike, so it is two products, with a matrix [299, h] and a matrix [299, w].

    torch-fidelity   TensorFlow 1's bilinear, of corners: pixel i is read at i h / 299. Scaled to v / 128 - 1.
    pytorch-fid      PyTorch's bilinear, of centres: pixel i is read at (i + 1/2) h / 299 - 1/2. To v / 127.5 - 1.
    clean-fid        Pillow's bicubic in float, clipped to 0 .. 255 and not rounded. To v / 128 - 1.

Only Pillow's looks at more than two neighbours when images shrink.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ddpm_jax.evaluation.inception import SIDE
from ddpm_jax.types import Array


def tensorflow_bilinear(side: int) -> np.ndarray:
    """Return the matrix [299, side] of TensorFlow 1's `resize_bilinear`, with positions in float32 as there.

    Example:
        >>> tensorflow_bilinear(598)[:2, :4].tolist()  # every other pixel
        [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    """
    return _between_neighbours(np.arange(SIDE, dtype=np.float32) * np.float32(side / SIDE), side)


def torch_bilinear(side: int) -> np.ndarray:
    """Return the matrix [299, side] of PyTorch's `interpolate(mode="bilinear", align_corners=False)`.

    Example:
        >>> torch_bilinear(598)[:2, :4].tolist()  # the mean of two
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    scale = np.float32(side / SIDE)
    position = (np.arange(SIDE) + 0.5) * scale.astype(np.float64) - 0.5  # torch's is a fused one: float32, rounded once
    return _between_neighbours(np.maximum(position, 0).astype(np.float32), side)


def _between_neighbours(position: np.ndarray, side: int) -> np.ndarray:
    """Return the matrix that reads pixels at positions from 0 up, between two of them; beyond the last, the last."""
    low = np.minimum(position.astype(np.int64), side - 1)
    share = position - low
    matrix = np.zeros((SIDE, side), np.float32)
    np.add.at(matrix, (np.arange(SIDE), low), 1 - share)
    np.add.at(matrix, (np.arange(SIDE), np.minimum(low + 1, side - 1)), share)
    return matrix


def pillow_bicubic(side: int) -> np.ndarray:
    """Return the matrix [299, side] of Pillow's antialiased bicubic: what it makes of the unit matrix' columns."""
    unit = Image.fromarray(np.eye(side, dtype=np.float32))
    return np.asarray(unit.resize((side, SIDE), Image.Resampling.BICUBIC))


MATRICES: dict[str, Callable[[int], np.ndarray]] = {
    "torch-fidelity": tensorflow_bilinear,
    "pytorch-fid": torch_bilinear,
    "clean-fid": pillow_bicubic,
}


@functools.lru_cache(maxsize=32)  # of the sizes of a set, which are few
def matrices(tool: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrices of a tool for rows [299, height] and for columns [299, width]."""
    return MATRICES[tool](height), MATRICES[tool](width)


def network_input(tool: str, images: Array, rows: Array, columns: Array) -> jax.Array:
    """Resize and scale images as a tool does; grey ones get three equal channels.

    Args:
        tool: a key of `MATRICES`.
        images: uint8 [b, h, w, 1 or 3].
        rows: its matrix [299, h].
        columns: its matrix [299, w].

    Returns:
        float32 [b, 299, 299, 3].
    """
    centre, scale = (127.5, 127.5) if tool == "pytorch-fid" else (128.0, 128.0)
    x = (jnp.asarray(images).astype(jnp.float32) - centre) / scale  # before the resize, whose rows sum to 1
    x = jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")
    if tool == "clean-fid":  # a cubic overshoots
        x = jnp.clip(x, -1, 127 / 128)
    return jnp.broadcast_to(x, (*x.shape[:3], 3))
