"""Models whose sampling results are known: diffusers' dummy, a nonlinear one, and the exact networks of a Gaussian and
of a mixture of two.

Everything is NCHW outside, as diffusers' numbers are. Where the golden numbers come from:

* The dummy: diffusers' tests/schedulers/ at version 0.42.1 (`dummy_model`, `dummy_sample_deter`, `dummy_noise_deter` of
  test_schedulers.py), T = 1000, betas 1e-4 to 0.02, linear. The tests there give the sum and the mean of |x| after a
  loop, to 1e-2 and 1e-3; rows with more digits were measured by running the same loops with 0.42.1. Without a seed the
  noise of a loop is zero, with one it is `torch.Generator().manual_seed(seed)`'s, in NCHW.
* The nonlinear one, from 3 dummy_start() - 1: measured with diffusers' schedulers in the same way. It reaches clipping
  and thresholding, which the dummy does not. Rows without clipping end at large numbers and are ill-conditioned.
* The Gaussian: diffusers' schedulers with its exact eps, from `gaussian_start`, and, without diffusers at all, the
  closed form x_0 = mean + std (x_T - sqrt(alpha_bar_T) mean) / sqrt(alpha_bar_T std^2 + 1 - alpha_bar_T) of the flow.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate, stats
from torch_random import TorchGenerator

from ddpm_jax import samplers
from ddpm_jax.config import ScheduleConfig
from ddpm_jax.samplers import DDPM
from ddpm_jax.samplers.grids import Process
from ddpm_jax.schedule import alphas_cumprod, betas

V = ScheduleConfig(prediction_type="v_prediction")
X0 = ScheduleConfig(prediction_type="sample")
EPS = ScheduleConfig()
VE = ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0, num_train_timesteps=1000)
RATIO_SPACINGS = ("logsnr", "exponential", "karras", "beta")
SPACINGS = ("leading", "linspace", "trailing", "quadratic", *RATIO_SPACINGS)


def own_schedule(name):
    """A schedule that a sampler is for."""
    return VE if name == "score-sde-ve" else EPS


def nhwc(array):
    return np.ascontiguousarray(np.asarray(array, np.float32).transpose(0, 2, 3, 1))


def dummy_start():
    """diffusers' dummy_sample_deter, NCHW [4, 3, 8, 8]."""
    return (np.arange(768, dtype=np.float32).reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2)


def known_noise():
    return (np.arange(768, dtype=np.float32)[::-1].reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2)


def dummy(x, t):
    """diffusers' dummy_model."""
    return x * t / (t + 1)


def nonlinear(x, t):
    return jnp.sin(3 * x) + 0.3 * jnp.cos(x * t / 100)


@functools.partial(jax.jit, static_argnums=0)
def run_jitted(net_fn, table, x_T, key, noise=None):
    """`samplers.run`, compiled once for all tables of a shape."""
    return samplers.run(net_fn, table, x_T, key, noise=noise)


def run_table(net_fn, table, x_T, key=None, noise=None):
    """`samplers.run` of a table that is an argument, padded to a power of two: fewer programs to compile."""
    x_T, key = jnp.asarray(x_T), jax.random.key(0) if key is None else key
    table = table.padded(2 ** (table.num_rows - 1).bit_length())
    if noise is not None:
        extra = table.num_rows - len(noise)
        noise = np.concatenate([noise, np.zeros((extra, *noise.shape[1:]))]).astype(x_T.dtype)
    return np.asarray(run_jitted(net_fn, table, x_T, key, noise))


def run(sampler, schedule=EPS, model=dummy, start=None, seed=None, first_row=0, told=None):
    """Run a sampler in NCHW terms; seed None means no noise. Returns NCHW.

    `told` rounds the timesteps that the network is told: diffusers rounds or cuts those of Karras's grid and its kin.
    """
    table = sampler.table(schedule)
    if told is not None:
        table = dataclasses.replace(table, t=told(table.t))
    start = dummy_start() if start is None else start
    noise = np.zeros((table.num_rows, *start.shape), np.float32)
    if seed is not None:
        generator = TorchGenerator(seed)
        # diffusers draws in every step with t > 0 (DDPM), or at the end of every step (the others)
        drawn = table.t > 0 if isinstance(sampler, DDPM) else table.ends_step
        for row in np.flatnonzero(drawn):
            if row >= first_row:
                noise[row] = generator.randn(*start.shape)
    table, noise = table.part(first_row), noise[first_row:]
    noise = np.stack([nhwc(draw) for draw in noise])
    return run_table(model, table, nhwc(start), noise=noise).transpose(0, 3, 1, 2)


