"""Samplers by name, and by the scheduler configs of diffusers."""

import dataclasses
import warnings
from typing import Any

from ddpm_jax.config import SamplerConfig, scheduler_from_dict
from ddpm_jax.config.schedulers import CLIP_KEYS, record_of
from ddpm_jax.samplers.ancestral import DDIM, DDPM
from ddpm_jax.samplers.base import Sampler
from ddpm_jax.samplers.effects import with_effects
from ddpm_jax.samplers.exponential import DEIS, DPMSolver, DPMSolverPP, UniPC
from ddpm_jax.samplers.grid_sampler import GridSampler
from ddpm_jax.samplers.k_diffusion import KDPM2, LMS, Euler, EulerAncestral, Heun, KarrasVe, KDPM2Ancestral
from ddpm_jax.samplers.pndm import PNDM
from ddpm_jax.samplers.score_sde_ve import ScoreSdeVe
from ddpm_jax.validation import nearest

SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "dpmsolver++": DPMSolverPP,
    "dpmsolver": DPMSolver,
    "deis": DEIS,
    "unipc": UniPC,
    "pndm": PNDM,
    "euler": Euler,
    "euler-a": EulerAncestral,
    "heun": Heun,
    "kdpm2": KDPM2,
    "kdpm2-a": KDPM2Ancestral,
    "lms": LMS,
    "score-sde-ve": ScoreSdeVe,
    "karras-ve": KarrasVe,
}


# Of all samplers with 20 evaluations on their default grids, DPM-Solver++ 3M comes nearest to 1000-step ancestral
# samples of digits-16; DEIS, UniPC and DPM-Solver(++) of other orders lie within the bootstrap's interval. clip=1.0:
# without it 99 of 500 samples of an under-trained network stayed noisy, with it none
# (benchmarks/quality_versus_steps.py).
FAST = DPMSolverPP(solver_order=3, clip=1.0)


# Grids of noise levels, by the config key that asks for them.
_RATIO_GRIDS = {
    "use_karras_sigmas": "karras",
    "use_lu_lambdas": "logsnr",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}


def by_name(name: str) -> Sampler:
    """Return the sampler of a name in SAMPLERS, with its default knobs; "fast" is a solver of 20 evaluations.

    Raises:
        ValueError: an unknown name; the message lists the known ones.

    Example:
        >>> by_name("ddim") == DDIM()
        True
    """
    if name == "fast":
        return FAST
    if name not in SAMPLERS:
        known = ("fast", *SAMPLERS)
        raise ValueError(f"There is no sampler {name!r}.{nearest(str(name), known)} There is {', '.join(known)}.")
    return SAMPLERS[name]()


def has_sampler(config: SamplerConfig) -> bool:
    """Tell whether a checkpoint's scheduler has a sampler here.

    Example:
        >>> has_sampler(ddpm_jax.load("digits-16").config.sampler)
        True
    """
    return record_of(config.class_name).sampler is not None


def from_config(config: dict[str, Any] | SamplerConfig, **knobs: Any) -> Sampler:
    """Return the sampler that a scheduler config of diffusers names, with its knobs.

    Keys that the scheduler does not have are ignored, as in diffusers, whose files carry keys of other schedulers
    along; so are those of the forward process. diffusers rounds the timesteps of Karras's and other grids of noise
    levels; here the network gets the exact ones.

    Args:
        config: the contents of a `scheduler_config.json`, or `params.config.sampler`.
        **knobs: knobs of the sampler, such as num_steps=20; they win over the file's. Knobs of the file that then do
            nothing are left out.

    Returns:
        The sampler. A warning names the settings that it cannot honour.

    Raises:
        ValueError: the scheduler has no sampler here, or a knob has a bad value.
        TypeError: the sampler has no such knob.

    Example:
        >>> from_config({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}).timestep_spacing
        'karras'
    """
    sampler, own = named(config)
    return with_effects(sampler, own, knobs)


