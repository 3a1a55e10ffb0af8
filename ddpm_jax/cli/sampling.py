"""`ddpm-jax sample`: images, one batch or a set of fifty thousand."""

import hashlib
import importlib.metadata
import itertools
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from tyro.conf import Positional, UseAppendAction, arg

from ddpm_jax import pixels, plotting
from ddpm_jax.cli.arguments import Chosen, at_size, choose_sampler, class_of, other_meaning
from ddpm_jax.cli.compile_cache import keep_compiled
from ddpm_jax.files import check_local, read_json
from ddpm_jax.images.image_set import RECORD, ImageSet, read_png, refuse_others, write_png
from ddpm_jax.random_keys import check_seed, key_from_seed
from ddpm_jax.types import Number

_MOST_IN_GRID = 256
_MOST_PIXELS = 2**26  # of a grid
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
    """Draw images from a model: PNGs or one .npz, a grid and samples.json. A run that was stopped goes on.

    Args:
        model: a hub id (google/ddpm-cat-256) or a folder; the demo that comes with the package if left out.
        batch_size: images per run of the program.
        num_images: images in all; one batch if left out.
        seed: of the random key, from 0 to 2^32 - 1; image i depends on (seed, i) alone.
        sampler: a name in ddpm_jax.samplers.SAMPLERS; what the checkpoint's scheduler config names if left out.
        fast: DPM-Solver++ of order 3, clipped, with 20 evaluations; the same as --sampler fast.
        steps: steps of the sampler; its own number if left out, or as many as the model's schedule has.
        set: any further knob of the sampler, as eta=0.5, clip=none or timesteps=900,500,0; may be repeated.
        class_label: name or number of the class, for class-conditional models; a name wins.
        guidance_scale: of classifier-free guidance, for models trained with dropped labels; 1 is none.
        null_class: number of the class that stands for none, where the model does not say it.
        image_size: N or HxW pixels, if not the model's own size.
        index: make only this image of the set, by itself.
        out: the folder to write into; a set that was begun there with the same settings is continued.
        format: numbered PNGs, or images.npz (uint8, arr_0).
        gif: also write sampling.gif, how the first batch came about.
        dtype: what convolutions and dense layers compute in.
        revision: branch, tag or commit on the hub.
        variant: fp16 takes the weights stored under that name.
        subfolder: of the folder or repository.
        ema: True takes unet_ema, False unet.
        force: replace what is in the folder.
        compile_cache: folder that keeps compiled programs for the next run; `none` keeps none. The user's cache folder
            if left out.
        coordinator: HOST:PORT of process 0, to run as one of several processes (jax.distributed).
        num_processes: how many there are.
        process_id: which one this is.
        distributed: run as one of several processes that find each other (TPU pods, Slurm, Open MPI).
        verbose: log how programs are compiled.
    """
    if verbose:
        logging.basicConfig(level=logging.INFO)
    batch_size, num_images, first = _sizes(batch_size, num_images, index)
    check_seed(seed)
    if fast and sampler is not None:
        raise ValueError("--fast is a sampler; leave --sampler out.")
    if index is not None and (format != "png" or gif):
        raise ValueError("--index makes one PNG; leave --format and --gif out.")
    _check_output(out)
    target = out / f"{first:05d}.png"
    if index is not None and read_png(target) is not None and not force:
        raise FileExistsError(f"{target} exists already; choose another --out, or --force.")
    join(coordinator, num_processes, process_id, distributed)
    keep_compiled(compile_cache)

    from ddpm_jax.checkpoint.source import locate, read

    where = locate(model, revision=revision, variant=variant, subfolder=subfolder, ema=ema)
    params = read(where.folder, variant=variant, ema=ema, dtype=dtype)
    own_size = params.config.unet.image_size
    params = at_size(params, image_size)
    unet = params.config.unet
    shape = (*unet.image_size, unet.in_channels)
    _check_pictures(unet.in_channels, format, gif)
    chosen = choose_sampler("fast" if fast else sampler, steps, set, params.config)
    label, name = class_of(class_label, params.config)
    if guidance_scale is not None and null_class is None:
        null_class = params.config.null_class
    if guidance_scale is not None and label is not None and label == null_class:
        raise ValueError(
            f"`guidance_scale` guides away from class {label}, which `class_label` asks for: leave one out."
        )
    settings = {
        "model": where.source.get("model"),
        "weights": _digest(params.weights),
        "revision": where.source.get("revision"),
        "seed": seed,
        "sampler": _recorded(out, chosen),
        "class_label": label,
        "class_name": name,
        "guidance_scale": guidance_scale,
        "null_class": null_class,
        "image_size": None if unet.image_size == own_size else unet.image_size,
        "dtype": dtype,
        "versions": {name: importlib.metadata.version(name) for name in ("ddpm-jax", "jax")},
    }
    if index is not None:
        refuse_others(out, settings | {"format": format})
    if note := other_meaning(class_label, label, params.config):
        print(note)
    condition = {"class_labels": label, "guidance_scale": guidance_scale, "null_class": null_class}
    batches = _Batches(params, key_from_seed(seed), batch_size, chosen, condition, first)
    if index is None:
        from ddpm_jax import sharding

        with sharding.held(out, "set of images"):
            images = ImageSet(out, settings, num_images, format=format, force=force, shape=shape)
            _make_set(images, batches, gif)
    else:
        print(f"Drawing image {index}{batches.announcement(name)}")
        (_, image), *_ = batches.draw(0, _Silent())
        out.mkdir(parents=True, exist_ok=True)
        write_png(pixels.to_pil(image)[0], target, settings | {"index": first})
        print(f"{target}: {batches.report(1)}")


