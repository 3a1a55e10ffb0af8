"""A training run from its first step to its last, and what it saves when it is interrupted.

`train` holds the folder, opens the data, decides the network, writes the record, takes the state, and does the steps.
"""

import contextlib
import dataclasses
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ddpm_jax import sharding
from ddpm_jax.checkpoint.folder import CHECKPOINTS, first_line, steps_in
from ddpm_jax.extras import need
from ddpm_jax.files import check_local
from ddpm_jax.images.source import Source, UnreadableImage
from ddpm_jax.params import Params
from ddpm_jax.training import logs, run_folder
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.checks import check_batch
from ddpm_jax.training.data import Batch, Batches, open_data
from ddpm_jax.training.network import new_network, own_resolution, resumed_network
from ddpm_jax.training.settings import LoopConfig, TrainConfig
from ddpm_jax.training.step import Plan, TrainState, abstract, compiled, create
from ddpm_jax.training.watching import HeldOut, sample_grid
from ddpm_jax.types import PyTree
from ddpm_jax.validation import check

log = logging.getLogger(__name__)

TELLING_EVERY = 10  # steps after which several processes ask each other for signals


class Stopped(SystemExit):
    """A signal stopped a run, which has saved the step that it was at.

    Attributes:
        code: the exit code of the process, unless this is caught: 143 after SIGTERM, 130 after Ctrl-C.
        step: the last step that was done.
        params: the averaged weights at that step.
    """

    def __init__(self, signal_number: int, step: int, params: Params):
        super().__init__(128 + signal_number)
        self.step, self.params = step, params


def train(config: TrainConfig, out: str | Path, *, resume: bool = False) -> Params:
    """Train a model, or continue training it.

    The folder holds train.json (all settings), ddpm_jax.json (the network), checkpoints/, metrics.jsonl, samples/ and
    learning_curve.png; `load(out)` opens it at any time. A run that was interrupted, in whatever way, continues with
    resume=True exactly as if it had not been: from its last checkpoint, bit for bit on the same machine. SIGTERM and
    Ctrl-C save a checkpoint and raise `Stopped`; a second Ctrl-C interrupts at once. One job at a time holds a folder.

    Args:
        config: all settings.
        out: the run's folder.
        resume: continue the run that is there; begin it if there is none.

    Returns:
        The averaged weights after the last step. A run that was finished before is left unchanged.

    Raises:
        training.Stopped: SIGTERM or Ctrl-C came before the last step. It is a SystemExit: a script that does not catch
            it exits with 143 or 130.
        FileExistsError: the folder holds a run and `resume` is not set, or it holds something else.
        BlockingIOError: another job holds it.
        FileNotFoundError: there is no such data, or no checkpoint to begin with.
        ValueError: data that cannot be read; settings that do not fit the data, the devices or the run that is there;
            fewer steps than that run has done.
        ModuleNotFoundError: a package of the `train` extra is not installed.
        training.Diverged: the loss is not finite. The last checkpoint is from before.
        OSError: a checkpoint or the log could not be written. Earlier checkpoints are left.

    Example:
        >>> preset = ddpm_jax.training.PRESETS["tiny-16"]
        >>> config = dataclasses.replace(preset, data=dataclasses.replace(preset.data, data="digits"))
        >>> params = train(config, "runs/digits")                                           # doctest: +SKIP
    """
    check_local(out)
    _need_packages(config)
    folder = Path(out).expanduser()
    with sharding.held(folder, "run"):
        before = run_folder.look_at(folder, config, resume)
        if before is not None and (done := run_folder.finished(folder, config)) is not None:
            return done
        return _train(config, folder, before)


