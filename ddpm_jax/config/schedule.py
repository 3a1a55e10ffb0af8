"""`ScheduleConfig`: the forward process q, and what the network predicts about it."""

import dataclasses

from ddpm_jax.types import Number
from ddpm_jax.validation import check, freeze, is_int, is_number, nearest

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
DIFFUSERS_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")
ORIGINAL_BETA_SCHEDULES = ("quad", "const", "warmup10", "warmup50", "jsd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Describe the forward process q, and what the network predicts about it.

    There are three kinds:

    * "vp", of DDPM: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, with data in [-1, 1]. The betas are those
      of diffusers (`beta_start`, `beta_end`, `beta_schedule`, `trained_betas`, `rescale_betas_zero_snr`).
    * "ve", of google/ncsnpp-*: x_t = x_0 + sigma z, with sigma from `sigma_min` to `sigma_max` and data in [0, 1].
    * "other", any other process (consistency, flow matching): the network can be applied, and nothing else.

    `beta_schedule` also takes the names of the original code (quad, const, warmup10, warmup50, jsd).

    Raises:
        ValueError: an unknown name, a beta outside (0, 1], `trained_betas` of another length than
            `num_train_timesteps`.

    Example:
        >>> ScheduleConfig(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction").num_train_timesteps
        1000
    """

    kind: str = "vp"
    num_train_timesteps: int = 1000
    beta_start: Number = 0.0001
    beta_end: Number = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    sigma_min: Number | None = None
    sigma_max: Number | None = None

    @property
    def data_range(self) -> tuple[int, int]:
        """The smallest and the largest value of a pixel that the network sees."""
        return (0, 1) if self.kind == "ve" else (-1, 1)

    @property
    def sigma_range(self) -> tuple[Number, Number]:
        """The smallest and the largest noise level of `kind` "ve".

        Raises:
            ValueError: another `kind`, whose noise has no such range.
        """
        if self.sigma_min is None or self.sigma_max is None:
            raise ValueError(f'`kind` {self.kind!r} has no `sigma_min` and `sigma_max`: they are those of "ve" alone.')
        return self.sigma_min, self.sigma_max

    def __post_init__(self):
        steps, known = self.num_train_timesteps, DIFFUSERS_BETA_SCHEDULES + ORIGINAL_BETA_SCHEDULES
        kinds = ("vp", "ve", "other")
        check(self.kind in kinds, f"`kind` must be one of {list(kinds)}, not {self.kind!r}.")
        check(is_int(steps), f"`num_train_timesteps` must be a positive integer, not {steps!r}.")
        check(
            self.prediction_type in PREDICTION_TYPES,
            f"`prediction_type` must be one of {list(PREDICTION_TYPES)}, not {self.prediction_type!r}.",
        )
        if self.kind == "ve":
            low, high = self.sigma_min, self.sigma_max
            good = is_number(low) and is_number(high) and 0 < low < high
            check(good, f"`sigma_min` must be above 0 and `sigma_max` above it, not {low!r} and {high!r}.")
            return
        given = (self.sigma_min, self.sigma_max)
        check(given == (None, None), f'`sigma_min` and `sigma_max` are for `kind` "ve", not {self.kind!r}.')
        check(
            self.beta_schedule in known,
            f"`beta_schedule` {self.beta_schedule!r} is unknown.{nearest(str(self.beta_schedule), known)} "
            f"There is {', '.join(known)}.",
        )
        for name in ("beta_start", "beta_end"):
            value = getattr(self, name)
            good = is_number(value) and 0 < value <= 1
            check(good, f"`{name}` must be in (0, 1], not {value!r}.")
        flag = self.rescale_betas_zero_snr
        check(isinstance(flag, bool), f"`rescale_betas_zero_snr` must be true or false, not {flag!r}.")
        if self.trained_betas is not None:
            betas = freeze(self.trained_betas)
            object.__setattr__(self, "trained_betas", betas)
            good = isinstance(betas, tuple) and all(is_number(b) and 0 < b <= 1 for b in betas)
            check(good, "`trained_betas` must be numbers in (0, 1].")
            check(
                len(betas) == steps,
                f"`trained_betas` has {len(betas)} entries but `num_train_timesteps` is {steps}. Give one for each "
                "timestep.",
            )
