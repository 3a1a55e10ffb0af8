"""The public functions: `sample`, `sample_path`, `sample_chunks`, `invert` and `as_function`.

Each prepares a `job` and calls a `program`.
"""

import dataclasses
import operator
from collections.abc import Callable, Iterator
from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ddpm_jax import pixels, samplers
from ddpm_jax.config import Config
from ddpm_jax.params import Params, check_params
from ddpm_jax.samplers import Sampler
from ddpm_jax.sampling import program
from ddpm_jax.sampling.guidance import Condition
from ddpm_jax.sampling.job import Job, prepare, static_of, table_of
from ddpm_jax.types import Array, Frames, Images, Labels, Number, RandomKey
from ddpm_jax.validation import as_positive


class Trajectory(NamedTuple):
    """Frames of a sampling run, the earliest first.

    Attributes:
        x_t: [frames, b, h, w, c] the noisy image that the network saw, mapped and clipped to [0, 1] as `sample` does.
        x_0_hat: [frames, b, h, w, c] the clean image it led to, in [0, 1]; the last one is `sample`'s result.
        t: [frames] the timestep of each.
    """

    x_t: Frames
    x_0_hat: Frames
    t: Array


def sample(
    params: Params,
    key: RandomKey,
    batch_size: SupportsIndex,
    *,
    sampler: Sampler | str | None = None,
    class_labels: Labels = None,
    guidance_scale: Number | None = None,
    null_class: SupportsIndex | None = None,
    x_T: Images | None = None,
    first_index: SupportsIndex = 0,
    mesh: Mesh | None = None,
    expected_calls: SupportsIndex = 1,
) -> Images:
    """Draw images from a diffusion model: one compiled program for the whole loop.

    Image i depends on (key, first_index + i) alone: the batch size and the number of devices change it only by float
    rounding. The first call compiles; other weights of the same network, other keys and other numbers of the sampler
    (eta, clip, a grid of the same length) do not. Works inside jit, vmap and scan.

    Args:
        params: weights and their config, from `load` or `init`.
        key: a key of `jax.random`, new or old style.
        batch_size: images to draw.
        sampler: an instance of `samplers.Sampler`, a name in `samplers.SAMPLERS`, or None for the one that the
            checkpoint's scheduler config names, with its knobs. An instance takes the schedule and the prediction type
            from the checkpoint, and nothing else.
        class_labels: for class-conditional networks: an integer for all, or one an image, as an array or a list.
        guidance_scale: s of classifier-free guidance, out_null + s (out_class - out_null), for networks that were
            trained with dropped labels, so that one class stands for none (Ho & Salimans 2022, with s = 1 + w). It
            evaluates the network twice a step; 1 is no guidance, and so it is for an image of the null class.
        null_class: the class that stands for none, if not the one that `params.config.null_class` says.
        x_T: [batch_size, h, w, c] unit-variance noise to start from, instead of drawing it. It is not donated.
        first_index: the number of the first image, which continues a set: sample(params, key, 4, first_index=4) are
            images 4 to 7 of sample(params, key, 8).
        mesh: devices to use, along the mesh's first axis. None means no placement under a trace; otherwise the
            devices that the weights are committed to; otherwise all devices. (`sharding.replicate` puts weights there
            once for all calls.)
        expected_calls: how often such a batch will be drawn. On CPU, convolutions that run faster but compile longer
            are used where they save more seconds in all calls than compiling them takes. Images are the same up to
            float rounding.

    Returns:
        float32 images [batch_size, h, w, c] in [0, 1], clipped but not rounded.

    Raises:
        TypeError: params is no `Params`, the sampler no sampler, batch_size no integer.
        ValueError: a batch size below 1, a `sample_size` that the network's levels cannot halve, x_T of another shape,
            labels missing, superfluous or out of range, guidance without a null class, a sampler that does not go with
            the schedule, a scheduler that is not built yet.

    Example:
        >>> images = sample(ddpm_jax.load("digits-16"), jax.random.key(0), 2, sampler=samplers.DDIM(num_steps=2))
        >>> images.shape, images.dtype
        ((2, 16, 16, 1), dtype('float32'))
    """
    _check_direction(sampler)
    job = prepare(
        *(params, key, batch_size),
        sampler=sampler,
        class_labels=class_labels,
        guidance_scale=guidance_scale,
        null_class=null_class,
        begin=x_T,
        first_index=first_index,
        mesh=mesh,
        expected_calls=expected_calls,
    )
    images, _ = job.call(program.whole, job.origin, job.inputs())
    return images


