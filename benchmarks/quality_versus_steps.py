"""Measure how far samples of few network evaluations are from the model's own distribution, and from the data.

    python benchmarks/quality_versus_steps.py                            # digits-16, against scikit-learn's digits
    python benchmarks/quality_versus_steps.py --model google/ddpm-cifar10-32 --data train.npz --work cifar

Measured is the energy distance of `energy_distance.py`. The sets: `--samples` images of a sampler, as many images of
1000-step ancestral sampling by another key, and the data. All samplers get the same x_T. What a second ancestral set,
of a quarter of the size, differs by is recorded too: nothing can be told apart below it.

Every sampler runs on its default grid at 20, 10, 5 and 50 evaluations, then the best three at 20 evaluations on every
grid. It goes on where it was stopped: images lie in --work, results in --out. The plot needs matplotlib, the digits
scikit-learn. On CPU every core is a device of its own: 250 images of digits-16 take three quarters of the time.
"""

import argparse
import dataclasses
import json
import os
import platform
import time
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count()}")

import jax
import numpy as np
from energy_distance import BOOTSTRAPS, as_vectors, distances, energy_distance

import ddpm_jax
from ddpm_jax import samplers
from ddpm_jax.files import whole_file, write_json
from ddpm_jax.samplers.grids import SPACINGS

EVALS = (20, 10, 5, 50)
BATCH = 100
HERE = Path(__file__).parent

# name: sampler of the default grid. Fixed variance; "clip" is diffusers' default for DDPM and DDIM.
CANDIDATES = {
    "ddpm": samplers.DDPM(),
    "ddim": samplers.DDIM(),
    "ddim no clip": samplers.DDIM(clip=None),
    "dpmsolver++ 2M": samplers.DPMSolverPP(),
    "dpmsolver++ 2M clip": samplers.DPMSolverPP(clip=1.0),
    "dpmsolver++ 3M": samplers.DPMSolverPP(solver_order=3),
    "dpmsolver++ 3M clip": samplers.DPMSolverPP(solver_order=3, clip=1.0),
    "dpmsolver++ 2S": samplers.DPMSolverPP(singlestep=True),
    "dpmsolver++ 3S": samplers.DPMSolverPP(singlestep=True, solver_order=3),
    "dpmsolver++ 2M SDE": samplers.DPMSolverPP(algorithm_type="sde-dpmsolver++"),
    "dpmsolver 2M": samplers.DPMSolver(),
    "dpmsolver 3M": samplers.DPMSolver(solver_order=3),
    "deis 3": samplers.DEIS(solver_order=3),
    "unipc 2": samplers.UniPC(),
    "unipc 2 clip": samplers.UniPC(clip=1.0),
    "unipc 3": samplers.UniPC(solver_order=3),
    "pndm": samplers.PNDM(),
    "plms": samplers.PNDM(skip_prk_steps=True),
    "euler": samplers.Euler(),
    "euler-a": samplers.EulerAncestral(),
    "heun": samplers.Heun(),
    "kdpm2": samplers.KDPM2(),
    "kdpm2-a": samplers.KDPM2Ancestral(),
    "lms": samplers.LMS(),
    "karras-ve": samplers.KarrasVe(),
}


