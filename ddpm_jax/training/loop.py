"""A training run from its first step to its last, whatever happens in between."""

import contextlib
import dataclasses
import logging
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ddpm_jax import checkpoint, compilation, plotting, sampling, sharding
from ddpm_jax.checkpoint.folder import CHECKPOINTS, first_line, read_config, steps_in, write_config
from ddpm_jax.config import Config
from ddpm_jax.extras import need
from ddpm_jax.files import RUN_FILE, check_local, versions, write_json
from ddpm_jax.images.source import Source, UnreadableImage
from ddpm_jax.images.walk import shown
from ddpm_jax.losses import check_objective, traced_per_image
from ddpm_jax.models.layout import layout
from ddpm_jax.params import Params, count, init
from ddpm_jax.pixels import data_from_bytes
from ddpm_jax.random_keys import key_from_seed
from ddpm_jax.samplers.registry import FAST
from ddpm_jax.training import logs
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.data import Batch, Batches, centred, open_data
from ddpm_jax.training.data_record import changes, facts, write_files
from ddpm_jax.training.network import advice_on_channels, check_resolution, network, own_channels, own_resolution
from ddpm_jax.training.run_folder import SNAPSHOTS, finished, look_at, tidy
from ddpm_jax.training.settings import RunConfig, TrainConfig, check_new_run
from ddpm_jax.training.step import Run, TrainState, abstract, compiled, create
from ddpm_jax.types import PyTree
from ddpm_jax.validation import check

log = logging.getLogger(__name__)

MOST_HELD_OUT = 2048


class Stopped(SystemExit):
    """A run was told to stop by a signal, and has saved the step that it had come to.

    Attributes:
        code: what the process exits with, unless this is caught: 143 after SIGTERM, 130 after Ctrl-C.
        step: the last that was done.
        params: the averaged weights at that step.
    """

    def __init__(self, signal_number: int, step: int, params: Params):
        super().__init__(128 + signal_number)
        self.step, self.params = step, params


def train(config: TrainConfig, out: str | Path, *, resume: bool = False) -> Params:
    """Train a model, or go on training it.

    The folder holds train.json (all settings), ddpm_jax.json (the network), checkpoints/, metrics.jsonl, samples/ and
    learning_curve.png; `load(out)` opens it at any time. A run that was stopped, in whatever way, goes on with `resume`
    as if it never had been: bit for bit on the same machine, from the last checkpoint. SIGTERM and Ctrl-C save one, and
    end in `Stopped`; a second Ctrl-C ends at once. A folder is held by one job at a time.

    Args:
        config: all settings.
        out: the run's folder.
        resume: go on with the run that is there; begin it if there is none.

    Returns:
        The averaged weights of the last step. Of a run that was finished before, nothing changes.

    Raises:
        training.Stopped: SIGTERM or Ctrl-C came before the last step. It is a SystemExit: a script that does not catch
            it goes no further, and exits with 143 or 130.
        FileExistsError: the folder holds a run, and `resume` is not set, or something else.
        BlockingIOError: another job holds it.
        FileNotFoundError: no data, or no checkpoint to begin with.
        ValueError: data that cannot be read, settings that do not fit the data, the devices or the run that is there;
            fewer steps than that run has done.
        ModuleNotFoundError: a package of the `train` extra is not installed.
        training.Diverged: the loss is not finite; the last checkpoint is from before.
        OSError: a checkpoint or the log could not be written; the checkpoints before are left.

    Example:
        >>> preset = ddpm_jax.training.PRESETS["tiny-16"]
        >>> config = dataclasses.replace(preset, data=dataclasses.replace(preset.data, data="digits"))
        >>> params = train(config, "runs/digits")                                           # doctest: +SKIP
    """
    check_local(out)
    _need_packages(config)
    folder = Path(out).expanduser()
    with sharding.held(folder, "run"):
        return _train(config, folder, resume)


