"""Knobs of the samplers: bad ones, idle ones, what each acts on, and defaults on any schedule."""

import dataclasses

import jax
import numpy as np
import pytest
from known_models import EPS, SPACINGS, VE, own_schedule

from ddpm_jax import samplers
from ddpm_jax.config import ScheduleConfig
from ddpm_jax.samplers import DDIM, DDPM, SAMPLERS, DDIMInverse


@pytest.mark.parametrize(
    "sampler, knobs, message",
    [
        (DDPM, {"variance_type": "other"}, "`variance_type` must be one of"),
        (DDPM, {"clip": -1.0}, "`clip` must be a positive number"),
        (DDPM, {"dynamic_thresholding_ratio": 1.5}, "`dynamic_thresholding_ratio`"),
        (DDPM, {"sample_max_value": 0.0}, "`sample_max_value`"),
        (DDPM, {"steps_offset": -1}, "`steps_offset` must be a non-negative integer"),
        (DDIM, {"eta": 1.5}, r"`eta` must be in \[0, 1\]"),
        (samplers.DPMSolverPP, {"solver_order": 4}, r"`solver_order` must be one of \[1, 2, 3\], not 4"),
        (samplers.UniPC, {"solver_order": 0}, r"`solver_order` must be one of \[1, 2, 3\], not 0"),
        (samplers.LMS, {"solver_order": 5}, "`solver_order` must be from 1 to 4, not 5"),
        (samplers.DPMSolverPP, {"algorithm_type": "dpmsolver"}, "`algorithm_type` must be one of"),
        (samplers.DPMSolverPP, {"solver_type": "bh1"}, "`solver_type` must be one of"),
        (samplers.UniPC, {"solver_type": "heun"}, "`solver_type` must be one of"),
        (samplers.UniPC, {"disable_corrector": (-1,)}, "`disable_corrector` must be a list of steps"),
        (samplers.DEIS, {"final_sigmas_type": "one"}, "`final_sigmas_type` must be one of"),
        (samplers.Heun, {"s_churn": -1.0}, "`s_churn` must be a number from 0 up"),
        (samplers.ScoreSdeVe, {"snr": 0.0}, "`snr` must be a positive number"),
        (samplers.ScoreSdeVe, {"correct_steps": -1}, "`correct_steps` must be an integer from 0 up"),
        (samplers.ScoreSdeVe, {"sampling_eps": 1.0}, "`sampling_eps` must be in"),
        (DDIMInverse, {"num_iterations": 0}, "`num_iterations` must be a positive integer"),
    ],
)
def test_bad_knobs(sampler, knobs, message):
    with pytest.raises(ValueError, match=message):
        sampler(**knobs)


