"""The file of the InceptionV3's weights: where it is looked for, what is refused, and the extractors made of it."""

import warnings

import numpy as np
import pytest
import torch_peers

from ddpm_jax.evaluation import inception_weights
from ddpm_jax.evaluation.features import extractor
from ddpm_jax.evaluation.inception_weights import FILE_NAMES, find, fold, read


@pytest.fixture
def tensors():
    return torch_peers.inception_tensors()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without weights, of which the caches are in tmp_path."""
    monkeypatch.delenv("DDPM_JAX_INCEPTION", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(inception_weights, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


def test_weights_are_found_in_order(machine, monkeypatch):
    hub = put(machine / "torch" / "hub" / "checkpoints" / FILE_NAMES[1])  # where torch-fidelity has it
    assert find() == hub
    cached = put(machine / "cache" / FILE_NAMES[0])
    assert find() == cached
    named = put(machine / "by variable.pth")
    monkeypatch.setenv("DDPM_JAX_INCEPTION", str(named))
    assert find() == named
    given = put(machine / "given.pth")
    assert find(given) == find(str(given)) == given


def test_missing_weights_say_what_to_fetch_and_where_to_put_it(machine, monkeypatch):
    fetch = "fetch https://.*/pt_inception-2015-12-05-6726825d.pth .* put it into .*cache, or name the file"
    with pytest.raises(FileNotFoundError, match=f"not on this machine, .*{fetch}"):
        extractor("inception-2048/torch-fidelity")
    with pytest.raises(FileNotFoundError, match=f"no file .*nowhere.pth, which `weights` names.*{fetch}"):
        extractor("inception-64/clean-fid", weights=machine / "nowhere.pth")
    monkeypatch.setenv("DDPM_JAX_INCEPTION", "gone.pth")
    with pytest.raises(FileNotFoundError, match="gone.pth, which the environment variable DDPM_JAX_INCEPTION names"):
        find()


def test_the_networks_counters_are_left_out_and_its_batch_norms_folded(tensors):
    counters = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.array(5)}
    folded = fold(tensors | counters, "the formula")
    name = "Conv2d_2b_3x3"
    x = np.random.default_rng(0).standard_normal((32,))  # the middle of a patch of 3 x 3 pixels
    y = tensors[f"{name}.conv.weight"][:, :, 1, 1].astype(np.float64) @ x
    gamma, beta, mean, variance = (
        tensors[f"{name}.bn.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    expected = gamma * (y - mean) / np.sqrt(variance + 1e-3) + beta
    found = x @ folded[name]["kernel"][1, 1] + folded[name]["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)  # float64


def test_another_network_is_refused_with_all_that_is_wrong(tensors):
    """Of torchvision's, say: an auxiliary classifier, and 1000 classes."""
    others = dict(tensors)
    others |= {"AuxLogits.fc.weight": np.zeros((1000, 768)), "fc.weight": np.zeros((1000, 2048), np.float32)}
    del others["Mixed_7c.branch_pool.bn.bias"], others["Conv2d_1a_3x3.bn.running_var"]
    with pytest.raises(ValueError) as caught:
        fold(others, "/tmp/inception_v3_google.pth")
    assert str(caught.value).splitlines() == [
        "The weights do not fit the FID's InceptionV3: 4 tensors are wrong, of 472 it has.",
        "  missing     Conv2d_1a_3x3.bn.running_var [32]",
        "  missing     Mixed_7c.branch_pool.bn.bias [192]",
        "  mis-shaped  fc.weight: [1000, 2048] in the file, [1008, 2048] by the FID's InceptionV3",
        "  unexpected  AuxLogits.fc.weight [1000, 768]",
        "Does /tmp/inception_v3_google.pth hold another network, torchvision's own InceptionV3 say? Then fetch "
        f"{inception_weights.URL} (96 MB) and put it into {inception_weights.cache_folder()}, or name the file "
        "(`weights`, or the environment variable DDPM_JAX_INCEPTION). The extractor 'pixels' needs no file.",
    ]


def test_a_file_of_other_weights_warns_and_has_another_digest(tmp_path, monkeypatch, tensors):
    path = put(tmp_path / "mine.pth")
    monkeypatch.setattr(inception_weights, "read_torch_pickle", lambda _: tensors)
    with pytest.warns(
        UserWarning, match="mine.pth is not the file of which published FIDs are made .*SHA-256 9a129038"
    ):
        weights = read(path)
    assert weights.digest == "9a129038"  # `printf weights | sha256sum`
    assert weights.tree["fc"]["kernel"].dtype == np.float32
    monkeypatch.setattr(inception_weights, "DIGEST", weights.digest)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(path)
