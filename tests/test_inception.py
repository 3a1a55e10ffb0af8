"""The FID's InceptionV3 and its input, against what torch-fidelity, pytorch-fid and clean-fid compute."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch_peers
from flax import linen as nn
from torch_peers import IMAGES, gradient, some_of

from ddpm_jax.evaluation import inception, inception_weights, resizing
from ddpm_jax.evaluation.inception import LEVELS, InceptionV3

ORACLE = json.loads((Path(__file__).parent / "oracles" / "inception.json").read_text())
TOOLS = tuple(resizing.MATRICES)


@pytest.fixture
def tensors():
    return torch_peers.inception_tensors()


def levels_of(tensors, x) -> dict[str, np.ndarray]:
    tree = jax.tree.map(lambda leaf: leaf.astype(x.dtype), inception_weights.fold(tensors, "the formula"))
    found = jax.jit(InceptionV3().apply)({"params": tree}, x)
    return {str(level): np.asarray(value) for level, value in found.levels.items()} | {"logits": found.logits}


def distance(found, expected) -> float:
    """The largest difference, relative to the largest number."""
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def test_every_level_is_that_of_torch_fidelity(tensors):
    found = levels_of(tensors, ((IMAGES - 128.0) / 128).astype(np.float32))
    assert found.keys() == ORACLE["levels"].keys() == {*map(str, LEVELS), "logits"}
    for level, expected in ORACLE["levels"].items():
        # float32 through up to 48 convolutions, against float64: 1e-6 was seen
        assert distance(some_of(found[level]), np.array(expected)) < 1e-5, level


@pytest.mark.parametrize("height, width", [(2, 2), (5, 3)])
def test_average_pools_leave_the_padding_out(height, width, channels=2):
    x = jax.random.normal(jax.random.key(0), (2, height, width, channels))
    padded = np.full((2, height + 2, width + 2, channels), np.nan, np.float32)
    padded[:, 1:-1, 1:-1] = x
    around = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    np.testing.assert_allclose(inception.average_pool(x), np.nanmean(around, 0), atol=1e-6)  # float32
    np.testing.assert_array_equal(inception.max_pool(x, strides=1), np.nanmax(around, 0))


def wrong_pool(x, strides):
    return inception.average_pool(x) if strides == 1 else nn.max_pool(x, (3, 3), (strides, strides), "VALID")


WRONG = {
    "Mixed_7c averages": ("max_pool", wrong_pool, {"2048", "logits"}),
    "padding is counted": (
        "average_pool",
        lambda x: nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=True),
        {"768", "2048", "logits"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("build", WRONG)
def test_a_wrong_build_is_seen(monkeypatch, tensors, build):
    """By the numbers of the fast test, at every level above the wrong layer and at none below."""
    name, replacement, seen_at = WRONG[build]
    monkeypatch.setattr(inception, name, replacement)
    found = levels_of(tensors, ((IMAGES - 128.0) / 128).astype(np.float32))
    for level, expected in ORACLE["levels"].items():
        far = distance(some_of(found[level]), np.array(expected))
        assert far > 1e-3 if level in seen_at else far < 1e-5, level


@pytest.mark.slow
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-9), ("float32", 1e-4)])
def test_live_every_level(dtype, tolerance):
    """With random weights and images at the network's own size. Both tolerances are the field's need; 1e-14 and 2e-6
    were seen."""
    torch_peers.peer("torch_fidelity")
    generator = np.random.default_rng(1)
    tensors = random_tensors(generator)
    images = generator.integers(0, 256, (2, 299, 299, 3), np.uint8)
    expected = torch_peers.fidelity_levels(torch_peers.fidelity_network(tensors, dtype), images)
    with jax.enable_x64(dtype == "float64"):
        found = levels_of(tensors, ((images - 128.0) / 128).astype(dtype))
    for level, values in expected.items():
        assert found[level].dtype == values.dtype == dtype
        assert distance(found[level], values) < tolerance, level
        assert np.mean(values != 0) > 0.3  # the ReLUs let it through


@pytest.mark.slow
def test_live_pytorch_fid():
    torch_peers.peer("pytorch_fid")
    import torch

    generator = np.random.default_rng(2)
    tensors = random_tensors(generator)
    images = generator.integers(0, 256, (2, 299, 299, 3), np.uint8)
    with torch.no_grad():
        blocks = torch_peers.fid_network(tensors)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()) / 255)
    found = levels_of(tensors, (images / 127.5 - 1).astype(np.float32))
    for level, block in zip(LEVELS, blocks, strict=True):
        assert distance(found[str(level)], block.mean((2, 3)).numpy()) < 1e-4, level


def random_tensors(generator: np.random.Generator) -> dict[str, np.ndarray]:
    """He's kernels; batch norms that scale, shift and mirror nothing away."""
    tensors = {}
    for name, shape in inception_weights.shapes().items():
        if len(shape) > 1:
            value = generator.standard_normal(shape) * (2 * shape[0] / np.prod(shape)) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            value = generator.uniform(0.5, 1.5, shape)
        else:
            value = 0.1 * generator.standard_normal(shape)
        tensors[name] = value.astype(np.float32)
    return tensors


def network_input(tool, images):
    return np.asarray(resizing.network_input(tool, images, *resizing.matrices(tool, *images.shape[1:3])))


@pytest.mark.parametrize("side", [32, 512])
@pytest.mark.parametrize("tool", TOOLS)
def test_inputs_are_those_of_each_tool(tool, side):
    found = network_input(tool, gradient(side))
    assert found.shape == (1, 299, 299, 3) and found.dtype == np.float32
    # some roundings of numbers up to 1; torch's float32 positions are met to the bit
    np.testing.assert_allclose(some_of(found), np.array(ORACLE["inputs"][tool][str(side)]), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("height, width", [(32, 32), (64, 64), (256, 256), (512, 512), (299, 299), (40, 333)])
@pytest.mark.parametrize("tool", TOOLS)
def test_live_inputs(tool, height, width):
    torch_peers.peer({"torch-fidelity": "torch_fidelity", "pytorch-fid": "pytorch_fid", "clean-fid": "cleanfid"}[tool])
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    np.testing.assert_allclose(network_input(tool, images), torch_peers.tool_input(tool, images), atol=1e-6)


@pytest.mark.parametrize("tool", TOOLS)
def test_grey_images_have_three_equal_channels(tool):
    grey = gradient(32)[..., :1]
    np.testing.assert_array_equal(network_input(tool, grey), network_input(tool, np.repeat(grey, 3, -1)))
