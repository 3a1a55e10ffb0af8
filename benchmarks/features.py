"""Time the features of the FID with ddpm_jax and with pytorch-fid and torch-fidelity, in processes that take turns.

    python benchmarks/features.py                                  # 32 and 256 pixels, five rounds
    python benchmarks/features.py --sides 32 --images 64 --rounds 1

A process extracts the 2048 features of images that lie in memory as bytes, resizing included, after warming up: theirs
in batches of 50, pytorch-fid's default, ours in the batches that it makes of any number. "channels_last" is
pytorch-fid's network in that memory format, which it does not use itself. "first" is the time from the start of the
work to the end of the first 50 images: imports, reading the weights, compiling. Weights are random; the time of a
network does not depend on them. Ratios are taken within a round and their median is printed: only they count on a
shared machine. Needs the `parity` extra.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from turns import describe_machine

BATCH = 50
PEERS = ("ours", "pytorch-fid", "channels_last", "torch-fidelity")


def main() -> None:
    """Run rounds of all peers and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", type=int, default=(32, 256), help="pixels of the images")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--worker", nargs=4, metavar=("PEER", "SIDE", "IMAGES", "WEIGHTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        peer, side, images, weights = options.worker
        print(json.dumps(work(peer, int(side), int(images), weights)))
        return
    print(describe_machine(), flush=True)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(Path(folder))
        for side in options.sides:
            rounds = results[f"{side} pixels"] = []
            for _ in range(options.rounds):
                rounds.append({})
                for peer in options.peers:
                    rounds[-1][peer] = launch(peer, side, options.images, weights)
                    if options.out:  # after each, so that a run that is cut short leaves what it measured
                        options.out.write_text(json.dumps(results, indent=1) + "\n")
            for peer in options.peers:
                print(f"{side:4d} pixels {peer:15s} {line(peer, rounds, options.images)}", flush=True)


def line(peer: str, rounds: list[dict[str, dict[str, float]]], images: int) -> str:
    """Return a peer's images/s, first batch and memory, and the ratio of our time to its own within a round."""
    median = {name: statistics.median(numbers[peer][name] for numbers in rounds) for name in rounds[0][peer]}
    text = f"{images / median['seconds']:7.2f} images/s   first {median['first']:5.1f} s   "
    text += f"peak {median['peak_mb']:5.0f} MB"
    if peer == "ours" or "ours" not in rounds[0]:
        return text
    ratios = sorted(numbers["ours"]["seconds"] / numbers[peer]["seconds"] for numbers in rounds)
    return f"{text}   ours takes {statistics.median(ratios):.2f} of its time ({ratios[0]:.2f} .. {ratios[-1]:.2f})"


def write_weights(folder: Path) -> Path:
    """Write random weights where torch's hub would have put the real ones, so that nothing is downloaded."""
    import torch

    from ddpm_jax.evaluation.inception_weights import FILE_NAMES, shapes

    generator = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes().items():
        scale = (2 * shape[0] / np.prod(shape)) ** 0.5 if len(shape) > 1 else 0.1
        value = scale * generator.standard_normal(shape) + name.endswith(("bn.weight", "running_var"))
        tensors[name] = torch.tensor(np.abs(value) if name.endswith("var") else value, dtype=torch.float32)
        if name.endswith("running_var"):
            tensors[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    path = folder / "hub" / "checkpoints" / FILE_NAMES[0]
    path.parent.mkdir(parents=True)
    torch.save(tensors, path)
    return path


def launch(peer: str, side: int, images: int, weights: Path) -> dict[str, float]:
    """Run one peer in its own process."""
    command = [sys.executable, __file__, "--worker", peer, str(side), str(images), str(weights)]
    environment = os.environ | {"TORCH_HOME": str(weights.parents[2])}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{peer} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def work(peer: str, side: int, count: int, weights: str) -> dict[str, float]:
    """Time one peer in this process."""
    start = time.perf_counter()
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    extract = ours(weights) if peer == "ours" else theirs(peer, weights)
    size = count if peer == "ours" else BATCH
    batches = [images[first : first + size] for first in range(0, count, size)]
    extract(images[:BATCH])
    first, start = time.perf_counter() - start, time.perf_counter()
    values = np.concatenate([extract(batch) for batch in batches])
    seconds = time.perf_counter() - start
    assert values.shape == (count, 2048) and np.all(np.isfinite(values))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "first": first, "peak_mb": peak}


def ours(weights: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return our extraction."""
    from ddpm_jax.evaluation.features import extractor

    warnings.filterwarnings("ignore", ".*is not the file of which")
    made = extractor("inception-2048/pytorch-fid", weights=weights)
    return lambda images: made(images).values


def theirs(peer: str, weights: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a peer's extraction, of a batch as its own loader makes it."""
    import torch

    # torchvision's own operators, which nobody uses here, do not fit every build of torch
    with unittest.mock.patch("torch.library.register_fake", lambda name, **_: lambda function: function):
        import torchvision  # noqa: F401
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if peer == "torch-fidelity":
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=weights)
        prepare = lambda images: images
    else:
        from pytorch_fid.inception import InceptionV3

        network = InceptionV3()
        layout = torch.channels_last if peer == "channels_last" else torch.contiguous_format
        network = network.to(memory_format=layout)
        prepare = lambda images: (images / 255).to(memory_format=layout)
    network = network.eval().to(device)

    @torch.inference_mode()
    def extract(images: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous()
        return network(prepare(x))[0].flatten(1).cpu().numpy()

    return extract


if __name__ == "__main__":
    main()
