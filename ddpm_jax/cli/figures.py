"""`ddpm-jax figure`: the figures of the DDPM paper for any model."""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from tyro.conf import Positional, UseAppendAction, arg

from ddpm_jax import pixels, progress
from ddpm_jax.cli.arguments import at_size, choose_sampler, class_of
from ddpm_jax.cli.compile_cache import keep_compiled
from ddpm_jax.extras import need
from ddpm_jax.files import check_local
from ddpm_jax.random_keys import key_from_seed
from ddpm_jax.validation import check

_SHOWN = 8  # rows of the memorisation report
_MOST_BYTES = 2**31  # of the images of a set that are compared

Name = Literal[
    "progressive",
    "shared-latents",
    "interpolation",
    "coarse-to-fine",
    "quality",
    "bound",
    "neighbours",
    "memorisation",
]


class _Figure(NamedTuple):
    """A figure of the command.

    Attributes:
        draw: draws a `_Task` into a PNG, and prints what it shows.
        options: those that act on it, beside the ones that act on all.
    """

    draw: Callable[["_Task", Path], Any]
    options: tuple[str, ...]


class _Task(NamedTuple):
    """What a figure is made of: the opened model, the options that act on some figures, and what its PNG says of it."""

    params: Any
    sampler: Any
    key: Any
    class_label: int | None
    options: SimpleNamespace
    record: dict[str, Any]


def figure(
    name: Positional[Name],
    model: Positional[str | None] = None,
    out: Path | None = None,
    data: str | None = None,
    held_out: str | None = None,
    num_images: int | None = None,
    num_frames: int = 10,
    num_samples: int = 3,
    timesteps: tuple[float, ...] | None = None,
    num_neighbours: int = 8,
    features: str = "pixels",
    metric: Literal["energy", "fid"] = "energy",
    level: float = 0.01,
    batch_size: int = 16,
    seed: int = 0,
    sampler: str | None = None,
    steps: int | None = None,
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KNOB=VALUE")] = (),
    class_label: str | None = None,
    image_size: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    ema: bool | None = None,
    force: bool = False,
    compile_cache: str | None = None,
) -> None:
    """Draw a figure of the DDPM paper (Ho et al. 2020) for a model, as a PNG.

    Args:
        name: progressive, x_0_hat on the way (figures 6, 14); shared-latents, samples that go on from one x_t (7);
            interpolation, mixtures of noisy images (8); coarse-to-fine, mixtures at several levels of noise (9);
            quality, a metric of x_0_hat after each of some steps (10); bound, the terms of the variational bound;
            neighbours, samples beside the nearest training images (12, 15); memorisation, the samples that are most
            like one training image, and which are flagged as copies.
        model: a hub id or a folder; the package's demo if left out.
        out: the PNG to write, NAME.png if left out.
        data: a folder, an .npz, an .npy, or `digits`: the training images; the real ones, of `quality` and `bound`; or
            those that are mixed, the first half with the second.
        held_out: real images that the model was not trained on.
        num_images: rows of the figure (pairs, of `interpolation`), samples that are looked at (`memorisation`) or
            measured (`quality`), or images whose bound is taken.
        num_frames: columns of `progressive`, points of `quality`.
        num_samples: that go on from each x_t.
        timesteps: where images are noisy; the nearest ones that the sampler visits are taken.
        num_neighbours: of each sample.
        features: the extractor whose features are compared.
        metric: the distance of x_0_hat to the data: the energy distance or the FID of the features.
        level: the highest rate at which held-out images are flagged.
        batch_size: samples per run of the program.
        seed: of the random key.
        sampler: a name in ddpm_jax.samplers.SAMPLERS; the model's own if left out.
        steps: steps of the sampler.
        set: any further knob of the sampler.
        class_label: name or number of the class, for class-conditional models.
        image_size: N or HxW pixels, if not the model's own size.
        dtype: compute dtype of convolutions and dense layers.
        revision: branch, tag or commit on the hub.
        variant: fp16 takes the weights stored under that name.
        subfolder: of the folder or repository.
        ema: True takes unet_ema, False unet.
        force: replace the file.
        compile_cache: folder that keeps compiled programs for the next run; `none` keeps none. The user's cache folder
            if left out.
    """
    options = {option: value for option, value in locals().items() if option in _OPTIONS}
    _check_options(name, options)
    out = Path(f"{name}.png") if out is None else out
    check_local(out)
    check(out.suffix.lower() == ".png", f"`out` is {out}; a figure is a PNG: name a file that ends with .png.")
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists already; choose another --out, or --force.")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"--out {out}: there is no folder {out.parent}. Make it first.")
    keep_compiled(compile_cache)

    from ddpm_jax.checkpoint.source import locate, read

    where = locate(model, revision=revision, variant=variant, subfolder=subfolder, ema=ema)
    params = read(where, dtype=dtype)
    params = at_size(params, image_size)
    pixels.check_channels(params.config.unet.in_channels)
    chosen = choose_sampler(sampler, steps, set, params.config)
    label, _ = class_of(class_label, params.config)
    acts = "sampler" in _FIGURES[name].options
    print(f"{name}{f' by {chosen.text}' * acts}, seed {seed}.")
    used = {option: options[option] for option in _FIGURES[name].options if option not in _OF_SAMPLER}
    record = {
        "figure": name,
        "model": where.source.get("model"),
        "sampler": chosen.text if acts else None,
        "seed": seed,
        "class_label": label,
    } | used
    task = _Task(params, chosen.sampler, key_from_seed(seed), label, SimpleNamespace(**options), record)
    _FIGURES[name].draw(task, out)
    print(f"{out} is written.")


