"""A set of images on disk that can be continued until it is complete: numbered PNGs, or one .npz.

The files that are there tell which images are missing, so a process that was killed loses nothing that it had written.
`samples.json` holds the settings; a set is never continued with others. A damaged file, or one of another set, counts
as missing.
"""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddpm_jax.files import SET_FILE, read_json, whole_file, write_json
from ddpm_jax.pixels import check_channels, pixels_of, to_pil, to_uint8
from ddpm_jax.validation import check, differences

ARCHIVE = "images.npz"
PARTS = "parts"
FORMATS = ("png", "npz")
_LAST_CHUNK = b"\0\0\0\0IEND\xaeB`\x82"  # of a PNG
# Settings that may change when a set is continued: its size, and versions (which only affect rounding).
_MAY_DIFFER = ("num_images", "complete", "versions", "class_name")


class ImageSet:
    """Images 0 .. num_images - 1 in a folder.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> images = ImageSet(folder, {"seed": 0}, 3)
        >>> images.write([0, 2], np.zeros((2, 4, 4, 1), np.float32))
        >>> images.missing().tolist()
        [1]
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        num_images: int,
        *,
        format: str = "png",
        force: bool = False,
        shape: tuple[int, int, int] | None = None,
    ):
        """Open a set for writing: a new one, or one to continue. Nothing on disk changes before `begin`.

        Args:
            folder: of the set.
            settings: everything that decides the images; written into samples.json and every PNG.
            num_images: images of the complete set; more than before extends it.
            format: "png": a file an image; "npz": one uint8 array [n, h, w, c] named arr_0.
            force: replace what is in the folder.
            shape: (height, width, channels) of an image, if known: files of another shape count as missing.

        Raises:
            ValueError: an unknown format, channels that no PNG holds; the folder holds a set with other settings (they
                are named), or a larger one.
            FileExistsError: it holds the complete set already, or images without a samples.json.
        """
        check(format in FORMATS, f"`format` must be one of {', '.join(FORMATS)}, not {format!r}.")
        if format == "png" and shape is not None:
            check_channels(shape[-1])
        self.folder, self.num_images, self.format = folder, num_images, format
        self.settings = _as_json(settings | {"format": format})
        self.shape, self.damaged = shape, ()  # `missing` puts the names of files here that do not count
        self._replaces, self._archived = force, 0
        if force:
            return
        there = refuse_others(folder, self.settings)
        if there is not None:
            self._check(there)
        elif any(self._files()):
            raise FileExistsError(
                f"{folder} holds {next(self._files()).name} but no {SET_FILE}, so that nobody knows of which set it "
                "is. Choose another `folder`, or replace what is there with `force`."
            )

    def begin(self) -> None:
        """Prepare the folder, in one process, before any process writes."""
        if self._replaces:
            self._remove()
        if self._archived:  # to extend it: it becomes the only part; parts that a kill has left are in it
            shutil.rmtree(self.folder / PARTS, ignore_errors=True)
            self._write_part(0, np.load(self.folder / ARCHIVE)["arr_0"])
        self._replaces, self._archived = False, 0
        self._write_record(complete=False)

    def missing(self) -> np.ndarray:
        """Return the numbers of the images that are missing or damaged, and name the damaged files in `damaged`."""
        there, damaged = np.zeros(self.num_images, bool), []
        if self._replaces:
            pass
        elif self.format == "png":
            for path in self._files():
                if path.suffix == ".png" and int(path.stem) < self.num_images:
                    whole = self._is_ours(path)
                    there[int(path.stem)] |= whole
                    damaged += [] if whole else [path.name]
        else:
            there[: self._archived] = True
            for start, stop, path in self._parts(whole=False):
                whole = self._is_part(path, stop - start)
                there[start:stop] |= whole
                damaged += [] if whole else [path.name]
        self.damaged = tuple(damaged)
        return np.flatnonzero(~there)

    def write(self, indices: Sequence[int] | np.ndarray, images: np.ndarray) -> None:
        """Add images [n, h, w, c] in [0, 1] with their numbers."""
        if self.format == "png":
            self.folder.mkdir(parents=True, exist_ok=True)
            for index, image in zip(indices, to_pil(images), strict=True):
                write_png(image, self.folder / f"{index:05d}.png", self.settings | {"index": int(index)})
            return
        indices, images = np.asarray(indices), to_uint8(images)
        for places in np.split(np.arange(len(indices)), np.flatnonzero(np.diff(indices) != 1) + 1):
            self._write_part(int(indices[places[0]]), images[places])

    def read(self, count: int) -> np.ndarray:
        """Return the first images of the set, [count, h, w, c] in [0, 1]."""
        if self.format == "png":
            paths = [self.folder / f"{index:05d}.png" for index in range(count)]
            return np.stack([pixels_of(Image.open(path)) for path in paths]) / np.float32(255)
        images, found = [], 0
        for _, _, path in sorted(self._parts()):
            images.append(np.load(path, mmap_mode="r")[: count - found])
            found += len(images[-1])
        return np.concatenate(images) / np.float32(255)

    def finish(self) -> None:
        """Mark the set as complete. An .npz is joined from its parts, of which one is in memory at a time."""
        if self.format == "npz":
            parts = sorted(self._parts())
            starts = [start for start, _, _ in parts]
            if starts != [0, *(stop for _, stop, _ in parts[:-1])] or parts[-1][1] != self.num_images:
                raise ValueError(f"The parts in {self.folder / PARTS} are not those of {self.num_images} images.")
            first = np.load(parts[0][2], mmap_mode="r")
            header = {
                "descr": np.lib.format.dtype_to_descr(first.dtype),
                "fortran_order": False,
                "shape": (self.num_images, *first.shape[1:]),
            }
            with whole_file(self.folder / ARCHIVE) as partial, zipfile.ZipFile(partial, "w") as archive:
                with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array_header_1_0(file, header)
                    for _, _, path in parts:
                        file.write(np.load(path).tobytes())
        self._write_record(complete=True)
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)

    def _write_part(self, start: int, images: np.ndarray) -> None:
        path = self.folder / PARTS / f"{start:08d}-{start + len(images):08d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial, open(partial, "wb") as file:
            np.save(file, images)

    def _write_record(self, *, complete: bool) -> None:
        write_json(self.folder / SET_FILE, self.settings | {"num_images": self.num_images, "complete": complete})

    def _check(self, there: dict[str, Any]) -> None:
        count = there.get("num_images", 0)
        if count > self.num_images:
            raise ValueError(
                f"{self.folder} holds a set of {count} images, more than {self.num_images}. Ask for at least as many, "
                "choose another `folder`, or replace the set with `force`."
            )
        if there.get("complete") and self.format == "npz" and self._is_archive(count):
            self._archived = count
        if there.get("complete") and count == self.num_images and not len(self.missing()):
            raise FileExistsError(
                f"{self.folder} holds these {count} images already; choose another `folder`, or draw them again with "
                "`force`."
            )

    def _is_ours(self, path: Path) -> bool:
        """Tell whether a PNG is undamaged, of this set's shape, and recorded as of this set."""
        found = read_png(path)
        if found is None:
            return False
        shape, text = found
        ours = _texts(self.settings | {"index": int(path.stem)})
        named = (ours.keys() | self.settings.keys()) - set(_MAY_DIFFER)
        # a PNG without a record is taken: image tools remove records
        return self._fits(shape) and all(text.get(name) in (None, ours.get(name)) for name in named)

    def _is_part(self, path: Path, count: int) -> bool:
        """Tell whether an .npy holds `count` images of this set's shape."""
        try:
            images = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return False
        return images.dtype == np.uint8 and images.ndim == 4 and len(images) == count and self._fits(images.shape[1:])

    def _is_archive(self, count: int) -> bool:
        """Tell whether the .npz is undamaged and holds `count` images of this set's shape."""
        try:
            with zipfile.ZipFile(self.folder / ARCHIVE) as archive, archive.open("arr_0.npy") as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                whole = archive.testzip() is None
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return False
        return whole and dtype == np.uint8 and len(shape) == 4 and shape[0] == count and self._fits(shape[1:])

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return self.shape is None or tuple(shape) == tuple(self.shape)

    def _files(self):
        """Yield the numbered PNGs, parts and the archive."""
        if self.folder.is_dir():
            yield from sorted(path for path in self.folder.iterdir() if re.fullmatch(r"\d{5,}\.png", path.name))
            yield from (path for path in (self.folder / PARTS, self.folder / ARCHIVE) if path.exists())

    def _parts(self, *, whole: bool = True):
        """Yield (start, stop, path) of the parts; with `whole`, of the undamaged ones alone."""
        for path in (self.folder / PARTS).glob("*.npy"):
            if match := re.fullmatch(r"(\d+)-(\d+)\.npy", path.name):
                start, stop = int(match[1]), int(match[2])
                if not whole or self._is_part(path, stop - start):
                    yield start, stop, path

    def _remove(self) -> None:
        others = (self.folder / name for name in (SET_FILE, "grid.png", "sampling.gif"))
        for path in [*self._files(), *others]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def refuse_others(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of the set in a folder, or None if there is none.

    Raises:
        ValueError: the set has other settings; they are named.
    """
    path = folder / SET_FILE
    if not path.exists():
        return None
    there, here = read_json(path), _as_json(settings)
    fixed = lambda items: {name: value for name, value in items.items() if name not in _MAY_DIFFER}
    changed = differences(fixed(there), fixed(here))
    if changed:
        raise ValueError(
            f"{folder} holds a set with other settings: {'; '.join(changed)}. Choose another `folder`, or replace "
            "the set with `force`."
        )
    return there


def write_png(image: Image.Image, path: Path, record: dict[str, Any]) -> None:
    """Write an image as PNG, with a record in its text chunks."""
    text = PngInfo()
    for name, value in _texts(record).items():
        text.add_text(name, value)
    with whole_file(path) as partial:
        image.save(partial, "PNG", pnginfo=text)


def read_png(path: Path) -> tuple[tuple[int, int, int], dict[str, str]] | None:
    """Return the shape (height, width, channels) and the record of a PNG, or None if it is damaged or no PNG.

    Its checksums are verified; no pixel is decoded.
    """
    try:
        with open(path, "rb") as file, Image.open(file, formats=["PNG"]) as image:
            shape = (image.height, image.width, len(image.getbands()))
            record = {
                name: value for name, value in image.info.items() if isinstance(name, str) and isinstance(value, str)
            }
            image.verify()
            file.seek(-len(_LAST_CHUNK), os.SEEK_END)
            whole = file.read() == _LAST_CHUNK
    except (OSError, SyntaxError, ValueError):
        return None
    return (shape, record) if whole else None


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as they are when they are read back."""
    return json.loads(json.dumps(settings))


def _texts(record: dict[str, Any]) -> dict[str, str]:
    """Return a record as a PNG's text chunks."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in record.items()
        if value is not None
    }