# knobs, one of which does nothing beside the others; and what makes it act
IDLE = [
    (DDPM, {"sample_max_value": 2.0}, {"thresholding": True}),
    (DDIM, {"dynamic_thresholding_ratio": 0.9}, {"thresholding": True}),
    (DDPM, {"clip": 0.5, "thresholding": True}, {"thresholding": False}),
    (DDPM, {"steps_offset": 1, "timestep_spacing": "trailing"}, {"timestep_spacing": "leading"}),
    (samplers.DPMSolverPP, {"steps_offset": 1}, {"timestep_spacing": "leading"}),
    (DDIM, {"num_steps": 5, "timesteps": (900, 500, 0)}, {"num_steps": 3}),
    (DDIM, {"timestep_spacing": "trailing", "timesteps": (900, 500, 0)}, {"timesteps": None}),
    (DDIM, {"steps_offset": 1, "timesteps": (900, 500, 0)}, {"timesteps": None}),
    (DDIM, {"use_clipped_model_output": True, "clip": None}, {"clip": 1.0}),
    (samplers.DPMSolver, {"solver_type": "heun", "solver_order": 1}, {"solver_order": 3}),
    (samplers.DPMSolverPP, {"singlestep": True, "solver_order": 1}, {"solver_order": 2}),
    (samplers.DPMSolverPP, {"euler_at_final": True}, {"final_sigmas_type": "sigma_min"}),
    (
        samplers.DPMSolverPP,
        {"euler_at_final": True, "singlestep": True, "final_sigmas_type": "sigma_min"},
        {"singlestep": False},
    ),
    (samplers.DPMSolverPP, {"lower_order_final": False}, {"solver_order": 3}),
    (
        samplers.DPMSolverPP,
        {"lower_order_final": False, "singlestep": True, "solver_order": 3},
        {"final_sigmas_type": "sigma_min"},
    ),
    (samplers.DEIS, {"lower_order_final": False}, {"final_sigmas_type": "sigma_min"}),
    (samplers.UniPC, {"lower_order_final": False, "solver_order": 1}, {"solver_order": 3}),
    (samplers.UniPC, {"solver_type": "bh1", "solver_order": 1, "corrector": False}, {"corrector": True}),
    (samplers.UniPC, {"predict_x0": False, "solver_order": 1, "corrector": False}, {"corrector": True}),
    (samplers.UniPC, {"disable_corrector": (0,), "corrector": False}, {"corrector": True}),
    (samplers.Euler, {"s_noise": 1.1}, {"s_churn": 40.0}),
    (samplers.Heun, {"s_tmin": 0.05}, {"s_churn": 40.0}),
    (samplers.KarrasVe, {"s_tmax": 10.0, "s_churn": 0.0}, {"s_churn": 40.0}),
    (samplers.ScoreSdeVe, {"snr": 0.2, "correct_steps": 0}, {"correct_steps": 1}),
]


@pytest.mark.parametrize("sampler, knobs, cure", IDLE, ids=lambda value: getattr(value, "__name__", None))
def test_a_knob_that_does_nothing_is_refused(sampler, knobs, cure):
    name = next(iter(knobs))
    with pytest.raises(
        ValueError, match=f"`{name}` does nothing here, set to .*: it acts where .*Leave it at its default"
    ):
        sampler(**knobs)
    sampler(**knobs | cure)


LISTED = SAMPLERS | {"ddim-inverse": DDIMInverse}


def numbers(sampler):
    """All that a sampler does to a run."""
    table = sampler.table(own_schedule(next(name for name, cls in LISTED.items() if type(sampler) is cls)))
    rows = jax.tree.map(np.asarray, table.rows(np.float64))
    return [table.switches, table.init_scale, *(array.tolist() for array in rows)]


# A value of each knob that is not its default, and the knobs beside which it acts.
OTHER = {
    "num_steps": (7, {}),
    "clip": (0.7, {}),
    "thresholding": (True, {}),
    "dynamic_thresholding_ratio": (0.9, {"thresholding": True}),
    "sample_max_value": (2.0, {"thresholding": True}),
    "timestep_spacing": ("karras", {}),
    "steps_offset": (1, {"timestep_spacing": "leading"}),
    "timesteps": ((900.5, 300.0, 20.25), {}),
    "variance_type": ("fixed_large", {}),
    "eta": (0.5, {}),
    "use_clipped_model_output": (True, {}),
    "set_alpha_to_one": (False, {}),
    "skip_prk_steps": (True, {}),
    "solver_order": (3, {}),
    "lower_order_final": (False, {"solver_order": 3}),
    "final_sigmas_type": ("sigma_min", {}),
    "lambda_min_clipped": (-4.0, {}),
    "algorithm_type": (lambda name: f"sde-{name}", {}),
    "solver_type": (lambda name: "bh1" if name == "unipc" else "heun", {}),
    "singlestep": (True, {}),
    "euler_at_final": (True, {"final_sigmas_type": "sigma_min", "solver_order": 3, "lower_order_final": False}),
    "predict_x0": (False, {}),
    "corrector": (False, {}),
    "disable_corrector": ((0,), {}),
    "s_churn": (2.0, {}),
    "s_tmin": (1.0, {"s_churn": 40.0}),
    "s_tmax": (2.0, {"s_churn": 40.0}),
    "s_noise": (1.1, {"s_churn": 40.0}),
    "snr": (0.2, {}),
    "correct_steps": (2, {}),
    "sampling_eps": (1e-3, {}),
    "num_iterations": (2, {}),
}


