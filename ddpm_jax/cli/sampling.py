"""`ddpm-jax sample`: images, one batch or a set of fifty thousand."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from ddpm_jax import pixels, progress, sharding
from ddpm_jax.cli.arguments import (
    Chosen,
    at_size,
    check_output,
    choose_sampler,
    class_of,
    join,
    named_sampler,
    other_meaning,
)
from ddpm_jax.cli.compile_cache import keep_compiled
from ddpm_jax.files import SET_FILE, read_json
from ddpm_jax.images.draw_set import Recipe, draw_image, draw_set, missing
from ddpm_jax.images.image_set import ImageSet, read_png, refuse_others, write_png
from ddpm_jax.random_keys import check_seed
from ddpm_jax.samplers.registry import describe

_BAR = "{percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}, {rate_noinv_fmt}]"


def sample(
    model: Positional[str | None] = None,
    batch_size: int = 16,
    num_images: int | None = None,
    seed: int = 0,
    sampler: str | None = None,
    fast: bool = False,
    steps: int | None = None,
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KNOB=VALUE")] = (),
    class_label: str | None = None,
    guidance_scale: float | None = None,
    null_class: int | None = None,
    image_size: str | None = None,
    index: int | None = None,
    out: Path = Path("samples"),
    format: Literal["png", "npz"] = "png",
    gif: bool = False,
    dtype: Literal["float32", "bfloat16"] = "float32",
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    ema: bool | None = None,
    force: bool = False,
    compile_cache: str | None = None,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    distributed: bool = False,
    verbose: bool = False,
) -> None:
    """Draw images from a model: PNGs or one .npz, a grid and samples.json. A set that was interrupted is continued.

    Args:
        model: a hub id (google/ddpm-cat-256) or a folder; the package's demo if left out.
        batch_size: images per run of the program.
        num_images: images in all; one batch if left out.
        seed: of the random key, from 0 to 2^32 - 1; image i depends on (seed, i) alone.
        sampler: a name in ddpm_jax.samplers.SAMPLERS; the one that the checkpoint's scheduler config names if left out.
        fast: DPM-Solver++ of order 3, clipped, with 20 evaluations; the same as --sampler fast.
        steps: steps of the sampler; if left out its own number, at most the timesteps of the model's schedule.
        set: any further knob of the sampler, as eta=0.5, clip=none or timesteps=900,500,0; may be repeated.
        class_label: name or number of the class, for class-conditional models; a name wins over a number.
        guidance_scale: of classifier-free guidance, for models trained with dropped labels; 1 is none.
        null_class: number of the class that stands for none, if the model does not name it.
        image_size: N or HxW pixels, if not the model's own size.
        index: draw only this image of the set, into a file of its own.
        out: the folder to write into; a set that was begun there with the same settings is continued.
        format: numbered PNGs, or images.npz (uint8, arr_0).
        gif: also write sampling.gif, the first batch on its way from noise.
        dtype: compute dtype of convolutions and dense layers.
        revision: branch, tag or commit on the hub.
        variant: fp16 takes the weights stored under that name.
        subfolder: of the folder or repository.
        ema: True takes unet_ema, False unet.
        force: replace what is in the folder.
        compile_cache: folder that keeps compiled programs for the next run; `none` keeps none. The user's cache folder
            if left out.
        coordinator: HOST:PORT of process 0, to run as one of several processes (jax.distributed).
        num_processes: number of processes.
        process_id: number of this process.
        distributed: run as one of several processes that find each other (TPU pods, Slurm, Open MPI).
        verbose: log how programs are compiled.
    """
    if verbose:
        logging.basicConfig(level=logging.INFO)
    batch_size, num_images = _sizes(batch_size, num_images, index)
    check_seed(seed)
    sampler = named_sampler(sampler, fast=fast)
    if index is not None and (format != "png" or gif):
        raise ValueError("--index makes one PNG; leave --format and --gif out.")
    check_output(out)
    if index is not None and read_png(_png(out, index)) is not None and not force:
        raise FileExistsError(f"{_png(out, index)} exists already; choose another --out, or --force.")
    join(coordinator, num_processes, process_id, distributed)
    keep_compiled(compile_cache)

    from ddpm_jax.checkpoint.source import locate, read

    where = locate(model, revision=revision, variant=variant, subfolder=subfolder, ema=ema)
    params = read(where, dtype=dtype)
    own_size = params.config.unet.image_size
    params = at_size(params, image_size)
    if format == "png":
        pixels.check_channels(params.config.unet.in_channels)
    chosen = choose_sampler(sampler, steps, set, params.config)
    label, _ = class_of(class_label, params.config)
    recipe = Recipe(
        params=params,
        sampler=chosen.sampler,
        seed=seed,
        class_label=label,
        guidance_scale=guidance_scale,
        null_class=null_class,
    )
    size = params.config.unet.image_size
    settings = {
        "model": where.source.get("model"),
        "revision": where.source.get("revision"),
        **recipe.settings(),
        "sampler": _recorded(out, chosen),
        "image_size": None if size == own_size else size,
    }
    if note := other_meaning(class_label, label, params.config):
        print(note)
    if index is None:
        with sharding.held(out, "set of images"):
            images = ImageSet(out, settings, num_images, format=format, force=force, shape=recipe.shape)
            _fill(images, recipe, batch_size, gif)
    else:
        refuse_others(out, settings | {"format": format})
        print(f"Drawing image {index}{_announcement(recipe)}")
        watch = progress.Stopwatch()
        image = draw_image(recipe, index)
        out.mkdir(parents=True, exist_ok=True)
        write_png(pixels.to_pil(image[None])[0], _png(out, index), settings | {"index": index})
        print(f"{_png(out, index)}: {_report(watch, 1, recipe, 1)}")


def _fill(images: ImageSet, recipe: Recipe, batch_size: int, gif: bool) -> None:
    """Draw what a set lacks, and say how far it is."""
    import jax

    lead = jax.process_index() == 0
    lacking = missing(images)
    count = int(lacking.sum())
    there = images.num_images - count
    if lead and (there or images.damaged):
        damaged = f" ({len(images.damaged)} damaged or of another set: {', '.join(images.damaged[:5])})"
        print(f"{images.folder} holds {there} of {images.num_images} images{damaged * bool(images.damaged)}: going on.")
    if lead:
        print(f"Drawing {count} image{'s' if count != 1 else ''}{_announcement(recipe)}")
    watch = progress.Stopwatch()
    with progress.bar(images.num_images, unit="images", initial=there, shown=lead, leave=False, bar_format=_BAR) as bar:
        draw_set(images, recipe, lacking, batch_size=batch_size, gif=gif, watch=progress.follow(bar))
    if lead and gif and not lacking[:batch_size].any():
        print("The first batch was there already: no sampling.gif. --force draws it again.", file=sys.stderr)
    if lead:
        print(f"{images.num_images} images in {images.folder}: {_report(watch, count, recipe, batch_size)}")


def _announcement(recipe: Recipe) -> str:
    """Say what is drawn, after "Drawing 4 images"."""
    (height, width, channels), label = recipe.shape, recipe.class_label
    named = f" ({recipe.class_name})" if recipe.class_name is not None else ""
    of = "" if label is None else f" of class {label}{named}"
    guided = recipe.guidance_scale not in (None, 1)
    away = f", guided by {recipe.guidance_scale:g} away from class {recipe.null_class}" if guided else ""
    return (
        f"{of}, {height} x {width} pixels, {_several(channels, 'channel')}{away}: {describe(recipe.sampler)}, "
        f"{_several(recipe.num_evals, 'evaluation')}{' of two images' if guided else ''} each."
    )


def _report(watch: progress.Stopwatch, count: int, recipe: Recipe, batch_size: int) -> str:
    """Say how long it took, after "4 images in samples: "."""
    import jax

    compiling, running = watch.seconds()
    return (
        f"compiling took {compiling:.1f} s, sampling {running:.1f} s ({count / running:.2f} images/s, "
        f"{recipe.num_evals} evaluations each, batches of {batch_size}, "
        f"{jax.device_count()} {jax.default_backend()} device{'s' if jax.device_count() > 1 else ''})."
    )


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _sizes(batch_size: int, num_images: int | None, index: int | None) -> tuple[int, int]:
    for name, value in (("--batch-size", batch_size), ("--num-images", num_images)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")
    if index is None:
        num_images = batch_size if num_images is None else num_images
        return min(batch_size, num_images), num_images
    if num_images is not None:
        raise ValueError("--index makes one image; leave --num-images out.")
    if index < 0:
        raise ValueError(f"--index must not be negative: {index}.")
    return 1, 1


def _png(out: Path, index: int) -> Path:
    return out / f"{index:05d}.png"


def _recorded(out: Path, chosen: Chosen) -> str:
    """Return the sampler in the words of the set in a folder, which an earlier version may have written."""
    record = out / SET_FILE
    there = read_json(record).get("sampler") if record.exists() else None
    return chosen.former if there == chosen.former else chosen.text
