"""`ddpm-jax convert | export | ema | info`: checkpoints."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from ddpm_jax.config import Config

_MAX_CLASSES = 20  # that `info` names
StorageDtype = Literal["float32", "float16", "bfloat16"]


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
    """Convert a PyTorch checkpoint into our own format, which opens without safetensors and torch.

    Args:
        model: a hub id (google/ddpm-cat-256) or a folder of diffusers.
        out: the folder to write; by default checkpoints/NAME.
        revision: branch, tag or commit on the hub.
        variant: fp16 reads the weights stored under that name.
        subfolder: a folder inside the folder or repository.
        ema: True reads unet_ema, False unet.
        storage_dtype: dtype of the weights in the file; in memory they are float32.
        force: replace an existing checkpoint.
    """
    from ddpm_jax.checkpoint.source import check_target, locate, read, save
    from ddpm_jax.params import count

    out = out if out is not None else Path("checkpoints") / Path(model).resolve().name
    check_target(out, overwrite=force)
    where = locate(model, revision=revision, variant=variant, subfolder=subfolder, ema=ema)
    if where.files is None:
        raise ValueError(f"{model} is in ddpm_jax's own format already. `ddpm-jax export` converts it to diffusers'.")
    params = read(where)
    save(params, out, storage_dtype=storage_dtype, overwrite=force, source=where.source)
    print(f"{out}: {count(params.weights):,} parameters in {storage_dtype}. ddpm_jax.load({str(out)!r}) opens it.")


def export(
    model: Positional[str],
    out: Positional[Path],
    storage_dtype: StorageDtype = "float32",
    force: bool = False,
) -> None:
    """Export a checkpoint as a pipeline folder of diffusers. A training run gets a model card.

    Args:
        model: a folder in our own format, a training run (its averaged weights), or anything else that `load` opens.
        out: the folder to write.
        storage_dtype: dtype of the weights in the file.
        force: replace an existing checkpoint.
    """
    from ddpm_jax.checkpoint.folder import is_run
    from ddpm_jax.checkpoint.source import check_target, load, save
    from ddpm_jax.params import count
    from ddpm_jax.training import published

    check_target(out, overwrite=force)
    params, run = load(model), Path(model).expanduser()
    card = published.card(run) if is_run(run) else None
    save(params, out, format="diffusers", storage_dtype=storage_dtype, overwrite=force, card=card)
    print(f"{out}: {count(params.weights):,} parameters. diffusers' DiffusionPipeline.from_pretrained opens it.")


def ema(
    run: Positional[Path],
    out: Positional[Path],
    length: float = 0.1,
    step: int | None = None,
    storage_dtype: StorageDtype = "float32",
    force: bool = False,
) -> None:
    """Average the weights of a training run with --power-ema over a length that is chosen afterwards.

    Args:
        run: the run's folder.
        out: the checkpoint to write, in our own format.
        length: length of the average, as a share of the training: 0.05 to 0.25.
        step: the step at which it ends; by default that of the last snapshot.
        storage_dtype: dtype of the weights in the file.
        force: replace an existing checkpoint.
    """
    from ddpm_jax.checkpoint.source import check_target, save
    from ddpm_jax.params import count
    from ddpm_jax.training import published

    check_target(out, overwrite=force)
    params = published.average(run, length, step=step)
    source = {"run": str(run), "length": length, "step": step}
    save(params, out, storage_dtype=storage_dtype, overwrite=force, source=source)
    print(f"{out}: {count(params.weights):,} parameters. ddpm_jax.load({str(out)!r}) opens it.")


def info(
    model: Positional[str | None] = None,
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
) -> None:
    """Show what a checkpoint is: network, parameters, schedule, sampler, origin.

    Args:
        model: a hub id or a folder; by default the demo.
        revision: branch, tag or commit on the hub.
        variant: fp16 reads the weights stored under that name.
        subfolder: a folder inside the folder or repository.
    """
    from ddpm_jax import samplers
    from ddpm_jax.checkpoint.folder import is_run, read_record
    from ddpm_jax.checkpoint.source import locate, read
    from ddpm_jax.params import count
    from ddpm_jax.samplers.registry import describe

    where = locate(model, revision=revision, variant=variant, subfolder=subfolder)
    params = read(where)
    unet, schedule = params.config.unet, params.config.schedule
    size = " x ".join(map(str, unet.image_size)) if unet.image_size else "any size"
    if unet.image_size and any(side % unet.smallest_size for side in unet.image_size):
        size += f" (it cannot draw these: sides must be multiples of {unet.smallest_size})"
    classes = unet.class_embed_type or unet.num_class_embeds
    classes = f", {classes} classes" if classes else ""
    print(
        f"network     {size}, {unet.in_channels} -> {unet.out_channels} channels{classes}, "
        f"{count(params.weights):,} parameters"
    )
    for down, up, width in zip(unet.down_block_types, unet.up_block_types[::-1], unet.block_out_channels, strict=True):
        print(f"            {width:5d}  {down} x {unet.layers_per_block}, {up} x {unet.layers_per_block + 1}")
    for line in _classes(params.config):
        print(f"classes     {line}")
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
        print(f"sampler     {describe(samplers.from_config(params.config.sampler))}")
    else:
        print(f"sampler     {params.config.sampler.class_name}, which has no sampler here")
    data = read_record(where.folder).get("data") if is_run(where.folder) else None
    if data:
        classes = f", {len(data['classes'])} classes" if data["classes"] else ""
        of_before = f"{data['images']} images, {data['channels']} channels{classes}"
        print(f"trained on  {data.get('description', of_before)}")
    origin = ", ".join(f"{name} {value}" for name, value in where.source.items() if value)
    print(f"from        {origin}")


def _classes(config: Config) -> list[str]:
    """Return lines with the names of the classes by their numbers, and with the class that means "no class"."""
    named = [f"{number}: {name}" for number, name in enumerate(config.class_names)]
    if len(named) > _MAX_CLASSES:
        named = [*named[:_MAX_CLASSES], f"and {len(named) - _MAX_CLASSES} more"]
    lines = [", ".join(named)] if named else []
    return lines if config.null_class is None else [*lines, f"{config.null_class} means no class (guidance)"]