def main() -> None:
    """Draw missing samples, measure new ones, and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits-16", help="checkpoint")
    parser.add_argument("--data", default="digits", help="'digits', or an .npz/.npy of uint8 images [n, h, w, c]")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--work", type=Path, default=Path("quality-work"), help="folder for the images")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "quality_digits.json")
    parser.add_argument("--plot", type=Path, default=None, help="PNG to draw from the results")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)

    params = ddpm_jax.load(arguments.model)
    data = read_data(arguments.data, params.config.unet.image_size)
    print(f"{len(data)} images of data")
    reference = images_of(params, "ancestral-1", samplers.DDPM(), 1, arguments.samples, arguments.work)
    other = images_of(params, "ancestral-2", samplers.DDPM(), 2, arguments.samples // 4, arguments.work)
    measure = Measure(reference, data)
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": {}}
    results |= {
        **{"model": arguments.model, "data": arguments.data, "samples": arguments.samples},
        **{"python": platform.python_version(), "jax": jax.__version__, "bootstraps": BOOTSTRAPS},
        "two ancestral sets": measure(other),
        "ancestral against data": measure.to_data(reference),
    }

    def run(names: dict[str, samplers.Sampler]) -> None:
        for evals in EVALS:
            for name, sampler in names.items():
                row = f"{name} @ {evals}"
                fitted = with_evals(sampler, evals, params.config.schedule)
                if fitted is None or row in results["rows"]:
                    continue
                began = time.perf_counter()
                images = images_of(params, row, fitted, 0, arguments.samples, arguments.work)
                results["rows"][row] = {"evals": evals, "sampler": repr(fitted), **measure(images)}
                write_json(arguments.out, results)
                energy = results["rows"][row]["model"]
                took = time.perf_counter() - began
                print(f"{row:40s} {energy['distance']:.5f}  {energy['interval']}  {took:.0f} s", flush=True)

    run(CANDIDATES)
    best = sorted(CANDIDATES, key=lambda name: results["rows"][f"{name} @ 20"]["model"]["distance"])[:3]
    print(f"the best three at 20 evaluations: {best}")
    run(
        {
            f"{name}, {grid}": dataclasses.replace(CANDIDATES[name], timestep_spacing=grid)
            for name in best
            for grid in SPACINGS
            if grid not in (CANDIDATES[name].timestep_spacing, "exponential")  # the latter is logsnr
        }
    )
    write_json(arguments.out, results)
    if arguments.plot:
        draw(results, arguments.plot)


def with_evals(sampler: samplers.Sampler, evals: int, schedule) -> samplers.Sampler | None:
    """Return the sampler with the most steps within a number of network evaluations, or None if one step exceeds it."""
    for steps in range(evals, 0, -1):
        fitted = dataclasses.replace(sampler, num_steps=steps)
        if fitted.table(schedule).num_evals <= evals:
            return fitted
    return None


def images_of(params, name: str, sampler: samplers.Sampler, seed: int, count: int, work: Path) -> np.ndarray:
    """Return uint8 images of a sampler, from the work folder or drawn into it."""
    parts = []
    for start in range(0, count, BATCH):
        path = work / f"{name.replace(' ', '_')}-{start:05d}.npy"
        if not path.exists():
            size = min(BATCH, count - start)
            chunks = ddpm_jax.sample_chunks(  # by single steps: one program for all numbers of steps
                params, jax.random.key(seed), size, chunk=1, sampler=sampler, first_index=start
            )
            *_, (_, _, images) = chunks
            with whole_file(path) as partial, open(partial, "wb") as file:
                np.save(file, ddpm_jax.to_uint8(images))
            if sampler.num_steps is None:
                print(f"{name}: {start + size} of {count}", flush=True)
        parts.append(np.load(path))
    return np.concatenate(parts)


def read_data(source: str, size: tuple[int, int]) -> np.ndarray:
    """Return the data as uint8 [n, h, w, c]."""
    if source != "digits":
        loaded = np.load(source)
        return loaded if isinstance(loaded, np.ndarray) else loaded[loaded.files[0]]
    from PIL import Image
    from sklearn.datasets import load_digits

    small = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    large = [Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC) for image in small]
    return np.stack([np.asarray(image) for image in large])[..., None]


class Measure:
    """Energy distances of sets of images to a reference set and to the data."""

    def __init__(self, reference: np.ndarray, data: np.ndarray):
        self.reference, self.data = as_vectors(reference), as_vectors(data)
        self.within_reference = distances(self.reference, self.reference)
        self.within_data = distances(self.data, self.data)

    def __call__(self, images: np.ndarray) -> dict:
        """Return the distances to both, with bootstrap intervals."""
        vectors = as_vectors(images)
        within = distances(vectors, vectors)
        to_reference, to_data = distances(vectors, self.reference), distances(vectors, self.data)
        return {
            "model": energy_distance(within, self.within_reference, to_reference),
            "data": energy_distance(within, self.within_data, to_data),
        }

    def to_data(self, images: np.ndarray) -> dict:
        return self(images)["data"]


def draw(results: dict, path: Path) -> None:
    """Plot distance over evaluations. Named are "fast", DDIM, DDPM, and the five nearest to ancestral sampling at 20.

    The axis is linear below what two sets of the same ancestral sampler differ by, logarithmic above.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = {}
    for row, value in results["rows"].items():
        rows.setdefault(row.split(" @ ")[0], []).append(value)
    two_sets = results["two ancestral sets"]["model"]["interval"]
    at_20 = lambda name: min(value["model"]["distance"] for value in rows[name] if value["evals"] == 20)
    ranked = sorted(rows, key=at_20)
    named = list(dict.fromkeys([*ranked[:5], "dpmsolver++ 3M clip", "ddim", "ddpm"]))
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5.5))
    for axis, target in zip(axes, ("model", "data"), strict=True):
        for name in ranked:
            values = sorted(rows[name], key=lambda value: value["evals"])
            x, y = [value["evals"] for value in values], [value[target]["distance"] for value in values]
            if name not in named:
                axis.plot(x, y, color="0.85", lw=0.7, zorder=1)
                continue
            ends = np.array([value[target]["interval"] for value in values]).T
            y_error = np.maximum([y - ends[0], ends[1] - y], 0)
            shift = 1 + 0.02 * (named.index(name) - len(named) / 2)  # side by side, not on top of one another
            axis.errorbar(np.multiply(x, shift), y, y_error, label=name, lw=1.5, capsize=2, zorder=2)
        if target == "model":
            axis.axhspan(*two_sets, color="0.93", zorder=0, label="a quarter as many ancestral samples")
        else:
            axis.axhline(
                results["ancestral against data"]["distance"], color="black", ls=":", label="ancestral, 1000 steps"
            )
        axis.set_yscale("symlog", linthresh=two_sets[1])
        axis.set_ylim(bottom=-two_sets[1])
        axis.set(xscale="log", xlabel="evaluations of the network", xticks=EVALS, xticklabels=EVALS)
        axis.minorticks_off()
        axis.set_title(f"energy distance to {'1000-step ancestral samples' if target == 'model' else 'the data'}")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
