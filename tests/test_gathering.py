"""Features of folders and arrays: in order, whatever the batch, resumed, in bounded memory; and `ddpm-jax stats`."""

import json
import re
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli import main
from ddpm_jax.evaluation import gathering
from ddpm_jax.evaluation.features import Features, from_function, pixels
from ddpm_jax.evaluation.gathering import gather, open_images
from ddpm_jax.evaluation.moments import Statistics
from ddpm_jax.evaluation.reference import read_statistics
from ddpm_jax.images.image_set import ImageSet
from ddpm_jax.images.picture import resized

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (30, 4, 6, 3), np.uint8)
colours = from_function(lambda images: (images.mean(axis=(1, 2)), images.max(axis=(1, 2))), "colours")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(gathering, "CHUNK", 8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"images/{number:02d}.png")
    return tmp_path / "images"


def counting(stop=None, **replaced):
    """An extractor that notes the images of each call, and fails after some of them."""
    calls = []

    def function(images):
        calls.append(len(images))
        if stop is not None and sum(calls) > stop:
            raise KeyboardInterrupt
        return colours(images)

    made = from_function(function, replaced.get("name", "colours"))
    made.calls = calls
    return made


def assert_colours(found, images=IMAGES):
    np.testing.assert_allclose(found.features, images.mean(axis=(1, 2)), rtol=1e-6)  # the cast to float32
    np.testing.assert_array_equal(found.logits, images.max(axis=(1, 2)))
    assert found.features.dtype == found.logits.dtype == np.float32
    expected = Statistics.of(np.asarray(found.features))
    np.testing.assert_allclose(found.statistics.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.statistics.covariance, expected.covariance, atol=1e-9)  # of up to 1e3
    assert found.statistics.count == len(images)


class TestImages:
    @pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
    @pytest.mark.parametrize("kept_on_disk", [True, False])
    def test_come_in_their_order(self, folder, tmp_path, batch_size, kept_on_disk):
        seen = []
        disk = tmp_path / "kept" if kept_on_disk else None
        found = gather(open_images(str(folder)), colours, batch_size=batch_size, folder=disk, watch=seen.append)
        assert_colours(found)
        assert seen == [0, 8, 16, 24, 30]

    def test_fill_the_devices(self, monkeypatch):
        monkeypatch.setattr(gathering, "CHUNK", 256)
        images, extractor = np.zeros((256, 1, 1, 3), np.uint8), counting()
        gather(images, extractor)
        assert extractor.calls == [64] * 4
        extractor.images_per_run = 128
        extractor.calls.clear()
        gather(images, extractor)
        assert extractor.calls == [128] * 2

    def test_of_an_array_and_of_files_of_it(self, folder, tmp_path):
        np.savez(tmp_path / "x.npz", images=IMAGES)
        for images in (IMAGES, open_images(str(tmp_path / "x.npz")), open_images(str(folder))):
            assert_colours(gather(images, colours))

    @pytest.mark.parametrize("format", ["png", "npz"])
    def test_of_a_drawn_set(self, tmp_path, format):
        images = ImageSet(tmp_path / "set", {"seed": 0}, 3, format=format)
        images.begin()
        images.write(range(3), IMAGES[:3] / np.float32(255))
        with pytest.raises(ValueError, match="is a set of 3 samples that is not complete"):
            open_images(str(tmp_path / "set"))
        images.finish()
        Image.new("L", (9, 9)).save(tmp_path / "set/grid.png")  # which is no sample
        assert_colours(gather(open_images(str(tmp_path / "set")), colours), IMAGES[:3])

    def test_of_several_sizes_are_batched_by_size(self, tmp_path):
        sizes = [(4, 6), (5, 5), (4, 6), (5, 5), (4, 6)]
        images = [RANDOM.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
        for number, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / f"{number}.png")
        extractor = counting()
        found = gather(open_images(str(tmp_path)), extractor)
        assert sorted(extractor.calls) == [2, 3]
        np.testing.assert_allclose(found.features, [image.mean(axis=(0, 1)) for image in images], rtol=1e-6)
        with pytest.raises(ValueError, match=r"have \[72, 75\] features by 'pixels'; .*one `resolution`"):
            gather(open_images(str(tmp_path)), pixels)
        with pytest.raises(
            ValueError, match="`images` 1 to 1 of .* have 75 features by 'pixels' and those before them 72"
        ):
            gather(open_images(str(tmp_path)), pixels, batch_size=1)
        assert found.note["sizes"] == [[6, 4], [5, 5]]

    def test_are_brought_to_a_resolution_as_in_training(self, folder):
        source = open_images(str(folder))
        found = gather(source, pixels, resolution=3)
        expected = [np.ravel(np.asarray(resized(Image.fromarray(image), 3))) for image in IMAGES]
        np.testing.assert_array_equal(found.features, np.array(expected) / np.float32(255))
        assert found.note["resolution"] == 3 and found.note["sizes"] == [[3, 3], [3, 3]]

    def test_grey_ones_have_one_channel(self):
        assert gather(IMAGES[..., 0], pixels).features.shape == (30, 24)

    def test_the_note_is_json(self, folder):
        note = gather(open_images(str(folder), background="black"), colours).note
        assert json.loads(json.dumps(note)) == note | {"background": [0, 0, 0]}
        assert note["num_images"] == 30 and note["channels"] == 3 and note["sizes"] == [[6, 4], [6, 4]]
        Image.fromarray(IMAGES[0]).save(folder / "new.png")
        assert gather(open_images(str(folder)), colours).note["fingerprint"] != note["fingerprint"]