@functools.cache
def gaussian(schedule, mean=0.3, std=0.25):
    """The exact network for data N(mean, std^2 I), of whichever prediction type, at fractional timesteps too."""
    alpha_bar = jnp.asarray(alphas_cumprod(schedule))

    def net_fn(x, t):
        alpha_bar_t = jnp.interp(t, jnp.arange(len(alpha_bar)), alpha_bar).astype(x.dtype)
        variance = alpha_bar_t * std**2 + 1 - alpha_bar_t
        eps = jnp.sqrt(1 - alpha_bar_t) / variance * (x - jnp.sqrt(alpha_bar_t) * mean)
        x_0 = mean + jnp.sqrt(alpha_bar_t) * std**2 / variance * (x - jnp.sqrt(alpha_bar_t) * mean)
        v = jnp.sqrt(alpha_bar_t) * eps - jnp.sqrt(1 - alpha_bar_t) * x_0
        return {"epsilon": eps, "sample": x_0, "v_prediction": v}[schedule.prediction_type]

    return net_fn


def gaussian_start():
    return (1.2 * np.sin(0.7 * np.arange(768))).astype(np.float32).reshape(4, 3, 8, 8)


def log_linear_levels(schedule):
    """signal and sigma as functions of fractional timesteps, log-linear in t as the samplers' grids of ratios are."""
    process = Process.of(schedule)
    log_ratios = jnp.asarray(np.log(process.sigmas / process.signals))

    def at(t, dtype):
        ratio = jnp.exp(jnp.interp(t, jnp.arange(len(log_ratios)), log_ratios)).astype(dtype)
        signal = 1 / jnp.sqrt(1 + ratio**2)
        return signal, ratio * signal

    return at


@functools.cache
def exact(schedule):
    """The exact eps, or score, for data N(0.3, 0.25^2)."""
    levels = log_linear_levels(schedule)

    def net_fn(x, t):
        if schedule.kind == "ve":
            return (0.3 - x) / (0.25**2 + t**2)  # the score
        signal, sigma = levels(t, x.dtype)
        return sigma / (signal**2 * 0.25**2 + sigma**2) * (x - 0.3 * signal)

    return net_fn


class Mixture(NamedTuple):
    """Data of two Gaussians, pixel by pixel: what one Gaussian cannot show, a posterior mean that is not linear."""

    weights: tuple = (0.4, 0.6)
    means: tuple = (-0.5, 0.4)
    stds: tuple = (0.25, 0.15)

    def _components(self, x, signal, sigma, xp):
        """Each component's probability given x_t, and the score of its own marginal."""
        columns = [xp.asarray(numbers, dtype=x.dtype) for numbers in self]
        weights, means, stds = (column.reshape(2, *[1] * x.ndim) for column in columns)
        variance = signal**2 * stds**2 + sigma**2
        score = (signal * means - x[None]) / variance
        log_density = xp.log(weights) + score * (x[None] - signal * means) / 2 - xp.log(variance) / 2
        share = xp.exp(log_density - log_density.max(0, keepdims=True))
        return share / share.sum(0, keepdims=True), score

    def score(self, x, signal, sigma, xp=jnp):
        """The gradient of log q(x_t)."""
        share, score = self._components(x, signal, sigma, xp)
        return (share * score).sum(0)

    def x_0_hat(self, x, signal, sigma, xp=jnp):
        """E[x_0 | x_t], by Tweedie's formula."""
        return (x + sigma**2 * self.score(x, signal, sigma, xp)) / signal

    def moments(self):
        """Mean, standard deviation and third central moment of the data."""
        weights, means, stds = (np.asarray(numbers) for numbers in self)
        mean = weights @ means
        away = means - mean
        return mean, np.sqrt(weights @ (stds**2 + away**2)), weights @ (away**3 + 3 * away * stds**2)


@functools.cache
def mixture(schedule):
    """The exact eps, or score, for data of a `Mixture`."""
    levels = log_linear_levels(schedule)

    def net_fn(x, t):
        if schedule.kind == "ve":
            return Mixture().score(x, 1.0, t.astype(x.dtype))
        signal, sigma = levels(t, x.dtype)
        return -sigma * Mixture().score(x, signal, sigma)

    return net_fn


def mixture_flow(x, start, end):
    """The exact flow of a `Mixture` from one level (signal, sigma) to another, by scipy's integrator of order 8.

    dy / dr = eps_hat for y = x / signal, r = sigma / signal (Karras et al. 2022, eq. 4), in log r.
    """
    (signal, sigma), (last_signal, last_sigma) = start, end

    def slope(log_r, y):
        r = np.exp(log_r)
        signal = 1 / np.sqrt(1 + r**2)
        return -(r**2) * signal * Mixture().score(signal * y, signal, r * signal, np)

    span = np.log(sigma / signal), np.log(last_sigma / last_signal)
    solved = integrate.solve_ivp(slope, span, np.ravel(x) / signal, "DOP853", rtol=1e-12, atol=1e-13)
    return (last_signal * solved.y[:, -1]).reshape(np.shape(x))


def on_levels(x):
    """Round images to the 256 levels of [-1, 1], as `data_from_bytes` returns them."""
    levels = np.clip(np.round((x + 1) * 127.5), 0, 255)
    return (levels / 127.5 - 1).astype(np.float32)


