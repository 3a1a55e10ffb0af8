"""Images to train on: opened, checked, and served in batches.

batch(step) is a pure function of (seed, step): image k of it is element step * batch_size + k of an endless, anew
shuffled sequence, cropped and flipped by a generator of its own. A process reads its slice alone; nothing needs to be
remembered to go on with a run. The only file that imports grain.
"""

import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ddpm_jax.training.config import DataConfig
from ddpm_jax.types import Array
from ddpm_jax.validation import check

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
GREY_MODES = ("1", "L", "I;16", "I;16B", "I", "F", "LA")
PREFETCHED = 8  # batches


class Batch(NamedTuple):
    """Images [b, h, w, c], uint8, and their classes [b] or None."""

    images: Array
    labels: Array | None


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Images that can be read one by one, in any order.

    Attributes:
        items: paths of files, or an array [n, h, w, c].
        labels: the class of each, or None.
        classes: their names.
        channels: 1 where all images are grey, else 3; arrays have as many as they have.
        broken: files that were left out.
        fingerprint: of the files' names and sizes, or of an array's shape and some of its images: what a run that goes
            on is to find again.
    """

    items: Any
    labels: np.ndarray | None
    classes: tuple[str, ...]
    channels: int
    broken: tuple[Path, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int, least: int) -> Image.Image:
        """Return an image; a JPEG at the smallest of its scales (1, 1/2, 1/4, 1/8) with sides of at least so many."""
        item = self.items[index]
        if isinstance(item, np.ndarray):
            return Image.fromarray(item[..., 0] if item.shape[-1] == 1 else item)
        with Image.open(item) as image:
            mode = "L" if self.channels == 1 else "RGB"
            image.draft(mode, (least, least))
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits of grey
                image = Image.fromarray((np.asarray(image, np.float64) / 257).round().astype(np.uint8))
            return image.convert(mode)


def open_source(
    data: str,
    *,
    class_conditional: bool = False,
    skip_broken: bool = False,
    workers: int = 8,
    like: Source | None = None,
) -> Source:
    """Open what `DataConfig.data` names, and look at every image of it once.

    Args:
        data, class_conditional, skip_broken, workers: as in `DataConfig`.
        like: the training data, for held-out data that is to have its classes and channels.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: no images; broken ones, which are named; an array that holds no images; classes that are not there.
    """
    source = _opened(data, "--data" if like is None else "--held-out", class_conditional, skip_broken, workers)
    return source if like is None else _made_alike(source, like, data)


def _opened(data: str, flag: str, class_conditional: bool, skip_broken: bool, workers: int) -> Source:
    check(data, f"{flag} is missing: a folder of images, an .npz or .npy file, or `digits`.")
    path, name = Path(data).expanduser(), f"{flag} {data}"
    if data == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        return _arrays(name, images, digits.target if class_conditional else None)
    if path.is_dir():
        return _folder(path, name, class_conditional, skip_broken, workers)
    if not path.is_file():
        raise FileNotFoundError(f"{name}: there is no such folder or file (and it is not `digits`).")
    check(path.suffix in (".npz", ".npy"), f"{name} is neither a folder nor an .npz or .npy file.")
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None)
        arrays = {None: loaded} if path.suffix == ".npy" else {key: loaded[key] for key in loaded.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name} cannot be read, it is damaged or no array: {error}") from error
    labels = None
    if class_conditional:
        check(None not in arrays, f"{name}: an .npy has no classes; put `images` and `labels` in an .npz.")
        check("labels" in arrays, f"{name} has no array `labels`.")
        labels = arrays["labels"]
    images = [key for key in arrays if key != "labels"]
    check(len(images) == 1 or "images" in images, f"{name} holds {images}: name one of them `images`.")
    return _arrays(name, arrays["images" if "images" in images else images[0]], labels)


def _made_alike(source: Source, like: Source, data: str) -> Source:
    """Number the classes of held-out data as the training data does, and bring it to the same channels."""
    unknown = sorted(set(source.classes) - set(like.classes))
    check(not unknown, f"--held-out {data} has classes that --data has not: {unknown}.")
    alike = source.channels == like.channels or not isinstance(source.items, np.ndarray)
    check(alike, f"--held-out {data} has {source.channels} channels, --data {like.channels}.")
    labels = source.labels
    if labels is not None:
        labels = np.array([like.classes.index(name) for name in source.classes])[labels]
    return dataclasses.replace(source, labels=labels, classes=like.classes, channels=like.channels)


def _arrays(name: str, images: np.ndarray, labels: np.ndarray | None) -> Source:
    images = images[..., None] if images.ndim == 3 else images
    good = images.ndim == 4 and images.dtype == np.uint8 and images.shape[-1] in (1, 3, 4) and len(images) > 0
    check(
        good,
        f"{name} holds an array {images.dtype} {list(images.shape)}; it must be uint8 [n, h, w, c] with 1, 3 or "
        "4 channels.",
    )
    classes: tuple[str, ...] = ()
    if labels is not None:
        integers = np.issubdtype(labels.dtype, np.integer) and labels.shape == (len(images),) and labels.min() >= 0
        check(integers, f"{name}: `labels` must be {len(images)} integers from 0 up.")
        classes = tuple(str(number) for number in range(int(labels.max()) + 1))
    some = np.ascontiguousarray(images[np.unique(np.linspace(0, len(images) - 1, 64).astype(int))])
    return Source(images, labels, classes, images.shape[-1], (), _digest(str(images.shape).encode(), some.tobytes()))


def _folder(folder: Path, name: str, class_conditional: bool, skip_broken: bool, workers: int) -> Source:
    paths = sorted(
        Path(parent) / file
        for parent, files in _walk(folder)
        for file in files
        if Path(file).suffix.lower() in SUFFIXES and not file.startswith(".")
    )
    check(paths, f"{name} holds no images ({', '.join(SUFFIXES)}).")
    names_and_sizes = [f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in paths]
    with ThreadPoolExecutor(workers) as pool:
        modes = list(pool.map(_mode, paths))
    broken = tuple(path for path, mode in zip(paths, modes, strict=True) if mode is None)
    if broken and not skip_broken:
        more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
        raise ValueError(
            f"{name}: {len(broken)} of {len(paths)} images cannot be read: "
            f"{', '.join(map(str, broken[:10]))}{more}. Mend or remove them, or pass --skip-broken."
        )
    paths = [path for path, mode in zip(paths, modes, strict=True) if mode is not None]
    check(paths, f"{name}: none of its images can be read.")
    labels, classes = None, ()
    if class_conditional:
        names = [path.relative_to(folder).parts[0] if path.parent != folder else None for path in paths]
        stray = [path.name for path, of in zip(paths, names, strict=True) if of is None]
        check(not stray, f"{name}: with --class-conditional every image lies in a sub-folder, not {stray[:3]}.")
        classes = tuple(sorted(set(names)))
        labels = np.array([classes.index(of) for of in names])
    channels = 1 if all(mode in (None, *GREY_MODES) for mode in modes) else 3
    return Source(paths, labels, classes, channels, broken, _digest("\n".join(names_and_sizes).encode()))


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder below one with its files, links followed, each real folder once."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield parent, files


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def _mode(path: Path) -> str | None:
    """Return the mode of an image that can be decoded to its end, or None."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.mode
    except Exception:  # Pillow's decoders raise of all kinds
        return None


