"""Our own folder: `ddpm_jax.json`, which says what it is, and `weights/`, which orbax writes.

The one place that imports orbax.
"""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.checkpoint.state_dict import named_leaves, raise_if_misfits
from ddpm_jax.config import Config, SamplerConfig, ScheduleConfig, UNetConfig
from ddpm_jax.files import read_json, stored, write_json
from ddpm_jax.models.layout import layout
from ddpm_jax.params import Params
from ddpm_jax.validation import check, freeze, nearest

MARKER = "ddpm_jax.json"
WEIGHTS = "weights"
FORMAT_VERSION = 1


def is_ours(names: Collection[str]) -> bool:
    """Tell whether the names below a folder's root are those of our format.

    Example:
        >>> is_ours(["ddpm_jax.json", "weights/_METADATA"])
        True
    """
    return MARKER in names


def write_ours(params: Params, folder: Path, storage_dtype: str, source: dict[str, Any] | None) -> None:
    """Write our format into an empty folder.

    Args:
        params: what to write.
        folder: where to.
        storage_dtype: "float32", "float16" or "bfloat16"; `read_ours` gives float32 whatever it was.
        source: where the weights came from, for people; it takes no part in the config.
    """
    import orbax.checkpoint as ocp

    leaves = {"/".join(path): np.asarray(leaf) for path, leaf in named_leaves(params.weights).items()}
    values = iter(stored(leaves, storage_dtype).values())
    weights = jax.tree.map(lambda _: next(values), params.weights)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / WEIGHTS).absolute(), weights)
    config = params.config
    items = {
        "format_version": FORMAT_VERSION,
        "unet": config.unet.to_dict(),
        "schedule": dataclasses.asdict(config.schedule),
        "sampler": {"class_name": config.sampler.class_name, "items": config.sampler.to_dict()},
        "source": source,
    }
    write_json(folder / MARKER, items)


def read_ours(folder: Path, *, dtype: str = "float32") -> Params:
    """Read our format; the weights arrive as float32, whatever they are stored as and wherever they were saved.

    They are read as numpy arrays and belong to no device yet, so that folders saved on eight devices open on any
    number. (orbax's own restore would pin them to the devices it is told of, and take another config's shapes
    without a word; here shapes are compared first.)

    Raises:
        ValueError: a newer or broken `ddpm_jax.json`, weights that do not fit it (all of them listed) or are damaged.
        FileNotFoundError: no weights.
    """
    import orbax.checkpoint as ocp

    config = read_config(folder, dtype=dtype)
    path = (folder / WEIGHTS).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"{folder} has {MARKER} but no `{WEIGHTS}` folder beside it.")
    shapes = layout(config.unet).weights
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            found = checkpointer.metadata(path).item_metadata.tree
            found = {name: leaf.shape for name, leaf in named_leaves(found).items()}
        except Exception as error:
            raise ValueError(f"{path} is no orbax checkpoint, or damaged: {error}") from error
        wanted = {name: leaf.shape for name, leaf in named_leaves(shapes).items()}
        raise_if_misfits(
            {"/".join(name): shape for name, shape in found.items()},
            {"/".join(name): shape for name, shape in wanted.items()},
        )
        try:
            target = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), shapes)
            weights = checkpointer.restore(path, target)
        except Exception as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    return Params(weights=jax.device_put(weights), config=config)


def read_config(folder: Path, *, dtype: str = "float32") -> Config:
    """Read what `ddpm_jax.json` describes."""
    items = read_json(folder / MARKER)
    version = items.get("format_version")
    check(
        version == FORMAT_VERSION,
        f"{folder / MARKER} has format_version {version!r}; this version of ddpm_jax reads {FORMAT_VERSION}.",
    )
    for name in ("unet", "schedule", "sampler"):
        check(isinstance(items.get(name), dict), f"{folder / MARKER} has no `{name}`.")
    unet = dataclasses.replace(UNetConfig.from_dict(items["unet"]), dtype=dtype)
    known = {field.name for field in dataclasses.fields(ScheduleConfig)}
    for name in items["schedule"]:
        check(name in known, f"A schedule has no field `{name}`.{nearest(name, known)}")
    schedule = ScheduleConfig(**{name: freeze(value) for name, value in items["schedule"].items()})
    knobs = sorted((name, freeze(value)) for name, value in items["sampler"].get("items", {}).items())
    return Config(unet, schedule, SamplerConfig(items["sampler"]["class_name"], tuple(knobs)))
