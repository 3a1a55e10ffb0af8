"""Training data: folders, classes, arrays, batches by step, and what a resumed run says of other data."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import small_params
from PIL import Image

import ddpm_jax
from ddpm_jax.checkpoint.folder import steps_in
from ddpm_jax.images import source
from ddpm_jax.images.picture import decode
from ddpm_jax.images.source import centred, open_source
from ddpm_jax.training import DataConfig, LoopConfig, ModelConfig, OptimizerConfig, TrainConfig, train
from ddpm_jax.training.data import Batches
from ddpm_jax.training.run_folder import changes, facts


@pytest.fixture
def photos(tmp_path):
    """Files of several formats and sizes in two folders, each of a single colour."""
    for number, (name, mode, size) in enumerate(
        [
            ("apple/a.png", "RGB", (20, 12)),
            ("apple/b.jpg", "RGB", (40, 64)),
            ("pear/c.webp", "RGB", (16, 16)),
            ("pear/deep/d.png", "L", (9, 30)),
            ("pear/e.png", "RGBA", (16, 8)),
            ("pear/f.png", "P", (16, 8)),
        ]
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, 40 * number if mode in "LP" else (40 * number,) * len(mode)).save(path)
    return tmp_path / "photos"


def batches(data, resolution=8, batch_size=4, **changes):
    config = DataConfig(data=str(data), **changes)
    source = open_source(config.data, class_conditional=config.class_conditional)
    return Batches(source, config, resolution, batch_size=batch_size, seed=3)


def test_folders(photos):
    source = open_source(str(photos))
    assert len(source) == 6 and source.channels == 3 and source.labels is None
    batch = batches(photos, batch_size=6)(0)
    assert batch.images.shape == (6, 8, 8, 3) and batch.images.dtype == np.uint8 and batch.labels is None
    colours = sorted(batch.images.reshape(6, -1).mean(1).round())
    # JPEG and WebP lose a little; the last file's palette is black; of 160 with alpha 160, white shows through
    np.testing.assert_allclose(colours, [0, 0, 40, 80, 120, (160 * 160 + 255 * 95) / 255], atol=2)


def test_sub_folders_are_classes(photos):
    source = open_source(str(photos), class_conditional=True)
    assert source.classes == ("apple", "pear") and source.labels.tolist() == [0, 0, 1, 1, 1, 1]
    batch = batches(photos, batch_size=6, class_conditional=True)(0)
    assert sorted(batch.labels.tolist()) == [0, 0, 1, 1, 1, 1]
    Image.new("RGB", (8, 8)).save(photos / "stray.png")
    with pytest.raises(ValueError, match="every image lies in a sub-folder"):
        open_source(str(photos), class_conditional=True)


def test_grey_folders_have_one_channel(tmp_path):
    Image.new("L", (8, 8), 7).save(tmp_path / "a.png")
    Image.new("1", (8, 8), 1).save(tmp_path / "b.png")
    assert open_source(str(tmp_path)).channels == 1


def test_broken_files_are_named(photos):
    whole = (photos / "apple/b.jpg").read_bytes()
    (photos / "apple/b.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (photos / "pear/c.webp").write_text("<html>not found</html>")
    message = r"2 of 6 images cannot be read: \S*apple/b.jpg \(\w*[Tt]runcated.*\), \S*pear/c.webp \(no image of"
    with pytest.raises(ValueError, match=message):
        open_source(str(photos))
    source = open_source(str(photos), skip_broken=True)
    assert len(source) == 4 and [path.name for path in source.broken] == ["b.jpg", "c.webp"]


def test_arrays(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "both.npz", images=images, labels=np.array([0, 1, 2, 1, 0]))
    source = open_source(str(tmp_path / "both.npz"), class_conditional=True)
    assert source.classes == ("0", "1", "2") and source.channels == 3
    np.save(tmp_path / "grey.npy", images[..., 0])
    np.testing.assert_array_equal(centred(open_source(str(tmp_path / "grey.npy")), 8, 99)[0], images[..., :1])


def test_held_out_data_is_numbered_as_the_training_data(photos, tmp_path):
    (tmp_path / "held/pear").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "held/pear/a.png")
    training = open_source(str(photos), class_conditional=True)
    held_out = open_source(str(tmp_path / "held"), class_conditional=True, like=training)
    assert held_out.labels.tolist() == [1] and held_out.channels == 3
    assert centred(held_out, 8, 9)[0].shape == (1, 8, 8, 3)
    (tmp_path / "held/plum").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "held/plum/a.png")
    with pytest.raises(ValueError, match=r"classes that `data` has not: \['plum'\]"):
        open_source(str(tmp_path / "held"), class_conditional=True, like=training)


def test_links_are_followed_and_circles_end(photos, tmp_path):
    (tmp_path / "album").mkdir()
    (tmp_path / "album/linked").symlink_to(photos, target_is_directory=True)
    (tmp_path / "album/circle").symlink_to(tmp_path / "album", target_is_directory=True)
    assert len(open_source(str(tmp_path / "album"))) == len(open_source(str(photos)))


def test_damaged_arrays_are_named(tmp_path):
    np.savez(tmp_path / "cut.npz", images=np.zeros((9, 8, 8, 1), np.uint8))
    whole = (tmp_path / "cut.npz").read_bytes()
    for name, data in (("cut.npz", whole[:200]), ("empty.npz", b""), ("junk.npy", b"junk")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"`data` .*{name} cannot be read"):
            open_source(str(tmp_path / name))


def test_a_photograph_is_decoded_as_large_as_its_crops_need(tmp_path):
    Image.new("RGB", (512, 512)).save(tmp_path / "large.jpg")
    source = open_source(str(tmp_path))
    assert source.image(0, 64).size == (64, 64) and source.image(0, 65).size == (128, 128)
    assert batches(tmp_path, resolution=8).least == 16
    assert batches(tmp_path, resolution=8, crop="random_resized", min_crop=0.01).least == 160


def test_sixteen_bits_of_grey(tmp_path):
    Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)).save(tmp_path / "a.png")
    assert np.all(np.asarray(open_source(str(tmp_path)).image(0, 8)) == 100)


def test_digits():
    source = open_source("digits", class_conditional=True)
    assert len(source) == 1797 and len(source.classes) == 10 and source.channels == 1


class TestBatches:
    def test_belong_to_their_step(self, photos):
        """A batch does not depend on earlier requests."""
        one, other = batches(photos, crop="random_resized"), batches(photos, crop="random_resized")
        later = one(5)
        np.testing.assert_array_equal(other(0).images, one(0).images)
        np.testing.assert_array_equal(other(5).images, later.images)
        assert np.any(one(0).images != one(1).images)

    def test_parts_make_the_whole(self, photos):
        served = batches(photos, flip=True)
        for step, *parts in zip(range(2, 5), *(served.own(2, 5, part, 2) for part in range(2)), strict=True):
            joined = np.concatenate([part.images for part in parts])
            np.testing.assert_array_equal(joined, served(step).images)

    def test_every_image_once_an_epoch_in_another_order(self, tmp_path):
        np.save(
            tmp_path / "numbers.npy",
            np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8),
        )
        served = batches(tmp_path / "numbers.npy", resolution=4, batch_size=4)
        epochs = [
            np.concatenate([served(3 * epoch + step).images[:, 0, 0, 0] for step in range(3)]) for epoch in range(2)
        ]
        assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
        assert list(epochs[0]) != list(epochs[1])

    def test_flips_are_per_image_and_half(self, tmp_path):
        image = np.zeros((1, 4, 4, 1), np.uint8)
        image[:, :, 0] = 255
        np.save(tmp_path / "edge.npy", image)
        flipped = batches(tmp_path / "edge.npy", resolution=4, batch_size=400)(0).images[:, 0, 3, 0] == 255
        assert 150 < flipped.sum() < 250  # 200 expected, of deviation 10
        still = batches(tmp_path / "edge.npy", resolution=4, batch_size=400, flip=False)(0).images
        assert np.all(still[:, :, 0] == 255)

    def test_crops(self, tmp_path):
        """On a ramp, the pixels show the crop: the middle, or a random square of at least the given share."""
        ramp = np.tile(np.arange(200, dtype=np.uint8), (100, 1))
        Image.fromarray(ramp).save(tmp_path / "ramp.png")
        middle = batches(tmp_path, resolution=10, batch_size=1, flip=False)(0).images[0, 0, :, 0].astype(int)
        np.testing.assert_allclose(middle, np.arange(10) * 10 + 54.5, atol=1.5)
        cut = batches(tmp_path, resolution=10, batch_size=200, crop="random_resized", min_crop=0.25, flip=False)(
            0
        ).images
        first, last = (cut[:, 0, place, 0].astype(int) for place in (0, -1))
        sides = (last - first) / 0.9
        assert 48 <= sides.min() < 60 and 90 < sides.max() <= 103
        assert first.min() < 10 and last.max() > 180

    def test_a_photograph_is_turned_as_its_camera_was(self, tmp_path):
        image = Image.new("L", (16, 8), 0)
        image.paste(255, (0, 0, 8, 8))
        exif = image.getexif()
        exif[0x0112] = 6  # turned by 90 degrees
        image.save(tmp_path / "photo.png", exif=exif)
        upright = open_source(str(tmp_path)).image(0, 8)
        assert upright.size == (8, 16)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: None, "holds no images"),
        (lambda folder: (folder / "a.png").write_bytes(b""), "1 of 1 images cannot be read"),
        (lambda folder: np.save(folder / "x.npy", np.zeros((2, 4, 4, 3))), "must be uint8"),
        (lambda folder: np.savez(folder / "x.npz", a=np.zeros(3), b=np.zeros(3)), "name one of them `images`"),
        (lambda folder: (folder / "x.txt").write_text("x"), "neither a folder nor an .npz or .npy"),
    ],
)
def test_bad_data(tmp_path, make, message):
    make(tmp_path)
    files = [path for path in tmp_path.iterdir() if path.suffix in (".npy", ".npz", ".txt")]
    with pytest.raises(ValueError, match=message):
        open_source(str(files[0] if files else tmp_path))


@pytest.fixture
def run_of(tmp_path):
    """Return a function that makes the settings of a small run on data/: six steps of four images."""
    (tmp_path / "network.json").write_text(json.dumps(small_params().config.unet.to_dict()))

    def settings(steps=6, model=None, **data):
        return TrainConfig(
            data=DataConfig(data=str(tmp_path / "data"), workers=2, resolution=8, **data),
            model=model or ModelConfig(model_config=tmp_path / "network.json"),
            optimizer=OptimizerConfig(warmup_steps=0),
            loop=LoopConfig(batch_size=4, steps=steps, save_every=99, sample_every=0),
        )

    return settings


@pytest.fixture
def data(tmp_path):
    """Twelve grey pictures."""
    (tmp_path / "data").mkdir()
    for number in range(12):
        Image.new("L", (8, 8), 20 * number).save(tmp_path / f"data/{number:02}.png")
    return tmp_path / "data"


def test_classes_that_are_others_are_never_accepted(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4))
    found = open_source(str(tmp_path / "x.npz"), class_conditional=True)
    with pytest.raises(ValueError, match=r"classes \['0', '1'\] there, \['0', '1', '2', '3'\] here"):
        changes(found, facts(found) | {"classes": ["0", "1"]}, tmp_path, accepted=True)
    other = facts(found) | {"fingerprint": ""}
    with pytest.raises(ValueError, match="the pixels of the array differ.*`accept_changed_data`"):
        changes(found, other, tmp_path, accepted=False)
    assert "pixels" in changes(found, other, tmp_path, accepted=True)


class TestRuns:
    """Data that changes or fails while runs use it."""

    def test_a_file_that_fails_while_the_run_goes(self, data, run_of, monkeypatch, caplog):
        """The steps before it are saved. With the file restored, the run ends with the same weights.

        The run's folder lies in its data folder; its grids and curve are not taken as data.
        """
        train(run_of(), data / "whole")
        looks = []

        def failing(path, **options):
            looks.append(path)
            if path.name == "07.png" and [other.name for other in looks].count("07.png") > 2:  # in the second epoch
                raise OSError(5, "Input/output error")
            return decode(path, **options)

        monkeypatch.setattr(source, "PAUSES", (0.0,))
        with monkeypatch.context() as patched:
            patched.setattr(source, "decode", failing)
            with pytest.raises(OSError, match=r"Step \d: \S*07.png can no longer be read: input/output error") as error:
                train(run_of(), data / "run")
        step = int(str(error.value).split("Step ")[1][0])
        assert step in (4, 5, 6) and steps_in(data / "run/checkpoints") == [step - 1]
        assert f"step {step - 1}" in str(error.value) and "`accept_changed_data`" in str(error.value)
        train(run_of(), data / "run", resume=True)
        assert "12 images, grey, 8 x 8 pixels. Left out: " in caplog.text
        one, other = (ddpm_jax.load(data / name).weights for name in ("whole", "run"))
        jax.tree.map(np.testing.assert_array_equal, one, other)

    def test_files_that_are_others(self, data, run_of, caplog):
        """They are named. The run continues only with `accept_changed_data`, and records the new data."""
        train(run_of(steps=1), data / "run")
        assert json.loads((data / "run/data.json").read_text())["files"]["07.png"] == (data / "07.png").stat().st_size
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(data / "07.png")
        (data / "08.png").unlink()
        for number in range(12):
            Image.new("L", (8, 8)).save(data / f"new{number:02}.png")
        message = (
            r"not what .*run was trained on: images 12 there, 23 here; 12 new: new00.png, .*new09.png and 2 more; "
            r"1 gone: 08.png; 1 changed: 07.png \(\d+ bytes there, \d+ here\). .*`accept_changed_data`"
        )
        with pytest.raises(ValueError, match=message):
            train(run_of(steps=2), data / "run", resume=True)
        with pytest.raises(ValueError, match=r"`accept_changed_data` is for a run that is continued \(`resume`\)"):
            train(run_of(steps=2, accept_changed_data=True), data / "another")
        train(run_of(steps=2, accept_changed_data=True), data / "run", resume=True)
        assert "1 gone: 08.png" in caplog.text
        before = json.loads((data / "run/train.json").read_text())["data"]
        again = open_source(str(data), out=data / "run", before=before)
        assert changes(again, before, data / "run", accepted=False) is None

    def test_a_run_of_before_goes_on(self, data, run_of, tmp_path):
        """Its record has no ground and no list of files: it keeps hidden colours and its numbers of classes."""
        for number in range(12):
            (data / f"{number}").mkdir()
            (data / f"{number:02}.png").rename(data / f"{number}/x.png")
        Image.new("LA", (8, 8), (200, 0)).save(data / "3/x.png")
        items = small_params().config.unet.to_dict() | {"num_class_embeds": 12}
        (tmp_path / "network.json").write_text(json.dumps(items))
        train(run_of(steps=1, class_conditional=True), data / "run")
        record = json.loads((data / "run/train.json").read_text())
        assert record["data"]["classes"] == [str(number) for number in range(12)]
        assert record["data"]["background"] == "#ffffff"
        record["data"] = {name: record["data"][name] for name in ("images", "channels", "classes", "fingerprint")}
        record["data"]["classes"] = sorted(record["data"]["classes"])
        for name in ("image_channels", "background", "accept_changed_data"):
            del record["config"]["data"][name]
        (data / "run/train.json").write_text(json.dumps(record))
        (data / "run/data.json").unlink()
        described = json.loads((data / "run/ddpm_jax.json").read_text())
        (data / "run/ddpm_jax.json").write_text(json.dumps(described | {"class_names": []}))
        train(run_of(steps=2, class_conditional=True), data / "run", resume=True)
        now = json.loads((data / "run/train.json").read_text())["data"]
        assert now["classes"] == record["data"]["classes"] and now["background"] == "none"
        assert list(ddpm_jax.load(data / "run").config.class_names) == now["classes"]
        with pytest.raises(ValueError, match="background None there, 'white' here"):
            train(run_of(steps=4, class_conditional=True, background="white"), data / "run", resume=True)
        (data / "3/x.png").unlink()
        (data / "run/data.json").unlink()
        with pytest.raises(ValueError, match="of which that older run kept no list.*`accept_changed_data`"):
            train(run_of(steps=4, class_conditional=True), data / "run", resume=True)

    def test_channels_of_a_network_that_is_brought(self, data, run_of, tmp_path, caplog):
        """Grey files become colour for it. Colour becomes grey only by `image_channels`; arrays never change."""
        items = small_params().config.unet.to_dict() | {"in_channels": 3, "out_channels": 3}
        (tmp_path / "rgb.json").write_text(json.dumps(items))
        rgb = ModelConfig(model_config=tmp_path / "rgb.json")
        train(run_of(steps=1, model=rgb), tmp_path / "run")
        assert "12 images, grey (brought to RGB)" in caplog.text
        assert json.loads((tmp_path / "run/train.json").read_text())["data"]["channels"] == 3
        with pytest.raises(
            ValueError, match="in_channels 3 there, 1 of the data.*`image_channels` 3 makes them colour"
        ):
            train(run_of(steps=1, model=rgb, image_channels=1), tmp_path / "other")
        Image.new("RGB", (8, 8)).save(data / "colour.png")
        with pytest.raises(ValueError, match="in_channels 1 there, 3 of the data.*`image_channels` 1 makes them grey"):
            train(run_of(steps=1), tmp_path / "other")

    @pytest.mark.parametrize("wanted, given", [(1, 3), (3, 1)])
    def test_channels_of_a_checkpoint(self, data, run_of, tmp_path, wanted, given):
        ddpm_jax.save(small_params(in_channels=wanted, out_channels=wanted), tmp_path / "model")
        np.save(tmp_path / "images.npy", np.zeros((4, 8, 8, given), np.uint8))
        settings = run_of(steps=1, model=ModelConfig(init=str(tmp_path / "model")))
        arrays = dataclasses.replace(settings, data=DataConfig(data=str(tmp_path / "images.npy")))
        with pytest.raises(ValueError, match=f"channels; the data has {given}. `image_channels` {wanted} makes them"):
            train(arrays, tmp_path / "run")
        asked = dataclasses.replace(arrays, data=dataclasses.replace(arrays.data, image_channels=wanted))
        train(asked, tmp_path / "run")
