"""PNG, JPEG and WebP by Pillow: the bits that they take for images, with and without their headers, and the error."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.images.arrays import checked_images
from ddpm_jax.pixels import picture, pixels_of
from ddpm_jax.validation import check

QUALITIES = (1, 5, 10, 20, 35, 50, 65, 80, 90, 95)


class Codec(NamedTuple):
    """How Pillow is asked for a codec.

    Attributes:
        format: Pillow's name.
        options: of `Image.save`.
        lossy: whether it takes a quality.
    """

    format: str
    options: dict[str, Any]
    lossy: bool = False


CODECS = {
    "png": Codec("PNG", {"optimize": True}),
    "jpeg": Codec("JPEG", {"optimize": True}, lossy=True),
    "jpeg-444": Codec("JPEG", {"optimize": True, "subsampling": "4:4:4"}, lossy=True),  # colour is not subsampled
    "webp": Codec("WEBP", {"method": 6}, lossy=True),
    "webp-lossless": Codec("WEBP", {"lossless": True, "quality": 100, "method": 6}),
}


class CodecPoint(NamedTuple):
    """A codec at one quality, averaged over a set of images.

    Attributes:
        codec: its name in CODECS.
        quality: None where it has none.
        bits_per_dim: of whole files.
        payload_bits_per_dim: without signature, headers and tables. Of a JPEG of 32 x 32 pixels these are most bytes.
        rmse: mean over images of the root mean square error, on 0 .. 255.
        mse: mean square error, on 0 .. 255.
        num_images: how many.
    """

    codec: str
    quality: int | None
    bits_per_dim: float
    payload_bits_per_dim: float
    rmse: float
    mse: float
    num_images: int


def codec_curve(images: np.ndarray, codec: str, qualities: Sequence[int] = QUALITIES) -> list[CodecPoint]:
    """Compress images one by one with a codec, at several qualities.

    Args:
        images: uint8 [n, h, w, c] with 1 or 3 channels.
        codec: a name in CODECS.
        qualities: of the lossy codecs, 1 .. 100; the others are one point.

    Returns:
        One point a quality, in that order.

    Raises:
        ValueError: an unknown codec or quality; images of another kind.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
        >>> point, = codec_curve(images, "png")
        >>> point.rmse, point.bits_per_dim > point.payload_bits_per_dim > 8  # noise cannot be compressed
        (0.0, True)
    """
    check(codec in CODECS, f"`codec` must be one of {list(CODECS)}, not {codec!r}.")
    images = checked_images(images, "`images`")
    check(
        images.shape[-1] in (1, 3),
        f"`images` has {images.shape[-1]} channels; JPEG and WebP are compared on 1 or 3. Drop the others.",
    )
    if not CODECS[codec].lossy:
        return [_point(images, codec, None)]
    good = len(qualities) > 0 and all(1 <= quality <= 100 for quality in qualities)
    check(good, f"`qualities` must be numbers from 1 to 100, not {qualities!r}.")
    return [_point(images, codec, int(quality)) for quality in qualities]


def payload(file: bytes) -> int:
    """Return the bytes of a PNG, JPEG or WebP file that hold the compressed image itself.

    PNG: the contents of IDAT chunks. JPEG: the scan, between its header and the end of the file. WebP: the contents of
    the VP8 or VP8L chunk.

    Example:
        >>> payload(b"RIFF" + (16).to_bytes(4, "little") + b"WEBPVP8L" + (4).to_bytes(4, "little") + bytes(4))
        4
    """
    if file[:4] == b"\x89PNG":
        return sum(size for name, size in _chunks(file, 8, "big") if name == b"IDAT")
    if file[:4] == b"RIFF":
        return sum(size for name, size in _chunks(file, 12, "little") if name in (b"VP8 ", b"VP8L"))
    check(file[:2] == b"\xff\xd8", f"Bytes that begin with {file[:4]!r} are no PNG, JPEG or WebP file.")
    place = 2
    while file[place + 1] != 0xDA:  # the first scan
        place += 2 + int.from_bytes(file[place + 2 : place + 4], "big")
    return len(file) - 2 - (place + 2 + int.from_bytes(file[place + 2 : place + 4], "big"))


def _chunks(file: bytes, place: int, order: Any):
    """Yield the (name, size) of each chunk of a PNG (size first, and a checksum) or of a RIFF file (padded to even)."""
    while place < len(file):
        first, second = file[place : place + 4], file[place + 4 : place + 8]
        name, number = (second, first) if order == "big" else (first, second)
        size = int.from_bytes(number, order)
        yield name, size
        place += 8 + (size + 4 if order == "big" else size + size % 2)


def _point(images: np.ndarray, codec: str, quality: int | None) -> CodecPoint:
    _, options, lossy = CODECS[codec]
    files = [_file(image, codec, {**options, **({"quality": quality} if lossy else {})}) for image in images]
    errors = np.array([_square_error(image, file) for image, file in zip(images, files, strict=True)])
    values = images[0].size
    return CodecPoint(
        codec=codec,
        quality=quality,
        bits_per_dim=8 * float(np.mean([len(file) for file in files])) / values,
        payload_bits_per_dim=8 * float(np.mean([payload(file) for file in files])) / values,
        rmse=float(np.sqrt(errors).mean()),
        mse=float(errors.mean()),
        num_images=len(images),
    )


def _file(image: np.ndarray, codec: str, options: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    picture(image).save(stream, CODECS[codec].format, **options)
    return stream.getvalue()


def _square_error(image: np.ndarray, file: bytes) -> float:
    from PIL import Image

    with Image.open(io.BytesIO(file)) as opened:
        decoded = pixels_of(opened.convert("L" if image.shape[-1] == 1 else "RGB"))  # WebP has no grey
    return float(((image.astype(np.float64) - decoded) ** 2).mean())