def ho_tables(schedule):
    """Betas and their kin as Ho et al.'s class has them, in float64."""
    table = betas(schedule)
    alpha_bar = np.cumprod(1 - table)
    before = np.append(1.0, alpha_bar[:-1])
    posterior = table * (1 - before) / (1 - alpha_bar)
    return table, alpha_bar, before, posterior


def even_log_snr(count, start=9.0, end=-9.0, **knobs):
    """A schedule whose log-SNR falls evenly."""
    alpha_bar = 1 / (1 + np.exp(-np.linspace(start, end, count)))
    table = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    return ScheduleConfig(num_train_timesteps=count, trained_betas=tuple(table.tolist()), **knobs)


class ExactMixture:
    """The exact network for a mixture of Gaussians, and the expected terms of its bound by quadrature."""

    def __init__(self, schedule, mixture):
        self.schedule, self.mixture = schedule, mixture
        self.levels = log_linear_levels(schedule)
        _, self.alpha_bar, self.before, self.posterior = ho_tables(schedule)

    def __call__(self, x, t):
        return jax.vmap(self.of_image)(x, t[:, 0, 0, 0])

    def of_image(self, x, t):
        signal, sigma = self.levels(t, x.dtype)
        score = self.mixture.score(x, signal, sigma)
        eps, x_0 = -sigma * score, (x + sigma**2 * score) / signal
        v = signal * eps - sigma * x_0
        return {"epsilon": eps, "sample": x_0, "v_prediction": v}[self.schedule.prediction_type]

    def draw(self, shape, seed=0):
        generator = np.random.default_rng(seed)
        which = (generator.uniform(size=shape) > self.mixture.weights[0]).astype(int)
        means, stds = np.asarray(self.mixture.means), np.asarray(self.mixture.stds)
        return on_levels(means[which] + stds[which] * generator.standard_normal(shape))

    def marginal(self, t):
        """The density of x_t, at points for the rectangle rule."""
        signal, sigma = np.sqrt(self.alpha_bar[t]), np.sqrt(1 - self.alpha_bar[t])
        weights, means, stds = (np.asarray(numbers)[:, None] for numbers in self.mixture)
        x = np.linspace(-7, 7, 20001)
        return x, (weights * stats.norm.pdf(x, signal * means, np.sqrt(signal**2 * stds**2 + sigma**2))).sum(0)

    def information(self):
        """I(x_0; x_t) in bits a value, at t = 0: the entropy of x_t less that of its noise."""
        x, density = self.marginal(0)
        logs = np.log(np.maximum(density, 1e-300))
        return (
            (-density * logs).sum() * (x[1] - x[0]) - stats.norm(0, np.sqrt(1 - self.alpha_bar[0])).entropy()
        ) / np.log(2)

    def mean_square_error(self, t):
        """E (x_0 - x_0_hat)^2 = E x_0^2 - E x_0_hat^2."""
        signal, sigma = np.sqrt(self.alpha_bar[t]), np.sqrt(1 - self.alpha_bar[t])
        weights, means, stds = (np.asarray(numbers) for numbers in self.mixture)
        x, density = self.marginal(t)
        x_0_hat = self.mixture.x_0_hat(x, signal, sigma, np)
        return (weights * (means**2 + stds**2)).sum() - (density * x_0_hat**2).sum() * (x[1] - x[0])

    def terms(self):
        """Expected L_t for t > 0 in bits/dim: (SNR_s - SNR_t) / 2 times the mean square error."""
        snr = self.alpha_bar / (1 - self.alpha_bar)
        errors = np.array([self.mean_square_error(t) for t in range(1, len(snr))])
        return (snr[:-1] - snr[1:]) / 2 * errors / np.log(2)

    def decoder(self):
        """Expected L_0: the error x_0 - x_0_hat is as good as Gaussian where the noise is far smaller than the data."""
        error, std = np.sqrt(self.mean_square_error(0)), np.sqrt(self.posterior[1])
        z = -np.abs(np.linspace(-8, 8, 4001))  # the mass of a bin around z is that around -z
        high, low = (stats.norm.logcdf((error * z + side) / std) for side in (1 / 255, -1 / 255))
        nats = -(high + np.log1p(-np.exp(low - high)))
        return (stats.norm.pdf(z) * nats).sum() * 16 / 4000 / np.log(2)

    def entropy(self):
        """Bits of a level: the sum over all 256 of -p log2 p."""
        edges = np.arange(1, 256) / 127.5 - 1 - 1 / 255
        weights, means, stds = (np.asarray(numbers)[:, None] for numbers in self.mixture)
        cdf = np.concatenate([[0], (weights * stats.norm.cdf(edges, means, stds)).sum(0), [1]])
        mass = np.diff(cdf)
        return -(mass * np.log2(np.maximum(mass, 1e-300))).sum()


NARROW = Mixture((0.5, 0.5), (0.1, 0.1), (0.2, 0.2))  # one Gaussian
