"""Noise levels, and the grids of levels at which samplers evaluate the network.

A noise level is x_t = signal x_0 + sigma eps. Variance-preserving processes have signal^2 + sigma^2 = 1, variance-
exploding ones signal = 1. Their ratio sigma / signal is what most of the literature on solvers calls sigma.
"""

import dataclasses
import math
import numbers
import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.config import ScheduleConfig
from ddpm_jax.schedule import alphas_cumprod
from ddpm_jax.types import Number
from ddpm_jax.validation import check, nearest

TIMESTEP_SPACINGS = ("leading", "linspace", "trailing", "quadratic")
RATIO_SPACINGS = ("logsnr", "exponential", "karras", "beta")
SPACINGS = TIMESTEP_SPACINGS + RATIO_SPACINGS
# Signal power that stands for zero terminal SNR where a logarithm is needed, as in diffusers' solvers.
LEAST_ALPHA_BAR = 2.0**-24


class Level(NamedTuple):
    """A noise level: what the network is told, and x_t = signal x_0 + sigma eps.

    Example:
        >>> Level(t=500.0, signal=0.8, sigma=0.6).ratio.round(6)
        np.float64(0.75)
    """

    t: Number
    signal: Number
    sigma: Number

    @property
    def ratio(self) -> float:
        """Return sigma / signal, the noise level of the same image in a variance-exploding process."""
        return np.float64(self.sigma) / self.signal

    @property
    def log_snr(self) -> float:
        """Return lambda = log(signal / sigma), half the log of the signal-to-noise ratio; inf for a clean image."""
        with np.errstate(divide="ignore"):
            return -np.log(self.ratio)


@dataclasses.dataclass(frozen=True)
class Process:
    """The forward process of a schedule, continuous in time.

    Attributes:
        kind: "vp" or "ve".
        signals, sigmas: [T] at the training timesteps.

    Between timesteps it is interpolated as diffusers does: linearly from t to the ratio, linearly in the ratio's
    logarithm from the ratio to t.

    Example:
        >>> Process.of(ScheduleConfig()).at_ratio(1.0).t.round(2)
        np.float64(258.09)
    """

    kind: str
    signals: np.ndarray
    sigmas: np.ndarray

    @classmethod
    def of(cls, schedule: ScheduleConfig, *, finite: bool = True) -> "Process":
        """Return the process of a schedule.

        `finite` gives zero terminal SNR the signal power 2^-24, except for an epsilon network, which knows nothing
        of x_0 there; `Table` refuses such a grid.

        Raises:
            ValueError: a schedule that is neither variance-preserving nor -exploding.
        """
        if schedule.kind == "ve":
            low, high = map(math.log, schedule.sigma_range)
            sigmas = np.exp(np.linspace(low, high, schedule.num_train_timesteps))
            return cls("ve", np.ones_like(sigmas), sigmas)
        if schedule.kind != "vp":
            raise ValueError(
                "The samplers are for variance-preserving and variance-exploding networks; this checkpoint is of "
                "another kind, for which no sampler is built. `apply` works."
            )
        alpha_bar = alphas_cumprod(schedule)
        if finite and schedule.prediction_type != "epsilon":
            alpha_bar = np.maximum(alpha_bar, LEAST_ALPHA_BAR)
        return cls("vp", np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))

    def above(self, least_log_snr: Number) -> "Process":
        """Return the process without the noisiest timesteps, those whose log_snr is below a bound."""
        count = int(np.sum(np.log(self.signals / self.sigmas) >= least_log_snr))
        check(count > 0, f"No timestep has a lambda of {least_log_snr} or more.")
        return dataclasses.replace(self, signals=self.signals[:count], sigmas=self.sigmas[:count])

    @property
    def last(self) -> int:
        """The noisiest timestep."""
        return len(self.sigmas) - 1

    def at_time(self, t: Number) -> Level:
        """Return the level at a timestep, integer or between two."""
        if t == int(t):
            return self._level(t, self.signals[int(t)], self.sigmas[int(t)])
        return self._of_ratio(t, np.interp(t, np.arange(len(self.sigmas)), self.sigmas / self.signals))

    def at_ratio(self, ratio: Number) -> Level:
        """Return the level of a ratio sigma / signal; the network is told a timestep between those of the schedule."""
        log_ratios = np.log(self.sigmas / self.signals)
        return self._of_ratio(np.interp(np.log(ratio), log_ratios, np.arange(len(log_ratios))), ratio)

    def end(self, final_sigmas_type: str) -> Level:
        """Return the level at which a run ends: the clean image ("zero"), or that of timestep 0 ("sigma_min")."""
        return Level(0.0, 1.0, 0.0) if final_sigmas_type == "zero" else self.at_time(0)

    def _of_ratio(self, t: Number, ratio: Number) -> Level:
        signal = 1 / np.sqrt(1 + ratio**2) if self.kind == "vp" else np.float64(1)
        return self._level(t, signal, ratio * signal)

    def _level(self, t: Number, signal: Number, sigma: Number) -> Level:
        return Level(np.float64(t if self.kind == "vp" else sigma), signal, sigma)


