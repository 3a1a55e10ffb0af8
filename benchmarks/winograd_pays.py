"""When Winograd's convolutions pay: what they save in a run, and what compiling them takes.

    python benchmarks/winograd_pays.py                  # five rounds, the constants of ddpm_jax.models.winograd last

Each round compiles and runs every net twice, in processes that take turns: all convolutions plain, and all that can be
transformed so. From that, for each net,

    COMPILE_SECONDS = (compile and trace, transformed - plain) / transformed convolutions
    SECONDS_SAVED   = (run, plain - transformed) / (FLOP of these convolutions, as plain ones, in the run)

and the optimisation level of XLA at which each form is compiled: "plain1" is level 1.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from turns import describe_machine

# net, images, evaluations: the demo, and the networks of benchmarks/versus_diffusers.py
JOBS = (("demo", 4, 10), ("demo", 16, 10), ("cifar10", 1, 5), ("cifar10", 4, 5), ("cifar10", 16, 2), ("cat256", 1, 1))
FORMS = ("plain", "plain1", "transformed", "transformed1")


def main() -> None:
    """Run the rounds, print the medians and the constants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        net, form, images, evaluations = options.worker
        print(json.dumps(work(net, form, int(images), int(evaluations))))
        return
    print(describe_machine(), flush=True)
    results = {}
    for job in JOBS:
        rounds = [{form: launch(job, form) for form in FORMS} for _ in range(options.rounds)]
        results["-".join(map(str, job))] = rounds
        report(job, rounds)
        if options.out:
            options.out.write_text(json.dumps({"machine": describe_machine(), "results": results}, indent=1) + "\n")
    for name in ("compile_seconds", "seconds_saved"):
        values = [constants(rounds)[name] for rounds in results.values()]
        print(f"{name}: median {statistics.median(values):.3g} of {', '.join(f'{value:.3g}' for value in values)}")


def launch(job: tuple[str, int, int], form: str) -> dict[str, float]:
    """Do one job in a process of its own."""
    net, images, evaluations = job
    command = [sys.executable, __file__, "--worker", net, form, str(images), str(evaluations)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{job} {form} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def constants(rounds: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Return the two constants that a job gives, medians of the differences within a round."""
    compiling = [r["transformed"]["compile"] - r["plain1"]["compile"] for r in rounds]
    running = [r["plain1"]["run"] - r["transformed"]["run"] for r in rounds]
    facts = rounds[0]["transformed"]
    return {
        "compile_seconds": statistics.median(compiling) / facts["convolutions"],
        "seconds_saved": statistics.median(running) / facts["flops"],
    }


def report(job: tuple[str, int, int], rounds: list[dict[str, dict[str, float]]]) -> None:
    """Print a job's medians."""
    for form in FORMS:
        compile_, run = (statistics.median(r[form][name] for r in rounds) for name in ("compile", "run"))
        ratio = statistics.median(r[form]["run"] / r["plain"]["run"] for r in rounds)
        print(f"{str(job):22s} {form:13s} compile {compile_:6.2f} s   run {run:7.3f} s ({ratio:.2f} of plain)")
    values = constants(rounds)
    print(f"{'':22s} {', '.join(f'{name} {value:.3g}' for name, value in values.items())}", flush=True)


def work(net: str, form: str, images: int, evaluations: int) -> dict[str, float]:
    """Compile and run, in this process."""
    import time

    import jax
    from versus_diffusers import GOOGLE, NETS

    import ddpm_jax
    from ddpm_jax import compilation, sampling
    from ddpm_jax.models import winograd

    winograd.COMPILE_SECONDS = 0.0 if form.startswith("transformed") else float("inf")
    given = compilation.options
    compilation.options = lambda *, quick=False: given(quick=form.endswith("1"))
    if net == "demo":
        params = ddpm_jax.load()
    else:
        config = ddpm_jax.Config(ddpm_jax.UNetConfig(**(NETS[net] | GOOGLE)))
        params = ddpm_jax.init(jax.random.key(0), config, scheme="torch")
    heard = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: heard.append(seconds) if event.startswith("/jax/core/compile/") else None
    )

    def draw() -> float:
        start = time.perf_counter()
        sampler = ddpm_jax.samplers.DDIM(num_steps=evaluations)
        ddpm_jax.sample(params, jax.random.key(0), images, sampler=sampler).block_until_ready()
        return time.perf_counter() - start

    draw()
    compiling = sum(heard)
    job = sampling._prepare(params, jax.random.key(0), images, ddpm_jax.samplers.DDIM(num_steps=evaluations))
    paths = {
        path[:-2]
        for path, _ in jax.tree_util.tree_flatten_with_path(job.weights)[0]
        if any(getattr(entry, "key", None) == winograd.NAME for entry in path)
    }
    flops = 0
    for convolution in winograd.layout(params.config.unet).convolutions:
        if any(tuple(entry.key for entry in path) == convolution.path for path in paths):
            height, width, channels = convolution.in_shape
            flops += 18 * channels * convolution.features * height * width
    return {
        "compile": compiling,
        "run": min(draw() for _ in range(3)),
        "convolutions": len(paths),
        "flops": flops * images * evaluations,
    }


if __name__ == "__main__":
    main()
