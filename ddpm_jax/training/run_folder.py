"""The folder of a training run: whose it is, what is there, what a kill has left."""

import logging
import os
from pathlib import Path
from typing import Any

from ddpm_jax import sharding
from ddpm_jax.checkpoint.folder import CHECKPOINTS, read_config, read_weights, steps_in
from ddpm_jax.files import LOCK, RUN_FILE, read_json
from ddpm_jax.params import Params
from ddpm_jax.training import logs
from ddpm_jax.training.checkpoints import remove_leftovers
from ddpm_jax.training.settings import TrainConfig, differences
from ddpm_jax.validation import check

log = logging.getLogger(__name__)

SNAPSHOTS = "snapshots"


def look_at(folder: Path, config: TrainConfig, resume: bool) -> dict[str, Any] | None:
    """Return the record of the run that is to go on, or None for a new one; refuse what is in the way."""
    if not (folder / RUN_FILE).exists():
        if any(name != LOCK and not name.endswith(".partial") for name in os.listdir(folder)):
            raise FileExistsError(f"{folder} holds something else than a run; choose another `out`.")
        return None
    if not resume:
        raise FileExistsError(f"{folder} holds a run already: go on with it (`resume`), or choose another `out`.")
    done = max(steps_in(folder / CHECKPOINTS), default=None)
    if done is None:
        return None  # it was stopped before its first checkpoint, and is begun anew
    before = read_json(folder / RUN_FILE)
    changed = differences(before["config"], config)
    check(not changed, f"{folder} holds a run with other settings: {'; '.join(changed)}.")
    check(
        done <= config.run.steps,
        f"`steps` {config.run.steps} is less than the {done} that the run in {folder} has done: ask for more, or take "
        "what is there, by `load` or `ddpm-jax export`.",
    )
    return before


def finished(folder: Path, config: TrainConfig) -> Params | None:
    """Return the averaged weights of a run that has done all its steps, or None."""
    if config.run.steps not in steps_in(folder / CHECKPOINTS):
        return None
    described = read_config(folder, dtype=config.run.dtype)
    try:
        weights = read_weights(folder / CHECKPOINTS, config.run.steps, "ema", described)
    except Exception:  # it is damaged, and the steps before it are done again
        weights = None
    if not sharding.everywhere(weights is not None):
        return None
    log.warning("The run in %s is finished: its %d steps are done. Nothing is changed.", folder, config.run.steps)
    return Params(sharding.replicate(weights), described)


def tidy(folder: Path) -> None:
    """Take away what a killed process has left half written."""
    for part in (CHECKPOINTS, SNAPSHOTS):
        remove_leftovers(folder / part)
    for path in (*folder.glob(".*.partial"), *(folder / logs.SAMPLES).glob(".*.partial")):
        path.unlink(missing_ok=True)