def levels(
    process: Process,
    num_steps: int,
    spacing: str = "leading",
    *,
    steps_offset: int = 0,
    custom: Sequence[Number] | None = None,
    whole: bool = True,
    clean_last: bool = True,
) -> list[Level]:
    """Return the levels of a grid, from noisy to clean, without the one at which the run ends.

    With T training timesteps, N = num_steps, k from N - 1 down to 0, and the levels' ratio r = sigma / signal:

    leading:     t = k (T // N) + steps_offset           (Lin et al. 2023, table 2, names the first three)
    linspace:    t = k (T - 1) / (N - 1)
    trailing:    t = round(T - (N - 1 - k) T / N) - 1
    quadratic:   t = (T - 1) (k / (N - 1))^2             (Song, Meng & Ermon 2021, appendix D.3)
    logsnr:      log r is uniform                        (Lu et al. 2022; "exponential" is the same grid)
    karras:      r^(1/7) is uniform                      (Karras et al. 2022, eq. 5)
    beta:        r is uniform in the quantiles of Beta(0.6, 0.6)   (Lee et al. 2024)

    The last four reach from timestep T - 1 to 0.

    Args:
        process: the forward process.
        num_steps: N, from 1 to T.
        spacing: one of the names above.
        steps_offset: added to the leading grid.
        custom: strictly falling timesteps of one's own, fractions allowed; they win over all the others.
        whole: round timesteps to integers (fractions stay where two would coincide).
        clean_last: whether leading, linspace and quadratic grids have timestep 0. Otherwise the last step, which goes
            to the clean image, is as long as the others: so it is in diffusers' DPM-Solvers.

    Raises:
        ValueError: N out of range, an unknown spacing, a custom grid that does not fall or leaves 0 .. T-1, an offset
            that leaves it.

    Example:
        >>> [int(level.t) for level in levels(Process.of(ScheduleConfig()), 5, "trailing")]
        [999, 799, 599, 399, 199]
    """
    if custom is not None:
        return [process.at_time(t) for t in _checked(custom, process.last)]
    total = process.last + 1
    check(
        spacing in SPACINGS,
        f"`timestep_spacing` must be one of {list(SPACINGS)}, not {spacing!r}.{nearest(str(spacing), SPACINGS)}",
    )
    most = most_steps(process, spacing, steps_offset=steps_offset, clean_last=clean_last)
    check(
        most >= 1,
        f"A leading grid with `steps_offset` {steps_offset} has no step within the {total} training timesteps of this "
        "schedule. Choose another `timestep_spacing`.",
    )
    check_num_steps(num_steps, total)
    if spacing in RATIO_SPACINGS:
        high, low = (process.at_time(t).ratio for t in (process.last, 0))
        return [process.at_ratio(ratio) for ratio in _ratios(spacing, num_steps, low, high)]
    if spacing == "trailing":
        grid = np.round(np.arange(total, 0, -total / num_steps)[:num_steps]) - 1
        return [process.at_time(t) for t in grid]
    count = num_steps if clean_last else num_steps + 1
    if spacing == "leading":
        check(
            total >= count,
            f"`num_steps` {num_steps} is too much for the leading grid of this sampler, which has at most {total - 1} "
            f"steps, not {num_steps}. Take fewer, or another `timestep_spacing`.",
        )
        grid = np.arange(count)[::-1] * float(total // count)
        room = total - 1 - int(grid[0])
        check(
            steps_offset <= room,
            f"`steps_offset` {steps_offset} with {num_steps} steps visits {grid[0] + steps_offset:.0f}, beyond 0 .. "
            f"{total - 1}. With so many steps it is at most {room}; or take fewer (`num_steps`).",
        )
        grid += steps_offset
    else:
        rising = np.linspace(0, total - 1, count) if count > 1 else np.asarray([total - 1.0])
        grid = (rising if spacing == "linspace" else rising**2 / max(total - 1, 1))[::-1]
    rounded = np.round(grid)
    grid = rounded if whole and np.all(np.diff(rounded) < 0) else grid
    return [process.at_time(t) for t in (grid if clean_last else grid[:-1])]


def most_steps(process: Process, spacing: str, *, steps_offset: int = 0, clean_last: bool = True) -> int:
    """Return how many steps a grid of `levels` can have: as many as there are timesteps that it may visit.

    Example:
        >>> most_steps(Process.of(ScheduleConfig()), "leading", steps_offset=1)
        999
    """
    left_out = steps_offset + (not clean_last) if spacing == "leading" else 0
    return process.last + 1 - left_out


def _ratios(spacing: str, num_steps: int, low: float, high: float) -> np.ndarray:
    ramp = np.linspace(0, 1, num_steps)
    if spacing == "karras":
        return (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    if spacing == "beta":
        from scipy.special import betaincinv  # a fifth of a second to import

        return low + betaincinv(0.6, 0.6, 1 - ramp) * (high - low)
    return np.exp(np.log(high) + ramp * (np.log(low) - np.log(high)))


def _checked(custom: Sequence[Number], last: int) -> np.ndarray:
    good = isinstance(custom, list | tuple | np.ndarray) and len(custom) > 0
    good = good and all(isinstance(t, numbers.Real) and not isinstance(t, bool) for t in custom)
    check(good, f"`timesteps` must be a list of numbers, not {custom!r}.")
    grid = np.asarray(custom, np.float64)
    check(np.all(np.diff(grid) < 0), f"`timesteps` must fall strictly, from noisy to clean, not {list(custom)}.")
    check(0 <= grid[-1] and grid[0] <= last, f"`timesteps` must lie in 0 .. {last}, not {list(custom)}.")
    return grid


def check_num_steps(num_steps: int, num_train_timesteps: int) -> int:
    """Return num_steps as an int; refuse what is no integer from 1 to T."""
    try:
        steps = operator.index(num_steps)
    except TypeError:
        steps = 0
    check(
        1 <= steps <= num_train_timesteps and not isinstance(num_steps, bool),
        f"`num_steps` must be an integer from 1 to {num_train_timesteps} (the training timesteps), not {num_steps!r}.",
    )
    return steps