def _make_set(images: ImageSet, batches: "_Batches", gif: bool) -> None:
    """Draw what a set lacks, each process the rows that lie on its devices."""
    import jax
    from jax.experimental import multihost_utils

    from ddpm_jax import progress, sharding

    lead = jax.process_index() == 0
    lacking = np.zeros(images.num_images, bool)
    lacking[images.missing()] = True
    if jax.process_count() > 1:  # of one mind, whoever looked first
        lacking = np.asarray(multihost_utils.broadcast_one_to_all(lacking))
    count = int(lacking.sum())
    size, frames, there = batches.batch_size, [], images.num_images - count
    name = images.settings.get("class_name")
    if lead and (there or images.damaged):
        again = f" ({len(images.damaged)} damaged or of another set: {', '.join(images.damaged[:5])})"
        print(
            f"{images.folder} holds {there} of {images.num_images} images{again if images.damaged else ''}: going on."
        )
    if lead:
        print(f"Drawing {count} image{'s' if count != 1 else ''}{batches.announcement(name)}")
    blocks = np.unique(np.flatnonzero(lacking) // size)
    with progress.bar(images.num_images, unit="images", initial=there, shown=lead, leave=False, bar_format=_BAR) as bar:
        for number, block in enumerate(blocks):
            wanted = int(lacking[block * size : (block + 1) * size].sum())
            seen = _Progress(bar, wanted) if lead else _Silent()
            parts = batches.draw(
                int(block) * size, seen, frames if gif and block == 0 else None, expected_calls=len(blocks)
            )
            if number == 0:  # no sooner: what is wrong with the arguments has been said by now
                if lead:
                    images.begin()
                sharding.wait_for_all("the set has begun")
                _await_file(images.folder / RECORD)
            for start, rows in parts:
                numbers = np.arange(start, min(start + len(rows), images.num_images))
                numbers = numbers[lacking[numbers]]
                images.write(numbers, rows[numbers - start])
    sharding.wait_for_all("all images are written")
    if not lead:
        return
    if frames:
        plotting.gif(frames, images.folder / "sampling.gif")
    elif gif:
        print("The first batch was there already: no sampling.gif. --force draws it anew.", file=sys.stderr)
    height, width, channels = images.shape
    if channels in pixels.PICTURE_CHANNELS:
        shown = min(images.num_images, _MOST_IN_GRID, max(1, _MOST_PIXELS // (height * width)))
        grid = plotting.grid(images.read(shown), captions=None if name is None else [name] * shown)
        picture = pixels.picture(grid)
        write_png(picture, images.folder / "grid.png", images.settings)
    images.finish()
    print(f"{images.num_images} images in {images.folder}: {batches.report(count)}")


class _Batches:
    """Draw batches of a set of images, and time it."""

    def __init__(self, params, key, batch_size: int, chosen: Chosen, condition: dict[str, Any], first: int):
        import jax

        from ddpm_jax import sharding
        from ddpm_jax.params import check_labels
        from ddpm_jax.sampling import check_guidance, table_of

        check_labels(params.config.unet, condition["class_labels"], batch_size)
        check_guidance(params.config, condition["guidance_scale"], condition["null_class"])
        self.num_evals = table_of(chosen.sampler, params.config).num_evals
        self.params = sharding.replicate(params) if jax.device_count() > 1 else params
        self.key, self.batch_size, self.chosen = key, batch_size, chosen
        self.condition, self.first = condition, first
        if jax.process_count() > 1 and batch_size % jax.device_count():
            raise ValueError(f"--batch-size {batch_size} does not divide over {jax.device_count()} devices.")
        self.clock, self.started = _CompileClock(), time.perf_counter()

    def draw(
        self, start: int, progress: "_Silent", frames: list | None = None, *, expected_calls: int = 1
    ) -> list[tuple[int, np.ndarray]]:
        """Return (number of the first image, images) for each part of the batch that this process holds."""
        from ddpm_jax import sampling, sharding

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # building the table has said it
            chunks = sampling.sample_chunks(
                self.params,
                self.key,
                self.batch_size,
                chunk=_chunk_length(self.num_evals),
                sampler=self.chosen.sampler,
                **self.condition,
                first_index=self.first + start,
                expected_calls=expected_calls,
            )
            for done, total, x_0_hat in _one_behind(chunks):
                x_0_hat.block_until_ready()
                progress.update(done / total)
                if frames is not None:
                    frames.append(np.concatenate([rows for _, rows in sharding.own_rows(x_0_hat)])[:64])
        return [(start + offset, rows) for offset, rows in sharding.own_rows(x_0_hat)]

    def announcement(self, class_name: str | None) -> str:
        """Say what is drawn, after "Drawing 4 images"."""
        unet, (label, scale, null_class) = self.params.config.unet, self.condition.values()
        height, width = unet.image_size
        channels = f"{unet.in_channels} channel{'s' if unet.in_channels != 1 else ''}"
        of = "" if label is None else f" of class {label}" + (f" ({class_name})" if class_name is not None else "")
        guided = f", guided by {scale:g} away from class {null_class}" if scale not in (None, 1) else ""
        return (
            f"{of}, {height} x {width} pixels, {channels}{guided}: {self.chosen.text}, {self.num_evals} "
            f"evaluation{'s' if self.num_evals != 1 else ''}{' of two images' if guided else ''} each."
        )

    def report(self, count: int) -> str:
        import jax

        # older versions of JAX report the tracing of a function within another one twice
        running = max(time.perf_counter() - self.started - self.clock.seconds, 1e-3)
        devices = f"{jax.device_count()} {jax.default_backend()} device{'s' if jax.device_count() > 1 else ''}"
        return (
            f"compiling took {self.clock.seconds:.1f} s, sampling {running:.1f} s ({count / running:.2f} images/s, "
            f"{self.num_evals} evaluations each, batches of {self.batch_size}, {devices})."
        )


class _Silent:
    """Progress that nobody sees."""

    def update(self, fraction: float) -> None:
        pass


class _Progress(_Silent):
    """Move a bar of images by the fraction of a batch that is done."""

    def __init__(self, bar: Any, count: int):
        self.bar, self.count, self.start = bar, count, bar.n

    def update(self, fraction: float) -> None:
        if self.bar.n == self.bar.initial:
            self.bar.unpause()  # what came before was compiling
        self.bar.update(self.start + self.count * fraction - self.bar.n)


class _CompileClock:
    """Count the seconds that JAX spends on tracing and compiling from now on."""

    def __init__(self):
        import jax

        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration: Number, **_: Any) -> None:  # of orbax some are counts
        if event.startswith("/jax/core/compile/"):
            self.seconds += duration


def _one_behind(items: Iterable[Any]) -> Iterator[Any]:
    """Yield each item when the next has been made: the device has work while one waits for the item."""
    for before, _ in itertools.pairwise(itertools.chain(items, [None])):
        yield before


def _digest(weights: Any) -> str:
    """Tell weights apart, whatever they are called."""
    import jax

    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _await_file(path: Path, seconds: float = 30.0) -> None:
    """Wait until this process sees a file that the first one has written: shared folders can be late."""
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            raise FileNotFoundError(f"{path} is not seen by this process: --out must be a folder that all share.")
        time.sleep(0.1)


def join(coordinator: str | None, num_processes: int | None, process_id: int | None, distributed: bool) -> None:
    """Become one of several processes, before the first use of a device."""
    given = [coordinator, num_processes, process_id]
    if given == [None] * 3 and not distributed:
        return
    if distributed and given != [None] * 3:
        raise ValueError("--distributed finds the processes by itself: leave --coordinator and the like out.")
    if None in given and not distributed:
        raise ValueError("--coordinator, --num-processes and --process-id belong together.")
    import jax

    jax.distributed.initialize(coordinator, num_processes, process_id)


def _sizes(batch_size: int, num_images: int | None, index: int | None) -> tuple[int, int, int]:
    for name, value in (("--batch-size", batch_size), ("--num-images", num_images)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")
    if index is None:
        num_images = batch_size if num_images is None else num_images
        return min(batch_size, num_images), num_images, 0
    if num_images is not None:
        raise ValueError("--index makes one image; leave --num-images out.")
    if index < 0:
        raise ValueError(f"--index must not be negative: {index}.")
    return 1, 1, index


def _check_pictures(channels: int, format: str, gif: bool) -> None:
    """Refuse to draw what could not be written."""
    if format == "png":
        pixels.check_channels(channels)
    elif gif and channels not in pixels.PICTURE_CHANNELS:
        raise ValueError(f"A GIF shows 1, 3 or 4 channels, not {channels}: leave `gif` out.")


def _recorded(out: Path, chosen: Chosen) -> str:
    """Return the sampler in the words of a set's record, which may be those of an earlier version."""
    record = out / RECORD
    there = read_json(record).get("sampler") if record.exists() else None
    return chosen.former if there == chosen.former else chosen.text


def _check_output(out: Path) -> None:
    check_local(out)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file; name a folder.")
    parent = out.absolute()
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"--out {out}: {parent} is not writable.")


def _chunk_length(num_evals: int) -> int:
    """The longest chunk of at most a twentieth of the run that divides it, so that one program does for all."""
    most = max(1, num_evals // 20)
    return next(length for length in range(most, 0, -1) if num_evals % length == 0)
