"""PNDM: pseudo numerical methods on the discrete chain."""

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np

from ddpm_jax.samplers.grid_sampler import GridSampler, Row, basis, eps_of, moved
from ddpm_jax.samplers.grids import Level, Process

# Adams and Bashforth's coefficients for a uniform grid, the newest slope first.
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PNDM(GridSampler):
    """Pseudo numerical methods for diffusion models (Liu et al. 2022): DDIM's step with Adams-Bashforth's mean eps_hat.

    Attributes:
        num_steps: 50 by default.
        skip_prk_steps: start with a trapezoid and lower orders ("PLMS", one evaluation more than steps), instead of
            three pseudo Runge-Kutta steps of four evaluations each ("PNDM", nine more).
        set_alpha_to_one: the last step ends at the clean image; otherwise at the level of timestep 0.

    The half steps of the Runge-Kutta part lie in the middle of their step; diffusers rounds them. It also averages
    velocities of different timesteps where the network predicts those; here eps_hat is averaged.

    Example:
        >>> PNDM(num_steps=10).table(ScheduleConfig()).t[:5].tolist()
        [900.0, 850.0, 850.0, 800.0, 800.0]
    """

    default_steps: ClassVar[int | None] = 50

    timestep_spacing: str = "leading"
    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False

    order: ClassVar[int] = 2
    _draws: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        self._check_flags("skip_prk_steps", "set_alpha_to_one")

    def _end(self, process: Process) -> Level:
        return process.end("zero" if self.set_alpha_to_one else "sigma_min")

    def _rows(self, process: Process, levels: list[Level]) -> Iterator[Row]:
        steps = list(pairwise(levels))
        if self.skip_prk_steps:
            begun = min(1, len(steps) - 1)
            yield from self._trapezoid(steps[:begun])
        else:
            begun = min(3, len(steps) - 1)
            for step, (s, t) in enumerate(steps[:begun]):
                yield from self._runge_kutta(process, s, t, step)
        x, _, _, *older, x_0, _, _ = basis(6)
        for step, (s, t) in enumerate(steps[begun:], start=begun):
            slopes = [eps_of(s, x, x_0), *older]
            yield Row(s, [moved(s, x, t, _mean(slopes, step)), x, 0 * x, *slopes[:3]])

    def _trapezoid(self, steps: list[tuple[Level, Level]]) -> Iterator[Row]:
        x, started, _, *older, x_0, _, _ = basis(6)
        for s, t in steps:
            slope = eps_of(s, x, x_0)
            yield Row(s, [moved(s, x, t, slope), x, 0 * x, slope, *older[:2]], ends_step=False)
            yield Row(t, [moved(s, started, t, (eps_of(t, x, x_0) + older[0]) / 2), x, 0 * x, *older])

    def _runge_kutta(self, process: Process, s: Level, t: Level, step: int) -> Iterator[Row]:
        x, started, total, *older, x_0, _, _ = basis(6)
        middle = (
            process.at_time((s.t + t.t) / 2) if process.kind == "vp" else process.at_ratio(np.sqrt(s.ratio * t.ratio))
        )
        slope = eps_of(s, x, x_0)
        yield Row(s, [moved(s, x, middle, slope), x, slope / 6, slope, *older[:2]], ends_step=False)
        slope = eps_of(middle, x, x_0)
        yield Row(middle, [moved(s, started, middle, slope), started, total + slope / 3, *older], ends_step=False)
        yield Row(middle, [moved(s, started, t, slope), started, total + slope / 3, *older], ends_step=False)
        slope = total + eps_of(t, x, x_0) / 6
        yield Row(t, [moved(s, started, t, slope), x, 0 * x, *older])


def _mean(slopes: Sequence[np.ndarray], step: int) -> np.ndarray:
    coefficients = ADAMS_BASHFORTH[min(step, 3)]
    return np.sum([c * slope for c, slope in zip(coefficients, slopes, strict=False)], axis=0)
