"""Where a checkpoint of diffusers keeps its files.

Files are chosen from a list of names, so that a repository on the hub is understood before it is downloaded, and in
the same way as a folder.
"""

import dataclasses
import re
from collections.abc import Collection

from ddpm_jax.files import PIPELINE_FILE

WEIGHTS_STEM = "diffusion_pytorch_model"


@dataclasses.dataclass(frozen=True)
class Files:
    """Where a checkpoint keeps its files, as paths below its root.

    Attributes:
        config: the UNet's config.json.
        scheduler: scheduler_config.json; None if there is none.
        weights: the files of the weights: one file, or all shards.
        index: the index of the shards; None for a single file.
        pipeline: model_index.json; None if there is none.
    """

    config: str
    scheduler: str | None
    weights: tuple[str, ...]
    index: str | None = None
    pipeline: str | None = None

    @property
    def all(self) -> tuple[str, ...]:
        """All of these files."""
        optional = [name for name in (self.scheduler, self.index, self.pipeline) if name]
        return (self.config, *optional, *self.weights)


def find_files(names: Collection[str], *, variant: str | None = None, ema: bool | None = None) -> Files:
    """Find a checkpoint's files among the names of all files below its root.

    There are four layouts: config and weights at the root (google/ddpm-*), a pipeline's `unet/` and `scheduler/`, a
    `unet/` folder that is itself the root, and training output with `unet_ema/`.

    Args:
        names: relative paths with forward slashes.
        variant: "fp16" looks for diffusion_pytorch_model.fp16.safetensors, and so on.
        ema: True takes `unet_ema/`, False `unet/`, None `unet/` if it exists and `unet_ema/` otherwise.

    Raises:
        FileNotFoundError: there is no config, no weights, no such variant or no EMA; says where it looked.

    Example:
        >>> find_files(["config.json", "scheduler_config.json", "diffusion_pytorch_model.bin"]).weights
        ('diffusion_pytorch_model.bin',)
    """
    names = set(names)
    roots = {True: ["unet_ema/"], False: ["unet/", ""], None: ["unet/", "", "unet_ema/"]}[ema]
    with_config = [root for root in roots if f"{root}config.json" in names]
    if not with_config:
        where = " or ".join(f"{root}config.json" for root in roots)
        raise FileNotFoundError(
            f"There is no {where} among {_some(names)}: this is no UNet2DModel checkpoint"
            f"{' with EMA weights' if ema else ''}."
        )
    root = with_config[0]
    schedulers = ("scheduler/scheduler_config.json", "scheduler_config.json")
    scheduler = next((name for name in schedulers if name in names), None)
    pipeline = PIPELINE_FILE if PIPELINE_FILE in names else None
    stem = f"{root}{WEIGHTS_STEM}"
    for extension in ("safetensors", "bin"):
        index = _index_name(names, stem, extension, variant)
        if index is not None:
            # the index names the shards, but may not be downloaded yet: take all names that look like shards
            shape = r"-\d+-of-\d+"
            word = re.escape(variant or "")
            parts = rf"(\.{word}{shape}|{shape}\.{word})" if variant else shape
            pattern = re.compile(rf"{re.escape(stem)}{parts}\.{extension}")
            shards = tuple(sorted(filter(pattern.fullmatch, names)))
            return Files(f"{root}config.json", scheduler, shards, index, pipeline)
        single = f"{stem}.{variant}.{extension}" if variant else f"{stem}.{extension}"
        if single in names:
            return Files(f"{root}config.json", scheduler, (single,), None, pipeline)
    wanted = f"{WEIGHTS_STEM}.{variant}" if variant else WEIGHTS_STEM
    others = sorted(
        name for name in names if re.fullmatch(rf"{re.escape(root)}[^/]+\.(safetensors|bin|pt|pth|ckpt)", name)
    )
    raise FileNotFoundError(
        f"There is no {root}{wanted}.safetensors or .bin among {_some(names)}."
        + (_variants(names, stem) or (f" Should {others[0]} have that name?" if others else ""))
    )


def _index_name(names: set[str], stem: str, extension: str, variant: str | None) -> str | None:
    if variant is None:
        candidates = [f"{stem}.{extension}.index.json"]
    else:  # older versions of diffusers write the second name
        candidates = [
            f"{stem}.{extension}.index.{variant}.json",
            f"{stem}.{extension}.{variant}.index.json",
        ]
    return next((name for name in candidates if name in names), None)


def _some(names: set[str]) -> str:
    shown = sorted(names)[:12]
    return f"{', '.join(shown) or 'no files'}{', ...' if len(names) > 12 else ''}"


def _variants(names: set[str], stem: str) -> str:
    """Name the variants that exist, for a message."""
    found = {
        name.removeprefix(f"{stem}.").split(".")[0]
        for name in names
        if name.startswith(f"{stem}.") and name.endswith((".safetensors", ".bin"))
    } - {"safetensors", "bin"}
    return f" There is variant={' and '.join(map(repr, sorted(found)))}." if found else ""
