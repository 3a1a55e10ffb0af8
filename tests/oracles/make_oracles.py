"""Make the small files of this folder: needs the `parity` extra. Run from the repository's root, with it on the path.

torch 2.13.0, torch-fidelity 0.4.0, pytorch-fid 0.3.0 and clean-fid 0.1.35 were used.

pickle_zip.bin, pickle_legacy.bin   one state dict of awkward tensors, in both formats of torch.save
pickle_expected.npz                 what they hold
module_zip.bin                      a Module's state_dict, whose pickle also carries `_metadata`
metrics.npz                         features, their metrics by torch-fidelity, and their FID in 50 digits
inception.json                      features of torch-fidelity's InceptionV3, and what three tools feed to theirs
"""

import json
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import torch_peers  # noqa: E402
from torch_fidelity_metrics import values  # noqa: E402

# (real images, fakes, features): more images than features; fewer of one set; fewer of both, by a few and by many
SETS = {"full": (60, 50, 8), "one_deficient": (80, 21, 24), "deficient": (21, 22, 24), "very_deficient": (21, 24, 60)}


def tensors() -> OrderedDict:
    """Views, shared storages, and a tensor of every kind that checkpoints hold."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    return OrderedDict(
        float=base,
        tied=base,
        transposed=base.T,
        strided=base[1:, ::2],
        last_row=base[3],
        double=base.double(),
        half=base.half(),
        bfloat16=base.bfloat16(),
        long=torch.tensor(2**40),
        int=torch.arange(3, dtype=torch.int32),
        short=torch.arange(3, dtype=torch.int16),
        char=torch.arange(-2, 2, dtype=torch.int8),
        byte=torch.arange(3, dtype=torch.uint8),
        bool=torch.tensor([True, False]),
        complex=torch.complex(base[0], base[1]),
        scalar=torch.tensor(0.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2, 2)),
    )


def metrics() -> dict[str, np.ndarray]:
    """Random features that overlap, which float32 holds exactly, with their metrics."""
    found = {}
    for number, (name, (num_real, num_fake, dim)) in enumerate(SETS.items()):
        generator = np.random.default_rng(number)
        mixing = generator.normal(size=(dim, dim)) / dim**0.5 + np.eye(dim)
        real = (generator.normal(size=(num_real, dim)) @ mixing + 0.5).astype(np.float32)
        fake = (1.1 * generator.normal(size=(num_fake, dim)) @ mixing).astype(np.float32)
        logits = (3 * generator.normal(size=(num_fake, 7))).astype(np.float32)
        found |= {f"{name}/real": real, f"{name}/fake": fake, f"{name}/logits": logits}
        found |= {f"{name}/{key}": np.array(value) for key, value in values(real, fake, logits).items()}
        found[f"{name}/exact_fid"] = np.array(exact_fid(real, fake))
    return found


def exact_fid(real: np.ndarray, fake: np.ndarray) -> float:
    """Compute the FID in 50 digits, by the singular values of the centred features' product."""
    import mpmath

    mpmath.mp.dps = 50
    means, roots = [], []
    for features in (real, fake):
        rows = mpmath.matrix(features.astype(np.float64).tolist())
        mean = (mpmath.ones(1, rows.rows) * rows) / rows.rows
        means.append(mean)
        roots.append((rows - mpmath.ones(rows.rows, 1) * mean) / mpmath.sqrt(rows.rows - 1))
    overlap = sum(mpmath.svd_r(roots[0] * roots[1].T, compute_uv=False))
    traces = sum(mpmath.fsum(entry**2 for entry in root) for root in roots)
    return float(mpmath.fsum(entry**2 for entry in means[0] - means[1]) + traces - 2 * overlap)


def main() -> None:
    """Write all files."""
    np.savez_compressed(HERE / "metrics.npz", **metrics())
    state_dict = tensors()
    torch.save(state_dict, HERE / "pickle_zip.bin")
    torch.save(state_dict, HERE / "pickle_legacy.bin", _use_new_zipfile_serialization=False)
    expected = {
        name: (tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()).numpy()
        for name, tensor in state_dict.items()
    }
    np.savez_compressed(HERE / "pickle_expected.npz", **expected)
    torch.manual_seed(0)
    torch.save(
        torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict(), HERE / "module_zip.bin"
    )
    (HERE / "inception.json").write_text(json.dumps(inception()).replace("}, ", "},\n").replace("]], ", "]],\n") + "\n")


def inception() -> dict:
    """A few numbers of each level and of each tool's input."""
    network = torch_peers.fidelity_network(torch_peers.inception_tensors())
    levels = torch_peers.fidelity_levels(network, torch_peers.IMAGES, torch_peers.SMALL)
    inputs = {
        tool: {str(side): torch_peers.tool_input(tool, torch_peers.gradient(side)) for side in (32, 512)}
        for tool in ("torch-fidelity", "pytorch-fid", "clean-fid")
    }
    return {
        "levels": {name: torch_peers.some_of(value).tolist() for name, value in levels.items()},
        "inputs": {
            tool: {side: torch_peers.some_of(value).tolist() for side, value in of_sides.items()}
            for tool, of_sides in inputs.items()
        },
    }


if __name__ == "__main__":
    main()
