"""The family of diffusers: UNet2DModel checkpoints, as folders and as state dicts, read and written.

No other module imports safetensors.
"""

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.checkpoint.families.diffusers_files import WEIGHTS_STEM, Files
from ddpm_jax.checkpoint.families.diffusers_names import from_torch, new_name, roots_of, to_torch, torch_name
from ddpm_jax.checkpoint.tensors import named_leaves, raise_if_misfits, raise_if_not_finite
from ddpm_jax.checkpoint.torch_pickle import read_torch_pickle
from ddpm_jax.checkpoint.unwrap import as_array, network_in
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
from ddpm_jax.files import PIPELINE_FILE, read_json, stored, write_json
from ddpm_jax.models.layout import layout
from ddpm_jax.params import Params
from ddpm_jax.schedule import betas
from ddpm_jax.validation import freeze

# Names and classes of a pipeline's other components. The first give the UNet's input or output another meaning; the
# second only look at finished images.
_CHANGING = re.compile("(?i)vae|vq|latent|encoder|decoder|tokenizer|text|prior|controlnet|adapter")
_HARMLESS = re.compile("(?i)^mel$|feature_extractor|safety_checker|processor|watermark|vocoder")
_LFS_POINTER = b"version https://git-lfs"
# The version of diffusers whose format we write.
_DIFFUSERS_VERSION = "0.42.1"


def recognises(names: Collection[str]) -> bool:
    """Take all names that no family before this one recognises: `read` then lists what the config lacks or wants."""
    return True


def read(leaves: Mapping[str, Any], config: Config) -> Params:
    """Return Params with the weights among the leaves of a state dict; see `from_state_dict`."""
    shapes = named_leaves(layout(config.unet).weights)
    expected = {torch_name(path): path for path in shapes}
    state_dict = _network_tensors(leaves, expected)
    wanted = {name: to_torch(path, _hollow(shapes[path])).shape for name, path in expected.items()}
    raise_if_misfits({name: value.shape for name, value in state_dict.items()}, wanted)
    raise_if_not_finite(state_dict)
    weights: dict = {}
    for name, path in expected.items():
        node = weights
        for module in path[:-1]:
            node = node.setdefault(module, {})
        value = from_torch(path, state_dict.pop(name))  # so that the file's copy shrinks as ours grows
        # a copy in any case: JAX may share the memory of what it is given
        node[path[-1]] = jax.device_put(np.array(value, np.float32, order="C"))
    return Params(weights=weights, config=config)


def _network_tensors(leaves: Mapping[str, Any], expected: Collection[str]) -> dict[str, np.ndarray]:
    """Return the network's tensors as arrays, by their names of today."""
    roots = roots_of(expected)
    known = lambda name: name.partition(".")[0] in roots and new_name(name) in expected
    own, others = network_in(leaves, known)
    groups = Counter(name.partition(".")[0] for name in others if getattr(leaves[name], "shape", ()))
    if groups:
        listed = ", ".join(f"`{group}` ({count})" for group, count in groups.items())
        warnings.warn(f"Only the network's tensors are read. Those of {listed} are left out.", stacklevel=4)
    return _upgraded({name: as_array(name, value) for name, value in own.items()})


