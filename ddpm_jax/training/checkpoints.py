"""A run's checkpoints on disk: written in the background, whole or not at all, and read back the newest first."""

import contextlib
import logging
import shutil
from pathlib import Path
from typing import Any, cast

import jax

from ddpm_jax import sharding
from ddpm_jax.checkpoint import trees
from ddpm_jax.checkpoint.folder import compare, first_line, read_weights
from ddpm_jax.config import Config
from ddpm_jax.files import plain_path
from ddpm_jax.training.step import TrainState
from ddpm_jax.types import PyTree

log = logging.getLogger(__name__)

DAMAGED_KEPT = 2  # for inspection; each is as large as a good one


class Checkpoints:
    """A folder of trees of arrays, by step."""

    def __init__(self, folder: Path, *, keep_last: int | None, keep_every: int):
        """Open the folder.

        Args:
            folder: made if it does not exist.
            keep_last: number of newest states kept; None keeps all.
            keep_every: states whose step is a multiple of this are kept for good; 0 for none.
        """
        self.folder, self._open = folder, contextlib.ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        place = self._open.enter_context(plain_path(folder))
        self.manager = trees.open_series(place, keep_last=keep_last, keep_every=keep_every)
        self._open.callback(self.manager.close)

    def steps(self) -> list[int]:
        """Return the steps of the states in the folder, in order."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: Any) -> bool:
        """Write a state in the background, after the one before has been written.

        Returns:
            Whether it is written: False if there is a state of that step.

        Raises:
            Exception: the state before could not be written.
        """
        if step in self.manager.all_steps():
            return False
        trees.save_step(self.manager, step, state)
        return True

    def wait(self) -> None:
        """Wait until all states are written.

        Raises:
            Exception: one could not be written.
        """
        self.manager.wait_until_finished()

    def read_back(self, step: int, name: str, config: Config, written: PyTree) -> None:
        """Read a part of a state back and compare it with the arrays in memory. A state that differs is put aside.

        Args:
            step: of the state.
            name: of the part, a tree of weights.
            config: of the network.
            written: the part in memory.

        Raises:
            OSError: the part cannot be read, or differs.
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
        """Raise the error of the last write, if it has ended. Does not wait for it.

        Raises:
            Exception: the state could not be written.
        """
        if not self.manager.is_saving_in_progress():
            self.wait()

    def restore(self, like: TrainState) -> TrainState | None:
        """Return the newest state that can be read, with the shardings of `like`, or None if there is none.

        Newer states that are damaged are named in a warning and renamed to damaged-STEP.
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
                return cast(TrainState, state)
            damaged.append(step)
            why = first_line(error) if error else "another process cannot read it."
            log.warning("The checkpoint of step %s in %s is damaged: %s", step, self.folder, why)
        return None

    def put_aside(self, steps: list[int]) -> None:
        """Rename damaged states to damaged-STEP, and keep only the newest few of those."""
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
        """Return a path that does not exist: the name, or the name with a number."""
        path, number = self.folder / name, 0
        while path.exists():
            number += 1
            path = self.folder / f"{name}-{number}"
        return path

    def close(self) -> None:
        self._open.close()


def remove_leftovers(folder: Path) -> None:
    """Remove half-written checkpoints of a killed process. No process may be writing into the folder."""
    for path in folder.glob("*.orbax-checkpoint-tmp*"):
        log.info("%s is a leftover of a killed run: it is removed.", path)
        shutil.rmtree(path, ignore_errors=True)
