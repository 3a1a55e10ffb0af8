"""Time a training step of ours and of diffusers, in processes that take turns; and the data pipeline.

    python benchmarks/training.py                                # both networks, five rounds
    python benchmarks/training.py --dtype bfloat16 --compile     # on an accelerator
    python benchmarks/training.py --profile                      # where the time of a step goes
    python benchmarks/training.py --data photos/                 # images/s of the data pipeline alone

A step is: noise, forward, backward, clipping, AdamW, moving average, as in diffusers' train_unconditional.py with
--use_ema. The same network, batch and precision; PyTorch in eager mode and with channels_last (with --compile also
under torch.compile). Ratios are taken within a round; their median is printed. Needs the `parity` and `train` extras.

A profile (CPU) sorts the time of the steps by operation, with PyTorch's and JAX's own profilers. JAX's records only the
start of a convolution, whose tiles run on the threads between other events. Convolutions are therefore what is left of
the time of all threads, waiting included.
"""

import argparse
import collections
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

NETS = ("small-32", "cifar10")  # those of the presets
PEERS = ("ours", "eager", "channels_last")
# Ours with JAX's own gradients; with sums as products; with Winograd's convolutions too (`models.cpu_gradients`).
FORMS = ("ours_plain", "ours_products", "ours_transformed")
STEPS = 8
CLASSES = {  # of operations: an event belongs to the first whose words are in its name
    "convolutions": ("conv_general", "convolution"),
    "matrix products": ("ynn", "dot", "aten::mm", "addmm", "bmm"),
    "group norms and reductions": ("reduce", "group_norm", "aten::sum", "aten::mean"),
    "copies": ("copy", "transpose", "concatenate", "aten::cat"),
}
OTHER = "other"


def main() -> None:
    """Run rounds of all peers and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="a peer under torch.compile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--forms", action="store_true", help="ours alone, with each kind of gradients on a CPU")
    parser.add_argument("--profile", action="store_true", help="where the time of a step goes (CPU)")
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
    peers = FORMS if options.forms else (*PEERS, "compiled") if options.compile else PEERS
    show = profile_line if options.profile else speed_line
    results = {}
    for net in options.nets:
        rounds = results[f"{net}-b{options.batch_size}-{options.dtype}"] = []
        for _ in range(options.rounds):
            rounds.append({})
            for peer in peers:
                rounds[-1][peer] = launch(net, peer)
                if options.out:  # after each, so that a run that is cut short leaves what it measured
                    options.out.write_text(json.dumps(results, indent=1) + "\n")
        for peer in peers:
            print(f"{net:10s} b{options.batch_size} {peer:14s} {show(rounds, peer, options)}", flush=True)


def speed_line(rounds: list[dict], peer: str, options) -> str:
    """Return a peer's images/s and memory, and our speed relative to it, as text."""
    rate = options.batch_size / statistics.median(numbers[peer]["seconds"] for numbers in rounds)
    memory = statistics.median(numbers[peer]["peak_mb"] for numbers in rounds)
    line = f"{rate:9.2f} images/s   peak {memory:6.0f} MB"
    if peer in FORMS:
        first = statistics.median(numbers[peer]["first"] for numbers in rounds)
        ratios = sorted(numbers[peer]["seconds"] / numbers[FORMS[0]]["seconds"] for numbers in rounds)
        line += f"   {statistics.median(ratios):.2f} of plain ({ratios[0]:.2f} .. {ratios[-1]:.2f})"
        return f"{line}, begins in {first:.0f} s"
    if peer == "ours":
        return line
    ratios = sorted(numbers[peer]["seconds"] / numbers["ours"]["seconds"] for numbers in rounds)
    return f"{line}   we are {statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} .. {ratios[-1]:.2f})"


def profile_line(rounds: list[dict], peer: str, options) -> str:
    """Return a peer's ms a step by class of operation, as text."""
    medians = {name: statistics.median(numbers[peer][name] for numbers in rounds) for name in (*CLASSES, OTHER)}
    return f"{sum(medians.values()):.0f} ms: " + ", ".join(f"{name} {value:.0f}" for name, value in medians.items())