def _write(task: _Task, out: Path, picture: np.ndarray) -> None:
    from ddpm_jax.images.image_set import write_png

    write_png(pixels.picture(picture), out, task.record)


def _progressive(task: _Task, out: Path) -> None:
    from ddpm_jax.evaluation import pictures
    from ddpm_jax.sampling import sample_path

    count = task.options.num_images or 4
    path = sample_path(
        *(task.params, task.key, count),
        num_frames=task.options.num_frames,
        sampler=task.sampler,
        class_labels=task.class_label,
    )
    _write(task, out, pictures.progressive(path))


def _shared_latents(task: _Task, out: Path) -> None:
    from ddpm_jax.evaluation import figures, pictures

    shared = figures.shared_latents(
        *(task.params, task.key, task.options.num_samples),
        timesteps=task.options.timesteps,
        sampler=task.sampler,
        class_labels=task.class_label,
    )
    _write(task, out, pictures.shared_latents(shared, task.params.config.schedule.data_range))


def _interpolation(task: _Task, out: Path) -> None:
    if task.options.timesteps is not None:
        check(len(task.options.timesteps) == 1, "`timesteps` of this figure is one; `coarse-to-fine` takes several.")
    count = task.options.num_images or 3
    images = _images(task, "data", 2 * count, least=2 * count)
    _mixtures(task, out, images[:count], images[count:], task.options.timesteps)


def _coarse_to_fine(task: _Task, out: Path) -> None:
    from ddpm_jax.evaluation import figures
    from ddpm_jax.sampling import table_of

    images, timesteps = _images(task, "data", 2, least=2), task.options.timesteps
    if timesteps is None:
        table = table_of(task.sampler, task.params.config)
        timesteps = table.t[figures.even_rows(table, min(8, int(table.ends_step.sum())))].tolist()
    _mixtures(task, out, images[:1], images[1:], timesteps)


def _mixtures(task: _Task, out: Path, first: np.ndarray, second: np.ndarray, timesteps: Any) -> None:
    from ddpm_jax.evaluation import figures, pictures

    first, second = (images.astype(np.float32) / 255 for images in (first, second))
    made = figures.interpolate(
        *(task.params, task.key, first, second),
        timesteps=timesteps,
        sampler=task.sampler,
        class_labels=task.class_label,
    )
    _write(task, out, pictures.interpolations(made, first, second))