def sample_path(
    params: Params,
    key: RandomKey,
    batch_size: SupportsIndex,
    *,
    num_frames: SupportsIndex = 10,
    sampler: Sampler | str | None = None,
    class_labels: Labels = None,
    guidance_scale: Number | None = None,
    null_class: SupportsIndex | None = None,
    x_T: Images | None = None,
    first_index: SupportsIndex = 0,
    mesh: Mesh | None = None,
    expected_calls: SupportsIndex = 1,
) -> Trajectory:
    """Sample, and keep some moments of it: noise turning into images.

    Args:
        params, key, batch_size: as in `sample`.
        num_frames: moments to keep, evenly spread over the steps, the first and the last included.
        sampler, class_labels, guidance_scale, null_class, x_T, first_index, mesh, expected_calls: as in `sample`.

    Returns:
        Trajectory(x_t, x_0_hat, t), frames leading; the last x_0_hat is what `sample` returns.

    Raises:
        TypeError, ValueError: as `sample`; num_frames below 1 or above the sampler's steps.

    Example:
        >>> path = sample_path(ddpm_jax.load("digits-16"), jax.random.key(0), 2, num_frames=4, sampler="ddim")
        >>> path.x_0_hat.shape, path.t.tolist()
        ((4, 2, 16, 16, 1), [980.0, 660.0, 320.0, 0.0])
    """
    _check_direction(sampler)
    job = prepare(
        *(params, key, batch_size),
        sampler=sampler,
        class_labels=class_labels,
        guidance_scale=guidance_scale,
        null_class=null_class,
        begin=x_T,
        first_index=first_index,
        mesh=mesh,
        expected_calls=expected_calls,
    )
    ends = np.flatnonzero(job.table.ends_step)
    num_frames = as_positive("num_frames", num_frames)
    if num_frames > len(ends):
        raise ValueError(f"`num_frames` {num_frames} is more than the {len(ends)} steps of the sampler.")
    kept = ends[np.linspace(0, len(ends) - 1, num_frames).round().astype(int)] if num_frames > 1 else ends[-1:]
    slots = np.full(job.table.num_rows, num_frames, np.int32)
    slots[kept] = np.arange(num_frames)
    images, frames = job.call(program.whole, job.origin, job.inputs(slots=slots), num_frames=num_frames)
    return Trajectory(frames.x_t, frames.x_0_hat.at[-1].set(images), job.table.t[kept])


def sample_chunks(
    params: Params,
    key: RandomKey,
    batch_size: SupportsIndex,
    *,
    chunk: SupportsIndex = 50,
    sampler: Sampler | str | None = None,
    class_labels: Labels = None,
    guidance_scale: Number | None = None,
    null_class: SupportsIndex | None = None,
    x_T: Images | None = None,
    first_index: SupportsIndex = 0,
    mesh: Mesh | None = None,
    expected_calls: SupportsIndex = 1,
) -> Iterator[tuple[int, int, Images]]:
    """Sample a few steps at a time, to show progress or to stop early.

    Args:
        params, key, batch_size: as in `sample`.
        chunk: rows of the sampler's table run at a time. A last chunk of another length is a program of its own.
        sampler, class_labels, guidance_scale, null_class, x_T, first_index, mesh, expected_calls: as in `sample`.

    Yields:
        (steps_done, num_steps, x_0_hat): the clean image [b, h, w, c] in [0, 1] as it looks so far; the last is what
        `sample` returns.

    Raises:
        TypeError, ValueError: as `sample`, at the call; chunk below 1.

    Example:
        >>> chunks = sample_chunks(ddpm_jax.load("digits-16"), jax.random.key(0), 1, chunk=25, sampler="ddim")
        >>> [(done, total) for done, total, _ in chunks]
        [(25, 50), (50, 50)]
    """
    chunk = as_positive("chunk", chunk)
    _check_direction(sampler)
    job = prepare(
        *(params, key, batch_size),
        sampler=sampler,
        class_labels=class_labels,
        guidance_scale=guidance_scale,
        null_class=null_class,
        begin=x_T,
        first_index=first_index,
        mesh=mesh,
        expected_calls=expected_calls,
    )
    return _chunks(job, chunk)


