"""A step of training, us and diffusers, in processes that take turns; and how fast the data comes.

    python benchmarks/training.py                                # both networks, five rounds
    python benchmarks/training.py --dtype bfloat16 --compile     # on an accelerator
    python benchmarks/training.py --data photos/                 # images/s of the data pipeline alone

A step is: noise, forward, backward, clipping, AdamW, moving average, as in diffusers' train_unconditional.py with
--use_ema. The same network, batch and precision; PyTorch in eager mode and with channels_last (with --compile also
under torch.compile). Ratios are taken within a round; their median is printed. Needs the `parity` and `train` extras.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

NETS = ("small-32", "cifar10")  # those of the presets
PEERS = ("ours", "eager", "channels_last")
STEPS = 8


def main() -> None:
    """Run rounds of all peers and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="a peer under torch.compile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--data", help="measure the data pipeline on this folder instead")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--worker", nargs=2, metavar=("NET", "PEER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data:
        print(f"{data_rate(options.data, options.resolution):.0f} images/s")
        return
    if options.worker:
        print(json.dumps(work(*options.worker, options)))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True)
    peers = (*PEERS, "compiled") if options.compile else PEERS
    results = {}
    for net in options.nets:
        rounds = [{peer: launch(net, peer) for peer in peers} for _ in range(options.rounds)]
        results[f"{net}-b{options.batch_size}-{options.dtype}"] = rounds
        for peer in peers:
            rate = options.batch_size / statistics.median(numbers[peer]["seconds"] for numbers in rounds)
            memory = statistics.median(numbers[peer]["peak_mb"] for numbers in rounds)
            ratios = sorted(numbers[peer]["seconds"] / numbers["ours"]["seconds"] for numbers in rounds)
            line = f"{net:10s} b{options.batch_size} {peer:14s} {rate:9.2f} images/s   peak {memory:6.0f} MB"
            if peer != "ours":
                line += f"   we are {statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} .. {ratios[-1]:.2f})"
            print(line, flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n")


def launch(net: str, peer: str) -> dict[str, float]:
    """Run one peer in a process of its own."""
    command = [sys.executable, *sys.argv, "--worker", net, peer]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{net} {peer} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def work(net: str, peer: str, options) -> dict[str, float]:
    """Time a step, in this process."""
    import resource

    seconds = ours(net, options) if peer == "ours" else theirs(net, peer, options)
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def settings(net: str, options):
    """Return the run and its network."""
    import dataclasses

    from ddpm_jax.training import PRESETS, DataConfig, OptimizerConfig, RunConfig, TrainConfig
    from ddpm_jax.training.config import network
    from ddpm_jax.training.step import Run

    config = TrainConfig(
        data=DataConfig(data="digits"),
        model=dataclasses.replace(PRESETS[net].model, prediction_type="epsilon", dropout=0.0),
        optimizer=OptimizerConfig(optimizer="adamw", weight_decay=1e-6),
        run=RunConfig(batch_size=options.batch_size, dtype=options.dtype),
    )
    return Run(network(config, 32, 3, 0), config)


def ours(net: str, options) -> float:
    """Time ddpm_jax."""
    import jax
    import numpy as np

    from ddpm_jax import init, sharding
    from ddpm_jax.training.step import compiled, create

    run, mesh = settings(net, options), sharding.data_mesh()
    state = create(run, init(jax.random.key(0), run.network).weights, mesh)
    step = compiled(run, state, mesh)
    images = np.random.default_rng(0).integers(0, 256, (options.batch_size, 32, 32, 3), np.uint8)
    images = sharding.place(images, mesh, split=True)
    for _ in range(2):
        state, metrics = step(state, images, None)
    jax.block_until_ready(state)
    start = time.perf_counter()
    for _ in range(options.steps):
        state, metrics = step(state, images, None)
    jax.block_until_ready((state, metrics))
    return (time.perf_counter() - start) / options.steps


def theirs(net: str, peer: str, options) -> float:
    """Time diffusers."""
    import diffusers
    import torch
    from diffusers.training_utils import EMAModel

    items = settings(net, options).network.unet.to_dict()
    model = diffusers.UNet2DModel(**{name: value for name, value in items.items() if not name.startswith("_")})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    if peer == "channels_last" or (peer == "compiled" and device == "cuda"):
        model.to(memory_format=torch.channels_last)
    run = torch.compile(model) if peer == "compiled" else model
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-6)
    schedule = diffusers.DDPMScheduler()
    images = torch.rand(options.batch_size, 3, 32, 32, device=device) * 2 - 1
    low = torch.autocast(device, torch.bfloat16, enabled=options.dtype == "bfloat16")

    def step() -> None:
        noise = torch.randn_like(images)
        t = torch.randint(0, 1000, (options.batch_size,), device=device)
        with low:
            out = run(schedule.add_noise(images, noise, t), t).sample
        loss = torch.nn.functional.mse_loss(out.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        average.step(model.parameters())

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3 if peer == "compiled" else 2):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(options.steps):
        step()
    wait()
    return (time.perf_counter() - start) / options.steps


def data_rate(data: str, resolution: int) -> float:
    """Return the images/s of the data pipeline, with random crops and flips."""
    from ddpm_jax.training import DataConfig
    from ddpm_jax.training.data import Batches, open_source

    config = DataConfig(data=data, crop="random_resized")
    batches = Batches(open_source(data), config, resolution, batch_size=64, seed=0).own(0, 70)
    for _ in range(10):
        next(batches)
    start = time.perf_counter()
    count = sum(len(batch.images) for batch in batches)
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
