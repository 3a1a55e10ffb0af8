"""Sets of images: killed, continued, extended, damaged, and drawn by several processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import small_params
from PIL import Image
from test_checkpoint import write_flat

import ddpm_jax
from ddpm_jax import cli, kept_programs, samplers
from ddpm_jax.images.image_set import ImageSet

SAMPLE = ("--sampler", "ddim", "--steps", "3", "--seed", "5")


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(write_flat(tmp_path / "model", small_params()))


def command(*words):
    return [sys.executable, "-m", "ddpm_jax", "sample", *map(str, words)]


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["png", "npz"])
def test_killed_and_continued(model, tmp_path, format):
    """After kill -9 and the same command again, the files are those of an uninterrupted run."""
    words = (model, *SAMPLE, "--batch-size", 4, "--num-images", 24, "--format", format)
    whole = subprocess.run(command(*words, "--out", "whole"), capture_output=True, text=True, cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr

    # a process that stops for good as its third batch is written
    program = f"""
import os, signal, sys
from ddpm_jax import cli
from ddpm_jax.images import image_set
write, count = image_set.ImageSet.write, [0]
def dying(*args):
    count[0] += 1
    if count[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*args)
image_set.ImageSet.write = dying
cli.main({["sample", *map(str, words), "--out", "killed"]!r})
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert not json.loads((tmp_path / "killed/samples.json").read_text())["complete"]
    again = subprocess.run(command(*words, "--out", "killed"), capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 0 and "killed holds 8 of 24 images: going on" in again.stdout, again.stderr
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "killed")
    assert json.loads((tmp_path / "killed/samples.json").read_text())["complete"]
    if format == "npz":
        images = np.load(tmp_path / "whole/images.npz")["arr_0"]
        assert images.dtype == np.uint8 and images.shape == (24, 8, 8, 1)
        expected = ddpm_jax.sample(
            small_params(), jax.random.key(5), 4, sampler=samplers.DDIM(num_steps=3), first_index=20
        )
        assert np.abs(images[20:].astype(int) - ddpm_jax.to_uint8(expected)).max() <= 1  # another compilation
        assert not (tmp_path / "whole/parts").exists()


def test_interrupted_at_any_moment(model, tmp_path):
    """SIGKILL at an arbitrary moment leaves a set that can be continued."""
    words = (model, *SAMPLE, "--batch-size", 2, "--num-images", 40, "--out", "set")
    process = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "set/00003.png").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command(*words), check=True, capture_output=True, cwd=tmp_path)
    names = {f"{i:05d}.png" for i in range(40)}
    assert names <= set(os.listdir(tmp_path / "set"))
    for name in names:
        Image.open(tmp_path / "set" / name).verify()


def sample(model, *words):
    cli.main(["sample", model, *SAMPLE, *map(str, words)])


def fails(capsys, message, model, *words):
    with pytest.raises(SystemExit):
        sample(model, *words)
    assert message in " ".join(capsys.readouterr().err.split())
    return True


def test_another_batch_size_and_more_images(model, tmp_path, capsys):
    sample(model, "--batch-size", 4, "--num-images", 10, "--out", "set")
    before = bytes_of(tmp_path / "set")
    sample(model, "--batch-size", 3, "--num-images", 14, "--out", "set")
    after = bytes_of(tmp_path / "set")
    assert all(after[f"{i:05d}.png"] == before[f"{i:05d}.png"] for i in range(10))  # nothing twice
    sample(model, "--batch-size", 14, "--out", "direct")
    for i in range(14):
        one, other = (np.asarray(Image.open(f"{name}/{i:05d}.png")).astype(int) for name in ("set", "direct"))
        assert np.abs(one - other).max() <= 1  # the rounding of another batch size


def test_an_archive_is_extended(model, capsys):
    sample(model, "--batch-size", 4, "--num-images", 4, "--format", "npz", "--out", "set")
    four = np.load("set/images.npz")["arr_0"]
    sample(model, "--batch-size", 4, "--num-images", 7, "--format", "npz", "--out", "set")
    seven = np.load("set/images.npz")["arr_0"]
    assert seven.shape == (7, 8, 8, 1)
    np.testing.assert_array_equal(seven[:4], four)


def test_nothing_changes_before_a_set_begins(tmp_path):
    """An archive to be extended, or a set to be replaced, is unchanged until `begin`."""
    settings, pixels = {"seed": 0}, np.linspace(0, 1, 2 * 16, dtype=np.float32).reshape(2, 4, 4, 1)
    images = ImageSet(tmp_path, settings, 2, format="npz")
    images.begin()
    images.write([0, 1], pixels)
    images.finish()
    before = bytes_of(tmp_path)

    longer = ImageSet(tmp_path, settings, 3, format="npz")
    anew = ImageSet(tmp_path, {"seed": 1}, 3, format="npz", force=True)
    assert longer.missing().tolist() == [2] and anew.missing().tolist() == [0, 1, 2]
    assert bytes_of(tmp_path) == before and not (tmp_path / "parts").exists()

    longer.begin()
    assert longer.missing().tolist() == [2]
    longer.write([2], pixels[:1])
    longer.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "images.npz")["arr_0"], ddpm_jax.to_uint8(pixels[[0, 1, 0]]))
    anew.begin()
    assert anew.missing().tolist() == [0, 1, 2] and not (tmp_path / "images.npz").exists()