class TestMemory:
    def test_does_not_grow_with_the_images(self, monkeypatch):
        """An array of 200 features of 1792 more images would have 1.4 MB."""
        monkeypatch.setattr(gathering, "CHUNK", 64)
        wide = from_function(lambda images: np.tile(images.reshape(len(images), 1), 200), "wide")
        peaks = []
        for count in (256, 2048):
            images = np.zeros((count, 1, 1, 1), np.uint8)
            tracemalloc.start()
            gather(images, wide, keep=False, batch_size=64)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] - peaks[0] < 0.7e6

    def test_statistics_alone(self):
        found = gather(IMAGES, colours, keep=False)
        assert found.features is None and found.logits is None
        np.testing.assert_array_equal(found.statistics.covariance, gather(IMAGES, colours).statistics.covariance)


class TestResumed:
    def test_goes_on_where_it_ended(self, folder, tmp_path):
        source, kept = open_images(str(folder)), tmp_path / "kept"
        with pytest.raises(KeyboardInterrupt):
            gather(source, counting(stop=20), batch_size=4, folder=kept)
        seen, extractor = [], counting()
        found = gather(source, extractor, batch_size=3, folder=kept, watch=seen.append)
        assert seen == [16, 24, 30] and sum(extractor.calls) == 14
        assert_colours(found)
        whole = gather(source, colours).statistics
        np.testing.assert_array_equal(found.statistics.covariance, whole.covariance)
        again = counting()
        assert_colours(gather(source, again, folder=kept))
        assert again.calls == []

    @pytest.mark.parametrize(
        "changed, words",
        [
            ("protocol", "protocol 'colours' there, 'other' here"),
            ("resolution", "resolution None there, 3 here"),
            ("images", "num_images 30 there, 29 here"),
            ("file", "fingerprint"),
        ],
    )
    def test_others_are_refused(self, folder, tmp_path, changed, words):
        kept = tmp_path / "kept"
        gather(open_images(str(folder)), colours, folder=kept)
        if changed == "images":
            (folder / "03.png").unlink()
        if changed == "file":
            Image.fromarray(IMAGES[3] // 64).save(folder / "03.png")
        extractor = counting(name="other") if changed == "protocol" else colours
        resolution = 3 if changed == "resolution" else None
        with pytest.raises(
            ValueError, match=f"holds features that were gathered otherwise: .*{words}.* another `folder`"
        ):
            gather(open_images(str(folder)), extractor, resolution=resolution, folder=kept)

    def test_sizes_that_change_after_the_interruption(self, tmp_path):
        """The same words as without one, also where the first images are done."""
        (tmp_path / "images").mkdir()
        for number in range(9):
            Image.new("L", (4, 4 + number // 8)).save(tmp_path / f"images/{number}.png")
        for _ in range(2):
            with pytest.raises(ValueError, match="`images` 8 to 8 of .* have 20 features by 'pixels' and those before"):
                gather(open_images(str(tmp_path / "images")), pixels, folder=tmp_path / "kept")

    def test_one_job_at_a_time(self, tmp_path):
        def function(images):
            with pytest.raises(BlockingIOError, match="set of features .* is in use by another job"):
                gather(IMAGES, colours, folder=tmp_path / "kept")
            return images.mean(axis=(1, 2))

        gather(IMAGES, from_function(function, "mine"), folder=tmp_path / "kept")


class TestRefusals:
    def test_of_channels(self):
        with pytest.raises(ValueError, match="`images` have 4 channels; features are taken of 1 or 3"):
            gather(np.zeros((2, 4, 4, 4), np.uint8), pixels)

    def test_of_what_is_no_image(self):
        with pytest.raises(ValueError, match="`images` holds an array float32"):
            gather(np.zeros((2, 4, 4, 3), np.float32), pixels)

    def test_of_features_that_are_not_finite(self):
        class Broken:
            name = "broken"

            def __call__(self, images):
                values = images.mean(axis=(1, 2), dtype=np.float32)
                return Features(np.where(images[:, :1, 0, 0] == IMAGES[17, 0, 0, 0], np.nan, values), None)

        first = int(np.argmax(IMAGES[:, 0, 0, 0] == IMAGES[17, 0, 0, 0]))
        with pytest.raises(ValueError, match=f"NaN or infinite features by 'broken', first image {first} of `images`"):
            gather(IMAGES, Broken())

    def test_of_sizes(self):
        for name in ("batch_size", "resolution"):
            with pytest.raises(ValueError, match=f"`{name}` must be at least 1, not 0"):
                gather(IMAGES, pixels, **{name: 0})


class TestCommand:
    def run(self, *arguments):
        main(["stats", *map(str, arguments)])

    def test_writes_statistics(self, folder, tmp_path, capsys):
        out = tmp_path / "x.npz"
        self.run(folder, out, "--features", "pixels", "--resolution", 3, "--background", "black")
        said = capsys.readouterr()
        assert "30 images, RGB, 6 x 4 pixels" in said.out
        assert "x.npz: mean and covariance of 30 images, 27 features by pixels." in said.out
        read = read_statistics(out)
        expected = gather(open_images(str(folder), background="black"), pixels, resolution=3)
        np.testing.assert_array_equal(read.statistics.covariance, expected.statistics.covariance)
        assert read.features is None and read.note == json.loads(json.dumps(expected.note))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "x.npz"]

    def test_keeps_features_and_replaces_when_asked(self, folder, tmp_path, capsys):
        out = tmp_path / "x.npz"
        self.run(folder, out, "--features", "pixels")
        assert "Of fewer than 73 images the covariance has no full rank" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            self.run(folder, out, "--features", "pixels")
        assert "x.npz exists already. Choose another name, or overwrite it (--force)." in capsys.readouterr().err
        self.run(folder, out, "--features", "pixels", "--force", "--keep-features", "--image-channels", 1)
        assert read_statistics(out).features.shape == (30, 24)

    def test_messages_name_flags(self, folder, tmp_path, capsys):
        np.save(tmp_path / "four.npy", np.zeros((2, 4, 4, 4), np.uint8))
        for data, out, words in [
            (tmp_path / "four.npy", "x.npz", "IMAGES have 4 channels; .* by --image-channels"),
            (folder, "x.csv", "OUT .*x.csv does not end in .npz"),
        ]:
            with pytest.raises(SystemExit):
                self.run(data, tmp_path / out, "--features", "pixels")
            assert re.search(words, capsys.readouterr().err)

    def test_an_interrupted_one_goes_on(self, folder, tmp_path, monkeypatch):
        stopping, out = counting(stop=20), tmp_path / "x.npz"
        monkeypatch.setattr("ddpm_jax.evaluation.features.extractor", lambda name, weights: stopping)
        with pytest.raises(SystemExit):
            self.run(folder, out, "--batch-size", 4)
        assert not out.exists() and {*stopping.calls} == {4}
        going_on = counting()
        monkeypatch.setattr("ddpm_jax.evaluation.features.extractor", lambda name, weights: going_on)
        self.run(folder, out)
        assert sum(going_on.calls) == 14 and read_statistics(out).statistics.count == 30

    def test_broken_images(self, folder, tmp_path, capsys):
        (folder / "00.png").write_bytes(b"broken")
        with pytest.raises(SystemExit):
            self.run(folder, tmp_path / "x.npz", "--features", "pixels")
        said = capsys.readouterr().err
        assert f"ddpm-jax: IMAGES {folder}: 1 of 30 images cannot be read: " in said and "with --skip-broken." in said
        self.run(folder, tmp_path / "x.npz", "--features", "pixels", "--skip-broken")
        assert read_statistics(tmp_path / "x.npz").statistics.count == 29
