"""The command line, run as people run it; once as a process, otherwise in this one for speed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, make_params
from PIL import Image
from test_checkpoint import equal, write_flat

import ddpm_jax
from ddpm_jax import cli


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(tmp_path):
    return str(write_flat(tmp_path / "model", make_params()))


def run(capsys, *argv):
    cli.main([str(word) for word in argv])
    return capsys.readouterr()


def fails(capsys, message, *argv):
    with pytest.raises(SystemExit) as error:
        cli.main([str(word) for word in argv])
    captured = capsys.readouterr()
    assert error.value.code != 0
    text = " ".join((captured.err + captured.out).split())
    assert re.search(message, text), text
    return True


SAMPLE = ("--sampler", "ddim", "--steps", "3")


def test_sample_writes_what_the_function_returns(capsys, model, folder):
    out = run(capsys, "sample", model, "--batch-size", 2, "--num-images", 5, "--seed", 7, *SAMPLE, "--gif").out
    assert re.search(r"5 images in samples: compiling took [\d.]+ s, sampling [\d.]+ s \([\d.]+ images/s", out)
    names = sorted(path.name for path in (folder / "samples").iterdir())
    assert names == [*(f"{i:05d}.png" for i in range(5)), "grid.png", "samples.json", "sampling.gif"]
    sampler = ddpm_jax.samplers.DDIM(num_steps=3)
    images = ddpm_jax.sample(make_params(), jax.random.key(7), 5, sampler=sampler)
    for i, expected in enumerate(ddpm_jax.to_uint8(images)[..., 0].astype(int)):
        with Image.open(folder / f"samples/{i:05d}.png") as image:
            assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1  # another batch size: rounding
            assert image.text["seed"] == "7" and image.text["index"] == str(i)
            assert image.text["sampler"] == "DDIM(num_steps=3)"
    record = json.loads((folder / "samples/samples.json").read_text())
    assert record["seed"] == 7 and record["num_images"] == 5 and record["versions"]["jax"] == jax.__version__
    with Image.open(folder / "samples/sampling.gif") as image:
        assert image.n_frames == 3


def test_index_remakes_one_image_of_a_set(capsys, model, folder):
    run(capsys, "sample", model, "--batch-size", 4, *SAMPLE, "--out", "all")
    run(capsys, "sample", model, "--index", 2, *SAMPLE, "--out", "one")
    assert [path.name for path in (folder / "one").iterdir()] == ["00002.png"]
    one, all_ = (np.asarray(Image.open(folder / name / "00002.png")).astype(int) for name in ("one", "all"))
    assert np.abs(one - all_).max() <= 1  # rounding of another batch size


def test_knobs(capsys, model):
    images = []
    for i, words in enumerate(((), ("--set", "eta=1.0"), ("--set", "eta=1", "--set", "clip=none"))):
        run(capsys, "sample", model, "--batch-size", 1, *SAMPLE, *words, "--out", i)
        images.append(np.asarray(Image.open(Path(str(i), "00000.png"))).astype(int))
    assert np.abs(images[0] - images[1]).max() > 1 and np.abs(images[1] - images[2]).max() > 1
    text = Image.open("2/00000.png").text["sampler"]
    assert text == "DDIM(num_steps=3, clip=None, eta=1)"
    run(capsys, "sample", model, "--batch-size", 1, *SAMPLE, "--set", "timesteps=900,500,0", "--out", "custom")
    assert Image.open("custom/00000.png").text["sampler"] == "DDIM(timesteps=(900, 500, 0))"


def test_class_label(capsys, tmp_path):
    model = write_flat(tmp_path / "classes", make_params(num_class_embeds=3))
    for label in (0, 2):
        run(capsys, "sample", model, "--batch-size", 1, *SAMPLE, "--class-label", label, "--out", label)
    zero, two = (np.asarray(Image.open(Path(str(label), "00000.png"))).astype(int) for label in (0, 2))
    assert np.abs(zero - two).max() > 1
    assert Image.open("2/00000.png").text["class_label"] == "2"
    assert fails(capsys, "needs `class_labels`", "sample", model, *SAMPLE)


def test_the_demo_as_a_process(folder):
    command = [sys.executable, "-m", "ddpm_jax", "sample", "--batch-size", "4", "--sampler", "ddim", "--steps", "20"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "images/s" in result.stderr and "4 images in samples" in result.stdout
    with Image.open(folder / "samples/grid.png") as grid:
        assert grid.size == (66, 66) and grid.mode == "RGB"
        image = np.asarray(grid)[:32, :32] / 255
    assert 0.1 < image.mean() < 0.8
    assert np.abs(np.diff(image, axis=1)).mean() < 0.15  # of noise 0.3 and more: neighbours are alike in a photograph


def test_convert_export_and_info(capsys, model, folder):
    out = run(capsys, "convert", model).out
    assert "checkpoints/model" in out
    assert equal(ddpm_jax.load("checkpoints/model"), ddpm_jax.load(model))
    run(capsys, "export", "checkpoints/model", "back")
    assert equal(ddpm_jax.load("back"), ddpm_jax.load(model))
    count = sum(leaf.size for leaf in jax.tree.leaves(make_params()))
    for name in (model, "checkpoints/model", "back"):
        text = run(capsys, "info", name).out
        for words in ("8 x 8, 1 -> 1 channels", f"{count:,} parameters", "AttnDownBlock2D", "1000 timesteps, linear"):
            assert words in text
        assert "DDPM(variance_type='fixed_large')" in text and f"model {name}" in text or name != model
    assert f"model {model}" in run(capsys, "info", "checkpoints/model").out  # where it came from, remembered
    assert "produce-32" in run(capsys, "info").out


def test_scripts_in_convert(model, folder):
    for script, words in (("from_torch", [model, "--out", "ours"]), ("to_torch", ["ours", "back"])):
        command = [sys.executable, str(ROOT / "convert" / f"{script}.py"), *words]
        result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert result.returncode == 0, result.stderr
    assert equal(ddpm_jax.load("back"), ddpm_jax.load(model))


class TestRefusals:
    def test_existing_output(self, capsys, model):
        run(capsys, "sample", model, "--batch-size", 1, *SAMPLE)
        assert fails(capsys, "samples holds these 1 images already", "sample", model, "--batch-size", 1, *SAMPLE)
        run(capsys, "sample", model, "--batch-size", 1, *SAMPLE, "--force")
        run(capsys, "convert", model)
        assert fails(capsys, "exists already", "convert", model)
        run(capsys, "convert", model, "--force")
        assert fails(capsys, "exists already", "export", model, "checkpoints/model")

    def test_output_that_is_a_file(self, capsys, model, folder):
        (folder / "file").write_text("")
        assert fails(capsys, "is a file; name a folder", "sample", model, *SAMPLE, "--out", "file")
        assert fails(capsys, "is a file", "convert", model, "--out", "file/x")

    def test_unwritable_output(self, capsys, model, folder, monkeypatch):
        monkeypatch.setattr("os.access", lambda path, mode: False)
        assert fails(capsys, "is not writable", "sample", model, *SAMPLE)
        assert fails(capsys, "is not writable", "convert", model)

    @pytest.mark.parametrize(
        "words, message",
        [
            (("--batch-size", 0), "--batch-size must be at least 1"),
            (("--num-images", -1), "--num-images must be at least 1"),
            (("--index", -1), "--index must not be negative"),
            (("--index", 1, "--num-images", 2), "--index makes one image"),
            (("--set", "etta=1", "--sampler", "ddim"), "has the knobs num_steps, .*Did you mean `eta`"),
            (("--set", "eta", "--sampler", "ddim"), "KNOB=VALUE"),
            (("--set", "eta=many", "--sampler", "ddim"), r"`eta` must be in \[0, 1\]"),
            (("--sampler", "dddim"), "Did you mean `ddim`"),
            (("--steps", 0), "`num_steps` must be an integer from 1 to 1000"),
            (("--steps", 1001), "`num_steps` must be an integer from 1 to 1000"),
            (("--class-label", 1), "has no classes"),
            (("--set", "timesteps=5"), "`timesteps` must be a list of numbers"),
            (("--set", "timesteps=abc"), "`timesteps` must be a list of numbers"),
            (("--set", "steps_offset=abc"), "`steps_offset` must be a non-negative integer"),
            (("--stepps", 3), "--steps"),
        ],
    )
    def test_bad_arguments(self, capsys, model, words, message, untyped, folder):
        assert fails(capsys, message, "sample", model, *words)
        assert not (folder / "samples").exists()

    def test_no_such_model(self, capsys):
        assert fails(capsys, "There is no folder", "sample", "./absent")
        assert fails(capsys, "There is no folder", "info", "./absent")

    def test_converting_ours(self, capsys, model):
        run(capsys, "convert", model)
        assert fails(capsys, "own format already", "convert", "checkpoints/model", "--out", "x")