class Batches:
    """Batches of a source, by the number of the step.

    Example:
        >>> batches = Batches(open_source("digits"), DataConfig(data="digits"), 16, batch_size=4, seed=0)
        >>> batches(7).images.shape, (batches(7).images == batches(7).images).all()
        ((4, 16, 16, 1), np.True_)
    """

    def __init__(self, source: Source, config: DataConfig, resolution: int, *, batch_size: int, seed: int):
        import grain

        self.source, self.config, self.resolution, self.batch_size = source, config, resolution, batch_size
        smallest = 1.0 if config.crop == "center" else np.sqrt(config.min_crop)
        self.least = int(np.ceil(2 * resolution / smallest))  # twice what is cut out, for the resampling filter
        numbers = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
        self.elements = numbers.random_map(self._read)

    def __call__(self, step: int) -> Batch:
        """Return the whole batch of a step."""
        first = step * self.batch_size
        return self._stacked([self.elements[first + place] for place in range(self.batch_size)])

    def own(self, start: int, stop: int, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Yield part number `part` of `parts` of the batches start .. stop - 1, read ahead by several threads."""
        import grain

        size = self.batch_size // parts
        steps = grain.MapDataset.range(start, stop)

        def read(step: int) -> Batch:
            first = step * self.batch_size + part * size
            return self._stacked([self.elements[first + place] for place in range(size)])

        options = grain.ReadOptions(
            num_threads=self.config.workers, prefetch_buffer_size=max(PREFETCHED, self.config.workers)
        )
        yield from steps.map(read).to_iter_dataset(options)

    def _read(self, index: int, generator: np.random.Generator) -> tuple[np.ndarray, int]:
        image = self.source.image(index, self.least)
        box = self._box(image, generator)
        if image.size != (self.resolution, self.resolution) or box is not None:
            image = resized(image, self.resolution, box)
        pixels = np.asarray(image).reshape(self.resolution, self.resolution, -1)
        if self.config.flip and generator.random() < 0.5:
            pixels = pixels[:, ::-1]
        return pixels, -1 if self.source.labels is None else int(self.source.labels[index])

    def _box(self, image: Image.Image, generator: np.random.Generator) -> tuple[float, ...] | None:
        """Return the corners of the square that is cut out, or None for the one in the middle."""
        if self.config.crop == "center":
            return None
        side = np.sqrt(generator.uniform(self.config.min_crop, 1)) * min(image.size)
        left, top = (generator.uniform(0, length - side) for length in image.size)
        return (left, top, left + side, top + side)

    def _stacked(self, elements: list[tuple[np.ndarray, int]]) -> Batch:
        images = np.stack([pixels for pixels, _ in elements])
        labels = None if self.source.labels is None else np.array([label for _, label in elements], np.int32)
        return Batch(images, labels)


def resized(image: Image.Image, resolution: int, box: tuple[float, ...] | None = None) -> Image.Image:
    """Cut a square out, the largest in the middle if no box says otherwise, and bring it to a resolution."""
    if box is None:
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    larger = resolution > box[2] - box[0]
    method = Image.Resampling.BICUBIC if larger else Image.Resampling.LANCZOS
    return image.resize((resolution, resolution), method, box=box, reducing_gap=3.0)


def centred(source: Source, resolution: int, most: int) -> Batch:
    """Return the first images of a source, evenly spread, cut in the middle and never flipped."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).astype(int))
    images = [np.asarray(resized(source.image(int(index), 2 * resolution), resolution)) for index in chosen]
    labels = None if source.labels is None else source.labels[chosen].astype(np.int32)
    return Batch(np.stack(images).reshape(len(chosen), resolution, resolution, -1), labels)