def _train(config: TrainConfig, folder: Path, resume: bool) -> Params:
    idle = config.data.accept_changed_data and not resume
    check(not idle, "`accept_changed_data` is for a run that goes on (`resume`): leave it out.")
    before = look_at(folder, config, resume)
    if before is None:
        check_new_run(config)
        own_resolution(config.model)  # whether the file can be read
    elif (done := finished(folder, config)) is not None:
        return done
    mesh = sharding.data_mesh()
    parts = mesh.size * config.optimizer.accumulate
    check(
        config.run.batch_size % parts == 0,
        f"`batch_size` {config.run.batch_size} does not divide over {mesh.size} devices x "
        f"{config.optimizer.accumulate} parts (`accumulate`).",
    )
    source = open_data(config.data, out=folder, before=before and before["data"])
    weights = None
    if before is None:
        described, weights = _what_to_train(config, source)
    else:
        described = read_config(folder)
        may_differ = {"dtype": config.run.dtype, "remat": config.run.remat, "dropout": config.model.dropout}
        described = dataclasses.replace(described, unet=dataclasses.replace(described.unet, **may_differ))
    source = source.fitting(described.unet.in_channels)
    changed = before and changes(source, before["data"], folder, accepted=config.data.accept_changed_data)
    held_out = open_data(config.data, out=folder, like=source) if config.data.held_out else None
    described = dataclasses.replace(described, class_names=source.classes)  # older runs have none
    run = Run(described, config)
    sharding.wait_for_all("all have looked at the folder")
    total, evals = described.schedule.num_train_timesteps, config.run.sample_evals
    good = evals <= total or evals == RunConfig().sample_evals  # a default adapts
    check(good, f"`sample_evals` {evals} is more than the {total} timesteps of the network: take at most those.")

    def describe() -> None:
        record = {
            "config": config.to_dict(),
            "data": facts(source),
            "broken": [shown(path) for path in source.broken],
            "parameters": count(layout(described.unet).weights),
            "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
            "versions": versions("ddpm-jax", "jax", "flax", "optax"),
        }
        if before is None:  # of a run that was stopped before its first checkpoint
            shutil.rmtree(folder / SNAPSHOTS, ignore_errors=True)
        write_files(source, folder)
        write_json(folder / RUN_FILE, record)
        write_config(described, folder, {"trained_by": RUN_FILE})

    if jax.process_index() == 0:
        for line in (changed, source.describe(), held_out and f"Held out: {held_out.describe()}"):
            if line:  # a warning, so that it is seen where nobody has set up logging
                log.warning("%s", line)
        tidy(folder)
        if before is None:
            describe()
    sharding.wait_for_all("the folder is ready")

    keep = {"keep_last": config.run.keep_last, "keep_every": config.run.keep_every}
    with contextlib.closing(Checkpoints(folder / CHECKPOINTS, **keep)) as checkpoints:
        if checkpoints.steps():
            state = checkpoints.restore(abstract(run, mesh))
            check(state is not None, f"No checkpoint in {folder / CHECKPOINTS} can be read.")
            if jax.process_index() == 0:
                describe()  # not before all is known to be well
        else:
            weights = _what_to_train(config, source)[1] if weights is None else weights
            state = create(run, weights, mesh)
        del weights
        state, told = _Trainer(run, folder, mesh, source, held_out, checkpoints).run_from(state)
    params = Params(state.ema, run.network)
    if told:
        raise Stopped(told, int(state.step), params)
    return params


