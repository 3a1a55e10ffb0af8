"""Time the same jobs with ddpm_jax and with its peers, in processes that take turns.

    python benchmarks/versus_diffusers.py                    # all jobs, five rounds
    python benchmarks/versus_diffusers.py --jobs forward-cifar10-b1 ddim-cifar10-b4 --rounds 3

A job runs in a fresh process a round and peer, so that no thread pool meets another's. Ratios are taken within a round
and their median is printed: only they count on a shared machine. Peers (`peers.py`): diffusers' network in PyTorch,
eager, with channels_last, and compiled, and exported to ONNX Runtime and OpenVINO, always in diffusers' loop. Weights
are random; the time of a network does not depend on them. Needs the `bench` extra, and a C++ compiler for the third.

Jobs:
    forward-NET-bB    one forward, the median of some after warming up (plain convolutions on our side)
    SAMPLER-NET-bB    a step of ddpm, ddim, dpmsolver++ or unipc, over 10 steps after warming up; and peak memory.
                      "ours_plain", for ddim, is ours without Winograd's convolutions; ddim meets all peers, the others
                      eager and channels_last
    program-NET-bB    20 steps of dpmsolver++ from the start of the process to PNG files, imports, loading and
                      compiling included; "ours_warm" finds its programs in a compile cache
    compile-NET-bB    tracing and compiling the first time that we sample (ours alone)
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import peers
from turns import describe_machine

SAMPLERS = ("ddpm", "ddim", "dpmsolver++", "unipc")
STEPS = 10
CALLS = 100  # a step is that of a program which compiled long ago
JOBS = (
    *("forward-cifar10-b1", "forward-cifar10-b4", "forward-cifar10-b16", "forward-cat256-b1"),
    *(f"{sampler}-cifar10-b{batch}" for batch in (1, 4, 16) for sampler in SAMPLERS),
    *(f"{sampler}-cat256-b1" for sampler in SAMPLERS),
    *("program-cifar10-b1", "program-cifar10-b4", "compile-cat256-b1"),
)
PEERS = {
    "forward": ("ours", "eager", "channels_last"),
    "program": ("ours", "ours_warm", "eager", "channels_last"),
    "compile": ("ours",),
} | {sampler: ("ours", "eager", "channels_last") for sampler in SAMPLERS}
PEERS["ddim"] = ("ours", "ours_plain", *peers.TORCH, *peers.ENGINES)
GOOGLE = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
NETS = {
    "cifar10": {
        "sample_size": 32,
        "block_out_channels": (128, 256, 256, 256),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "cat256": {
        "sample_size": 256,
        "block_out_channels": (128, 128, 256, 256, 512, 512),
        "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
    },
}
REPEATS = {"cifar10": 10, "cat256": 3}


def main() -> None:
    """Run rounds of all peers and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", default=JOBS, help="some of " + ", ".join(JOBS))
    parser.add_argument("--peers", nargs="+", help="some of those of the jobs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--worker", nargs=3, metavar=("JOB", "PEER", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(*options.worker)))
        return
    print(describe_machine(), flush=True)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for net in sorted({job.split("-")[1] for job in options.jobs}):
            subprocess.run([sys.executable, "-c", MAKE, net, folder, json.dumps(NETS[net] | GOOGLE)], check=True)
        for job in options.jobs:
            kind, net, batch = job.rsplit("-", 2)
            names = [name for name in PEERS[kind] if options.peers is None or name in options.peers]
            if "ours_warm" in names:
                launch(job, "ours_warm", folder)  # fills its cache
            if set(names) & set(peers.ENGINES):
                peers.exported(Path(folder) / net, int(batch[1:]))
            rounds = results[job] = []
            for _ in range(options.rounds):
                rounds.append({})
                for name in names:
                    rounds[-1][name] = launch(job, name, folder)
                    if options.out:  # after each, so that a run that is cut short leaves what it measured
                        options.out.write_text(json.dumps(results, indent=1) + "\n")
            report(job, names, rounds)


MAKE = """
import json, sys
from pathlib import Path
import jax, ddpm_jax
net, folder, items = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
config = ddpm_jax.Config(ddpm_jax.UNetConfig(**items))
ddpm_jax.save(ddpm_jax.init(jax.random.key(0), config, scheme="torch"), folder / net, format="diffusers")
"""


