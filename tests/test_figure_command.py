"""`ddpm-jax figure`: the PNGs hold what the functions return, and what does nothing is refused."""

import re

import jax
import numpy as np
import pytest
from conftest import small_params
from PIL import Image
from scipy.spatial.distance import cdist
from test_cli import fails, run

import ddpm_jax
from ddpm_jax.config import ScheduleConfig
from ddpm_jax.evaluation import figures, pictures
from ddpm_jax.evaluation.neighbours import nearest_neighbours
from ddpm_jax.likelihood import bits_per_dim
from ddpm_jax.samplers import DDPM

KEY = jax.random.key(3)
SAMPLER = DDPM(num_steps=6, clip=None)
WORDS = ("--sampler", "ddpm", "--steps", "6", "--set", "clip=none", "--seed", "3")


@pytest.fixture(scope="module")
def params():
    return small_params(schedule=ScheduleConfig(prediction_type="sample"))  # of eps, results leave [0, 1]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, params):
    monkeypatch.chdir(tmp_path)
    ddpm_jax.save(params, tmp_path / "model", format="diffusers")
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "photos.npz", images=images)
    return images


def draw(capsys, name, *options):
    out = run(capsys, "figure", name, "model", *WORDS, *options).out
    assert f"{name} by DDPM(num_steps=6, clip=None), seed 3." in out
    with Image.open(f"{name}.png") as image:
        picture = np.asarray(image)
        assert image.text["figure"] == name and image.text["seed"] == "3"
        assert image.text["sampler"] == "DDPM(num_steps=6, clip=None)"
    return picture.reshape(*picture.shape[:2], -1).astype(int), out


def same(picture, expected):
    assert picture.shape == expected.shape
    assert np.abs(picture - expected).max() <= 1  # bytes that round the other way


def test_progressive(capsys, params):
    picture, _ = draw(capsys, "progressive", "--num-images", 3, "--num-frames", 3)
    path = ddpm_jax.sample_path(params, KEY, 3, num_frames=3, sampler=SAMPLER)
    same(picture, pictures.progressive(path))


def test_shared_latents(capsys, params):
    options = ("--num-samples", 3, "--timesteps", 498, 166)
    picture, _ = draw(capsys, "shared-latents", *options)
    shared = figures.shared_latents(params, KEY, 3, timesteps=[498, 166], sampler=SAMPLER)
    same(picture, pictures.shared_latents(shared, (-1, 1)))


@pytest.fixture
def without_network(monkeypatch):
    """The noisy mixtures in the place of what is made of them, which test_figures.py looks at."""
    monkeypatch.setattr(figures, "run_part", lambda params, key, x_t, **_: x_t)


def test_interpolation(capsys, params, folder, without_network):
    picture, out = draw(capsys, "interpolation", "--data", "photos.npz", "--num-images", 1)
    first, second = folder[[0]] / np.float32(255), folder[[59]] / np.float32(255)
    made = figures.interpolate(params, KEY, first, second, sampler=SAMPLER)
    assert made.t.tolist() == [332] and "photos.npz: 60 images" in out and "2 of them are taken" in out
    same(picture, pictures.interpolations(made, first, second))


def test_coarse_to_fine(capsys, params, folder, without_network):
    picture, _ = draw(capsys, "coarse-to-fine", "--data", "photos.npz")
    first, second = folder[[0]] / np.float32(255), folder[[59]] / np.float32(255)
    timesteps = [830, 664, 498, 332, 166, 0]
    made = figures.interpolate(params, KEY, first, second, timesteps=timesteps, sampler=SAMPLER)
    same(picture, pictures.interpolations(made, first, second))


def test_neighbours(capsys, params, folder):
    options = ("--data", "photos.npz", "--num-images", 4, "--num-neighbours", 3, "--batch-size", 3)
    picture, out = draw(capsys, "neighbours", *options)
    batches = [ddpm_jax.sample(params, KEY, 3, sampler=SAMPLER, first_index=first) for first in (0, 3)]
    images = ddpm_jax.to_uint8(np.concatenate(batches)[:4])
    found = nearest_neighbours(images, folder, 3)
    same(picture, pictures.beside_neighbours(images, folder, found.indices))
    printed = re.search(r"The nearest by pixels are ([\d., ]+) away", out)[1].split(", ")
    np.testing.assert_allclose([float(text) for text in printed], found.distances[:, 0] / 255, rtol=2e-3)  # 4 digits


