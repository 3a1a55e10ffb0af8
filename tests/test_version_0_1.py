"""A run, a checkpoint and a set that version 0.1 wrote (commit 28f8b8e) open, and go on.

The run: 30 steps on the digits with classes and label dropout, of a network of 8 and 16 channels. The checkpoint: its
average, stored as float16. The set: images 0 to 4 of `--class-label 3 --sampler ddim --steps 4 --seed 2`, number 3
taken out, beside them.
"""

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax import training
from ddpm_jax.checkpoint.folder import steps_in
from ddpm_jax.cli import main
from ddpm_jax.training.published import card
from ddpm_jax.training.settings import TrainConfig

ARCHIVE = Path(__file__).parent / "fixtures" / "version_0_1.tar.xz"


@pytest.fixture
def old(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_checkpoint(old):
    run, saved = ddpm_jax.load(old / "run"), ddpm_jax.load(old / "checkpoint")
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6), run.weights, saved.weights
    )
    assert run.config.unet == saved.config.unet and saved.config.class_names == ()
    # what its train.json says: the names, and that labels were dropped, so that the last row stands for none
    assert run.config.class_names == tuple("0123456789") and run.config.null_class == 10


def test_card(old):
    """It reads the batch size from the group that 0.1 called `run`."""
    batch_size = json.loads((old / "run" / "train.json").read_text())["config"]["run"]["batch_size"]
    assert f"| batch size | {batch_size} |" in card(old / "run")


@pytest.mark.slow
def test_run_goes_on(old):
    record = json.loads((old / "run" / "train.json").read_text())
    config = TrainConfig.from_dict(record["config"])
    config = dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=32))
    training.train(config, old / "run", resume=True)
    assert steps_in(old / "run" / "checkpoints")[-1] == 32
    lines = [json.loads(line) for line in (old / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 32]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_set_goes_on(old, capsys, monkeypatch):
    monkeypatch.chdir(old)
    # the digest of its weights is the only thing that names the model: a copy elsewhere serves as well
    shutil.move(old / "run", old / "moved")
    main(
        ["sample", "moved", "--class-label", "3", "--num-images", "5", "--batch-size", "5", "--sampler", "ddim"]
        + ["--steps", "4", "--seed", "2", "--out", "set", "--compile-cache", "none"]
    )
    assert "4 of 5 images" in capsys.readouterr().out
    new, expected = (np.asarray(Image.open(old / name), np.int32) for name in ("set/00003.png", "expected-00003.png"))
    assert np.abs(new - expected).max() <= 1  # another version of XLA may round the other way
