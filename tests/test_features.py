"""Extractors: the shapes and scales of features, and what is refused."""

import numpy as np
import pytest

from ddpm_jax.evaluation.features import Extractor, extractor, from_function, pixels

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_the_images_row_by_row(channels):
    images = RANDOM.integers(0, 256, (3, 4, 5, channels), np.uint8)
    features = extractor("pixels")(images)
    assert features.values.dtype == np.float32 and features.logits is None
    np.testing.assert_array_equal(features.values, images.reshape(3, -1) / np.float32(255))


def test_a_function_becomes_an_extractor():
    made = from_function(lambda images: (images.mean(axis=(1, 2)), images.max(axis=(1, 2))), "mean, max")
    assert isinstance(made, Extractor) and made.name == "mean, max"
    images = RANDOM.integers(0, 256, (3, 4, 5, 3), np.uint8)
    features = made(images)
    assert features.values.dtype == features.logits.dtype == np.float32
    np.testing.assert_allclose(features.values, images.mean(axis=(1, 2)), rtol=1e-6)  # the cast to float32
    np.testing.assert_array_equal(features.logits, images.max(axis=(1, 2)))


@pytest.mark.parametrize(
    "images, words",
    [
        (np.zeros((2, 4, 4, 3), np.float32), "not of float32: round"),
        (np.zeros((2, 4, 4, 4), np.uint8), r"\[2, 4, 4, 4\]. Drop an alpha"),
        (np.zeros((4, 4, 3), np.uint8), "first axis of 1"),
        (np.zeros((0, 4, 4, 3), np.uint8), "at least one image"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(images, words):
    with pytest.raises(ValueError, match=words):
        pixels(images)


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda images: images.mean(axis=(0, 1, 2))[None], r"shape \[2, d\], not \[1, 3\]"),
        (lambda images: images, r"not \[2, 4, 4, 3\]"),
        (lambda images: np.array([[1.0, np.nan], [np.inf, 0.0]]), "2 of 4 values are NaN"),
        (lambda images: (np.zeros((2, 3)), np.full((2, 5), np.nan)), "10 of 10 logits are NaN"),
    ],
)
def test_a_function_that_returns_no_features_is_refused(function, words):
    with pytest.raises(ValueError, match=f"mine: .*{words}"):
        from_function(function, "mine")(np.zeros((2, 4, 4, 3), np.uint8))


def test_names_are_distinct_and_known():
    with pytest.raises(ValueError, match="that of a built-in"):
        from_function(lambda images: images, "pixels")
    with pytest.raises(ValueError, match="`name` is empty"):
        from_function(lambda images: images, " ")
    with pytest.raises(ValueError, match="no extractor 'pixel'. Did you mean `pixels`"):
        extractor("pixel")
    with pytest.raises(ValueError, match="`weights` is 'x.pth', but 'pixels' has no network"):
        extractor("pixels", weights="x.pth")
