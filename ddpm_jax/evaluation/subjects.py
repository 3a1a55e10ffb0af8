"""What is evaluated: images that are drawn from a model, and how both are found again from a record.

A record is JSON. It names the weights by the arguments of `load`, and the sampler by its class and knobs.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax import sharding
from ddpm_jax.checkpoint.source import load
from ddpm_jax.files import SET_FILE, read_json
from ddpm_jax.images.draw_set import Recipe, draw_set, missing
from ddpm_jax.images.image_set import ImageSet
from ddpm_jax.samplers import SAMPLERS, registry
from ddpm_jax.samplers.base import Sampler
from ddpm_jax.validation import as_positive, check, freeze, thaw

Watch = Any  # a function that is told how many images are drawn


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Images that are drawn from a model to be evaluated.

    Attributes:
        recipe: the model, and all that decides the images.
        num_images: how many are drawn; None for as many as the reference has, at most 50,000.
        batch_size: images per run of the program. It decides roundings, so a record holds it.
        origin: arguments of `load` by which the weights are found again; empty for weights that only memory holds,
            whose evaluation cannot be verified.

    Raises:
        ValueError: on creation, for sizes below 1.

    Example:
        >>> from ddpm_jax.samplers import DDIM
        >>> recipe = Recipe(params=ddpm_jax.load("digits-16"), sampler=DDIM(num_steps=10))
        >>> Drawn(recipe=recipe, num_images=100, origin={"source": "digits-16"}).record()["sampler"]
        {'class': 'DDIM', 'knobs': {'num_steps': 10}}
    """

    recipe: Recipe
    num_images: int | None = None
    batch_size: int = 16
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "batch_size", as_positive("batch_size", self.batch_size))
        if self.num_images is not None:
            object.__setattr__(self, "num_images", as_positive("num_images", self.num_images))
        check(
            self.recipe.shape[-1] in (1, 3),
            f"`recipe` draws images of {self.recipe.shape[-1]} channels; features are taken of 1 or 3. Draw them with "
            "`draw_set`, and evaluate an array of some of the channels.",
        )

    @property
    def resolution(self) -> int | None:
        """The side of the images, if they are square."""
        height, width, _ = self.recipe.shape
        return height if height == width else None

    def record(self) -> dict[str, Any]:
        """Return all that decides the images, as JSON holds it."""
        recipe = self.recipe
        return {
            "origin": dict(self.origin),
            "image_size": list(recipe.shape[:2]),
            "sampler": _record_of(recipe.sampler),
            "seed": recipe.seed,
            "class_label": recipe.class_label,
            "guidance_scale": recipe.guidance_scale,
            "null_class": recipe.null_class,
            "dtype": recipe.params.config.unet.dtype,
            "num_images": self.num_images,
            "batch_size": self.batch_size,
        }

    @property
    def count(self) -> int:
        """Number of images, which `evaluate` has filled in."""
        assert self.num_images is not None, "the number of images is known before they are drawn"
        return self.num_images

    def draw(self, folder: Path, watch: Watch) -> None:
        """Draw the set into a folder, or what is missing there. Every process calls it alike.

        Args:
            folder: of the set.
            watch: called with the number of images that are there.

        Raises:
            ValueError, FileExistsError: the folder holds another set.
        """
        settings = {"model": self.origin.get("source"), "revision": self.origin.get("revision")}
        settings |= self.recipe.settings() | {"image_size": list(self.recipe.shape[:2])}
        opened = lambda force: ImageSet(folder, settings, self.count, shape=self.recipe.shape, force=force)
        try:
            images = opened(False)
        except FileExistsError:
            there = (folder / SET_FILE).is_file() and read_json(folder / SET_FILE).get("complete")
            if not there:
                raise
            watch(self.count)
            return
        sharding.wait_for_all("the set is opened")  # else the first process could complete it before
        lacking = missing(images)
        watch(self.count - int(np.count_nonzero(lacking)))
        draw_set(images, self.recipe, lacking, batch_size=min(self.batch_size, self.count), watch=watch)


def drawn_from(record: Mapping[str, Any]) -> Drawn:
    """Return what a record describes, with its weights read again.

    Args:
        record: of `Drawn.record`.

    Raises:
        ValueError: the weights were in memory only, the sampler is not one of this package, or the record is broken.
        FileNotFoundError: the weights are no longer there.

    Example:
        >>> from ddpm_jax.samplers import DDIM
        >>> recipe = Recipe(params=ddpm_jax.load("digits-16"), sampler=DDIM(timesteps=(900, 0)), seed=3)
        >>> again = drawn_from(Drawn(recipe=recipe, num_images=2, origin={"source": "digits-16"}).record())
        >>> again.recipe.sampler == recipe.sampler, again.recipe.settings() == recipe.settings()
        (True, True)
    """
    try:
        origin, height_width = dict(record["origin"]), tuple(record["image_size"])
        check(
            origin,
            "The weights of this evaluation were in memory only: nobody can find them again. Save them, and evaluate "
            "what `load` returns, with `origin`.",
        )
        params = load(**origin, dtype=record["dtype"])
        unet = params.config.unet
        if unet.image_size != height_width:
            unet = dataclasses.replace(unet, sample_size=height_width)
            params = dataclasses.replace(params, config=dataclasses.replace(params.config, unet=unet))
        recipe = Recipe(
            params=params,
            sampler=_sampler_of(record["sampler"]),
            seed=record["seed"],
            class_label=record["class_label"],
            guidance_scale=record["guidance_scale"],
            null_class=record["null_class"],
        )
        return Drawn(
            recipe=recipe, num_images=record["num_images"], batch_size=record["batch_size"], origin=record["origin"]
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"The record of the drawn images is broken ({error!r}); it must be as `Drawn.record` returns it. Evaluate "
            "the model again."
        ) from error


def _record_of(sampler: Sampler) -> dict[str, Any]:
    cls, knobs = registry.own_knobs(sampler)
    text = lambda value: repr(value) if isinstance(value, float) and not math.isfinite(value) else thaw(value)
    return {"class": cls.__name__, "knobs": {name: text(value) for name, value in knobs.items()}}


def _sampler_of(record: Mapping[str, Any]) -> Sampler:
    classes = {cls.__name__: cls for cls in SAMPLERS.values()}
    name, knobs = record["class"], record["knobs"]
    check(
        name in classes,
        f"The sampler {name!r} is none of this package ({', '.join(classes)}), so a record cannot name it. Draw the "
        "set from Python, and evaluate its folder.",
    )
    infinite = {"inf": math.inf, "-inf": -math.inf}
    value = lambda value: infinite[value] if value in ("inf", "-inf") else freeze(value)
    return classes[name](**{knob: value(given) for knob, given in knobs.items()})
