"""The scheduler classes of diffusers: one record each, and their JSON files in and out.

A record says both what a file of the class means for the forward process and which sampler it becomes. To add a
class, add its record to SCHEDULERS.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from ddpm_jax.config.sampler import SamplerConfig
from ddpm_jax.config.schedule import ScheduleConfig
from ddpm_jax.validation import check, freeze, is_number, known_items, thaw


class Scheduler(NamedTuple):
    """What ddpm_jax knows of one scheduler class of diffusers.

    Attributes:
        sampler: name of its sampler in `samplers.SAMPLERS`; None where there is none.
        why_not: the reason why there is none.
        kind: its forward process, as in `ScheduleConfig`.
        schedule: defaults of the forward process that differ from those of `ScheduleConfig` (diffusers 0.42.1).
        zero_snr: whether it has `rescale_betas_zero_snr`; the others warn about that key.
        data_unit: what its noise levels are multiplied by to get those of data in [0, 1], for `kind` "ve".
        former: its class names in older versions.
        pipeline: the unconditional pipeline of diffusers that runs it.
        keys: config keys that its sampler reads, besides those of the schedule and `CLIP_KEYS`. A file may hold keys
            of other schedulers as well.
        knobs: knobs whose defaults differ from the sampler's own.
        clips: the default of `clip_sample`; None where the scheduler has no such key.
        neutral: keys of diffusers that no sampler here reads, with the values that change nothing there either.
        by_algorithm: names of other samplers, by the value of `algorithm_type` that asks for them.
        renamed: knobs that have another name here, by their key.
        replaced: values of neighbouring schedulers that diffusers replaces, by key.
    """

    sampler: str | None = None
    why_not: str | None = None
    kind: str = "vp"
    schedule: Mapping[str, Any] = {}
    zero_snr: bool = False
    data_unit: float = 1
    former: tuple[str, ...] = ()
    pipeline: str = "DDPMPipeline"
    keys: tuple[str, ...] = ()
    knobs: Mapping[str, Any] = {}
    clips: bool | None = None
    neutral: Mapping[str, tuple] = {}
    by_algorithm: Mapping[Any, str] = {}
    renamed: Mapping[str, str] = {}
    replaced: Mapping[str, Mapping[Any, Any]] = {}


CLIP_KEYS = ("clip_sample", "clip_sample_range")

_LATE_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_LATENT_BETAS = {**_LATE_BETAS, "beta_schedule": "scaled_linear"}

_GRID = ("timestep_spacing", "steps_offset")
_THRESHOLDING = ("thresholding", "dynamic_thresholding_ratio", "sample_max_value")
_RATIOS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_SOLVER = ("solver_order", "solver_type", "lower_order_final", *_THRESHOLDING, *_RATIOS)
_DPM = (*_SOLVER, "algorithm_type", "final_sigmas_type", "lambda_min_clipped")

_OFF = (False, None)
_FLOW = {"use_flow_sigmas": _OFF, "use_dynamic_shifting": _OFF}
_SIGMA_RANGE = {"sigma_min": (None,), "sigma_max": (None,)}

_NOISE_SOLVER = {"dpmsolver": "dpmsolver", "sde-dpmsolver": "dpmsolver"}
_NEIGHBOURS_OF_DPM = {
    "algorithm_type": {"deis": "dpmsolver++"},
    "solver_type": dict.fromkeys(("bh1", "bh2", "logrho"), "midpoint"),
}
_NEIGHBOURS_OF_UNIPC = {"solver_type": dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")}

_INVERSE = "it goes from images to noise: use `ddpm_jax.invert`"
_DISTILLED = "it is for distilled models, which are not offered"
_EDM = "its networks are preconditioned in another way (EDM), which is not offered"
_FLOW_MATCHING = "it is for flow matching, which is not offered"

_DDPM = Scheduler("ddpm", keys=("variance_type", *_GRID, *_THRESHOLDING), clips=True, zero_snr=True)
_DDIM = Scheduler("ddim", keys=("set_alpha_to_one", *_GRID, *_THRESHOLDING), clips=True, zero_snr=True)

SCHEDULERS: dict[str, Scheduler] = {
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "UnCLIPScheduler": Scheduler(
        "ddpm",
        schedule={"beta_schedule": "squaredcos_cap_v2"},
        keys=("variance_type",),
        knobs={"timestep_spacing": "linspace", "variance_type": "fixed_small_log"},
        clips=True,
    ),
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "PNDMScheduler": Scheduler("pndm", keys=("skip_prk_steps", "set_alpha_to_one", *_GRID)),
    "DPMSolverMultistepScheduler": Scheduler(
        "dpmsolver++",
        zero_snr=True,
        keys=(*_DPM, *_GRID, "euler_at_final", "use_lu_lambdas"),
        neutral=_FLOW,
        by_algorithm=_NOISE_SOLVER,
        replaced=_NEIGHBOURS_OF_DPM,
    ),
    "DPMSolverSinglestepScheduler": Scheduler(
        "dpmsolver++",
        keys=_DPM,
        knobs={"singlestep": True, "lower_order_final": False},
        neutral=_FLOW,
        by_algorithm=_NOISE_SOLVER,
        replaced=_NEIGHBOURS_OF_DPM,
    ),
    "DEISMultistepScheduler": Scheduler(
        "deis", keys=(*_SOLVER, *_GRID, "algorithm_type"), knobs={"final_sigmas_type": "sigma_min"}, neutral=_FLOW
    ),
    "UniPCMultistepScheduler": Scheduler(
        "unipc",
        zero_snr=True,
        keys=(*_SOLVER, *_GRID, "predict_x0", "disable_corrector", "final_sigmas_type"),
        neutral={**_FLOW, **_SIGMA_RANGE, "solver_p": (None,)},
        replaced=_NEIGHBOURS_OF_UNIPC,
    ),
    "EulerDiscreteScheduler": Scheduler(
        "euler",
        zero_snr=True,
        keys=(*_RATIOS, *_GRID, "final_sigmas_type"),
        neutral={"interpolation_type": ("linear", None), "timestep_type": ("discrete", None), **_SIGMA_RANGE},
    ),
    "EulerAncestralDiscreteScheduler": Scheduler("euler-a", zero_snr=True, keys=_GRID),
    "HeunDiscreteScheduler": Scheduler("heun", schedule=_LATE_BETAS, keys=(*_RATIOS, *_GRID), clips=False),
    "KDPM2DiscreteScheduler": Scheduler("kdpm2", schedule=_LATE_BETAS, keys=(*_RATIOS, *_GRID)),
    "KDPM2AncestralDiscreteScheduler": Scheduler("kdpm2-a", schedule=_LATE_BETAS, keys=(*_RATIOS, *_GRID)),
    "LMSDiscreteScheduler": Scheduler("lms", former=("LMSScheduler",), keys=(*_RATIOS, *_GRID)),
    "ScoreSdeVeScheduler": Scheduler(
        "score-sde-ve",
        kind="ve",
        schedule={"sigma_min": 0.01, "sigma_max": 1348.0, "num_train_timesteps": 2000},
        former=("VeSdeScheduler",),
        pipeline="ScoreSdeVePipeline",
        keys=("snr", "sampling_eps", "correct_steps"),
    ),
    # Its noise levels are those of data in [-1, 1]; its pipeline halves them for the network.
    "KarrasVeScheduler": Scheduler(
        "karras-ve",
        kind="ve",
        schedule={"sigma_min": 0.02, "sigma_max": 100.0, "num_train_timesteps": 1000},
        data_unit=0.5,
        pipeline="KarrasVePipeline",
        keys=("s_noise", "s_churn", "s_min", "s_max"),
        renamed={"s_min": "s_tmin", "s_max": "s_tmax"},
    ),
    "DDIMInverseScheduler": Scheduler(why_not=_INVERSE, zero_snr=True),
    "DPMSolverMultistepInverseScheduler": Scheduler(why_not=_INVERSE),
    "DPMSolverSDEScheduler": Scheduler(
        why_not="Brownian-tree noise is not offered; DPMSolverPP(algorithm_type='sde-dpmsolver++', singlestep=True) is "
        "near it"
    ),
    "SASolverScheduler": Scheduler(
        why_not="that solver is not offered; DPMSolverPP(algorithm_type='sde-dpmsolver++') is near it"
    ),
    "RePaintScheduler": Scheduler(why_not="inpainting is not offered"),
    "LCMScheduler": Scheduler(why_not=_DISTILLED, schedule=_LATENT_BETAS, zero_snr=True),
    "TCDScheduler": Scheduler(why_not=_DISTILLED, schedule=_LATENT_BETAS, zero_snr=True),
    "CMStochasticIterativeScheduler": Scheduler(why_not=_DISTILLED, kind="other"),
    "EDMEulerScheduler": Scheduler(why_not=_EDM, kind="other"),
    "EDMDPMSolverMultistepScheduler": Scheduler(why_not=_EDM, kind="other"),
    "FlowMatchEulerDiscreteScheduler": Scheduler(why_not=_FLOW_MATCHING, kind="other"),
    "FlowMatchHeunDiscreteScheduler": Scheduler(why_not=_FLOW_MATCHING, kind="other"),
    "IPNDMScheduler": Scheduler(
        why_not="PNDM(skip_prk_steps=True) is the same method on the usual grids", kind="other"
    ),
    "ScoreSdeVpScheduler": Scheduler(why_not="its continuous process is not offered", kind="other"),
}
_UNKNOWN = Scheduler(why_not="its networks or its method are not offered", kind="other")

# Names of diffusers 0.0.x.
_OLD_KEYS = {
    "timesteps": "num_train_timesteps",
    "clip_predicted_image": "clip_sample",
}
# Keys of schedulers, in any version, that no record reads. diffusers keeps them in a file when one class is made from
# another's config, so all of them may meet.
_FOREIGN_KEYS = frozenset(
    """
    alpha_cum_end alpha_cum_start base_image_seq_len base_shift beta_max beta_min block_length clip_denoised
    corrector_k corrector_order corrector_selection corrector_selection_tau corrector_steps editing_threshold
    entropy_bound eps eta final_step_size_scale flow_shift gamma gamma_cum_end gamma_cum_start invert_sigmas
    mask_token_id masking_schedule max_image_seq_len max_shift minimal_topk n_grid noise_mode noise_sampler_seed
    num_inference_steps num_policy_substeps num_vec_classes original_inference_steps predict_epsilon predictor_order
    rho s scale_factors scaler schedule_mode scheduler_type set_alpha_to_zero shift shift_terminal sigma_data
    sigma_schedule snr_shift_scale stage_range stages stochastic_sampling t_lim_ode t_lim_ode_below t_max t_min
    tail_step_multiplier tail_steps tau_func tensor_format threshold time_shift_type timestep_scaling
    timestep_values tsr_k tsr_sigma upscale_mode
    """.split()
)


def record_of(class_name: str) -> Scheduler:
    """Return the record of a scheduler class; one that is not listed has another forward process and no sampler.

    Example:
        >>> record_of("DDIMScheduler").sampler, record_of("SomeScheduler").kind
        ('ddim', 'other')
    """
    return SCHEDULERS.get(class_name, _UNKNOWN)


def scheduler_from_dict(items: Mapping[str, Any]) -> tuple[ScheduleConfig, SamplerConfig]:
    """Read a `scheduler_config.json` of diffusers, of any of its versions.

    Keys of the forward process become the schedule, with the class's own defaults for absent ones. The others go to
    the sampler, including the keys of other schedulers that diffusers carries along. A key that no scheduler of
    diffusers has is ignored: silently if it asks for nothing, with a warning otherwise.

    Raises:
        ValueError: a misspelt key, or a wrong value.

    Example:
        >>> schedule, sampler = scheduler_from_dict(
        ...     {"_class_name": "DDPMScheduler", "beta_end": 0.01, "clip_sample": True})
        >>> schedule.beta_end, sampler.items
        (0.01, (('clip_sample', True),))
    """
    class_name = items.get("_class_name") or "DDPMScheduler"
    check(isinstance(class_name, str), f"`_class_name` must be a string, not {class_name!r}.")
    class_name = next((name for name, record in SCHEDULERS.items() if class_name in record.former), class_name)
    values = {_OLD_KEYS.get(name, name): freeze(value) for name, value in items.items() if not name.startswith("_")}
    values = known_items(values, _known_keys(), "A scheduler")
    if values.pop("predict_epsilon", True) is False:  # diffusers before 0.5
        values["prediction_type"] = "sample"
    schedule, taken = _schedule_from(values, record_of(class_name))
    rest = tuple(sorted((name, value) for name, value in values.items() if name not in taken))
    return schedule, SamplerConfig(class_name, rest)


def _schedule_from(values: Mapping[str, Any], record: Scheduler) -> tuple[ScheduleConfig, set[str]]:
    """Return the schedule, and the names of the keys that say it."""
    if record.kind == "ve":
        taken = {"num_train_timesteps", "sigma_min", "sigma_max"}
    elif record.kind == "vp":
        taken = _schedule_keys() - {"sigma_min", "sigma_max"}
    else:
        taken = {"num_train_timesteps"}
    given = {**record.schedule, **{name: value for name, value in values.items() if name in taken}}
    if record.kind == "ve":
        sigmas = [given["sigma_min"], given["sigma_max"]]
        check(all(map(is_number, sigmas)), f"`sigma_min` and `sigma_max` must be numbers, not {sigmas}.")
        low, high = (sigma * record.data_unit for sigma in sigmas)
        given |= {"sigma_min": low, "sigma_max": high}
    return ScheduleConfig(kind=record.kind, **given), taken


def _schedule_keys() -> set[str]:
    return {field.name for field in dataclasses.fields(ScheduleConfig)} - {"kind"}


def _known_keys() -> set[str]:
    of_records = {key for record in SCHEDULERS.values() for key in (*record.keys, *record.neutral)}
    return _schedule_keys() | of_records | set(CLIP_KEYS) | _FOREIGN_KEYS


def scheduler_to_dict(schedule: ScheduleConfig, sampler: SamplerConfig) -> dict[str, Any]:
    """Write what `scheduler_from_dict` reads: a `scheduler_config.json` that diffusers opens.

    Example:
        >>> scheduler_to_dict(ScheduleConfig(), SamplerConfig())["beta_schedule"]
        'linear'
    """
    record = record_of(sampler.class_name)
    items: dict[str, Any] = {"_class_name": sampler.class_name, "num_train_timesteps": schedule.num_train_timesteps}
    if schedule.kind == "ve":
        low, high = schedule.sigma_range
        items |= {"sigma_min": low / record.data_unit, "sigma_max": high / record.data_unit}
    elif schedule.kind == "vp":
        betas = schedule.trained_betas
        items |= {
            "beta_start": schedule.beta_start,
            "beta_end": schedule.beta_end,
            "beta_schedule": schedule.beta_schedule,
            "trained_betas": thaw(betas) if betas is not None else None,
            "prediction_type": schedule.prediction_type,
        }
        if schedule.rescale_betas_zero_snr or record.zero_snr:
            items["rescale_betas_zero_snr"] = schedule.rescale_betas_zero_snr
    return items | sampler.to_dict()
