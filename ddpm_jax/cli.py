"""The command line: `ddpm-jax sample | convert | export | info`. The only file that writes to the terminal."""

import dataclasses
import importlib.metadata
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from PIL.PngImagePlugin import PngInfo
from tyro.conf import Positional, UseAppendAction, arg

from ddpm_jax.files import whole_file, write_json

_MOST_IN_GRID = 256
StorageDtype = Literal["float32", "float16", "bfloat16"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 1 and one line on stderr where the input is wrong."""
    commands = {"sample": sample, "convert": convert, "export": export, "info": info}
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="ddpm-jax",
            description="Sample from, convert and inspect denoising diffusion models in JAX.",
            args=sys.argv[1:] if argv is None else argv,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (ValueError, OSError) as error:
        print(f"ddpm-jax: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("ddpm-jax: interrupted", file=sys.stderr)
        sys.exit(130)


def sample(
    model: Positional[str | None] = None,
    batch_size: int = 16,
    num_images: int | None = None,
    seed: int = 0,
    sampler: str | None = None,
    steps: int | None = None,
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KNOB=VALUE")] = (),
    class_label: int | None = None,
    index: int | None = None,
    out: Path = Path("samples"),
    gif: bool = False,
    dtype: Literal["float32", "bfloat16"] = "float32",
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    ema: bool | None = None,
    force: bool = False,
    verbose: bool = False,
) -> None:
    """Draw images from a model: PNGs, a grid and samples.json.

    Args:
        model: a hub id (google/ddpm-cat-256) or a folder; the demo that comes with the package if left out.
        batch_size: images per run of the program.
        num_images: images in all; one batch if left out.
        seed: of the random key; image i depends on (seed, i) alone.
        sampler: ddpm or ddim; what the checkpoint's scheduler config names if left out.
        steps: steps of the sampler.
        set: any further knob of the sampler, as eta=0.5 or clip=none; may be repeated.
        class_label: for class-conditional models.
        index: make only this image of the set, by itself.
        out: the folder to write into.
        gif: also write sampling.gif, how the first batch came about.
        dtype: what convolutions and dense layers compute in.
        revision: branch, tag or commit on the hub.
        variant: fp16 takes the weights stored under that name.
        subfolder: of the folder or repository.
        ema: True takes unet_ema, False unet.
        force: replace files that exist.
        verbose: log how programs are compiled.
    """
    if verbose:
        logging.basicConfig(level=logging.INFO)
    batch_size, num_images, first = _sizes(batch_size, num_images, index)
    names = [f"{first + i:05d}.png" for i in range(num_images)]
    extra = ["sampling.gif"] if gif else []
    if index is None:
        extra += ["grid.png", "samples.json"]
    _check_output(out, [*names, *extra], force)

    import jax
    import numpy as np
    from PIL import Image
    from tqdm import tqdm

    from ddpm_jax import plotting, sampling
    from ddpm_jax.checkpoint.source import locate, read

    where = locate(model, revision=revision, variant=variant, subfolder=subfolder, ema=ema)
    params = read(where.folder, variant=variant, ema=ema, dtype=dtype)
    chosen = _sampler(sampler, steps, set, params.config)
    record = {
        "model": where.source.get("model"),
        "revision": where.source.get("revision"),
        "seed": seed,
        "sampler": _describe(chosen),
        "class_label": class_label,
        "dtype": dtype,
        "versions": {name: importlib.metadata.version(name) for name in ("ddpm-jax", "jax")},
    }
    key = jax.random.key(seed)
    num_evals = chosen.table(params.config.schedule).num_evals
    chunk = _chunk_length(num_evals)
    batches = -(-num_images // batch_size)
    clock = _CompileClock()
    started = time.perf_counter()
    bar, images, frames = None, [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table above has said it
        for batch in range(batches):
            steps_of_batch = sampling.sample_chunks(
                params,
                key,
                batch_size,
                chunk=chunk,
                sampler=chosen,
                class_labels=class_label,
                first_index=first + batch * batch_size,
            )
            if batch == 0:
                print("compiling ...", end="\r", file=sys.stderr, flush=True)
            for done, total, x_0_hat in steps_of_batch:
                x_0_hat.block_until_ready()
                steps_done = batch * total + done
                if bar is None:  # after the first chunk, so that compiling does not spoil the rate
                    bar = tqdm(total=batches * total, initial=steps_done, unit="step", leave=False)
                bar.update(steps_done - bar.n)
                if gif and batch == 0:
                    frames.append(np.asarray(x_0_hat)[: min(num_images, 64)])
            finished = np.asarray(x_0_hat)[: num_images - batch * batch_size]
            out.mkdir(parents=True, exist_ok=True)
            for i, image in enumerate(plotting.to_pil(finished), start=batch * batch_size):
                _write_png(image, out / names[i], record | {"index": first + i})
            shown = _MOST_IN_GRID - sum(map(len, images))
            images.append(finished[:shown])
    bar.close()
    elapsed = time.perf_counter() - started
    if gif:
        plotting.gif(frames, out / "sampling.gif")
    if index is None:
        grid = plotting.grid(np.concatenate(images))
        picture = Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)
        _write_png(picture, out / "grid.png", record)
        write_json(out / "samples.json", record | {"num_images": num_images})
    running = elapsed - clock.seconds
    print(
        f"{num_images} images in {out}: compiling took {clock.seconds:.1f} s, sampling {running:.1f} s "
        f"({batches * total / running:.1f} steps/s of {batch_size} images, {len(jax.devices())} "
        f"{jax.default_backend()} device{'s' if len(jax.devices()) > 1 else ''})."
    )


def convert(
    model: Positional[str],
    out: Path | None = None,
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    ema: bool | None = None,
    storage_dtype: StorageDtype = "float32",
    force: bool = False,
) -> None:
    """Convert a PyTorch checkpoint into our folder, which opens without safetensors and torch.

    Args:
        model: a hub id (google/ddpm-cat-256) or a folder of diffusers.
        out: the folder to write; checkpoints/NAME if left out.
        revision: branch, tag or commit on the hub.
        variant: fp16 takes the weights stored under that name.
        subfolder: of the folder or repository.
        ema: True takes unet_ema, False unet.
        storage_dtype: of the weights in the file; in memory they are float32.
        force: replace an existing checkpoint.
    """
    from ddpm_jax.checkpoint.folder import MARKER
    from ddpm_jax.checkpoint.source import check_target, locate, read, save

    out = out if out is not None else Path("checkpoints") / Path(model).resolve().name
    check_target(out, overwrite=force)
    where = locate(model, revision=revision, variant=variant, subfolder=subfolder, ema=ema)
    if (where.folder / MARKER).exists():
        raise ValueError(f"{model} is in ddpm_jax's own format already; `ddpm-jax export` goes the other way.")
    params = read(where.folder, variant=variant, ema=ema)
    save(params, out, storage_dtype=storage_dtype, overwrite=force, source=where.source)
    print(f"{out}: {_count(params):,} parameters in {storage_dtype}. ddpm_jax.load({str(out)!r}) opens it.")


def export(
    model: Positional[str],
    out: Positional[Path],
    storage_dtype: StorageDtype = "float32",
    force: bool = False,
) -> None:
    """Export a checkpoint as a pipeline folder of diffusers.

    Args:
        model: a folder of ours, or anything else that `load` opens.
        out: the folder to write.
        storage_dtype: of the weights in the file.
        force: replace an existing checkpoint.
    """
    from ddpm_jax.checkpoint.source import check_target, load, save

    check_target(out, overwrite=force)
    params = load(model)
    save(params, out, format="diffusers", storage_dtype=storage_dtype, overwrite=force)
    print(f"{out}: {_count(params):,} parameters. diffusers' DiffusionPipeline.from_pretrained opens it.")


def info(
    model: Positional[str | None] = None,
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
) -> None:
    """Say what a checkpoint is: network, parameters, schedule, sampler, origin.

    Args:
        model: a hub id or a folder; the demo if left out.
        revision: branch, tag or commit on the hub.
        variant: fp16 takes the weights stored under that name.
        subfolder: of the folder or repository.
    """
    from ddpm_jax import samplers
    from ddpm_jax.checkpoint.source import locate, read

    where = locate(model, revision=revision, variant=variant, subfolder=subfolder)
    params = read(where.folder, variant=variant)
    unet, schedule = params.config.unet, params.config.schedule
    size = " x ".join(map(str, unet.image_size)) if unet.image_size else "any size"
    count = unet.class_embed_type or unet.num_class_embeds
    classes = f", {count} classes" if count else ""
    print(
        f"network     {size}, {unet.in_channels} -> {unet.out_channels} channels{classes}, "
        f"{_count(params):,} parameters"
    )
    for down, up, width in zip(unet.down_block_types, unet.up_block_types[::-1], unet.block_out_channels, strict=True):
        print(f"            {width:5d}  {down} x {unet.layers_per_block}, {up} x {unet.layers_per_block + 1}")
    if schedule.kind == "ve":
        print(
            f"schedule    variance-exploding, sigma {schedule.sigma_min} .. {schedule.sigma_max}, "
            f"{schedule.num_train_timesteps} timesteps"
        )
    elif schedule.kind == "other":
        print(f"schedule    that of {params.config.sampler.class_name}, {schedule.num_train_timesteps} timesteps")
    else:
        print(
            f"schedule    {schedule.num_train_timesteps} timesteps, {schedule.beta_schedule} betas "
            f"{schedule.beta_start} .. {schedule.beta_end}, predicts {schedule.prediction_type}"
        )
    if samplers.has_sampler(params.config.sampler):
        print(f"sampler     {_describe(samplers.from_config(params.config.sampler))}")
    else:
        print(f"sampler     {params.config.sampler.class_name}, which is not built yet")
    origin = ", ".join(f"{name} {value}" for name, value in where.source.items() if value)
    print(f"from        {origin}")


class _CompileClock:
    """Count the seconds that JAX spends on tracing and compiling from now on."""

    def __init__(self):
        import jax

        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self.seconds += duration


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


def _check_output(out: Path, names: list[str], force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file; name a folder.")
    parent = out.absolute()
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"--out {out}: {parent} is not writable.")
    existing = [name for name in names if (out / name).exists()]
    if existing and not force:
        raise FileExistsError(
            f"{out} holds {', '.join(existing[:3])}{', ...' if len(existing) > 3 else ''} already; choose another "
            "--out, or --force."
        )


def _sampler(name: str | None, steps: int | None, knobs: Sequence[str], config: Any) -> Any:
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


def _describe(sampler: Any) -> str:
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


def _write_png(image: Any, path: Path, record: dict[str, Any]) -> None:
    text = PngInfo()
    for name, value in record.items():
        if value is not None:
            text.add_text(name, value if isinstance(value, str) else json.dumps(value))
    with whole_file(path) as partial:
        image.save(partial, "PNG", pnginfo=text)


def _count(params: Any) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(params.weights))
