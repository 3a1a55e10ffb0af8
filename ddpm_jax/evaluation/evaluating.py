"""Evaluate a model or a set of images against real ones: every metric, with a record by which it can be repeated.

What is done lies below one folder, so that an evaluation that was interrupted goes on where it ended:

    evaluation.json   the settings; others are refused
    samples/          the drawn images
    features/, reference/   features of both sides, as `gather` keeps them
    likelihood/       the batches whose likelihood is computed
    progress.json     the metrics that are done
    report.json, report.html
"""

import contextlib
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from ddpm_jax import sharding
from ddpm_jax.evaluation import page, scores
from ddpm_jax.evaluation.features import Extractor
from ddpm_jax.evaluation.gathering import gather, open_images
from ddpm_jax.evaluation.job import Job, said_of
from ddpm_jax.evaluation.likelihoods import likelihood_of
from ddpm_jax.evaluation.reference import FeatureSet, check_comparable
from ddpm_jax.evaluation.report import REPORT, content_of_array, environment, write_report
from ddpm_jax.evaluation.subjects import Drawn
from ddpm_jax.files import check_local, read_json, whole_file, write_json
from ddpm_jax.images.draw_set import await_file
from ddpm_jax.images.source import Source
from ddpm_jax.samplers.registry import describe
from ddpm_jax.types import Number
from ddpm_jax.validation import check, differences

PAGE = "report.html"
_SETTINGS, _PROGRESS = "evaluation.json", "progress.json"
_SAMPLES, _FEATURES, _REFERENCE, _LIKELIHOOD = "samples", "features", "reference", "likelihood"  # folders

Watch = Callable[[str, Number, Number], None]  # told a stage, how much of it is done, and how much there is


def unwatched(stage: str, done: Number, total: Number) -> None:
    """Watch nothing."""


def evaluate(
    images: Drawn | str | Path,
    reference: str | Path,
    out: str | Path,
    *,
    features: str | Extractor = "pixels",
    weights: str | Path | None = None,
    resolution: int | None = None,
    channels: int | None = None,
    background: str | None = None,
    skip_broken: bool = False,
    protocol: str | None = None,
    num_resamples: int = 200,
    level: Number = 0.95,
    bits_per_dim: int = 0,
    flow: bool = False,
    force: bool = False,
    watch: Watch = unwatched,
) -> dict[str, Any] | None:
    """Compute all metrics of images against real ones, and write report.json and report.html.

    An evaluation that was interrupted goes on when it is called again with equal arguments. In several processes all
    call it alike: all draw, and the first one does the rest.

    Args:
        images: a `Drawn`, whose set is drawn; or images as `open_images` takes them.
        reference: real images, likewise; or an .npz of statistics, of which only the FID is computed unless it keeps
            features.
        out: the folder.
        features: the name of an extractor, or an extractor. "pixels" needs no download; papers use
            "inception-2048/torch-fidelity" and its kind.
        weights: the file of the extractor's weights.
        resolution: side to which the largest square in the middle of each image is brought, on both sides. None: that
            of the drawn images if they are square; images that are read stay as they are.
        channels, background, skip_broken: of `open_images`, for all images that are read.
        protocol: of `read_statistics`, for statistics of other programs.
        num_resamples: bootstrap samples of each interval; 0 for no intervals. With 50,000 images and 2048 features the
            FID's take hours on a CPU.
        level: of the intervals.
        bits_per_dim: of how many images of the reference the bound on the likelihood is computed, in bits/dim, evenly
            spaced in their order and as large as the model's; 0 for none. Every image evaluates the network T times.
        flow: also the likelihood of these images by the probability flow; needs the extra `eval`.
        force: replace the evaluation in the folder.
        watch: called with a stage, how much of it is done, and how much there is.

    Returns:
        The report, as `read_report` returns it; None in processes other than the first.

    Raises:
        FileExistsError: the folder holds this evaluation already, or something else.
        ValueError: it holds one with other settings (they are named); features of different protocols; images that
            cannot be read, or that have features of several lengths; NaN among the features.
        FileNotFoundError: there are no such images, statistics or weights.

    Warns:
        UserWarning: there are too few images for the FID's covariance; the sizes of the images differ. The report holds
            these warnings too.

    Example:
        >>> import tempfile
        >>> report = evaluate("digits", "digits", tempfile.mkdtemp(), num_resamples=0)
        >>> report["results"]["metrics"]["precision"]["value"], report["results"]["images"]["count"]
        (1.0, 1797)
    """
    job = Job(
        images,
        reference,
        features=features,
        weights=weights,
        resolution=resolution,
        channels=channels,
        background=background,
        skip_broken=skip_broken,
        protocol=protocol,
        num_resamples=num_resamples,
        level=level,
        bits_per_dim=bits_per_dim,
        flow=flow,
    )
    return run(job, out, force=force, watch=watch)


