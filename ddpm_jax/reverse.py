"""The reverse process p(x_s | x_t): its mean and log-variance per pixel, for every variance type.

p is the Gaussian posterior of the forward process with the network's x_0_hat in place of x_0:

    p(x_s | x_t) = N(from_x_0 x_0_hat + from_x_t x_t, variance)         (Ho et al. 2020, eqs. 6, 7 and 11)

The variance lies between that of q(x_s | x_t, x_0), the smallest, and that of q(x_t | x_s), the largest. Samplers,
losses and whatever codes or scores images by p take both numbers from here.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.config import ScheduleConfig
from ddpm_jax.schedule import alphas_cumprod, broadcast
from ddpm_jax.types import Array, Images

FIXED = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
LEARNED = ("learned", "learned_range")
VARIANCE_TYPES = FIXED + LEARNED
CDFS = ("tanh", "exact")
# Stands for a variance of 0 where its logarithm is needed: that of the step to the clean image, which draws nothing.
LEAST_VARIANCE = 1e-20


class Transition(NamedTuple):
    """The numbers of the posterior q(x_s | x_t, x_0), for x_t = signal_t x_0 + sigma_t eps.

    Attributes:
        from_x_0, from_x_t: weights of x_0 and x_t in the mean.
        smallest: its variance.
        largest: the variance of q(x_t | x_s), which fits data of unit variance.
        fresh: 1 - (ratio_s / ratio_t)^2 with ratio = sigma / signal: the part of x_t's noise that x_s does not have.
    """

    from_x_0: Any
    from_x_t: Any
    smallest: Any
    largest: Any
    fresh: Any


def transition(signal_t: Any, sigma_t: Any, signal_s: Any, sigma_s: Any) -> Transition:
    """Return the numbers of q(x_s | x_t, x_0) for any s less noisy than t.

    Works for variance-preserving and variance-exploding processes, on numbers and on numpy arrays. In terms of
    alpha_bar they are those of `schedule.posterior_coefficients`.

    Args:
        signal_t, sigma_t: of x_t; a signal of 0 is zero terminal SNR.
        signal_s, sigma_s: of x_s; a sigma of 0 is the clean image.

    Example:
        >>> step = transition(0.6, 0.8, 1.0, 0.0)
        >>> step.from_x_0, step.from_x_t, step.smallest
        (1.0, 0.0, 0.0)
    """
    kept = (sigma_s * signal_t / (signal_s * sigma_t)) ** 2
    fresh = 1 - kept
    return Transition(
        from_x_0=signal_s * (1 - kept),
        from_x_t=sigma_s**2 * signal_t / (signal_s * sigma_t**2),
        smallest=sigma_s**2 * fresh,
        largest=sigma_t**2 * fresh,
        fresh=fresh,
    )


def chain(schedule: ScheduleConfig) -> Transition:
    """Return the numbers of every step of the training chain, from t to s = t - 1: arrays of length T.

    Before timestep 0 comes the clean image. The posterior has no width there; its variance is that of timestep 1, as in
    Ho et al.'s code.

    Args:
        schedule: variance-preserving.

    Example:
        >>> chain(ScheduleConfig()).largest[[0, 999]].round(4).tolist()
        [0.0001, 0.02]
    """
    alpha_bar_t = alphas_cumprod(schedule)
    alpha_bar_s = np.append(1.0, alpha_bar_t[:-1])
    steps = transition(*(np.sqrt(power) for power in (alpha_bar_t, 1 - alpha_bar_t, alpha_bar_s, 1 - alpha_bar_s)))
    first = steps.smallest[1:2] if len(alpha_bar_t) > 1 else steps.largest
    return steps._replace(smallest=np.append(first, steps.smallest[1:]))


def log_variance(variance_type: str, smallest: Any, largest: Any, extra: Images | None = None) -> Any:
    """Return the log-variance of p(x_s | x_t).

    Args:
        variance_type: one of VARIANCE_TYPES.
            "fixed_small", "fixed_small_log": `smallest`. "fixed_large", "fixed_large_log": `largest`.
            "learned": the logarithm of `extra`, -inf where that is not positive.
            "learned_range": between the two, by `extra` (Nichol & Dhariwal 2021, eq. 15).
        smallest, largest: log-variances, as those of a `Transition`; numbers, or arrays that multiply images.
        extra: the second half of the network's channels, for learned variances. In "learned_range" -1 stands for
            `smallest` and 1 for `largest`.

    Raises:
        ValueError: a learned variance without `extra`.

    Example:
        >>> log_variance("learned_range", -4.0, -2.0, np.zeros((1, 1, 1, 1), np.float32)).item()
        -3.0
    """
    if variance_type not in LEARNED:
        return largest if variance_type.startswith("fixed_large") else smallest
    if extra is None:
        raise ValueError(
            f"`extra` is None, but a {variance_type!r} variance is the second half of the output's channels: pass that."
        )
    if variance_type == "learned":
        return jnp.log(jnp.maximum(extra, 0))
    share = (extra + 1) / 2
    return share * largest + (1 - share) * smallest


def learned_std(variance_type: str, smallest: Any, largest: Any, extra: Images) -> jax.Array:
    """Return the standard deviation of p(x_s | x_t) for a learned variance; see `log_variance`.

    Example:
        >>> learned_std("learned", 0.0, 0.0, np.full((1, 1, 1, 1), 0.25, np.float32)).item()
        0.5
    """
    if variance_type == "learned":
        # in the last row the noise has weight 0, and the square root of a negative variance would make it 0 * NaN
        return jnp.sqrt(jnp.maximum(extra, 0))
    return jnp.exp(0.5 * log_variance(variance_type, smallest, largest, extra))


def log_variances(schedule: ScheduleConfig, variance_type: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest log-variance of every step of the training chain: two arrays of length T.

    At timestep 0 the largest is beta_0 for a learned range, and the smallest for a fixed variance, as in Ho et al.'s
    code ("fixedlarge").

    Example:
        >>> smallest, largest = log_variances(ScheduleConfig(), "fixed_large")
        >>> bool(smallest[0] == largest[0]), np.exp(largest[999]).round(4).item()
        (True, 0.02)
    """
    steps = chain(schedule)
    smallest, largest = np.log(steps.smallest), np.log(steps.largest)
    if variance_type != "learned_range":
        largest = np.append(smallest[:1], largest[1:])
    return smallest, largest