def test_other_settings_are_refused_by_name(model, capsys):
    sample(model, "--batch-size", 2, "--out", "set")
    assert fails(capsys, "other settings: seed 5 there, 6 here", model, "--batch-size", 2, "--seed", 6, "--out", "set")
    assert fails(capsys, "format 'png' there, 'npz' here", model, "--batch-size", 2, "--format", "npz", "--out", "set")
    assert fails(capsys, "sampler 'DDIM(num_steps=3)' there", model, "--batch-size", 2, "--steps", 4, "--out", "set")
    assert fails(capsys, "holds these 2 images already", model, "--batch-size", 2, "--out", "set")
    assert fails(capsys, "a set of 2 images, more than 1", model, "--num-images", 1, "--out", "set")
    sample(model, "--batch-size", 1, "--seed", 6, "--out", "set", "--force")
    assert sorted(os.listdir("set")) == ["00000.png", "grid.png", "samples.json"]


def test_other_weights_are_other_settings(model, capsys):
    """Weights are compared by digest, not by name, also for a single image by --index."""
    sample(model, "--batch-size", 2, "--out", "set")
    params = small_params()
    write_flat(Path(model), ddpm_jax.Params(jax.tree.map(lambda leaf: 1.01 * leaf, params.weights), params.config))
    assert fails(capsys, "weights '", model, "--num-images", 4, "--out", "set")
    write_flat(Path(model), params)
    Path("set/00001.png").unlink()
    assert fails(capsys, "seed 5 there, 6 here", model, "--index", 1, "--seed", 6, "--out", "set")
    assert fails(capsys, "seed 5 there, 6 here", model, "--index", 0, "--seed", 6, "--out", "set", "--force")
    sample(model, "--index", 1, "--out", "set")
    assert Path("set/00001.png").exists()


def test_parts_that_a_kill_left_are_not_taken_twice(tmp_path):
    """A kill between writing the archive and removing its parts leaves both. Extending takes the archive."""
    settings, pixels = {"seed": 0}, np.linspace(0, 1, 4 * 16, dtype=np.float32).reshape(4, 4, 4, 1)
    images = ImageSet(tmp_path, settings, 2, format="npz")
    images.begin()
    images.write([0], pixels[:1])
    images.write([1], pixels[1:2])
    shutil.copytree(tmp_path / "parts", tmp_path / "kept")
    images.finish()
    (tmp_path / "kept").rename(tmp_path / "parts")
    longer = ImageSet(tmp_path, settings, 4, format="npz")
    assert longer.missing().tolist() == [2, 3]
    longer.begin()
    longer.write([2, 3], pixels[2:])
    longer.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "images.npz")["arr_0"], ddpm_jax.to_uint8(pixels))


@pytest.mark.slow
def test_compiled_programs_are_kept(model, tmp_path):
    """The second process compiles nothing."""
    words = command(model, *SAMPLE, "--batch-size", 2, "--compile-cache", "programs", "--out")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    kept = []
    for out in ("one", "two"):
        done = subprocess.run([*words, out], capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        suffixes = ("-cache", kept_programs.SUFFIX)  # JAX's, and whole programs
        kept.append({path.name for path in (tmp_path / "programs").rglob("*") if path.name.endswith(suffixes)})
    assert kept[0] and kept[0] == kept[1]


PIXELS = np.linspace(0, 1, 3 * 16, dtype=np.float32).reshape(3, 4, 4, 1)
SETTINGS = {"seed": 0, "sampler": "DDIM()", "class_label": None}


def begun(folder, format, settings=SETTINGS):
    images = ImageSet(folder, settings, 3, format=format, shape=(4, 4, 1))
    images.begin()
    for index in range(3):
        images.write([index], PIXELS[[index]])
    return images


def again(folder, format, count=3):
    return ImageSet(folder, SETTINGS, count, format=format, shape=(4, 4, 1))


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: data[:60] + bytes(len(data) - 60),
    "text": lambda data: b"not found",
}


@pytest.mark.parametrize("damage", [*DAMAGE.values(), lambda data: flipped(data, -20)], ids=[*DAMAGE, "flipped"])
def test_damaged_pictures_are_drawn_anew(tmp_path, damage):
    begun(tmp_path, "png").finish()
    path = tmp_path / "00001.png"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    images = again(tmp_path, "png")  # it was marked as complete
    assert images.missing().tolist() == [1] and images.damaged == ("00001.png",)
    images.begin()
    images.write([1], PIXELS[[1]])
    images.finish()
    assert path.read_bytes() == whole
    with pytest.raises(FileExistsError, match="holds these 3 images already"):
        again(tmp_path, "png")


