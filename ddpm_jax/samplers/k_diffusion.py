"""The samplers of Karras et al. (2022) and of Katherine Crowson's k-diffusion: ODE solvers in the noise ratio.

In y = x / signal, which is the image of a variance-exploding process, and r = sigma / signal, the flow is

    dy / dr = (y - x_0_hat) / r = eps_hat        (Karras et al., eq. 4, with their sigma = r)

diffusers' schedulers keep y and expect a scaled input, which its DDPMPipeline does not provide; here the state is x.
"""

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

import numpy as np

from ddpm_jax.samplers.exponential import gauss_legendre, lagrange
from ddpm_jax.samplers.grid_sampler import GridSampler, Row, basis, eps_of, moved
from ddpm_jax.samplers.grids import Level, Process
from ddpm_jax.types import Number
from ddpm_jax.validation import Rule, check, is_int, is_number

SQRT_2 = np.sqrt(2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KSampler(GridSampler):
    """A solver in the noise ratio.

    Attributes:
        final_sigmas_type: where the run ends: "zero", the clean image, or "sigma_min", the level of timestep 0.
    """

    final_sigmas_type: str = "zero"

    _whole: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        self._check_choice("final_sigmas_type", ("zero", "sigma_min"))

    def _end(self, process: Process) -> Level:
        return process.end(self.final_sigmas_type)

    def _init_scale(self, process: Process, levels: list[Level]) -> float:
        """Return the noise's own level, sigma, where diffusers does: on grids that begin at the noisiest timestep."""
        leading = self.timestep_spacing == "leading" and self.timesteps is None
        return 1.0 if process.kind == "vp" and leading else levels[0].sigma


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChurningSampler(KSampler):
    """The knobs of the noise that Karras et al. (2022, algorithm 2) add before a step, which raises its level.

    gamma = min(s_churn / N, sqrt(2) - 1) where s_tmin <= r <= s_tmax; r_hat = (1 + gamma) r, at most the noisiest of
    the schedule; y gets s_noise sqrt(r_hat^2 - r^2) noise.

    Attributes:
        s_churn: how much; 0 is deterministic.
        s_tmin, s_tmax: between which noise ratios.
        s_noise: scale of the noise.

    The ratios are those of data in [-1, 1]; they are halved for variance-exploding networks, whose data is in [0, 1].
    The network is evaluated after the noise is added, at r_hat; diffusers' Euler evaluates it before. The first step's
    noise is part of x_T.
    """

    s_churn: Number = 0.0
    s_tmin: Number = 0.0
    s_tmax: Number = np.inf
    s_noise: Number = 1.0

    ACTS: ClassVar[dict[str, Rule]] = dict.fromkeys(
        ("s_tmin", "s_tmax", "s_noise"), Rule("`s_churn` is above 0", lambda knobs: knobs.s_churn != 0)
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("s_churn", "s_tmin", "s_tmax", "s_noise"):
            value = getattr(self, name)
            check(is_number(value) and value >= 0, f"`{name}` must be a number from 0 up, not {value!r}.")

    def _churned(self, process: Process, levels: list[Level]) -> tuple[list[Level], list[float]]:
        """Return the levels after the noise is added, and the noise's scale in x; the end gets none."""
        gamma = min(self.s_churn / (len(levels) - 1), SQRT_2 - 1)
        unit = 1.0 if process.kind == "vp" else 0.5
        highest = process.at_time(process.last).ratio
        raised, scales = [], []
        for level in levels:
            churns = gamma > 0 and unit * self.s_tmin <= level.ratio <= unit * self.s_tmax and level is not levels[-1]
            ratio = min((1 + gamma) * level.ratio, highest) if churns else level.ratio
            hat = process.at_ratio(ratio) if ratio > level.ratio else level
            raised.append(hat)
            scales.append(hat.signal * self.s_noise * np.sqrt(max(ratio**2 - level.ratio**2, 0.0)))
        return raised, scales

    def _init_scale(self, process: Process, levels: list[Level]) -> float:
        plain = super()._init_scale(process, levels)
        raised, scales = self._churned(process, levels)
        return np.hypot(plain * raised[0].signal / levels[0].signal, scales[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler(ChurningSampler):
    """Euler's method in the noise ratio: DDIM's steps, on a finer last one.

    Its default grid goes to timestep 0 and from there to the clean image. For its knobs see `ChurningSampler`.

    Example:
        >>> Euler(num_steps=10).table(ScheduleConfig()).t.tolist()[-2:]
        [111.0, 0.0]
    """

    def _rows(self, process: Process, levels: list[Level]) -> Iterator[Row]:
        x, x_0, _, noise = basis(1)
        raised, scales = self._churned(process, levels)
        for i, s in enumerate(raised[:-1]):
            t, hat = levels[i + 1], raised[i + 1]
            x_t = moved(s, x, t, eps_of(s, x, x_0))
            yield Row(s, [hat.signal / t.signal * x_t + scales[i + 1] * noise])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun(ChurningSampler):
    """Heun's method in the noise ratio (Karras et al. 2022, algorithms 1 and 2): two evaluations a step but the last.

    Euler's step, then the step again with the mean of the slopes at both ends. For its knobs see `ChurningSampler`.

    Attributes:
        timestep_spacing: "karras" is the grid that it was made for.

    Example:
        >>> Heun(num_steps=10).table(ScheduleConfig()).num_evals
        19
    """

    order: ClassVar[int] = 2

    def _rows(self, process: Process, levels: list[Level]) -> Iterator[Row]:
        x, started, slope, x_0, _, noise = basis(3)
        raised, scales = self._churned(process, levels)
        for i, s in enumerate(raised[:-1]):
            t, hat = levels[i + 1], raised[i + 1]
            first = eps_of(s, x, x_0)
            if t.sigma == 0:
                yield Row(s, [moved(s, x, t, first), x, first])
                return
            yield Row(s, [moved(s, x, t, first), x, first], ends_step=False)
            x_t = moved(s, started, t, (slope + eps_of(t, x, x_0)) / 2)
            yield Row(t, [hat.signal / t.signal * x_t + scales[i + 1] * noise, started, slope])


@dataclasses.dataclass(frozen=True, kw_only=True)
class KarrasVe(Heun):
    """Karras et al.'s (2022) stochastic Heun sampler with the settings of their variance-exploding CIFAR-10 experiment.

    `Heun` with churn on a geometric grid. diffusers' deprecated `KarrasVeScheduler` takes the squares of the noise
    levels for the levels, from 10^4 down to 4 10^-4; here they are the levels (table 1 of the paper).

    Example:
        >>> KarrasVe(num_steps=10).table(ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0)).num_evals
        19
    """

    timestep_spacing: str = "exponential"
    s_churn: Number = 80.0
    s_tmin: Number = 0.05
    s_tmax: Number = 50.0
    s_noise: Number = 1.007

    order: ClassVar[int] = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class KDPM2(KSampler):
    """The midpoint method in the noise ratio, "DPM2" of k-diffusion: two evaluations a step but the last.

    The slope at the geometric mean of both ends, r_m = sqrt(r_s r_t), takes the whole step.

    Example:
        >>> KDPM2(num_steps=10).table(ScheduleConfig()).t[1].round(3)
        np.float64(945.133)
    """

    order: ClassVar[int] = 2
    _draws: ClassVar[bool] = False

    def _rows(self, process: Process, levels: list[Level]) -> Iterator[Row]:
        x, started, x_0, _, noise = basis(2)
        for s, t in pairwise(levels):
            down, std = self._split(process, s, t)
            first = eps_of(s, x, x_0)
            if t.sigma == 0:
                yield Row(s, [moved(s, x, t, first), x])
                return
            middle = process.at_ratio(np.sqrt(s.ratio * down))
            yield Row(s, [moved(s, x, middle, first), x], ends_step=False)
            y_t = started / s.signal + (down - s.ratio) * eps_of(middle, x, x_0)
            yield Row(middle, [t.signal * (y_t + std * noise), started])

    def _split(self, process: Process, s: Level, t: Level) -> tuple[float, float]:
        """Return the ratio that the deterministic step goes to, and the noise in y that leads back to that of t."""
        return t.ratio, 0.0


def _ancestral(s: Level, t: Level) -> tuple[float, float]:
    """Return (r_down, r_up) with r_down^2 + r_up^2 = r_t^2, r_up being the deviation of q(y_t | y_s, x_0)."""
    up = t.ratio * np.sqrt(max(1 - (t.ratio / s.ratio) ** 2, 0.0))
    return np.sqrt(t.ratio**2 - up**2), up


@dataclasses.dataclass(frozen=True, kw_only=True)
class KDPM2Ancestral(KDPM2):
    """`KDPM2` to a lower noise level than the next, and fresh noise up to it.

    Example:
        >>> KDPM2Ancestral(num_steps=10).table(ScheduleConfig()).num_evals
        19
    """

    order: ClassVar[int] = 1
    _draws: ClassVar[bool] = True

    def _split(self, process: Process, s: Level, t: Level) -> tuple[float, float]:
        return _ancestral(s, t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EulerAncestral(KSampler):
    """Euler's step to a lower noise level than the next, and fresh noise up to it: DDPM's chain by another road.

    Example:
        >>> EulerAncestral(num_steps=10).table(ScheduleConfig()).num_evals
        10
    """

    def _rows(self, process: Process, levels: list[Level]) -> Iterator[Row]:
        x, x_0, _, noise = basis(1)
        for s, t in pairwise(levels):
            down, up = _ancestral(s, t)
            y_t = x / s.signal + (down - s.ratio) * eps_of(s, x, x_0) + up * noise
            yield Row(s, [t.signal * y_t])


@dataclasses.dataclass(frozen=True, kw_only=True)
class LMS(KSampler):
    """The linear multistep method of k-diffusion: a polynomial in r through the last slopes, integrated exactly.

    Adams and Bashforth's method on a grid that is not uniform. One evaluation a step.

    Attributes:
        solver_order: 1 to 4 slopes.

    Example:
        >>> LMS(num_steps=10).table(ScheduleConfig()).num_evals
        10
    """

    _draws: ClassVar[bool] = False

    solver_order: int = 4

    def __post_init__(self):
        super().__post_init__()
        good = is_int(self.solver_order) and self.solver_order <= 4
        check(good, f"`solver_order` must be from 1 to 4, not {self.solver_order!r}.")

    @property
    def order(self) -> int:
        return self.solver_order

    def _rows(self, process: Process, levels: list[Level]) -> Iterator[Row]:
        x, *older, x_0, _, _ = basis(self.solver_order)
        for i, (s, t) in enumerate(pairwise(levels)):
            slopes = [eps_of(s, x, x_0), *older]
            nodes = np.asarray([level.ratio for level in levels[i::-1][: self.solver_order]])
            r, quadrature = gauss_legendre(s.ratio, t.ratio)
            weights = lagrange(nodes, r) @ quadrature
            y_t = x / s.signal + sum(w * slope for w, slope in zip(weights, slopes, strict=False))
            yield Row(s, [t.signal * y_t, *slopes[: self.solver_order - 1]])