class _Trainer:
    """One process's part of a run."""

    def __init__(
        self,
        run: Run,
        folder: Path,
        mesh: jax.sharding.Mesh,
        source: Source,
        held_out: Source | None,
        checkpoints: Checkpoints,
    ):
        self.run, self.folder, self.mesh, self.checkpoints = run, folder, mesh, checkpoints
        config, size = run.config, run.network.unet.image_size[0]
        self.batches = Batches(source, config.data, size, batch_size=config.run.batch_size, seed=config.run.seed)
        self.held_out = None if held_out is None else centred(held_out, size, MOST_HELD_OUT)
        self.proven: list[Checkpoints] = []
        self.evaluate = compilation.jit(_validation_losses, static_argnums=0)

    def run_from(self, state: TrainState) -> tuple[TrainState, int]:
        """Do the steps that are left, or those before a signal; return its number too, or 0."""
        settings, start = self.run.config.run, int(state.step)
        step = compiled(self.run, state, self.mesh)
        record = logs.Log(
            self.folder,
            start=start,
            stop=settings.steps,
            every=settings.log_every,
            batch_size=settings.batch_size,
            writes=jax.process_index() == 0,
            tensorboard=settings.tensorboard,
        )
        number, told, snapshots = start, 0, None
        if self.run.config.ema.power_ema:
            snapshots = Checkpoints(self.folder / SNAPSHOTS, keep_last=None, keep_every=0)
        own = self.batches.own(start, settings.steps, jax.process_index(), jax.process_count())
        try:
            with _stop_signals() as stopped:
                for number, batch in enumerate(own, start + 1):
                    state, metrics = step(state, *self._placed(batch))
                    with self._reporting("The log", number):
                        record.add(number, metrics)
                        self._watch(number, state, record)
                    last = number == settings.steps
                    if snapshots and (last or number % self.run.config.ema.snapshot_every == 0):
                        trees = {str(i): tree for i, tree in enumerate(state.power_emas)}
                        with self._writing(snapshots, number, record):
                            self._save(snapshots, number, trees, "0")
                            snapshots.wait()  # before the checkpoint after which it would not be made again
                    told = 0 if last else self._told(stopped, number)
                    if last or told or number % settings.save_every == 0:
                        with self._writing(self.checkpoints, number, record):
                            self._save(self.checkpoints, number, state, "ema")
                            if last or told:
                                self.checkpoints.wait()
                    elif number % settings.log_every == 0:
                        with self._writing(self.checkpoints, number, record):
                            self.checkpoints.check()
                    if last or told:
                        with self._reporting("The log", number):
                            record.flush(number)
                    if told:
                        break
            if jax.process_index() == 0:
                logs.draw_curve(self.folder)
        except UnreadableImage as error:
            raise self._cut_off_by(error, number, state, record) from error
        except logs.Diverged as error:
            with contextlib.suppress(Exception):  # what is being written counts, if it can be
                self.checkpoints.wait()
            raise logs.Diverged(
                f"{error} The last good checkpoint is that of step {self._last_good()}. The same settings would come "
                f"to the same end: begin a new run with others, from its weights by `init` {self.folder}."
            ) from None
        finally:
            record.close()
            if snapshots:
                snapshots.close()
        if told:
            log.warning(
                "Stopped at step %d of %d, which is saved; a resumed run goes on there.", number, settings.steps
            )
        return state, told

    def _placed(self, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """Put this process's slice of a batch on its devices."""
        spread = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(self.mesh.axis_names[0]))
        place = lambda array: jax.make_array_from_process_local_data(spread, array)
        return place(batch.images), None if batch.labels is None else place(batch.labels)

    def _told(self, stopped: list[int], number: int) -> int:
        """Return the number of the signal that told any process to stop, or 0; all of them ask at the same step."""
        signal_number = max(stopped, default=0)
        if jax.process_count() == 1:
            return signal_number
        return int(multihost_utils.process_allgather(np.array(signal_number)).max()) if number % 10 == 0 else 0

    def _save(self, where: Checkpoints, number: int, tree: Any, name: str) -> None:
        """Write a tree. The first is read back, so that no run goes on for days and leaves nothing that can be read."""
        if where.save(number, tree) and where not in self.proven:
            part = tree[name] if isinstance(tree, dict) else getattr(tree, name)
            where.read_back(number, name, self.run.network, part)
            self.proven.append(where)

    @contextlib.contextmanager
    def _writing(self, where: Checkpoints, number: int, record: logs.Log) -> Iterator[None]:
        """Let a checkpoint be written, and say what is to be said if that fails."""
        record.settle()  # nothing that is not finite is ever saved
        with self._reporting(f"A checkpoint in {where.folder}", number, Exception):
            yield

    @contextlib.contextmanager
    def _reporting(self, what: str, number: int, errors: type[Exception] = OSError) -> Iterator[None]:
        """Say what could not be written, and from where the run can go on."""
        try:
            yield
        except errors as error:
            raise OSError(
                f"{what} could not be written (known at step {number}): {first_line(error)} The last good checkpoint "
                f"is that of step {self._last_good()}. Make room, if the disk is full, and go on with `resume`."
            ) from error

    def _cut_off_by(self, error: UnreadableImage, number: int, state: TrainState, record: logs.Log) -> UnreadableImage:
        """Save the steps that are done, and say how the run can go on.

        Of several processes the others wait for this one's batch, and cannot save with it.
        """
        if number > 0 and jax.process_count() == 1:
            with self._writing(self.checkpoints, number, record):
                self._save(self.checkpoints, number, state, "ema")
                self.checkpoints.wait()
            record.flush(number)
        return UnreadableImage(
            f"{error} The last good checkpoint is that of step {self._last_good()}. Bring the file back as it was and "
            "go on with `resume`; or mend or remove it, and go on with `resume` and `accept_changed_data`."
        )

    def _last_good(self) -> int:
        return max(steps_in(self.folder / CHECKPOINTS), default=0)

    def _watch(self, number: int, state: TrainState, record: logs.Log) -> None:
        """Do what is done at intervals to see how the run goes."""
        settings, last = self.run.config.run, number == self.run.config.run.steps
        if self.held_out is not None and (last or number % settings.validate_every == 0):
            record.settle()
            record.write({"step": number, "validation_loss": self._validation_loss(state.ema)})
        if settings.sample_every and (last or number % settings.sample_every == 0):
            record.settle()
            record.picture(number, self._grid(state.ema))

    def _validation_loss(self, weights: PyTree) -> float:
        size, (images, labels) = self.run.config.run.batch_size, self.held_out
        key, total = key_from_seed(self.run.config.run.seed), 0.0
        for start in range(0, len(images), size):
            places = np.arange(start, start + size)
            rows = places % len(images)  # a last batch is filled up
            given = (images[rows], places, None if labels is None else labels[rows])
            values = self.evaluate(self.run, weights, key, *sharding.place(given, self.mesh, split=True))
            values = multihost_utils.process_allgather(values, tiled=True) if jax.process_count() > 1 else values
            total += float(np.asarray(values)[places < len(images)].sum())
        return total / len(images)

    def _grid(self, weights: PyTree) -> np.ndarray:
        settings, unet = self.run.config.run, self.run.network.unet
        count, total = unet.num_classes, self.run.network.schedule.num_train_timesteps
        labels = np.arange(settings.num_samples) % count if count else None
        images = sampling.sample(
            Params(weights, self.run.network),
            key_from_seed(settings.seed),
            settings.num_samples,
            sampler=dataclasses.replace(FAST, num_steps=min(settings.sample_evals, total)),
            class_labels=labels,
        )
        if jax.process_count() > 1:
            images = multihost_utils.process_allgather(images, tiled=True)
        names = dict(enumerate(self.run.network.class_names))
        captions = [names.get(label, f"class {label}") for label in labels.tolist()] if names else None
        return plotting.grid(images, captions=captions)


