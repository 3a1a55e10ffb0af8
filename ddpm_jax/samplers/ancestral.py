"""The samplers of a discrete chain x_t -> x_s: DDPM's ancestral sampling and DDIM.

Both visit a grid of timesteps, s being the next entry after t, and after the last the clean image. diffusers' DDIM
takes s = t - T // N wherever it is on the grid, which is wrong off the leading one (issues 9261, 11347, 12633).
"""

import dataclasses
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from ddpm_jax import reverse
from ddpm_jax.config import ScheduleConfig
from ddpm_jax.reverse import LEARNED, LEAST_VARIANCE, VARIANCE_TYPES
from ddpm_jax.samplers.grid_sampler import GridSampler, Row, basis, eps_of
from ddpm_jax.samplers.grids import Level, Process
from ddpm_jax.samplers.table import Table
from ddpm_jax.types import Number
from ddpm_jax.validation import Rule, check, is_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainSampler(GridSampler):
    """The defaults that DDPM and DDIM share."""

    clip: Number | None = 1.0
    timestep_spacing: str = "leading"

    _finite: ClassVar[bool] = False  # zero terminal SNR has no logarithm, and needs none here


def _transition(t: Level, s: Level) -> reverse.Transition:
    return reverse.transition(t.signal, t.sigma, s.signal, s.sigma)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(ChainSampler):
    """Ancestral sampling (Ho et al. 2020, algorithm 2), on all timesteps or a subset.

    x_s = mean of q(x_s | x_t, x_0_hat) + sigma noise                       (eqs. 6, 7 and 11)

    The last row adds no noise. diffusers adds it there whenever t > 0, which for a trailing grid with
    "fixed_large" leaves noise in the image.

    Attributes:
        num_steps: every training timestep by default.
        variance_type: what sigma^2 is.
            "fixed_small": the variance of q(x_s | x_t, x_0); "fixed_small_log" is the same.
            "fixed_large": that of q(x_t | x_s), 1 - alpha_bar_t / alpha_bar_s; "fixed_large_log" is the same here,
            and NaN in diffusers, which takes the root of a logarithm (issue 14569).
            "learned": the second half of the network's channels.
            "learned_range": between the two fixed ones in logarithms, by the second half of the channels
            (Nichol & Dhariwal 2021, eq. 15).

    Few steps with "fixed_large" ruin images, so the table warns. (On CIFAR-10 at 20 steps the FID is 137.)

    Example:
        >>> DDPM(num_steps=250).table(ScheduleConfig()).t[:3].tolist()
        [996.0, 992.0, 988.0]
    """

    default_steps: ClassVar[int | None] = None

    variance_type: str = "fixed_small"

    def __post_init__(self):
        super().__post_init__()
        self._check_choice("variance_type", VARIANCE_TYPES)

    def table(self, schedule: ScheduleConfig) -> Table:
        """Return the rows that `run` executes, one a timestep."""
        table = super().table(schedule)
        asked = self.num_steps is not None or self.timesteps is not None
        few = asked and table.num_evals < schedule.num_train_timesteps
        if few and self.variance_type.startswith("fixed_large"):
            warnings.warn(
                f"Ancestral sampling in {table.num_evals} of {schedule.num_train_timesteps} steps with variance_type "
                f"{self.variance_type!r} leaves noise in the images. Use variance_type='fixed_small', or DDIM.",
                stacklevel=2,
            )
        return table

    def _rows(self, process: Process, levels: list[Level]) -> Iterator[Row]:
        x, x_0, _, noise = basis(1)
        for t, s in pairwise(levels):
            step = _transition(t, s)
            fixed = step.largest if self.variance_type.startswith("fixed_large") else max(step.smallest, LEAST_VARIANCE)
            variance = 1.0 if self.variance_type in LEARNED else fixed  # a learned one scales the noise in the loop
            std = np.sqrt(variance) if s.sigma > 0 else 0.0
            yield Row(t, [step.from_x_t * x + step.from_x_0 * x_0 + std * noise])

    def _rest(self, levels: list[Level], rows: list[Row]) -> dict[str, Any]:
        steps = [_transition(t, s) for t, s in pairwise(levels)]
        bounds = [(max(step.smallest, LEAST_VARIANCE), step.largest) for step in steps]
        variance = self.variance_type if self.variance_type in LEARNED else "fixed"
        return {"variance": variance, "log_variance": np.log(np.asarray(bounds))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(ChainSampler):
    """Denoising diffusion implicit models (Song, Meng & Ermon 2021, eq. 12).

    x_s = sqrt(alpha_bar_s) x_0_hat + sqrt(1 - alpha_bar_s - sigma^2) eps_hat + sigma noise,
    sigma = eta sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t) (1 - alpha_bar_t / alpha_bar_s))       (eq. 16)

    With eta 1 and `use_clipped_model_output` it is DDPM with "fixed_small".

    Attributes:
        num_steps: 50 by default.
        eta: 0 is deterministic, 1 has DDPM's variance.
        use_clipped_model_output: derive eps_hat anew from the clipped x_0_hat.
        set_alpha_to_one: the last step ends at the clean image; otherwise at the level of timestep 0.

    Example:
        >>> DDIM(eta=0.0).table(ScheduleConfig()).num_evals
        50
    """

    default_steps: ClassVar[int | None] = 50

    eta: Number = 0.0
    use_clipped_model_output: bool = False
    set_alpha_to_one: bool = True

    ACTS: ClassVar[dict[str, Rule]] = {
        "use_clipped_model_output": Rule(
            "x_0_hat is clipped, by `clip` or `thresholding`",
            lambda knobs: knobs.clip is not None or knobs.thresholding,
        ),
    }

    def __post_init__(self):
        super().__post_init__()
        good = is_number(self.eta) and 0 <= self.eta <= 1
        check(good, f"`eta` must be in [0, 1], not {self.eta!r}.")
        self._check_flags("use_clipped_model_output", "set_alpha_to_one")

    def _end(self, process: Process) -> Level:
        return process.end("zero" if self.set_alpha_to_one else "sigma_min")

    def _rows(self, process: Process, levels: list[Level]) -> Iterator[Row]:
        x, x_0, eps, noise = basis(1)
        for t, s in pairwise(levels):
            std = self.eta * s.sigma * np.sqrt(max(_transition(t, s).fresh, 0.0))
            direction = np.sqrt(max(s.sigma**2 - std**2, 0.0))
            if self.use_clipped_model_output:
                eps = eps_of(t, x, x_0)
            yield Row(t, [s.signal * x_0 + direction * eps + std * noise])
