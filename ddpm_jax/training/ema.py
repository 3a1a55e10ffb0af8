"""Averages of the weights over the training: updated in each step, or solved for any length afterwards.

The plain average is ema <- decay ema + (1 - decay) weights. A power-function average of exponent gamma weights step tau
by tau^gamma, which makes its length a fixed share of the training so far (Karras et al. 2024, "Analyzing and improving
the training dynamics of diffusion models", section 3). Snapshots of two such averages span a space in which an average
of any other length is found by least squares.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.types import Number, PyTree
from ddpm_jax.validation import check


def decay_at(step, max_decay: float, inv_gamma: float, power: float):
    """Return the plain average's decay in the update after optimiser step `step`, counted from 0.

    The first update copies the weights; later ones have min(max_decay, 1 - (1 + step / inv_gamma)^-power), or max_decay
    if power is 0. Equal to `EMAModel(use_ema_warmup=True)` of diffusers; with power 0, to hojonathanho/diffusion.

    Example:
        >>> [round(float(decay_at(step, 0.9999, 1.0, 0.75)), 4) for step in (0, 1, 10, 10**6)]
        [0.0, 0.4054, 0.8344, 0.9999]
    """
    step = jnp.asarray(step, jnp.float32)
    warm = 1 - (1 + step / inv_gamma) ** -power if power else max_decay
    return jnp.where(step == 0, 0.0, jnp.minimum(warm, max_decay))


def update(average: PyTree, weights: PyTree, decay) -> PyTree:
    """Return decay average + (1 - decay) weights."""
    return jax.tree.map(lambda mean, weight: decay * mean + (1 - decay) * weight, average, weights)


def gamma_from_length(length: float) -> float:
    """Return the exponent of the power-function average whose standard deviation is this share of the training.

    It solves length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))   (Karras et al. 2024, eq. 3).

    Example:
        >>> round(gamma_from_length(0.10), 4), round(gamma_from_length(0.05), 4)
        (6.9372, 16.9722)
    """
    check(0 < length < 12**-0.5, f"The relative length must be above 0 and below {12**-0.5:.3f}, not {length}.")
    inverse = length**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(np.max(roots.real[np.abs(roots.imag) < 1e-9]))


def power_decay_at(step, gamma: float):
    """Return the power-function average's decay in the update after optimiser step `step`, counted from 0.

    (1 - 1 / t)^(gamma + 1) at t = step + 1.

    Example:
        >>> float(power_decay_at(0, 6.94))
        0.0
    """
    t = jnp.asarray(step, jnp.float32) + 1
    return jnp.exp((gamma + 1) * jnp.log1p(-1 / t))


def solve(snapshots: Sequence[tuple[Number, Number]], step: Number, length: Number) -> np.ndarray:
    """Return the weights of snapshots whose weighted sum is nearest to the average of another length.

    Least squares of the difference of the two weightings over the training time, in closed form (Karras et al. 2024,
    appendix C).

    Args:
        snapshots: (step, gamma) of each, steps above 0.
        step: last step of the wanted average.
        length: relative length of the wanted average.

    Returns:
        One weight a snapshot.

    Raises:
        ValueError: no snapshot up to that step, or a length out of range.

    Example:
        >>> gamma = gamma_from_length(0.1)
        >>> solve([(100, gamma), (200, gamma)], 200, 0.1).round(6) + 0.0
        array([0., 1.])
    """
    check(len(snapshots) > 0, "There are no snapshots of power-function averages.")
    check(any(time <= step for time, _ in snapshots), f"No snapshot ends at or before step {step}.")
    times, gammas = np.asarray(snapshots, np.float64).T
    gram = _inner(times[:, None], gammas[:, None], times[None], gammas[None])
    wanted = _inner(times, gammas, np.float64(step), np.float64(gamma_from_length(length)))
    return np.linalg.lstsq(gram, wanted, rcond=None)[0]


def _inner(t_a, gamma_a, t_b, gamma_b) -> np.ndarray:
    """Return the integral over tau of two averages' weightings, each (gamma + 1) tau^gamma / t^(gamma + 1) up to t."""
    earlier_exponent = np.where(t_a < t_b, gamma_b, gamma_a)
    ratio = np.minimum(t_a, t_b) / np.maximum(t_a, t_b)
    return (gamma_a + 1) * (gamma_b + 1) * ratio**earlier_exponent / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))