def invert(
    params: Params,
    images: Images,
    *,
    sampler: samplers.DDIMInverse | None = None,
    class_labels: Labels = None,
    mesh: Mesh | None = None,
) -> Images:
    """Return the noise that DDIM makes images from: x_0 to x_T along the deterministic flow.

    `sample(params, key, batch_size, sampler=samplers.DDIM(clip=None), x_T=invert(params, images))` gives the images
    back, the more exactly the more steps and iterations there are: for reconstruction, interpolation and editing.

    Args:
        params: weights and their config.
        images: [b, h, w, c] in [0, 1], of the network's size.
        sampler: `samplers.DDIMInverse` with other knobs than its defaults; its grid is to be that of the DDIM that
            goes back.
        class_labels, mesh: as in `sample`.

    Returns:
        x_T, [b, h, w, c], of about unit variance.

    Raises:
        TypeError, ValueError: as `sample`; images of another size.

    Example:
        >>> images = np.zeros((2, 16, 16, 1), np.float32)
        >>> invert(ddpm_jax.load("digits-16"), images, sampler=samplers.DDIMInverse(num_steps=5)).shape
        (2, 16, 16, 1)
    """
    check_params(params)
    shape = (jnp.shape(images)[0] if jnp.ndim(images) else 0, *(params.config.unet.image_size or ()))
    if jnp.shape(images)[:-1] != shape or jnp.shape(images)[-1] != params.config.unet.in_channels:
        raise ValueError(
            f"`images` has shape {jnp.shape(images)}; this network's are [batch, "
            f"{', '.join(map(str, params.config.unet.image_size or ('height', 'width')))}, "
            f"{params.config.unet.in_channels}]."
        )
    sampler = samplers.DDIMInverse() if sampler is None else sampler
    if not isinstance(sampler, samplers.DDIMInverse):
        raise TypeError(f"`sampler` must be a samplers.DDIMInverse, not {sampler!r}.")
    x_0 = pixels.to_data(images, params.config.schedule.data_range)
    job = prepare(params, None, shape[0], sampler=sampler, class_labels=class_labels, begin=x_0, mesh=mesh)
    return job.call(program.latents, job.origin, job.inputs())


def as_function(config: Config, sampler: Sampler | str | None = None) -> Callable[..., Images]:
    """Return a whole run as a plain function of arrays, for `jax.export` and programs of one's own.

    The function takes (weights, key, indices, class_labels): the weights' tree, a key, the numbers of the images [b],
    and labels [b] or None; it returns images [b, h, w, c] in [0, 1]. Image i depends on (key, i) alone, as in `sample`.
    The batch may be symbolic.

    Args:
        config: of the checkpoint.
        sampler: as in `sample`.

    Example:
        >>> params = ddpm_jax.load("digits-16")
        >>> draw = jax.jit(as_function(params.config, samplers.DDIM(num_steps=2)))
        >>> draw(params.weights, jax.random.key(0), jnp.arange(3)).shape
        (3, 16, 16, 1)
    """
    _check_direction(sampler)
    config.unet.check_size()
    table = table_of(sampler, config)
    static = static_of(config, table, batch_size=None)

    def draw(weights, key, indices, class_labels=None) -> jax.Array:
        job = Job(static, table, weights, Condition(class_labels), key, indices)
        images, _ = program.whole(static, job.origin, job.inputs())
        return images

    return draw


def _chunks(job: Job, chunk: int) -> Iterator[tuple[int, int, Images]]:
    count, ends = job.table.num_rows, job.table.ends_step
    state, keys = job.call(program.start, job.origin)
    if job.static.unet.dtype != "float32":
        job = dataclasses.replace(job, weights=job.call(program.cast_weights, job.weights))
    inputs = job.inputs()
    for start in range(0, count, chunk):
        rows = jax.tree.map(operator.itemgetter(slice(start, start + chunk)), inputs.rows)
        slots = np.ones(len(rows.index), np.int32)
        slots[-1] = 0
        is_last = np.asarray(start + chunk >= count)
        part = inputs._replace(rows=rows, slots=slots)
        state, images = job.call(program.advance_and_show, is_last, part, state, keys, num_frames=1)
        yield int(ends[: start + chunk].sum()), int(ends.sum()), images


def _check_direction(sampler: Sampler | str | None) -> None:
    if isinstance(sampler, samplers.DDIMInverse):
        raise TypeError("samplers.DDIMInverse goes from images to noise: pass it to `invert`.")
