"""Pixels on all their scales: bytes, [0, 1], the scale of a network's data, and PIL's images."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ddpm_jax.types import Array, Images
from ddpm_jax.validation import check

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
PICTURE_CHANNELS = tuple(_MODES)
DataRange = tuple[int, int]  # (-1, 1), or (0, 1) of variance-exploding networks: `ScheduleConfig.data_range`


def to_uint8(images: Images) -> np.ndarray:
    """Round images from [0, 1] to bytes, halves to even: exactly what diffusers' `DDPMPipeline` writes.

    Args:
        images: as `sample` returns them; what lies outside [0, 1] is clipped.

    Returns:
        np.uint8 of the same shape.

    Example:
        >>> to_uint8(np.array([0.0, 0.5, 1.0], np.float32).reshape(1, 1, 3, 1)).ravel().tolist()
        [0, 128, 255]
    """
    images = np.clip(np.asarray(jax.device_get(images), np.float32), 0, 1)
    return (images * 255).round().astype(np.uint8)


def to_pil(images: Images) -> list[Image.Image]:
    """Turn images in [0, 1] into PIL images: grey for 1 channel, RGB for 3, RGBA for 4.

    Raises:
        ValueError: another number of channels.

    Example:
        >>> to_pil(np.zeros((2, 8, 8, 1), np.float32))[0].mode
        'L'
    """
    return [picture(image) for image in to_uint8(images)]


def check_channels(channels: int) -> None:
    """Refuse images that no image file can hold.

    Raises:
        ValueError: another number of channels than 1, 3 or 4.
    """
    check(
        channels in _MODES,
        f"An image file holds 1, 3 or 4 channels, not {channels}. Keep such images as arrays (`format` npz, or "
        "np.save), or take some of the channels first.",
    )


def picture(pixels: np.ndarray) -> Image.Image:
    """Return the PIL image of some bytes: the inverse of `pixels_of`.

    Args:
        pixels: np.uint8 [h, w, c] with 1, 3 or 4 channels.

    Raises:
        ValueError: another number of channels.

    Example:
        >>> picture(np.zeros((4, 6, 1), np.uint8)).size
        (6, 4)
    """
    channels = pixels.shape[-1]
    check_channels(channels)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels, _MODES[channels])


def pixels_of(image: Image.Image) -> np.ndarray:
    """Return the bytes [h, w, c] of a PIL image; a grey one has one channel.

    Example:
        >>> pixels_of(Image.new("L", (6, 4))).shape
        (4, 6, 1)
    """
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def data_from_bytes(images: Array, data_range: DataRange) -> jax.Array:
    """Map bytes 0 .. 255 to the scale of a network's data.

    Args:
        images: uint8, of any shape.
        data_range: `ScheduleConfig.data_range`.

    Returns:
        float32 of the same shape.

    Example:
        >>> data_from_bytes(np.array([0, 255], np.uint8), (-1, 1)).tolist()
        [-1.0, 1.0]
    """
    images = jnp.asarray(images, jnp.float32)
    return images / 255 if data_range == (0, 1) else images / 127.5 - 1


def to_data(images: Array, data_range: DataRange) -> jax.Array:
    """Map images in [0, 1] to the scale of a network's data: the inverse of `to_images` but for its clipping.

    Example:
        >>> to_data(np.array([0.0, 0.5, 1.0], np.float32), (-1, 1)).tolist()
        [-1.0, 0.0, 1.0]
    """
    images = jnp.asarray(images, jnp.float32)
    return images if data_range == (0, 1) else 2 * images - 1


def to_images(x: Array, data_range: DataRange) -> jax.Array:
    """Map the scale of a network's data to [0, 1], and clip.

    Example:
        >>> to_images(np.array([-1.5, 0.0, 1.0], np.float32), (-1, 1)).tolist()
        [0.0, 0.5, 1.0]
    """
    x = jnp.asarray(x)
    return jnp.clip(x if data_range == (0, 1) else (x + 1) / 2, 0, 1)
