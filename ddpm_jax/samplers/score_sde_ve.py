"""The predictor-corrector sampler of variance-exploding networks."""

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from ddpm_jax.config import ScheduleConfig
from ddpm_jax.samplers.grid_sampler import GridSampler, Row, basis
from ddpm_jax.samplers.grids import Level, Process
from ddpm_jax.types import Number
from ddpm_jax.validation import Rule, check, is_int, is_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSdeVe(GridSampler):
    """Reverse diffusion with Langevin corrections (Song et al. 2021, algorithms 2 and 4): for google/ncsnpp-*.

    Before each step, `correct_steps` times:  x += step score + sqrt(2 step) noise, step = 2 (snr |noise| / |score|)^2;
    then  x += (sigma_t^2 - sigma_s^2) score + sqrt(sigma_t^2 - sigma_s^2) noise,  without noise in the last.

    Attributes:
        num_steps: every noise level of the schedule by default, each of which costs 1 + correct_steps evaluations.
        snr: signal-to-noise ratio of the corrections.
        correct_steps: corrections a step.
        sampling_eps: the time at which the run ends, as a fraction of the whole.

    The norms are those of each image. diffusers' `ScoreSdeVeScheduler` averages them over the batch, so that an image
    depends on its neighbours, and rounds the index of some noise levels down by float32 error.

    Example:
        >>> ScoreSdeVe(num_steps=10).table(ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0)).num_evals
        20
    """

    default_steps: ClassVar[int | None] = None

    timestep_spacing: str = "logsnr"
    snr: Number = 0.15
    correct_steps: int = 1
    sampling_eps: Number = 1e-5

    ACTS: ClassVar[dict[str, Rule]] = {
        "snr": Rule("`correct_steps` is above 0", lambda knobs: knobs.correct_steps != 0),
    }

    def __post_init__(self):
        super().__post_init__()
        good = is_number(self.snr) and self.snr > 0
        check(good, f"`snr` must be a positive number, not {self.snr!r}.")
        good = is_int(self.correct_steps, 0)
        check(good, f"`correct_steps` must be an integer from 0 up, not {self.correct_steps!r}.")
        good = is_number(self.sampling_eps) and 0 <= self.sampling_eps < 1
        check(good, f"`sampling_eps` must be in [0, 1), not {self.sampling_eps!r}.")

    def _process(self, schedule: ScheduleConfig) -> Process:
        if schedule.kind != "ve":
            raise ValueError(
                "ScoreSdeVe samples variance-exploding networks (google/ncsnpp-*); this checkpoint's schedule is "
                f"{schedule.kind!r}."
            )
        return super()._process(schedule)

    def _rows(self, process: Process, levels: list[Level]) -> Iterator[Row]:
        x, x_0, _, noise = basis(1)
        for i, (t, s) in enumerate(pairwise(levels)):
            told = self._told(process, levels, i)
            for _ in range(self.correct_steps):
                yield Row(told, [x], ends_step=False, seen=t)
            variance = t.sigma**2 - s.sigma**2
            std = np.sqrt(variance) if s.sigma > 0 else 0.0
            yield Row(told, [x + variance / told.sigma**2 * (x_0 - x) + std * noise], seen=t)

    def _told(self, process: Process, levels: list[Level], i: int) -> Level:
        """Return the level that the network is told: `sampling_eps` shortens time a little."""
        high = np.log(process.sigmas[-1])
        sigma = np.exp(high - (high - np.log(levels[i].sigma)) * (1 - self.sampling_eps))
        return Level(sigma, 1.0, sigma)

    def _rest(self, levels: list[Level], rows: list[Row]) -> dict[str, Any]:
        return {"langevin": np.asarray([(0.0 if row.ends_step else self.snr, row.level.sigma) for row in rows])}