def _neighbours(task: _Task, out: Path) -> None:
    from ddpm_jax.evaluation import pictures
    from ddpm_jax.evaluation.copies import features_of
    from ddpm_jax.evaluation.features import extractor
    from ddpm_jax.evaluation.neighbours import nearest_neighbours

    made_by, k = extractor(task.options.features), task.options.num_neighbours
    training = _images(task, "data", None, least=k)
    images = _samples(task, task.options.num_images or 6)
    found = nearest_neighbours(features_of(images, made_by), features_of(training, made_by), k)
    print(f"The nearest by {made_by.name} are {', '.join(f'{d:.4g}' for d in found.distances[:, 0])} away.")
    _write(task, out, pictures.beside_neighbours(images, training, found.indices))


def _memorisation(task: _Task, out: Path) -> None:
    from ddpm_jax.evaluation import copies, pictures
    from ddpm_jax.evaluation.features import extractor

    name = task.options.features
    made_by = None if name == "pixels" else extractor(name)  # bytes themselves: whole numbers, whose sums are exact
    training = _images(task, "data", None, least=copies.NEIGHBOURS + 1)
    held_out = _images(task, "held_out", None, least=1)
    copies.check_level(len(held_out), task.options.level)
    images = _samples(task, task.options.num_images or 128)
    scores, of_held_out = (
        _scores(some, training, made_by, what) for some, what in ((images, "samples"), (held_out, "held-out images"))
    )
    report = copies.memorisation(scores, of_held_out, level=task.options.level)
    print(copies.describe(report))
    lowest = np.argsort(scores.scores, kind="stable")[:_SHOWN]
    titles = [f"{i}: {scores.scores[i]:.2f}{' flagged' * (i in report.flagged)}" for i in lowest.tolist()]
    _write(task, out, pictures.beside_neighbours(images[lowest], training, scores.nearest[lowest, None], titles))


def _quality(task: _Task, out: Path) -> None:
    from ddpm_jax import plotting
    from ddpm_jax.evaluation import figures, metrics
    from ddpm_jax.evaluation.copies import features_of
    from ddpm_jax.evaluation.features import extractor

    need("matplotlib", "plot", "Drawing curves")
    made_by, count = extractor(task.options.features), task.options.num_images or 256
    real = features_of(_images(task, "data", None, least=2), made_by)
    measure = {"energy": metrics.energy_distance, "fid": metrics.fid}[task.options.metric]
    with progress.bar(count, unit="samples", leave=False) as bar:
        found = figures.quality_over_steps(
            *(task.params, task.key, count),
            extractor=made_by,
            metric=lambda fake: measure(real, fake),
            batch_size=task.options.batch_size,
            num_frames=task.options.num_frames,
            sampler=task.sampler,
            class_labels=task.class_label,
            watch=progress.follow(bar),
        )
    points = list(zip(found.steps.tolist(), found.values.tolist(), strict=True))
    label = {"energy": "energy distance", "fid": "FID"}[task.options.metric]
    print(f"{label}: {', '.join(f'{value:.4g} after {steps}' for steps, value in points)} steps.")
    lines = {f"{made_by.name}, {count} images": points}
    log_y = min(found.values) > 0  # an unbiased distance may be negative
    plotting.panels([plotting.Panel(lines, "steps done", f"{label} of x_0_hat", log_y=log_y)], out)


def _bound(task: _Task, out: Path) -> None:
    from ddpm_jax import plotting
    from ddpm_jax.evaluation import figures
    from ddpm_jax.likelihood.bound import bounds_of

    need("matplotlib", "plot", "Drawing curves")
    images = _images(task, "data", task.options.num_images or 16, least=1)
    size, found = min(task.options.batch_size, len(images)), []
    with progress.bar(len(images), unit="images", leave=False) as bar:
        for bound in bounds_of(task.params, task.key, images, task.class_label, batch_size=size):
            found.append(bound)
            bar.update(len(bound.total))
    total, terms = (np.concatenate([getattr(bound, name) for bound in found]) for name in ("total", "terms"))
    print(f"{total.mean():.4f} bits/dim, of which {terms[:, 1:].sum(1).mean():.4f} are rate.")
    plotting.curves(figures.bound_curves(terms), out, x_label="t", y_label="bits/dim of L_t")


