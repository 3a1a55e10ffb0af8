"""The base class of samplers that visit a grid of noise levels: its knobs, and the table made of its rows."""

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ddpm_jax.config import ScheduleConfig
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.base import Sampler
from ddpm_jax.samplers.effects import check_effects
from ddpm_jax.samplers.grids import Level, Process
from ddpm_jax.samplers.table import Table
from ddpm_jax.schedule import output_coefficients
from ddpm_jax.types import Number
from ddpm_jax.validation import Rule, check, is_number


class Row(NamedTuple):
    """One evaluation of the network, and the next state as combinations of the vectors of `basis`.

    Attributes:
        level: where the network is evaluated.
        state: k vectors, the images of the next state.
        ends_step: whether it ends a step of the grid.
        seen: the level of the image that it sees, if the network is told another one.
        leads_to: the level of the next image, if it is not what the next row sees (of the last row: the run's end).
    """

    level: Level
    state: Sequence[np.ndarray]
    ends_step: bool = True
    seen: Level | None = None
    leads_to: Level | None = None


def basis(num_images: int) -> np.ndarray:
    """Return the unit vectors S[0] .. S[k-1], x_0_hat, eps_hat, noise, in which a row's formulas are written.

    Example:
        >>> x, x_0, eps, noise = basis(1)
        >>> 0.5 * x + 0.8 * x_0
        array([0.5, 0.8, 0. , 0. ])
    """
    return np.eye(num_images + 3)


def eps_of(level: Level, x: np.ndarray, x_0: np.ndarray) -> np.ndarray:
    """Write eps_hat in terms of x_0_hat, so that clipping x_0_hat changes eps_hat too.

    Example:
        >>> x, x_0, eps, noise = basis(1)
        >>> eps_of(Level(500.0, 0.8, 0.5), x, x_0)
        array([ 2. , -1.6,  0. ,  0. ])
    """
    return (x - level.signal * x_0) / level.sigma


