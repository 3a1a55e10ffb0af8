"""From `Params` and a key to images: the doors `sample`, `sample_path` and `sample_chunks`.

The doors check and normalise their arguments, build the sampler's table and place weights and key on the devices.
What runs is compiled once for each batch size, number of rows and `Switches`; everything else is data.
"""

import dataclasses
import functools
import numbers
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ddpm_jax import compilation, pixels, samplers, sharding
from ddpm_jax.config import Config, UNetConfig
from ddpm_jax.models import hoist, winograd
from ddpm_jax.params import Params, check_labels, check_params
from ddpm_jax.random_keys import image_keys, threefry_key
from ddpm_jax.samplers.base import (
    Frame,
    Sampler,
    Switches,
    Table,
    draw_noise,
    initial_state,
    scan_rows,
)
from ddpm_jax.samplers.for_checkpoint import table_of
from ddpm_jax.types import Array, Frames, Images, Labels, Number, PyTree, RandomKey
from ddpm_jax.validation import as_integer, as_positive, check


class Trajectory(NamedTuple):
    """Frames of a sampling run, the earliest first.

    Attributes:
        x_t: [frames, b, h, w, c] the noisy image the network saw, mapped and clipped to [0, 1] as `sample` does.
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

    Image i depends on (key, first_index + i) alone: neither the batch size nor the number of devices changes it, but
    for float rounding. The first call compiles; other weights of the same network, keys, and numbers of the sampler
    (eta, clip, grid of the same length) do not. Works inside jit, vmap and scan.

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
        x_T: [batch_size, h, w, c] unit-variance noise to start from, instead of drawing it. It stays yours: the buffer
            is not donated.
        first_index: the number of the first image, which continues a set: sample(params, key, 4, first_index=4) are
            images 4 to 7 of sample(params, key, 8).
        mesh: devices to use, along the mesh's first axis. None: under a trace, no placement; else where the weights
            were committed to by their owner; else all devices. (`sharding.replicate` puts weights there once for
            all calls.)
        expected_calls: how often such a batch will be drawn. On CPU convolutions that run faster and compile for longer
            are used where the seconds that they save in all calls outweigh those of compiling; images are the same, but
            for float rounding.

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
    condition = (class_labels, guidance_scale, null_class)
    job = _prepare(params, key, batch_size, sampler, condition, x_T, first_index, mesh, expected_calls)
    images, _ = job.run_whole(num_frames=0, slots=None)
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
    condition = (class_labels, guidance_scale, null_class)
    job = _prepare(params, key, batch_size, sampler, condition, x_T, first_index, mesh, expected_calls)
    ends = np.flatnonzero(job.table.ends_step)
    num_frames = as_positive("num_frames", num_frames)
    if num_frames > len(ends):
        raise ValueError(f"`num_frames` {num_frames} is more than the {len(ends)} steps of the sampler.")
    kept = ends[np.linspace(0, len(ends) - 1, num_frames).round().astype(int)] if num_frames > 1 else ends[-1:]
    slots = np.full(job.table.num_evals, num_frames, np.int32)
    slots[kept] = np.arange(num_frames)
    images, frames = job.run_whole(num_frames, slots)
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
    condition = (class_labels, guidance_scale, null_class)
    job = _prepare(params, key, batch_size, sampler, condition, x_T, first_index, mesh, expected_calls)
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
    key = jax.random.key(0)
    job = _prepare(params, key, shape[0], sampler, (class_labels, None, None), x_0, 0, mesh, inverse=True)
    return compilation.call(_inverted, job.static, *job.arguments(), quick=job.quick)


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
    config.unet.check_size()
    table = table_of(sampler, config)
    static = _Static(config.unet, config.schedule.data_range, table.switches, None, None)
    rows, init_scale = table.rows(), np.float32(table.init_scale)

    def draw(weights, key, indices, class_labels=None) -> jax.Array:
        condition = _Condition(class_labels, None, None)
        x, _ = _run((static, 0), weights, key, indices, condition, None, init_scale, rows, None)
        return _to_images(static, x)

    return draw


def _chunks(job: "_Job", chunk: int) -> Iterator[tuple[int, int, Images]]:
    rows, ends = job.table.rows(), job.table.ends_step
    call = functools.partial(compilation.call, quick=job.quick)
    state = call(_start, job.static, job.key, job.indices, job.x_T, job.init_scale)
    weights, low = job.weights, job.static.unet.dtype != "float32"
    weights = call(hoist.cast_weights, job.static.unet, weights) if low else weights
    for start in range(0, job.table.num_evals, chunk):
        part = jax.tree.map(operator.itemgetter(slice(start, start + chunk)), rows)
        slots = np.ones(len(part.index), np.int32)
        slots[-1] = 0
        is_last = np.asarray(start + chunk >= job.table.num_evals)
        arguments = (is_last, weights, state, job.key, job.indices, job.condition, part, slots)
        state, images = call(_advance_and_show, job.static, *arguments)
        yield int(ends[: start + chunk].sum()), int(ends.sum()), images


class _Static(NamedTuple):
    """What a program is compiled for, besides the shapes of its arguments."""

    unet: UNetConfig
    data_range: pixels.DataRange
    switches: Switches
    mesh: Mesh | None
    batch_size: int | None  # without the padding that splits it evenly over the mesh; None if it is symbolic


class _Condition(NamedTuple):
    """What images are to be like."""

    labels: Array | None
    guidance_scale: np.float32 | None
    null_class: np.int32 | None


@dataclasses.dataclass(frozen=True)
class _Job:
    """Arguments of a run, checked, placed and ready."""

    static: _Static
    table: Table
    weights: Any
    key: jax.Array
    indices: Array
    condition: _Condition
    x_T: Array | None
    init_scale: np.float32
    quick: bool  # plain convolutions: LLVM's level 1 will do

    def run_whole(self, num_frames: int, slots: np.ndarray | None) -> tuple[jax.Array, Frame]:
        """Run all rows in one program."""
        return compilation.call(_whole, (self.static, num_frames), *self.arguments(), slots, quick=self.quick)

    def arguments(self) -> tuple:
        """Return what a program takes besides its static arguments."""
        return (self.weights, self.key, self.indices, self.condition, self.x_T, self.init_scale, self.table.rows())


def _whole(static: tuple[_Static, int], *arguments):
    x, frames = _run(static, *arguments)
    to_images = functools.partial(_to_images, static[0])
    return to_images(x), jax.tree.map(to_images, frames)


def _inverted(static: _Static, *arguments) -> jax.Array:
    x, _ = _run((static, 0), *arguments, None)
    return x[: static.batch_size]


def _run(static: tuple[_Static, int], weights, key, indices, condition, x_T, init_scale, rows, slots):
    state = _start(static[0], key, indices, x_T, init_scale)
    weights = hoist.cast_weights(static[0].unet, weights)
    state, frames = _advance(static, weights, state, key, indices, condition, rows, slots)
    return state[0], frames


def _start(static: _Static, key, indices, x_T, init_scale) -> jax.Array:
    if x_T is None:
        shape = (*static.unet.image_size, static.unet.in_channels)
        x_T = draw_noise(image_keys(key, indices), 0, shape, jnp.float32)
    return sharding.constrain(initial_state(static.switches, init_scale, x_T), static.mesh)


def _advance(static: tuple[_Static, int], weights, state, key, indices, condition, rows, slots):
    (unet, _, switches, mesh, *_), num_frames = static
    labels, scale, null_class = condition
    projections = hoist.project_times(unet, weights, jnp.asarray(rows.t)) if labels is None else None

    def net_fn(x, cond):
        if scale is None:
            return hoist.run(unet, weights, x, cond[0], labels, cond[1])
        pairs = jnp.stack([labels, jnp.full_like(labels, null_class)], axis=1).reshape(-1)
        out = hoist.run(unet, weights, jnp.repeat(x, 2, axis=0), cond[0], pairs)
        of_class, of_none = out[::2], out[1::2]
        mean = slice(unet.in_channels)  # a learned variance stays the class's
        return of_class.at[..., mean].add((scale - 1) * (of_class - of_none)[..., mean])

    keys, cond = image_keys(key, indices), (jnp.asarray(rows.t), projections)
    state, frames = scan_rows(net_fn, switches, rows, state, keys, cond=cond, slots=slots, num_frames=num_frames)
    return sharding.constrain(state, mesh), frames


def _advance_and_show(static: _Static, is_last: Array, *arguments) -> tuple[jax.Array, jax.Array]:
    """Run some rows; return the state, and the image that `sample` returns or, before the end, the last x_0_hat."""
    state, frames = _advance((static, 1), *arguments)
    return state, _to_images(static, jnp.where(is_last, state[0], frames.x_0_hat[0]))


def _to_images(static: _Static, x: jax.Array) -> jax.Array:
    """Map the scale of the data to [0, 1], clip, and cut the batch's padding off."""
    return pixels.to_images(x[..., : static.batch_size, :, :, :], static.data_range)