def _scores(images: np.ndarray, training: np.ndarray, made_by: Any, what: str) -> Any:
    from ddpm_jax.evaluation.copies import copy_scores

    with progress.bar(len(images), unit=what, leave=False) as bar:
        return copy_scores(images, training, extractor=made_by, watch=progress.follow(bar))


_OF_SAMPLER = ("sampler", "steps", "set")
_FIGURES = {
    "progressive": _Figure(_progressive, ("num_images", "num_frames", *_OF_SAMPLER)),
    "shared-latents": _Figure(_shared_latents, ("num_samples", "timesteps", *_OF_SAMPLER)),
    "interpolation": _Figure(_interpolation, ("data", "num_images", "timesteps", *_OF_SAMPLER)),
    "coarse-to-fine": _Figure(_coarse_to_fine, ("data", "timesteps", *_OF_SAMPLER)),
    "quality": _Figure(
        _quality, ("data", "num_images", "num_frames", "features", "metric", "batch_size", *_OF_SAMPLER)
    ),
    "bound": _Figure(_bound, ("data", "num_images", "batch_size")),
    "neighbours": _Figure(
        _neighbours, ("data", "num_images", "num_neighbours", "features", "batch_size", *_OF_SAMPLER)
    ),
    "memorisation": _Figure(
        _memorisation, ("data", "held_out", "num_images", "features", "level", "batch_size", *_OF_SAMPLER)
    ),
}
_OPTIONS = {option for made in _FIGURES.values() for option in made.options}
_NEEDED = ("data", "held_out")  # by the figures that they act on


def _check_options(name: str, options: dict[str, Any]) -> None:
    """Refuse options that do nothing in this figure, those that it lacks, and numbers below 1."""
    parameters = inspect.signature(figure).parameters
    for option, value in options.items():
        acts = option in _FIGURES[name].options
        takers = ", ".join(other for other, made in _FIGURES.items() if option in made.options)
        check(
            acts or value == parameters[option].default,
            f"`{option}` acts on {takers}; in {name} {value!r} would do nothing: leave it out.",
        )
        check(
            not (acts and option in _NEEDED and value is None),
            f"`{option}` is missing, the images that {name} is about: a folder, an .npz, an .npy, or digits.",
        )
        counts = option.startswith("num_") or option == "batch_size"
        check(not counts or value is None or value >= 1, f"`{option}` must be at least 1, not {value}.")


def _images(task: _Task, option: str, most: int | None, *, least: int) -> np.ndarray:
    """Return images of a set as the model sees them, np.uint8 [n, h, w, c], and print what was opened."""
    from ddpm_jax.images.source import centred, open_source

    unet = task.params.config.unet
    (height, width), channels = unet.check_size(), unet.in_channels
    check(
        height == width,
        f"The model's images are {height} x {width} pixels; the images of `{option}` are cut to squares. Choose a "
        "square `image_size`.",
    )
    source = open_source(getattr(task.options, option)).fitting(channels)
    check(
        source.channels == channels,
        f"`{option}` has images of {source.channels} channels, the model {channels}: convert the images first.",
    )
    check(
        len(source) >= least,
        f"`{option}` {source.name} has {len(source)} images; this figure needs {least} or more. Name a larger set.",
    )
    taken = max(_MOST_BYTES // (height * width * channels), least) if most is None else most
    print(f"{source.describe()}{f' {taken} of them are taken.' * (taken < len(source))}")
    images, _ = centred(source, height, taken)
    return images


def _samples(task: _Task, count: int) -> np.ndarray:
    """Return the first images of the key in bytes."""
    from ddpm_jax.sampling import sample

    size = min(task.options.batch_size, count)
    batches = []
    with progress.bar(count, unit="samples", leave=False) as bar:
        for first in range(0, count, size):
            images = sample(
                *(task.params, task.key, size),
                sampler=task.sampler,
                class_labels=task.class_label,
                first_index=first,
                expected_calls=-(-count // size),
            )
            batches.append(pixels.to_uint8(images))
            bar.update(min(size, count - first))
    return np.concatenate(batches)[:count]
