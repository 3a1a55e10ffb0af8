"""What a checkpoint is: the frozen, hashable description that travels with its weights.

`Config(unet, schedule, sampler)` holds no array. The fields are diffusers' JSON names to the letter, so that
a published JSON file is the config. Every value is checked when it is made, before any other work.
"""

import dataclasses
from typing import Any

from ddpm_jax.config.unet import UNetConfig
from ddpm_jax.types import Number
from ddpm_jax.validation import check, freeze, is_int, is_number, known_items, nearest, thaw

__all__ = ["Config", "SamplerConfig", "ScheduleConfig", "UNetConfig", "scheduler_from_dict"]

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
DIFFUSERS_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")
ORIGINAL_BETA_SCHEDULES = ("quad", "const", "warmup10", "warmup50", "jsd")

# Schedulers of variance-exploding networks: noise levels instead of betas.
_VE_CLASSES = ("ScoreSdeVeScheduler", "KarrasVeScheduler")
_VE_DEFAULTS = {
    "KarrasVeScheduler": {"sigma_min": 0.02, "sigma_max": 100.0, "num_train_timesteps": 1000},
}
# KarrasVeScheduler's noise levels are those of data in [-1, 1]; its pipeline halves them for the network.
_DATA_UNIT = {"KarrasVeScheduler": 0.5}
# Schedulers of variance-preserving networks, which have betas. What is in neither list is another process altogether.
_VP_CLASSES = tuple(
    f"{name}Scheduler"
    for name in (
        *("DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "DDIMInverse", "PNDM", "LMSDiscrete", "EulerDiscrete"),
        *("EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DEISMultistep"),
        *("DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep", "DPMSolverSDE", "UniPCMultistep"),
        *("SASolver", "RePaint", "UnCLIP", "LCM", "TCD"),
    )
)
# diffusers 0.0.x and 0.1
_OLD_CLASSES = {"VeSdeScheduler": "ScoreSdeVeScheduler", "LMSScheduler": "LMSDiscreteScheduler"}
# Where a scheduler's own default differs from DDPMScheduler's (diffusers 0.42.1).
_LATE_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_SCHEDULE_DEFAULTS = {
    "HeunDiscreteScheduler": _LATE_BETAS,
    "KDPM2DiscreteScheduler": _LATE_BETAS,
    "KDPM2AncestralDiscreteScheduler": _LATE_BETAS,
    "LCMScheduler": {**_LATE_BETAS, "beta_schedule": "scaled_linear"},
    "TCDScheduler": {**_LATE_BETAS, "beta_schedule": "scaled_linear"},
    "UnCLIPScheduler": {"beta_schedule": "squaredcos_cap_v2"},
}
# Schedulers that know `rescale_betas_zero_snr`; the others warn of it.
_WITH_ZERO_SNR = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"),
    *("UniPCMultistepScheduler", "LCMScheduler", "TCDScheduler"),
)
# Names of diffusers 0.0.x.
_OLD_SCHEDULER_NAMES = {
    "timesteps": "num_train_timesteps",
    "clip_predicted_image": "clip_sample",
}
# Every key that a scheduler of some diffusers version writes. diffusers keeps the keys of other schedulers in a file
# when one class is made from another's config, so all of them may meet.
_SAMPLER_KEYS = frozenset(
    """
    algorithm_type alpha_cum_end alpha_cum_start base_image_seq_len base_shift beta_max beta_min block_length
    clip_denoised clip_sample clip_sample_range correct_steps corrector_k corrector_order corrector_selection
    corrector_selection_tau corrector_steps disable_corrector dynamic_thresholding_ratio editing_threshold
    entropy_bound eps eta euler_at_final final_sigmas_type final_step_size_scale flow_shift gamma gamma_cum_end
    gamma_cum_start interpolation_type invert_sigmas lambda_min_clipped lower_order_final mask_token_id
    masking_schedule max_image_seq_len max_shift minimal_topk n_grid noise_mode noise_sampler_seed
    num_inference_steps num_policy_substeps num_vec_classes original_inference_steps predict_epsilon predict_x0
    predictor_order rho s s_churn s_max s_min s_noise sample_max_value sampling_eps scale_factors scaler
    schedule_mode scheduler_type set_alpha_to_one set_alpha_to_zero shift shift_terminal sigma_data sigma_max
    sigma_min sigma_schedule skip_prk_steps snr snr_shift_scale solver_order solver_p solver_type stage_range
    stages steps_offset stochastic_sampling t_lim_ode t_lim_ode_below t_max t_min tail_step_multiplier tail_steps
    tau_func tensor_format threshold thresholding time_shift_type timestep_scaling timestep_spacing timestep_type
    timestep_values tsr_k tsr_sigma upscale_mode use_beta_sigmas use_dynamic_shifting use_exponential_sigmas
    use_flow_sigmas use_karras_sigmas use_lu_lambdas variance_type
    """.split()
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Describe the forward process q and what the network predicts about it.

    `kind` "vp" is DDPM's: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, with data in [-1, 1] and betas as
    in diffusers (`beta_start`, `beta_end`, `beta_schedule`, `trained_betas`, `rescale_betas_zero_snr`). `kind` "ve" is
    that of google/ncsnpp-*: x_t = x_0 + sigma z with sigma from `sigma_min` to `sigma_max`, data in [0, 1]. `kind`
    "other" is a process that is neither (consistency, flow matching): the network can be applied, no more.

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
        """The smallest and the largest value of a pixel, as the network sees it."""
        return (0, 1) if self.kind == "ve" else (-1, 1)

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
            check(good, f"`sigma_min` and `sigma_max` must rise from above 0, not {low!r}, {high!r}.")
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
                f"`trained_betas` has {len(betas)} entries but `num_train_timesteps` is {steps}. They must agree.",
            )


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Name the sampler a checkpoint asks for: a scheduler's class and its items that are not the schedule's.

    The items are (name, value) pairs as they stand in the file; values that the file leaves out are not filled in.

    Example:
        >>> SamplerConfig("DDPMScheduler", (("variance_type", "fixed_large"),)).to_dict()
        {'variance_type': 'fixed_large'}
    """

    class_name: str = "DDPMScheduler"
    items: tuple[tuple[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the items as a dict of JSON values."""
        return {name: thaw(value) for name, value in self.items}


