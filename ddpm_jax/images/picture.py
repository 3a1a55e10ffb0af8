"""Decode one image file: `decode` is used both to check files on opening and to read every batch."""

import numpy as np
from PIL import Image, ImageColor, UnidentifiedImageError

Ground = tuple[int, int, int]
Box = tuple[float, float, float, float]
MODES = {1: "L", 3: "RGB"}
# Pillow's formats that are no pictures, or that need another program or plug-in.
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
# Pillow multiplies pixels of 2 and 4 bits by these factors, but not the transparent colour that the file names.
_FULL_RANGE = {"L;2": 85, "L;4": 17}
_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}  # modes with colours premultiplied by alpha -> without


def suffixes() -> set[str]:
    """Return the suffixes of files that the installed Pillow and its plug-ins decode.

    Example:
        >>> {".png", ".jfif", ".mpo"} <= suffixes(), ".pdf" in suffixes()
        (True, False)
    """
    Image.init()
    known = ({*Image.OPEN} | {"MPO"}) - {*NO_PICTURES}  # Pillow opens MPO files by its JPEG plug-in
    return {suffix for suffix, format in Image.registered_extensions().items() if format in known}


def ground_of(background: str) -> Ground | None:
    """Return the colour of a name, or None for "none".

    Raises:
        ValueError: the name of no colour, or of a transparent one.

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

    16 bits are scaled to 8. Transparent pixels are composited on the ground, whatever form the transparency has. Of
    several frames the first is taken. An unreadable orientation counts as upright.

    Args:
        path: the file.
        ground: colour below transparent pixels; None ignores transparency and takes the stored colours.
        channels: 1 or 3; None keeps grey grey and colour colour.
        least: a JPEG is decoded at the smallest of its scales (1, 1/2, 1/4, 1/8) whose sides have at least this many
            pixels.

    Raises:
        Exception: of many kinds, where Pillow cannot decode the file; ValueError for numbers without a white point.
    """
    with Image.open(path) as image:
        image.draft("L" if channels == 1 else "RGB", (least, least) if least else image.size)
        stored = _stored_as(image)
        image.load()
        image = _eight_bits(_upright(image), stored, ground)
    return image if channels is None else image.convert(MODES[channels])


def resized(image: Image.Image, resolution: int, box: Box | None = None) -> Image.Image:
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
    """Return in a few words why a file could not be decoded."""
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
        return "I;16"  # PPM has at most 16 bits, and Pillow scales all of them to the full range
    return first if isinstance(first, str) else ""


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also rewrites the metadata, and fails on tags that it cannot write.
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata raises many kinds
        turn = None
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image, stored: str, ground: Ground | None) -> Image.Image:
    """Convert a picture of any mode to "L" or "RGB"."""
    if image.mode in ("I", "F") and not (image.mode == "I" and stored in ("I;16", "I;16B", "I;16L", "I;16N")):
        what = "signed numbers of 16 bits" if "16" in stored else f"numbers of 32 bits (mode {image.mode})"
        raise ValueError(f"{what}, and nothing says which is white: scale them to 0 .. 255 and save them with 8 bits")
    if image.mode in _STRAIGHT:
        image = image.convert(_STRAIGHT[image.mode])
    if stored.startswith("LA") and image.mode == "RGBA":  # Pillow opens 16-bit grey with alpha as colour
        image = image.convert("LA")
    alpha = None if ground is None else _alpha(image, stored)
    image.info.pop("transparency", None)  # Pillow would convert it too, in every conversion
    if image.mode.startswith("I"):
        white = 4095 if stored == "I;12" else 65535
        image = Image.fromarray((np.asarray(image, np.float64) * (255 / white)).round().astype(np.uint8))
    grey = image.mode in ("1", "L", "LA") and (alpha is None or ground is None or len({*ground}) == 1)
    image = image.convert("L") if grey else image.convert("RGB")
    if alpha is None or ground is None:
        return image
    return Image.composite(image, Image.new(image.mode, image.size, ground[0] if grey else ground), alpha)


def _alpha(image: Image.Image, stored: str) -> Image.Image | None:
    """Return the opacity of each pixel ("L"), or None if all are opaque."""
    if not image.has_transparency_data:
        return None
    if image.mode in ("1", "L", "RGB") or image.mode.startswith("I"):  # one colour is declared transparent
        pixels = np.asarray(image.convert("L") if image.mode == "1" else image, np.int64)
        colour = np.asarray(image.info["transparency"]) * _FULL_RANGE.get(stored, 1)
        if image.mode == "1":
            colour = np.where(colour, 255, 0)  # 1 or 255, depending on Pillow's version
        if stored.startswith("RGB;16"):
            colour = colour >> 8  # as Pillow does with the pixels
        clear = (pixels == colour).reshape(*pixels.shape[:2], -1).all(-1)
        alpha = Image.fromarray(np.where(clear, 0, 255).astype(np.uint8))
    else:
        alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema()[0] == 255 else alpha
