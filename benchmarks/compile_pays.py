"""Measure when longer compilation pays: the constants of `ddpm_jax.models.cost`.

    python benchmarks/compile_pays.py                       # five rounds of all jobs, the constants last
    python benchmarks/compile_pays.py --jobs demo-16-10 --rounds 2

Each round compiles and runs every job in four forms, in processes that take turns: all convolutions plain, or all that
can be transformed so, each at LLVM's usual level and ("1") at level 1. From the differences within a round,

    TRANSFORM_SECONDS = (compile, transformed - plain) / transformed convolutions
    SAVED_A_FLOP      = (run, plain - transformed) / FLOP of these convolutions, as plain ones

The ratios of the forms say whether level 1 pays: `ddpm_jax.compilation` takes it for plain convolutions.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from turns import describe_machine

# net, images, evaluations: the demo, and the networks of benchmarks/versus_diffusers.py
JOBS = ("demo-4-10", "demo-16-10", "cifar10-1-10", "cifar10-4-5", "cifar10-16-2", "cat256-1-1")
FORMS = ("plain", "plain1", "transformed", "transformed1")


def main() -> None:
    """Run the rounds, print the medians and the constants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", nargs="+", default=JOBS, help="NET-IMAGES-EVALUATIONS; some of " + ", ".join(JOBS))
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(*options.worker)))
        return
    print(describe_machine(), flush=True)
    results = {}
    for job in options.jobs:
        rounds = [{form: launch(job, form) for form in FORMS} for _ in range(options.rounds)]
        results[job] = rounds
        report(job, rounds)
        if options.out:
            options.out.write_text(json.dumps({"machine": describe_machine(), "results": results}, indent=1) + "\n")
    for name in constants(rounds):
        values = [constants(rounds)[name] for rounds in results.values()]
        print(f"{name}: median {statistics.median(values):.3g} of {', '.join(f'{value:.3g}' for value in values)}")


def launch(job: str, form: str) -> dict[str, float]:
    """Do one job in its own process."""
    result = subprocess.run([sys.executable, __file__, "--worker", job, form], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{job} {form} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def constants(rounds: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Return the constants of a job: medians of the differences within a round."""

    def difference(what: str, more: str, less: str) -> float:
        return statistics.median(r[more][what] - r[less][what] for r in rounds)

    transformed = rounds[0]["transformed"]
    return {
        "TRANSFORM_SECONDS": difference("compile", "transformed", "plain") / transformed["convolutions"],
        "SAVED_A_FLOP": difference("run", "plain", "transformed") / transformed["flops"],
    }


def report(job: str, rounds: list[dict[str, dict[str, float]]]) -> None:
    """Print a job's medians."""
    for form in FORMS:
        compile_, run = (statistics.median(r[form][name] for r in rounds) for name in ("compile", "run"))
        ratio = statistics.median(r[form]["run"] / r["plain"]["run"] for r in rounds)
        print(f"{job:14s} {form:13s} compile {compile_:6.2f} s   run {run:7.3f} s ({ratio:.2f} of plain)")
    values = constants(rounds)
    print(f"{'':14s} {', '.join(f'{name} {value:.3g}' for name, value in values.items())}", flush=True)


def work(job: str, form: str) -> dict[str, float]:
    """Compile and run in this process."""
    import time

    import jax
    from versus_diffusers import GOOGLE, NETS

    import ddpm_jax
    from ddpm_jax import compilation
    from ddpm_jax.models import cost, winograd
    from ddpm_jax.models.layout import layout

    net, images, evaluations = job.split("-")[0], *map(int, job.split("-")[1:])
    cost.TRANSFORM_SECONDS = 0.0 if form.startswith("transformed") else float("inf")
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
    chosen = [
        convolution
        for convolution in layout(params.config.unet).convolutions
        if winograd.transforms(convolution, images, evaluations)
    ]
    return {
        "compile": compiling,
        "run": min(draw() for _ in range(3)),
        "convolutions": len(chosen),
        "flops": sum(map(cost.flops, chosen)) * images * evaluations,
    }


if __name__ == "__main__":
    main()
