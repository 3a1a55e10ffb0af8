"""Extractors: the shapes and scales of features, and what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch_peers

from ddpm_jax.evaluation import features, inception_weights, resizing
from ddpm_jax.evaluation.features import Extractor, extractor, from_function, pixels
from ddpm_jax.evaluation.inception import LEVELS, Activations
from ddpm_jax.evaluation.inception_weights import DIGEST, InceptionWeights

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


class Means:
    """In the place of the network: the mean colour, with a weight, for what is around it."""

    def apply(self, variables, x):
        mean = x.mean((1, 2)) * variables["params"]["gain"]
        return Activations({level: mean + level for level in LEVELS}, 10 * mean)


@pytest.fixture
def means(monkeypatch):
    """Makes extractors of mean colours."""

    def make(name, gain=1.0, digest=DIGEST):
        monkeypatch.setattr(features, "InceptionV3", Means)
        monkeypatch.setattr(inception_weights, "find", Path)
        monkeypatch.setattr(
            inception_weights, "read", lambda path: InceptionWeights({"gain": np.float32(gain)}, digest)
        )
        return extractor(name, weights="a file")

    return make


@pytest.mark.parametrize("name", ["inception-2048/torch-fidelity", "inception-64/clean-fid"])
def test_inception_takes_any_batch_size(means, name):
    made = means(name, gain=2.0)
    assert made.name == name
    images = RANDOM.integers(0, 256, (2 * made.images_per_run + 3, 16, 8, 3), np.uint8)
    level, tool = name.removeprefix("inception-").split("/")
    expected = resizing.network_input(tool, images, *resizing.matrices(tool, 16, 8)).mean((1, 2))
    for count in (1, made.images_per_run, len(images)):
        found = made(images[:count])
        assert found.values.dtype == np.float32 and isinstance(found.values, np.ndarray)
        np.testing.assert_allclose(found.values, 2 * expected[:count] + int(level), atol=1e-3)  # float32 near 2048
        if level == "2048":
            np.testing.assert_allclose(found.logits, 20 * expected[:count], atol=1e-5)
        else:
            assert found.logits is None


def test_features_of_other_weights_have_another_name(means):
    assert means("inception-2048/clean-fid", digest="0123abcd").name == "inception-2048/clean-fid/weights-0123abcd"


def test_inception_refuses_what_gives_no_numbers(means):
    made = means("inception-192/pytorch-fid", gain=np.nan)
    with pytest.raises(ValueError, match="inception-192/pytorch-fid: 6 of 6 values are NaN or infinite"):
        made(np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="not of float32"):
        made(np.zeros((2, 8, 8, 3), np.float32))


@pytest.fixture
def weights_file(tmp_path):
    """A .pth file of the network's shapes, as torch writes it."""
    torch = pytest.importorskip("torch")
    tensors = torch_peers.inception_tensors()
    torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, tmp_path / "weights.pth")
    return tensors, tmp_path / "weights.pth"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is not the file of which")
def test_live_from_file_to_features(weights_file):
    """Small images through both whole pipelines, in float32: 1e-4 is the field's need, 1e-6 was seen."""
    tensors, path = weights_file
    images = RANDOM.integers(0, 256, (3, 32, 32, 3), np.uint8)
    found = extractor("inception-2048/torch-fidelity", weights=path)(images)
    expected = torch_peers.fidelity_levels(torch_peers.fidelity_network(tensors, "float32"), images)
    for got, wanted in ((found.values, expected["2048"]), (found.logits, expected["logits"])):
        np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())
    import torch

    with torch.no_grad():
        blocks = torch_peers.fid_network(tensors)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()) / 255)
    for level, block in zip(LEVELS, blocks, strict=True):
        got, wanted = extractor(f"inception-{level}/pytorch-fid", weights=path)(images), block.mean((2, 3)).numpy()
        np.testing.assert_allclose(got.values, wanted, atol=1e-4 * np.abs(wanted).max())


EIGHT = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from ddpm_jax.evaluation.features import extractor
made = extractor("inception-2048/clean-fid", weights=sys.argv[1])
assert made.images_per_run == 64
np.save(sys.argv[2], made(np.load(sys.argv[3])).values)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is not the file of which")
def test_all_devices_share_the_images(weights_file, tmp_path):
    path = weights_file[1]
    images = RANDOM.integers(0, 256, (9, 32, 32, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", EIGHT, path, tmp_path / "values.npy", tmp_path / "images.npy"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    expected = extractor("inception-2048/clean-fid", weights=path)(images).values
    np.testing.assert_allclose(np.load(tmp_path / "values.npy"), expected, atol=1e-5 * expected.max())  # float32