def _train(config: TrainConfig, folder: Path, before: dict[str, Any] | None) -> Params:
    """Do the steps of a new run or, if its record is given, those that are left of an old one."""
    mesh = sharding.data_mesh()
    check_batch(config, mesh.size)
    own_resolution(config.model)  # a file that cannot be read is an error before the data is searched
    source = open_data(config.data, out=folder, before=before and before["data"])
    network, weights = new_network(config, source) if before is None else (resumed_network(config, folder), None)
    source = source.fitting(network.unet.in_channels)
    # a run of version 0.1 has recorded no names of classes
    plan = Plan(dataclasses.replace(network, class_names=source.classes), config)
    held_out = open_data(config.data, out=folder, like=source) if config.data.held_out else None
    _check_evals(plan)
    accepted = config.data.accept_changed_data
    changed = before and run_folder.changes(source, before["data"], folder, accepted=accepted)
    sharding.wait_for_all("all have looked at the folder")

    if jax.process_index() == 0:
        for line in (changed, source.describe(), held_out and f"Held out: {held_out.describe()}"):
            if line:  # a warning is seen where nobody has configured logging
                log.warning("%s", line)
        run_folder.tidy(folder)
        if before is None:
            run_folder.remove_snapshots(folder)
            run_folder.write_record(folder, plan, source)
    sharding.wait_for_all("the folder is ready")

    with contextlib.ExitStack() as open_:
        checkpoints = Checkpoints(
            folder / CHECKPOINTS, keep_last=config.loop.keep_last, keep_every=config.loop.keep_every
        )
        open_.callback(checkpoints.close)
        if before is None:
            state = create(plan, weights, mesh)
        else:
            state = checkpoints.restore(abstract(plan, mesh))
            if state is None:
                raise ValueError(f"No checkpoint in {folder / CHECKPOINTS} can be read: begin a new run.")
            if jax.process_index() == 0:  # only now: a run that cannot be continued keeps its record
                run_folder.write_record(folder, plan, source)
        del weights
        snapshots = None
        if config.ema.power_ema:
            snapshots = Checkpoints(folder / run_folder.SNAPSHOTS, keep_last=None, keep_every=0)
            open_.callback(snapshots.close)
        trainer = _Trainer(plan, folder, mesh, source, held_out, checkpoints, snapshots)
        state, told = trainer.run_from(state)
    params = Params(state.ema, plan.network)
    if told:
        raise Stopped(told, int(state.step), params)
    return params


