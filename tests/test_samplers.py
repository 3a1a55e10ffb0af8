"""Samplers: a model with a known answer, identities, and that every knob acts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_models import EPS, X0, V, dummy, gaussian, gaussian_start, run

from ddpm_jax import samplers
from ddpm_jax.config import ScheduleConfig, scheduler_from_dict
from ddpm_jax.samplers import DDIM, DDPM, SAMPLERS
from ddpm_jax.samplers.grids import timesteps
from ddpm_jax.schedule import alphas_cumprod, posterior_coefficients


def test_learned_variance_is_the_second_half_of_the_channels():
    model = lambda x, t: jnp.concatenate([0 * x, 0 * x + 0.25], axis=-1)
    table = DDPM(variance_type="learned", timesteps=(500, 0), clip=None).table(X0)
    noise = np.random.default_rng(0).standard_normal((2, 1, 4, 4, 1)).astype(np.float32)
    # predicted x_0 is 0, so that x_500 = 0 leads to 0.5 noise, whose posterior mean at the end is 0
    one = dataclasses.replace(
        table, **{name: getattr(table, name)[:1] for name in ("t", "x_0_coefs", "eps_coefs", "mix", "ends_step")}
    )
    one = dataclasses.replace(one, log_variance=table.log_variance[:1])
    x = samplers.run(model, one, np.zeros((1, 4, 4, 1), np.float32), jax.random.key(0), noise=noise[:1])
    np.testing.assert_allclose(x, 0.5 * noise[0], rtol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
class TestEverySampler:
    """What holds for anything listed in SAMPLERS."""

    def test_reaches_the_mean_and_spread_of_the_data(self, name):
        """Exact eps of N(0.3, 0.25^2): 20,000 pixels end with that mean and spread."""
        table = SAMPLERS[name](num_steps=500, clip=None).table(EPS)
        x_T = np.random.default_rng(0).standard_normal((2, 100, 100, 1)).astype(np.float32)
        x = np.asarray(jax.jit(lambda x, key: samplers.run(gaussian(EPS), table, x, key))(x_T, jax.random.key(1)))
        assert abs(x.mean() - 0.3) < 0.01  # five standard errors of the mean
        assert abs(x.std() - 0.25) < 0.01  # and a first-order bias of 500 steps, 0.004

    def test_order(self, name):
        """The error against the closed-form flow falls with the stated order, under x64."""
        sampler = SAMPLERS[name]
        if name == "ddpm":
            assert sampler.order == 1
            return  # stochastic: its distribution is tested above
        with jax.enable_x64(True):
            x_T = np.linspace(-2, 2, 50).reshape(1, 50, 1, 1)
            # a schedule of 20,000 fine timesteps, so that grids are smooth
            schedule = ScheduleConfig(num_train_timesteps=20000, beta_start=5e-6, beta_end=1e-3)
            alpha_bar = alphas_cumprod(schedule)
            errors, counts = [], (100, 200, 400)
            for count in counts:
                grid = tuple(int(t) for t in np.linspace(19999, 0, count + 1).round())
                table = sampler(timesteps=grid, clip=None).table(schedule)
                x = samplers.run(gaussian(schedule), table, x_T, jax.random.key(0))
                top = alpha_bar[-1]
                exact = 0.3 + 0.25 * (x_T - np.sqrt(top) * 0.3) / np.sqrt(top * 0.25**2 + 1 - top)
                errors.append(np.abs(np.asarray(x) - exact).max())
        slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
        assert abs(slope - sampler.order) < 0.15, errors  # the next order still shows at 100 steps

    @pytest.mark.parametrize("schedule", [V, X0])
    def test_prediction_types_agree(self, name, schedule):
        sampler = SAMPLERS[name](num_steps=20)
        x_T = gaussian_start()
        by_eps = run(sampler, EPS, model=gaussian(EPS), start=x_T, seed=1)
        other = run(sampler, schedule, model=gaussian(schedule), start=x_T, seed=1)
        np.testing.assert_allclose(by_eps, other, atol=1e-4)  # 1 / sqrt(alpha_bar) is 100 at first, times 1e-6

    def test_no_noise_is_left_at_the_end(self, name):
        """In the last row the noise has no weight, whatever the grid."""
        for spacing in ("leading", "linspace", "trailing"):
            table = SAMPLERS[name](num_steps=7, timestep_spacing=spacing).table(EPS)
            assert np.all(table.mix[-1, :, -1] == 0)

    def test_num_steps_is_checked(self, name, untyped):
        for steps in (0, -1, 1001, 2.5, True):
            with pytest.raises(ValueError, match="`num_steps` must be an integer from 1 to 1000"):
                SAMPLERS[name](num_steps=steps).table(EPS)

    def test_noise_of_another_shape_is_refused(self, name):
        table = SAMPLERS[name](num_steps=3).table(EPS)
        with pytest.raises(ValueError, match="`noise` has shape"):
            samplers.run(dummy, table, np.zeros((1, 2, 2, 1)), jax.random.key(0), noise=np.zeros((2, 1, 2, 2, 1)))

    def test_other_processes_are_refused(self, name):
        with pytest.raises(ValueError, match="of another kind"):
            SAMPLERS[name]().table(ScheduleConfig(kind="other"))

    def test_half_precision_state_keeps_its_timesteps(self, name):
        table = SAMPLERS[name]().table(EPS)
        assert np.asarray(table.rows(jnp.bfloat16).t)[:3].tolist() == table.t[:3].tolist()

    def test_variance_exploding_is_refused(self, name):
        with pytest.raises(ValueError, match="variance-exploding"):
            SAMPLERS[name]().table(ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0))


def test_a_negative_learned_variance_at_the_end_does_no_harm():
    model = lambda x, t: jnp.concatenate([0 * x, 0 * x - 0.25], axis=-1)
    table = DDPM(variance_type="learned", timesteps=(0,)).table(X0)
    x = samplers.run(model, table, np.ones((1, 4, 4, 1), np.float32), jax.random.key(0))
    np.testing.assert_array_equal(x, 0)


def test_ddim_with_eta_1_and_clipped_output_is_ddpm():
    ddim = DDIM(num_steps=100, eta=1.0, use_clipped_model_output=True).table(EPS)
    ddpm = DDPM(num_steps=100).table(EPS)
    combine = lambda table: table.mix[:, 0, [0, 1, 3]]
    np.testing.assert_allclose(combine(ddim), combine(ddpm), atol=1e-10)  # float64 algebra of alpha_bar down to 4e-5


def test_ddpm_rows_are_the_posterior():
    table = DDPM(num_steps=4).table(EPS)
    alpha_bar = alphas_cumprod(EPS)
    assert table.t.tolist() == [750, 500, 250, 0]
    from_x_0, from_x_t, variance = posterior_coefficients(alpha_bar[500], alpha_bar[250])
    np.testing.assert_allclose(table.mix[1, 0], [from_x_t, from_x_0, 0, np.sqrt(variance)], rtol=1e-14)
    np.testing.assert_array_equal(table.mix[-1, 0], [0, 1, 0, 0])


@pytest.mark.parametrize(
    "spacing, offset, expected",
    [
        ("leading", 0, [800, 600, 400, 200, 0]),
        ("leading", 1, [801, 601, 401, 201, 1]),
        ("linspace", 0, [999, 749, 500, 250, 0]),
        ("trailing", 0, [999, 799, 599, 399, 199]),
    ],
)
def test_grids(spacing, offset, expected):
    assert timesteps(1000, 5, spacing, offset).tolist() == expected


@pytest.mark.parametrize(
    "custom, message",
    [
        ((100, 87, 50, 51, 0), "must fall strictly"),
        ((1000,), "must lie in 0 .. 999"),
        ((5, -1), "must lie in 0 .. 999"),
        ((), "must be a list of integers"),
        (5, "must be a list of integers"),
        ((900.5, 0.0), "must be a list of integers"),
    ],
)
def test_bad_custom_timesteps(custom, message, untyped):
    with pytest.raises(ValueError, match=message):
        DDPM(timesteps=custom).table(EPS)


def test_offset_beyond_the_schedule():  # diffusers issue 10003: an IndexError in the middle of the run
    with pytest.raises(ValueError, match="`steps_offset` 1 with 1000 steps visits 1000"):
        DDPM(steps_offset=1).table(EPS)


@pytest.mark.parametrize(
    "sampler, knobs, message",
    [
        (DDPM, {"variance_type": "other"}, "`variance_type` must be one of"),
        (DDPM, {"clip": -1.0}, "`clip` must be a positive number"),
        (DDPM, {"dynamic_thresholding_ratio": 1.5}, "`dynamic_thresholding_ratio`"),
        (DDPM, {"sample_max_value": 0.0}, "`sample_max_value`"),
        (DDPM, {"steps_offset": -1}, "`steps_offset` must be a non-negative integer"),
        (DDIM, {"eta": 1.5}, r"`eta` must be in \[0, 1\]"),
    ],
)
def test_bad_knobs(sampler, knobs, message):
    with pytest.raises(ValueError, match=message):
        sampler(**knobs)


def test_unknown_spacing():
    with pytest.raises(ValueError, match="`timestep_spacing` must be one of"):
        DDPM(num_steps=10, timestep_spacing="karras").table(EPS)


def test_few_steps_with_fixed_large_warn():
    with pytest.warns(UserWarning, match="leaves noise in the images"):
        DDPM(num_steps=20, variance_type="fixed_large").table(EPS)


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


def test_a_scheduler_that_is_not_built_is_named():
    with pytest.raises(ValueError, match="PNDMScheduler, has no sampler here yet"):
        samplers.from_config({"_class_name": "PNDMScheduler"})


def test_by_name_suggests():
    with pytest.raises(ValueError, match="Did you mean `ddim`"):
        samplers.by_name("dddim")
