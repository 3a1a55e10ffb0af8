"""Take the features of a set of images, batch by batch, in memory that does not grow with the images.

With a folder, features are kept on disk as they come, and a job that was interrupted goes on where it ended.
"""

import contextlib
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.evaluation.features import Extractor, Features
from ddpm_jax.evaluation.moments import BLOCK, Statistics
from ddpm_jax.evaluation.reference import FeatureSet
from ddpm_jax.files import SET_FILE, locked, read_json, versions, whole_file, write_json
from ddpm_jax.images.image_set import ARCHIVE
from ddpm_jax.images.picture import resized
from ddpm_jax.images.source import Source, array_source, open_source
from ddpm_jax.validation import as_positive, check, differences

CHUNK = BLOCK  # images between two notes of how far a job is
_RECORD = "gathered.json"
_BATCH = 64  # images
_WORKERS = 8  # threads that decode

Watch = Callable[[int], None]  # told the number of images that are done


def open_images(data: str, **options: Any) -> Source:
    """Open images to be evaluated: a folder, an .npz or .npy, "digits", or a set that `ddpm-jax sample` has drawn.

    Args:
        data: as for training, or the folder of a set in either format.
        **options: `skip_broken`, `background`, `channels` of `images.source.open_source`.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: no images; broken images, named with the reason; a set of samples that is not complete.

    Example:
        >>> open_images("digits").describe()
        'digits: 1797 images, grey, 8 x 8 pixels.'
    """
    folder = Path(data).expanduser()
    if (folder / SET_FILE).is_file():
        record = read_json(folder / SET_FILE)
        check(
            record.get("complete"),
            f"`data` {data} is a set of {record.get('num_images', 'some')} samples that is not complete; features are "
            "taken of complete sets. Repeat the command that draws it: it goes on.",
        )
        if (folder / ARCHIVE).is_file():
            return open_source(str(folder / ARCHIVE), **options)
    return open_source(data, **options)


def gather(
    images: Source | np.ndarray,
    extractor: Extractor,
    *,
    batch_size: int | None = None,
    resolution: int | None = None,
    keep: bool = True,
    folder: str | Path | None = None,
    watch: Watch = lambda done: None,
) -> FeatureSet:
    """Take the features of images, and their statistics.

    Images of one size are batched together. Without a `resolution`, images are taken as large as they are.

    Args:
        images: of `open_images`, or np.uint8 [n, h, w, 1 or 3].
        extractor: makes the features.
        batch_size: images of one call of the extractor; None is 64, or as many as fill its devices at once
            (`images_per_run`, where an extractor has it).
        resolution: side to which the largest square in the middle of each image is brought, as in training.
        keep: return features and logits, not the statistics alone. Of 50,000 images, 2048 features take 400 MB, which
            with a `folder` lie on its disk.
        folder: where features are written as they come. A job of equal arguments goes on there; the batch size may
            differ. Once the result is written elsewhere, the folder can be removed.
        watch: called with the number of images that are done: after each chunk, and first with those done before.

    Returns:
        A `FeatureSet`; with a `folder`, features and logits are arrays mapped from its disk.

    Raises:
        ValueError: images with an alpha channel, images of several sizes whose features have several lengths, NaN among
            the features, a folder of another job; names what differs.
        UnreadableImage: a file can no longer be read.

    Example:
        >>> from ddpm_jax.evaluation.features import extractor
        >>> found = gather(np.zeros((10, 4, 4, 1), np.uint8), extractor("pixels"), batch_size=8)
        >>> found.protocol, found.features.shape, found.statistics.count
        ('pixels', (10, 16), 10)
    """
    source = images if isinstance(images, Source) else array_source(images, "`images`")
    check(
        source.channels in (1, 3),
        f"`images` have {source.channels} channels; features are taken of 1 or 3. Bring them to one of these by "
        "`channels`, or take some of an array's.",
    )
    if batch_size is None:
        batch_size = max(_BATCH, getattr(extractor, "images_per_run", 1))
    batch_size = as_positive("batch_size", batch_size)
    resolution = None if resolution is None else as_positive("resolution", resolution)
    note = _note(source, resolution)
    settings = {"protocol": extractor.name, **note}
    with contextlib.ExitStack() as stack:
        if folder is not None:
            folder = Path(folder).expanduser()
            stack.enter_context(locked(folder, "set of features"))
        kept = _Kept(len(source), settings, folder, keep=keep)
        watch(kept.done)
        with contextlib.closing(_chunks(source, extractor, batch_size, resolution, kept)) as chunks:
            for chunk in chunks:
                kept.add(chunk)
                watch(kept.done)
        return FeatureSet(kept.statistics, extractor.name, *kept.arrays(), note)