class _Trainer:
    """One process's part of a run."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        mesh: jax.sharding.Mesh,
        source: Source,
        held_out: Source | None,
        checkpoints: Checkpoints,
        snapshots: Checkpoints | None,
    ):
        self.plan, self.folder, self.mesh = plan, folder, mesh
        self.checkpoints, self.snapshots = checkpoints, snapshots
        self.loop = loop = plan.settings.loop
        size = plan.network.unet.check_size()[0]
        self.batches = Batches(source, plan.settings.data, size, batch_size=loop.batch_size, seed=loop.seed)
        self.held_out = None if held_out is None else HeldOut(plan, held_out, mesh)
        self.proven: list[Checkpoints] = []

    def run_from(self, state: TrainState) -> tuple[TrainState, int]:
        """Do the steps that are left, or those before a signal.

        Returns:
            The state, and the signal's number, or 0.
        """
        loop, start = self.loop, int(state.step)
        step, number, told = compiled(self.plan, state, self.mesh), start, 0
        record = self._opened_log(start)
        own = self.batches.own(start, loop.steps, jax.process_index(), jax.process_count())
        try:
            with _stop_signals() as stopped:
                for number, batch in enumerate(own, start + 1):
                    state, metrics = step(state, *self._placed(batch))
                    with self._reporting("The log", number):
                        record.add(number, metrics)
                        self._watch(number, state, record)
                    self._snapshot(number, state, record)
                    told = 0 if number == loop.steps else self._told(stopped, number)
                    self._checkpoint(number, state, record, ends=bool(told) or number == loop.steps)
                    if told:
                        break
            if jax.process_index() == 0:
                logs.draw_curve(self.folder)
        except UnreadableImage as error:
            raise self._cut_off_by(error, number, state, record) from error
        except logs.Diverged as error:
            with contextlib.suppress(Exception):  # a checkpoint that is still being written counts if it succeeds
                self.checkpoints.wait()
            raise logs.Diverged(
                f"{error} The last good checkpoint is that of step {self._last_good()}. The same settings would "
                f"diverge again: begin a new run with others, from its weights by `init` {self.folder}."
            ) from None
        finally:
            record.close()
        if told:
            log.warning("Stopped at step %d of %d, which is saved; a resumed run continues there.", number, loop.steps)
        return state, told

    def _opened_log(self, start: int) -> logs.Log:
        return logs.Log(
            self.folder,
            start=start,
            stop=self.loop.steps,
            every=self.loop.log_every,
            batch_size=self.loop.batch_size,
            writes=jax.process_index() == 0,
            tensorboard=self.loop.tensorboard,
        )

    def _placed(self, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """Put this process's slice of a batch on its devices."""
        spread = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(self.mesh.axis_names[0]))
        place = lambda array: jax.make_array_from_process_local_data(spread, array)
        return place(batch.images), None if batch.labels is None else place(batch.labels)

    def _watch(self, number: int, state: TrainState, record: logs.Log) -> None:
        """Write the validation loss and the samples of the steps that are due for them."""
        loop, last = self.loop, number == self.loop.steps
        if self.held_out is not None and (last or number % loop.validate_every == 0):
            record.settle()
            record.write({"step": number, "validation_loss": self.held_out.loss(state.ema)})
        if loop.sample_every and (last or number % loop.sample_every == 0):
            record.settle()
            record.picture(number, sample_grid(self.plan, state.ema))

    def _snapshot(self, number: int, state: TrainState, record: logs.Log) -> None:
        """Save the power-function averages if they are due."""
        due = number == self.loop.steps or number % self.plan.settings.ema.snapshot_every == 0
        if self.snapshots and due:
            trees = {str(place): tree for place, tree in enumerate(state.power_emas)}
            with self._writing(self.snapshots, number, record):
                self._save(self.snapshots, number, trees, "0")
                # now: a run resumed from the next checkpoint would not write this snapshot again
                self.snapshots.wait()

    def _checkpoint(self, number: int, state: TrainState, record: logs.Log, *, ends: bool) -> None:
        """Save the state if it is due, in the background unless the run ends here; else ask for errors of the last."""
        if ends or number % self.loop.save_every == 0:
            with self._writing(self.checkpoints, number, record):
                self._save(self.checkpoints, number, state, "ema")
                if ends:
                    self.checkpoints.wait()
        elif number % self.loop.log_every == 0:
            with self._writing(self.checkpoints, number, record):
                self.checkpoints.check()
        if ends:
            with self._reporting("The log", number):
                record.flush(number)

    def _told(self, stopped: list[int], number: int) -> int:
        """Return the number of the signal that any process has got, or 0. All processes ask after the same steps."""
        signal_number = max(stopped, default=0)
        if jax.process_count() == 1:
            return signal_number
        if number % TELLING_EVERY:
            return 0
        return int(multihost_utils.process_allgather(np.array(signal_number)).max())

    def _save(self, where: Checkpoints, number: int, tree: Any, name: str) -> None:
        """Write a tree; read its part `name` back the first time, lest a long run leaves nothing that can be read."""
        if where.save(number, tree) and where not in self.proven:
            part: PyTree = tree[name] if isinstance(tree, dict) else getattr(tree, name)
            where.read_back(number, name, self.plan.network, part)
            self.proven.append(where)

    @contextlib.contextmanager
    def _writing(self, where: Checkpoints, number: int, record: logs.Log) -> Iterator[None]:
        """Guard the writing of a checkpoint: only finite losses before it, and errors that say what is left."""
        record.settle()
        with self._reporting(f"A checkpoint in {where.folder}", number, Exception):
            yield

    @contextlib.contextmanager
    def _reporting(self, what: str, number: int, errors: type[Exception] = OSError) -> Iterator[None]:
        """Turn errors of writing into one that says from which step the run can be continued."""
        try:
            yield
        except errors as error:
            raise OSError(
                f"{what} could not be written (known at step {number}): {first_line(error)} The last good checkpoint "
                f"is that of step {self._last_good()}. Make room, if the disk is full, and continue with `resume`."
            ) from error

    def _cut_off_by(self, error: UnreadableImage, number: int, state: TrainState, record: logs.Log) -> UnreadableImage:
        """Save the steps that are done, and return an error that says how to continue.

        One of several processes cannot save: the others wait for its batch.
        """
        if number > 0 and jax.process_count() == 1:
            with self._writing(self.checkpoints, number, record):
                self._save(self.checkpoints, number, state, "ema")
                self.checkpoints.wait()
            record.flush(number)
        return UnreadableImage(
            f"{error} The last good checkpoint is that of step {self._last_good()}. Restore the file as it was and "
            "continue with `resume`; or mend or remove it, and continue with `resume` and `accept_changed_data`."
        )

    def _last_good(self) -> int:
        return max(steps_in(self.folder / CHECKPOINTS), default=0)


def _need_packages(config: TrainConfig) -> None:
    """Refuse a run that would fail later for want of a package."""
    digits = "digits" in (config.data.data, config.data.held_out)
    wanted = {"grain": True, "matplotlib": True, "tensorboardX": config.loop.tensorboard, "sklearn": digits}
    for name in (name for name, is_wanted in wanted.items() if is_wanted):
        need(name, "train", "Training")


def _check_evals(plan: Plan) -> None:
    """Refuse more evaluations of a sample than the schedule has timesteps. The default adapts."""
    total, evals = plan.network.schedule.num_train_timesteps, plan.settings.loop.sample_evals
    check(
        evals <= total or evals == LoopConfig().sample_evals,
        f"`sample_evals` {evals} is more than the {total} timesteps of the network: take at most those.",
    )


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect the numbers of SIGTERM and Ctrl-C in a list. A second Ctrl-C interrupts at once."""
    stopped, before = [], {}

    def handle(number: int, frame: Any) -> None:
        if stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopped.append(int(number))

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