@dataclasses.dataclass(frozen=True)
class Config:
    """Hold all that a checkpoint is, but its weights: the network, the schedule and the sampler.

    Hashable and compared by value: weights of equal configs share their compiled programs.

    Attributes:
        unet, schedule, sampler: see there.
        class_names: names of the classes 0, 1, ... of a network with a table of classes; empty where nobody named them.
        null_class: the row of that table that stands for no class, for classifier-free guidance; None where there is
            none, or where nobody knows it.

    Raises:
        ValueError: names or a null class for a network that has no table of classes, more names than classes, a name
            twice, a null class out of range.

    Example:
        >>> config = Config(UNetConfig(block_out_channels=(32,), down_block_types=("DownBlock2D",),
        ...                            up_block_types=("UpBlock2D",)))
        >>> config.sampler.class_name, hash(config) == hash(Config(config.unet))
        ('DDPMScheduler', True)
    """

    unet: UNetConfig
    schedule: ScheduleConfig = ScheduleConfig()
    sampler: SamplerConfig = SamplerConfig()
    class_names: tuple[str, ...] = ()
    null_class: int | None = None

    def __post_init__(self):
        names, null, count = freeze(self.class_names), self.null_class, self.unet.num_class_embeds or 0
        object.__setattr__(self, "class_names", names)
        good = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
        check(good, f"`class_names` must be a list of strings, not {names!r}.")
        check(len(names) <= count, f"`class_names` has {len(names)} names; the network has {count} classes.")
        check(len(set(names)) == len(names), f"`class_names` holds a name twice: {list(names)}.")
        good = null is None or (is_int(null, 0) and null < count)
        check(good, f"`null_class` must be one of the network's {count} classes or None, not {null!r}.")