def test_quality(capsys, params, folder):
    out = run(
        *(capsys, "figure", "quality", "model", *WORDS, "--data", "photos.npz", "--num-images", 3, "--num-frames", 3),
        *("--batch-size", 3),
    ).out
    path = ddpm_jax.sample_path(params, KEY, 3, num_frames=3, sampler=SAMPLER)
    vectors = lambda images: images.reshape(len(images), -1).astype(np.float64) / 255
    real, fake = vectors(folder), vectors(ddpm_jax.to_uint8(path.x_0_hat[-1]))
    within = lambda x: cdist(x, x).sum() / (len(x) * (len(x) - 1))
    expected = 2 * cdist(real, fake).mean() - within(real) - within(fake)
    printed = re.search(r"energy distance: .* after 1, .* after 3, (\S+) after 6 steps", out)[1]
    assert float(printed) == pytest.approx(expected, rel=1e-2)  # bytes that round the other way
    with Image.open("quality.png") as image:
        assert image.size == (800, 450)


def test_bound(capsys, params, folder):
    out = run(capsys, "figure", "bound", "model", "--seed", 3, "--data", "photos.npz", "--num-images", 3).out
    x_0 = folder[[0, 29, 59]] / np.float32(127.5) - 1
    total = bits_per_dim(params, KEY, x_0).mean()
    assert float(re.search(r"([\d.]+) bits/dim", out)[1]) == pytest.approx(float(total), rel=1e-4)
    assert Image.open("bound.png").size == (800, 450)


def test_memorisation(capsys, folder):
    held_out = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 1), np.uint8)
    np.savez("held_out.npz", images=held_out)
    options = ("--data", "photos.npz", "--held-out", "held_out.npz", "--num-images", 3, "--level", 0.05)
    picture, out = draw(capsys, "memorisation", *options)
    assert "of 3 images" in out and "of 3 held-out images would be with probability" in out
    assert picture.shape[0] > 3 * 64


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("progressive", ("--data", "x"), "--data acts on interpolation, .*; in progressive 'x' would do nothing"),
        ("shared-latents", ("--num-images", "2"), "--num-images acts on progressive, .*2 would do nothing"),
        ("progressive", ("--level", "0.5"), "--level acts on memorisation; in progressive 0.5 would do nothing"),
        ("interpolation", (), "--data is missing, the images that interpolation is about"),
        ("memorisation", ("--data", "photos.npz"), "--held-out is missing"),
        ("progressive", ("--num-frames", "0"), "--num-frames must be at least 1, not 0"),
        ("progressive", ("--out", "x.jpg"), "--out is x.jpg; a figure is a PNG: name a file that ends with .png"),
        ("progressive", ("--out", "no/x.png"), "--out no/x.png: there is no folder no. Make it first"),
        ("interpolation", ("--data", "nowhere"), "--data nowhere: there is no such folder or file"),
        (
            "interpolation",
            ("--data", "photos.npz", "--num-images", "31"),
            "photos.npz has 60 images; this figure needs 62 or more",
        ),
        (
            "interpolation",
            ("--data", "photos.npz", "--timesteps", "1", "2"),
            "--timesteps of this figure is one; `coarse-to-fine` takes several",
        ),
        ("neighbours", ("--data", "photos.npz", "--features", "pixel"), "There is no extractor 'pixel'"),
        (
            "memorisation",
            ("--data", "photos.npz", "--held-out", "photos.npz"),
            "--held-out has 60 images, by which a rate of 0.01 cannot be told: give at least 99",
        ),
        ("bound", ("--data", "photos.npz"), "--sampler acts on progressive, .*; in bound 'ddpm' would do nothing"),
        ("nothing", (), "invalid choice"),
    ],
)
def test_refusals(capsys, name, options, message):
    """Before any image is drawn."""
    assert fails(capsys, message, "figure", name, "model", *WORDS, *options)


def test_an_existing_file_is_kept(capsys, tmp_path):
    (tmp_path / "progressive.png").write_text("mine")
    assert fails(capsys, "progressive.png exists already; choose another --out, or --force", "figure", "progressive")
    assert (tmp_path / "progressive.png").read_text() == "mine"


def test_colours_of_another_kind(capsys):
    np.savez("rgb.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    message = "--data has images of 3 channels, the model 1: convert"
    assert fails(capsys, message, "figure", "interpolation", "model", "--data", "rgb.npz")
