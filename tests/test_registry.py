"""Samplers by name and by diffusers' scheduler configs."""

import dataclasses
import json

import pytest
from conftest import make_params

import ddpm_jax
from ddpm_jax import samplers
from ddpm_jax.config import SamplerConfig, ScheduleConfig, scheduler_from_dict, scheduler_to_dict
from ddpm_jax.config.schedulers import SCHEDULERS, Scheduler
from ddpm_jax.samplers import DDIM, DDPM
from ddpm_jax.samplers.registry import describe


def test_from_config():
    _, config = scheduler_from_dict(
        {
            "_class_name": "DDPMScheduler",
            "variance_type": "fixed_large",
            "clip_sample_range": 2.0,
            "skip_prk_steps": True,
        }
    )
    assert samplers.from_config(config) == DDPM(variance_type="fixed_large", clip=2.0)
    items = {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    assert samplers.from_config(items) == DDIM(clip=None, set_alpha_to_one=False, steps_offset=1)
    assert samplers.from_config(items, num_steps=7).num_steps == 7
    old = {"_class_name": "DDPMScheduler", "timesteps": 1000, "clip_predicted_image": False, "clip_sample_range": None}
    assert samplers.from_config(old) == DDPM(clip=None)
    assert samplers.from_config({"clip_sample_range": None}) == DDPM()


@pytest.mark.parametrize(
    "items, expected",
    [
        (
            {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "clip_sample": True},
            samplers.PNDM(skip_prk_steps=True),
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "use_karras_sigmas": True},
            samplers.DPMSolverPP(solver_order=3, timestep_spacing="karras"),
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "deis", "solver_type": "logrho"},
            samplers.DPMSolverPP(),
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver", "use_lu_lambdas": True},
            samplers.DPMSolver(algorithm_type="sde-dpmsolver", timestep_spacing="logsnr"),
        ),
        (
            {"_class_name": "DPMSolverSinglestepScheduler", "lambda_min_clipped": -5.1},
            samplers.DPMSolverPP(singlestep=True, lambda_min_clipped=-5.1),
        ),
        ({"_class_name": "DEISMultistepScheduler"}, samplers.DEIS(final_sigmas_type="sigma_min")),
        (
            {"_class_name": "UniPCMultistepScheduler", "disable_corrector": [0, 1], "solver_type": "midpoint"},
            samplers.UniPC(disable_corrector=(0, 1)),
        ),
        (
            {"_class_name": "EulerDiscreteScheduler", "use_exponential_sigmas": True, "clip_sample": True},
            samplers.Euler(timestep_spacing="exponential"),
        ),
        ({"_class_name": "EulerAncestralDiscreteScheduler", "use_karras_sigmas": True}, samplers.EulerAncestral()),
        ({"_class_name": "HeunDiscreteScheduler", "clip_sample": True}, samplers.Heun(clip=1.0)),
        ({"_class_name": "KDPM2DiscreteScheduler", "use_beta_sigmas": True}, samplers.KDPM2(timestep_spacing="beta")),
        ({"_class_name": "KDPM2AncestralDiscreteScheduler"}, samplers.KDPM2Ancestral()),
        ({"_class_name": "LMSScheduler"}, samplers.LMS()),
        ({"_class_name": "ScoreSdeVeScheduler", "snr": 0.17}, samplers.ScoreSdeVe(snr=0.17)),
        ({"_class_name": "KarrasVeScheduler", "s_min": 0.1}, samplers.KarrasVe(s_tmin=0.1)),
        # the keys of another scheduler, carried along
        ({"_class_name": "LMSDiscreteScheduler", "solver_order": 2, "thresholding": True}, samplers.LMS()),
        (
            {"_class_name": "DPMSolverSinglestepScheduler", "timestep_spacing": "leading", "euler_at_final": True},
            samplers.DPMSolverPP(singlestep=True),
        ),
        (
            {"_class_name": "DEISMultistepScheduler", "final_sigmas_type": "zero"},
            samplers.DEIS(final_sigmas_type="sigma_min"),
        ),
        ({"_class_name": "EulerDiscreteScheduler", "use_lu_lambdas": True}, samplers.Euler()),
        ({"_class_name": "PNDMScheduler", "thresholding": True}, samplers.PNDM()),
        ({"_class_name": "UnCLIPScheduler"}, DDPM(timestep_spacing="linspace", variance_type="fixed_small_log")),
    ],
)
def test_from_config_of_every_scheduler(items, expected, recwarn):
    assert samplers.from_config(items) == expected
    assert not recwarn.list


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_record_is_complete(name):
    """A sampler or the reason why there is none; whatever it names, the sampler has."""
    record = SCHEDULERS[name]
    assert (record.sampler is None) == bool(record.why_not)
    assert record.kind in ("vp", "ve", "other") and (record.kind != "other" or record.sampler is None)
    schedule = {field.name for field in dataclasses.fields(ScheduleConfig)}
    assert record.schedule.keys() <= schedule - {"kind"}
    if record.sampler is None:
        assert record == Scheduler(
            None, record.why_not, record.kind, record.schedule, record.zero_snr, former=record.former
        )
        return
    kinds = [samplers.SAMPLERS[sampler] for sampler in (record.sampler, *record.by_algorithm.values())]
    knobs = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    grids = {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"}
    chooses = {"algorithm_type"} if name != "DEISMultistepScheduler" else {"algorithm_type", "solver_type"}  # one each
    assert {record.renamed.get(key, key) for key in record.keys} <= knobs | grids | chooses
    assert record.knobs.keys() <= knobs and record.renamed.keys() <= set(record.keys)
    assert record.replaced.keys() <= set(record.keys)
    assert not record.by_algorithm or "algorithm_type" in record.keys
    assert not set(record.neutral) & set(record.keys)


def test_a_scheduler_is_added_in_one_place(monkeypatch, tmp_path, recwarn):
    """Its record alone makes its files open, sample and come out again as they were."""
    record = Scheduler(
        "euler",
        schedule={"beta_end": 0.5},
        zero_snr=True,
        former=("VeryOldScheduler",),
        pipeline="NewPipeline",
        keys=("churn_of_the_new", "final_sigmas_type"),
        knobs={"s_noise": 1.5},
        neutral={"only_of_the_new": (False,)},
        renamed={"churn_of_the_new": "s_churn"},
        replaced={"final_sigmas_type": {"none": "zero"}},
    )
    items = {"_class_name": "VeryOldScheduler", "churn_of_the_new": 3, "final_sigmas_type": "none"}
    monkeypatch.setitem(SCHEDULERS, "NewScheduler", record)
    schedule, sampler = scheduler_from_dict(items | {"only_of_the_new": False})
    assert schedule == ScheduleConfig(beta_end=0.5) and sampler.class_name == "NewScheduler"
    assert samplers.has_sampler(sampler)
    assert samplers.from_config(sampler) == samplers.Euler(s_churn=3, s_noise=1.5)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="Euler cannot honour these settings of NewScheduler: only_of_the_new=True"):
        samplers.from_config(items | {"only_of_the_new": True})

    written = scheduler_to_dict(schedule, sampler)
    assert written["rescale_betas_zero_snr"] is False and scheduler_from_dict(written) == (schedule, sampler)
    params = make_params()
    config = ddpm_jax.Config(params.config.unet, schedule, sampler)
    folder = ddpm_jax.save(params.replace(config=config), tmp_path / "x", format="diffusers")
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "NewPipeline"
    assert ddpm_jax.load(folder).config == config

    monkeypatch.delitem(SCHEDULERS, "NewScheduler")
    assert not samplers.has_sampler(SamplerConfig("NewScheduler"))