def _validation_losses(run: Run, weights: PyTree, key: jax.Array, images, indices, labels) -> jax.Array:
    """Return each image's loss: without dropout, at the timestep and with the noise that are always its own."""
    objective = dataclasses.replace(run.config.objective, label_dropout=0.0, timestep_sampling="uniform")
    x_0 = data_from_bytes(images, run.network.schedule.data_range)
    values, _ = traced_per_image((run.network, objective), weights, key, x_0, labels, None, None, indices)
    return values


def _need_packages(config: TrainConfig) -> None:
    """Refuse a run that could not be finished for want of a package."""
    digits = "digits" in (config.data.data, config.data.held_out)
    wanted = {"grain": True, "matplotlib": True, "tensorboardX": config.run.tensorboard, "sklearn": digits}
    for name in (name for name, is_wanted in wanted.items() if is_wanted):
        need(name, "train", "Training")


def _what_to_train(config: TrainConfig, source: Source) -> tuple[Config, PyTree]:
    """Return the network, and its first weights on the host."""
    classes, dropped = len(source.classes), config.objective.label_dropout > 0
    if config.model.init is None:
        resolution = config.data.resolution or own_resolution(config.model) or _side(source)
        channels = source.fitting(own_channels(config.model)).channels
        built = network(config, resolution, channels, source.classes)
        check_objective(built, config.objective)
        with _on_host():
            return built, init(key_from_seed(config.run.seed), built).weights
    with _on_host():
        params = checkpoint.load(config.model.init, dtype=config.run.dtype)
    unet = dataclasses.replace(params.config.unet, remat=config.run.remat, dropout=config.model.dropout)
    resolution = config.data.resolution or (unet.image_size or (_side(source),))[0]
    check_resolution(resolution, len(unet.block_out_channels))
    unet = dataclasses.replace(unet, sample_size=resolution)
    channels = source.fitting(unet.in_channels).channels
    check(
        unet.in_channels == channels,
        f"--init {config.model.init} is a network for {unet.in_channels} channels; the data has {channels}."
        f"{advice_on_channels(unet.in_channels, channels)}",
    )
    allowed = (classes + 1,) if dropped else (classes, classes + 1) if classes else (0,)
    check(
        unet.class_embed_type is None and unet.num_classes in allowed,
        f"--init {config.model.init} has {unet.num_class_embeds or 'no'} classes; the data has {classes or 'none'}"
        f"{' (and one more row for none)' if dropped else ''}.",
    )
    null_class = classes if dropped and params.config.null_class is None else params.config.null_class
    built = dataclasses.replace(params.config, unet=unet, class_names=source.classes, null_class=null_class)
    check_objective(built, config.objective)
    return built, params.weights


def _on_host() -> contextlib.AbstractContextManager:
    """Keep arrays off the accelerators, where there is a CPU backend beside them."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def _side(source: Source) -> int:
    """Return the resolution of an array's images."""
    check(isinstance(source.items, np.ndarray), "`resolution` says to what size the images of a folder are brought.")
    _, height, width, _ = source.items.shape
    check(height == width, f"The images have {height} x {width} pixels: pass `resolution`, the side of a square.")
    return height


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Give a list that the numbers of SIGTERM and Ctrl-C come into; a second Ctrl-C interrupts at once."""
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
