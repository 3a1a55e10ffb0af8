"""`ddpm-jax compile`: export a sampler as an artefact that runs without this package."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from ddpm_jax.cli.arguments import at_size, choose_sampler


def compile(
    model: Positional[str],
    out: Positional[Path],
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
    sampler: str | None = None,
    steps: int | None = None,
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KNOB=VALUE")] = (),
    image_size: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    ema: bool | None = None,
    force: bool = False,
) -> None:
    """Export a sampler as StableHLO for CPU, CUDA and TPU with a symbolic batch, weights, and a five-line script.

    Args:
        model: a hub id or a folder.
        out: the folder to write: sampler.bin, weights.npz, run.py.
        platforms: the platforms to lower for.
        sampler: as in `sample`.
        steps: steps of the sampler.
        set: any other knob of the sampler.
        image_size: N or HxW pixels; by default the model's own size.
        dtype: what convolutions and dense layers compute in.
        revision: branch, tag or commit on the hub.
        variant: fp16 reads the weights stored under that name.
        subfolder: a folder inside the folder or repository.
        ema: True reads unet_ema, False unet.
        force: replace an existing artefact.
    """
    from ddpm_jax.artefact import check_artefact, write_artefact
    from ddpm_jax.checkpoint.source import load

    check_artefact(out, overwrite=force)
    params = load(model, revision=revision, variant=variant, subfolder=subfolder, ema=ema, dtype=dtype)
    params = at_size(params, image_size)
    chosen = choose_sampler(sampler, steps, set, params.config)
    write_artefact(params, chosen.sampler, out, platforms=platforms, overwrite=force)
    size = (out / "sampler.bin").stat().st_size / 1e6
    print(f"{out}: {chosen.text} for {', '.join(platforms)}, {size:.1f} MB. run.py in it draws four images.")