def launch(job: str, peer: str, folder: str) -> dict[str, float]:
    """Run one job of one peer in its own process."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--worker", job, peer, folder]
    result = subprocess.run(command, capture_output=True, text=True)
    elapsed = time.perf_counter() - start
    if result.returncode:
        raise RuntimeError(f"{job} {peer} failed:\n{result.stderr[-2000:]}")
    numbers = json.loads(result.stdout.splitlines()[-1])
    if job.startswith("program"):
        numbers["seconds"] = elapsed
    return numbers


def report(job: str, names: Sequence[str], rounds: list[dict[str, dict[str, float]]]) -> None:
    """Print medians over the rounds, and the ratio of ours to theirs within each round."""
    for peer in names:
        seconds = statistics.median(numbers[peer]["seconds"] for numbers in rounds)
        memory = statistics.median(numbers[peer]["peak_mb"] for numbers in rounds)
        line = f"{job:24s} {peer:14s} {seconds:9.3f} s   peak {memory:6.0f} MB"
        if peer != "ours" and "ours" in rounds[0]:
            for name in ("seconds", "peak_mb"):
                ratios = sorted(numbers["ours"][name] / numbers[peer][name] for numbers in rounds)
                line += f"   ours/it {name} {statistics.median(ratios):.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})"
        print(line, flush=True)


def work(job: str, peer: str, folder: str) -> dict[str, float]:
    """Do a job in this process."""
    kind, net, batch = job.rsplit("-", 2)
    measure = ours if peer.startswith("ours") else theirs
    seconds = measure(kind, Path(folder) / net, int(batch[1:]), REPEATS[net], Path(folder), peer)
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def timed(function, repeats: int) -> float:
    """Return the median seconds of a function, after one call to warm up."""
    function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def ours(kind: str, model: Path, batch: int, repeats: int, folder: Path, peer: str) -> float:
    """Time ddpm_jax."""
    import jax
    import numpy as np

    import ddpm_jax
    from ddpm_jax import samplers
    from ddpm_jax.models import winograd

    if peer == "ours_warm":
        from ddpm_jax.cli.compile_cache import keep_compiled

        keep_compiled(str(folder / "cache"))
    if peer == "ours_plain":
        winograd.transform_weights = lambda config, weights, batch_size, evaluations: weights
    params = ddpm_jax.load(model)
    size, key = params.config.unet.sample_size, jax.random.key(0)
    if kind == "forward":
        x = np.random.default_rng(0).standard_normal((batch, size, size, 3)).astype(np.float32)
        return timed(lambda: ddpm_jax.apply(params, x, 500).block_until_ready(), repeats)
    if kind == "program":
        images = ddpm_jax.sample(params, key, batch, sampler=samplers.DPMSolverPP(num_steps=20))
        for i, image in enumerate(ddpm_jax.to_pil(images)):
            image.save(folder / f"ours{i}.png")
        return 0.0
    if kind in SAMPLERS:
        sampler = samplers.SAMPLERS[kind](num_steps=STEPS)
        draw = lambda: ddpm_jax.sample(params, key, batch, sampler=sampler, expected_calls=CALLS).block_until_ready()
        return timed(draw, 1) / STEPS
    heard = []  # what the first call spends on tracing, lowering and compiling, whatever the loop's length
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: heard.append(duration) if event.startswith("/jax/core/compile/") else None
    )
    ddpm_jax.sample(params, key, batch, sampler=samplers.DDIM(num_steps=1)).block_until_ready()
    return sum(heard)


def theirs(kind: str, model: Path, batch: int, repeats: int, folder: Path, peer: str) -> float:
    """Time a peer: its network, and the scheduler of diffusers in the loop of its pipelines."""
    import diffusers
    import torch

    net, size = peers.network(peer, model, batch), NETS[model.name]["sample_size"]
    shape = (batch, 3, size, size)
    classes = {"ddpm": "DDPM", "ddim": "DDIM", "unipc": "UniPCMultistep"}
    scheduler = getattr(diffusers, f"{classes.get(kind, 'DPMSolverMultistep')}Scheduler")()

    def sample(steps: int) -> torch.Tensor:
        scheduler.set_timesteps(steps)
        x = torch.randn(shape)
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t), t, x).prev_sample
        return (x / 2 + 0.5).clamp(0, 1)

    with torch.inference_mode():
        if kind == "forward":
            x, t = torch.randn(shape), torch.tensor(500)
            return timed(lambda: net(x, t), repeats)
        if kind == "program":
            from PIL import Image

            for i, image in enumerate((sample(20).permute(0, 2, 3, 1).numpy() * 255).round().astype("uint8")):
                Image.fromarray(image).save(folder / f"theirs{i}.png")
            return 0.0
        sample(2)
        start = time.perf_counter()
        sample(STEPS)
        return (time.perf_counter() - start) / STEPS


if __name__ == "__main__":
    main()