class _Kept:
    """Statistics, features and logits of the images that are done; the latter in memory, on disk, or nowhere."""

    def __init__(self, count: int, settings: dict[str, Any], folder: Path | None, *, keep: bool):
        self.count, self.settings, self.folder, self.keep = count, settings, folder, keep
        self.done, self.found = 0, {}  # name -> array of all images, as far as it is done
        self._statistics: Statistics | None = None
        if folder is not None and (folder / _RECORD).exists():
            self._go_on(folder)

    @property
    def statistics(self) -> Statistics:
        """Those of all images."""
        assert self._statistics is not None, "a source has at least one image"
        return self._statistics

    @property
    def dim(self) -> int | None:
        """Number of features, if an image is done."""
        return None if self._statistics is None else self._statistics.dim

    def add(self, chunk: Features) -> None:
        """Take the features of the next images."""
        rows = slice(self.done, self.done + len(chunk.values))
        for name, values in (("values", chunk.values), ("logits", chunk.logits)):
            if values is None or not (self.keep or self.folder):
                continue
            if name not in self.found:
                self.found[name] = self._new(name, (self.count, values.shape[1]))
            self.found[name][rows] = values
        self._count(chunk.values)
        if self.folder is not None:
            for array in self.found.values():
                array.flush()
            write_json(self.folder / _RECORD, self.settings | {"done": self.done, "arrays": sorted(self.found)})

    def arrays(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return features and logits of all images."""
        return (self.found.get("values"), self.found.get("logits")) if self.keep else (None, None)

    def _count(self, values: np.ndarray) -> None:
        """Add a chunk to the statistics. Chunks end at the same images whatever the batch, and resumed or not."""
        chunk = Statistics.of(values)
        self._statistics = chunk if self._statistics is None else self._statistics.merge(chunk)
        self.done += len(values)

    def _new(self, name: str, shape: tuple[int, int]) -> Any:
        if self.folder is None:
            return np.empty(shape, np.float32)
        with whole_file(self.folder / f"{name}.npy") as partial:
            np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape).flush()
        return np.load(self.folder / f"{name}.npy", mmap_mode="r+")

    def _go_on(self, folder: Path) -> None:
        there = read_json(folder / _RECORD)
        done, names = there.pop("done"), there.pop("arrays")
        fixed = lambda items: {name: value for name, value in items.items() if name not in ("versions", "source")}
        changed = differences(fixed(there), fixed(self.settings))
        check(
            not changed,
            f"{folder} holds features that were gathered otherwise: {'; '.join(changed)}. Choose another `folder`, or "
            "remove it to begin again.",
        )
        self.found = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in names}
        for start in range(0, done, CHUNK):
            self._count(self.found["values"][start : min(start + CHUNK, done)])


def _chunks(
    source: Source, extractor: Extractor, batch_size: int, resolution: int | None, kept: _Kept
) -> Generator[Features, None, None]:
    """Yield the features of the images that are not done, CHUNK of them after another."""
    with contextlib.closing(_batches(source, batch_size, resolution, kept.done)) as batches:
        parts, count, dim = [], 0, kept.dim
        for numbers, images in batches:
            part = _features(extractor, numbers, images, source)
            dim = part.values.shape[1] if dim is None else dim
            check(
                part.values.shape[1] == dim,
                f"`images` {numbers[0]} to {numbers[-1]} of {source.name} have {part.values.shape[1]} features by "
                f"{extractor.name!r} and those before them {dim}; all must have equally many. Their sizes differ: "
                "bring them to one `resolution`.",
            )
            parts.append(part)
            count += len(numbers)
            if count == CHUNK or numbers[-1] == len(source) - 1:
                values, logits = zip(*parts, strict=True)
                yield Features(np.concatenate(values), None if logits[0] is None else np.concatenate(logits))
                parts, count = [], 0


def _features(extractor: Extractor, numbers: range, images: list[np.ndarray], source: Source) -> Features:
    """Return the features of images of any sizes, one call a size."""
    alike = defaultdict(list)
    for place, image in enumerate(images):
        alike[image.shape].append(place)
    parts = {}
    for places in alike.values():
        parts |= dict(zip(places, _rows(extractor(np.stack([images[place] for place in places]))), strict=True))
    values, logits = zip(*(parts[place] for place in range(len(images))), strict=True)
    lengths = sorted({len(row) for row in values})
    check(
        len(lengths) == 1,
        f"`images` {numbers[0]} to {numbers[-1]} of {source.name} have {lengths} features by {extractor.name!r}; all "
        "must have equally many. Their sizes differ: bring them to one `resolution`.",
    )
    values = np.stack(values)
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    check(
        not len(wrong),
        f"{len(wrong)} of {len(values)} images of a batch have NaN or infinite features by {extractor.name!r}, first "
        f"image {numbers[wrong[0]] if len(wrong) else 0} of {source.name}; all must be finite. Look at that image, and "
        "at the weights of the extractor.",
    )
    return Features(values, None if logits[0] is None else np.stack(logits))


def _rows(features: Features) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    for place, row in enumerate(features.values):
        yield row, None if features.logits is None else features.logits[place]


def _batches(
    source: Source, batch_size: int, resolution: int | None, first: int
) -> Generator[tuple[range, list[np.ndarray]], None, None]:
    """Yield numbers and pixels of batches. The next batch is decoded while one is used; none crosses a chunk's end."""

    def pixels(index: int) -> np.ndarray:
        image = source.image(index, 0)
        image = np.asarray(image if resolution is None else resized(image, resolution))
        return image[..., None] if image.ndim == 2 else image

    edges = sorted({*range(first, len(source), CHUNK), len(source)})
    numbers = [
        range(start, min(start + batch_size, stop))
        for begin, stop in zip(edges, edges[1:], strict=False)
        for start in range(begin, stop, batch_size)
    ]
    waiting: deque[tuple[range, list[Future[np.ndarray]]]] = deque()
    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            for batch in numbers:
                waiting.append((batch, [pool.submit(pixels, index) for index in batch]))
                if len(waiting) > 1:
                    ready, futures = waiting.popleft()
                    yield ready, [future.result() for future in futures]
            while waiting:
                ready, futures = waiting.popleft()
                yield ready, [future.result() for future in futures]
        finally:
            pool.shutdown(cancel_futures=True)


def _note(source: Source, resolution: int | None) -> dict[str, Any]:
    """Return how features of a source are made, as JSON holds it."""
    sizes = source.sizes if resolution is None else ((resolution, resolution),) * 2
    return {
        "source": source.name,
        "fingerprint": source.fingerprint,
        "num_images": len(source),
        "channels": source.channels,
        "background": source.ground,
        "sizes": [list(size) for size in sizes],
        "resolution": resolution,
        "versions": versions("ddpm-jax", "jax", "numpy", "pillow"),
    }