def _upgraded(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Replace old names by those of today, strip wrappers, and drop tensors that were saved twice.

    Raises:
        ValueError: two tensors of the same new name that differ.
    """
    result: dict[str, np.ndarray] = {}
    for name, value in state_dict.items():
        new = new_name(name)
        if new in result and not np.array_equal(result[new], value, equal_nan=True):
            raise ValueError(f"The weights hold `{new}` twice, once as `{name}`, with different values.")
        result[new] = value
    return result


def _hollow(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Return an array of that shape that takes no memory."""
    return np.broadcast_to(np.float32(0), leaf.shape)


def to_state_dict(params: Params) -> dict[str, np.ndarray]:
    """Return the weights under the names and axes of diffusers' `UNet2DModel`, as contiguous numpy arrays.

    Example:
        >>> to_state_dict(ddpm_jax.load("digits-16"))["conv_in.weight"].shape
        (32, 1, 3, 3)
    """
    return {
        torch_name(path): np.ascontiguousarray(to_torch(path, np.asarray(leaf)))
        for path, leaf in named_leaves(params.weights).items()
    }


def read_folder(
    folder: Path, files: Files, *, dtype: str = "float32", scheduler: Path | None = None
) -> tuple[dict[str, np.ndarray], Config]:
    """Return the tensors and the config in a folder of diffusers; `scheduler` names a scheduler config outside it.

    Raises:
        ValueError: a file that is no JSON, truncated or corrupt weights, a config of another kind of model.
    """
    if files.pipeline:
        _check_pipeline(folder, files.pipeline, files.config)
    items = read_json(folder / files.config)
    family = items.get("_class_name", "UNet2DModel")
    if family not in ("UNet2DModel", "UNetModel", "UNetUnconditionalModel"):
        raise ValueError(
            f"{folder / files.config} describes a {family}. ddpm_jax opens pixel-space UNet2DModel checkpoints, "
            "unconditional or class-conditional; diffusers opens this one."
        )
    unet = dataclasses.replace(UNetConfig.from_dict(items), dtype=dtype)
    schedule, sampler = ScheduleConfig(), SamplerConfig()
    if files.scheduler:
        scheduler = folder / files.scheduler
    if scheduler:
        schedule, sampler = scheduler_from_dict(read_json(scheduler))
    elif unet.time_embedding_type == "fourier":
        raise FileNotFoundError(
            f"{folder} has no scheduler_config.json, which a variance-exploding network needs for its noise levels: "
            "copy it there from the original checkpoint."
        )
    else:
        warnings.warn(
            f"{folder} has no scheduler_config.json: the defaults of DDPMScheduler are used (1000 timesteps, linear "
            "betas, epsilon prediction).",
            stacklevel=2,
        )
    config = Config(unet, schedule, sampler, freeze(items.get("_class_names") or ()), items.get("_null_class"))
    return read_weights(folder, files), config


def _check_pipeline(folder: Path, pipeline: str, config: str) -> None:
    """Refuse a pipeline whose UNet makes no pixels, or needs more than noise; allow parts that only look at images."""
    items = read_json(folder / pipeline)
    others = {
        name: str(value[-1])
        for name, value in items.items()
        if not name.startswith("_") and name not in ("unet", "scheduler") and isinstance(value, list) and any(value)
    }
    others = {name: kind for name, kind in others.items() if not _HARMLESS.search(name)}
    latent = [name for name, kind in others.items() if _CHANGING.search(f"{name} {kind}")]
    root = config.removesuffix("config.json").rstrip("/")
    way_out = f"with `subfolder` {root!r}" if root else f"without these entries of {pipeline}"
    if latent:
        raise ValueError(
            f"{folder / pipeline} describes a {items.get('_class_name', 'pipeline')} with {', '.join(latent)} "
            "beside its UNet: a latent or conditional model. ddpm_jax opens pixel-space pipelines: a UNet2DModel and a "
            f"scheduler. To open the UNet alone, whatever its output means, load it {way_out}."
        )
    if others:
        unknown = ", ".join(f"{name} ({kind})" for name, kind in others.items())
        warnings.warn(
            f"{folder / pipeline} has {unknown} beside its UNet: ignored. The UNet's output is taken for pixels.",
            stacklevel=3,
        )


def read_weights(folder: Path, files: Files) -> dict[str, np.ndarray]:
    """Read the tensors of all weights files.

    Raises:
        ValueError: a truncated or corrupt file, or a Git-LFS pointer.
        FileNotFoundError: the index names a shard that does not exist.
    """
    if files.index is None:
        return _read_tensors(folder / files.weights[0])
    index = read_json(folder / files.index)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise ValueError(f"{folder / files.index} has no `weight_map`, so it is no index of shards. Download it again.")
    parent = (folder / files.index).parent
    state_dict: dict[str, np.ndarray] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard or not (parent / shard).is_file():
            raise FileNotFoundError(f"{files.index} names the shard {shard}, which is not in {parent}. Download it.")
        tensors = _read_tensors(parent / shard)
        absent = [n for n, place in places.items() if place == shard and n not in tensors]
        if absent:
            raise ValueError(f"{shard} lacks {absent}, which it has by {files.index}. Download both again.")
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
    except (AttributeError, KeyError) as error:  # what safetensors.numpy raises for 8-bit floats
        raise ValueError(
            f"{path} holds tensors of a dtype that is not read here ({error}): store it in float32 or bfloat16."
        ) from error


def _class_notes(config: Config) -> dict[str, Any]:
    """Return what config.json has no field for, under names that diffusers ignores."""
    notes = {"_class_names": list(config.class_names), "_null_class": config.null_class}
    return {name: value for name, value in notes.items() if value not in ([], None)}


def write_folder(params: Params, folder: Path, storage_dtype: str) -> None:
    """Write a pipeline that `DDPMPipeline.from_pretrained` of diffusers opens into an empty folder."""
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
    write_json(folder / PIPELINE_FILE, {"_class_name": pipeline} | version | index)
    write_json(folder / "unet/config.json", unet)
    write_json(folder / "scheduler/scheduler_config.json", scheduler | version)
    tensors = stored(to_state_dict(params), storage_dtype)
    safetensors.numpy.save_file(tensors, folder / "unet" / f"{WEIGHTS_STEM}.safetensors", metadata={"format": "pt"})
