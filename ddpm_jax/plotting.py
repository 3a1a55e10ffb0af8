"""Pictures for people: grids, strips, GIFs, curves."""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpm_jax.extras import need
from ddpm_jax.files import whole_file
from ddpm_jax.pixels import picture, to_uint8
from ddpm_jax.types import Array, Frames, Images, Number
from ddpm_jax.validation import check

_LONGEST = 24  # characters of a caption


def grid(
    images: Images, columns: int | None = None, *, gap: int = 2, captions: Sequence[str] | None = None
) -> np.ndarray:
    """Lay images out in rows, left to right, as one picture.

    Args:
        images: [b, h, w, c] in [0, 1].
        columns: images in a row; None for about as many columns as rows.
        gap: width of the black lines between images, in pixels.
        captions: a string for each image, written below it. Long strings are cut, and the tiles are as wide as the
            widest caption needs.

    Returns:
        np.uint8 [height, width, c]; empty places are black.

    Raises:
        ValueError: `columns` is below 1, `gap` is negative, or `captions` has another length than `images`.

    Example:
        >>> grid(np.ones((5, 8, 8, 3), np.float32)).shape
        (18, 28, 3)
    """
    tiles = to_uint8(images)
    if captions is not None:
        check(
            len(captions) == len(tiles),
            f"`captions` has {len(captions)} strings for {len(tiles)} images. Give one for each image.",
        )
        tiles = _captioned(tiles, captions)
    count, height, width, channels = tiles.shape
    columns = int(np.ceil(np.sqrt(count))) if columns is None else columns
    if columns < 1 or gap < 0:
        raise ValueError(f"`columns` must be positive and `gap` not negative, not {columns!r} and {gap!r}.")
    rows = -(-count // columns)
    canvas = np.zeros((rows * columns, height + gap, width + gap, channels), np.uint8)
    canvas[:count, :height, :width] = tiles
    canvas = canvas.reshape(rows, columns, *canvas.shape[1:]).swapaxes(1, 2)
    canvas = canvas.reshape(rows * (height + gap), columns * (width + gap), channels)
    return canvas[: canvas.shape[0] - gap, : canvas.shape[1] - gap]


def _captioned(images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Write a caption into a black band below each image [b, h, w, c], in Pillow's default font."""
    font = ImageFont.load_default()
    lines = [_plain(" ".join(caption.split())) for caption in captions]
    lines = [line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..." for line in lines]
    right = int(np.ceil(max(font.getbbox(line)[2] for line in lines)))
    below = int(np.ceil(font.getbbox("Agjy|")[3]))  # the same height for all captions
    count, height, width, channels = images.shape
    tiles = np.zeros((count, height + below + 1, max(width, right), channels), np.uint8)
    tiles[:, :height, :width] = images
    for tile, line in zip(tiles, lines, strict=True):
        band = Image.new("L", (tile.shape[1], below + 1))
        ImageDraw.Draw(band).text((0, 0), line, fill=255, font=font)
        tile[height:] = np.asarray(band)[..., None]
    return tiles


def _plain(text: str) -> str:
    """Return a text in ASCII, which Pillow's font can write: without accents, and with ? for other letters."""
    letters = [letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter)]
    return "".join(letters).encode("ascii", "replace").decode()


def labelled(
    images: Array, *, rows: Sequence[str] | None = None, columns: Sequence[str] | None = None, scale: int = 1
) -> np.ndarray:
    """Lay images out as a table on white, with a title above each column and one before each row.

    Args:
        images: [rows, columns, h, w, c] in [0, 1].
        rows, columns: the titles; None for none. A title above a column is cut where it is wider than its images.
        scale: each pixel becomes a square of this side.

    Returns:
        np.uint8 [height, width, c].

    Raises:
        ValueError: another number of titles, or a scale below 1.

    Example:
        >>> labelled(np.ones((2, 3, 8, 8, 1), np.float32), columns=["a", "b", "c"], scale=2).shape
        (49, 52, 1)
    """
    down, across = images.shape[:2]
    for name, titles, count in (("rows", rows, down), ("columns", columns, across)):
        check(
            titles is None or len(titles) == count,
            f"`{name}` has {0 if titles is None else len(titles)} titles for {count} {name}. Give one for each.",
        )
    check(scale >= 1, f"`scale` must be 1 or more, not {scale!r}: it is the side of a pixel.")
    tiles = to_uint8(images.reshape(-1, *images.shape[2:])).repeat(scale, 1).repeat(scale, 2)
    _, height, width, channels = tiles.shape
    font = ImageFont.load_default()
    long = lambda text: int(np.ceil(font.getbbox(text)[2]))
    high = int(np.ceil(font.getbbox("Agjy|")[3])) + 3
    sides = [] if rows is None else [_plain(title) for title in rows]
    heads = [] if columns is None else [_plain(title) for title in columns]
    left, top = max(map(long, sides), default=-6) + 6, high if heads else 0
    gap = 2
    page = Image.new("L", (left + across * (width + gap) - gap, top + down * (height + gap) - gap), 255)
    write = ImageDraw.Draw(page)
    for row, title in enumerate(sides):
        middle = top + row * (height + gap) + height / 2
        write.text((left - 4 - long(title), middle - high / 2), title, fill=0, font=font)
    for column, title in enumerate(heads):
        while long(title) > width:
            title = title[:-1]
        write.text((left + column * (width + gap) + (width - long(title)) / 2, 0), title, fill=0, font=font)
    picture = np.repeat(np.asarray(page)[..., None], channels, axis=2)
    for row in range(down):
        for column in range(across):
            y, x = top + row * (height + gap), left + column * (width + gap)
            picture[y : y + height, x : x + width] = tiles[row * across + column]
    return picture


def gif(frames: Frames | Sequence[Images], path: str | Path, fps: Number = 20) -> Path:
    """Write an animation whose frames are grids; the last frame is shown for two seconds.

    Args:
        frames: [frames, b, h, w, c] in [0, 1], as `sample_path(...).x_0_hat`, or a list of batches.
        path: the file to write.
        fps: frames a second.

    Returns:
        The path.

    Raises:
        ValueError: there are no frames, or `fps` is not above 0.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> gif(np.zeros((3, 4, 8, 8, 1), np.float32), folder / "x.gif").name
        'x.gif'
    """
    if len(frames) == 0 or not fps > 0:
        raise ValueError(f"A GIF needs `frames` and a positive `fps`, not {len(frames)} frames at {fps!r}.")
    pictures = [picture(grid(np.asarray(frame))) for frame in frames]
    durations = [1000 / fps] * (len(pictures) - 1) + [2000]
    path = Path(path)
    with whole_file(path) as partial:
        pictures[0].save(partial, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return path


def strip(frames: Array) -> np.ndarray:
    """Lay out the frames of a trajectory as columns, one row for each image.

    Args:
        frames: [frames, b, h, w, c] in [0, 1].

    Returns:
        np.uint8 [height, width, c].

    Example:
        >>> strip(np.ones((10, 2, 8, 8, 1), np.float32)).shape
        (18, 98, 1)
    """
    frames = np.asarray(jax.device_get(frames))
    count, batch = frames.shape[:2]
    rows = frames.swapaxes(0, 1).reshape(batch * count, *frames.shape[2:])
    return grid(rows, columns=count)


class Panel(NamedTuple):
    """One of the drawings of `panels`.

    Attributes:
        lines: the points (x, y) of each curve by its name.
        x_label, y_label: labels of the axes.
        log_y: whether the y axis is logarithmic; then y must be above 0.
    """

    lines: Mapping[str, Sequence[tuple[Number, Number]]]
    x_label: str
    y_label: str
    log_y: bool = False


def curves(lines: Mapping[str, Sequence[tuple[Number, Number]]], path: Path, *, x_label: str, y_label: str) -> Path:
    """Draw curves with a logarithmic y axis; needs matplotlib.

    Args:
        lines: the points (x, y) of each curve by its name, with y above 0. The first curve is drawn thicker.
        path: the PNG to write.
        x_label, y_label: labels of the axes.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "loss.png"
        >>> curves({"loss": [(0, 1.0), (1, 0.5)]}, path, x_label="step", y_label="loss").name
        'loss.png'
    """
    return panels([Panel(lines, x_label, y_label, log_y=True)], path)


def panels(drawings: Sequence[Panel], path: Path) -> Path:
    """Draw panels side by side; needs matplotlib.

    Args:
        drawings: from left to right. The first curve of each is drawn thicker; a legend names several.
        path: the PNG to write.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.png"
        >>> panels([Panel({"a": [(0, 1.0)]}, "x", "y"), Panel({"b": [(0, 0.0)]}, "x", "z")], path).name
        'two.png'
    """
    need("matplotlib", "plot", "Drawing curves")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = 8 if len(drawings) == 1 else 5 * len(drawings)
    figure = Figure(figsize=(width, 4.5), layout="constrained")
    for place, panel in enumerate(drawings):
        scale = "log" if panel.log_y else "linear"
        axes = figure.add_subplot(1, len(drawings), place + 1, yscale=scale, xlabel=panel.x_label, ylabel=panel.y_label)
        for name, points in panel.lines.items():
            x, y = np.asarray(points, np.float64).T
            axes.plot(x, y, label=name, linewidth=2 if name == next(iter(panel.lines)) else 1)
        axes.grid(alpha=0.3)
        if len(panel.lines) > 1 or len(drawings) == 1:
            axes.legend()
    with whole_file(path) as partial:
        FigureCanvasAgg(figure).print_png(partial)
    return path
