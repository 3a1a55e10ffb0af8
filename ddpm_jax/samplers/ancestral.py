"""The samplers of a discrete chain x_t -> x_s: DDPM's ancestral sampling and DDIM.

Both visit a grid of timesteps, s being the next entry after t, and after the last the clean image, alpha_bar_s = 1.
diffusers' DDIM takes s = t - T // N wherever it is on the grid, which is wrong off the leading one (diffusers issues
9261, 11347, 12633).
"""

import dataclasses
import warnings

import numpy as np

from ddpm_jax.config import ScheduleConfig
from ddpm_jax.samplers.base import Sampler, Table
from ddpm_jax.samplers.grids import timesteps
from ddpm_jax.schedule import alphas_cumprod, posterior_coefficients, prediction_coefficients
from ddpm_jax.types import Number
from ddpm_jax.validation import check, is_number

VARIANCE_TYPES = (
    *("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    *("learned", "learned_range"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainSampler(Sampler):
    """The knobs that DDPM and DDIM share; names and defaults are diffusers', but for `clip`.

    Attributes:
        num_steps: N, network evaluations; None means every training timestep.
        clip: clips x_0_hat to [-clip, clip] (`clip_sample`, `clip_sample_range`); None leaves it alone.
        thresholding: dynamic thresholding per image instead of clipping (Saharia et al. 2022): divide by the
            `dynamic_thresholding_ratio` quantile of |x_0_hat|, held between 1 and `sample_max_value`.
        timestep_spacing: "leading", "linspace" or "trailing"; see `grids.timesteps`.
        steps_offset: added to the leading grid.
        timesteps: a grid of one's own, strictly falling; it wins over num_steps, spacing and offset.
    """

    num_steps: int | None = None
    clip: Number | None = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: Number = 0.995
    sample_max_value: Number = 1.0
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    timesteps: tuple[int, ...] | None = None

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
        good = isinstance(self.thresholding, bool)
        check(good, f"`thresholding` must be true or false, not {self.thresholding!r}.")
        if self.timesteps is not None:
            good = isinstance(self.timesteps, list | tuple)
            check(good, f"`timesteps` must be a list of integers, not {self.timesteps!r}.")
            object.__setattr__(self, "timesteps", tuple(self.timesteps))  # a list would not hash

    def _grid(self, schedule: ScheduleConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the timesteps and the signal power at each and after it."""
        if schedule.kind != "vp":
            kind = "variance-exploding (google/ncsnpp-*)" if schedule.kind == "ve" else "of another kind"
            raise ValueError(
                f"{type(self).__name__} samples variance-preserving networks; this checkpoint is {kind}, for which no "
                "sampler is built yet. `apply` works."
            )
        total = schedule.num_train_timesteps
        steps = total if self.num_steps is None else self.num_steps
        grid = timesteps(total, steps, self.timestep_spacing, self.steps_offset, self.timesteps)
        alpha_bar = alphas_cumprod(schedule)
        return grid, alpha_bar[grid], np.append(alpha_bar[grid[1:]], 1.0)

    def _table(self, schedule: ScheduleConfig, grid, alpha_bar_t, mix, **rest) -> Table:
        with np.errstate(divide="ignore", invalid="ignore"):  # Table refuses what is not finite
            coefficients = prediction_coefficients(schedule.prediction_type, alpha_bar_t)
        a, b, c, d = np.broadcast_arrays(*coefficients)
        threshold = (self.dynamic_thresholding_ratio, self.sample_max_value)
        return Table(
            t=grid.astype(np.float64),
            x_0_coefs=np.stack([a, b], axis=-1),
            eps_coefs=np.stack([c, d], axis=-1),
            mix=np.stack(np.broadcast_arrays(*mix), axis=-1)[:, None, :],
            ends_step=np.ones(len(grid), bool),
            clip=self.clip,
            threshold=threshold if self.thresholding else None,
            **rest,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(ChainSampler):
    """Ancestral sampling (Ho et al. 2020, algorithm 2), on all timesteps or a subset.

    x_s = mean of q(x_s | x_t, x_0_hat) + sigma noise                       (eqs. 6, 7 and 11)

    No noise after the last row. diffusers draws it there whenever t > 0, which for a trailing grid with
    "fixed_large" leaves noise in the image.

    Attributes:
        variance_type: what sigma^2 is.
            "fixed_small": the variance of q(x_s | x_t, x_0); "fixed_small_log" is the same.
            "fixed_large": 1 - alpha_bar_t / alpha_bar_s; "fixed_large_log" is the same here, and NaN in diffusers,
            which takes the root of a logarithm (issue 14569).
            "learned": the second half of the network's channels.
            "learned_range": between the two fixed ones in logarithms, by the second half of the channels
            (Nichol & Dhariwal 2021, eq. 15).

    Few steps with "fixed_large" ruin images, so that warns. (On CIFAR-10 at 20 steps FID 137.)

    Example:
        >>> DDPM(num_steps=250).table(ScheduleConfig()).t[:3].tolist()
        [996.0, 992.0, 988.0]
    """

    variance_type: str = "fixed_small"

    def __post_init__(self):
        super().__post_init__()
        check(
            self.variance_type in VARIANCE_TYPES,
            f"`variance_type` must be one of {list(VARIANCE_TYPES)}, not {self.variance_type!r}.",
        )

    def table(self, schedule: ScheduleConfig) -> Table:
        """Return the rows that `run` executes, one a timestep."""
        grid, alpha_bar_t, alpha_bar_s = self._grid(schedule)
        kind = self.variance_type.removesuffix("_log")
        if kind == "fixed_large" and len(grid) < schedule.num_train_timesteps:
            warnings.warn(
                f"Ancestral sampling in {len(grid)} of {schedule.num_train_timesteps} steps with variance_type "
                f"{self.variance_type!r} leaves noise in the images. Use variance_type='fixed_small', or DDIM.",
                stacklevel=2,
            )
        from_x_0, from_x_t, variance = posterior_coefficients(alpha_bar_t, alpha_bar_s)
        small = np.maximum(variance, 1e-20)  # the last row's is 0, and it draws nothing
        large = 1 - alpha_bar_t / alpha_bar_s
        std = {"fixed_small": np.sqrt(small), "fixed_large": np.sqrt(large)}.get(kind, np.ones(len(grid)))
        std = np.where(np.arange(len(grid)) < len(grid) - 1, std, 0.0)
        return self._table(
            schedule,
            grid,
            alpha_bar_t,
            (from_x_t, from_x_0, 0.0, std),
            variance=kind if kind.startswith("learned") else "fixed",
            log_variance=np.log(np.stack([small, large], axis=-1)),
        )


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
        set_alpha_to_one: the last step ends at alpha_bar 1; otherwise at that of timestep 0.

    Example:
        >>> DDIM(eta=0.0).table(ScheduleConfig()).num_evals
        50
    """

    num_steps: int | None = 50
    eta: Number = 0.0
    use_clipped_model_output: bool = False
    set_alpha_to_one: bool = True

    def __post_init__(self):
        super().__post_init__()
        good = is_number(self.eta) and 0 <= self.eta <= 1
        check(good, f"`eta` must be in [0, 1], not {self.eta!r}.")
        for name in ("use_clipped_model_output", "set_alpha_to_one"):
            value = getattr(self, name)
            check(isinstance(value, bool), f"`{name}` must be true or false, not {value!r}.")

    def table(self, schedule: ScheduleConfig) -> Table:
        """Return the rows that `run` executes, one a timestep."""
        grid, alpha_bar_t, alpha_bar_s = self._grid(schedule)
        if not self.set_alpha_to_one:
            alpha_bar_s[-1] = alphas_cumprod(schedule)[0]
        variance = (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)
        std = self.eta * np.sqrt(np.maximum(variance, 0.0))
        direction = np.sqrt(np.maximum(1 - alpha_bar_s - std**2, 0.0))
        if self.use_clipped_model_output:  # eps = (x_t - sqrt(alpha_bar_t) x_0) / sigma_t
            from_x_t = direction / np.sqrt(1 - alpha_bar_t)
            from_x_0 = np.sqrt(alpha_bar_s) - from_x_t * np.sqrt(alpha_bar_t)
            mix = (from_x_t, from_x_0, 0.0, std)
        else:
            mix = (0.0, np.sqrt(alpha_bar_s), direction, std)
        return self._table(schedule, grid, alpha_bar_t, mix)