def p_step(
    schedule: ScheduleConfig, variance_type: str, x_t: Images, t: Array, x_0_hat: Images, extra: Images | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the mean and log-variance of p(x_s | x_t) on the training chain, s = t - 1.

    Args:
        schedule: variance-preserving.
        variance_type: one of VARIANCE_TYPES.
        x_t: noisy images [b, h, w, c].
        t: [b] integer timesteps.
        x_0_hat: [b, h, w, c] the predicted clean images.
        extra: [b, h, w, c] the second half of the network's channels, for learned variances.

    Returns:
        The mean [b, h, w, c], and the log-variance, of the same shape where it is learned, else [b, 1, 1, 1].
        At t = 0 a fixed variance is that of timestep 1; a learned range ends at beta_0 there.

    Example:
        >>> image, t = jnp.zeros((1, 2, 2, 1)), jnp.array([999])
        >>> mean, log_var = p_step(ScheduleConfig(), "fixed_large", image, t, image)
        >>> mean.shape, round(float(jnp.exp(log_var[0, 0, 0, 0])), 4)
        ((1, 2, 2, 1), 0.02)
    """
    steps = chain(schedule)
    smallest, largest = log_variances(schedule, variance_type)

    def at_t(numbers: np.ndarray) -> jax.Array:
        return broadcast(jnp.asarray(numbers, x_t.dtype)[t])

    mean = at_t(steps.from_x_0) * x_0_hat + at_t(steps.from_x_t) * x_t
    return mean, log_variance(variance_type, at_t(smallest), at_t(largest), extra)


def log_probability_of_levels(x_0: Array, mean: Any, log_variance: Any, cdf: str = "tanh") -> jax.Array:
    """Return the log of a Gaussian's mass on the bin of x_0, one of 256 in [-1, 1]; the outer two are open.

    (Ho et al. 2020, eq. 13.)

    Args:
        x_0: values k / 127.5 - 1; their bins reach 1/255 to either side.
        mean, log_variance: of p(x_0 | x_t), as from `p_step`.
        cdf: of the normal distribution. "tanh": the approximation (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2 that
            Ho et al.'s numbers were computed with, and a mass of at least 1e-12. "exact": the function itself, without
            a least mass.

    Both keep their digits where a level is improbable; Ho et al.'s float32 rounds masses to multiples of 3e-8 there.

    Example:
        >>> levels = np.arange(256) / 127.5 - 1
        >>> [round(float(jnp.exp(log_probability_of_levels(levels, 0.3, -4.0, cdf)).sum()), 4) for cdf in CDFS]
        [1.0, 1.0]
    """
    log_cdf = jax.scipy.special.log_ndtr if cdf == "exact" else _log_tanh_cdf
    scale = jnp.exp(-log_variance / 2)
    upper, lower = (x_0 - mean + 1 / 255) * scale, (x_0 - mean - 1 / 255) * scale
    # the mass between two points is that between their negatives; below 0 the distribution has more digits
    flipped = upper + lower > 0
    log_high, log_low = log_cdf(jnp.where(flipped, -lower, upper)), log_cdf(jnp.where(flipped, -upper, lower))
    inside = log_high + jnp.log(-jnp.expm1(jnp.minimum(log_low - log_high, -1e-30)))
    outside = log_cdf(jnp.where(x_0 < 0, upper, -lower))
    log_mass = jnp.where(jnp.abs(x_0) > 0.999, outside, inside)
    return log_mass if cdf == "exact" else jnp.maximum(log_mass, math.log(1e-12))


def _log_tanh_cdf(x: jax.Array) -> jax.Array:
    """Return log((1 + tanh(y)) / 2), y = sqrt(2/pi) (x + 0.044715 x^3); that is log sigmoid(2 y)."""
    return jax.nn.log_sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
