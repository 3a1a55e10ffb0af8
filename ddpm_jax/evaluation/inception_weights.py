"""The weights of the FID's InceptionV3: found on this machine, checked, and folded.

Nobody can compare FIDs of two networks, so there is one file that all tools share: Google's weights of 2015-12-05, in
the form that pytorch-fid published. It is not part of this package, and nothing here downloads it.
"""

import functools
import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs

from ddpm_jax.checkpoint import read_torch_pickle
from ddpm_jax.checkpoint.tensors import named_leaves, raise_if_misfits
from ddpm_jax.evaluation.inception import SIDE, InceptionV3
from ddpm_jax.types import PyTree

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
FILE_NAMES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
DIGEST = "6726825d"  # the start of the SHA-256 of both, which are one file
VARIABLE = "DDPM_JAX_INCEPTION"
_EPS = 1e-3  # of the batch norms
_NORM = ("weight", "bias", "running_mean", "running_var")


class InceptionWeights(NamedTuple):
    """Weights that `InceptionV3()` runs on.

    Attributes:
        tree: the Flax "params" dict, float32.
        digest: the first eight hexadecimal digits of the file's SHA-256.
    """

    tree: PyTree
    digest: str


def find(weights: str | Path | None = None) -> Path:
    """Return the path of the weights.

    Args:
        weights: the file; None for the one that the environment variable DDPM_JAX_INCEPTION names, and without it for
            the one in this package's cache folder, or where pytorch-fid and torch-fidelity have put it.

    Raises:
        FileNotFoundError: there is none; says what to fetch, and where to put it.
    """
    named = [(weights, "`weights`"), (os.environ.get(VARIABLE), f"the environment variable {VARIABLE}")]
    for name, what in named:
        if name:
            path = Path(name).expanduser()
            if not path.is_file():
                raise FileNotFoundError(
                    f"There is no file {path}, which {what} names. Correct the name, or {_advice()}"
                )
            return path
    for folder in (cache_folder(), _hub_folder()):
        for name in FILE_NAMES:
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(
        f"The weights of the FID's InceptionV3 are not on this machine, and cannot be shipped: {_advice()}"
    )


def cache_folder() -> Path:
    """Return this package's folder for the weights, below the user's cache folder."""
    return platformdirs.user_cache_path("ddpm-jax", appauthor=False) / "inception"


def _hub_folder() -> Path:
    """Return the folder of torch's hub."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or Path(caches) / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def _advice() -> str:
    return (
        f"fetch {URL} (96 MB) and put it into {cache_folder()}, or name the file (`weights`, or the environment "
        f"variable {VARIABLE}). The extractor 'pixels' needs no file."
    )


def read(path: Path) -> InceptionWeights:
    """Read the weights, and fold them.

    Weights of the same shapes from another file are taken with a warning: their numbers compare with nobody's.

    Args:
        path: the .pth file, of torch's format.

    Raises:
        ValueError: the file is corrupt, or holds another network; lists all missing, unexpected and mis-shaped tensors.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[: len(DIGEST)]
    tree = fold(read_torch_pickle(path), str(path))
    if digest != DIGEST:
        warnings.warn(
            f"{path} is not the file of which published FIDs are made (SHA-256 {digest}..., not {DIGEST}...). Its "
            "features compare only with others of this file, and their name says so. For published numbers, "
            f"{_advice()}",
            stacklevel=3,
        )
    return InceptionWeights(jax.tree.map(lambda leaf: leaf.astype(np.float32), tree), digest)


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors by their names in the file; the counters of batch norms are left out.

    Example:
        >>> len(shapes()), shapes()["fc.weight"], shapes()["Mixed_5b.branch5x5_2.conv.weight"]
        (472, (1008, 2048), (64, 48, 5, 5))
    """
    wanted = {}
    for path, (*size, channels, features) in _kernels():
        name = ".".join(path)
        if name == "fc":
            wanted |= {"fc.weight": (features, channels), "fc.bias": (features,)}
        else:
            wanted[f"{name}.conv.weight"] = (features, channels, *size)
            wanted |= {f"{name}.bn.{part}": (features,) for part in _NORM}
    return wanted


def fold(tensors: Mapping[str, np.ndarray], source: str) -> PyTree:
    """Turn a state dict into the weights of `InceptionV3`, with batch norms folded into the convolutions before them.

    W' = s W,  b' = beta - s mean,  s = gamma / sqrt(var + 1e-3).

    The bias of the last layer is left out: `Activations.logits`.

    Args:
        tensors: in PyTorch's names and shapes.
        source: where they are from, for the message.

    Returns:
        The Flax "params" dict, float64.

    Raises:
        ValueError: it is another network's; lists all missing, unexpected and mis-shaped tensors.
    """
    tensors = {name: value for name, value in tensors.items() if not name.endswith(".num_batches_tracked")}
    raise_if_misfits(
        {name: value.shape for name, value in tensors.items()},
        shapes(),
        owner="the FID's InceptionV3",
        advice=f"Does {source} hold another network, torchvision's own InceptionV3 say? Then {_advice()}",
    )
    tree: PyTree = {}
    for path, _ in _kernels():
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        name = ".".join(path)
        if name == "fc":
            place["kernel"] = tensors["fc.weight"].astype(np.float64).T
            continue
        gamma, beta, mean, variance = (tensors[f"{name}.bn.{part}"].astype(np.float64) for part in _NORM)
        scale = gamma / np.sqrt(variance + _EPS)
        place["kernel"] = scale * tensors[f"{name}.conv.weight"].astype(np.float64).transpose(2, 3, 1, 0)
        place["bias"] = beta - scale * mean
    return tree


@functools.cache
def _kernels() -> tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]:
    """Return the path and the shape of every layer's kernel."""
    images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    tree = jax.eval_shape(InceptionV3().init, jax.eval_shape(jax.random.key, 0), images)["params"]
    return tuple((path[:-1], leaf.shape) for path, leaf in named_leaves(tree).items() if path[-1] == "kernel")
