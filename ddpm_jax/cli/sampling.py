"""`ddpm-jax sample`: images, one batch or a set of fifty thousand."""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from tyro.conf import Positional, UseAppendAction, arg

from ddpm_jax import plotting
from ddpm_jax.cli.compile_cache import keep_compiled
from ddpm_jax.image_set import RECORD, ImageSet, refuse_others, write_png
from ddpm_jax.plotting import to_pil

_MOST_IN_GRID = 256
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
    class_label: int | None = None,
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
        seed: of the random key; image i depends on (seed, i) alone.
        sampler: a name in ddpm_jax.samplers.SAMPLERS; what the checkpoint's scheduler config names if left out.
        fast: DPM-Solver++ of order 3, clipped, with 20 evaluations; the same as --sampler fast.
        steps: steps of the sampler.
        set: any further knob of the sampler, as eta=0.5 or clip=none; may be repeated.
        class_label: for class-conditional models.
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
    if fast and sampler is not None:
        raise ValueError("--fast is a sampler; leave --sampler out.")
    if index is not None and (format != "png" or gif):
        raise ValueError("--index makes one PNG; leave --format and --gif out.")
    _check_output(out)
    target = out / f"{first:05d}.png"
    if index is not None and target.exists() and not force:
        raise FileExistsError(f"{target} exists already; choose another --out, or --force.")
    join(coordinator, num_processes, process_id, distributed)
    keep_compiled(compile_cache)

    import jax

    from ddpm_jax.checkpoint.source import locate, read

    where = locate(model, revision=revision, variant=variant, subfolder=subfolder, ema=ema)
    params = read(where.folder, variant=variant, ema=ema, dtype=dtype)
    chosen = choose_sampler("fast" if fast else sampler, steps, set, params.config)
    settings = {
        "model": where.source.get("model"),
        "weights": _digest(params.weights),
        "revision": where.source.get("revision"),
        "seed": seed,
        "sampler": describe(chosen),
        "class_label": class_label,
        "dtype": dtype,
        "versions": {name: importlib.metadata.version(name) for name in ("ddpm-jax", "jax")},
    }
    if index is not None:
        refuse_others(out, settings | {"format": format})
    batches = _Batches(params, jax.random.key(seed), batch_size, chosen, class_label, first)
    if index is None:
        _make_set(ImageSet(out, settings, num_images, format=format, force=force), batches, gif)
    else:
        (_, image), *_ = batches.draw(0, _Silent())
        out.mkdir(parents=True, exist_ok=True)
        write_png(to_pil(image)[0], target, settings | {"index": first})
        print(f"{target}: {batches.report(1)}")