def _prepare(
    params, key, batch_size, sampler, condition, x_T, first_index, mesh, expected_calls=1, *, inverse=False
) -> _Job:
    check_params(params)
    if isinstance(sampler, samplers.DDIMInverse) and not inverse:
        raise TypeError("samplers.DDIMInverse goes from images to noise: pass it to `invert`.")
    unet = params.config.unet
    batch_size = as_positive("batch_size", batch_size)
    unet.check_size()
    first_index = as_integer("first_index", first_index)
    if not 0 <= first_index <= 2**31 - 1 - batch_size:
        raise ValueError(f"`first_index` must be from 0 to 2^31 - 1 - batch_size, not {first_index}.")
    expected_calls = as_positive("expected_calls", expected_calls)
    table = table_of(sampler, params.config)
    class_labels, *guidance = condition
    labels = check_labels(unet, class_labels, batch_size)
    guidance = check_guidance(params.config, *guidance)
    shape = (batch_size, *unet.image_size, unet.in_channels)
    if x_T is not None and jnp.shape(x_T) != shape:
        raise ValueError(f"`x_T` has shape {jnp.shape(x_T)}; it must be {shape}.")
    key = threefry_key(key)
    x_T = None if x_T is None else jnp.asarray(x_T, jnp.float32)
    indices = first_index + np.arange(batch_size, dtype=np.int32)

    weights = params.weights
    arguments = (weights, key, x_T, labels)
    traced, quick = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)), False
    if mesh is None and not traced:
        mesh = sharding.mesh_of(weights)
    if mesh is not None:
        if not isinstance(mesh, Mesh):
            raise TypeError(f"`mesh` must be a jax.sharding.Mesh, as sharding.data_mesh() makes one, not {mesh!r}.")
        mesh = sharding.auto(mesh)
        padding = -batch_size % mesh.shape[mesh.axis_names[0]]
        indices, x_T, labels = (None if array is None else _padded(array, padding) for array in (indices, x_T, labels))
        if not traced:  # somebody else's program may be for another device, or differentiated
            evaluations = table.num_evals * expected_calls
            weights = _with_fast_convolutions(unet, weights, (batch_size + padding) // mesh.size, evaluations)
            quick = unet.dtype == "float32" and not winograd.is_transformed(weights)
            weights, key = sharding.place((weights, key), mesh, split=False)
            indices, x_T, labels = sharding.place((indices, x_T, labels), mesh, split=True)
    static = _Static(unet, params.config.schedule.data_range, table.switches, mesh, batch_size)
    init_scale = np.float32(table.init_scale)
    return _Job(static, table, weights, key, indices, _Condition(labels, *guidance), x_T, init_scale, quick)


def _with_fast_convolutions(unet: UNetConfig, weights: PyTree, batch_size: int, evaluations: int) -> PyTree:
    """Return weights with Winograd's kernels where they gain: in float32 on CPU, and where this process holds them."""
    here = all(
        leaf.is_fully_addressable or leaf.is_fully_replicated
        for leaf in jax.tree.leaves(weights)
        if isinstance(leaf, jax.Array)
    )
    if jax.default_backend() != "cpu" or unet.dtype != "float32" or not here:
        return weights
    return winograd.transform_weights(unet, weights, batch_size, evaluations)


def check_guidance(config: Config, scale: Any, null_class: Any) -> tuple[Any, np.int32 | None]:
    """Return the scale of guidance and the class that stands for none; (None, None) without guidance."""
    if scale is None:
        check(null_class is None, "`null_class` acts beside `guidance_scale` alone: give both, or neither.")
        return None, None
    count = config.unet.num_classes
    if not count:
        raise ValueError("`guidance_scale` needs a network with a table of classes, of which one stands for none.")
    traced = isinstance(scale, jax.core.Tracer)
    good = traced or (isinstance(scale, numbers.Real) and np.isfinite(scale))
    check(good, f"`guidance_scale` must be a number, not {scale!r}.")
    null = config.null_class if null_class is None else as_integer("null_class", null_class)
    check(null is None or 0 <= null < count, f"`null_class` must be one of the classes 0 .. {count - 1}, not {null!r}.")
    if not traced and scale == 1:
        return None, None
    if null is None:
        raise ValueError(
            "`guidance_scale` guides away from the class that stands for none, and this checkpoint does not say which "
            f"of its {count} does. Where it was trained with dropped labels, pass `null_class` (often the last, "
            f"{count - 1}), or note it once: params.replace(config=dataclasses.replace(params.config, "
            f"null_class={count - 1})). Where every class is a real one, leave `guidance_scale` out."
        )
    return scale if traced else np.float32(scale), np.int32(null)


def _padded(array: Array, padding: int) -> Array:
    if padding == 0:
        return array
    return jnp.pad(array, ((0, padding), *[(0, 0)] * (array.ndim - 1)), mode="edge")
