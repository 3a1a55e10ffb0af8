"""A run's checkpoints on disk: written in the background, whole or not at all, and read back the newest first.

Beside `checkpoint/folder.py` the one door to orbax.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ddpm_jax.training.step import TrainState

log = logging.getLogger(__name__)


class Checkpoints:
    """Trees of arrays by their step, in a folder."""

    def __init__(self, folder: Path, *, keep_last: int | None, keep_every: int):
        """Open the folder.

        Args:
            folder: made if it is not there.
            keep_last: how many states stay; None for all.
            keep_every: those whose step is its multiple stay for good; 0 for none.
        """
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=keep_last, keep_period=keep_every or None)
        self.folder, self.manager = folder, ocp.CheckpointManager(folder.absolute(), options=options)

    def steps(self) -> list[int]:
        """Return the steps that are there, in order."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: Any) -> None:
        """Write a state in the background; what is still being written is waited for first.

        Raises:
            Exception: the state before could not be written.
        """
        import orbax.checkpoint as ocp

        if step not in self.manager.all_steps():
            self.manager.save(step, args=ocp.args.StandardSave(state), force=True)

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            Exception: it could not be.
        """
        self.manager.wait_until_finished()

    def check(self) -> None:
        """Find out whether what was written in the background has been, where it can be known without waiting.

        Raises:
            Exception: it could not be written.
        """
        if not self.manager.is_saving_in_progress():
            self.wait()

    def restore(self, like: TrainState) -> TrainState | None:
        """Return the newest state that can be read, placed as `like` says; None if there is none.

        Damaged ones that are newer are named in a warning and put aside, as damaged-STEP.
        """
        import orbax.checkpoint as ocp

        damaged = []
        for step in reversed(self.steps()):
            state, error = None, None
            try:
                state = self.manager.restore(step, args=ocp.args.StandardRestore(like))
            except Exception as found:  # what a cut-off file raises depends on where it was cut
                error = found
            if _everywhere(state is not None):
                self._put_aside(damaged)
                return state
            damaged.append(step)
            why = str(error).strip().split("\n")[0][:300]
            log.warning("The checkpoint of step %s in %s is damaged: %s", step, self.folder, why)
        return None

    def _put_aside(self, steps: list[int]) -> None:
        for step in steps:
            if jax.process_index() == 0:
                (self.folder / str(step)).rename(self.folder / f"damaged-{step}")
        if steps:
            _everywhere(True)
            self.manager.reload()

    def close(self) -> None:
        self.manager.close()


def _everywhere(good: bool) -> bool:
    """Tell whether something is so in all processes, and wait for them."""
    if jax.process_count() == 1:
        return good
    return bool(multihost_utils.process_allgather(np.array(good)).all())
