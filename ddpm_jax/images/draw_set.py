"""Draw a set of images into its folder: what is missing there, batch by batch, over all devices and processes.

Image i depends on (seed, i) alone. A set that was interrupted therefore ends with the same images as one that was not,
but for the rounding of another batch size.
"""

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ddpm_jax import pixels, plotting, sampling, sharding
from ddpm_jax.files import SET_FILE, versions
from ddpm_jax.images.image_set import ImageSet, write_png
from ddpm_jax.params import Params, check_labels
from ddpm_jax.random_keys import check_seed, key_from_seed
from ddpm_jax.samplers.base import Sampler
from ddpm_jax.samplers.registry import describe
from ddpm_jax.types import PyTree
from ddpm_jax.validation import check

MOST_IN_GRID = 256  # images
MOST_PIXELS = 2**26  # of a grid
MOST_IN_FRAME = 64  # images of a frame of the GIF

Watch = Callable[[float], None]  # told the number of images that are done, a fraction of a batch included


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """A model and the arguments of `sample`: all that decides the images of a set.

    Attributes:
        params: weights and their config.
        sampler: an instance.
        seed: of the random key, from 0 to 2^32 - 1; image i depends on (seed, i) alone.
        class_label: the class of all images, for class-conditional networks.
        guidance_scale, null_class: as in `sample`; null_class None is the config's.

    Raises:
        ValueError: on creation, for a seed, class or guidance that `sample` would refuse, a class that guidance leads
            away from, or a sampler that does not go with the network.

    Example:
        >>> from ddpm_jax.samplers import DDIM
        >>> recipe = Recipe(params=ddpm_jax.load("digits-16"), sampler=DDIM(num_steps=10))
        >>> recipe.num_evals, recipe.settings()["sampler"]
        (10, 'DDIM(num_steps=10)')
    """

    params: Params
    sampler: Sampler
    seed: int = 0
    class_label: int | None = None
    guidance_scale: float | None = None
    null_class: int | None = None

    def __post_init__(self):
        check_seed(self.seed)
        config = self.params.config
        if self.guidance_scale is not None and self.null_class is None:
            object.__setattr__(self, "null_class", config.null_class)
        guided = self.guidance_scale is not None and self.class_label is not None
        check(
            not guided or self.class_label != self.null_class,
            f"`guidance_scale` guides away from class {self.null_class}, which `class_label` asks for: leave one out.",
        )
        check_labels(config.unet, self.class_label, 1)
        sampling.check_guidance(config, self.guidance_scale, self.null_class)
        sampling.table_of(self.sampler, config)

    @property
    def num_evals(self) -> int:
        """How often an image evaluates the network."""
        return sampling.table_of(self.sampler, self.params.config).num_evals

    @property
    def class_name(self) -> str | None:
        """The name of the class, where the checkpoint has one for it."""
        names = self.params.config.class_names
        return names[self.class_label] if self.class_label is not None and self.class_label < len(names) else None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        unet = self.params.config.unet
        return (*unet.check_size(), unet.in_channels)

    def settings(self) -> dict[str, Any]:
        """Return what `ImageSet` records of the recipe, and compares when the set is continued."""
        return {
            "weights": digest(self.params.weights),
            "seed": self.seed,
            "sampler": describe(self.sampler),
            "class_label": self.class_label,
            "class_name": self.class_name,
            "guidance_scale": self.guidance_scale,
            "null_class": self.null_class,
            "dtype": self.params.config.unet.dtype,
            "versions": versions("ddpm-jax", "jax"),
        }


def digest(weights: PyTree) -> str:
    """Return a text that other weights do not have, whatever their file is called.

    Example:
        >>> digest({"bias": np.zeros(2, np.float32)}) == digest({"bias": np.ones(2, np.float32)})
        False
    """
    hashed = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]:
        hashed.update(jax.tree_util.keystr(path).encode())
        hashed.update(np.ascontiguousarray(leaf).data)
    return hashed.hexdigest()


def missing(images: ImageSet) -> np.ndarray:
    """Return which images of a set are missing, bool [num_images], as the first process sees the folder.

    Shared folders can look different in other processes for a while, and all must draw the same batches.
    """
    lacking = np.zeros(images.num_images, bool)
    lacking[images.missing()] = True
    if jax.process_count() > 1:
        lacking = np.asarray(multihost_utils.broadcast_one_to_all(lacking))
    return lacking


