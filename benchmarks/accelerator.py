"""Time ancestral sampling on a GPU or TPU, ours and PyTorch's, in processes that take turns.

    python benchmarks/accelerator.py                                  # both networks in bfloat16, three rounds
    python benchmarks/accelerator.py --nets cifar10 --peers ours      # on a TPU, or without diffusers
    python benchmarks/accelerator.py --peers ours --rounds 1 --profile trace/   # for TensorBoard or Perfetto

The jobs are those of Ho et al. (2020, appendix B): 256 images of 32 x 32 pixels by 1000 steps (17 s on their TPU v3-8),
and 128 images of 256 x 256 (300 s), of which 20 steps are timed and scaled to 1000. Peers: diffusers' UNet2DModel in
its DDPM loop with channels_last and the same precision, eager and under torch.compile. Each takes a fresh process, one
call to warm up and one that is timed; ratios are taken within a round. TFLOP/s count the multiplications and additions
of the network as JAX lowers it, before any optimisation, for all peers alike; the peak is that of a chain of square
matrix products, measured on the same device. Needs the `parity` extra for the peers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from versus_diffusers import GOOGLE, MAKE, NETS, timed

BATCH = {"cifar10": 256, "cat256": 128}
STEPS = {"cifar10": 1000, "cat256": 20}
PAPER = {"cifar10": 17, "cat256": 300}
PEERS = ("ours", "channels_last", "compiled")
WHOLE = 1000


def main() -> None:
    """Run rounds of all peers and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=tuple(NETS), default=tuple(NETS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--batch-size", type=int, help="by default the paper's")
    parser.add_argument("--steps", type=int, help="that are timed; by default 1000 and 20")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--matrix-size", type=int, default=8192, help="side of the matrices that measure the peak")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", type=Path, help="write a trace of our timed call to this folder")
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--worker", nargs=3, metavar=("NET", "PEER", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        net, peer, folder = options.worker
        print(json.dumps(WORKERS[peer](net, peer, Path(folder), options)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        results["device"] = peak = launch("", "peak", folder)
        print(f"{peak['device']}, {peak['versions']}: {peak['tflops']:.1f} TFLOP/s in {options.dtype} products")
        for net in options.nets:
            subprocess.run([sys.executable, "-c", MAKE, net, folder, json.dumps(NETS[net] | GOOGLE)], check=True)
            flops, rounds = launch(net, "flops", folder)["flops"], []
            results[net] = {"batch_size": _of(options.batch_size, BATCH[net]), "dtype": options.dtype, "rounds": rounds}
            for _ in range(options.rounds):
                rounds.append({})
                for peer in options.peers:
                    rounds[-1][peer] = launch(net, peer, folder)
                    if options.out:  # after each, so that a run that is cut short leaves what it measured
                        options.out.write_text(json.dumps(results, indent=1) + "\n")
            report(net, rounds, flops, peak["tflops"], options)


def report(net: str, rounds: list[dict[str, dict]], flops: float, peak: float, options) -> None:
    """Print a network's medians; `flops` are those of one step of the batch."""
    batch = _of(options.batch_size, BATCH[net])
    for peer in rounds[0]:
        step = statistics.median(numbers[peer]["seconds"] for numbers in rounds)
        rate = flops / step / 1e12
        line = f"{net} b{batch} {peer:14s} {WHOLE * step:8.1f} s for {WHOLE} steps"
        line += f" (the paper, batch {BATCH[net]}: {PAPER[net]} s)   {rate:6.2f} TFLOP/s, {rate / peak:.0%} of the peak"
        if peer != "ours" and "ours" in rounds[0]:
            ratios = sorted(numbers[peer]["seconds"] / numbers["ours"]["seconds"] for numbers in rounds)
            line += f"   we are {statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} .. {ratios[-1]:.2f})"
        print(line, flush=True)


def launch(net: str, peer: str, folder: str) -> dict:
    """Run one worker in its own process."""
    command = [sys.executable, *sys.argv, "--worker", net, peer, folder]
    # only a CPU's compiler counts the FLOPs of a network that was lowered and not compiled
    environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if peer == "flops" else {})
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise RuntimeError(f"{net} {peer} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def measure_peak(net: str, peer: str, folder: Path, options) -> dict:
    """Time a chain of products of square matrices."""
    from importlib.metadata import version

    import jax
    import jax.numpy as jnp

    size, count = options.matrix_size, 20
    matrix = jax.random.normal(jax.random.key(0), (size, size), options.dtype) / size**0.5
    chain = jax.jit(lambda x: jax.lax.fori_loop(0, count, lambda _, y: jnp.matmul(y, matrix), x))
    seconds = timed(lambda: chain(matrix).block_until_ready(), 5)
    device = jax.devices()[0]
    return {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("ddpm-jax", "jax", "flax")),
        "tflops": 2 * size**3 * count / seconds / 1e12,
    }


def count_flops(net: str, peer: str, folder: Path, options) -> dict:
    """Return the FLOPs of one step of the batch, by XLA's analysis of the unoptimised network."""
    import jax
    import jax.numpy as jnp

    import ddpm_jax
    from ddpm_jax.models.unet import UNet

    params = ddpm_jax.load(folder / net)
    config, batch = params.config.unet, _of(options.batch_size, BATCH[net])
    x = jax.ShapeDtypeStruct((1, config.sample_size, config.sample_size, config.in_channels), jnp.float32)
    lowered = jax.jit(UNet(config).apply).lower({"params": params.weights}, x, 0)
    return {"flops": batch * lowered.cost_analysis()["flops"]}


def ours(net: str, peer: str, folder: Path, options) -> dict:
    """Return ddpm_jax's seconds a step."""
    import contextlib

    import jax

    import ddpm_jax
    from ddpm_jax import samplers

    params = ddpm_jax.load(folder / net, dtype=options.dtype)
    steps, batch = _of(options.steps, STEPS[net]), _of(options.batch_size, BATCH[net])
    sample = lambda key: ddpm_jax.sample(params, key, batch, sampler=samplers.DDPM(num_steps=steps)).block_until_ready()
    sample(jax.random.key(0))
    with jax.profiler.trace(options.profile) if options.profile else contextlib.nullcontext():
        start = time.perf_counter()
        sample(jax.random.key(1))
        seconds = time.perf_counter() - start
    memory = jax.devices()[0].memory_stats() or {}
    return {"seconds": seconds / steps, "peak_mb": memory.get("peak_bytes_in_use", 0) / 2**20}


def theirs(net: str, peer: str, folder: Path, options) -> dict:
    """Return the seconds a step of diffusers' network in the loop of its DDPMPipeline."""
    import diffusers
    import torch

    cuda = torch.cuda.is_available()
    device, dtype = "cuda" if cuda else "cpu", getattr(torch, options.dtype)
    model = diffusers.UNet2DModel.from_pretrained(folder / net / "unet", torch_dtype=dtype).eval().to(device)
    model.to(memory_format=torch.channels_last)
    run = torch.compile(model) if peer == "compiled" else model
    steps, batch = _of(options.steps, STEPS[net]), _of(options.batch_size, BATCH[net])
    size, scheduler = model.config.sample_size, diffusers.DDPMScheduler()

    def sample(steps: int) -> float:
        start = time.perf_counter()
        scheduler.set_timesteps(steps)
        x = torch.randn((batch, 3, size, size), device=device, dtype=dtype).to(memory_format=torch.channels_last)
        for t in scheduler.timesteps:
            x = scheduler.step(run(x, t).sample, t, x).prev_sample
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    with torch.inference_mode():
        sample(3)
        seconds = sample(steps)
    return {"seconds": seconds / steps, "peak_mb": torch.cuda.max_memory_allocated() / 2**20 if cuda else 0.0}


def _of(given: int | None, default: int) -> int:
    return default if given is None else given


WORKERS = {"ours": ours, "channels_last": theirs, "compiled": theirs, "peak": measure_peak, "flops": count_flops}

if __name__ == "__main__":
    main()
