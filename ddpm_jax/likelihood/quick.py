"""The variational bound from a few evaluations of the network: unbiased, with its standard error.

    sum_{t > 0} L_t = E_{t ~ p}[L_t / p(t)]

p is to be nearly proportional to L_t (Nichol & Dhariwal 2021, section 3.3, where it is sqrt(E[L_t^2])). L_T and L_0 are
always evaluated. Draws are stratified: p's mass is cut into equal parts, and two timesteps are drawn from each, whose
difference tells the error.
"""

from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.core
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.config import ScheduleConfig
from ddpm_jax.likelihood.bound import Decoder, VarianceType, call_terms, rows_of_bound
from ddpm_jax.params import Params
from ddpm_jax.random_keys import image_keys, image_numbers
from ddpm_jax.schedule import alphas_cumprod
from ddpm_jax.types import Array, Images, Labels, Number, RandomKey
from ddpm_jax.validation import as_integer, check

UNIFORM_SHARE = 0.1  # of the draws: no timestep is left out, and no L_t / p(t) is large


class Estimate(NamedTuple):
    """An estimate of the bound of each image, in bits/dim.

    Attributes:
        total: [b] unbiased.
        standard_error: [b] that of the draws. Errors of different images are independent.
        num_evals: evaluations of the network for each image.
    """

    total: Array
    standard_error: Array
    num_evals: int


def estimate_bits_per_dim(
    params: Params,
    key: RandomKey,
    x_0: Images,
    class_labels: Labels = None,
    *,
    num_draws: SupportsIndex = 32,
    proposal: Any = None,
    variance_type: VarianceType | None = None,
    clip: Number | None = 1.0,
    decoder: Decoder = "tanh",
    first_index: SupportsIndex = 0,
    mesh: Mesh | None = None,
) -> Estimate:
    """Estimate `bits_per_dim` from num_draws + 1 evaluations of the network instead of T.

    Each image draws its own timesteps, which depend on (key, first_index + i) alone. The mean over a set has the error
    std(total) / sqrt(b), which holds that of the draws and that of the images.

    Args:
        params, key, x_0, class_labels, variance_type, clip, decoder, first_index, mesh: as in `bits_per_dim`. The key
            is no tracer: this function does not go inside jit.
        num_draws: even.
        proposal: [T] numbers above 0, in whose proportion the timesteps above 0 are drawn; `draw_probabilities` of the
            terms of other images are nearly the best. None: those of Gaussian data.

    Raises:
        TypeError, ValueError: as `bits_per_dim`; an odd num_draws, another length or sign of `proposal`.

    Example:
        >>> x_0 = np.full((2, 8, 8, 1), -1.0, np.float32)
        >>> found = estimate_bits_per_dim(params, key, x_0, num_draws=4)  # doctest: +SKIP
        >>> found.total.shape, found.num_evals  # doctest: +SKIP
        ((2,), 5)
    """
    num_draws = as_integer("num_draws", num_draws)
    check(num_draws >= 2 and num_draws % 2 == 0, f"`num_draws` must be even and at least 2, not {num_draws}.")
    rows = rows_of_bound(params, variance_type)
    count, batch_size = len(rows.t), len(x_0)
    check(count > 1, "A schedule of one timestep leaves nothing to draw: take `bits_per_dim`.")
    probabilities = _probabilities(params.config.schedule, proposal)
    if isinstance(key, jax.core.Tracer):
        raise TypeError("`key` is a tracer, but timesteps are drawn outside of programs: call this outside of jit.")
    # noise has the numbers count .. count + num_draws - 1; the next one is free
    keys = image_keys(key, image_numbers(first_index, batch_size))
    draw = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, count + num_draws), (num_draws,)))
    strata = np.repeat(np.arange(num_draws // 2), 2)
    quantiles = (strata + np.asarray(draw(keys), np.float64)) / (num_draws // 2)  # [b, num_draws]
    edges = np.cumsum(probabilities)
    t = np.minimum(np.searchsorted(edges / edges[-1], quantiles, side="right"), count - 1)
    all_t = np.concatenate([np.zeros((1, batch_size), int), t.T])
    found = call_terms(
        *(params, key, x_0, class_labels, rows.at(all_t, np.append(0, count + np.arange(num_draws)))),
        variance_type=variance_type,
        clip=clip,
        decoder=decoder,
        first_index=first_index,
        mesh=mesh,
    )
    terms = np.asarray(found.terms, np.float64)
    values = (terms[:, 1:] / probabilities[t]).reshape(batch_size, -1, 2)
    total = np.asarray(found.prior, np.float64) + terms[:, 0] + values.mean((1, 2))
    variance = (np.diff(values)[..., 0] ** 2 / 4).sum(1) / values.shape[1] ** 2
    return Estimate(total, np.sqrt(variance), num_draws + 1)


def draw_probabilities(terms: Array) -> np.ndarray:
    """Return the best probabilities of timesteps for some images: sqrt(mean L_t^2), mixed with a tenth of uniform ones.

    Args:
        terms: [n, T] as those of `bound_terms`, of images like those to be estimated.

    Returns:
        [T], of sum 1; 0 at timestep 0, which is always evaluated.

    Example:
        >>> draw_probabilities(np.array([[9.0, 3.0, 1.0]])).round(3).tolist()
        [0.0, 0.725, 0.275]
    """
    terms = np.asarray(terms, np.float64)
    check(terms.ndim == 2 and terms.shape[1] > 1, f"`terms` has shape {terms.shape}; it must be [n, T] with T above 1.")
    return _mixed(np.sqrt((terms**2).mean(0)))


def _mixed(sizes: np.ndarray) -> np.ndarray:
    shares = sizes[1:] / sizes[1:].sum()
    return np.append(0.0, (1 - UNIFORM_SHARE) * shares + UNIFORM_SHARE / len(shares))


def _probabilities(schedule: ScheduleConfig, proposal: Any) -> np.ndarray:
    count = schedule.num_train_timesteps
    if proposal is None:
        return _mixed(_gaussian_terms(schedule))
    given = np.asarray(proposal, np.float64)
    good = given.shape == (count,) and np.isfinite(given).all() and (given[1:] > 0).all()
    check(
        good,
        f"`proposal` must be {count} finite numbers, those after the first above 0; it has shape {given.shape}. "
        "`draw_probabilities` returns such numbers.",
    )
    return np.append(0.0, given[1:] / given[1:].sum())


def _gaussian_terms(schedule: ScheduleConfig) -> np.ndarray:
    """Return L_t up to a factor, for Gaussian data whose variances are spread as those of photographs.

    L_t = (SNR_s - SNR_t) / 2 E|x_0 - x_0_hat|^2, which is the mean of variance / (1 + variance SNR_t): over variances
    from 1e-5 to 1, evenly in the logarithm (the spectrum of photographs falls as a power).
    """
    alpha_bar = np.maximum(alphas_cumprod(schedule), 1e-12)
    snr = alpha_bar / (1 - alpha_bar)
    variances = np.geomspace(1e-5, 1, 64)[:, None]
    error = (variances / (1 + variances * snr)).mean(0)
    return np.append(0.0, (snr[:-1] - snr[1:]) * error[1:])