def draw_set(
    images: ImageSet,
    recipe: Recipe,
    lacking: np.ndarray,
    *,
    batch_size: int,
    gif: bool = False,
    watch: Watch = lambda done: None,
) -> None:
    """Draw the missing images of a set, and finish it: grid.png, and its record marked as complete.

    Every process calls it alike, and writes the images that lie on its devices.

    Args:
        images: the set; its settings hold `recipe.settings()`.
        recipe: what decides the images.
        lacking: [num_images] from `missing`.
        batch_size: images per run of the program.
        gif: also write sampling.gif, the x_0_hat of the first batch on the way, if any of its images is drawn.
        watch: called after each chunk of steps.

    Raises:
        ValueError: a batch that does not divide over the devices of several processes, channels that no GIF shows.
        FileNotFoundError: this process does not see what the first one has written.
    """
    channels = recipe.shape[-1]
    shows = channels in pixels.PICTURE_CHANNELS
    check(shows or not gif, f"A GIF shows 1, 3 or 4 channels, not {channels}: leave `gif` out.")
    lead, program, frames = jax.process_index() == 0, _Program(recipe, batch_size), []
    blocks = np.unique(np.flatnonzero(lacking) // batch_size)
    done = images.num_images - int(lacking.sum())
    for number, block in enumerate(blocks):
        first = int(block) * batch_size
        wanted = int(lacking[first : first + batch_size].sum())
        parts = program.run(
            first,
            lambda share, done=done, wanted=wanted: watch(done + wanted * share),
            frames if gif and block == 0 else None,
            expected_calls=len(blocks),
        )
        if number == 0:  # not earlier: wrong arguments fail in the first run, and then the folder is as it was
            if lead:
                images.begin()
            sharding.wait_for_all("the set has begun")
            await_file(images.folder / SET_FILE)
        for start, rows in parts:
            numbers = np.arange(start, min(start + len(rows), images.num_images))
            numbers = numbers[lacking[numbers]]
            images.write(numbers, rows[numbers - start])
        done += wanted
    sharding.wait_for_all("all images are written")
    if not lead:
        return
    if frames:
        plotting.gif(frames, images.folder / "sampling.gif")
    if shows:
        _write_grid(images, recipe)
    images.finish()


def draw_image(recipe: Recipe, index: int) -> np.ndarray:
    """Return image number `index` of the recipe's sets, [h, w, c] in [0, 1].

    Example:
        >>> from ddpm_jax.samplers import DDIM
        >>> draw_image(Recipe(params=ddpm_jax.load("digits-16"), sampler=DDIM(num_steps=1)), 7).shape
        (16, 16, 1)
    """
    ((_, images),) = _Program(recipe, 1).run(index)
    return images[0]


def await_file(path: Path, seconds: float = 30.0) -> None:
    """Wait until this process sees a file that the first one has written.

    Raises:
        FileNotFoundError: it does not appear in time.
    """
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            raise FileNotFoundError(
                f"{path} has not appeared in {seconds:g} s in process {jax.process_index()}, though the first process "
                "has written it: `folder` must be on a disk that all processes share."
            )
        time.sleep(0.1)


class _Program:
    """Draw batches of a recipe's images."""

    def __init__(self, recipe: Recipe, batch_size: int):
        devices = jax.device_count()
        check(
            jax.process_count() == 1 or batch_size % devices == 0,
            f"`batch_size` {batch_size} does not divide over {devices} devices, as it must in several processes: take "
            f"{-(-batch_size // devices) * devices}.",
        )
        self.recipe, self.batch_size = recipe, batch_size
        # once, or every call would copy the weights to all devices
        self.params = sharding.replicate(recipe.params) if devices > 1 else recipe.params

    def run(
        self,
        first: int,
        watch: Watch = lambda share: None,
        frames: list[np.ndarray] | None = None,
        *,
        expected_calls: int = 1,
    ) -> list[tuple[int, np.ndarray]]:
        """Draw the batch that begins with image number `first`.

        Args:
            first: number of the first image.
            watch: told the share of the steps that is done.
            frames: a list to which this process's x_0_hat of each chunk of steps is added.
            expected_calls: how many batches there will be.

        Returns:
            (number of its first image, images) for each part of the batch that this process holds.
        """
        recipe = self.recipe
        chunks = sampling.sample_chunks(
            self.params,
            key_from_seed(recipe.seed),
            self.batch_size,
            chunk=_chunk_length(recipe.num_evals),
            sampler=recipe.sampler,
            class_labels=recipe.class_label,
            guidance_scale=recipe.guidance_scale,
            null_class=recipe.null_class,
            first_index=first,
            expected_calls=expected_calls,
        )
        for done, total, x_0_hat in _one_behind(chunks):
            x_0_hat.block_until_ready()
            watch(done / total)
            if frames is not None:
                rows = np.concatenate([rows for _, rows in sharding.own_rows(x_0_hat)])
                frames.append(rows[:MOST_IN_FRAME])
        return [(first + offset, rows) for offset, rows in sharding.own_rows(x_0_hat)]


def _one_behind(items: Iterable[Any]) -> Iterator[Any]:
    """Yield each item after the next has been asked for: the device has work while the caller waits for the item."""
    for before, _ in itertools.pairwise(itertools.chain(items, [None])):
        yield before


def _chunk_length(num_evals: int) -> int:
    """Return the longest chunk of at most a twentieth of the run that divides it, so that one program serves all."""
    most = max(1, num_evals // 20)
    return next(length for length in range(most, 0, -1) if num_evals % length == 0)


def _write_grid(images: ImageSet, recipe: Recipe) -> None:
    height, width, _ = recipe.shape
    shown = min(images.num_images, MOST_IN_GRID, max(1, MOST_PIXELS // (height * width)))
    captions = None if recipe.class_name is None else [recipe.class_name] * shown
    picture = pixels.picture(plotting.grid(images.read(shown), captions=captions))
    write_png(picture, images.folder / "grid.png", images.settings)
