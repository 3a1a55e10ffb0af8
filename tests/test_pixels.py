"""Bytes, [0, 1], the scale of the data, and PIL images."""

import numpy as np
import pytest

from ddpm_jax import ScheduleConfig, pixels

VP, VE = (ScheduleConfig(), ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0))


def test_rounding_is_half_to_even_as_in_diffusers():
    values = np.array([0, 0.5 / 255, 1.5 / 255, 2.5 / 255, 254.5 / 255, 1, 1.7, -0.3], np.float32).reshape(1, 1, -1, 1)
    expected = np.clip(values, 0, 1) * np.float32(255)
    np.testing.assert_array_equal(pixels.to_uint8(values).ravel(), expected.round().astype(np.uint8).ravel())
    assert pixels.to_uint8(np.full((1, 1, 1, 1), 0.5, np.float32)).item() == 128  # 127.5 to the even neighbour


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_to_pil(channels, mode):
    images = np.random.default_rng(0).random((2, 4, 6, channels), np.float32)
    first, second = pixels.to_pil(images)
    assert first.mode == mode and first.size == (6, 4)
    np.testing.assert_array_equal(np.asarray(second).reshape(4, 6, channels), pixels.to_uint8(images)[1])
    np.testing.assert_array_equal(pixels.pixels_of(second), pixels.to_uint8(images)[1])


@pytest.mark.parametrize("schedule, low, high", [(VP, -1, 1), (VE, 0, 1)], ids=["vp", "ve"])
def test_bytes_images_and_data_agree(schedule, low, high):
    """All 256 grey levels, by the linear map of each range."""
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    images = levels / np.float32(255)
    expected = low + (high - low) * (levels / 255)
    rounding = 2 * np.finfo(np.float32).eps  # of one product and one sum of values up to 2
    for data in (pixels.data_from_bytes(levels, schedule.data_range), pixels.to_data(images, schedule.data_range)):
        assert data.dtype == np.float32
        np.testing.assert_allclose(data, expected, rtol=0, atol=rounding)
        back = pixels.to_images(data, schedule.data_range)
        np.testing.assert_allclose(back, images, rtol=0, atol=rounding)
        np.testing.assert_array_equal(pixels.to_uint8(back), levels)


@pytest.mark.parametrize("schedule", [VP, VE], ids=["vp", "ve"])
def test_images_are_clipped_and_data_is_not(schedule):
    low, high = schedule.data_range
    outside = np.array([low - 0.3, high + 0.3], np.float32)
    np.testing.assert_array_equal(pixels.to_images(outside, schedule.data_range), [0, 1])
    assert (np.asarray(pixels.to_data(np.full(1, 1.3, np.float32), schedule.data_range)) > high).all()
