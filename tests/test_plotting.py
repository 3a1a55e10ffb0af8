"""Bytes, PIL images, grids and GIFs."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import plotting


def test_rounding_is_half_to_even_as_in_diffusers():
    values = np.array([0, 0.5 / 255, 1.5 / 255, 2.5 / 255, 254.5 / 255, 1, 1.7, -0.3], np.float32).reshape(1, 1, -1, 1)
    expected = np.clip(values, 0, 1) * np.float32(255)
    np.testing.assert_array_equal(plotting.to_uint8(values).ravel(), expected.round().astype(np.uint8).ravel())
    assert plotting.to_uint8(np.full((1, 1, 1, 1), 0.5, np.float32)).item() == 128  # 127.5 to the even neighbour


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_to_pil(channels, mode):
    images = np.random.default_rng(0).random((2, 4, 6, channels), np.float32)
    first, second = plotting.to_pil(images)
    assert first.mode == mode and first.size == (6, 4)
    np.testing.assert_array_equal(np.asarray(second).reshape(4, 6, channels), plotting.to_uint8(images)[1])


def test_odd_channels_are_refused():
    with pytest.raises(ValueError, match="1, 3 or 4 channels, not 2"):
        plotting.to_pil(np.zeros((1, 4, 4, 2), np.float32))


def test_grid_places_images_row_by_row():
    images = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1) * np.ones((5, 2, 3, 1), np.float32) / 255
    grid = plotting.grid(images, columns=3, gap=1)
    assert grid.shape == (5, 11, 1) and grid.dtype == np.uint8
    for i in range(5):
        top, left = 3 * (i // 3), 4 * (i % 3)
        np.testing.assert_array_equal(grid[top : top + 2, left : left + 3], i)
    assert not grid[2].any() and not grid[3:, 8:].any()
    assert plotting.grid(images, gap=0).shape == (4, 9, 1)


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
    with pytest.raises(ValueError, match="needs frames"):
        plotting.gif([], tmp_path / "y.gif")


def test_strip_shows_time_from_left_to_right():
    frames = np.linspace(0, 1, 6, dtype=np.float32).reshape(3, 2, 1, 1, 1) * np.ones((3, 2, 4, 4, 1), np.float32)
    strip = plotting.strip(frames)
    assert strip.shape == (10, 16, 1)
    assert strip[0, [0, 6, 12], 0].tolist() == [0, 102, 204] and strip[6, [0, 6, 12], 0].tolist() == [51, 153, 255]