@pytest.mark.filterwarnings("ignore:Ancestral sampling")
@pytest.mark.parametrize(
    "name, knob", [(name, field.name) for name, cls in LISTED.items() for field in dataclasses.fields(cls)]
)
def test_every_knob_acts(name, knob):
    """Changed alone it changes the run, or is refused; and beside what it needs it changes the run."""
    value, beside = OTHER[knob]
    fields = {field.name: field.default for field in dataclasses.fields(LISTED[name])}
    if value == fields[knob]:
        value = value / 2 if isinstance(value, float) else not value
    value = value(name) if callable(value) else value
    base = {} if knob in ("num_steps", "timesteps") else {"num_steps": 10}
    try:
        changed = LISTED[name](**base, **{knob: value})
    except ValueError as error:
        assert f"`{knob}` does nothing here, set to {value!r}: " in str(error)
    else:
        assert numbers(changed) != numbers(LISTED[name](**base))
    base |= beside
    assert numbers(LISTED[name](**base, **{knob: value})) != numbers(LISTED[name](**base))


@pytest.mark.parametrize("total", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("name", ["fast", *SAMPLERS])
def test_defaults_fit_any_schedule(name, total):
    """As many steps as the sampler's own number, or as the schedule has."""
    if name == "score-sde-ve":
        schedule = dataclasses.replace(VE, num_train_timesteps=total)
    else:
        schedule = ScheduleConfig(num_train_timesteps=total)
    sampler = samplers.by_name(name)
    table = sampler.table(schedule)
    assert table.ends_step.sum() == min(sampler.default_steps or total, total)
    assert np.all(np.isfinite(table.t)) and np.all(np.isfinite(table.mix)) and np.isfinite(table.init_scale)
    for spacing in SPACINGS:
        changed = dataclasses.replace(sampler, timestep_spacing=spacing)
        if spacing == "leading" and total == 1 and not sampler._clean_last:
            with pytest.raises(ValueError, match="`steps_offset` 0 has no step within the 1 training timesteps"):
                changed.table(schedule)
            continue
        few = not sampler._clean_last and spacing == "leading"
        assert changed.table(schedule).ends_step.sum() == min(sampler.default_steps or total, total - few)
        assert np.all(np.isfinite(changed.table(schedule).t))
    for steps in (1, total):
        asked = dataclasses.replace(sampler, num_steps=steps).table(schedule)
        assert asked.ends_step.sum() == steps and np.all(np.isfinite(asked.mix))
    with pytest.raises(ValueError, match=f"`num_steps` must be an integer from 1 to {total} "):
        dataclasses.replace(sampler, num_steps=total + 1).table(schedule)


@pytest.mark.parametrize("total", [3, 10, 50, 1000])
@pytest.mark.parametrize("name", ["DDPM", "DDIM", "PNDM"])
def test_an_offset_of_one_fits_any_schedule(name, total):
    """In diffusers it is an IndexError where there are as many steps as timesteps (issue 10003)."""
    sampler = samplers.from_config({"_class_name": f"{name}Scheduler", "steps_offset": 1})
    table = sampler.table(ScheduleConfig(num_train_timesteps=total))
    assert table.t[0] <= total - 1 and table.ends_step.sum() == min(sampler.default_steps or total, total - 1)


def test_unknown_spacing():
    with pytest.raises(ValueError, match="`timestep_spacing` must be one of .*Did you mean `karras`"):
        DDPM(num_steps=10, timestep_spacing="karas").table(EPS)


def test_few_steps_with_fixed_large_warn():
    with pytest.warns(UserWarning, match="leaves noise in the images"):
        DDPM(num_steps=20, variance_type="fixed_large").table(EPS)