def run(job: Job, out: str | Path, *, force: bool = False, watch: Watch = unwatched) -> dict[str, Any] | None:
    """Do what `evaluate` does, of arguments that are opened.

    Args:
        job: the arguments.
        out, force, watch: as in `evaluate`.
    """
    check_local(out)
    out = Path(out).expanduser()
    with sharding.held(out, "evaluation"):
        lead = jax.process_index() == 0
        settings, inputs = job.settings(), job.inputs()
        _check_folder(out, settings | inputs, force)
        sharding.wait_for_all("all have looked into the folder")
        if lead:
            if force:
                _clear(out)
            write_json(out / _SETTINGS, settings | inputs)
        sharding.wait_for_all("the evaluation has begun")
        kept = _Kept(out / _PROGRESS)
        if isinstance(job.images, Drawn):
            count = job.images.count
            with kept.timed("drawing"):
                job.images.draw(out / _SAMPLES, lambda done: watch("drawing", done, count))
        if not lead:
            await_file(out / REPORT, math.inf)  # the first process ends this one too if it fails
            return None
        return _report(job, {"settings": settings, "inputs": inputs}, out, kept, watch)


def _report(job: Job, record: dict[str, Any], out: Path, kept: "_Kept", watch: Watch) -> dict[str, Any]:
    """Take the features, compute what is not done, and write the report."""
    images = open_images(str(out / _SAMPLES)) if isinstance(job.images, Drawn) else job.images
    real, fake = _feature_sets(job, images, out, kept, watch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_comparable(real, fake)
    found, lacking, said = _metrics(job, real, fake, kept, watch)
    said = list(dict.fromkeys([*(_in_own_words(str(warning.message)) for warning in caught), *said]))
    likelihood = _likelihood(job, out, kept, watch)
    for words in said:
        warnings.warn(words, stacklevel=4)
    report = {
        **record,
        "protocol": _protocol(job, real, fake),
        "results": {
            "metrics": found,
            "not_computed": lacking,
            "likelihood": likelihood,
            "warnings": said,
            "images": _of_side(fake),
            "reference": _of_side(real),
        },
        "environment": environment(),
        "seconds": kept.seconds,
    }
    pictures = page.pictures(images, job.reference if isinstance(job.reference, Source) else None, job.resolution)
    with whole_file(out / PAGE) as partial:
        partial.write_text(page.html(report, pictures), encoding="utf-8")
    write_report(out / REPORT, report)
    return report


def _metrics(
    job: Job, real: FeatureSet, fake: FeatureSet, kept: "_Kept", watch: Watch
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Return all scores, why there are not more, and what the metrics warned of."""
    found, lacking, said = {}, {}, []
    for name in scores.METRICS:
        reason = scores.why_not(name, real, fake)
        if reason:
            lacking[name] = reason
            continue
        if name not in kept.metrics:
            with kept.timed(name):
                values, words = scores.score(
                    name,
                    real,
                    fake,
                    num_resamples=job.num_resamples,
                    level=job.level,
                    watch=lambda share, name=name: watch(name, share, 1.0),
                )
            kept.add(name, {part: value._asdict() for part, value in values.items()}, list(map(_in_own_words, words)))
        found |= kept.metrics[name]["scores"]
        said += kept.metrics[name]["warnings"]
    return found, lacking, said


def _in_own_words(words: str) -> str:
    """Return a metric's warning with the arguments of `evaluate` for its own."""
    return words.replace("`real`", "`reference`").replace("`fake`", "`images`")


def _likelihood(job: Job, out: Path, kept: "_Kept", watch: Watch) -> dict[str, Any] | None:
    """Return the likelihood of images of the reference, if it was asked for."""
    drawn, images, count = job.images, job.reference, job.bits_per_dim
    if not (count and isinstance(drawn, Drawn) and isinstance(images, Source)):
        return None
    with kept.timed("likelihood"), said_of("reference"):
        return likelihood_of(
            drawn.recipe,
            images,
            count,
            batch_size=min(drawn.batch_size, count),
            folder=out / _LIKELIHOOD,
            flow=job.flow,
            watch=lambda done: watch("likelihood", done, count),
        )


def _feature_sets(job: Job, images: Source, out: Path, kept: "_Kept", watch: Watch) -> tuple[FeatureSet, FeatureSet]:
    """Return the features of the reference and of the images."""

    def gathered(images: Source, folder: str, stage: str) -> FeatureSet:
        show = lambda done: watch(stage, done, len(images))
        with kept.timed(stage):
            return gather(images, job.extractor, resolution=job.resolution, folder=out / folder, watch=show)

    if isinstance(job.reference, FeatureSet):
        real = job.reference
    else:
        with said_of("reference"):
            real = gathered(job.reference, _REFERENCE, "features of the reference")
    return real, gathered(images, _FEATURES, "features of the images")


def _protocol(job: Job, real: FeatureSet, fake: FeatureSet) -> dict[str, Any]:
    """Say how the numbers were made, for readers."""
    drawn = None
    if isinstance(job.images, Drawn):
        recipe = job.images.recipe
        drawn = {
            "model": job.images.origin.get("source") or "weights in memory",
            "revision": job.images.origin.get("revision"),
            "weights": recipe.settings()["weights"],
            "sampler": describe(recipe.sampler),
            "evaluations": recipe.num_evals,
            "seed": recipe.seed,
            "class_label": recipe.class_label,
            "class_name": recipe.class_name,
            "guidance_scale": recipe.guidance_scale,
            "rounding": "to 256 levels, halves to even",
            "dtype": recipe.params.config.unet.dtype,
        }
    return {
        "drawn": drawn,
        "images": job.names["images"] if drawn is None else None,
        "reference": job.names["reference"],
        "features": fake.protocol,
        "num_images": fake.statistics.count,
        "num_reference": real.statistics.count,
        "num_features": fake.statistics.dim,
        "resolution": job.resolution,
        "sizes": fake.note.get("sizes"),
        "sizes_of_reference": real.note.get("sizes"),
    }


def _of_side(features: FeatureSet) -> dict[str, Any]:
    """Return what a repetition must find of a set: its number of images, and hashes of their features."""
    arrays = {"features": features.features, "logits": features.logits, "mean": features.statistics.mean}
    hashes = {name: content_of_array(array) for name, array in arrays.items() if array is not None}
    return {"count": features.statistics.count, **hashes}


class _Kept:
    """What is done of an evaluation, in a file."""

    def __init__(self, path: Path):
        there = read_json(path) if path.exists() else {}
        self.path, self.metrics, self.seconds = path, there.get("metrics", {}), there.get("seconds", {})

    def add(self, name: str, values: dict[str, Any], words: list[str]) -> None:
        """Keep the scores of a metric, and what it warned of."""
        self.metrics[name] = {"scores": values, "warnings": words}
        self._write()

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to those of a stage, unless it is interrupted."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)
        if jax.process_index() == 0:
            self._write()

    def _write(self) -> None:
        write_json(self.path, {"metrics": self.metrics, "seconds": self.seconds})


def _check_folder(out: Path, record: dict[str, Any], force: bool) -> None:
    """Refuse a folder that holds something else, or another evaluation, or this one with its report."""
    path = out / _SETTINGS
    if not path.exists():
        others = [place.name for place in out.iterdir() if not place.name.startswith(".")] if out.exists() else []
        if others:
            raise FileExistsError(
                f"`out` {out} holds {others[0]} but no {_SETTINGS}, so it is no folder of an evaluation. Choose "
                "another one."
            )
        return
    if force:
        return
    changed = differences(read_json(path), record)
    check(
        not changed,
        f"`out` {out} holds an evaluation with other settings: {'; '.join(changed)}. Choose another folder, or "
        "replace it (`force`).",
    )
    if (out / REPORT).exists():
        raise FileExistsError(
            f"`out` {out} holds this evaluation already: read its {REPORT}, choose another folder, or evaluate "
            "again (`force`)."
        )


def _clear(out: Path) -> None:
    for name in (REPORT, PAGE, _PROGRESS, _SAMPLES, _FEATURES, _REFERENCE, _LIKELIHOOD):
        place = out / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
