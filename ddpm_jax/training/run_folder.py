"""A run's folder: may this run use it, what is recorded there, and what a killed process has left.

train.json records the settings, facts of the data, parameters, devices and versions; data.json the names and bytes of
the data's files. A resumed run compares both with what it finds.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from ddpm_jax import sharding
from ddpm_jax.checkpoint.folder import CHECKPOINTS, read_config, read_weights, steps_in, write_config
from ddpm_jax.files import LOCK, RUN_FILE, read_json, versions, write_json
from ddpm_jax.images.source import Source
from ddpm_jax.images.walk import shown
from ddpm_jax.models.layout import layout
from ddpm_jax.params import Params, count
from ddpm_jax.training import logs
from ddpm_jax.training.checkpoints import remove_leftovers
from ddpm_jax.training.checks import check_new_run, differences
from ddpm_jax.training.settings import TrainConfig
from ddpm_jax.training.step import Plan
from ddpm_jax.validation import check, some

log = logging.getLogger(__name__)

FILES = "data.json"
SNAPSHOTS = "snapshots"
_CAP = 10  # names of each kind that a message lists


def look_at(folder: Path, config: TrainConfig, resume: bool) -> dict[str, Any] | None:
    """Return the record of the run to be resumed, or None for a new run.

    Raises:
        FileExistsError: the folder holds a run and `resume` is not set, or something that is not a run.
        ValueError: the run there has other settings or more steps; settings that no run should begin with.
    """
    if not (folder / RUN_FILE).exists():
        if any(name != LOCK and not name.endswith(".partial") for name in os.listdir(folder)):
            raise FileExistsError(f"{folder} holds something else than a run; choose another `out`.")
        done = None
    elif not resume:
        raise FileExistsError(f"{folder} holds a run already: continue it with `resume`, or choose another `out`.")
    else:
        done = max(steps_in(folder / CHECKPOINTS), default=None)
    if done is None:  # also a run that was stopped before its first checkpoint: it begins again
        accepted = config.data.accept_changed_data and not resume
        check(not accepted, "`accept_changed_data` is for a run that is continued (`resume`): leave it out.")
        check_new_run(config)
        return None
    before = read_json(folder / RUN_FILE)
    changed = differences(before["config"], config)
    check(not changed, f"{folder} holds a run with other settings: {'; '.join(changed)}.")
    check(
        done <= config.loop.steps,
        f"`steps` {config.loop.steps} is less than the {done} that the run in {folder} has done: ask for more, or take "
        "what is there, by `load` or `ddpm-jax export`.",
    )
    return before


def finished(folder: Path, config: TrainConfig) -> Params | None:
    """Return the averaged weights of a run that has done all its steps, or None."""
    if config.loop.steps not in steps_in(folder / CHECKPOINTS):
        return None
    network = read_config(folder, dtype=config.loop.dtype)
    try:
        weights = read_weights(folder / CHECKPOINTS, config.loop.steps, "ema", network)
    except Exception:  # the checkpoint is damaged: the steps after the one before are done again
        weights = None
    if not sharding.everywhere(weights is not None):
        return None
    log.warning("The run in %s is finished: its %d steps are done. Nothing is changed.", folder, config.loop.steps)
    return Params(sharding.replicate(weights), network)


def tidy(folder: Path) -> None:
    """Remove what killed processes have left half written."""
    for part in (CHECKPOINTS, SNAPSHOTS):
        remove_leftovers(folder / part)
    for path in (*folder.glob(".*.partial"), *(folder / logs.SAMPLES).glob(".*.partial")):
        path.unlink(missing_ok=True)


def remove_snapshots(folder: Path) -> None:
    """Remove the snapshots of a run that died before its first checkpoint."""
    shutil.rmtree(folder / SNAPSHOTS, ignore_errors=True)


def write_record(folder: Path, plan: Plan, source: Source) -> None:
    """Write train.json, data.json and ddpm_jax.json, which make the folder a run that `load` opens."""
    record = {
        "config": plan.settings.resolved().to_dict(),
        "data": facts(source),
        "broken": [shown(path) for path in source.broken],
        "parameters": count(layout(plan.network.unet).weights),
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "versions": versions("ddpm-jax", "jax", "flax", "optax"),
    }
    write_json(folder / FILES, {"files": dict(source.files)})
    write_json(folder / RUN_FILE, record)
    write_config(plan.network, folder, {"trained_by": RUN_FILE})


def facts(source: Source) -> dict[str, Any]:
    """Return what train.json says of the data: facts that a resumed run compares, and a line that describes it."""
    return {
        "images": len(source),
        "channels": source.channels,
        "classes": list(source.classes),
        "background": "none" if source.ground is None else "#{:02x}{:02x}{:02x}".format(*source.ground),
        "fingerprint": source.fingerprint,
        "description": source.describe(),
    }


def changes(source: Source, before: Mapping[str, Any], folder: Path, *, accepted: bool) -> str | None:
    """Return how the data differs from what a run was trained on, in words, or None if it does not.

    Args:
        source: the data as it is now.
        before: the `data` of the run's train.json.
        folder: the run's.
        accepted: whether other images are accepted.

    Raises:
        ValueError: other images that are not accepted; other channels or classes, which never are.
    """
    now = facts(source)
    fixed = _unlike(before, now, ("channels", "classes"))
    check(not fixed, f"The data is not what {folder} was trained on: {'; '.join(fixed)}.")
    if not _unlike(before, now, ("images", "fingerprint")):
        return None
    lines = _unlike(before, now, ("images",)) + _files_that_differ(source, folder)
    text = f"The data is not what {folder} was trained on: {'; '.join(lines) or 'the pixels of the array differ'}."
    check(accepted, f"{text} Restore it, or continue with the data as it is now by `accept_changed_data`.")
    return text


def _unlike(before: Mapping[str, Any], now: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    return [f"{name} {before.get(name)!r} there, {now[name]!r} here" for name in names if before.get(name) != now[name]]


def _files_that_differ(source: Source, folder: Path) -> list[str]:
    if not source.files:
        return []
    if not (folder / FILES).exists():
        return ["names or bytes of files, of which that older run kept no list"]
    before, now = read_json(folder / FILES).get("files", {}), source.files
    both = [name for name in now if name in before]
    kinds = {
        "new": [shown(name) for name in now if name not in before],
        "gone": [shown(name) for name in before if name not in now],
        "changed": [
            f"{shown(name)} ({before[name]} bytes there, {now[name]} here)"
            for name in both
            if before[name] != now[name]
        ],
    }
    return [f"{len(names)} {kind}: {some(names, _CAP)}" for kind, names in kinds.items() if names]
