"""The compiled program of the variational bound: one scan over timesteps, whose tables and weights are arguments."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import reverse
from ddpm_jax.config import ScheduleConfig, UNetConfig
from ddpm_jax.models import hoist
from ddpm_jax.random_keys import image_keys
from ddpm_jax.samplers.base import draw_noise
from ddpm_jax.schedule import alphas_cumprod, broadcast, prediction_coefficients
from ddpm_jax.types import Array, PyTree
from ddpm_jax.validation import check


class Static(NamedTuple):
    """What the program is compiled for, besides the shapes of its arguments.

    Attributes:
        unet: the network.
        batch_size: images without the padding that splits them evenly over the devices.
        variance_type: of p(x_s | x_t).
        decoder: the normal distribution's CDF in L_0, as in `reverse.log_probability_of_levels`.
        clips: whether x_0_hat is clipped.
        joint: whether x_s is drawn from q(x_s | x_t, x_0), as a sender draws it; else each x_t from q(x_t | x_0).
        num_frames: x_0_hat that are kept.
    """

    unet: UNetConfig
    batch_size: int
    variance_type: str
    decoder: str
    clips: bool
    joint: bool = False
    num_frames: int = 0


class Rows(NamedTuple):
    """The numbers of some timesteps: arrays [n], or [n, b] where each image has its own timesteps.

    Attributes:
        t: the timestep.
        draw: [n] int32, the number of the noise, which depends on (key, image, draw).
        signal, sigma: x_t = signal x_0 + sigma eps.
        a, b, c, d: x_0_hat = a x_t + b out, eps_hat = c x_t + d out.
        from_x_0, from_x_t: weights in the mean of q(x_s | x_t, x_0).
        smallest, largest: log-variances of p(x_s | x_t), between which a learned one lies; the first is that of q.
        spread: what a fixed variance adds to the divergence, in nats; 0 for a learned one.
    """

    t: Any
    draw: Any
    signal: Any
    sigma: Any
    a: Any
    b: Any
    c: Any
    d: Any
    from_x_0: Any
    from_x_t: Any
    smallest: Any
    largest: Any
    spread: Any

    def at(self, t: np.ndarray, draw: np.ndarray) -> "Rows":
        """Return the rows of timesteps [n] or [n, b] with other numbers of their noise, [n]."""
        return Rows(*(column[t] for column in self))._replace(draw=np.asarray(draw, np.int32))


class Terms(NamedTuple):
    """What the program returns: arrays [b, n] but for the prior [b] and the frames [num_frames, b, h, w, c]."""

    prior: jax.Array
    terms: jax.Array
    mse: jax.Array
    eps_mse: jax.Array
    frames: jax.Array


@functools.lru_cache(maxsize=16)
def rows_of(schedule: ScheduleConfig, variance_type: str) -> Rows:
    """Return the rows of all timesteps from 0 up; computed in float64 and cast once.

    Raises:
        ValueError: a schedule without signal at its end, for a network that predicts eps.
    """
    alpha_bar = alphas_cumprod(schedule)
    check(
        alpha_bar.min() > 0 or schedule.prediction_type != "epsilon",
        "The schedule has no signal at its end (`rescale_betas_zero_snr`), where `prediction_type` 'epsilon' says "
        "nothing of x_0: the bound is infinite. A checkpoint of 'v_prediction' or 'sample' has a finite one.",
    )
    steps = reverse.chain(schedule)
    smallest, largest = reverse.log_variances(schedule, variance_type)
    spread = np.zeros(len(alpha_bar))
    if variance_type in reverse.FIXED:
        difference = smallest - reverse.log_variance(variance_type, smallest, largest)
        spread = (np.expm1(difference) - difference) / 2
    columns = (
        *(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)),
        *prediction_coefficients(schedule.prediction_type, alpha_bar),
        *(steps.from_x_0, steps.from_x_t, smallest, largest, spread),
    )
    t = np.arange(len(alpha_bar))
    return Rows(t.astype(np.float32), t.astype(np.int32), *(column.astype(np.float32) for column in columns))


def prior_of(schedule: ScheduleConfig) -> np.ndarray:
    """Return (a, b) with L_T = (a x_0^2 + b) / 2 nats a value: the divergence of q(x_T | x_0) from N(0, I)."""
    last = alphas_cumprod(schedule)[-1]
    return np.asarray([last, -last - np.log1p(-last)], np.float32)


def run_terms(
    static: Static,
    weights: PyTree,
    key: jax.Array,
    indices: Array,
    x_0: jax.Array,
    labels: Any,
    rows: Rows,
    prior: Array,
    clip: Array,
    slots: Array,
) -> Terms:
    """Evaluate L_T, and L_t at the rows' timesteps, in bits/dim.

    With `joint`, the rows are all timesteps, the last first.

    Args:
        static: see there.
        weights, key, indices, x_0, labels: of a batch.
        rows: of the timesteps.
        prior: of `prior_of`.
        clip: bound of x_0_hat, where `static.clips`.
        slots: [n] the frame in which the x_0_hat of each row is kept, `num_frames` for none.
    """
    unet = static.unet
    weights, keys = hoist.cast_weights(unet, weights), image_keys(key, indices)
    times = jnp.asarray(rows.t)
    # the time projections of all rows before the loop, where one row has one time
    projections = hoist.project_times(unet, weights, times) if labels is None and times.ndim == 1 else None
    noise = lambda draw: draw_noise(keys, draw, x_0.shape[1:], x_0.dtype)
    bits = lambda values: values.mean((1, 2, 3)) / np.log(2)

    def step(carry, xs):
        row, projection, slot = xs
        x_t, frames = carry
        t, draw = row.t, noise(row.draw)
        row = Rows(row.t, row.draw, *map(broadcast, row[2:]))  # coefficients that multiply images
        if not static.joint:
            x_t = row.signal * x_0 + row.sigma * draw
        out = hoist.run(unet, weights, x_t, t, labels, projection)
        out, extra = out[..., : x_0.shape[-1]], out[..., x_0.shape[-1] :]
        x_0_hat = row.a * x_t + row.b * out
        if static.clips:
            x_0_hat = jnp.clip(x_0_hat, -clip, clip)
        nats = _nats(static, row, x_0, x_t, x_0_hat, extra)
        eps = (x_t - row.signal * x_0) / row.sigma
        mse = ((x_0 - x_0_hat) ** 2).mean((1, 2, 3))
        eps_mse = ((eps - row.c * x_t - row.d * out) ** 2).mean((1, 2, 3))
        if static.num_frames:
            frames = frames.at[slot].set(x_0_hat, mode="drop")
        if static.joint:
            x_t = row.from_x_0 * x_0 + row.from_x_t * x_t + jnp.exp(row.smallest / 2) * draw
        return (x_t, frames), (bits(nats), mse, eps_mse)

    first = jnp.zeros_like(x_0)
    if static.joint:
        first = rows.signal[0] * x_0 + rows.sigma[0] * noise(len(rows.t))
    kept = jnp.zeros((static.num_frames, *x_0.shape), x_0.dtype)
    (_, frames), columns = jax.lax.scan(step, (first, kept), (rows, projections, slots))
    L_T = bits((prior[0] * x_0**2 + prior[1]) / 2)
    batch = slice(static.batch_size)
    terms, mse, eps_mse = (column.T[batch] for column in columns)
    return Terms(L_T[batch], terms, mse, eps_mse, frames[:, batch])


def _nats(static: Static, row: Rows, x_0: jax.Array, x_t: jax.Array, x_0_hat: jax.Array, extra: jax.Array) -> jax.Array:
    """Return L_t of each value [b, h, w, c]: the divergence of q from p, at t = 0 the decoder's code length."""
    learned = static.variance_type in reverse.LEARNED
    p_log_variance = reverse.log_variance(static.variance_type, row.smallest, row.largest, extra if learned else None)
    spread = _spread(row.smallest - p_log_variance) if learned else row.spread
    shift = row.from_x_0 * (x_0 - x_0_hat)  # of the means
    divergence = spread + shift**2 * jnp.exp(-p_log_variance) / 2
    p_mean = row.from_x_0 * x_0_hat + row.from_x_t * x_t
    decoder = -reverse.log_probability_of_levels(x_0, p_mean, p_log_variance, static.decoder)
    return jnp.where(broadcast(row.t) == 0, decoder, divergence)


def _spread(difference: jax.Array) -> jax.Array:
    """Return (exp(d) - 1 - d) / 2; by its series near 0, where float32 would lose all digits."""
    d = difference
    series = d**2 / 2 * (1 + d / 3 * (1 + d / 4 * (1 + d / 5)))
    return jnp.where(jnp.abs(d) < 0.1, series, jnp.expm1(d) - d) / 2
