"""The variational bound of a DDPM in bits/dim, each of its terms, and a sender's path through them.

    -log p(x_0) <= L_T + sum_{t > 0} L_t + L_0                                     (Ho et al. 2020, eq. 5)
    L_T = KL(q(x_T | x_0) || N(0, I)),  L_t = KL(q(x_s | x_t, x_0) || p(x_s | x_t)),  L_0 = -log p(x_0 | x_{t=0})

as `calc_bpd_loop` of hojonathanho/diffusion computes it: every term once, with x_0_hat clipped to [-1, 1], and with the
decoder of eq. 13. Timesteps are counted from 0, the papers' 1.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from jax.sharding import Mesh

from ddpm_jax import compilation, pixels, reverse
from ddpm_jax.config import Config
from ddpm_jax.config.schedulers import record_of
from ddpm_jax.likelihood.job import check_model, prepare
from ddpm_jax.likelihood.program import Rows, Static, Terms, prior_of, rows_of, run_terms
from ddpm_jax.params import Params
from ddpm_jax.types import Array, Float, Frames, Images, Labels, Number, RandomKey
from ddpm_jax.validation import check, is_number, nearest

VarianceType = Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"]
Decoder = Literal["tanh", "exact"]


class Bound(NamedTuple):
    """The bound of each image and what it is made of, in bits/dim.

    Attributes:
        total: [b] prior + the sum of `terms`.
        prior: [b] L_T.
        terms: [b, T] L_t; terms[:, 0] is the decoder's, the distortion of lossy coding, and the others its rate.
        mse: [b, T] mean square error of x_0_hat, as clipped, on the scale of the data.
        eps_mse: [b, T] mean square error of eps_hat, unclipped.
    """

    total: Array
    prior: Array
    terms: Array
    mse: Array
    eps_mse: Array


class Transmission(NamedTuple):
    """The bound along one path x_T, ..., x_0, and what a receiver sees on the way.

    Attributes:
        bound: see there; its terms are the bits that each step of the path sends.
        x_0_hat: [frames, b, h, w, c] in [0, 1], the receiver's estimates, the noisiest first.
        t: [frames] their timesteps.
    """

    bound: Bound
    x_0_hat: Frames
    t: np.ndarray


def bits_per_dim(
    params: Params,
    key: RandomKey,
    x_0: Images,
    class_labels: Labels = None,
    *,
    variance_type: VarianceType | None = None,
    clip: Number | None = 1.0,
    decoder: Decoder = "tanh",
    first_index: SupportsIndex = 0,
    mesh: Mesh | None = None,
) -> Float[Array, " b"]:
    """Return the variational bound on the negative log-likelihood of images, in bits/dim.

    It evaluates the network T times an image, in one compiled program. The noise of image i at timestep t depends on
    (key, first_index + i, t) alone; so a set may be evaluated in batches.

    Args:
        params: weights and their config; of a network trained with EMA, those are the averages.
        key: a key of `jax.random`, new or old style.
        x_0: images [b, h, w, c] of 256 levels in [-1, 1]: bytes / 127.5 - 1 (`pixels.data_from_bytes`).
        class_labels: for class-conditional networks: an integer for all, or one an image.
        variance_type: of p(x_s | x_t), one of `reverse.VARIANCE_TYPES`. None: the one that the checkpoint's scheduler
            config names; else "learned_range" for a network that learns a variance, and "fixed_small" for others.
        clip: bound of x_0_hat; None leaves it as it is. Ho et al. clip to 1.
        decoder: "tanh", the CDF's approximation that published numbers were computed with, or "exact".
        first_index: the number of the first image.
        mesh: devices, as in `sample`.

    Returns:
        [b] float32. Its mean over a test set is what papers report; its standard deviation over sqrt(b) the error.

    Raises:
        TypeError: params is no `Params`, the key no key.
        ValueError: images of another size, off the 256 levels or outside [-1, 1]; labels or a variance that do not
            fit the network; a schedule that is not variance-preserving.

    Example:
        >>> bits_per_dim(params, key, np.full((2, 8, 8, 1), -1.0, np.float32)).shape
        (2,)
    """
    return bound_terms(
        *(params, key, x_0, class_labels),
        variance_type=variance_type,
        clip=clip,
        decoder=decoder,
        first_index=first_index,
        mesh=mesh,
    ).total


def bound_terms(
    params: Params,
    key: RandomKey,
    x_0: Images,
    class_labels: Labels = None,
    *,
    variance_type: VarianceType | None = None,
    clip: Number | None = 1.0,
    decoder: Decoder = "tanh",
    first_index: SupportsIndex = 0,
    mesh: Mesh | None = None,
) -> Bound:
    """Return every term of the bound for each image.

    Args:
        params, key, x_0, class_labels, variance_type, clip, decoder, first_index, mesh: as in `bits_per_dim`.

    Raises:
        TypeError, ValueError: as `bits_per_dim`.

    Example:
        >>> bound = bound_terms(params, key, np.full((2, 8, 8, 1), -1.0, np.float32))
        >>> bound.terms.shape, params.config.schedule.num_train_timesteps
        ((2, 6), 6)
    """
    rows = rows_of_bound(params, variance_type)
    found = call_terms(
        *(params, key, x_0, class_labels, rows),
        variance_type=variance_type,
        clip=clip,
        decoder=decoder,
        first_index=first_index,
        mesh=mesh,
    )
    return _bound(found)


def bounds_of(
    params: Params,
    key: RandomKey,
    images: np.ndarray,
    class_labels: Labels = None,
    *,
    batch_size: int,
    first_index: int = 0,
    **options: Any,
) -> Iterator[Bound]:
    """Yield the bounds of a set of images batch by batch, as numpy. One program serves the last batch too.

    Args:
        params, key, class_labels, first_index: as in `bits_per_dim`.
        images: np.uint8 [n, h, w, c].
        batch_size: images that go through the network together.
        **options: `variance_type`, `clip`, `decoder`, `mesh` of `bits_per_dim`.

    Raises:
        TypeError, ValueError: as `bits_per_dim`.

    Example:
        >>> images = np.zeros((3, 8, 8, 1), np.uint8)
        >>> [bound.terms.shape for bound in bounds_of(params, key, images, batch_size=2)]
        [(2, 6), (1, 6)]
    """
    labels = None if class_labels is None else np.broadcast_to(np.asarray(class_labels), (len(images),))
    for start in range(0, len(images), batch_size):
        chosen = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
        x_0 = pixels.data_from_bytes(images[chosen], (-1, 1))
        some = None if labels is None else labels[chosen]
        bound = bound_terms(params, key, x_0, some, first_index=first_index + start, **options)
        yield Bound(*(np.asarray(array)[: len(images) - start] for array in bound))


def transmit(
    params: Params,
    key: RandomKey,
    x_0: Images,
    class_labels: Labels = None,
    *,
    timesteps: Any = None,
    variance_type: VarianceType | None = None,
    clip: Number | None = 1.0,
    decoder: Decoder = "tanh",
    first_index: SupportsIndex = 0,
    mesh: Mesh | None = None,
) -> Transmission:
    """Send images as algorithm 3 of Ho et al. 2020 does, and receive them as algorithm 4, without writing the bits.

    x_T comes from q(x_T | x_0) and each x_s from q(x_s | x_t, x_0), one path; x_s costs L_t bits, and the receiver
    estimates x_0_hat from what it has. `bound_terms` draws every x_t anew: the expected terms are the same.

    Args:
        params, key, x_0, class_labels, variance_type, clip, decoder, first_index, mesh: as in `bits_per_dim`.
        timesteps: falling integers at which x_0_hat is kept; None for 10 of them, denser towards 0, where most bits
            are sent.

    Raises:
        TypeError, ValueError: as `bits_per_dim`; timesteps that do not fall, or outside the schedule.

    Example:
        >>> x_0 = np.full((2, 8, 8, 1), -1.0, np.float32)
        >>> sent = transmit(params, key, x_0, timesteps=(5, 0))  # doctest: +SKIP
        >>> sent.x_0_hat.shape, sent.bound.terms.shape  # doctest: +SKIP
        ((2, 2, 8, 8, 1), (2, 6))
    """
    rows = Rows(*(column[::-1] for column in rows_of_bound(params, variance_type)))
    count = len(rows.t)
    kept = _timesteps(timesteps, count)
    slots = np.full(count, len(kept), np.int32)
    slots[count - 1 - kept] = np.arange(len(kept))
    found = call_terms(
        *(params, key, x_0, class_labels, rows),
        variance_type=variance_type,
        clip=clip,
        decoder=decoder,
        first_index=first_index,
        mesh=mesh,
        joint=True,
        slots=slots,
        num_frames=len(kept),
    )
    upwards = found._replace(
        terms=found.terms[:, ::-1], mse=found.mse[:, ::-1], eps_mse=found.eps_mse[:, ::-1]
    )  # from timestep 0 up
    frames = pixels.to_images(found.frames, params.config.schedule.data_range)
    return Transmission(_bound(upwards), frames, kept)


def rows_of_bound(params: Params, variance_type: VarianceType | None) -> Rows:
    """Return the rows of all timesteps of a checkpoint's schedule.

    Raises:
        TypeError, ValueError: as `bits_per_dim`, of params and the variance.
    """
    check_model(params)
    return rows_of(params.config.schedule, variance_type_of(params.config, variance_type))


def call_terms(
    params: Params,
    key: RandomKey,
    x_0: Images,
    class_labels: Labels,
    rows: Rows,
    *,
    variance_type: VarianceType | None,
    clip: Number | None,
    decoder: Decoder,
    first_index: SupportsIndex,
    mesh: Mesh | None,
    joint: bool = False,
    slots: np.ndarray | None = None,
    num_frames: int = 0,
) -> Terms:
    """Run the program of the bound on some rows; arguments are those of `bits_per_dim` and of `program.Static`."""
    config = params.config
    check(clip is None or (is_number(clip) and clip > 0), f"`clip` must be a number above 0 or None, not {clip!r}.")
    check(decoder in reverse.CDFS, f"`decoder` must be one of {list(reverse.CDFS)}, not {decoder!r}.")
    batch = prepare(*(params, key, x_0, class_labels, first_index, mesh), on_levels=True, evaluations=len(rows.t))
    static = Static(
        unet=config.unet,
        batch_size=batch.count,
        variance_type=variance_type_of(config, variance_type),
        decoder=decoder,
        clips=clip is not None,
        joint=joint,
        num_frames=num_frames,
    )
    if np.ndim(rows.t) == 2:  # each image's own timesteps are padded as the images are
        padding = ((0, 0), (0, len(batch.indices) - batch.count))
        rows = Rows(*(column if column.ndim == 1 else np.pad(column, padding, mode="edge") for column in rows))
    slots = np.zeros(len(rows.t), np.int32) if slots is None else slots  # without frames none is written
    images = (batch.weights, batch.key, batch.indices, batch.x_0, batch.labels)
    numbers = (rows, prior_of(config.schedule), np.float32(clip or 0), slots)
    return compilation.call(run_terms, static, *images, *numbers, quick=batch.quick)


def variance_type_of(config: Config, variance_type: VarianceType | None = None) -> VarianceType:
    """Return the variance of p(x_s | x_t) that is asked for, or else that of a checkpoint.

    Raises:
        ValueError: it is unknown, or learned although the network does not learn one.

    Example:
        >>> variance_type_of(ddpm_jax.load("digits-16").config)
        'fixed_small'
    """
    learns = config.unet.learns_variance
    if variance_type is None:
        sampler = config.sampler
        named = sampler.to_dict().get("variance_type", record_of(sampler.class_name).knobs.get("variance_type"))
        if learns:
            return named if named in reverse.LEARNED else "learned_range"
        return named if named in reverse.FIXED else "fixed_small"
    check(
        variance_type in reverse.VARIANCE_TYPES,
        f"`variance_type` must be one of {list(reverse.VARIANCE_TYPES)}, not {variance_type!r}."
        f"{nearest(str(variance_type), reverse.VARIANCE_TYPES)}",
    )
    check(
        learns or variance_type in reverse.FIXED,
        f"`variance_type` {variance_type!r} needs a network that learns a variance, with {2 * config.unet.in_channels} "
        f"output channels; this one has {config.unet.out_channels}. Take one of {list(reverse.FIXED)}.",
    )
    return variance_type


def _timesteps(timesteps: Any, count: int) -> np.ndarray:
    if timesteps is None:
        return np.unique(((count - 1) * np.linspace(0, 1, min(10, count)) ** 2).round().astype(int))[::-1]
    kept = np.asarray(timesteps)
    good = kept.ndim == 1 and kept.size > 0 and np.issubdtype(kept.dtype, np.integer) and (np.diff(kept) < 0).all()
    check(
        good and kept[0] < count and kept[-1] >= 0,
        f"`timesteps` must be falling integers in 0 .. {count - 1}, not {timesteps!r}.",
    )
    return kept


def _bound(found: Terms) -> Bound:
    total = found.prior + found.terms.sum(1)
    return Bound(total, found.prior, found.terms, found.mse, found.eps_mse)