def named(config: dict[str, Any] | SamplerConfig) -> tuple[type[Sampler], dict[str, Any]]:
    """Return the class of the sampler that a scheduler config names, and every knob that the config sets.

    Example:
        >>> named({"_class_name": "LMSDiscreteScheduler", "steps_offset": 1})[1]
        {'steps_offset': 1}
    """
    if not isinstance(config, SamplerConfig):
        _, config = scheduler_from_dict(config)
    record = record_of(config.class_name)
    if record.sampler is None:
        raise ValueError(
            f"The checkpoint's scheduler, {config.class_name}, has no sampler here: {record.why_not}. Pass one of "
            f"SAMPLERS ({', '.join(SAMPLERS)}) as `sampler`; `apply` works with any checkpoint."
        )
    read = (*record.keys, *CLIP_KEYS, *record.neutral)
    items = {name: value for name, value in config.items if name in read}
    for name, values in record.replaced.items():
        if items.get(name) in values:
            items[name] = values[items[name]]
    sampler = SAMPLERS[record.by_algorithm.get(items.get("algorithm_type"), record.sampler)]
    names = {field.name for field in dataclasses.fields(sampler)} - {"timesteps", "clip"}
    given = {record.renamed.get(name, name): value for name, value in items.items() if value is not None}
    knobs = {**record.knobs, **{name: value for name, value in given.items() if name in names}}
    ignored = [name for name, values in record.neutral.items() if items.get(name) not in values]

    if record.clips is not None and items.get("clip_sample", record.clips):
        clip_range = items.get("clip_sample_range")
        knobs["clip"] = 1.0 if clip_range is None else clip_range
    elif record.clips is not None:
        knobs["clip"] = None
    grids = [grid for name, grid in _RATIO_GRIDS.items() if items.get(name)]
    if grids:
        if knobs.get("timestep_spacing", "linspace") != "linspace" and issubclass(sampler, Euler | Heun | KDPM2 | LMS):
            ignored.append("timestep_spacing")  # there it would shorten the range of the noise levels
        knobs["timestep_spacing"] = grids[0]
    if ignored:
        settings = ", ".join(f"{name}={items[name]!r}" for name in ignored)
        warnings.warn(
            f"{sampler.__name__} cannot honour these settings of {config.class_name}: {settings}.", stacklevel=2
        )
    return sampler, knobs


def describe(sampler: Sampler) -> str:
    """Return a sampler as one would write it: its class, and the knobs that differ from their defaults.

    Example:
        >>> describe(DDIM(num_steps=10, eta=0.5)), describe(DDIM(num_steps=50))
        ('DDIM(num_steps=10, eta=0.5)', 'DDIM()')
    """
    return in_words(*own_knobs(sampler))


def own_knobs(sampler: Sampler) -> tuple[type[Sampler], dict[str, Any]]:
    """Return the class of a sampler, and those of its knobs that differ from their defaults.

    Example:
        >>> own_knobs(DDIM(num_steps=10))[1]
        {'num_steps': 10}
    """
    values = {field.name: (getattr(sampler, field.name), field.default) for field in dataclasses.fields(sampler)}
    return type(sampler), {name: value for name, (value, default) in values.items() if value != default}


def in_words(sampler: type[Sampler], knobs: dict[str, Any]) -> str:
    """Return the text of `describe` for a class and knobs, some of which may do nothing beside the others.

    Example:
        >>> in_words(DDIM, {"eta": 0.5, "timesteps": (900, 0), "num_steps": 2})
        'DDIM(timesteps=(900, 0), eta=0.5)'
    """
    unused = {"num_steps", "timestep_spacing", "steps_offset"} if knobs.get("timesteps") else set()
    if issubclass(sampler, GridSampler) and knobs.get("num_steps") == sampler.default_steps:
        unused |= {"num_steps"}
    shown = [
        f"{field.name}={knobs[field.name]!r}"
        for field in dataclasses.fields(sampler)
        if field.name in knobs and knobs[field.name] != field.default and field.name not in unused
    ]
    return f"{sampler.__name__}({', '.join(shown)})"
