"""Arrays of images and labels: those that are accepted, and the advice for the others."""

import numpy as np
import pytest

from ddpm_jax.images.source import open_source

IMAGES = np.zeros((10, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((48, 64, 3), np.uint8), r"\[48, 64, 3\].*`images\[None\]`.*`images\[..., None\]`"),
        (np.zeros((48, 64, 4), np.uint8), r"`images\[None\]`"),
        (np.zeros((48, 64, 1), np.uint8), r"`images\[None\]`"),
        (np.zeros((48, 64), np.uint8), r"`images\[None\]`"),
        (np.zeros((10, 3, 32, 32), np.uint8), r"`images.transpose\(0, 2, 3, 1\)`"),
        (np.zeros((10, 1, 28, 28), np.uint8), r"transpose"),
        (np.zeros((10, 8, 8, 2), np.uint8), r"1, 3 or 4 channels"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"there is none in it"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), r"no other shape"),
        (np.zeros((10, 8, 8, 3), np.float32), r"float32.*`\(images \* 255\).round"),
        (np.zeros((10, 8, 8, 3), np.uint16), r"uint16.*`\(images / 257\).round"),
        (np.zeros((10, 8, 8, 3), np.int64), r"`images.astype\(np.uint8\)`"),
        (np.zeros((10, 8, 8), bool), r"`images.astype\(np.uint8\) \* 255`"),
        (np.array([IMAGES[0], IMAGES[1, :4]], object), r"holds Python objects"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_that_are_no_images(tmp_path, array, message, suffix):
    path = tmp_path / f"x{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, array)
    with pytest.raises(ValueError, match=message):
        open_source(str(path))


def test_grey_arrays_without_channels(tmp_path):
    for shape in ((5, 8, 8), (3, 8, 8), (1, 9, 9), (2, 2, 3)):
        np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
        assert len(open_source(str(tmp_path / "x.npy"))) == shape[0]


@pytest.mark.parametrize(
    "labels, message",
    [
        (["cat", "dog"] * 5, r"np.unique\(labels, return_inverse=True\)"),
        (np.eye(10), r"`labels.argmax\(1\)`"),
        (np.arange(10)[:, None], r"`labels\[:, 0\]`"),
        (np.arange(10.0), r"`labels.astype\(int\)`"),
        (np.arange(9), r"\[9\] must be 10 integers from 0 up: one for each image"),
        (np.arange(10) - 1, "negative"),
        (None, "has no array `labels`"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, message):
    np.savez(tmp_path / "x.npz", images=IMAGES, **({} if labels is None else {"labels": labels}))
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / "x.npz"), class_conditional=True)


def test_names_of_classes_in_an_array(tmp_path):
    labels = np.arange(10) % 2
    np.savez(tmp_path / "x.npz", images=IMAGES, labels=labels, class_names=np.array(["cat", "dog", "emu"]))
    assert open_source(str(tmp_path / "x.npz"), class_conditional=True).classes == ("cat", "dog", "emu")
    assert open_source(str(tmp_path / "x.npz")).labels is None
    for bad in (np.array(["cat"]), np.array(["cat", "cat"]), np.arange(2)):
        np.savez(tmp_path / "y.npz", images=IMAGES, labels=labels, class_names=bad)
        with pytest.raises(ValueError, match="`class_names` .* must be at least 2 texts"):
            open_source(str(tmp_path / "y.npz"), class_conditional=True)


def test_a_damaged_compressed_array(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", images=np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), np.uint8))
    whole = bytearray((tmp_path / "x.npz").read_bytes())
    whole[300:360] = bytes(60)
    (tmp_path / "x.npz").write_bytes(whole)
    with pytest.raises(ValueError, match="`data` .*x.npz cannot be read"):
        open_source(str(tmp_path / "x.npz"))