def _make_set(images: ImageSet, batches: "_Batches", gif: bool) -> None:
    """Draw what a set lacks, each process the rows that lie on its devices."""
    import jax
    from jax.experimental import multihost_utils
    from tqdm import tqdm

    from ddpm_jax import sharding

    lead = jax.process_index() == 0
    lacking = np.zeros(images.num_images, bool)
    lacking[images.missing()] = True
    if jax.process_count() > 1:  # of one mind, whoever looked first
        lacking = np.asarray(multihost_utils.broadcast_one_to_all(lacking))
    count = int(lacking.sum())
    size, frames, there = batches.batch_size, [], images.num_images - count
    if lead and there:
        print(f"{images.folder} holds {there} of {images.num_images} images: going on.")
    with tqdm(
        total=images.num_images, initial=there, unit=" images", leave=False, disable=not lead, bar_format=_BAR
    ) as bar:
        for number, block in enumerate(np.unique(np.flatnonzero(lacking) // size)):
            wanted = int(lacking[block * size : (block + 1) * size].sum())
            progress = _Progress(bar, wanted) if lead else _Silent()
            parts = batches.draw(int(block) * size, progress, frames if gif and block == 0 else None)
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
    grid = plotting.grid(images.read(min(images.num_images, _MOST_IN_GRID)))
    picture = Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)
    write_png(picture, images.folder / "grid.png", images.settings)
    images.finish()
    print(f"{images.num_images} images in {images.folder}: {batches.report(count)}")


class _Batches:
    """Draw batches of a set of images, and time it."""

    def __init__(self, params, key, batch_size: int, sampler, class_label: int | None, first: int):
        import jax

        from ddpm_jax import sharding

        self.params = sharding.replicate(params) if jax.device_count() > 1 else params
        self.key, self.batch_size, self.sampler = key, batch_size, sampler
        self.class_label, self.first = class_label, first
        self.num_evals = sampler.table(params.config.schedule).num_evals
        if jax.process_count() > 1 and batch_size % jax.device_count():
            raise ValueError(f"--batch-size {batch_size} does not divide over {jax.device_count()} devices.")
        self.clock, self.started = _CompileClock(), time.perf_counter()

    def draw(self, start: int, progress: "_Silent", frames: list | None = None) -> list[tuple[int, np.ndarray]]:
        """Return (number of the first image, images) for each part of the batch that this process holds."""
        from ddpm_jax import sampling, sharding

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # building the table has said it
            chunks = sampling.sample_chunks(
                self.params,
                self.key,
                self.batch_size,
                chunk=_chunk_length(self.num_evals),
                sampler=self.sampler,
                class_labels=self.class_label,
                first_index=self.first + start,
            )
            for done, total, x_0_hat in _one_behind(chunks):
                x_0_hat.block_until_ready()
                progress.update(done / total)
                if frames is not None:
                    frames.append(np.concatenate([rows for _, rows in sharding.own_rows(x_0_hat)])[:64])
        return [(start + offset, rows) for offset, rows in sharding.own_rows(x_0_hat)]

    def report(self, count: int) -> str:
        import jax

        running = time.perf_counter() - self.started - self.clock.seconds
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

    def _hear(self, event: str, duration: float, **_: Any) -> None:
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


def _check_output(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file; name a folder.")
    parent = out.absolute()
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"--out {out}: {parent} is not writable.")


def choose_sampler(name: str | None, steps: int | None, knobs: Sequence[str], config: Any) -> Any:
    from ddpm_jax import samplers
    from ddpm_jax.validation import nearest

    chosen = samplers.from_config(config.sampler) if name is None else samplers.by_name(name)
    known = [field.name for field in dataclasses.fields(chosen)]
    values: dict[str, Any] = {} if steps is None else {"num_steps": steps}
    for knob in knobs:
        field, equals, text = knob.partition("=")
        if not equals or field not in known:
            raise ValueError(
                f"--set {knob}: {type(chosen).__name__} has the knobs {', '.join(known)}, set as KNOB=VALUE."
                f"{nearest(field, known)}"
            )
        values[field] = _value(text)
    return dataclasses.replace(chosen, **values)


def _value(text: str) -> Any:
    """Read a knob's value: none, true, false, a number, a list of numbers, or else a word."""
    words = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = json.loads(text if "," not in text or text.startswith("[") else f"[{text}]")
    except ValueError:
        return text
    return tuple(value) if isinstance(value, list) else value


def describe(sampler: Any) -> str:
    """The sampler as one would write it, without the knobs that have their defaults."""
    unused = ("num_steps", "timestep_spacing", "steps_offset") if getattr(sampler, "timesteps", None) else ()
    knobs = [
        f"{field.name}={getattr(sampler, field.name)!r}"
        for field in dataclasses.fields(sampler)
        if getattr(sampler, field.name) != field.default and field.name not in unused
    ]
    return f"{type(sampler).__name__}({', '.join(knobs)})"


def _chunk_length(num_evals: int) -> int:
    """The longest chunk of at most a twentieth of the run that divides it, so that one program does for all."""
    most = max(1, num_evals // 20)
    return next(length for length in range(most, 0, -1) if num_evals % length == 0)
