"""Runs on disk: interrupted in every way, resumed exactly, refused where settings or data do not fit."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import make_params, small_params
from etils import epath
from PIL import Image

import ddpm_jax
from ddpm_jax import cli, losses
from ddpm_jax.files import locked
from ddpm_jax.images.source import open_source
from ddpm_jax.losses import Objective
from ddpm_jax.training import PRESETS, DataConfig, Diverged, EmaConfig, LoopConfig, Stopped, TrainConfig, logs, train
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.network import new_network
from ddpm_jax.training.published import average, card
from ddpm_jax.training.settings import ModelConfig, OptimizerConfig

STEPS = 12


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with forty images and the config of a network."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "network.json").write_text(json.dumps(small_params().config.unet.to_dict()))
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8))
    return folder


@pytest.fixture(scope="module")
def settings(inputs):
    """A run of 12 small steps that saves every fourth."""
    return TrainConfig(
        data=DataConfig(data=str(inputs / "images.npy"), workers=2),
        model=ModelConfig(model_config=inputs / "network.json", dropout=0.1),
        optimizer=OptimizerConfig(warmup_steps=2, learning_rate=1e-3),
        ema=EmaConfig(power_ema=(0.05, 0.1), snapshot_every=6),
        loop=LoopConfig(batch_size=8, steps=STEPS, save_every=4, log_every=2, sample_every=0),
    )


@pytest.fixture(scope="module")
def whole(settings, inputs):
    """The folder of that run, done without interruption. Tests only read it."""
    train(settings, inputs / "whole")
    return inputs / "whole"


def command(settings, out, *words):
    """Return a command line with the same settings."""
    flags = []
    defaults = PRESETS["small-32"].to_dict()
    for group, items in settings.resolved().to_dict().items():
        for name, value in items.items():
            brought = name in ("channels", "channel_multipliers", "attention_resolutions", "norm_num_groups")
            if value != defaults[group][name] and value is not None and not brought:
                flag, values = "--" + name.replace("_", "-"), value if isinstance(value, tuple | list) else [value]
                flags += (
                    [flag] if value is True else [f"--no-{flag[2:]}"] if value is False else [flag, *map(str, values)]
                )
    flags += [] if settings.data.resolution else ["--resolution", "8"]
    return ["train", *flags, "--out", str(out), *words]


def subprocess_of(argv, patch="", cwd=None):
    program = f"import sys\nfrom ddpm_jax import cli\n{patch}\ncli.main(sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", program, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd
    )


def state_of(out, step=STEPS):
    """Return every array of a checkpoint as numpy, whatever devices wrote it."""
    folder = out / "checkpoints" / str(step) / "default"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        like = jax.tree.map(
            lambda leaf: np.empty(leaf.shape, leaf.dtype), checkpointer.metadata(folder).item_metadata.tree
        )
        as_numpy = ocp.checkpoint_utils.construct_restore_args(like)
        return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(like, restore_args=as_numpy))


def lines_of(out):
    timings = ("steps_per_second", "images_per_second")
    return [{name: value for name, value in line.items() if name not in timings} for line in logs.read(out)]


@pytest.mark.slow
def test_stopped_and_gone_on_with_is_bit_for_bit_the_same(settings, whole, tmp_path):
    """After kill -9 at step 7 and SIGTERM at step 10: weights, optimiser, averages, metrics and snapshots are equal."""
    kill = """
import os, signal, time
from ddpm_jax.training import logs
add = logs.Log.add
def dying(self, step, metrics):
    if step == STEP:
        while not os.path.isdir(sys.argv[sys.argv.index("--out") + 1] + "/checkpoints/4"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGNAL)
    add(self, step, metrics)
