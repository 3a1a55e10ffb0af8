"""The forward process q and the algebra between x_0, eps and v.

The names, here and in the whole package:

    x_0, x_t, x_T        clean image in [-1, 1], noisy image at t, pure noise
    eps, v               the true noise in x_t, the true velocity; x_0_hat, eps_hat are predictions
    noise                fresh Gaussian noise of a sampler's step
    t                    index 0 .. T-1 into the tables; 0 is the least noisy (the papers' t - 1); s is the next, less
                         noisy index
    betas, alphas_cumprod   the tables; alpha_bar_t is an entry of the second
    sigma_t              sqrt(1 - alpha_bar_t)
    lambda_t             log(sqrt(alpha_bar_t) / sigma_t), half the log of the signal-to-noise ratio

Tables are numpy float64. For diffusers' beta schedules they hold exactly its float32 values, since the published
checkpoints were trained with them.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.config import ORIGINAL_BETA_SCHEDULES, ScheduleConfig
from ddpm_jax.types import Array, Coefficient, Images


def betas(config: ScheduleConfig) -> np.ndarray:
    """Return the T noise variances beta_t of q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I).

    (Ho et al. 2020, eq. 2.) The schedules are linear (Ho et al., section 4), scaled_linear (linear in sqrt(beta)),
    squaredcos_cap_v2 (Nichol & Dhariwal 2021, eq. 17), sigmoid (GeoDiff), laplace (Hang & Gu 2024), exp (alpha_bar
    falls as e^(-12 t / T); Heun's in diffusers), and those of hojonathanho/diffusion: quad, const, warmup10, warmup50,
    jsd. `rescale_betas_zero_snr` rescales the table to zero signal at the end (Lin et al. 2023, algorithm 1).

    The table equals `DDPMScheduler.betas` of diffusers to the last bit. The exceptions are sigmoid and zero-SNR
    rescaling, where torch's own float32 functions differ by a unit in the last place at some timesteps.

    Raises:
        ValueError: the schedule is not variance-preserving, so it has no betas.

    Example:
        >>> [round(float(beta), 6) for beta in betas(ScheduleConfig())[[0, 999]]]
        [0.0001, 0.02]
    """
    if config.kind != "vp":
        names = {"ve": "A variance-exploding schedule", "other": "A schedule that is not variance-preserving"}
        raise ValueError(f"{names[config.kind]} (`kind` {config.kind!r}) has no betas. Only `kind` 'vp' has.")
    table = _rule(config)
    if config.rescale_betas_zero_snr:
        table = _rescaled_to_zero_snr(table)
    return table.astype(np.float64)


def alphas_cumprod(config: ScheduleConfig) -> np.ndarray:
    """Return alpha_bar_t = prod_{r <= t} (1 - beta_r), the signal power left at each of the T timesteps.

    (Ho et al. 2020, eq. 4.) It equals `DDPMScheduler.alphas_cumprod` of diffusers, whose running product is
    accumulated in float64 and rounded to float32 at each entry.

    Example:
        >>> float(alphas_cumprod(ScheduleConfig())[999].round(9))
        4.0358e-05
    """
    table = betas(config)
    if config.trained_betas is None and config.beta_schedule in ORIGINAL_BETA_SCHEDULES:
        return np.cumprod(1 - table)
    return _cumprod_float32(table.astype(np.float32)).astype(np.float64)


def _cumprod_float32(table: np.ndarray) -> np.ndarray:
    alphas = np.float32(1) - table
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)


def _rule(config: ScheduleConfig) -> np.ndarray:
    start, end, steps = config.beta_start, config.beta_end, config.num_train_timesteps
    name = config.beta_schedule
    if config.trained_betas is not None:
        return np.asarray(config.trained_betas, np.float32)
    if name == "linear":
        return _linspace_float32(start, end, steps)
    if name == "scaled_linear":
        return _linspace_float32(start**0.5, end**0.5, steps) ** 2
    if name == "squaredcos_cap_v2":
        return _from_alpha_bar(lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2, steps)
    if name == "sigmoid":
        ramp = _linspace_float32(-6.0, 6.0, steps)
        sigmoid = 1 / (1 + np.exp(-ramp))
        return sigmoid * np.float32(end - start) + np.float32(start)
    if name == "laplace":
        return _from_alpha_bar(_laplace_signal, steps)
    if name == "exp":
        return _from_alpha_bar(lambda u: math.exp(-12 * u), steps)
    if name == "quad":
        return np.linspace(start**0.5, end**0.5, steps) ** 2
    if name in ("warmup10", "warmup50"):
        table = np.full(steps, end)
        rising = int(steps * {"warmup10": 0.1, "warmup50": 0.5}[name])
        table[:rising] = np.linspace(start, end, rising)
        return table
    if name == "const":
        return np.full(steps, end)
    return 1 / np.linspace(steps, 1, steps)  # jsd


def _linspace_float32(start: float, end: float, steps: int) -> np.ndarray:
    """Return torch.linspace in float32, to the bit: counted from the nearer end, with a step rounded to float32."""
    if steps == 1:
        return np.asarray([start], np.float32)
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(steps - 1))
    index = np.arange(steps)
    rising = np.float64(first) + step * index
    falling = np.float64(last) - step * (steps - 1 - index)
    return np.where(index < steps // 2, rising, falling).astype(np.float32)


def _from_alpha_bar(signal, steps: int) -> np.ndarray:
    ratios = [signal((i + 1) / steps) / signal(i / steps) for i in range(steps)]
    return np.asarray([min(1 - ratio, 0.999) for ratio in ratios], np.float32)


def _laplace_signal(u: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6)
    snr = math.exp(log_snr)
    return math.sqrt(snr / (1 + snr))


def _rescaled_to_zero_snr(table: np.ndarray) -> np.ndarray:
    signal = np.sqrt(_cumprod_float32(table.astype(np.float32)))
    first, last = signal[0], signal[-1]
    signal = (signal - last) * (first / (first - last))
    alpha_bar = signal**2
    alphas = np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return np.float32(1) - alphas


def q_sample(x_0: Images, alpha_bar_t: Coefficient, eps: Images) -> Images:
    """Add noise to clean images: draw x_t from q(x_t | x_0).

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps          (Ho et al. 2020, eq. 4)

    Args:
        x_0: clean images, NHWC in [-1, 1].
        alpha_bar_t: signal power left at each image's timestep, in [0, 1]; an entry of `alphas_cumprod`.
        eps: the standard normal noise to add.

    Returns:
        x_t, of the shape of x_0.

    In float32 it equals `DDPMScheduler.add_noise` of diffusers. In half precision the coefficients stay float32 here,
    while diffusers rounds them.

    Example:
        >>> q_sample(np.ones((1, 1, 1, 1), np.float32), 0.64, np.ones((1, 1, 1, 1), np.float32)).item()
        1.4...
    """
    alpha_bar_t = broadcast(alpha_bar_t)
    return jnp.sqrt(alpha_bar_t) * x_0 + jnp.sqrt(1 - alpha_bar_t) * eps


def q_posterior(x_0: Images, x_t: Images, alpha_bar_t: Coefficient, alpha_bar_s: Coefficient) -> tuple[Images, Array]:
    """Return the mean and variance of q(x_s | x_t, x_0), for any s less noisy than t.

    With alpha = alpha_bar_t / alpha_bar_s and beta = 1 - alpha   (Ho et al. 2020, eqs. 6 and 7):

    mean = sqrt(alpha_bar_s) beta / (1 - alpha_bar_t) x_0 + sqrt(alpha) (1 - alpha_bar_s) / (1 - alpha_bar_t) x_t
    variance = (1 - alpha_bar_s) / (1 - alpha_bar_t) beta

    Args:
        x_0, x_t: images, NHWC.
        alpha_bar_t, alpha_bar_s: signal power at t and s; 1 means the clean image.

    Returns:
        The mean, of the shape of x_t, and the variance, a scalar or one for each image.

    Example:
        >>> image = np.ones((1, 1, 1, 1), np.float32)
        >>> mean, variance = q_posterior(image, image, 0.5, 1.0)
        >>> mean.item(), float(variance)
        (1.0, 0.0)
    """
    from_x_0, from_x_t, variance = posterior_coefficients(jnp.asarray(alpha_bar_t), jnp.asarray(alpha_bar_s))
    return broadcast(from_x_0) * x_0 + broadcast(from_x_t) * x_t, variance


def posterior_coefficients(alpha_bar_t, alpha_bar_s):
    """Return the weights of x_0 and x_t in the mean of q(x_s | x_t, x_0), and its variance."""
    alpha = alpha_bar_t / alpha_bar_s
    from_x_0 = alpha_bar_s**0.5 * (1 - alpha) / (1 - alpha_bar_t)
    from_x_t = alpha**0.5 * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    variance = (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha)
    return from_x_0, from_x_t, variance


def x_0_from_eps(x_t: Images, alpha_bar_t: Coefficient, eps: Images) -> Images:
    """Return x_0 = (x_t - sigma_t eps) / sqrt(alpha_bar_t)   (Ho et al. 2020, below eq. 9).

    Example:
        >>> x_0_from_eps(np.ones((1, 1, 1, 1), np.float32), 1.0, np.ones((1, 1, 1, 1), np.float32)).item()
        1.0
    """
    alpha_bar_t = broadcast(alpha_bar_t)
    return (x_t - jnp.sqrt(1 - alpha_bar_t) * eps) / jnp.sqrt(alpha_bar_t)


def eps_from_x_0(x_t: Images, alpha_bar_t: Coefficient, x_0: Images) -> Images:
    """Return eps = (x_t - sqrt(alpha_bar_t) x_0) / sigma_t, the inverse of `x_0_from_eps`.

    Example:
        >>> eps_from_x_0(np.ones((1, 1, 1, 1), np.float32), 0.0, np.ones((1, 1, 1, 1), np.float32)).item()
        1.0
    """
    alpha_bar_t = broadcast(alpha_bar_t)
    return (x_t - jnp.sqrt(alpha_bar_t) * x_0) / jnp.sqrt(1 - alpha_bar_t)


def v_from_x_0_eps(x_0: Images, alpha_bar_t: Coefficient, eps: Images) -> Images:
    """Return the velocity v = sqrt(alpha_bar_t) eps - sigma_t x_0   (Salimans & Ho 2022, appendix D).

    Same as `DDPMScheduler.get_velocity` of diffusers.

    Example:
        >>> v_from_x_0_eps(np.ones((1, 1, 1, 1), np.float32), 1.0, np.ones((1, 1, 1, 1), np.float32)).item()
        1.0
    """
    alpha_bar_t = broadcast(alpha_bar_t)
    return jnp.sqrt(alpha_bar_t) * eps - jnp.sqrt(1 - alpha_bar_t) * x_0


def prediction_coefficients(prediction_type: str, alpha_bar_t):
    """Return (a, b, c, d) with x_0_hat = a x_t + b out and eps_hat = c x_t + d out for a network's output.

    Predictions of x_0 and v do not pass through eps, which would be 0/0 at zero signal. Numbers, numpy arrays and jax
    arrays are accepted. Coefficients are infinite at alpha_bar_t = 0 for "epsilon" and at alpha_bar_t = 1 for
    "sample"; callers refuse such grids.

    Example:
        >>> prediction_coefficients("v_prediction", np.float64(0.0))
        (np.float64(0.0), np.float64(-1.0), np.float64(1.0), np.float64(0.0))
    """
    signal, sigma_t = alpha_bar_t**0.5, (1 - alpha_bar_t) ** 0.5
    zero, one = 0 * signal, 0 * signal + 1
    if prediction_type == "epsilon":
        return 1 / signal, -sigma_t / signal, zero, one
    if prediction_type == "sample":
        return zero, one, 1 / sigma_t, -signal / sigma_t
    return signal, -sigma_t, sigma_t, signal


def output_coefficients(config: ScheduleConfig, level: Any):
    """Return (a, b, c, d) as `prediction_coefficients`, for networks of any forward process.

    The output of a variance-exploding network is the score, -eps / sigma (Song et al. 2021).

    Args:
        config: the schedule.
        level: alpha_bar_t for kind "vp", sigma for kind "ve".

    Example:
        >>> ve = ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0)
        >>> output_coefficients(ve, 3.0)
        (1.0, 9.0, 0.0, -3.0)
    """
    if config.kind == "ve":
        return 0 * level + 1, level**2, 0 * level, -level
    return prediction_coefficients(config.prediction_type, level)


def log_snr(alpha_bar_t):
    """Return 2 lambda_t = log(alpha_bar_t / (1 - alpha_bar_t)), the log of the signal-to-noise ratio.

    Example:
        >>> float(log_snr(np.float64(0.5)))
        0.0
    """
    return np.log(alpha_bar_t) - np.log1p(-alpha_bar_t)


def broadcast(coefficient: Coefficient) -> jax.Array:
    """Shape a coefficient, one for all images or one for each, so that it multiplies NHWC images."""
    coefficient = jnp.asarray(coefficient)
    return coefficient[:, None, None, None] if coefficient.ndim else coefficient
