"""diffusers' folders: finding the files of a UNet2DModel, reading and writing them.

The one place that imports safetensors. Files are chosen from a list of names, so that a repository that is not yet
downloaded is understood exactly as a folder is.
"""

import dataclasses
import re
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.checkpoint.state_dict import from_state_dict, to_state_dict
from ddpm_jax.checkpoint.torch_pickle import read_torch_pickle
from ddpm_jax.config import (
    DIFFUSERS_BETA_SCHEDULES,
    Config,
    SamplerConfig,
    ScheduleConfig,
    UNetConfig,
    scheduler_from_dict,
    scheduler_to_dict,
)
from ddpm_jax.config.schedulers import record_of
from ddpm_jax.files import read_json, stored, write_json
from ddpm_jax.params import Params
from ddpm_jax.schedule import betas
from ddpm_jax.validation import freeze

WEIGHTS = "diffusion_pytorch_model"
# Of a pipeline's other components, by name or class: those that give the UNet's input or output another meaning, and
# those that only look at the finished images.
_CHANGING = re.compile("(?i)vae|vq|latent|encoder|decoder|tokenizer|text|prior|controlnet|adapter")
_HARMLESS = re.compile("(?i)^mel$|feature_extractor|safety_checker|processor|watermark|vocoder")
_LFS_POINTER = b"version https://git-lfs"
# What diffusers reads; a writer states the version whose format it follows.
_DIFFUSERS_VERSION = "0.42.1"


@dataclasses.dataclass(frozen=True)
class Files:
    """Where a checkpoint keeps its files, as paths below its root.

    Attributes:
        config: the UNet's config.json.
        scheduler: scheduler_config.json, or None where there is none.
        weights: the weights' files: one, or all shards.
        index: the index of the shards, or None.
        pipeline: model_index.json, or None.
    """

    config: str
    scheduler: str | None
    weights: tuple[str, ...]
    index: str | None = None
    pipeline: str | None = None

    @property
    def all(self) -> tuple[str, ...]:
        """All files that must be there."""
        optional = [name for name in (self.scheduler, self.index, self.pipeline) if name]
        return (self.config, *optional, *self.weights)


