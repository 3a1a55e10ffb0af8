"""A run's checkpoints on disk: written in the background, whole or not at all, and read back the newest first."""

import contextlib
import logging
import shutil
from pathlib import Path
from typing import Any

import jax

from ddpm_jax import sharding
from ddpm_jax.checkpoint import trees
from ddpm_jax.checkpoint.folder import compare, first_line, read_weights
from ddpm_jax.config import Config
from ddpm_jax.files import plain_path
from ddpm_jax.training.step import TrainState
from ddpm_jax.types import PyTree

log = logging.getLogger(__name__)

DAMAGED_KEPT = 2  # for whoever wants to look into them; each is as large as a good one


class Checkpoints:
    """Trees of arrays by their step, in a folder."""

    def __init__(self, folder: Path, *, keep_last: int | None, keep_every: int):
        """Open the folder.

        Args:
            folder: made if it is not there.
            keep_last: how many states stay; None for all.
            keep_every: those whose step is its multiple stay for good; 0 for none.
        """
        self.folder, self._open = folder, contextlib.ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        place = self._open.enter_context(plain_path(folder))
        self.manager = trees.open_series(place, keep_last=keep_last, keep_every=keep_every)
        self._open.callback(self.manager.close)

    def steps(self) -> list[int]:
        """Return the steps that are there, in order."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: Any) -> bool:
        """Write a state in the background; what is still being written is waited for first.

        Returns:
            Whether it was not there yet.

        Raises:
            Exception: the state before could not be written.
        """
        if step in self.manager.all_steps():
            return False
        trees.save_step(self.manager, step, state)
        return True

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            Exception: it could not be.
        """
        self.manager.wait_until_finished()

    def read_back(self, step: int, name: str, config: Config, written: PyTree) -> None:
        """Wait for a state, and find one of the weights' trees in it as it is in memory; put it aside otherwise.

        Raises:
            OSError: it cannot be read, or is something else.
        """
        self.wait()
        try:
            compare(lambda: read_weights(self.folder, step, name, config), written)
            error = None
        except OSError as found:
            error = found
        if not sharding.everywhere(error is None):
            self.put_aside([step])
            raise error or OSError("What has been written cannot be read back by another process.")

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
        damaged = []
        for step in reversed(self.steps()):
            state, error = None, None
            try:
                state = trees.restore_step(self.manager, step, like)
            except Exception as found:  # what a cut-off file raises depends on where it was cut
                error = found
            if sharding.everywhere(state is not None):
                self.put_aside(damaged)
                return state
            damaged.append(step)
            why = first_line(error) if error else "another process cannot read it."
            log.warning("The checkpoint of step %s in %s is damaged: %s", step, self.folder, why)
        return None

    def put_aside(self, steps: list[int]) -> None:
        """Take damaged states out of the series, as damaged-STEP; the newest few of them stay."""
        if steps and jax.process_index() == 0:
            for step in steps:
                (self.folder / str(step)).rename(self._free(f"damaged-{step}"))
            damaged = sorted(self.folder.glob("damaged-*"), key=lambda path: path.stat().st_ctime_ns)
            for path in damaged[:-DAMAGED_KEPT]:
                shutil.rmtree(path, ignore_errors=True)
        if steps:
            sharding.wait_for_all("damaged checkpoints are put aside")
            self.manager.reload()

    def _free(self, name: str) -> Path:
        """Return a path of that name, with a number behind it where there is one."""
        path, number = self.folder / name, 0
        while path.exists():
            number += 1
            path = self.folder / f"{name}-{number}"
        return path

    def close(self) -> None:
        self._open.close()


def remove_leftovers(folder: Path) -> None:
    """Take away what a killed process has left half written in a folder of checkpoints. Nobody may be writing there."""
    for path in folder.glob("*.orbax-checkpoint-tmp*"):
        log.info("%s is a leftover of a killed run: it is removed.", path)
        shutil.rmtree(path, ignore_errors=True)
