"""Batches of training images.

batch(step) is a pure function of (seed, step): its image k is element step * batch_size + k of an endless sequence that
is shuffled again every epoch, cropped and flipped by that element's own generator. A process reads its slice alone, and
resuming needs no iterator state. The only file that imports grain.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image

from ddpm_jax.images.picture import Box, resized
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
    """Open the training data that a config names or, if `like` is given, the held-out data.

    Args:
        config: what to open, and how.
        out: the run's folder, which is not data.
        before: the `data` of a resumed run's train.json.
        like: the training data, whose classes and channels the held-out data must have.
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
        self.least = int(np.ceil(2 * resolution / smallest))  # pixels: twice the crop's, for the resampling filter
        numbers = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
        self.elements = numbers.random_map(self._read)

    def __call__(self, step: int) -> Batch:
        """Return the whole batch of a step."""
        return self._part(step, 0, self.batch_size)

    def own(self, start: int, stop: int, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Yield part number `part` of `parts` of the batches start .. stop - 1, which several threads prefetch."""
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
            # None would be an element that a filter left out, and there is no filter
            elements = cast(list[tuple[np.ndarray, int]], [self.elements[first + place] for place in range(size)])
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

    def _box(self, image: Image.Image, generator: np.random.Generator) -> Box | None:
        """Return (left, top, right, bottom) of a random crop, or None for the center crop."""
        if self.config.crop == "center":
            return None
        side = np.sqrt(generator.uniform(self.config.min_crop, 1)) * min(image.size)
        left, top = (generator.uniform(0, length - side) for length in image.size)
        return (left, top, left + side, top + side)
