"""Live against the schedulers of the installed diffusers: whole runs from equal x_T with equal noise.

Needs torch and diffusers (the `parity` extra). Each scheduler's own config says what our sampler is.
"""

import dataclasses
import inspect
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_models import run_table

import ddpm_jax
from ddpm_jax import samplers
from ddpm_jax.checkpoint import to_state_dict
from ddpm_jax.config.schedulers import SCHEDULERS

pytestmark = pytest.mark.slow

V = {"prediction_type": "v_prediction"}
X0 = {"prediction_type": "sample"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
KARRAS = {"use_karras_sigmas": True}
BETA = {"use_beta_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
TRAILING = {"timestep_spacing": "trailing"}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
THRESHOLD = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
SDE = {"algorithm_type": "sde-dpmsolver++"}
NOISE_ODE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
SINGLESTEP, MULTISTEP, UNIPC = "DPMSolverSinglestep", "DPMSolverMultistep", "UniPCMultistep"

# scheduler, settings, steps
RUNS = [
    ("DDPM", {"beta_schedule": "scaled_linear", **V, **TRAILING}, 10),
    ("DDPM", {**COSINE, **X0, "clip_sample_range": 0.7}, 10),
    ("DDPM", {**THRESHOLD, "steps_offset": 1}, 10),
    ("DDPM", {"clip_sample": False, "rescale_betas_zero_snr": True, "num_train_timesteps": 500}, 10),
    ("DDIM", {"beta_schedule": "scaled_linear", **V, **TRAILING}, 10),
    ("DDIM", {**COSINE, **X0, "clip_sample_range": 0.7}, 10),
    ("DDIM", {**THRESHOLD, "steps_offset": 1}, 10),
    ("DDIM", {"clip_sample": False, "rescale_betas_zero_snr": True, "num_train_timesteps": 500}, 10),
    ("UnCLIP", {}, 10),
    *[("PNDM", settings, 20) for settings in ({}, {"skip_prk_steps": True}, {"set_alpha_to_one": True, **LEADING})],
    *[(MULTISTEP, {"solver_order": order, **settings}, 20) for order in (1, 2) for settings in (
        *({}, V, X0, KARRAS, EXPONENTIAL, BETA, TRAILING, LEADING, THRESHOLD, NOISE_ODE, SDE),
        *({"solver_type": "heun"}, {"use_lu_lambdas": True}, {"euler_at_final": True}, {**SDE, "solver_type": "heun"}),
        *({**NOISE_ODE, "algorithm_type": "sde-dpmsolver"}, {**NOISE_ODE, "solver_type": "heun"}),
        {**COSINE, "lambda_min_clipped": -5.1},
    )],
    (MULTISTEP, {}, 10),
    *[(name, TRAILING, 16) for name in ("DDPM", MULTISTEP, "EulerDiscrete")],  # T / N ends in .5: rounded to even
    (MULTISTEP, {"lower_order_final": False, **V}, 10),
    *[(SINGLESTEP, {"solver_order": order, **settings}, steps) for order in (1, 2, 3) for steps in (9, 10, 11)
      for settings in ({}, V, {"solver_type": "heun"}, SDE, NOISE_ODE)],
    (SINGLESTEP, {"lower_order_final": True, **KARRAS}, 10),
    *[(UNIPC, {"solver_order": order, **settings}, 20) for order in (1, 2, 3) for settings in (
        *({}, V, X0, KARRAS, TRAILING, THRESHOLD, {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
        *({"solver_type": "bh1", "final_sigmas_type": "sigma_min"}, {"disable_corrector": [0, 3]}),
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
    )],
    *[("DEISMultistep", {"solver_order": order, **settings}, steps) for order in (1, 2, 3) for steps in (10, 20)
      for settings in ({}, V, KARRAS)],
    *[("EulerDiscrete", settings, 20) for settings in ({}, V, X0, KARRAS, BETA, TRAILING, LEADING)],
    ("EulerDiscrete", {"final_sigmas_type": "sigma_min"}, 10),
    *[("EulerAncestralDiscrete", settings, 20) for settings in ({}, V, TRAILING, LEADING)],
    *[("HeunDiscrete", settings, 20) for settings in ({}, V, X0, KARRAS, TRAILING, {"clip_sample": True})],
    *[("KDPM2Discrete", settings, 20) for settings in ({}, V, EXPONENTIAL, KARRAS)],
    *[("KDPM2AncestralDiscrete", settings, 20) for settings in ({}, V, KARRAS)],
    *[("LMSDiscrete", settings, 20) for settings in ({}, V, X0, KARRAS, TRAILING)],
]  # fmt: skip


@pytest.fixture
def inject(monkeypatch):
    """Let every scheduler module of diffusers that has been loaded draw from an iterator."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")

    def patch(draws):
        draw = lambda *args, **kwargs: torch.from_numpy(next(draws))
        for name, module in list(sys.modules.items()):
            if name.startswith("diffusers.schedulers.") and "randn_tensor" in vars(module):
                monkeypatch.setattr(module, "randn_tensor", draw)

    return patch


def smooth(xp):
    """A network that neither blows roundings up nor is linear."""
    return lambda x, t: 0.8 * xp.tanh(x) + 0.1 * xp.cos(x + t / 200)


def run_diffusers(net, scheduler, x_T, steps):
    """The loop as it should be: with the input scaled, and x_T too."""
    import torch
    from diffusers import UnCLIPScheduler

    scheduler.set_timesteps(steps)
    x = torch.from_numpy(x_T) * scheduler.init_noise_sigma
    with torch.inference_mode():
        for i, t in enumerate(scheduler.timesteps):
            last = i == len(scheduler.timesteps) - 1
            unclip = isinstance(scheduler, UnCLIPScheduler)  # which is told where a step goes
            more = {"prev_timestep": scheduler.timesteps[i + 1]} if unclip and not last else {}
            x = scheduler.step(net(scheduler.scale_model_input(x, t), t), t, x, **more).prev_sample
    return x.numpy()


@pytest.mark.parametrize("name, settings, steps", RUNS)
def test_sampler_of_a_config_equals_the_scheduler(name, settings, steps, inject):
    import diffusers
    import torch

    scheduler = getattr(diffusers, f"{name}Scheduler")(**settings)
    schedule, config = ddpm_jax.config.scheduler_from_dict(json.loads(scheduler.to_json_string()))
    sampler = samplers.from_config(config, num_steps=steps)
    table = sampler.table(schedule)

    generator = np.random.default_rng(0)
    x_T = generator.standard_normal((2, 3, 8, 8)).astype(np.float32)
    noise = generator.standard_normal((table.num_evals, *x_T.shape)).astype(np.float32)
    drawn = table.ends_step if not isinstance(sampler, samplers.DDPM) else table.t > 0
    inject(iter(noise[drawn]))
    expected = run_diffusers(smooth(torch), scheduler, x_T, steps)

    told = scheduler.timesteps.numpy().astype(np.float64)
    assert np.abs(told - table.t).max() < 1.0 + 1e-3  # they round or cut some, we do not
    table = dataclasses.replace(table, t=told)
    got = run_table(smooth(jnp), table, x_T.transpose(0, 2, 3, 1), noise=noise.transpose(0, 1, 3, 4, 2))
    # float32 coefficients and states there, float64 tables here; x_0 is x divided by 0.006 at first, and UnCLIP's
    # last step divides betas[0] = 4e-5 by 1 - alphas_cumprod[0], which has three digits in float32
    atol = (1e-3 if name == "UnCLIP" else 3e-4) * np.abs(expected).max()
    np.testing.assert_allclose(got.transpose(0, 3, 1, 2), expected, atol=atol)


def test_a_config_is_read_as_far_as_the_scheduler_takes_it():
    """The keys of its constructor that our samplers have a knob for, and no other's."""
    import diffusers

    records = {name: record for name, record in SCHEDULERS.items() if record.sampler}
    known = {key for record in records.values() for key in (*record.keys, *record.neutral)}
    known -= {"sigma_min", "sigma_max"}  # of the forward process in ScoreSdeVe's and KarrasVe's
    for name, record in records.items():
        if name == "KarrasVeScheduler":  # deprecated, and its constructor hidden
            continue
        takes = set(inspect.signature(getattr(diffusers, name).__init__).parameters)
        if record.sampler in ("dpmsolver++", "deis"):
            takes.discard("variance_type")  # of the network
        assert set(record.keys) | (set(record.neutral) & known) == takes & known, name
        assert (record.clips is not None) == ("clip_sample" in takes), name


@pytest.mark.parametrize("steps", [10, 2000])
def test_predictor_corrector_equals_the_scheduler(steps, inject):
    """One image at a time, where its mean norm over the batch is the image's own."""
    import diffusers
    import torch

    scheduler = diffusers.ScoreSdeVeScheduler(sigma_max=50.0)
    schedule, config = ddpm_jax.config.scheduler_from_dict(json.loads(scheduler.to_json_string()))
    table = samplers.from_config(config, num_steps=steps).table(schedule)
    generator = np.random.default_rng(0)
    x_T = generator.standard_normal((1, 3, 8, 8)).astype(np.float32)
    noise = generator.standard_normal((table.num_evals, *x_T.shape)).astype(np.float32)
    inject(iter(noise))
    score = lambda x, t: (0.3 - x) / (0.0625 + t**2)

    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    x = torch.from_numpy(x_T) * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        x = scheduler.step_correct(score(x, sigma), x).prev_sample
        output = scheduler.step_pred(score(x, sigma), t, x)
        x = output.prev_sample
    x_T, noise = x_T.transpose(0, 2, 3, 1), noise.transpose(0, 1, 3, 4, 2)
    got = run_table(score, table, x_T, noise=noise)
    # float32 puts some of 2000 levels one place off in theirs (t (N - 1) cut to an integer)
    atol = 1e-5 if steps == 10 else 1e-2
    np.testing.assert_allclose(got.transpose(0, 3, 1, 2), output.prev_sample_mean.numpy(), atol=atol)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "ddim eta 1", "dpmsolver++", "unipc", "heun", "euler-a"])
def test_whole_runs_of_the_demo(name, inject):
    """Equal x_T and equal noise: 1000 DDPM steps, 50 DDIM steps and 20 steps of solvers end together."""
    import diffusers
    from test_parity import torch_net

    params = ddpm_jax.load("digits-16")
    net = torch_net(params.config.unet, to_state_dict(params))
    eta = 1.0 if name.endswith("1") else 0.0
    sampler, scheduler = {
        "ddpm": (samplers.DDPM(), diffusers.DDPMScheduler()),
        "ddim": (samplers.DDIM(), diffusers.DDIMScheduler()),
        "ddim eta 1": (samplers.DDIM(eta=1.0), diffusers.DDIMScheduler()),
        "dpmsolver++": (samplers.DPMSolverPP(), diffusers.DPMSolverMultistepScheduler()),
        "unipc": (samplers.UniPC(), diffusers.UniPCMultistepScheduler()),
        "heun": (samplers.Heun(), diffusers.HeunDiscreteScheduler(beta_start=0.0001, beta_end=0.02)),
        "euler-a": (samplers.EulerAncestral(), diffusers.EulerAncestralDiscreteScheduler()),
    }[name]
    if name == "ddim eta 1":
        step = scheduler.step
        scheduler.step = lambda *args, **kwargs: step(*args, eta=eta, **kwargs)
    table = sampler.table(params.config.schedule)
    generator = np.random.default_rng(0)
    x_T = generator.standard_normal((2, 1, 16, 16)).astype(np.float32)
    noise = generator.standard_normal((table.num_evals, *x_T.shape)).astype(np.float32)
    inject(iter(noise[table.ends_step]))
    expected = run_diffusers(
        lambda x, t: net(x, t).sample, scheduler, x_T, sampler.num_steps or sampler.default_steps or 1000
    )
    net_fn = lambda x, t: ddpm_jax.apply(params, x, t)
    run = jax.jit(lambda x, noise: samplers.run(net_fn, table, x, jax.random.key(0), noise=noise))
    got = run(x_T.transpose(0, 2, 3, 1), noise.transpose(0, 1, 3, 4, 2))
    # a thousand steps pass on a float32 rounding that the last, clipped ones no longer enlarge
    np.testing.assert_allclose(np.asarray(got).transpose(0, 3, 1, 2), expected, atol=1e-3)
