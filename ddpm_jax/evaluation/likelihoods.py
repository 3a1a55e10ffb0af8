"""The likelihood of real images under a model, for its evaluation: the bound with its parts, and that of the flow.

It is computed batch by batch, and each batch is kept in a file: a job that was interrupted goes on after the last one.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import pixels, sharding
from ddpm_jax.evaluation.report import content_of_array
from ddpm_jax.files import whole_file
from ddpm_jax.images.draw_set import Recipe
from ddpm_jax.images.picture import resized
from ddpm_jax.images.source import Source
from ddpm_jax.likelihood import bound_terms, flow_likelihood
from ddpm_jax.random_keys import key_from_seed

Watch = Callable[[int], None]  # told the number of images that are done


class Mean(NamedTuple):
    """A mean over images.

    Attributes:
        value: the mean.
        standard_error: the images' standard deviation over the root of their number; None of a single image.
    """

    value: float
    standard_error: float | None


def chosen(count: int, most: int) -> np.ndarray:
    """Return the numbers of the images that are taken: `most` of `count`, evenly spaced.

    Example:
        >>> chosen(9, 3).tolist()
        [0, 4, 8]
    """
    return np.linspace(0, count - 1, most).round().astype(int)


def likelihood_of(
    recipe: Recipe,
    images: Source,
    count: int,
    *,
    batch_size: int,
    folder: Path,
    flow: bool = False,
    watch: Watch = lambda done: None,
) -> dict[str, Any]:
    """Compute the bound of images in bits/dim, and what it is made of.

    Args:
        recipe: model, class and seed.
        images: of the channels of the model; the largest square in the middle is brought to its size, as in training.
        count: how many, evenly spaced in their order.
        batch_size: images of one run of the program.
        folder: where batches are kept; it belongs to this recipe and these images.
        flow: also the likelihood by the probability flow.
        watch: called with the number of images that are done.

    Returns:
        JSON: means over the images with standard errors: "bits_per_dim" (the bound), "prior", "rate" and "distortion",
        whose sum it is, "terms" [T] of every timestep, and with `flow` "flow" and "flow_evaluations"; "count", and a
        hash of the values of the images.

    Raises:
        ValueError: as `bits_per_dim`.
    """
    numbers, parts = chosen(len(images), count), []
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, batch_size):
        path = folder / f"{start:08d}.npz"
        if not path.exists():
            arrays = _batch(recipe, images, numbers[start : start + batch_size], start, batch_size, flow)
            with whole_file(path) as partial, open(partial, "wb") as file:
                np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]  no array is called allow_pickle
        with np.load(path) as file:
            parts.append({name: file[name] for name in file.files})
        watch(min(start + batch_size, count))
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    terms = values["terms"].astype(np.float64)
    found = {
        "count": count,
        "bits_per_dim": _mean(values["total"]),
        "prior": _mean(values["prior"]),
        "rate": _mean(terms[:, 1:].sum(axis=1)),
        "distortion": _mean(terms[:, 0]),
        "terms": terms.mean(axis=0).tolist(),
        "values": content_of_array(values["total"]),
    }
    if flow:
        found |= {"flow": _mean(values["flow"]), "flow_evaluations": float(values["evaluations"].mean())}
    return found


def _batch(
    recipe: Recipe, images: Source, numbers: np.ndarray, first: int, batch_size: int, flow: bool
) -> dict[str, np.ndarray]:
    """Return the values of a batch. A short one is filled up, so that one program serves all."""
    height, width, _ = recipe.shape
    there = [images.image(int(number), 0) for number in numbers]
    if height == width:
        there = [resized(image, height) for image in there]
    rows = np.stack([pixels.pixels_of(image) for image in there])
    rows = np.concatenate([rows, np.repeat(rows[-1:], batch_size - len(rows), axis=0)])
    params, key = recipe.params, key_from_seed(recipe.seed)
    x_0 = pixels.data_from_bytes(rows, params.config.schedule.data_range)
    options: dict[str, Any] = {"first_index": first, "mesh": sharding.data_mesh(jax.local_devices())}
    bound = bound_terms(params, key, x_0, recipe.class_label, **options)
    found = {"total": bound.total, "prior": bound.prior, "terms": bound.terms}
    if flow:
        by_flow = flow_likelihood(params, key, x_0, recipe.class_label, **options)
        found |= {"flow": by_flow.bits_per_dim, "evaluations": by_flow.num_evals}
    return {name: np.asarray(array)[: len(numbers)] for name, array in found.items()}


def _mean(values: np.ndarray) -> dict[str, Any]:
    values = values.astype(np.float64)
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return Mean(float(values.mean()), error)._asdict()
