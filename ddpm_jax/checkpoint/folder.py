"""Our own folder: `ddpm_jax.json`, which describes the checkpoint, and `weights/`, which orbax writes.

A training run's folder has the same file, `checkpoints/` instead of the weights, and its record, `train.json`.
"""

import dataclasses
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.checkpoint.tensors import named_leaves, raise_if_misfits, raise_if_not_finite
from ddpm_jax.checkpoint.trees import read_branch, read_tree, shapes_in, write_tree
from ddpm_jax.config import Config, SamplerConfig, ScheduleConfig, UNetConfig
from ddpm_jax.files import CHECKPOINT_FILE, RUN_FILE, read_json, stored, write_json
from ddpm_jax.models.layout import layout
from ddpm_jax.params import Params
from ddpm_jax.types import Array, PyTree
from ddpm_jax.validation import check, freeze, known_items

CHECKPOINTS = "checkpoints"  # of a run
FORMAT_VERSION = 1
_WEIGHTS_FOLDER = "weights"


def is_ours(names: Collection[str]) -> bool:
    """Tell whether the names below a folder's root are those of our format.

    Example:
        >>> is_ours(["ddpm_jax.json", "weights/_METADATA"])
        True
    """
    return CHECKPOINT_FILE in names


def write_ours(params: Params, folder: Path, storage_dtype: str, source: dict[str, Any] | None) -> None:
    """Write our format into an empty folder.

    Args:
        params: the weights and their config.
        folder: the folder to write into.
        storage_dtype: "float32", "float16" or "bfloat16"; `read_ours` returns float32 in any case.
        source: where the weights came from, for people to read; it is no part of the config.
    """
    leaves = {"/".join(path): np.asarray(leaf) for path, leaf in named_leaves(params.weights).items()}
    values = iter(stored(leaves, storage_dtype).values())
    weights = jax.tree.map(lambda _: next(values), params.weights)
    write_tree(folder / _WEIGHTS_FOLDER, weights)
    write_config(params.config, folder, source)
    compare(lambda: _weights(folder, read_config(folder)), weights)


def compare(read: Callable[[], PyTree], written: PyTree) -> None:
    """Read back what was written, and compare.

    Args:
        read: reads it.
        written: the arrays in memory.

    Raises:
        OSError: it cannot be read, or holds other numbers.
    """
    try:
        same = jax.tree.leaves(jax.tree.map(_holds, read(), written))
        why = "" if all(same) else "it holds other numbers."
    except Exception as error:
        why = first_line(error)
    if why:
        raise OSError(f"What was written cannot be read back: {why} Try another disk or folder.")