def find_files(names: Collection[str], *, variant: str | None = None, ema: bool | None = None) -> Files:
    """Find a checkpoint's files among the names below its root.

    Filess: config and weights at the root (google/ddpm-*); a pipeline's `unet/` and `scheduler/`; a bare
    `unet/` folder given as the root; training output with `unet_ema/`.

    Args:
        names: relative paths with forward slashes.
        variant: "fp16" looks for diffusion_pytorch_model.fp16.safetensors, and so on.
        ema: True takes `unet_ema/`, False `unet/`, None `unet/` and else `unet_ema/`.

    Raises:
        FileNotFoundError: no config, no weights, no such variant, no EMA; says where it looked.

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
    pipeline = "model_index.json" if "model_index.json" in names else None
    stem = f"{root}{WEIGHTS}"
    for extension in ("safetensors", "bin"):
        index = _index_name(names, stem, extension, variant)
        if index is not None:
            # their names stand in the index, which may not be downloaded yet: take all that look like them
            shape = r"-\d+-of-\d+"
            word = re.escape(variant or "")
            parts = rf"(\.{word}{shape}|{shape}\.{word})" if variant else shape
            pattern = re.compile(rf"{re.escape(stem)}{parts}\.{extension}")
            shards = tuple(sorted(filter(pattern.fullmatch, names)))
            return Files(f"{root}config.json", scheduler, shards, index, pipeline)
        single = f"{stem}.{variant}.{extension}" if variant else f"{stem}.{extension}"
        if single in names:
            return Files(f"{root}config.json", scheduler, (single,), None, pipeline)
    wanted = f"{WEIGHTS}.{variant}" if variant else WEIGHTS
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
    else:  # the second is how older diffusers spelt it
        candidates = [
            f"{stem}.{extension}.index.{variant}.json",
            f"{stem}.{extension}.{variant}.index.json",
        ]
    return next((name for name in candidates if name in names), None)


def _some(names: set[str]) -> str:
    shown = sorted(names)[:12]
    return f"{', '.join(shown) or 'no files'}{', ...' if len(names) > 12 else ''}"


def _variants(names: set[str], stem: str) -> str:
    """Say which variants there are, for a message."""
    found = {
        name.removeprefix(f"{stem}.").split(".")[0]
        for name in names
        if name.startswith(f"{stem}.") and name.endswith((".safetensors", ".bin"))
    } - {"safetensors", "bin"}
    return f" There is variant={' and '.join(map(repr, sorted(found)))}." if found else ""


def read_folder(folder: Path, files: Files, *, dtype: str = "float32", scheduler: Path | None = None) -> Params:
    """Read a checkpoint of diffusers from its folder; `scheduler` names a scheduler config outside it.

    Raises:
        ValueError: a file that is no JSON, truncated or corrupt weights, a config of another family, tensors that do
            not fit it.
    """
    if files.pipeline:
        _check_pipeline(folder, files)
    items = read_json(folder / files.config)
    family = items.get("_class_name", "UNet2DModel")
    if family not in ("UNet2DModel", "UNetModel", "UNetUnconditionalModel"):
        raise ValueError(
            f"{folder / files.config} describes a {family}; ddpm_jax opens pixel-space UNet2DModel checkpoints, "
            "unconditional or class-conditional. diffusers opens it."
        )
    unet = dataclasses.replace(UNetConfig.from_dict(items), dtype=dtype)
    schedule, sampler = ScheduleConfig(), SamplerConfig()
    if files.scheduler:
        scheduler = folder / files.scheduler
    if scheduler:
        schedule, sampler = scheduler_from_dict(read_json(scheduler))
    elif unet.time_embedding_type == "fourier":
        raise FileNotFoundError(
            f"{folder} has no scheduler_config.json, which a variance-exploding network needs for its noise levels."
        )
    else:
        warnings.warn(
            f"{folder} has no scheduler_config.json: DDPMScheduler's defaults are taken (1000 timesteps, linear betas, "
            "epsilon prediction).",
            stacklevel=2,
        )
    config = Config(unet, schedule, sampler, freeze(items.get("_class_names") or ()), items.get("_null_class"))
    return from_state_dict(read_weights(folder, files), config)


def _check_pipeline(folder: Path, files: Files) -> None:
    """Refuse a pipeline whose UNet does not make pixels, or not of noise alone; pass what only goes with its images."""
    items = read_json(folder / files.pipeline)
    others = {
        name: str(value[-1])
        for name, value in items.items()
        if not name.startswith("_") and name not in ("unet", "scheduler") and isinstance(value, list) and any(value)
    }
    others = {name: kind for name, kind in others.items() if not _HARMLESS.search(name)}
    latent = [name for name, kind in others.items() if _CHANGING.search(f"{name} {kind}")]
    root = files.config.removesuffix("config.json").rstrip("/")
    way_out = f"with `subfolder` {root!r}" if root else f"without these entries of {files.pipeline}"
    if latent:
        raise ValueError(
            f"{folder / files.pipeline} describes a {items.get('_class_name', 'pipeline')} with {', '.join(latent)} "
            "beside its UNet: a latent or conditional model. ddpm_jax opens pixel-space pipelines: a UNet2DModel and a "
            f"scheduler. The UNet alone, whatever its output means, opens {way_out}."
        )
    if others:
        unknown = ", ".join(f"{name} ({kind})" for name, kind in others.items())
        warnings.warn(
            f"{folder / files.pipeline} has {unknown} beside its UNet: passed over, the UNet's output is taken "
            "for pixels.",
            stacklevel=3,
        )


def read_weights(folder: Path, files: Files) -> dict[str, np.ndarray]:
    """Read the tensors of all weights files of a files.

    Raises:
        ValueError: a truncated or corrupt file, a Git-LFS pointer, an index that names what is not there.
    """
    if files.index is None:
        return _read_tensors(folder / files.weights[0])
    index = read_json(folder / files.index)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise ValueError(f"{folder / files.index} has no `weight_map`: it is no index of shards.")
    parent = (folder / files.index).parent
    state_dict: dict[str, np.ndarray] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard or not (parent / shard).is_file():
            raise FileNotFoundError(f"{files.index} names the shard {shard}, which is not in {parent}.")
        tensors = _read_tensors(parent / shard)
        absent = [n for n, place in places.items() if place == shard and n not in tensors]
        if absent:
            raise ValueError(f"{shard} lacks {absent}, which {files.index} places there.")
        state_dict |= tensors
    return state_dict


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(
                f"{path} is a Git-LFS pointer, not the weights: run `git lfs pull` in that folder, or "
                "download the file."
            )
    if path.suffix != ".safetensors":
        return read_torch_pickle(path)
    import safetensors
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}). Download it again.") from error
    except (AttributeError, KeyError) as error:  # how safetensors.numpy meets 8 bits
        raise ValueError(
            f"{path} holds tensors of a dtype that is not read here ({error}): store it in float32 or bfloat16."
        ) from error


def _class_notes(config: Config) -> dict[str, Any]:
    """What a UNet2DModel's config.json has no field for, under names that diffusers passes over."""
    notes = {"_class_names": list(config.class_names), "_null_class": config.null_class}
    return {name: value for name, value in notes.items() if value not in ([], None)}


def write_folder(params: Params, folder: Path, storage_dtype: str) -> None:
    """Write a pipeline folder that `DDPMPipeline.from_pretrained` of diffusers opens, into an empty folder."""
    import safetensors.numpy

    config = params.config
    schedule = config.schedule
    own_rule = schedule.kind == "vp" and schedule.beta_schedule not in DIFFUSERS_BETA_SCHEDULES
    if own_rule and schedule.trained_betas is None:  # the original code's rules: diffusers only knows their betas
        table = tuple(float(beta) for beta in betas(schedule))
        schedule = dataclasses.replace(schedule, beta_schedule="linear", trained_betas=table)
    version = {"_diffusers_version": _DIFFUSERS_VERSION}
    scheduler = scheduler_to_dict(schedule, config.sampler)
    pipeline = record_of(config.sampler.class_name).pipeline
    index = {
        "scheduler": ["diffusers", config.sampler.class_name],
        "unet": ["diffusers", "UNet2DModel"],
    }
    unet = {"_class_name": "UNet2DModel"} | version | _class_notes(config) | config.unet.to_dict()
    write_json(folder / "model_index.json", {"_class_name": pipeline} | version | index)
    write_json(folder / "unet/config.json", unet)
    write_json(folder / "scheduler/scheduler_config.json", scheduler | version)
    tensors = stored(to_state_dict(params), storage_dtype)
    safetensors.numpy.save_file(tensors, folder / "unet" / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})