def moved(s: Level, x: np.ndarray, t: Level, eps: np.ndarray) -> np.ndarray:
    """Return x_t from x_s along a constant eps: DDIM's step, Euler's in the ratio sigma / signal.

    x_t / signal_t = x_s / signal_s + (ratio_t - ratio_s) eps        (Song, Meng & Ermon 2021, eq. 13)

    Example:
        >>> x, x_0, eps, noise = basis(1)
        >>> moved(Level(500.0, 0.8, 0.6), x, Level(0.0, 1.0, 0.0), eps)
        array([ 1.25,  0.  , -0.75,  0.  ])
    """
    return t.signal / s.signal * x + (t.sigma - t.signal * s.ratio) * eps


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridSampler(Sampler):
    """A sampler that goes down a grid of noise levels. Its knobs have diffusers' names, except `clip`.

    A knob that has no effect beside the others is refused.

    Attributes:
        num_steps: N, intervals of the grid. None means `default_steps`, or all timesteps of the grid where it has
            fewer.
        clip: clips x_0_hat to [-clip, clip] (`clip_sample`, `clip_sample_range`); None leaves it alone.
        thresholding: dynamic thresholding per image instead of clipping (Saharia et al. 2022): divide by the
            `dynamic_thresholding_ratio` quantile of |x_0_hat|, held between 1 and `sample_max_value`.
        timestep_spacing: "leading", "linspace", "trailing", "quadratic", "logsnr" (alias "exponential"), "karras" or
            "beta"; see `grids.levels`.
        steps_offset: added to the leading grid.
        timesteps: a custom grid instead of num_steps, spacing and offset: strictly falling, fractions allowed.
        default_steps: of the class; None means every training timestep.
    """

    default_steps: ClassVar[int | None] = 20

    num_steps: int | None = None
    clip: Number | None = None
    thresholding: bool = False
    dynamic_thresholding_ratio: Number = 0.995
    sample_max_value: Number = 1.0
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    timesteps: tuple[Number, ...] | None = None

    # Conventions of diffusers' families; see `grids.levels`, and `Process.of` for `_finite`.
    _whole: ClassVar[bool] = True
    _clean_last: ClassVar[bool] = True
    _finite: ClassVar[bool] = True
    _draws: ClassVar[bool] = True  # rows may draw noise, whatever the numbers of the knobs

    # Where a knob acts that does nothing elsewhere; subclasses add theirs.
    ACTS: ClassVar[dict[str, Rule]] = {
        **dict.fromkeys(
            ("dynamic_thresholding_ratio", "sample_max_value"),
            Rule("`thresholding` is true", lambda knobs: knobs.thresholding),
        ),
        "clip": Rule("`thresholding` is false", lambda knobs: knobs.clip is None or not knobs.thresholding),
        "timestep_spacing": Rule("no `timesteps` are given", lambda knobs: knobs.timesteps is None),
        "steps_offset": Rule(
            "`timestep_spacing` is 'leading' and no `timesteps` are given",
            lambda knobs: knobs.timestep_spacing == "leading" and knobs.timesteps is None,
        ),
        "num_steps": Rule(
            "no `timesteps` are given, whose number it would be",
            lambda knobs: knobs.timesteps is None or knobs.num_steps == len(knobs.timesteps),
        ),
    }

    def __post_init__(self):
        clip, quantile, most = self.clip, self.dynamic_thresholding_ratio, self.sample_max_value
        good = clip is None or (is_number(clip) and clip > 0)
        check(good, f"`clip` must be a positive number or None, not {clip!r}.")
        good = is_number(quantile) and 0 < quantile <= 1
        check(good, f"`dynamic_thresholding_ratio` must be in (0, 1], not {quantile!r}.")
        good = isinstance(self.steps_offset, int) and self.steps_offset >= 0
        check(good, f"`steps_offset` must be a non-negative integer, not {self.steps_offset!r}.")
        good = is_number(most) and most > 0
        check(good, f"`sample_max_value` must be a positive number, not {most!r}.")
        self._check_flags("thresholding")
        if self.timesteps is not None:
            good = isinstance(self.timesteps, list | tuple)
            check(good, f"`timesteps` must be a list of numbers, not {self.timesteps!r}.")
            object.__setattr__(self, "timesteps", tuple(self.timesteps))  # a list has no hash
        check_effects(self)

    def _check_flags(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            check(isinstance(value, bool), f"`{name}` must be true or false, not {value!r}.")

    def _check_choice(self, name: str, choices: Sequence[str]) -> None:
        value = getattr(self, name)
        check(value in choices, f"`{name}` must be one of {list(choices)}, not {value!r}.")

    def table(self, schedule: ScheduleConfig) -> Table:
        """Return the rows that `run` executes."""
        process = self._process(schedule)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # Table refuses what is not finite
            levels = self._levels(process)
            rows = list(self._rows(process, levels))
            coefficients = np.asarray([_coefficients(schedule, row.level) for row in rows])
            rest = self._rest(levels, rows)
            init_scale = float(self._init_scale(process, levels))
        threshold = (self.dynamic_thresholding_ratio, self.sample_max_value)
        return Table(
            t=np.asarray([row.level.t for row in rows], np.float64),
            x_0_coefs=coefficients[:, :2],
            eps_coefs=coefficients[:, 2:],
            mix=np.asarray([row.state for row in rows]),
            ends_step=np.asarray([row.ends_step for row in rows]),
            levels=_seen_and_next(rows, levels[-1]),
            init_scale=init_scale,
            clip=self.clip,
            threshold=threshold if self.thresholding else None,
            draws=self._draws,
            **rest,
        )

    def _process(self, schedule: ScheduleConfig) -> Process:
        return Process.of(schedule, finite=self._finite)

    def _levels(self, process: Process) -> list[Level]:
        """Return the grid, and after it the level at which the run ends."""
        grid = grids.levels(
            process,
            self._num_steps(process),
            self.timestep_spacing,
            steps_offset=self.steps_offset,
            custom=self.timesteps,
            whole=self._whole,
            clean_last=self._clean_last,
        )
        return [*grid, self._end(process)]

    def _num_steps(self, process: Process) -> int:
        """Return N: `num_steps`, or a default that fits any schedule."""
        if self.num_steps is not None:
            return self.num_steps
        offset = self.steps_offset if self.timestep_spacing == "leading" else 0
        most = grids.most_steps(process, self.timestep_spacing, steps_offset=offset, clean_last=self._clean_last)
        return most if self.default_steps is None else min(self.default_steps, most)

    def _end(self, process: Process) -> Level:
        return process.end("zero")

    @abc.abstractmethod
    def _rows(self, process: Process, levels: list[Level]) -> Iterator[Row]:
        """Yield the rows that lead down the levels."""

    def _rest(self, levels: list[Level], rows: list[Row]) -> dict[str, Any]:
        """Return further fields of the table."""
        return {}

    def _init_scale(self, process: Process, levels: list[Level]) -> float:
        """Return what unit noise is multiplied with to begin: 1, or the noise level of an exploding process."""
        return 1.0 if process.kind == "vp" else levels[0].sigma


def _seen_and_next(rows: Sequence[Row], end: Level) -> np.ndarray:
    """Return (signal, sigma) of the image that each row sees, and of the one that it leads to: [n, 2, 2]."""
    seen = [row.seen or row.level for row in rows]
    following = [row.leads_to or level for row, level in zip(rows, [*seen[1:], end], strict=True)]
    return np.asarray([[level[1:] for level in pair] for pair in zip(seen, following, strict=True)], np.float64)


def _coefficients(schedule: ScheduleConfig, level: Level) -> tuple[float, float, float, float]:
    """Return (a, b, c, d): x_0_hat = a x + b out and eps_hat = c x + d out."""
    return output_coefficients(schedule, level.sigma if schedule.kind == "ve" else np.float64(level.signal) ** 2)
