"""The figures of the DDPM paper (Ho, Jain & Abbeel 2020) as functions of (params, key, ...) that return arrays.

Figures 6 and 14, progressive generation, are `sample_path`; 12 and 15, nearest neighbours, are in `neighbours`. What
draws the arrays is `evaluation.pictures`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ddpm_jax import pixels
from ddpm_jax.evaluation.features import Extractor
from ddpm_jax.params import Params, check_images, check_params
from ddpm_jax.random_keys import image_keys
from ddpm_jax.samplers import Sampler, Table
from ddpm_jax.samplers.base import draw_noise
from ddpm_jax.sampling import run_part, sample_path, table_of
from ddpm_jax.types import Array, Images, Labels, Number, RandomKey
from ddpm_jax.validation import as_integer, as_positive, check, is_number


class SharedLatents(NamedTuple):
    """Samples that go on from one noisy image.

    Attributes:
        t: [n] what the network is told at each noisy image.
        x_t: [n, h, w, c] the noisy images, on the scale of the data, not clipped.
        images: [n, m, h, w, c] in [0, 1]: m samples of p(x_0 | x_t) for each.
    """

    t: np.ndarray
    x_t: np.ndarray
    images: np.ndarray


class Interpolations(NamedTuple):
    """Mixtures of two images, made where they are noisy.

    Attributes:
        t: [n] what the network is told where the mixing is done.
        weights: [m] of the second image (the paper's lambda).
        images: [n, m, b, h, w, c] in [0, 1].
    """

    t: np.ndarray
    weights: np.ndarray
    images: np.ndarray


class Quality(NamedTuple):
    """A metric of x_0_hat on the way.

    Attributes:
        t: [n] what the network was told.
        steps: [n] steps that were done with x_0_hat.
        values: [n] of the metric.
    """

    t: np.ndarray
    steps: np.ndarray
    values: np.ndarray


def even_rows(table: Table, count: int) -> np.ndarray:
    """Return rows of a table that divide its steps evenly, the first included: the paper's t = 1000, 750, 500, 250.

    Args:
        table: of a sampler.
        count: rows.

    Raises:
        ValueError: the sampler has fewer steps.

    Example:
        >>> even_rows(ddpm_jax.samplers.DDPM().table(ScheduleConfig()), 4).tolist()
        [0, 250, 500, 750]
    """
    begins = _begins(table)
    check(count <= len(begins), f"{count} moments are more than the {len(begins)} steps of the sampler: give it more.")
    return begins[np.arange(count) * len(begins) // count]


def rows_at(table: Table, timesteps: Sequence[Number]) -> np.ndarray:
    """Return the rows of a table at which steps begin that are nearest to some timesteps.

    Args:
        table: of a sampler.
        timesteps: what the network is told in such a row: t, or sigma of a variance-exploding schedule.

    Raises:
        ValueError: no timesteps, one that is no number, or one outside of the table's.

    Example:
        >>> rows_at(ddpm_jax.samplers.DDPM().table(ScheduleConfig()), [999, 499.2]).tolist()
        [0, 500]
    """
    begins = _begins(table)
    told = table.t[begins]
    asked = np.atleast_1d(timesteps).tolist()
    check(
        asked and all(is_number(t) and told.min() <= t <= told.max() for t in asked),
        f"`timesteps` is {asked}; they must be numbers from {told.min():g} to {told.max():g}, between which this "
        "sampler evaluates the network. Choose some of these, or a sampler that visits others.",
    )
    return begins[[int(np.abs(told - t).argmin()) for t in asked]]


def shared_latents(
    params: Params,
    key: RandomKey,
    num_samples: int = 3,
    *,
    timesteps: Sequence[Number] | None = None,
    sampler: Sampler | str | None = None,
    class_labels: Labels = None,
    first_index: int = 0,
    mesh: Mesh | None = None,
) -> SharedLatents:
    """Draw samples that share a noisy image: figure 7, what a sample has decided by step t.

    x_t is that of image `first_index` on its way from noise. Sample j goes on from it with the noise of image
    first_index + j, so that sample 0 is always `sample(params, key, 1, first_index=first_index)`.

    Args:
        params, key: as in `sample`.
        num_samples: samples of each noisy image.
        timesteps: where they part, as in `rows_at`; None is after none, 1/4, 1/2 and 3/4 of the steps.
        sampler, mesh: as in `sample`; the sampler draws noise, or else all samples would be equal.
        class_labels: one for all.
        first_index: as in `sample`.

    Returns:
        SharedLatents(t, x_t, images).

    Raises:
        TypeError, ValueError: as `sample` and `rows_at`; a sampler that draws no noise, or is a multistep method.

    Example:
        >>> params, key = ddpm_jax.load("digits-16"), jax.random.key(0)
        >>> sampler = ddpm_jax.samplers.DDPM(num_steps=4)
        >>> shared = shared_latents(params, key, 2, timesteps=[750], sampler=sampler)
        >>> shared.t.tolist(), shared.x_t.shape, shared.images.shape
        ([750.0], (1, 16, 16, 1), (1, 2, 16, 16, 1))
    """
    check_params(params)
    num_samples, first_index = as_positive("num_samples", num_samples), _first_index(first_index)
    table = table_of(sampler, params.config)
    check(
        _draws(table),
        "`sampler` draws no noise, so that all samples of one noisy image are equal. Take one that does, such as ddpm, "
        "euler-a, or ddim with `eta` above 0.",
    )
    rows = even_rows(table, 4) if timesteps is None else rows_at(table, timesteps)
    shared = {"sampler": sampler, "class_labels": class_labels, "mesh": mesh}
    indices = first_index + np.arange(num_samples, dtype=np.int32)
    x_t, at, latents = _first_noise(params, table, key, indices[:1]), 0, {}
    for row in sorted(set(rows.tolist())):
        if row > at:
            x_t, at = run_part(params, key, x_t, start=at, stop=row, indices=indices[:1], **shared), row
        latents[row] = np.asarray(x_t)
    images = [
        run_part(params, key, latents[row].repeat(num_samples, 0), start=row, indices=indices, **shared)
        for row in rows.tolist()
    ]
    return SharedLatents(
        t=table.t[rows],
        x_t=np.concatenate([latents[row] for row in rows.tolist()]),
        images=_as_images(params, np.stack(images)),
    )


def interpolate(
    params: Params,
    key: RandomKey,
    first: Images,
    second: Images,
    *,
    timesteps: Sequence[Number] | None = None,
    weights: Array | Sequence[Number] = tuple(i / 10 for i in range(11)),
    sampler: Sampler | str | None = None,
    class_labels: Labels = None,
    first_index: int = 0,
    mesh: Mesh | None = None,
) -> Interpolations:
    """Interpolate pairs of images where they are noisy: figures 8 and 9.

    x_t ~ q(x_t | first), x'_t ~ q(x_t | second), and the samples of p(x_0 | (1 - w) x_t + w x'_t). The more noise, the
    coarser is what is mixed. Weights 0 and 1 are the reconstructions of the two images.

    Pair i draws from the keys of the images 2 i and 2 i + 1 from first_index on: x_t has the x_T of the first, x'_t
    that of the second as its noise, and all weights and timesteps share the first's noise of the rows.

    Args:
        params, key: as in `sample`.
        first, second: [b, h, w, c] in [0, 1], of the network's size.
        timesteps: where they are mixed, as in `rows_at`; several make figure 9. None is after half of the steps.
        weights: [m] of the second image, from 0 to 1.
        sampler, mesh: as in `sample`.
        class_labels: one for all.
        first_index: as in `sample`, of the first image of the first pair.

    Returns:
        Interpolations(t, weights, images).

    Raises:
        TypeError, ValueError: as `sample` and `rows_at`; images of another size, or not equally many; weights outside
            of [0, 1]; a multistep sampler, except from its first row on.

    Example:
        >>> params, key = ddpm_jax.load("digits-16"), jax.random.key(0)
        >>> first, second = np.zeros((1, 16, 16, 1), np.float32), np.ones((1, 16, 16, 1), np.float32)
        >>> sampler = ddpm_jax.samplers.DDPM(num_steps=4)
        >>> between = interpolate(params, key, first, second, weights=[0, 0.5], sampler=sampler)
        >>> between.t.tolist(), between.images.shape
        ([250.0], (1, 2, 1, 16, 16, 1))
    """
    check_params(params)
    for name, images in (("first", first), ("second", second)):
        check_images(name, params.config.unet, images)
        low, high = float(np.min(images)), float(np.max(images))
        good = 0 <= low and high <= 1
        check(good, f"`{name}` has values from {low:g} to {high:g}; images are in [0, 1]. Divide bytes by 255.")
    check(
        first.shape == second.shape,
        f"`first` has shape {first.shape}, `second` {second.shape}: they are pairs, so both must be the same.",
    )
    weights = np.asarray(weights, np.float64)
    good = weights.ndim == 1 and weights.size > 0 and np.all((0 <= weights) & (weights <= 1))
    check(
        good,
        f"`weights` is {weights.tolist()}; it must be a list of numbers from 0 to 1, the second image's shares in the "
        "mixtures. Leave it out for 0, 0.1 .. 1.",
    )
    table = table_of(sampler, params.config)
    rows = even_rows(table, 2)[1:] if timesteps is None else rows_at(table, timesteps)
    num_pairs, shape, m = first.shape[0], first.shape[1:], len(weights)
    own = _first_index(first_index) + 2 * np.arange(num_pairs, dtype=np.int32)
    data_range = params.config.schedule.data_range
    x_0 = [np.asarray(pixels.to_data(images, data_range)) for images in (first, second)]
    eps = [np.asarray(draw_noise(image_keys(key, numbers), 0, shape, jnp.float32)) for numbers in (own, own + 1)]
    share = weights.reshape(m, 1, 1, 1, 1).astype(np.float32)
    made = []
    for row in rows.tolist():
        signal, sigma = table.levels[row, 0].astype(np.float32)
        x_t, other = (signal * clean + sigma * noise for clean, noise in zip(x_0, eps, strict=True))
        mixed = ((1 - share) * x_t[None] + share * other[None]).reshape(m * num_pairs, *shape)
        images = run_part(
            *(params, key, mixed),
            start=row,
            sampler=sampler,
            class_labels=class_labels,
            indices=np.tile(own, m),
            mesh=mesh,
        )
        made.append(np.asarray(images).reshape(m, num_pairs, *shape))
    return Interpolations(t=table.t[rows], weights=weights, images=_as_images(params, np.stack(made)))


def quality_over_steps(
    params: Params,
    key: RandomKey,
    num_images: int,
    *,
    extractor: Extractor,
    metric: Callable[[np.ndarray], float],
    batch_size: int = 64,
    num_frames: int = 10,
    sampler: Sampler | str | None = None,
    class_labels: Labels = None,
    mesh: Mesh | None = None,
    watch: Callable[[int], None] | None = None,
) -> Quality:
    """Measure x_0_hat after some of the steps: figure 10, where the quality of a sample comes from.

    The features of num_frames sets of images are held: num_frames num_images d numbers in float32.

    Args:
        params, key: as in `sample`.
        num_images: images 0 .. num_images - 1 of the key.
        extractor: the features to measure, as `features.pixels`.
        metric: maps features [num_images, d] to a number, such as the FID or the energy distance to real images.
        batch_size: images of one run.
        num_frames: moments, evenly spread over the steps, the first and the last included.
        sampler, mesh: as in `sample`.
        class_labels: one for all.
        watch: told how many images are done.

    Returns:
        Quality(t, steps, values), the earliest moment first.

    Raises:
        TypeError, ValueError: as `sample_path`.

    Example:
        >>> from ddpm_jax.evaluation.features import pixels as extractor
        >>> params, key = ddpm_jax.load("digits-16"), jax.random.key(0)
        >>> found = quality_over_steps(
        ...     params, key, 2, extractor=extractor, metric=np.mean, num_frames=4, sampler="ddim"
        ... )
        >>> found.steps.tolist(), found.values.shape
        ([1, 17, 34, 50], (4,))
    """
    num_images = as_positive("num_images", num_images)
    batch_size = min(as_positive("batch_size", batch_size), num_images)
    table = table_of(sampler, params.config)
    features, t = [[] for _ in range(as_positive("num_frames", num_frames))], np.empty(0)
    for first_index in range(0, num_images, batch_size):
        path = sample_path(  # whole batches: one program; what is too much at the end is left out
            *(params, key, batch_size),
            num_frames=num_frames,
            sampler=sampler,
            class_labels=class_labels,
            first_index=first_index,
            mesh=mesh,
            expected_calls=-(-num_images // batch_size),
        )
        wanted = min(batch_size, num_images - first_index)
        for kept, frame in zip(features, path.x_0_hat, strict=True):
            kept.append(np.asarray(extractor(pixels.to_uint8(frame)[:wanted]).values))
        t = np.asarray(path.t)
        if watch is not None:
            watch(first_index + wanted)
    steps = 1 + np.flatnonzero(np.isin(table.t[table.ends_step], t))
    return Quality(t, steps, np.asarray([float(metric(np.concatenate(kept))) for kept in features]))


def bound_curves(terms: Array) -> dict[str, list[tuple[float, float]]]:
    """Return the curves of the variational bound's terms over t: where the bits are.

    Args:
        terms: [b, T] bits per dimension of each image, L_0 first; an image's bound is their sum, and L_T.

    Returns:
        The points (t, bits/dim) of three curves: the mean over the images, and one standard error above and below it,
        where that is above 0. With one image there is the mean alone.

    Raises:
        ValueError: another shape, or numbers that are not finite.

    Example:
        >>> bound_curves(np.array([[2.0, 0.5], [4.0, 0.5]]))["mean of 2 images"]
        [(0.0, 3.0), (1.0, 0.5)]
    """
    terms = np.asarray(terms, np.float64)
    good = terms.ndim == 2 and terms.size > 0 and np.all(np.isfinite(terms))
    check(
        good,
        f"`terms` has shape {terms.shape} and {np.count_nonzero(~np.isfinite(terms))} numbers that are not finite; it "
        "must be [images, timesteps] of finite numbers. Pass the terms of `bits_per_dim`, without L_T.",
    )
    count, mean = len(terms), terms.mean(0)
    points = lambda values: [(float(t), float(value)) for t, value in enumerate(values) if value > 0]
    lines = {f"mean of {count} image{'s' * (count > 1)}": points(mean)}
    if count > 1:
        error = terms.std(0, ddof=1) / np.sqrt(count)
        lines |= {"one standard error above": points(mean + error), "one standard error below": points(mean - error)}
    return lines


def _begins(table: Table) -> np.ndarray:
    """Return the rows with which the steps of the sampler begin."""
    return np.concatenate([[0], np.flatnonzero(table.ends_step[:-1]) + 1])


def _draws(table: Table) -> bool:
    """Tell whether the rows of a table add noise to images."""
    return table.variance != "fixed" or table.langevin is not None or bool(np.any(table.mix[..., -1]))


def _first_index(first_index: int) -> int:
    number = as_integer("first_index", first_index)
    check(0 <= number < 2**30, f"`first_index` is {number}; images are numbered from 0 to 2^30 - 1. Begin in between.")
    return number


def _first_noise(params: Params, table: Table, key: RandomKey, indices: np.ndarray) -> jax.Array:
    """Return the noisy images that a sampler's first row sees."""
    unet = params.config.unet
    noise = draw_noise(image_keys(key, indices), 0, (*unet.check_size(), unet.in_channels), jnp.float32)
    return jnp.float32(table.init_scale) * noise


def _as_images(params: Params, x: np.ndarray) -> np.ndarray:
    return np.asarray(pixels.to_images(x, params.config.schedule.data_range))
