"""Decoding pictures of any transparency, depth and metadata; and which files of a folder are data."""

import hashlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.images import source, walk
from ddpm_jax.images.picture import decode, ground_of, suffixes
from ddpm_jax.images.source import UnreadableImage, open_source
from ddpm_jax.training import DataConfig

Image.init()
WHITE = (255, 255, 255)
COLOURS = np.array([[[10, 20, 30], [200, 100, 50]]], np.uint8)
ALPHA = np.array([[0, 128]], np.uint8)
RGBA = Image.fromarray(np.dstack([COLOURS, ALPHA]))
LA = Image.merge("LA", (RGBA.getchannel("R"), RGBA.getchannel("A")))
PALETTE = Image.fromarray(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE)
NEAR = PALETTE.getpixel((1, 0))  # the number of the second colour


def decoded(image, format="PNG", ground=WHITE, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return np.asarray(decode(file, ground=ground)).astype(int)


def png(depth, kind, row, width, transparent):
    """Write one row of pixels as a PNG of a kind that Pillow does not write."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"tRNS", transparent) + chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def over(colours, alpha, ground):
    """alpha * colour + (1 - alpha) * ground."""
    share = np.asarray(alpha)[..., None] / 255
    return (share * colours + (1 - share) * np.array(ground)).round()


class TestTransparency:
    @pytest.mark.parametrize(
        "format",
        [name for name in ("PNG", "WEBP", "TIFF", "TGA", "JPEG2000", "DDS", "SGI", "AVIF") if name in Image.SAVE],
    )
    @pytest.mark.parametrize("ground", [WHITE, (0, 0, 0), (1, 2, 250)])
    def test_alpha(self, format, ground):
        options = {"lossless": True} if format == "WEBP" else {"quality": 100} if format == "AVIF" else {}
        pixels = decoded(RGBA.resize((32, 16), Image.Resampling.NEAREST), format, ground, **options)
        expected = over(COLOURS, ALPHA, ground)[0]
        np.testing.assert_allclose(pixels[8, [0, 31]], expected, atol=2 if format == "AVIF" else 0)

    @pytest.mark.parametrize(
        "make, expected",
        [
            (lambda: decoded(LA), [255, 227]),
            (lambda: decoded(LA, "TIFF"), [255, 227]),
            (lambda: decoded(LA.getchannel("L"), transparency=10), [255, 200]),
            (lambda: decoded(Image.fromarray(np.array([[2570, 25700]], np.uint16)), transparency=2570), [255, 100]),
            (lambda: decoded(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), transparency=0), [255, 255]),
            (lambda: decoded(Image.fromarray(COLOURS), transparency=(10, 20, 30)), [WHITE, (200, 100, 50)]),
            (lambda: decoded(PALETTE, transparency=1 - NEAR), [WHITE, (200, 100, 50)]),
            (lambda: decoded(PALETTE, "GIF", transparency=1 - NEAR), [WHITE, (200, 100, 50)]),
            (lambda: decoded(PALETTE, transparency=bytes([128] * 2)), over(COLOURS, [[128, 128]], WHITE)[0]),
        ],
    )
    def test_other_forms(self, make, expected):
        np.testing.assert_array_equal(make()[0], expected)

    @pytest.mark.parametrize(
        "data, expected",
        [
            (png(1, 0, bytes([0b01100000]), 4, struct.pack(">H", 1)), [0, 99, 99, 0]),
            (png(2, 0, bytes([0b00011011]), 4, struct.pack(">H", 2)), [0, 85, 99, 255]),
            (png(4, 0, bytes([0x0F, 0x3A]), 4, struct.pack(">H", 3)), [0, 255, 99, 170]),
            (
                png(16, 2, struct.pack(">6H", 2570, 5140, 7710, 65535, 0, 0), 2, struct.pack(">3H", 2570, 5140, 7710)),
                [(99,) * 3, (255, 0, 0)],
            ),
        ],
    )
    def test_a_transparent_colour_is_counted_in_the_bits_of_the_file(self, data, expected):
        np.testing.assert_array_equal(np.asarray(decode(io.BytesIO(data), ground=(99, 99, 99)))[0], expected)

    def test_grey_stays_grey_on_grey_alone(self):
        red = (255, 0, 0)
        assert decoded(LA, ground=(7, 7, 7)).ndim == 2
        np.testing.assert_array_equal(decoded(LA, ground=red), over([[[10] * 3, [200] * 3]], ALPHA, red))
        opaque = Image.merge("LA", (LA.getchannel("L"), Image.new("L", LA.size, 255)))
        np.testing.assert_array_equal(decoded(opaque, ground=red), [[10, 200]])

    def test_none_takes_what_lies_hidden(self):
        np.testing.assert_array_equal(decoded(RGBA, ground=None), COLOURS)

    def test_grounds(self):
        assert ground_of("#abc") == (170, 187, 204) and ground_of("none") is None
        for bad in ("whitee", "#11223344", "", "transparent"):
            with pytest.raises(ValueError, match="`background` .* is no opaque colour"):
                DataConfig(data="x", background=bad)

    def test_an_array_has_none(self):
        with pytest.raises(ValueError, match="leave `background` out"):
            open_source("digits", background="black")


class TestDepths:
    """25700 / 65535 = 100 / 255."""

    @pytest.mark.parametrize(
        "data",
        [
            b"P5 2 1 65535\n" + struct.pack(">2H", 25700, 65535),
            b"P2 2 1 65535\n25700 65535\n",
            b"P5 2 1 255\n" + bytes([100, 255]),
            b"P5 2 1 510\n" + struct.pack(">2H", 200, 510),
        ],
    )
    def test_portable_maps(self, data):
        np.testing.assert_array_equal(np.asarray(decode(io.BytesIO(data), ground=WHITE)), [[100, 255]])

    @pytest.mark.parametrize(
        "mode, format", [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16", "JPEG2000"), ("I;16B", "PNG"), ("I;16B", "TIFF")]
    )
    def test_sixteen_bits(self, mode, format):
        values = np.array([[25700, 65535]] * 8, ">u2" if mode == "I;16B" else "<u2")
        image = Image.frombytes(mode, (2, 8), values.tobytes())
        np.testing.assert_array_equal(decoded(image, format)[0], [100, 255])

    @pytest.mark.parametrize(
        "values, what",
        [
            (np.linspace(0, 1, 64, dtype=np.float32), r"32 bits \(mode F\)"),
            (np.arange(64, dtype=np.int32) * 1000, r"32 bits \(mode I\)"),
        ],
    )
    def test_thirty_two_bits_are_refused_by_name(self, tmp_path, values, what):
        Image.fromarray(values.reshape(8, 8)).save(tmp_path / "scan.tif")
        with pytest.raises(ValueError, match=rf"scan.tif \(numbers of {what}.*save them with 8 bits\)"):
            open_source(str(tmp_path))
        Image.new("L", (8, 8)).save(tmp_path / "fine.png")
        assert len(open_source(str(tmp_path), skip_broken=True)) == 1

    def test_signed_numbers_are_refused_by_name(self):
        with pytest.raises(ValueError, match="signed numbers of 16 bits"):
            decoded(Image.fromarray(np.zeros((8, 8), np.uint16)), "TIFF", tiffinfo={339: 2})

    @pytest.mark.parametrize("mode, format", [("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("CMYK", "TIFF"), ("RGBX", "TIFF")])
    def test_other_colours_are_converted(self, mode, format):
        image = Image.new("RGB", (8, 8), (100, 150, 200)).convert(mode)
        np.testing.assert_allclose(decoded(image, format), np.broadcast_to((100, 150, 200), (8, 8, 3)), atol=3)


@pytest.mark.parametrize("format", [name for name in ("GIF", "TIFF", "PNG", "WEBP", "MPO") if name in Image.SAVE_ALL])
def test_of_several_frames_it_is_the_first(format):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    pixels = decoded(first, format, save_all=True, append_images=[second])
    np.testing.assert_allclose(pixels, np.broadcast_to((255, 0, 0), (8, 8, 3)), atol=2)


class TestOrientation:
    UPRIGHT = Image.fromarray(np.arange(12 * 20 * 3, dtype=np.uint8).reshape(12, 20, 3))
    # a camera's name that is a number, which Pillow reads and cannot write, and an orientation of 6
    ODD = b"Exif\0\0II*\0" + struct.pack("<IHHHIIHHIIIII", 8, 2, 0x010F, 5, 1, 38, 0x0112, 3, 1, 6, 0, 1, 1)

    @pytest.mark.parametrize("format, options", [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})])
    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    @pytest.mark.parametrize("broken", [ODD[:9], ODD[:13], b"Exif\0\0junk", b"Exif\0\0", ODD[:22]])
    def test_one_that_cannot_be_read_is_none(self, tmp_path, format, options, broken):
        self.UPRIGHT.save(tmp_path / "a.img", format, exif=broken, **options)
        without = decoded(self.UPRIGHT, format, **options)
        np.testing.assert_array_equal(np.asarray(decode(tmp_path / "a.img", ground=WHITE)), without)

    def test_it_acts_beside_a_tag_that_cannot_be_written(self):
        np.testing.assert_array_equal(decoded(self.UPRIGHT, exif=self.ODD), np.rot90(np.asarray(self.UPRIGHT), -1))

    @pytest.mark.parametrize("number", range(1, 9))
    @pytest.mark.parametrize("format", ["PNG", "TIFF"])
    def test_all_eight(self, number, format):
        exif = Image.Exif()
        exif[0x0112] = number
        pixels = np.asarray(self.UPRIGHT)
        transposed = pixels.swapaxes(0, 1)
        right = [pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1], transposed, transposed[:, ::-1]]
        right += [transposed[::-1, ::-1], transposed[::-1]]
        np.testing.assert_array_equal(decoded(self.UPRIGHT, format, exif=exif), right[number - 1])


class TestLeftOut:
    @pytest.fixture
    def folder(self, tmp_path):
        """A folder with three pictures that are data, and many files that are not."""
        for name in (
            *("a.png", "cat/b.JFIF", "cat/deep/c.ppm"),
            *(".hidden.png", ".ipynb_checkpoints/a-checkpoint.png", "cat/._b.png", "__MACOSX/a.png", "@eaDir/a.png"),
            *("run/samples/step-1.png", "cat/set/00000.png", "model/logo.png", "pipe/logo.png", "new run/old.png"),
            *("Thumbs.db", "notes.txt", "cat/list.txt", "README", "paper.pdf", "$RECYCLE.BIN/x.png"),
        ):
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            format = {".JFIF": "JPEG", ".ppm": "PPM"}.get(path.suffix, "PNG")
            Image.new("L", (8, 8)).save(path, format)
        for mark in ("run/train.json", "cat/set/samples.json", "model/ddpm_jax.json", "pipe/model_index.json"):
            (tmp_path / "data" / mark).write_text("{}")
        return tmp_path / "data"

    def test_what_is_no_data(self, folder):
        opened = open_source(str(folder), out=folder / "new run")
        assert [path.name for path in opened.items] == ["a.png", "b.JFIF", "c.ppm"]
        assert {why: len(names) for why, names in opened.left_out.items()} == {
            **{"hidden": 3, "of the system": 4, "of a training run": 1, "of a set of samples": 1, "of a checkpoint": 2},
            **{"of this run": 1, ".txt": 2, "without a suffix": 1, ".pdf": 1},
        }
        for part in ("3 hidden (", "1 of a training run (run)", "1 of this run (new run)", "2 .txt (", "1 .pdf (paper"):
            assert part in opened.describe()

    def test_the_marks_are_those_that_are_written(self):
        assert set(walk.OURS) == {"train.json", "samples.json", "ddpm_jax.json", "model_index.json"}

    def test_they_are_no_classes(self, folder):
        (folder / "a.png").unlink()
        (folder / "empty").mkdir()
        opened = open_source(str(folder), class_conditional=True, out=folder / "new run")
        assert opened.classes == ("cat",) and opened.left_out["without images"] == ["empty"]

    def test_a_hidden_folder_that_is_named_is_data(self, folder):
        assert len(open_source(str(folder / ".ipynb_checkpoints"))) == 1

    def test_a_set_that_is_named_is_data_but_for_its_grid(self, folder):
        for name in ("grid.png", "sampling.gif"):
            Image.new("L", (40, 40)).save(folder / "cat/set" / name)
        opened = open_source(str(folder / "cat/set"))
        assert [path.name for path in opened.items] == ["00000.png"] and opened.sizes == ((8, 8), (8, 8))
        assert opened.left_out["of many samples"] == ["grid.png", "sampling.gif"]

    def test_nothing_is_left(self, folder):
        with pytest.raises(ValueError, match=r"holds no images; left out: .*1 \.txt \(x\.txt\)"):
            (folder / "cat/set/x").mkdir()
            (folder / "cat/set/x/x.txt").write_text("x")
            open_source(str(folder / "cat/set/x"))

    def test_links_are_followed_once_and_hidden_ones_not(self, folder, tmp_path):
        (tmp_path / "album").mkdir()
        (tmp_path / "album/linked").symlink_to(folder / "cat", target_is_directory=True)
        (tmp_path / "album/.linked").symlink_to(folder, target_is_directory=True)
        assert len(open_source(str(tmp_path / "album"))) == 2

    def test_runs_of_earlier_versions_go_on_with_what_they_took(self, folder):
        """They took eight suffixes, hidden folders and hidden colours; the classes are those of the record."""
        names = sorted(path for path in folder.rglob("*.png") if not path.name.startswith("."))
        lines = "\n".join(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in names)
        before = {"fingerprint": hashlib.blake2b(lines.encode(), digest_size=16).hexdigest(), "classes": []}
        opened = open_source(str(folder), out=folder / "new run", before=before)
        assert opened.items == names and opened.ground is None and opened.fingerprint == before["fingerprint"]
        assert opened.left_out == {}


def test_suffixes():
    assert {".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".webp", ".gif", ".tif", ".ppm", ".jp2"} <= suffixes()
    assert not {".pdf", ".eps", ".ps", ".mpg", ".h5", ".hdf", ".txt", ".npy", ""} & suffixes()


@pytest.mark.parametrize(
    "names, expected",
    [
        (["1", "2", "10"], ["1", "2", "10"]),
        (["-1", "3", "0"], ["-1", "0", "3"]),
        (["01", "1", "2", "001"], ["001", "01", "1", "2"]),
        (["1", "2", "10", "b"], ["1", "10", "2", "b"]),
        (["1.5", "10", "2"], ["1.5", "10", "2"]),
        (["b", "a", "B"], ["B", "a", "b"]),
    ],
)
def test_classes_are_numbered_by_value_or_as_text(tmp_path, names, expected):
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8), number).save(tmp_path / name / "x.png")
    opened = open_source(str(tmp_path), class_conditional=True)
    assert list(opened.classes) == expected
    for path, label in zip(opened.items, opened.labels, strict=True):
        assert expected[label] == path.parent.name
    before = {"fingerprint": opened.fingerprint, "classes": sorted(names), "background": "none"}
    again = open_source(str(tmp_path), class_conditional=True, before=before)
    assert again.classes == tuple(sorted(names))
    for path, label in zip(again.items, again.labels, strict=True):
        assert sorted(names)[label] == path.parent.name


def test_a_class_that_the_run_has_not(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "x.png")
    with pytest.raises(ValueError, match="classes that the run has not: dog"):
        open_source(str(tmp_path), class_conditional=True, before={"fingerprint": "", "classes": ["cat"]})


class TestUnreadable:
    """Each is named with its reason; with skip_broken it is left out."""

    @staticmethod
    def bomb(path):
        header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
        whole = png(8, 0, bytes(4), 4, bytes(2))
        path.write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])

    @staticmethod
    def long_text(path):
        text = Image.new("L", (8, 8))
        text.save(path)
        data = zlib.compress(b"x" * (2 << 20))
        chunk = b"zTXtComment\0\0" + data
        chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        whole = path.read_bytes()
        path.write_bytes(whole[:33] + chunk + whole[33:])

    @staticmethod
    def cut(path):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])

    @pytest.mark.parametrize(
        "make, why",
        [
            (lambda path: TestUnreadable.bomb(path), r".*400000000 pixels.*bomb"),
            (lambda path: TestUnreadable.long_text(path), r".*MAX_TEXT_CHUNK"),
            (lambda path: TestUnreadable.cut(path), r".*truncated"),
            (lambda path: path.write_bytes(b""), r"the file is empty"),
            (lambda path: path.write_text("<html>"), r"no image of a kind that Pillow decodes"),
            (lambda path: path.symlink_to("nowhere.png"), r"a link to nothing"),
            (lambda path: os.mkfifo(path), r"no file of bytes"),
        ],
    )
    def test_why(self, tmp_path, make, why):
        make(tmp_path / "x.png")
        Image.new("L", (8, 8)).save(tmp_path / "y.png")
        with pytest.raises(ValueError, match=rf"1 of 2 images cannot be read: \S*x.png \({why}.*`skip_broken`"):
            open_source(str(tmp_path))
        opened = open_source(str(tmp_path), skip_broken=True)
        assert [path.name for path in opened.items] == ["y.png"] and [path.name for path in opened.broken] == ["x.png"]
        assert "1 that cannot be read" in opened.describe()

    def test_ten_are_named(self, tmp_path):
        for number in range(13):
            (tmp_path / f"{number:02}.png").write_bytes(b"")
        with pytest.raises(ValueError, match=r"13 of 13 .*09.png \(the file is empty\) and 3 more"):
            open_source(str(tmp_path))

    def test_a_folder_that_may_not_be_read(self, tmp_path, monkeypatch):
        (tmp_path / "closed").mkdir()
        Image.new("L", (8, 8)).save(tmp_path / "y.png")
        scandir = os.scandir

        def closed(path):
            if str(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", closed)
        with pytest.raises(ValueError, match=r"closed \(permission denied\)"):
            open_source(str(tmp_path))
        assert len(open_source(str(tmp_path), skip_broken=True)) == 1

    def test_a_name_that_is_no_text(self, tmp_path):
        """A file whose name is no UTF-8 is data, and its name can be printed and recorded."""
        folder = os.fsencode(tmp_path) + b"/caf\xe9"
        os.mkdir(folder)
        Image.new("L", (8, 8)).save(os.fsdecode(folder + b"/\xff.png"))
        with open(folder + b"/\xfe.png", "wb"):
            pass
        with pytest.raises(ValueError, match=r"caf\\xe9/\\xfe.png \(the file is empty\)") as error:
            open_source(str(tmp_path))
        str(error.value).encode()
        opened = open_source(str(tmp_path), class_conditional=True, skip_broken=True)
        assert opened.classes == ("caf\\xe9",) and opened.image(0, 8).size == (8, 8)
        opened.describe().encode()

    def test_one_that_fails_later_is_tried_again(self, tmp_path, monkeypatch):
        Image.new("L", (8, 8), 7).save(tmp_path / "x.png")
        opened = open_source(str(tmp_path))
        tries = []

        def flaky(path, **options):
            tries.append(path)
            if len(tries) < 3:
                raise OSError(5, "Input/output error")
            return decode(path, **options)

        monkeypatch.setattr(source, "PAUSES", (0.0, 0.0, 0.0))
        monkeypatch.setattr(source, "decode", flaky)
        assert opened.image(0, 8).getpixel((0, 0)) == 7 and len(tries) == 3
        (tmp_path / "x.png").unlink()
        with pytest.raises(UnreadableImage, match=r"x.png can no longer be read: no such file or directory"):
            opened.image(0, 8)
        assert len(tries) == 7


def test_the_first_look_is_how_batches_are_read(tmp_path, monkeypatch):
    """Everything that decoding refuses is refused on opening."""
    Image.new("L", (8, 8)).save(tmp_path / "x.png")

    def refuses(path, **options):
        raise TypeError("struct")

    monkeypatch.setattr(source, "decode", refuses)
    with pytest.raises(ValueError, match=r"x.png \(struct\)"):
        open_source(str(tmp_path))


class TestDescription:
    def test_folder(self, tmp_path):
        for name, size in (("pear/a.png", (20, 12)), ("apple/b.png", (8, 9)), ("apple/c.png", (9, 9))):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", size).save(tmp_path / name)
        (tmp_path / "apple/list.txt").write_text("a")
        text = open_source(str(tmp_path), class_conditional=True).describe()
        assert text == (
            f"{tmp_path}: 3 images, RGB, 8 x 9 to 20 x 12 pixels; 2 classes: 0: apple (2), 1: pear (1). "
            "Left out: 1 .txt (apple/list.txt)."
        )

    def test_many_classes(self):
        text = open_source("digits", class_conditional=True).describe()
        assert text.startswith("digits: 1797 images, grey, 8 x 8 pixels; 10 classes: 0: 0 (178), 1: 1 (182)")

    def test_conversion(self):
        assert "grey (brought to RGB)" in open_source("digits", channels=3).describe()


class TestChannels:
    def test_arrays(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
        np.save(tmp_path / "rgb.npy", images)
        grey = np.asarray(open_source(str(tmp_path / "rgb.npy"), channels=1).image(1, 8))
        luma = images[1] @ np.array([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow's and torchvision's
        np.testing.assert_allclose(grey, luma, atol=0.51)
        np.save(tmp_path / "grey.npy", images[..., 0])
        colour = np.asarray(open_source(str(tmp_path / "grey.npy"), channels=3).image(1, 8))
        np.testing.assert_array_equal(colour, np.repeat(images[1, ..., :1], 3, -1))
        np.save(tmp_path / "four.npy", np.zeros((3, 8, 8, 4), np.uint8))
        with pytest.raises(ValueError, match="4 channels, not grey nor RGB: leave `image_channels` out"):
            open_source(str(tmp_path / "four.npy"), channels=3)

    def test_folders(self, tmp_path):
        Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "a.jpg")
        Image.new("L", (8, 8), 9).save(tmp_path / "b.png")
        grey = open_source(str(tmp_path), channels=1)
        assert [grey.image(number, 8).mode for number in range(2)] == ["L", "L"]
        assert abs(grey.image(0, 8).getpixel((0, 0)) - 76) <= 1  # 0.299 * 255
        assert open_source(str(tmp_path)).image(1, 8).getpixel((0, 0)) == (9, 9, 9)

    def test_bad(self):
        with pytest.raises(ValueError, match=r"`image_channels` must be 1 \(grey\), 3 \(colour\) or None, not 4"):
            DataConfig(data="x", image_channels=4)