def test_every_sampler_of_diffusers_is_named_by_a_record():
    assert {record.sampler for record in SCHEDULERS.values()} - {None} == samplers.SAMPLERS.keys() - {"dpmsolver"}


@pytest.mark.parametrize(
    "items, named",
    [
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas=True"),
        (
            {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"},
            "interpolation_type='log_linear'",
        ),
        (
            {"_class_name": "HeunDiscreteScheduler", "use_karras_sigmas": True, "timestep_spacing": "leading"},
            "timestep_spacing='leading'",
        ),
    ],
)
def test_what_cannot_be_honoured_is_said(items, named):
    with pytest.warns(UserWarning, match=f"cannot honour these settings of .*{named}"):
        samplers.from_config(items)


@pytest.mark.parametrize(
    "name, why",
    [
        ("DDIMInverseScheduler", "use `ddpm_jax.invert`"),
        ("DPMSolverSDEScheduler", "Brownian-tree noise is not offered"),
        ("LCMScheduler", "distilled models"),
        ("FlowMatchEulerDiscreteScheduler", "flow matching, which is not offered"),
        ("RePaintScheduler", "inpainting is not offered"),
        ("CosineDPMSolverMultistepScheduler", "its networks or its method are not offered"),
    ],
)
def test_a_scheduler_without_a_sampler_is_named(name, why):
    with pytest.raises(ValueError, match=f"{name}, has no sampler here: .*{why}"):
        samplers.from_config({"_class_name": name})


def test_knobs_win_over_those_of_the_file():
    items = {"_class_name": "DDIMScheduler", "steps_offset": 1, "thresholding": True, "clip_sample_range": 2.0}
    assert samplers.from_config(items) == DDIM(steps_offset=1, thresholding=True)  # clipping has no part in it
    grid = samplers.from_config(items, timesteps=(900, 500, 0), thresholding=False)
    assert grid == DDIM(timesteps=(900, 500, 0), clip=2.0)
    with pytest.raises(ValueError, match="`clip` does nothing here, set to 0.5: it acts where `thresholding` is false"):
        samplers.from_config(items, clip=0.5)
    single = {"_class_name": "DPMSolverSinglestepScheduler"}
    ends = samplers.from_config(single, final_sigmas_type="sigma_min")
    assert not ends.lower_order_final  # diffusers' default of that class, which now acts


def test_a_sampler_of_ones_own_is_described():
    """One without a grid has no default number of steps."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(samplers.Sampler):
        knob: int = 3

        def table(self, schedule):
            return DDIM().table(schedule)

    assert describe(Own()) == "Own()" and describe(Own(knob=4)) == "Own(knob=4)"


def test_by_name_suggests():
    with pytest.raises(ValueError, match="Did you mean `ddim`"):
        samplers.by_name("dddim")


def test_fast_has_a_name():
    assert samplers.by_name("fast").table(ScheduleConfig()).num_evals == 20