logs.Log.add = dying
"""
    assert TrainConfig.from_dict(json.loads((whole / "train.json").read_text())["config"]) == settings.resolved()
    out = tmp_path / "stopped"
    words = command(settings, out, "--resume")
    killed = subprocess_of(words, kill.replace("STEP", "7").replace("SIGNAL", "SIGKILL"))
    _, errors = killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL, errors
    stopped = subprocess_of(words, kill.replace("STEP", "10").replace("SIGNAL", "SIGTERM"))
    _, errors = stopped.communicate(timeout=120)
    assert stopped.returncode == 128 + signal.SIGTERM and "Stopped at step 10 of 12" in errors, errors
    assert Checkpoints(out / "checkpoints", keep_last=2, keep_every=0).steps()[-1] == 10
    finished = subprocess_of(words)
    _, errors = finished.communicate(timeout=120)
    assert finished.returncode == 0, errors

    jax.tree.map(np.testing.assert_array_equal, state_of(whole), state_of(out))
    assert lines_of(whole)[-1] == lines_of(out)[-1]
    assert [line["step"] for line in lines_of(out)] == list(range(2, STEPS + 1, 2))
    snapshots = [sorted(os.listdir(folder / "snapshots")) for folder in (whole, out)]
    assert snapshots == [["12", "6"], ["12", "6"]]
    assert (out / "learning_curve.png").exists()


def test_a_run_opens_as_a_model(whole):
    opened, state = ddpm_jax.load(whole), state_of(whole)
    jax.tree.map(np.testing.assert_array_equal, opened.weights, state["ema"])
    assert opened.config.unet.sample_size == 8
    raw = ddpm_jax.load(whole, ema=False)
    jax.tree.map(np.testing.assert_array_equal, raw.weights, state["weights"])
    assert np.any(np.asarray(raw.weights["conv_in"]["kernel"]) != opened.weights["conv_in"]["kernel"])
    ddpm_jax.sample(opened, jax.random.key(0), 2, sampler="fast")


def test_a_damaged_checkpoint_is_passed_over(settings, whole, tmp_path, caplog):
    """With its arrays truncated, the run continues from the checkpoint before, and ends with the same weights."""
    shutil.copytree(whole, tmp_path / "run")
    for path in (tmp_path / "run/checkpoints/12").rglob("d/*"):  # of each array there may be a second copy
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert ddpm_jax.load(tmp_path / "run").config.unet.sample_size == 8
    train(settings, tmp_path / "run", resume=True)
    assert "checkpoint of step 12" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, state_of(whole), state_of(tmp_path / "run"))


def test_damaged_twice(whole, tmp_path):
    """Each is renamed to a free name, and the two newest are kept."""
    for name in ("1", "2", "damaged-2", "damaged-2-1"):
        (tmp_path / "run" / name).mkdir(parents=True)
    shutil.copytree(whole / "checkpoints/8", tmp_path / "run/8")
    with contextlib.closing(Checkpoints(tmp_path / "run", keep_last=9, keep_every=0)) as checkpoints:
        checkpoints.put_aside([2, 1])
        assert checkpoints.steps() == [8]
    assert sorted(os.listdir(tmp_path / "run")) == ["8", "damaged-1", "damaged-2-2"]


def test_a_run_in_a_folder_with_an_odd_name(settings, whole, tmp_path):
    """From the first step to the post-hoc average. Half-written leftovers are removed by the job that holds it."""
    out = tmp_path / "flowers [v2]/a*b?"
    train(dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, steps=8)), out)
    left = [out / "checkpoints/9.orbax-checkpoint-tmp", out / "snapshots/9.orbax-checkpoint-tmp-17"]
    for path in left:
        path.mkdir()
    with locked(out, "run"), pytest.raises(BlockingIOError, match="is in use by another job"):
        train(settings, out, resume=True)
    assert all(path.exists() for path in left)
    train(settings, out, resume=True)
    assert not any(path.exists() for path in left) and not (out / ".lock").exists()
    jax.tree.map(np.testing.assert_array_equal, state_of(whole), state_of(out))
    jax.tree.map(np.testing.assert_array_equal, ddpm_jax.load(out).weights, ddpm_jax.load(whole).weights)
    found, expected = (average(folder, 0.1).weights for folder in (out, whole))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), found, expected)


def test_a_checkpoint_that_cannot_be_read_back_ends_the_run(settings, tmp_path, monkeypatch):
    """The first checkpoint is read back. Here orbax silently does not find its own files."""
    monkeypatch.setattr(epath.backend._OsPathBackend, "glob", lambda self, path: [])
    plain = dataclasses.replace(settings, ema=EmaConfig())
    message = "could not be written .known at step 4.: What was written cannot be read back.* step 0. Make room"
    with pytest.raises(OSError, match=message):
        train(plain, tmp_path / "run")
    assert os.listdir(tmp_path / "run/checkpoints") == ["damaged-4"]


def test_a_finished_run_is_left_as_it_is(settings, whole, tmp_path, caplog, capsys):
    """The same steps give a warning, fewer an error. No byte of the folder changes."""
    shutil.copytree(whole, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    params = train(settings, tmp_path / "run", resume=True)
    jax.tree.map(np.testing.assert_array_equal, params.weights, ddpm_jax.load(whole).weights)
    assert "is finished: its 12 steps are done. Nothing is changed" in caplog.text
    fewer = dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, steps=7))
    with pytest.raises(ValueError, match="`steps` 7 is less than the 12 that the run in .* ask for more, or take what"):
        train(fewer, tmp_path / "run", resume=True)
    words = command(settings, tmp_path / "run", "--resume")
    place = words.index("--resolution")
    del words[place : place + 2]
    cli.main(words)
    assert "opens it" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_exits_with_the_shells_code(settings, tmp_path, monkeypatch, number):
    """The current step is saved, and SystemExit ends the script unless it is caught."""
    add = logs.Log.add

    def told(self, step, metrics):
        if step == 2:
            signal.raise_signal(number)
        add(self, step, metrics)

    monkeypatch.setattr(logs.Log, "add", told)
    handlers = [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as stop:
        train(dataclasses.replace(settings, ema=EmaConfig()), tmp_path / "run")
    assert isinstance(stop.value, Stopped) and stop.value.code == 128 + number and stop.value.step == 2
    jax.tree.map(np.testing.assert_array_equal, stop.value.params.weights, state_of(tmp_path / "run", 2)["ema"])
    assert handlers == [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)]


def test_a_signal_in_the_last_step_stops_nothing(settings, tmp_path, monkeypatch):
    draw = logs.Log.flush
    monkeypatch.setattr(logs.Log, "flush", lambda self, step: (signal.raise_signal(signal.SIGTERM), draw(self, step)))
    short = dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, steps=3), ema=EmaConfig())
    train(short, tmp_path / "run")
    assert (tmp_path / "run/checkpoints/3").is_dir()


@pytest.mark.parametrize("module", ["grain", "matplotlib", "tensorboardX", "sklearn"])
def test_a_missing_package_is_named_before_any_work(settings, tmp_path, monkeypatch, module, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    run = dataclasses.replace(settings.loop, tensorboard=module == "tensorboardX")
    data = dataclasses.replace(settings.data, data="digits" if module == "sklearn" else "nowhere")
    config = dataclasses.replace(settings, loop=run, data=data)
    message = rf"Training needs {module}: pip install 'ddpm-jax\[train\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        train(config, tmp_path / "run")
    with pytest.raises(SystemExit) as end:
        cli.main(command(config, tmp_path / "run"))
    assert end.value.code == 1
    assert capsys.readouterr().err == f"ddpm-jax: Training needs {module}: pip install 'ddpm-jax[train]'\n"
    assert not (tmp_path / "run").exists()


def test_checkpoints_that_stay(settings, tmp_path):
    run = dataclasses.replace(settings.loop, steps=6, save_every=1, keep_last=2, keep_every=3)
    train(dataclasses.replace(settings, loop=run), tmp_path / "run")
    assert sorted(map(int, os.listdir(tmp_path / "run/checkpoints"))) == [3, 5, 6]


def test_a_loss_that_is_not_finite_stops_the_run(settings, tmp_path):
    """The error names the step, the losses before and the last good checkpoint, whose weights are finite."""
    wild = dataclasses.replace(
        settings,
        optimizer=OptimizerConfig(warmup_steps=9, learning_rate=1e38, clip_norm=0.0),
        loop=dataclasses.replace(settings.loop, save_every=1, keep_last=9),
    )
    with pytest.raises(
        Diverged, match=r"not finite at step (\d+). The last losses: 1: .* The last good checkpoint"
    ) as error:
        train(wild, tmp_path / "run")
    step = int(str(error.value).split("at step ")[1].split(".")[0])
    good = Checkpoints(tmp_path / "run/checkpoints", keep_last=None, keep_every=0).steps()
    assert good and good[-1] < step
    weights = ddpm_jax.load(tmp_path / "run").weights
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights))


@pytest.mark.slow
@pytest.mark.parametrize("log_every", [100, 2])
def test_a_full_disk_is_reported_and_the_last_checkpoint_survives(settings, tmp_path, log_every):
    """The disk is simulated by a limit on the size of files, set after the first checkpoint."""
    limit = """
