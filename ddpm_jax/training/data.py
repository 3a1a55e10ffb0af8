"""Images in batches.

batch(step) is a pure function of (seed, step): image k of it is element step * batch_size + k of an endless, anew
shuffled sequence, cropped and flipped by a generator of its own. A process reads its slice alone; nothing needs to be
remembered to go on with a run. The only file that imports grain.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ddpm_jax.images.source import Source, UnreadableImage, open_source
from ddpm_jax.training.settings import DataConfig
from ddpm_jax.types import Array

PREFETCHED = 8  # batches


class Batch(NamedTuple):
    """Images [b, h, w, c], uint8, and their classes [b] or None."""

    images: Array
    labels: Array | None


def open_data(
    config: DataConfig, *, out: Path, before: Mapping[str, Any] | None = None, like: Source | None = None
) -> Source:
    """Open what a config names: the training data, or with `like`, which is that, the held-out data.

    Args:
        config: what to open, and how.
        out: the run's folder, which is no data.
        before: what train.json says of the data of a run that goes on.
        like: the training data.
    """
    return open_source(
        config.data if like is None else config.held_out or "",
        class_conditional=config.class_conditional,
        skip_broken=config.skip_broken,
        background=config.background,
        channels=config.image_channels,
        workers=config.workers,
        out=out,
        before=before,
        like=like,
    )


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
        return self._part(step, 0, self.batch_size)

    def own(self, start: int, stop: int, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Yield part number `part` of `parts` of the batches start .. stop - 1, read ahead by several threads."""
        import grain

        size = self.batch_size // parts
        steps = grain.MapDataset.range(start, stop)
        options = grain.ReadOptions(
            num_threads=self.config.workers, prefetch_buffer_size=max(PREFETCHED, self.config.workers)
        )
        yield from steps.map(lambda step: self._part(step, part * size, size)).to_iter_dataset(options)

    def _part(self, step: int, start: int, size: int) -> Batch:
        first = step * self.batch_size + start
        try:
            elements = [self.elements[first + place] for place in range(size)]
        except UnreadableImage as error:
            raise UnreadableImage(f"Step {step + 1}: {error}") from error.__cause__
        images = np.stack([pixels for pixels, _ in elements])
        labels = None if self.source.labels is None else np.array([label for _, label in elements], np.int32)
        return Batch(images, labels)

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
