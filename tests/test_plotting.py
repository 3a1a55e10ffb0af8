"""Grids, strips and GIFs."""

import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax import pixels, plotting


@pytest.mark.parametrize("channels", [2, 5])
def test_odd_channels_are_refused(channels, tmp_path):
    images = np.zeros((1, 4, 4, channels), np.float32)
    for write in (pixels.to_pil, lambda images: plotting.gif([images], tmp_path / "x.gif")):
        with pytest.raises(ValueError, match=f"1, 3 or 4 channels, not {channels}.*`format` npz"):
            write(images)
    assert plotting.grid(images).shape == (4, 4, channels)


def test_grid_places_images_row_by_row():
    images = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1) * np.ones((5, 2, 3, 1), np.float32) / 255
    grid = plotting.grid(images, columns=3, gap=1)
    assert grid.shape == (5, 11, 1) and grid.dtype == np.uint8
    for i in range(5):
        top, left = 3 * (i // 3), 4 * (i % 3)
        np.testing.assert_array_equal(grid[top : top + 2, left : left + 3], i)
    assert not grid[2].any() and not grid[3:, 8:].any()
    assert plotting.grid(images, gap=0).shape == (4, 9, 1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_captions(channels):
    """Text below its image and nowhere else; the widest sets the width of all tiles."""
    images = np.full((3, 8, 8, channels), 0.5, np.float32)
    plain = plotting.grid(images, columns=3, gap=1)
    names = ["i", "", "a name that is longer than any font's patience"]
    grid = plotting.grid(images, columns=3, gap=1, captions=names)
    width = (grid.shape[1] - 2) // 3
    assert grid.shape[0] > plain.shape[0] and 8 < width < 200
    tiles = [grid[:, i * (width + 1) : (i + 1) * (width + 1)] for i in range(3)]
    for tile in tiles:
        np.testing.assert_array_equal(tile[:8, :8], 128)
        assert not tile[:8, 8:].any()
    inked = [np.flatnonzero(tile[8:].any((0, 2))) for tile in tiles]
    assert len(inked[1]) == 0 and 0 < inked[0].max() < 5 and inked[2].max() >= width - 2
    cut = plotting.grid(images, columns=3, gap=1, captions=[*names[:2], names[2][:21] + "..."])
    np.testing.assert_array_equal(grid, cut)
    wide = plotting.grid(np.zeros((1, 8, 300, channels), np.float32), captions=["i"])
    assert wide.shape[1] == 300
    assert plotting.grid(images[:1], captions=["i"]).shape[1] == 8


def test_captions_that_the_font_cannot_write():
    one, other = (plotting.grid(np.zeros((1, 8, 8, 1), np.float32), captions=[text]) for text in ("日本\n é", "?? e"))
    np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="`captions` has 1 strings for 2 images"):
        plotting.grid(np.zeros((2, 8, 8, 1), np.float32), captions=["x"])


def test_bad_grids():
    with pytest.raises(ValueError, match="`columns` must be positive"):
        plotting.grid(np.zeros((1, 4, 4, 3), np.float32), columns=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_gif(tmp_path, channels):
    frames = np.random.default_rng(0).random((4, 2, 8, 8, channels), np.float32)
    path = plotting.gif(frames, tmp_path / "x.gif", fps=10)
    with Image.open(path) as image:
        assert image.n_frames == 4 and image.size == (18, 8)
        assert image.info["duration"] == 100 and image.info["loop"] == 0
    assert [item.name for item in tmp_path.iterdir()] == ["x.gif"]
    with pytest.raises(ValueError, match="needs `frames` and a positive `fps`, not 0 frames at 20"):
        plotting.gif([], tmp_path / "y.gif")


def test_columns_and_rows_are_about_as_many():
    images = np.zeros((7, 4, 4, 1), np.float32)
    shapes = [plotting.grid(images[:count], gap=0).shape[:2] for count in range(1, 8)]
    assert shapes == [(4, 4), (4, 8), (8, 8), (8, 8), (8, 12), (8, 12), (12, 12)]


def test_the_last_frame_stays(tmp_path):
    frames = np.linspace(0, 1, 3, dtype=np.float32)[:, None, None, None, None] * np.ones((3, 1, 8, 8, 1), np.float32)
    with Image.open(plotting.gif(frames, tmp_path / "x.gif", fps=5)) as image:
        durations, levels = [], []
        for number in range(image.n_frames):
            image.seek(number)
            durations.append(image.info["duration"])
            levels.append(image.convert("L").getpixel((4, 4)))
    assert durations == [200, 200, 2000] and levels == [0, 128, 255]


def test_curves(tmp_path, monkeypatch):
    """What matplotlib is told; that it draws it, and that a PNG is there when all is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figures, draw = [], FigureCanvasAgg.print_png

    def note(self, file):
        figures.append(self.figure)
        draw(self, file)

    monkeypatch.setattr(FigureCanvasAgg, "print_png", note)
    lines = {"loss": [(0, 1.0), (1, 0.5), (2, 0.1)], "held out": [(2, 0.2)]}
    path = plotting.curves(lines, tmp_path / "x.png", x_label="step", y_label="bits")
    (axes,) = figures[0].axes
    assert axes.get_yscale() == "log" and axes.get_xscale() == "linear"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "bits")
    drawn = {line.get_label(): line for line in axes.get_lines()}
    assert {name: [*map(tuple, line.get_xydata())] for name, line in drawn.items()} == lines
    assert drawn["loss"].get_linewidth() > drawn["held out"].get_linewidth()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines)
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > image.height
    assert [item.name for item in tmp_path.iterdir()] == ["x.png"]


def test_strip_shows_time_from_left_to_right():
    frames = np.linspace(0, 1, 6, dtype=np.float32).reshape(3, 2, 1, 1, 1) * np.ones((3, 2, 4, 4, 1), np.float32)
    strip = plotting.strip(frames)
    assert strip.shape == (10, 16, 1)
    assert strip[0, [0, 6, 12], 0].tolist() == [0, 102, 204] and strip[6, [0, 6, 12], 0].tolist() == [51, 153, 255]


def test_labelled():
    """Every image at its place; titles outside of all images, above and before those that they name."""
    images = np.random.default_rng(0).uniform(0, 1, (2, 3, 6, 5, 3)).astype(np.float32)
    plain = plotting.labelled(images)
    assert plain.shape == (14, 19, 3)
    full = plotting.labelled(images, rows=["a", "row"], columns=["", "c", "much too long"], scale=4)
    bytes_ = ddpm_jax.to_uint8(images.reshape(6, 6, 5, 3)).reshape(images.shape)
    top, left = full.shape[0] - 50, full.shape[1] - 64
    for row in range(2):
        for column in range(3):
            y, x = 8 * row, 7 * column
            np.testing.assert_array_equal(plain[y : y + 6, x : x + 5], bytes_[row, column])
            y, x = top + 26 * row, left + 22 * column
            enlarged = bytes_[row, column].repeat(4, 0).repeat(4, 1)
            np.testing.assert_array_equal(full[y : y + 24, x : x + 20], enlarged)
    inked = lambda part: bool((part < 128).any())
    heads = [full[:top, left + 22 * column : left + 22 * column + 20] for column in range(3)]
    assert [inked(head) for head in heads] == [False, True, True]
    assert inked(full[top : top + 24, :left]) and inked(full[top + 26 :, :left])
    assert (full[top + 24 : top + 26] == 255).all() and (full[:top, :left] == 255).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rows": ["a"]}, "`rows` has 1 titles for 2 rows"),
        ({"columns": ["a"]}, "`columns` has 1 titles for 3 columns"),
        ({"scale": 0}, "`scale` must be 1 or more, not 0"),
    ],
)
def test_bad_tables(options, message):
    with pytest.raises(ValueError, match=message):
        plotting.labelled(np.zeros((2, 3, 4, 4, 1), np.float32), **options)