import os, resource, signal, time
from ddpm_jax.training import logs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
add = logs.Log.add
def filling(self, step, metrics):
    if step == 6:
        while not os.path.isdir(sys.argv[sys.argv.index("--out") + 1] + "/checkpoints/4"):
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
    add(self, step, metrics)
logs.Log.add = filling
"""
    quiet = dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, log_every=log_every), ema=EmaConfig())
    out = tmp_path / "run"
    process = subprocess_of(command(quiet, out), limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "could not be written" in errors and "last good checkpoint is that of step 4" in errors, errors[-2000:]
    process = subprocess_of(command(quiet, out, "--resume"))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    train(quiet, tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, state_of(tmp_path / "whole"), state_of(out))


def test_watching(settings, tmp_path):
    """Metrics, validation loss, samples and TensorBoard: losses and samples are those of the averaged weights."""
    watched = {"sample_every": 6, "num_samples": 4, "sample_evals": 2, "validate_every": 6, "tensorboard": True}
    watched = dataclasses.replace(settings.loop, seed=3, **watched)
    held_out = dataclasses.replace(settings.data, held_out=settings.data.data)
    objective = Objective(weighting="snr", timestep_sampling="antithetic")
    params = train(dataclasses.replace(settings, loop=watched, data=held_out, objective=objective), tmp_path / "run")
    lines = logs.read(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in lines if "validation_loss" in line] == [6, 12]
    # 40 images in batches of 8, without dropout, each at the timestep and with the noise that are its own
    images = np.load(settings.data.data).astype(np.float32) / 127.5 - 1
    key, weighting = jax.random.key(3), Objective(weighting="snr")
    expected, _ = losses.per_image(params, key, images, objective=weighting)
    assert lines[-1]["step"] == 12
    np.testing.assert_allclose(lines[-1]["validation_loss"], expected.mean(), rtol=1e-5)
    raw, _ = losses.per_image(ddpm_jax.load(tmp_path / "run", ema=False), key, images, objective=weighting)
    assert abs(raw.mean() / expected.mean() - 1) > 1e-3  # so that the line above can tell them apart
    # the grid: four images of the solver that is named fast, with two evaluations
    picture = np.asarray(Image.open(tmp_path / "run/samples/step-00000012.png")).astype(int)
    fast = dataclasses.replace(ddpm_jax.samplers.by_name("fast"), num_steps=2)
    samples = ddpm_jax.sample(params, key, 4, sampler=fast)
    assert np.abs(picture - ddpm_jax.plotting.grid(samples)[..., 0].astype(int)).max() <= 1  # another program: rounding
    raw = ddpm_jax.sample(ddpm_jax.load(tmp_path / "run", ema=False), key, 4, sampler=fast)
    assert np.abs(picture - ddpm_jax.plotting.grid(raw)[..., 0].astype(int)).max() > 1
    assert any(name.startswith("events") for name in os.listdir(tmp_path / "run/tensorboard"))


def test_a_network_with_classes_is_tuned_on_as_many(settings, tmp_path):
    """It may have one row more, for no class. With label dropout it must."""
    np.savez(tmp_path / "images.npz", images=np.zeros((4, 8, 8, 1), np.uint8), labels=np.arange(4) % 2)
    data = DataConfig(data=str(tmp_path / "images.npz"), class_conditional=True)
    source = open_source(data.data, class_conditional=True)
    for rows, dropout, message in ((2, 0.0, None), (3, 0.0, None), (3, 0.1, None), (2, 0.1, "one more row for none")):
        folder = ddpm_jax.save(small_params(num_class_embeds=rows), tmp_path / "model", overwrite=True)
        objective = Objective(label_dropout=dropout)
        tuned = dataclasses.replace(settings, data=data, model=ModelConfig(init=str(folder)), objective=objective)
        if message:
            with pytest.raises(ValueError, match=f"has {rows} classes; the data has 2 .and {message}"):
                new_network(tuned, source)
        else:
            built, _ = new_network(tuned, source)
            assert built.class_names == ("0", "1") and built.null_class == (2 if dropout else None)


def test_fine_tuning_begins_with_the_weights(settings, tmp_path):
    ddpm_jax.save(small_params(), tmp_path / "model")
    tuned = dataclasses.replace(
        settings,
        model=ModelConfig(init=str(tmp_path / "model")),
        optimizer=OptimizerConfig(learning_rate=1e-9, warmup_steps=0),
        loop=dataclasses.replace(settings.loop, steps=1),
    )
    params = train(tuned, tmp_path / "run")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), params.weights, small_params().weights)


def test_a_run_that_is_there_is_left_alone(settings, tmp_path):
    data = shutil.copy(settings.data.data, tmp_path)
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, data=data))
    train(dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, steps=3)), tmp_path / "run")
    before = state_of(tmp_path / "run", 3)
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(settings, tmp_path / "run")
    other = dataclasses.replace(settings, optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=2))
    with pytest.raises(ValueError, match="other settings: learning_rate 0.001 there, 0.002 here"):
        train(other, tmp_path / "run", resume=True)
    np.save(tmp_path / "images.npy", np.zeros((39, 8, 8, 1), np.uint8))
    with pytest.raises(ValueError, match="images 40 there, 39 here"):
        train(settings, tmp_path / "run", resume=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").write_text("dear")
    with pytest.raises(FileExistsError, match="something else than a run"):
        train(settings, tmp_path / "home")
    jax.tree.map(np.testing.assert_array_equal, before, state_of(tmp_path / "run", 3))


def test_more_steps(settings, whole, tmp_path):
    """At a constant learning rate, a run can be continued for more steps than it was begun with."""
    short = dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, steps=5))
    train(short, tmp_path / "run")
    train(settings, tmp_path / "run", resume=True)
    jax.tree.map(np.testing.assert_array_equal, state_of(whole), state_of(tmp_path / "run"))


def test_checkpoints_of_another_architecture_are_refused(settings, tmp_path):
    for changes, message in (
        ({"in_channels": 3, "out_channels": 3}, "network for 3 channels; the data has 1"),
        ({"num_class_embeds": 4}, "has 4 classes; the data has none"),
        ({"out_channels": 2}, "does not go with 2 output channels"),
    ):
        folder = ddpm_jax.save(make_params(**changes), tmp_path / f"model-{len(message)}")
        with pytest.raises(ValueError, match=message):
            train(dataclasses.replace(settings, model=ModelConfig(init=str(folder))), tmp_path / "run")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"in_channels": 3}, "in_channels 3 there, 1 of the data"),
        ({"num_class_embeds": 7}, "num_class_embeds 7 there, None of the data"),
        ({"class_embed_type": "timestep"}, "`class_embed_type` cannot be trained here"),
    ],
)
def test_a_network_that_does_not_fit_the_data(settings, tmp_path, changes, message):
    path = tmp_path / "network.json"
    path.write_text(json.dumps(small_params().config.unet.to_dict() | changes))
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(settings, model=ModelConfig(model_config=path)), tmp_path / "run")


def test_a_run_without_a_checkpoint_is_begun_anew(settings, tmp_path):
    """A run that died before its first checkpoint can be begun again, even with other settings."""
    short = dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, steps=3))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.train.json.partial").write_text("{")
    train(short, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    os.remove(tmp_path / "run/ddpm_jax.json")
    other = dataclasses.replace(short, data=dataclasses.replace(short.data, flip=False))
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(other, tmp_path / "run")
    train(other, tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run/train.json").read_text())["config"]["data"]["flip"] is False


def test_the_same_data_may_lie_elsewhere(settings, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    moved = shutil.copy(settings.data.data, tmp_path / "moved.npy")
    data = dataclasses.replace(settings.data, data=str(moved), held_out=str(moved))
    longer = dataclasses.replace(settings.loop, steps=STEPS + 1)
    train(dataclasses.replace(settings, data=data, loop=longer), tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run/train.json").read_text())["config"]["data"]["data"] == str(moved)
    assert "validation_loss" in logs.read(tmp_path / "run")[-1] or "validation_loss" in logs.read(tmp_path / "run")[-2]


def test_the_card_is_that_of_the_weights(whole, tmp_path):
    """Log lines after the last checkpoint are not in the card."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/12")
    text = card(tmp_path / "run")
    (line,) = (line for line in logs.read(whole) if line["step"] == 8)
    assert "| steps | 8 |" in text and f"| training loss | {line['loss']:.5f} |" in text
    assert "pipeline_tag: unconditional-image-generation" in text and "DDPMPipeline" in text
    record = json.loads((tmp_path / "run/train.json").read_text())
    record["data"]["classes"], record["config"]["model"]["init"] = ["cat", "snow_dog"], "google/ddpm-cat-256"
    (tmp_path / "run/train.json").write_text(json.dumps(record))
    text = card(tmp_path / "run")
    assert (
        "class_labels=0" in text
        and "pipeline_tag" not in text
        and "| fine-tuned from | `google/ddpm-cat-256` |" in text
    )
    assert "\n\n| class | name |\n|---|---|\n| 0 | cat |\n| 1 | snow\\_dog |\n\n```" in text


def test_averages_of_any_length_and_publishing(whole, tmp_path):
    """`ema` finds a kept average again, and `export` writes the run with its card."""
    cli.main(["ema", str(whole), str(tmp_path / "average"), "--length", "0.1"])
    kept = state_of(whole)["power_emas"]
    found = ddpm_jax.load(tmp_path / "average").weights
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), kept[1], found)
    # not each other, nor the plain average, whose warm-up has other decays
    kernels = [tree["conv_in"]["kernel"] for tree in (*kept, state_of(whole)["ema"])]
    assert all(np.abs(kernels[i] - kernels[j]).max() > 1e-5 for i, j in ((0, 1), (0, 2), (1, 2)))
    for step in (5, 13):
        with pytest.raises(ValueError, match=f"`step` {step} is out of range: the snapshots .* from step 6 to 12"):
            average(whole, 0.1, step=step)
    cli.main(["export", str(whole), str(tmp_path / "published")])
    card = (tmp_path / "published/README.md").read_text()
    assert "| images | 40 of `images.npy`, 1 channels |" in card and "| steps | 12 |" in card
    published = ddpm_jax.load(tmp_path / "published")
    jax.tree.map(np.testing.assert_array_equal, published.weights, ddpm_jax.load(whole).weights)