def _holds(found: np.ndarray, written: Array) -> bool:
    """Tell whether an array equals another one, or those shards of it that this process holds."""
    if isinstance(written, jax.Array):
        parts = [(shard.index, shard.data) for shard in written.addressable_shards if shard.replica_id == 0]
    else:
        parts = [(..., written)]
    return all(np.array_equal(found[place], np.asarray(part, found.dtype), equal_nan=True) for place, part in parts)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text; orbax appends the whole tree."""
    return (str(error).strip() or repr(error)).splitlines()[0][:300]


def write_config(config: Config, folder: Path, source: dict[str, Any] | None) -> None:
    """Write `ddpm_jax.json`, which holds the config and where the weights came from."""
    items = {
        "format_version": FORMAT_VERSION,
        "unet": config.unet.to_dict(),
        "schedule": dataclasses.asdict(config.schedule),
        "sampler": {"class_name": config.sampler.class_name, "items": config.sampler.to_dict()},
        "class_names": list(config.class_names),
        "null_class": config.null_class,
        "source": source,
    }
    write_json(folder / CHECKPOINT_FILE, items)


def read_ours(folder: Path, *, dtype: str = "float32") -> Params:
    """Read our format; the weights are float32 in memory, however they are stored.

    They are read as numpy arrays and are not committed to a device, so a folder that was saved on eight devices opens
    on any number. Their shapes are compared with the config first: orbax restores other shapes without an error.

    Raises:
        ValueError: a newer or broken `ddpm_jax.json`, weights that are damaged or do not fit it (the message lists all
            of them).
        FileNotFoundError: there are no weights.
    """
    config = read_config(folder, dtype=dtype)
    weights = _weights(folder, config)
    raise_if_not_finite(weights)
    return Params(weights=jax.device_put(weights), config=config)


def _weights(folder: Path, config: Config) -> PyTree:
    path = folder / _WEIGHTS_FOLDER
    if not path.is_dir():
        raise FileNotFoundError(f"{folder} has {CHECKPOINT_FILE} but no folder `{_WEIGHTS_FOLDER}` beside it.")
    shapes = layout(config.unet).weights
    try:
        found = shapes_in(path)
    except Exception as error:
        raise ValueError(f"{path} is damaged, or no checkpoint that orbax wrote: {error}") from error
    wanted = {name: leaf.shape for name, leaf in named_leaves(shapes).items()}
    raise_if_misfits(
        {"/".join(name): shape for name, shape in found.items()},
        {"/".join(name): shape for name, shape in wanted.items()},
    )
    try:
        return read_tree(path, _hollow(shapes))
    except Exception as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _hollow(shapes: PyTree) -> PyTree:
    """Return numpy arrays of the shapes, to read into."""
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), shapes)


def is_run(folder: Path) -> bool:
    """Tell whether a folder is that of a training run."""
    return (folder / RUN_FILE).is_file()


def read_run(folder: Path, *, ema: bool | None = None, dtype: str = "float32") -> Params:
    """Read the weights of a training run's newest checkpoint: the averaged ones, unless `ema` is False.

    A checkpoint that is damaged or holds NaN is skipped with a warning, and the one before it is read.

    Raises:
        FileNotFoundError: the run has no checkpoint yet.
        ValueError: no checkpoint can be read.
    """
    config = read_config(folder, dtype=dtype)
    name = "weights" if ema is False else "ema"
    parts = folder / CHECKPOINTS
    steps = steps_in(parts)
    if not steps:
        raise FileNotFoundError(f"{folder} is a training run that has no checkpoint yet.")
    errors = []
    for step in reversed(steps):
        try:
            weights = read_weights(parts, step, name, config)
            raise_if_not_finite(weights)
        except Exception as error:
            errors.append(f"{step}: {first_line(error)}")
            continue
        if errors:
            warnings.warn(
                f"The checkpoint of step {step} in {folder} is opened; newer ones cannot be: {'; '.join(errors)}.",
                stacklevel=2,
            )
        return Params(weights=jax.device_put(weights), config=config)
    raise ValueError(f"No checkpoint of {folder} can be read ({'; '.join(errors)}).")


def steps_in(parts: Path) -> list[int]:
    """Return the steps that have a checkpoint, in order."""
    return sorted(int(path.name) for path in parts.iterdir() if path.name.isdigit()) if parts.is_dir() else []


def read_weights(parts: Path, step: int, name: str, config: Config) -> PyTree:
    """Return one tree of weights of a step's checkpoint as numpy arrays, without reading the rest."""
    return read_branch(parts / str(step) / "default", name, _hollow(layout(config.unet).weights))


def read_config(folder: Path, *, dtype: str = "float32") -> Config:
    """Read the config in a folder's `ddpm_jax.json`."""
    items = read_json(folder / CHECKPOINT_FILE)
    version = items.get("format_version")
    check(
        version == FORMAT_VERSION,
        f"{folder / CHECKPOINT_FILE} has format_version {version!r}; this version of ddpm_jax reads {FORMAT_VERSION}.",
    )
    for name in ("unet", "schedule", "sampler"):
        check(isinstance(items.get(name), dict), f"{folder / CHECKPOINT_FILE} has no `{name}`.")
    unet = dataclasses.replace(UNetConfig.from_dict(items["unet"]), dtype=dtype)
    known = {field.name for field in dataclasses.fields(ScheduleConfig)}
    values = known_items(items["schedule"], known, "A schedule")
    schedule = ScheduleConfig(**{name: freeze(value) for name, value in values.items()})
    class_name, knobs = items["sampler"].get("class_name"), items["sampler"].get("items") or {}
    good = isinstance(class_name, str) and isinstance(knobs, dict)
    check(good, f"{folder / CHECKPOINT_FILE}: `sampler` must be a `class_name` and `items`, not {items['sampler']!r}.")
    sampler = SamplerConfig(class_name, tuple(sorted((name, freeze(value)) for name, value in knobs.items())))
    if "null_class" not in items:  # of version 0.1
        items |= _classes_of_old_run(folder, unet)
    return Config(unet, schedule, sampler, freeze(items.get("class_names") or ()), items.get("null_class"))


def _classes_of_old_run(folder: Path, unet: UNetConfig) -> dict[str, Any]:
    """Return what a run of version 0.1 has in its record only; with label dropout, the last row means no class."""
    if not is_run(folder) or unet.num_class_embeds is None:
        return {}
    record = read_record(folder)
    dropped = record.get("config", {}).get("objective", {}).get("label_dropout")
    names = record.get("data", {}).get("classes")
    return {"class_names": names, "null_class": unet.num_class_embeds - 1 if dropped else None}


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a training run: its settings, its data, its versions.

    Raises:
        FileNotFoundError: the folder is no run.
    """
    if not is_run(folder):
        raise FileNotFoundError(f"{folder} is no training run: it has no {RUN_FILE}. Name the `out` of a training.")
    return read_json(folder / RUN_FILE)