def launch(net: str, peer: str) -> dict[str, float]:
    """Run one peer in its own process."""
    command = [sys.executable, *sys.argv, "--worker", net, peer]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{net} {peer} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def work(net: str, peer: str, options) -> dict[str, float]:
    """Time or profile a step in this process."""
    import resource

    import jax

    if options.profile and peer == "ours" and jax.default_backend() != "cpu":
        raise RuntimeError("--profile reads the threads of a CPU; set JAX_PLATFORMS=cpu and hide the accelerator.")
    begun = time.perf_counter()
    step, wait = ours(net, options, peer) if peer.startswith("ours") else theirs(net, peer, options)
    step()
    wait()
    first = time.perf_counter() - begun
    for _ in range(2 if peer == "compiled" else 1):
        step()
    wait()

    def steps() -> float:
        start = time.perf_counter()
        for _ in range(options.steps):
            step()
        wait()
        return (time.perf_counter() - start) / options.steps

    if options.profile:
        return profile_ours(steps, options) if peer == "ours" else profile_theirs(steps, options)
    return {"seconds": steps(), "first": first, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def classify(times: dict[str, float]) -> dict[str, float]:
    """Sum times by class of the events' names."""
    sums = dict.fromkeys((*CLASSES, OTHER), 0.0)
    for event, value in times.items():
        classes = (name for name, words in CLASSES.items() if any(word in event for word in words))
        sums[next(classes, OTHER)] += value
    return sums


def profile_ours(steps: Callable[[], float], options) -> dict[str, float]:
    """Return ms a step by class: the time of XLA's threads, over their number."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            seconds = steps()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(trace)).planes)
    threads = [line for plane in planes for line in plane.lines if line.name.startswith("tf_XLAEigen")]
    times = collections.Counter()
    for line in threads:
        inner: list[list] = []  # the events that have not ended: (end, name)
        for event in sorted(line.events, key=lambda event: (event.start_ns, -event.duration_ns)):
            if event.name.startswith("end:"):
                continue
            while inner and inner[-1][0] <= event.start_ns:
                inner.pop()
            times[event.name] += event.duration_ns / 1e6
            if inner:
                times[inner[-1][1]] -= event.duration_ns / 1e6  # an outer event keeps its own time alone
            inner.append([event.start_ns + event.duration_ns, event.name])
    sums = {name: value / len(threads) / options.steps for name, value in classify(times).items()}
    sums["convolutions"] += 1e3 * seconds - sum(sums.values())
    return sums


def profile_theirs(steps: Callable[[], float], options) -> dict[str, float]:
    """Return ms a step by class: the time of PyTorch's operators on the calling threads."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as result:
        steps()
    return classify({event.key: event.self_cpu_time_total / 1e3 / options.steps for event in result.key_averages()})


def settings(net: str, options):
    """Return the plan of a preset's network, trained on 32-pixel images."""
    import dataclasses

    from ddpm_jax.training import PRESETS, DataConfig, LoopConfig, OptimizerConfig, TrainConfig
    from ddpm_jax.training.network import network
    from ddpm_jax.training.step import Plan

    config = TrainConfig(
        data=DataConfig(data="digits"),
        model=dataclasses.replace(PRESETS[net].model, prediction_type="epsilon", dropout=0.0),
        optimizer=OptimizerConfig(optimizer="adamw", weight_decay=1e-6),
        loop=LoopConfig(batch_size=options.batch_size, dtype=options.dtype),
    )
    return Plan(network(config, 32, 3), config)


def ours(net: str, options, form: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a function that does a step of ddpm_jax, and one that waits for it."""
    import jax
    import numpy as np

    from ddpm_jax import init, sharding
    from ddpm_jax.models import cost
    from ddpm_jax.training.step import compiled, create

    if form in FORMS:
        cost.PRODUCTS_SECONDS = float("inf") if form == "ours_plain" else 0.0
        cost.TRAINED_TRANSFORM_SECONDS = 0.0 if form == "ours_transformed" else float("inf")
    plan, mesh = settings(net, options), sharding.data_mesh()
    state = create(plan, init(jax.random.key(0), plan.network).weights, mesh)
    run_step = compiled(plan, state, mesh)
    images = np.random.default_rng(0).integers(0, 256, (options.batch_size, 32, 32, 3), np.uint8)
    images = sharding.place(images, mesh, split=True)

    def step() -> None:
        nonlocal state
        state, _ = run_step(state, images, None)

    return step, lambda: jax.block_until_ready(state)


def theirs(net: str, peer: str, options) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a function that does a step of diffusers, and one that waits for it."""
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

    return step, torch.cuda.synchronize if device == "cuda" else lambda: None


def data_rate(data: str, resolution: int) -> float:
    """Return the images/s of the data pipeline, with random crops and flips."""
    from ddpm_jax.images.source import open_source
    from ddpm_jax.training import DataConfig
    from ddpm_jax.training.data import Batches

    config = DataConfig(data=data, crop="random_resized")
    batches = Batches(open_source(data), config, resolution, batch_size=64, seed=0).own(0, 70)
    for _ in range(10):
        next(batches)
    start = time.perf_counter()
    count = sum(len(batch.images) for batch in batches)
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