def test_pictures_of_another_set_are_none_of_this_one(tmp_path):
    begun(tmp_path / "set", "png")
    begun(tmp_path / "seed", "png", SETTINGS | {"seed": 1})
    begun(tmp_path / "class", "png", SETTINGS | {"class_label": 2})
    names = [f"{index:05d}.png" for index in range(3)]
    shutil.copy(tmp_path / "seed/00000.png", tmp_path / "set/00000.png")
    shutil.copy(tmp_path / "class/00001.png", tmp_path / "set/00001.png")
    shutil.copy(tmp_path / "set/00001.png", tmp_path / "set/00002.png")  # another number
    images = again(tmp_path / "set", "png")
    assert images.missing().tolist() == [0, 1, 2] and sorted(images.damaged) == names
    for name, mode, size in zip(names, ("L", "RGB", "L"), ((4, 4), (4, 4), (4, 6)), strict=True):
        Image.new(mode, size).save(tmp_path / "set" / name)
    assert images.missing().tolist() == [1, 2]  # one without a record may be ours: tools take it out


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_parts_are_drawn_anew(tmp_path, damage):
    begun(tmp_path, "npz")
    path = tmp_path / "parts/00000001-00000002.npy"
    data = path.read_bytes()
    path.write_bytes(damage(data) if damage is not DAMAGE["zeros"] else bytes(len(data)))
    images = again(tmp_path, "npz")
    assert images.missing().tolist() == [1] and images.damaged == (path.name,)
    images.write([1], PIXELS[[1]])
    images.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "images.npz")["arr_0"], ddpm_jax.to_uint8(PIXELS))


def test_parts_of_another_shape(tmp_path):
    begun(tmp_path, "npz")
    np.save(tmp_path / "parts/00000000-00000001.npy", np.zeros((1, 4, 4, 3), np.uint8))
    np.save(tmp_path / "parts/00000002-00000003.npy", np.zeros((2, 4, 4, 1), np.uint8))
    assert again(tmp_path, "npz").missing().tolist() == [0, 2]


@pytest.mark.parametrize("damage", [*DAMAGE.values(), lambda data: flipped(data, 200)], ids=[*DAMAGE, "flipped"])
def test_a_damaged_archive_is_drawn_anew(tmp_path, damage):
    begun(tmp_path, "npz").finish()
    path = tmp_path / "images.npz"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    for count in (3, 4):
        assert again(tmp_path, "npz", count).missing().tolist() == list(range(count))
    images = again(tmp_path, "npz")
    images.begin()
    images.write([0, 1, 2], PIXELS)
    images.finish()
    np.testing.assert_array_equal(np.load(path)["arr_0"], ddpm_jax.to_uint8(PIXELS))
    with pytest.raises(FileExistsError, match="holds these 3 images already"):
        again(tmp_path, "npz")


def test_a_folder_of_other_images_is_left_alone(tmp_path):
    (tmp_path / "00000.png").write_bytes(b"somebody's")
    with pytest.raises(FileExistsError, match=r"holds 00000.png but no samples.json"):
        ImageSet(tmp_path, {"seed": 0}, 3)


def test_fast_is_a_sampler(model, capsys):
    assert fails(capsys, "leave --sampler out", model, "--fast", "--out", "x")


@pytest.mark.slow
def test_two_processes_with_four_devices_each(model, tmp_path):
    """Each writes the images on its devices. They equal those of one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
    words = (model, *SAMPLE, "--batch-size", 8, "--num-images", 21, "--out", "two")
    joined = ("--coordinator", f"127.0.0.1:{port}", "--num-processes", 2, "--process-id")
    # each notes what it writes
    program = """
import sys
from ddpm_jax import cli
from ddpm_jax.images import image_set
write = image_set.ImageSet.write
def noting(self, indices, images):
    with open(f"wrote-{sys.argv[1]}", "a") as file:
        print(*indices, file=file)
    write(self, indices, images)
image_set.ImageSet.write = noting
cli.main(sys.argv[2:])
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(i), "sample", *map(str, (*words, *joined, i))],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    wrote = [[int(word) for word in (tmp_path / f"wrote-{i}").read_text().split()] for i in range(2)]
    assert len(wrote[0]) > 5 and len(wrote[1]) > 5
    assert sorted(wrote[0] + wrote[1]) == list(range(21))  # nothing twice, nothing missing

    sample(model, "--batch-size", 8, "--num-images", 21, "--out", "one")
    for i in range(21):
        one, two = (np.asarray(Image.open(tmp_path / name / f"{i:05d}.png")).astype(int) for name in ("one", "two"))
        assert np.abs(one - two).max() <= 1  # the rounding of another batch on each device
    assert json.loads((tmp_path / "two/samples.json").read_text())["complete"]


def test_processes_are_described_whole(model, capsys):
    assert fails(capsys, "belong together", model, "--coordinator", "127.0.0.1:1", "--out", "x")
