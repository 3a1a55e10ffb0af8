"""One image file to its pixels: the one function by which all files are looked at first, and every batch is read."""

import numpy as np
from PIL import Image, ImageColor, UnidentifiedImageError

Ground = tuple[int, int, int]
MODES = {1: "L", 3: "RGB"}
# Formats that Pillow names and that are no pictures, or that need a program or a plug-in beside it.
NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What the files' numbers are multiplied by to fill 8 bits; a transparent colour is given in the files' own.
_FULL_RANGE = {"L;2": 85, "L;4": 17}
_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}  # of colours that have been multiplied by their alpha


def suffixes() -> set[str]:
    """Return the suffixes of the files that this Pillow, with its plug-ins, decodes.

    Example:
        >>> {".png", ".jfif", ".mpo"} <= suffixes(), ".pdf" in suffixes()
        (True, False)
    """
    Image.init()
    known = ({*Image.OPEN} | {"MPO"}) - {*NO_PICTURES}  # an MPO is opened by way of JPEG
    return {suffix for suffix, format in Image.registered_extensions().items() if format in known}


def ground_of(background: str) -> Ground | None:
    """Return the colour that a name stands for, or None for "none".

    Raises:
        ValueError: it stands for no colour, or for one that is transparent itself.

    Example:
        >>> ground_of("white"), ground_of("#102030"), ground_of("none")
        ((255, 255, 255), (16, 32, 48), None)
    """
    if background == "none":
        return None
    try:
        colour = ImageColor.getrgb(background)
    except (ValueError, AttributeError):
        colour = ()
    if len(colour) != 3:
        raise ValueError(
            f"`background` {background!r} is no opaque colour: use a name as `white`, `#rrggbb`, or `none` for the "
            "colours that lie hidden under transparent pixels."
        )
    return colour


def decode(path, *, ground: Ground | None, channels: int | None = None, least: int | None = None) -> Image.Image:
    """Return the picture in a file, upright, as grey ("L") or colour ("RGB").

    Numbers of 16 bits are scaled to 8. Transparent pixels are laid on the ground, whatever form their transparency has.
    Of several frames it is the first. An orientation that cannot be read is none.

    Args:
        path: the file.
        ground: what shows through; None ignores transparency, and takes the colours that lie hidden below.
        channels: 1 or 3; None leaves grey grey and colour colour.
        least: a JPEG is decoded at the smallest of its scales (1, 1/2, 1/4, 1/8) with sides of at least so many pixels.

    Raises:
        Exception: what Pillow finds wrong, of many kinds; ValueError for numbers that have no meaning here.
    """
    with Image.open(path) as image:
        image.draft("L" if channels == 1 else "RGB", (least, least) if least else image.size)
        stored = _stored_as(image)
        image.load()
        image = _eight_bits(_upright(image), stored, ground)
    return image if channels is None else image.convert(MODES[channels])


def resized(image: Image.Image, resolution: int, box: tuple[float, ...] | None = None) -> Image.Image:
    """Return a square crop of a picture, resized.

    Args:
        image: the picture.
        resolution: side of the result.
        box: (left, top, right, bottom) of the crop; None is the largest square in the middle.

    Example:
        >>> resized(Image.new("L", (20, 10)), 5).size
        (5, 5)
    """
    if box is None:
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    larger = resolution > box[2] - box[0]
    method = Image.Resampling.BICUBIC if larger else Image.Resampling.LANCZOS
    return image.resize((resolution, resolution), method, box=box, reducing_gap=3.0)


def reason(error: Exception) -> str:
    """Say in a few words why a file could not be decoded."""
    if isinstance(error, UnidentifiedImageError):
        return "no image of a kind that Pillow decodes"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__


def _stored_as(image: Image.Image) -> str:
    """Return Pillow's name for the numbers in the file, e.g. "I;16B", or "" where it gives none."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    if image.format == "PPM" and image.mode == "I":
        return "I;16"  # none of them has more bits, and Pillow has scaled them to these
    return first if isinstance(first, str) else ""


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes the metadata anew, and dies of any tag that it cannot write.
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # of many kinds, as the metadata is broken
        turn = None
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image, stored: str, ground: Ground | None) -> Image.Image:
    """Bring any mode to "L" or "RGB"."""
    if image.mode in ("I", "F") and not (image.mode == "I" and stored in ("I;16", "I;16B", "I;16L", "I;16N")):
        what = "signed numbers of 16 bits" if "16" in stored else f"numbers of 32 bits (mode {image.mode})"
        raise ValueError(f"{what}, of which none is said to be white: scale them to 0 .. 255 and save them with 8 bits")
    if image.mode in _STRAIGHT:
        image = image.convert(_STRAIGHT[image.mode])
    if stored.startswith("LA") and image.mode == "RGBA":  # of 16 bits, which Pillow widens to colour
        image = image.convert("LA")
    alpha = None if ground is None else _alpha(image, stored)
    image.info.pop("transparency", None)  # else Pillow translates it in every conversion
    if image.mode.startswith("I"):
        white = 4095 if stored == "I;12" else 65535
        image = Image.fromarray((np.asarray(image, np.float64) * (255 / white)).round().astype(np.uint8))
    grey = image.mode in ("1", "L", "LA") and (alpha is None or ground is None or len({*ground}) == 1)
    image = image.convert("L") if grey else image.convert("RGB")
    if alpha is None or ground is None:
        return image
    return Image.composite(image, Image.new(image.mode, image.size, ground[0] if grey else ground), alpha)


def _alpha(image: Image.Image, stored: str) -> Image.Image | None:
    """Return how opaque each pixel is, "L", or None where all are wholly so."""
    if not image.has_transparency_data:
        return None
    if image.mode in ("1", "L", "RGB") or image.mode.startswith("I"):  # one colour of all is transparent
        pixels = np.asarray(image.convert("L") if image.mode == "1" else image, np.int64)
        colour = np.asarray(image.info["transparency"]) * _FULL_RANGE.get(stored, 1)
        if image.mode == "1":
            colour = np.where(colour, 255, 0)  # 1 or 255, by the version of Pillow
        if stored.startswith("RGB;16"):
            colour = colour >> 8  # as Pillow has shortened the pixels
        clear = (pixels == colour).reshape(*pixels.shape[:2], -1).all(-1)
        alpha = Image.fromarray(np.where(clear, 0, 255).astype(np.uint8))
    else:
        alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema()[0] == 255 else alpha
