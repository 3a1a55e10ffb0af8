"""The command line: as a process a few times, in this process otherwise, for speed."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import ROOT, make_params, small_params
from PIL import Image
from test_checkpoint import equal, write_flat

import ddpm_jax
from ddpm_jax import cli, plotting
from ddpm_jax.cli import arguments
from ddpm_jax.config import Config, SamplerConfig
from ddpm_jax.images.image_set import write_png


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(tmp_path):
    """A checkpoint of one level, which compiles quickly."""
    return str(write_flat(tmp_path / "model", small_params()))


@pytest.fixture
def of_two_levels(tmp_path):
    return str(write_flat(tmp_path / "model", make_params()))


def run(capsys, *argv):
    cli.main([str(word) for word in argv])
    return capsys.readouterr()


def fails(capsys, message, *argv):
    with pytest.raises(SystemExit) as error:
        cli.main([str(word) for word in argv])
    captured = capsys.readouterr()
    assert error.value.code != 0
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", captured.err + captured.out).split())  # without tyro's box
    assert re.search(message, text), text
    return True


SAMPLE = ("--sampler", "ddim", "--steps", "3")


def test_sample_writes_what_the_function_returns(capsys, model, folder):
    out = run(capsys, "sample", model, "--batch-size", 2, "--num-images", 5, "--seed", 7, *SAMPLE, "--gif").out
    assert re.search(r"5 images in samples: compiling took [\d.]+ s, sampling [\d.]+ s \([\d.]+ images/s", out)
    names = sorted(path.name for path in (folder / "samples").iterdir())
    assert names == [*(f"{i:05d}.png" for i in range(5)), "grid.png", "samples.json", "sampling.gif"]
    sampler = ddpm_jax.samplers.DDIM(num_steps=3)
    images = ddpm_jax.sample(small_params(), jax.random.key(7), 5, sampler=sampler)
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


@pytest.mark.parametrize(
    "text, value",
    [
        ("timesteps=999", (999,)),
        ("timesteps=999,", (999,)),
        ("timesteps=[999]", (999,)),
        ("timesteps=(900, 500, 0)", (900, 500, 0)),  # as samples.json writes it
        (" timesteps = 900, 500.5 ", (900, 500.5)),
        ("timesteps='900,500'", (900, 500)),
        ('timesteps="999"', (999,)),
        ("eta=1e-1", 0.1),
        ("eta=1", 1),
        ("clip=None", None),
        ("thresholding=TRUE", True),
        ("timestep_spacing=trailing", "trailing"),
        ('timestep_spacing="trailing"', "trailing"),
    ],
)
def test_values_of_knobs(text, value):
    chosen = arguments.choose_sampler("ddim", None, [text], None).sampler
    assert getattr(chosen, text.partition("=")[0].strip()) == value


def test_lists_and_infinities_of_solvers():
    choose = lambda *knobs: arguments.choose_sampler(knobs[0], None, knobs[1:], None).sampler
    assert choose("unipc", "disable_corrector=0") == ddpm_jax.samplers.UniPC(disable_corrector=(0,))
    assert choose("dpmsolver++", "lambda_min_clipped=-inf") == ddpm_jax.samplers.DPMSolverPP()
    assert choose("heun", "s_churn=40", "s_tmax=inf") == ddpm_jax.samplers.Heun(s_churn=40)


def test_knobs_win_over_those_of_the_checkpoint():
    """Knobs of the checkpoint that have no effect beside a given one are dropped."""
    config = SamplerConfig("DDIMScheduler", (("steps_offset", 1), ("clip_sample", False)))
    checkpoint = Config(make_params().config.unet, sampler=config)
    chosen = arguments.choose_sampler(None, None, ["timesteps=900,500,0"], checkpoint)
    assert chosen.text == "DDIM(clip=None, timesteps=(900, 500, 0))"
    fast = arguments.choose_sampler("fast", 5, ["thresholding=true"], checkpoint)
    assert fast.text == "DPMSolverPP(num_steps=5, thresholding=True, solver_order=3)"


def test_class_label(capsys, tmp_path):
    model = write_flat(tmp_path / "classes", small_params(num_class_embeds=3))
    for label in (0, 2):
        run(capsys, "sample", model, "--batch-size", 1, *SAMPLE, "--class-label", label, "--out", label)
    zero, two = (np.asarray(Image.open(Path(str(label), "00000.png"))).astype(int) for label in (0, 2))
    assert np.abs(zero - two).max() > 1
    assert Image.open("2/00000.png").text["class_label"] == "2"
    assert fails(capsys, "needs --class-label", "sample", model, *SAMPLE)
    assert fails(capsys, "--class-label must be integers in 0 .. 2", "sample", model, *SAMPLE, "--class-label", 3)
    assert fails(capsys, "--class-label must be integers in 0 .. 2", "sample", model, *SAMPLE, "--class-label=-1")
    message = "--class-label must be a number, not 'rose': this checkpoint names no classes"
    assert fails(capsys, message, "sample", model, *SAMPLE, "--class-label", "rose")


NAMED = ("rose", "1", "10", "0", "tulip of the garden")


def named(folder, **changes):
    params = small_params(num_class_embeds=6)
    config = dataclasses.replace(params.config, class_names=NAMED, **changes)
    ddpm_jax.save(params.replace(config=config), folder)
    return str(folder)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("rose", (0, "rose")),
        ("10", (2, "10")),
        ("1", (1, "1")),
        ("0", (3, "0")),  # the name, as torchvision's users expect
        ("2", (2, "10")),
        ("4", (4, "tulip of the garden")),
        ("5", (5, None)),
        ("-1", (-1, None)),
        (None, (None, None)),
    ],
)
def test_classes_by_name_and_number(text, expected):
    assert arguments.class_of(text, SimpleNamespace(class_names=NAMED)) == expected


def test_class_names(capsys, tmp_path):
    model = named(tmp_path / "named")
    out = run(capsys, "sample", model, "--batch-size", 2, *SAMPLE, "--class-label", "tulip of the garden").out
    line = r"Drawing 2 images of class 4 \(tulip of the garden\), 8 x 8 pixels, 1 channel: DDIM\(num_steps=3\), 3 eval"
    assert re.search(line, out), out
    record = json.loads(Path("samples/samples.json").read_text())
    assert (record["class_label"], record["class_name"]) == (4, "tulip of the garden")
    labels = {"class_labels": 4, "sampler": ddpm_jax.samplers.DDIM(num_steps=3)}
    expected = ddpm_jax.to_uint8(ddpm_jax.sample(ddpm_jax.load(model), jax.random.key(0), 2, **labels))
    for i in range(2):
        assert np.abs(np.asarray(Image.open(f"samples/{i:05d}.png")).astype(int) - expected[i, ..., 0]).max() <= 1
    grid = np.asarray(Image.open("samples/grid.png"))
    captioned = plotting.grid(expected / np.float32(255), captions=["tulip of the garden"] * 2)
    np.testing.assert_allclose(grid.astype(int), captioned[..., 0].astype(int), atol=1)
    out = run(capsys, "sample", model, "--batch-size", 1, *SAMPLE, "--class-label", "0", "--out", "zero").out
    assert "of class 3 (0)" in out and "--class-label 0 is taken as the name of class 3; number 0 is 'rose'" in out
    assert fails(capsys, "'tulp' is no class.*There is 0: rose, 1: 1, 2: 10", "sample", model, "--class-label", "tulp")
    assert fails(capsys, "Did you mean `rose`", "sample", model, "--class-label", "rosse")
    assert fails(capsys, "needs --class-label", "sample", model, "--out", "x")


def test_a_set_from_before_classes_had_names_goes_on(capsys, tmp_path):
    words = ("sample", named(tmp_path / "named"), *SAMPLE, "--class-label", "10", "--out", "set")
    run(capsys, *words, "--batch-size", 1)
    record = json.loads(Path("set/samples.json").read_text())
    for name in ("class_name", "guidance_scale", "null_class", "image_size"):
        del record[name]
    Path("set/samples.json").write_text(json.dumps(record))
    assert "set holds 1 of 2 images: going on" in run(capsys, *words, "--num-images", 2).out


def test_a_set_whose_sampler_named_knobs_that_do_nothing_goes_on(capsys, tmp_path):
    config = SamplerConfig("LMSDiscreteScheduler", (("steps_offset", 1), ("timestep_spacing", "linspace")))
    params = small_params()
    ddpm_jax.save(params.replace(config=Config(params.config.unet, sampler=config)), tmp_path / "lms")
    words = ("sample", tmp_path / "lms", "--steps", 3, "--out", "set")
    run(capsys, *words, "--batch-size", 1)
    record = json.loads(Path("set/samples.json").read_text())
    assert record["sampler"] == "LMS(num_steps=3)"
    record["sampler"] = "LMS(num_steps=3, steps_offset=1)"  # as it was written once
    Path("set/samples.json").write_text(json.dumps(record))
    with Image.open("set/00000.png") as image:
        text = image.info | {"sampler": record["sampler"]}
        write_png(image.copy(), Path("set/00000.png"), text)
    assert "set holds 1 of 2 images: going on" in run(capsys, *words, "--num-images", 2).out
    assert fails(capsys, "sampler 'LMS.num_steps=3, steps_offset=1.' there", *words[:3], 4, *words[4:])


def test_guidance(capsys, tmp_path):
    model, plain = named(tmp_path / "named", null_class=5), named(tmp_path / "plain")
    words = ("--batch-size", 1, *SAMPLE, "--class-label", "rose")
    out = run(capsys, "sample", model, *words, "--guidance-scale", 2.5).out
    assert "guided by 2.5 away from class 5: DDIM(num_steps=3), 3 evaluations of two images each" in out
    record = json.loads(Path("samples/samples.json").read_text())
    assert (record["guidance_scale"], record["null_class"]) == (2.5, 5)
    params, ddim = ddpm_jax.load(model), ddpm_jax.samplers.DDIM(num_steps=3)
    of = lambda **guidance: ddpm_jax.sample(params, jax.random.key(0), 1, sampler=ddim, class_labels=0, **guidance)
    image = np.asarray(Image.open("samples/00000.png")).astype(int)
    assert np.abs(image - ddpm_jax.to_uint8(of(guidance_scale=2.5))[0, ..., 0]).max() <= 1
    run(capsys, "sample", plain, *words, "--guidance-scale", 2.5, "--null-class", 4, "--out", "four")
    image = np.asarray(Image.open("four/00000.png")).astype(int)
    assert np.abs(image - ddpm_jax.to_uint8(of(guidance_scale=2.5, null_class=4))[0, ..., 0]).max() <= 1
    more = ("sample", model, *words[2:], "--num-images", 2)
    assert fails(capsys, "other settings: guidance_scale 2.5 there, None here; null_class 5 there, None here", *more)
    assert fails(capsys, "guidance_scale 2.5 there, 3.0 here", *more, "--guidance-scale", 3)
    refused = ("--out", "x", *words)
    assert fails(capsys, "does not say which.*pass --null-class", "sample", plain, *refused, "--guidance-scale", 2)
    assert fails(capsys, "--null-class acts beside --guidance-scale", "sample", model, *refused, "--null-class", 5)
    same = ("sample", plain, *refused, "--guidance-scale", 2, "--null-class", 0)
    assert fails(capsys, "--guidance-scale guides away from class 0, which --class-label asks for", *same)
    assert not Path("x").exists()


@pytest.mark.parametrize(
    "words, size", [((), (8, 8)), (("--image-size", 12), (12, 12)), (("--image-size", "4x16"), (4, 16))]
)
def test_image_size(capsys, model, words, size):
    out = run(capsys, "sample", model, "--batch-size", 1, *SAMPLE, *words).out
    assert f"{size[0]} x {size[1]} pixels" in out
    assert Image.open("samples/00000.png").size == size[::-1]
    assert json.loads(Path("samples/samples.json").read_text())["image_size"] == (list(size) if words else None)
    message = r"image_size (None|\[.*\]) there, \[16, 16\] here"
    assert fails(capsys, message, "sample", model, "--num-images", 2, *SAMPLE, "--image-size", 16)


def test_a_model_that_says_no_size_or_a_stale_one(capsys, tmp_path):
    for number, stale in enumerate((None, 7)):
        params = make_params()
        unet = dataclasses.replace(params.config.unet, sample_size=stale)
        config = dataclasses.replace(params.config, unet=unet)
        model = write_flat(tmp_path / f"model {number}", params.replace(config=config))
        assert fails(capsys, "--image-size N or HxW", "sample", model, *SAMPLE, "--out", f"of {number}")
        run(capsys, "sample", model, "--batch-size", 1, *SAMPLE, "--image-size", 8, "--out", f"of {number}")
        assert Image.open(f"of {number}/00000.png").size == (8, 8)


@pytest.mark.parametrize("channels", [2, 5])
def test_channels_that_no_png_holds(capsys, tmp_path, channels):
    """PNGs are refused before anything is drawn. An .npz holds any number of channels."""
    model = write_flat(tmp_path / "model", small_params(in_channels=channels, out_channels=channels))
    words = ("sample", model, "--batch-size", 2, *SAMPLE)
    assert fails(capsys, f"1, 3 or 4 channels, not {channels}.*--format npz", *words)
    assert fails(capsys, f"1, 3 or 4 channels, not {channels}", *words, "--index", 1)
    assert fails(capsys, "leave --gif out", *words, "--format", "npz", "--gif")
    assert not Path("samples").exists()
    if channels == 5:
        return  # compiled no more than needed
    run(capsys, *words, "--format", "npz")
    assert np.load("samples/images.npz")["arr_0"].shape == (2, 8, 8, channels)
    assert sorted(path.name for path in Path("samples").iterdir()) == ["images.npz", "samples.json"]
    run(capsys, *words[:2], "--num-images", 3, *SAMPLE, "--format", "npz")
    assert np.load("samples/images.npz")["arr_0"].shape == (3, 8, 8, channels)


def test_damaged_pictures_of_a_set(capsys, model):
    words = ("sample", model, "--batch-size", 3, *SAMPLE)
    run(capsys, *words)
    before = Path("samples/00001.png").read_bytes()
    Path("samples/00001.png").write_bytes(b"")
    out = run(capsys, *words).out
    assert "samples holds 2 of 3 images (1 damaged or of another set: 00001.png): going on" in out
    assert "Drawing 1 image, " in out
    assert Path("samples/00001.png").read_bytes() == before
    Path("samples/00001.png").write_bytes(before[:-30])
    run(capsys, "sample", model, "--index", 1, *SAMPLE)
    assert Image.open("samples/00001.png").size == (8, 8)
    assert fails(capsys, "exists already", "sample", model, "--index", 1, *SAMPLE)


def test_messages_name_flags():
    """Flags are those of the command. Other names in backticks are left."""
    from ddpm_jax.cli.training import train_command

    text = "`batch_size`, `num_steps`, `eta`, `model`, `out`, `apply`, `learning_rate`, `class_conditional`, `jax.jit`"
    sample = (
        "--batch-size, --steps, --set eta=..., MODEL, --out, `apply`, `learning_rate`, `class_conditional`, `jax.jit`"
    )
    assert arguments.in_flags(text, cli.sample) == sample
    train = "--batch-size, `num_steps`, `eta`, `model`, --out, `apply`, --learning-rate, --class-conditional, `jax.jit`"
    assert arguments.in_flags(text, train_command([])) == train
    assert arguments.in_flags("`out`: `overwrite` and `out`", cli.export) == "OUT: --force and OUT"
    assert arguments.in_flags(text, None) == text


def test_messages_of_training_name_flags(capsys):
    assert fails(
        capsys,
        r"--batch-size 6 does not divide over 1 device x 4 parts \(--accumulate\): use 4 or 8",
        "train",
        "--data",
        ".",
        "--batch-size",
        6,
        "--accumulate",
        4,
    )


def test_the_demo_as_a_process(folder):
    words = ["--batch-size", "4", "--sampler", "ddim", "--steps", "20", "--verbose"]
    command = [sys.executable, "-m", "ddpm_jax", "sample", *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "images/s" in result.stdout and "4 images in samples" in result.stdout
    assert "INFO:ddpm_jax.compilation:" in result.stderr and " is compiled with " in result.stderr  # --verbose
    assert "\r" not in result.stderr and "%|" not in result.stderr  # no bar where there is no terminal
    with Image.open(folder / "samples/grid.png") as grid:
        assert grid.size == (66, 66) and grid.mode == "RGB"
        image = np.asarray(grid)[:32, :32] / 255
    assert 0.1 < image.mean() < 0.8
    assert np.abs(np.diff(image, axis=1)).mean() < 0.15  # of noise 0.3 and more: neighbours are alike in a photograph


def test_convert_export_and_info(capsys, of_two_levels):
    model = of_two_levels
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
        assert "DDPM(variance_type='fixed_large')" in text
    for name in (model, "checkpoints/model"):  # our folder remembers where it came from
        assert f"model {model}" in run(capsys, "info", name).out
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
            (("--set", "etta=1", "--sampler", "ddim"), "has the knobs num_steps, .*Did you mean --set eta=..."),
            (("--set", "eta", "--sampler", "ddim"), "KNOB=VALUE"),
            (("--set", "eta=many", "--sampler", "ddim"), r"--set eta=... must be in \[0, 1\]"),
            (("--set", "eta=0.1", "--set", "eta=0.2", "--sampler", "ddim"), "--set eta=... is given twice"),
            (("--steps", 4, "--set", "num_steps=5"), "--steps is given twice"),
            (
                ("--steps", 4, "--set", "timesteps=5,0"),
                "--steps does nothing here, set to 4: .* --set timesteps=... are",
            ),
            (("--set", "steps_offset=1", "--sampler", "lms"), "does nothing here, set to 1"),
            (("--seed", -1), r"--seed must be an integer from 0 to 4294967295 \(2\^32 - 1\)"),
            (("--seed", 2**32 + 5), "--seed must be an integer from 0 to 4294967295"),
            (("--image-size", "abc"), "--image-size must be N or HxW"),
            (("--image-size", "0"), "--image-size must be N or HxW"),
            (("--image-size", "8x7"), r"--image-size \(8, 7\) cannot be halved 1 times"),
            (("--guidance-scale", 2), "--guidance-scale needs a network with a table of classes"),
            (("--sampler", "dddim"), "Did you mean `ddim`"),
            (("--steps", 0), "--steps must be an integer from 1 to 1000"),
            (("--steps", 1001), "--steps must be an integer from 1 to 1000"),
            (("--class-label", 1), "has no classes"),
            (("--set", "timesteps=1000"), "--set timesteps=... must lie in 0 .. 999"),
            (("--set", "timesteps=abc"), "--set timesteps=... must be a list of numbers"),
            (("--set", "steps_offset=abc"), "--set steps_offset=... must be a non-negative integer"),
            (("--stepps", 3), "--steps"),
        ],
    )
    def test_bad_arguments(self, capsys, of_two_levels, words, message, untyped, folder):
        assert fails(capsys, message, "sample", of_two_levels, *words)
        assert not (folder / "samples").exists()

    def test_no_such_model(self, capsys):
        assert fails(capsys, "There is no folder", "sample", "./absent")
        assert fails(capsys, "There is no folder", "info", "./absent")

    def test_converting_ours(self, capsys, model):
        run(capsys, "convert", model)
        assert fails(capsys, "own format already", "convert", "checkpoints/model", "--out", "x")
