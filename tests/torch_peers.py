"""The evaluation packages of PyTorch, imported and given weights: for the recorder of oracles and for live parity."""

import functools
import importlib.util
import unittest.mock
import zlib

import numpy as np
import pytest

from ddpm_jax.evaluation.inception_weights import shapes

SMALL = 107  # pixels: the smallest images of which Mixed_7c sees more than one pixel, 2 x 2
IMAGES = np.random.default_rng(0).integers(0, 256, (2, SMALL, SMALL, 3), np.uint8)


def gradient(side: int) -> np.ndarray:
    """A colourful image [1, side, side, 3] with sharp edges, by a formula."""
    y, x, channel = np.meshgrid(np.arange(side), np.arange(side), np.arange(3), indexing="ij")
    return ((x * x // (side // 8) + 3 * y * (channel + 1)) % 256).astype(np.uint8)[None]


def some_of(array: np.ndarray) -> np.ndarray:
    """32 numbers of each row, evenly spread, in float64: some of every branch of a block."""
    rows = np.asarray(array, np.float64).reshape(len(array), -1)
    return rows[:, np.linspace(0, rows.shape[1] - 1, 32).astype(int)]


@functools.cache
def inception_tensors() -> dict[str, np.ndarray]:
    """Weights of the InceptionV3 by a formula of their names, float32: what recorded oracles were given.

    u in [-1, 1) is a hash of a number's index and of its tensor's name. Kernels have the variance 2 / fan-in of He et
    al. 2015, so that activations stay of order one; nothing of a batch norm is 0 or 1.
    """
    tensors = {}
    for name, shape in shapes().items():
        count = int(np.prod(shape))
        x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(zlib.crc32(name.encode()))
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x85EBCA6B)
        u = (x ^ (x >> np.uint32(13))).astype(np.float32) / np.float32(2**31) - 1
        if len(shape) > 1:
            value = u * np.float32((6 * shape[0] / count) ** 0.5)
        elif name.endswith(("bn.weight", "running_var")):
            value = 1 + u / 2
        else:
            value = u / 5
        tensors[name] = value.reshape(shape)
    return tensors


def load_torchvision() -> None:
    """Import torchvision where it is installed, before diffusers or an evaluation package does.

    None of them uses an operator of its own. Beside a build of torch that these do not fit (the one for CPU alone, say)
    only their registration fails, so that is left out.
    """
    if all(map(importlib.util.find_spec, ("torch", "torchvision"))):
        with unittest.mock.patch("torch.library.register_fake", lambda name, **_: lambda function: function):
            importlib.import_module("torchvision")


def peer(name: str):
    """Import one of the packages; the test that calls this is skipped where it is not installed."""
    load_torchvision()
    return pytest.importorskip(name)


def fidelity_network(tensors: dict[str, np.ndarray], dtype: str = "float64"):
    """torch-fidelity's InceptionV3 with given weights.

    torch-fidelity 0.4.0 takes "float64" for float32 (`helpers.text_to_dtype`), so the dtype is set here.
    """
    peer("torch_fidelity")
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Peer

    with unittest.mock.patch("torch.load", lambda *_, **__: _module_tensors(tensors)):
        network = Peer("inception", ["64", "192", "768", "2048", "logits"], feature_extractor_weights_path="unused")
    network.feature_extractor_internal_dtype = getattr(torch, dtype)
    return network.to(network.feature_extractor_internal_dtype)


def fidelity_levels(network, images: np.ndarray, side: int = 299) -> dict[str, np.ndarray]:
    """Its features of np.uint8 [b, h, w, 3] and unbiased logits, in its own dtype; it returns float32 alone.

    `side` is what it resizes images to.
    """
    import torch

    found = {}
    layers = {"64": network.MaxPool_1, "192": network.MaxPool_2, "768": network.Mixed_6e, "2048": network.Mixed_7c}
    hooks = [
        layer.register_forward_hook(lambda _, __, y, level=level: found.update({level: y.mean((2, 3)).numpy()}))
        for level, layer in layers.items()
    ]
    with unittest.mock.patch.object(type(network), "INPUT_IMAGE_SIZE", side):
        network(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
    for hook in hooks:
        hook.remove()
    return found | {"logits": found["2048"] @ network.fc.weight.numpy().T}


def fid_network(tensors: dict[str, np.ndarray]):
    """pytorch-fid's InceptionV3, of all its four levels, with given weights."""
    inception = peer("pytorch_fid.inception")
    with unittest.mock.patch.object(inception, "load_state_dict_from_url", lambda *_, **__: _module_tensors(tensors)):
        return inception.InceptionV3([0, 1, 2, 3]).eval()


def tool_input(tool: str, images: np.ndarray) -> np.ndarray:
    """What a tool's network sees of np.uint8 [b, h, w, 3]: float32 [b, 299, 299, 3]."""
    peer("cleanfid")
    import torch
    from cleanfid.resize import build_resizer
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    if tool == "clean-fid":  # what `InceptionV3W.forward` does with the images of its `ResizeDataset`
        resize = build_resizer("clean")
        return np.stack([(resize(image) - 128) / 128 for image in images])
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    if tool == "torch-fidelity":
        x = interpolate_bilinear_2d_like_tensorflow1x(x.float(), size=(299, 299), align_corners=False)
        x = (x - 128) / 128
    else:  # ToTensor and the head of `InceptionV3.forward`
        x = torch.nn.functional.interpolate(x / 255, size=(299, 299), mode="bilinear", align_corners=False)
        x = 2 * x - 1
    return x.numpy().transpose(0, 2, 3, 1)


def _module_tensors(tensors: dict[str, np.ndarray]):
    """A state dict as torch's modules load it, with the counters of batch norms."""
    import torch

    counters = {name.replace("running_var", "num_batches_tracked"): torch.tensor(0) for name in tensors}
    counters = {name: value for name, value in counters.items() if name.endswith("num_batches_tracked")}
    return {name: torch.from_numpy(value) for name, value in tensors.items()} | counters