def scheduler_from_dict(items: dict[str, Any]) -> tuple[ScheduleConfig, SamplerConfig]:
    """Read a `scheduler_config.json` of diffusers, of any of its versions.

    What stands there of the forward process becomes the schedule, with the class's own defaults for what is absent;
    the rest, foreign keys that diffusers carries along included, goes to the sampler. A key that no scheduler of
    diffusers knows is passed over: silently if it asks for nothing, else with a warning.

    Raises:
        ValueError: a misspelt key, or a value that is wrong.

    Example:
        >>> schedule, sampler = scheduler_from_dict(
        ...     {"_class_name": "DDPMScheduler", "beta_end": 0.01, "clip_sample": True})
        >>> schedule.beta_end, sampler.items
        (0.01, (('clip_sample', True),))
    """
    class_name = items.get("_class_name") or "DDPMScheduler"
    check(isinstance(class_name, str), f"`_class_name` must be a string, not {class_name!r}.")
    class_name = _OLD_CLASSES.get(class_name, class_name)
    values = {
        _OLD_SCHEDULER_NAMES.get(name, name): freeze(value) for name, value in items.items() if not name.startswith("_")
    }
    schedule_names = {field.name for field in dataclasses.fields(ScheduleConfig)}
    known = (schedule_names - {"kind"}) | _SAMPLER_KEYS
    values = known_items(values, known, "A scheduler")
    if values.pop("predict_epsilon", True) is False:  # diffusers before 0.5
        values["prediction_type"] = "sample"
    if class_name in _VE_CLASSES:
        defaults = {"sigma_min": 0.01, "sigma_max": 1348.0, "num_train_timesteps": 2000}
        defaults |= _VE_DEFAULTS.get(class_name, {})
        taken = ("num_train_timesteps", "sigma_min", "sigma_max")
        steps, *sigmas = (values.get(name, defaults[name]) for name in taken)
        check(all(map(is_number, sigmas)), f"`sigma_min` and `sigma_max` must be numbers, not {sigmas}.")
        low, high = (sigma * _DATA_UNIT.get(class_name, 1) for sigma in sigmas)
        schedule = ScheduleConfig(kind="ve", num_train_timesteps=steps, sigma_min=low, sigma_max=high)
    else:
        taken = schedule_names - {"kind", "sigma_min", "sigma_max"}
        given = {name: value for name, value in values.items() if name in taken}
        if class_name in _VP_CLASSES:
            schedule = ScheduleConfig(**(_SCHEDULE_DEFAULTS.get(class_name, {}) | given))
        else:
            taken = {"num_train_timesteps"}
            schedule = ScheduleConfig(kind="other", num_train_timesteps=given.get("num_train_timesteps", 1000))
    rest = tuple(sorted((name, value) for name, value in values.items() if name not in taken))
    return schedule, SamplerConfig(class_name, rest)


def scheduler_to_dict(schedule: ScheduleConfig, sampler: SamplerConfig) -> dict[str, Any]:
    """Write what `scheduler_from_dict` reads: a `scheduler_config.json` that diffusers opens.

    Example:
        >>> scheduler_to_dict(ScheduleConfig(), SamplerConfig())["beta_schedule"]
        'linear'
    """
    items = {"_class_name": sampler.class_name, "num_train_timesteps": schedule.num_train_timesteps}
    if schedule.kind == "ve":
        unit = _DATA_UNIT.get(sampler.class_name, 1)
        items |= {"sigma_min": schedule.sigma_min / unit, "sigma_max": schedule.sigma_max / unit}
    elif schedule.kind == "vp":
        betas = schedule.trained_betas
        items |= {
            "beta_start": schedule.beta_start,
            "beta_end": schedule.beta_end,
            "beta_schedule": schedule.beta_schedule,
            "trained_betas": thaw(betas) if betas is not None else None,
            "prediction_type": schedule.prediction_type,
        }
        if schedule.rescale_betas_zero_snr or sampler.class_name in _WITH_ZERO_SNR:
            items["rescale_betas_zero_snr"] = schedule.rescale_betas_zero_snr
    return items | sampler.to_dict()
