"""Samplers: diffusers' numbers, a model with a known answer, identities, and that every knob acts.

Models and rows are those of research/diffusers.md, 6.1 to 6.3; expected values are diffusers' own or were measured with
diffusers 0.42.1. Where diffusers has a bug, its number is asserted to differ.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_random import TorchGenerator

from ddpm_jax import samplers
from ddpm_jax.config import ScheduleConfig, scheduler_from_dict
from ddpm_jax.samplers import DDIM, DDPM, SAMPLERS
from ddpm_jax.samplers.grids import timesteps
from ddpm_jax.schedule import alphas_cumprod, posterior_coefficients

V = ScheduleConfig(prediction_type="v_prediction")
X0 = ScheduleConfig(prediction_type="sample")
EPS = ScheduleConfig()


def _nhwc(array):
    return np.ascontiguousarray(np.asarray(array, np.float32).transpose(0, 2, 3, 1))


def _start():
    """diffusers' dummy_sample_deter, NCHW [4, 3, 8, 8]."""
    return (np.arange(768, dtype=np.float32).reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2)


def _known_noise():
    return (np.arange(768, dtype=np.float32)[::-1].reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2)


def dummy(x, t):
    """diffusers' dummy_model."""
    return x * t / (t + 1)


def nonlinear(x, t):
    return jnp.sin(3 * x) + 0.3 * jnp.cos(x * t / 100)


def run(sampler, schedule=EPS, model=dummy, start=None, seed=None, first_row=0, draws=None):
    """Run a sampler in NCHW terms; seed None means no noise. Returns NCHW."""
    table = sampler.table(schedule)
    start = _start() if start is None else start
    noise = np.zeros((table.num_evals, *start.shape), np.float32)
    if seed is not None:
        generator = TorchGenerator(seed)
        # diffusers draws in every step with t > 0 (DDPM), or in every step (DDIM with eta > 0)
        drawn = table.t > 0 if isinstance(sampler, DDPM) else np.ones(table.num_evals, bool)
        for row in np.flatnonzero(drawn):
            if row >= first_row:
                noise[row] = generator.randn(*start.shape)
    if first_row:
        numbers = {
            field.name: getattr(table, field.name)[first_row:]
            for field in dataclasses.fields(table)
            if isinstance(getattr(table, field.name), np.ndarray)
        }
        table, noise = dataclasses.replace(table, **numbers), noise[first_row:]
    noise = np.stack([_nhwc(draw) for draw in noise])
    out = samplers.run(model, table, _nhwc(start), jax.random.key(0), noise=noise)
    return np.asarray(out).transpose(0, 3, 1, 2)


# sampler, schedule, seed, sum |x|, x[0, 0, 0, :3]
DUMMY_ROWS = [
    (DDPM(), EPS, 0, 258.961121, (-0.280616, -0.424899, -0.082318)),
    (DDPM(), EPS, None, 0.660943, (0.0, 9e-06, 1.8e-05)),
    (DDPM(), V, 0, 202.029922, (-0.081325, -0.47771, -0.073143)),
    (DDPM(), V, None, 0.113224, (0.0, 2e-06, 3e-06)),
    (DDPM(), X0, None, 0.0, (0.0, 0.0, 0.0)),
    (DDPM(variance_type="fixed_small_log"), EPS, 0, 258.961121, (-0.280616, -0.424899, -0.082317)),
    (DDPM(variance_type="fixed_large"), EPS, 0, 261.207123, (-0.283208, -0.430416, -0.083295)),
    (DDPM(num_steps=10), EPS, None, 2.367476, (0.0, 3.2e-05, 6.4e-05)),
    (DDPM(num_steps=10), EPS, 0, 234.849121, (-0.42347, -0.044664, -0.059194)),
    (DDPM(num_steps=50), EPS, None, 0.888380, (0.0, 1.2e-05, 2.4e-05)),
    (DDPM(num_steps=50), EPS, 0, 257.871185, (-0.05345, 0.198686, -0.88953)),
    (DDPM(num_steps=7), EPS, None, 3.885499, (0.0, 5.3e-05, 0.000106)),
    (DDPM(num_steps=7), EPS, 0, 226.160706, (-0.586718, 0.172967, -0.383686)),
    (DDPM(num_steps=10, timestep_spacing="linspace"), EPS, None, 0.940154, (0.0, 1.3e-05, 2.6e-05)),
    (DDPM(num_steps=10, timestep_spacing="linspace"), EPS, 0, 232.800995, (-0.400722, -0.05197, -0.01681)),
    (DDPM(num_steps=50, timestep_spacing="linspace"), EPS, None, 0.736110, (0.0, 1e-05, 2e-05)),
    (DDPM(num_steps=50, timestep_spacing="linspace"), EPS, 0, 257.843536, (-0.035697, 0.192991, -0.889105)),
    (DDPM(num_steps=7, timestep_spacing="linspace"), EPS, None, 1.037234, (0.0, 1.4e-05, 2.8e-05)),
    (DDPM(num_steps=7, timestep_spacing="linspace"), EPS, 0, 218.605408, (-0.597929, 0.143048, -0.362155)),
    (DDPM(num_steps=10, timestep_spacing="trailing"), EPS, None, 0.918759, (0.0, 1.2e-05, 2.5e-05)),
    (DDPM(num_steps=10, timestep_spacing="trailing"), EPS, 0, 230.567093, (-0.22122, 0.153442, 0.157349)),
    (DDPM(num_steps=50, timestep_spacing="trailing"), EPS, None, 0.733053, (0.0, 1e-05, 2e-05)),
    (DDPM(num_steps=50, timestep_spacing="trailing"), EPS, 0, 255.824310, (0.03112, 0.23199, -0.812514)),
    (DDPM(num_steps=7, timestep_spacing="trailing"), EPS, None, 0.995142, (0.0, 1.4e-05, 2.7e-05)),
    (DDPM(num_steps=7, timestep_spacing="trailing"), EPS, 0, 222.673767, (-0.563793, 0.046628, -0.489782)),
    (DDPM(num_steps=10, steps_offset=1), EPS, 0, 233.304459, (-0.417328, -0.039812, -0.054207)),
    (DDPM(timesteps=(100, 87, 50, 1, 0)), EPS, 0, 271.117310, (-0.062632, -0.060185, 0.125394)),
    (DDPM(num_steps=10), ScheduleConfig(beta_schedule="scaled_linear"), None, 8.728905, (0.0, 0.000119, 0.000237)),
    (DDPM(num_steps=10), ScheduleConfig(beta_schedule="squaredcos_cap_v2"), None, 19.635092, (0.0, 0.000267, 0.000533)),
    (DDPM(num_steps=10), ScheduleConfig(beta_schedule="sigmoid"), None, 2.215929, (0.0, 3e-05, 6e-05)),
    (DDPM(num_steps=10), ScheduleConfig(beta_schedule="laplace"), None, 158.301910, (0.0, 0.00215, 0.0043)),
    (
        DDPM(num_steps=10, thresholding=True, dynamic_thresholding_ratio=0.87, sample_max_value=0.5),
        *(EPS, None, 25.605556, (0.0, 0.000348, 0.000696)),
    ),
    (
        DDPM(num_steps=10, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=2.0),
        *(EPS, None, 2.367476, (0.0, 3.2e-05, 6.4e-05)),
    ),
    (DDPM(num_steps=10, clip=0.5), EPS, None, 2.367476, (0.0, 3.2e-05, 6.4e-05)),
    (DDPM(num_steps=10, clip=None), EPS, None, 2.367476, (0.0, 3.2e-05, 6.4e-05)),
    (
        DDPM(num_steps=10, timestep_spacing="trailing"),
        ScheduleConfig(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        *(None, 0.000670, (0.0, 0.0, 0.0)),
    ),
    (DDPM(num_steps=10), ScheduleConfig(rescale_betas_zero_snr=True), None, 1.473553, (0.0, 2e-05, 4e-05)),
    (DDIM(num_steps=10), EPS, None, 172.006714, (0.0, 0.002336, 0.004672)),
    (DDIM(num_steps=10), V, None, 52.530205, (0.0, 0.000713, 0.001427)),
    (DDIM(num_steps=10), X0, None, 0.0, (0.0, 0.0, 0.0)),
    (DDIM(num_steps=10), ScheduleConfig(beta_start=0.01), None, 149.829453, (0.0, 0.002035, 0.00407)),
    (
        DDIM(num_steps=10, set_alpha_to_one=False),
        *(ScheduleConfig(beta_start=0.01), None, 149.078415, (0.0, 0.002025, 0.004049)),
    ),
    (DDIM(num_steps=10, eta=1.0), EPS, 0, 234.829849, (-0.42347, -0.044664, -0.059195)),
    (DDIM(num_steps=10, eta=0.5), EPS, 0, 238.725922, (-0.493451, -0.010151, -0.198071)),
    (DDIM(num_steps=10, use_clipped_model_output=True), EPS, None, 172.006714, (0.0, 0.002336, 0.004672)),
    (
        DDIM(num_steps=10, eta=1.0, use_clipped_model_output=True),
        *(EPS, 0, 234.849106, (-0.42347, -0.044664, -0.059195)),
    ),
    (DDIM(num_steps=7), EPS, None, 161.043930, (0.0, 0.002187, 0.004374)),
    (DDIM(num_steps=50), EPS, None, 192.537445, (0.0, 0.002615, 0.00523)),
    (DDIM(num_steps=10, timestep_spacing="trailing"), EPS, None, 170.034958, (0.0, 0.002309, 0.004619)),
    (DDIM(num_steps=50, timestep_spacing="trailing"), EPS, None, 190.672150, (0.0, 0.00259, 0.005179)),
    (
        DDIM(num_steps=10, timestep_spacing="trailing"),
        ScheduleConfig(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        *(None, 50.557411, (0.0, 0.000687, 0.001373)),
    ),
]


@pytest.mark.filterwarnings("ignore:Ancestral sampling")
@pytest.mark.parametrize("row", range(len(DUMMY_ROWS)))
def test_dummy_model_equals_diffusers(row):
    sampler, schedule, seed, total, values = DUMMY_ROWS[row]
    x = run(sampler, schedule, seed=seed)
    # diffusers accumulates 1000 steps with float32 coefficients; ours are float64 tables rounded once. Its
    # variance at t = 1, (1 - alpha_bar_0) (1 - alpha) with alpha near 1, has three digits; the custom grid is short.
    rtol = 1e-5 if sampler.timesteps is None else 1e-4
    np.testing.assert_allclose(np.abs(x).sum(dtype=np.float64), total, rtol=rtol, atol=2e-5)
    np.testing.assert_allclose(x[0, 0, 0, :3], values, atol=2e-5)


def test_full_loops_with_added_noise():
    """test_full_loop_with_noise of diffusers: start at a later row, from a sample with noise added."""

    def noised(t):
        alpha_bar_t = np.float32(alphas_cumprod(EPS)[t])
        return np.sqrt(alpha_bar_t) * _start() + np.sqrt(1 - alpha_bar_t) * _known_noise()

    x = run(DDPM(), start=noised(1), seed=0, first_row=998)
    np.testing.assert_allclose(np.abs(x).sum(), 387.946594, rtol=1e-4)  # the variance at t = 1, as above
    x = run(DDIM(num_steps=10), start=noised(100), first_row=8)
    np.testing.assert_allclose(np.abs(x).sum(), 354.541809, rtol=1e-5)


@pytest.mark.parametrize(
    "make, total",
    [
        (lambda t: DDPM(timesteps=(t, *([t - 1] if t else []))), 1153.1833),
        (lambda t: DDIM(timesteps=(t,)), 1147.7904),
    ],
)
def test_batch_step_no_noise(make, total):
    """diffusers' parallel schedulers: one step of three batches at t = 0, 1, 2, without noise."""
    starts = (_start(), _start() + np.float32(0.1), _start() - np.float32(0.1))
    ended = 0.0
    for t, start in enumerate(starts):
        table = make(t).table(EPS)
        first = {
            field.name: getattr(table, field.name)[:1]
            for field in dataclasses.fields(table)
            if isinstance(getattr(table, field.name), np.ndarray)
        }
        one = dataclasses.replace(table, **first)
        noise = np.zeros((1, 4, 8, 8, 3), np.float32)
        x = samplers.run(dummy, one, _nhwc(start), jax.random.key(0), noise=noise)
        ended += np.abs(np.asarray(x)).sum(dtype=np.float64)
    assert abs(ended - total) < 1e-2  # diffusers' own tolerance


def test_variances_equal_diffusers():
    """`_get_variance` of test_scheduler_ddpm.py and test_scheduler_ddim.py, with their tolerance."""
    std = DDPM().table(EPS).mix[::-1, 0, 3]
    np.testing.assert_allclose(std[[0, 487, 999]] ** 2, [0.0, 0.00979, 0.02], atol=1e-5)
    for t, s, variance in ((420, 400, 0.14771), (980, 960, 0.32460), (487, 486, 0.00979), (999, 998, 0.02)):
        std = DDIM(timesteps=(t, s), eta=1.0).table(EPS).mix[0, 0, 3]
        np.testing.assert_allclose(std**2, variance, atol=1e-5)


def test_learned_range_equals_diffusers():
    model = lambda x, t: jnp.concatenate([dummy(x, t), jnp.tanh(dummy(x, t))], axis=-1)
    x = run(DDPM(num_steps=10, variance_type="learned_range"), model=model, seed=0)
    np.testing.assert_allclose(np.abs(x).sum(), 273.001221, rtol=1e-5)
    np.testing.assert_allclose(x[0, 0, 0, :3], (-0.543808, -0.030918, -0.019115), atol=2e-5)
    ignoring = run(DDPM(num_steps=10), model=model, seed=0)  # a sampler of fixed variance may leave it
    np.testing.assert_allclose(np.abs(ignoring).sum(), 234.849121, rtol=1e-5)


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


# sampler, schedule, seed, sum |x|, mean, x[1, 2, 3, 4:6], from 3 S - 1 and N = 10
NONLINEAR_ROWS = [
    (DDPM(num_steps=10), EPS, None, 83.74255, -0.1090398, (-0.112459, -0.112429)),
    (DDPM(num_steps=10, clip=0.5), EPS, None, 82.46245, -0.1073730, (-0.105811, -0.105819)),
    (DDPM(num_steps=10, clip=None), EPS, None, 41262.72266, 46.9368591, (104.098015, 104.624359)),
    (
        DDPM(num_steps=10, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=2.0),
        *(EPS, None, 83.11734, -0.1082257, (-0.111937, -0.111982)),
    ),
    (DDPM(num_steps=10, thresholding=True), EPS, None, 83.74255, -0.1090398, (-0.112459, -0.112429)),
    (DDPM(num_steps=10), V, None, 73.49536, -0.0956971, (-0.095697, -0.095697)),
    (DDPM(num_steps=10), X0, None, 492.31763, 0.5016735, (0.565439, 0.566437)),
    (DDPM(num_steps=10), EPS, 0, 311.23340, -0.1458171, (-0.105425, 0.208831)),
    (DDPM(num_steps=10, variance_type="fixed_large"), EPS, 0, 393.87201, -0.1341229, (-0.070159, -0.21797)),
    (DDIM(num_steps=10), EPS, None, 140.96312, -0.0820374, (-0.108557, -0.108807)),
    (DDIM(num_steps=10, use_clipped_model_output=True), EPS, None, 429.01318, 0.2304509, (1.0, 1.0)),
    (DDIM(num_steps=10, clip=None), EPS, None, 35815.23438, 37.7018433, (104.354225, 105.395691)),
    (DDIM(num_steps=10, eta=1.0), EPS, 0, 210.97360, -0.1639482, (-0.105196, -0.108427)),
    (
        DDIM(num_steps=10, eta=1.0, use_clipped_model_output=True),
        *(EPS, 0, 311.23340, -0.1458171, (-0.105425, 0.208831)),
    ),
    (DDIM(num_steps=10, clip=0.3), EPS, None, 77.25220, -0.1005888, (-0.095132, -0.143493)),
    (DDPM(), EPS, 0, 262.56082, -0.1384519, (-0.402294, -0.95572)),
    (
        DDIM(num_steps=10, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=2.0),
        *(EPS, None, 83.50075, -0.0991734, (-0.108813, -0.109618)),
    ),
    (DDIM(num_steps=10), V, None, 261.38339, 0.2113913, (0.994309, 0.991994)),
    (DDIM(num_steps=10), X0, None, 624.30884, 0.4004046, (0.91138, 0.913228)),
]


@pytest.mark.filterwarnings("ignore:Ancestral sampling")
@pytest.mark.parametrize("row", range(len(NONLINEAR_ROWS)))
def test_nonlinear_model_equals_diffusers(row):
    sampler, schedule, seed, total, mean, values = NONLINEAR_ROWS[row]
    x = run(sampler, schedule, model=nonlinear, start=3 * _start() - 1, seed=seed)
    # cos(x t / 100) amplifies roundings of x by up to t / 100 = 9 a step
    np.testing.assert_allclose(np.abs(x).sum(dtype=np.float64), total, rtol=1e-4)
    np.testing.assert_allclose(x.mean(dtype=np.float64), mean, rtol=1e-4)
    np.testing.assert_allclose(x[1, 2, 3, 4:6], values, rtol=1e-4, atol=1e-4)


def gaussian(schedule, mean=0.3, std=0.25):
    """The exact network for data N(mean, std^2 I), of whichever prediction type."""
    alpha_bar = jnp.asarray(alphas_cumprod(schedule))

    def net_fn(x, t):
        alpha_bar_t = alpha_bar[t.astype(int)].astype(x.dtype)
        variance = alpha_bar_t * std**2 + 1 - alpha_bar_t
        eps = jnp.sqrt(1 - alpha_bar_t) / variance * (x - jnp.sqrt(alpha_bar_t) * mean)
        x_0 = mean + jnp.sqrt(alpha_bar_t) * std**2 / variance * (x - jnp.sqrt(alpha_bar_t) * mean)
        v = jnp.sqrt(alpha_bar_t) * eps - jnp.sqrt(1 - alpha_bar_t) * x_0
        return {"epsilon": eps, "sample": x_0, "v_prediction": v}[schedule.prediction_type]

    return net_fn


def _gaussian_start():
    return (1.2 * np.sin(0.7 * np.arange(768))).astype(np.float32).reshape(4, 3, 8, 8)


# sampler, schedule, seed, sum |x|, mean, std (ddof 1), x[1, 2, 3, 4]
GAUSSIAN_ROWS = [
    (DDPM(num_steps=10), EPS, 0, 227.43039, 0.2938353, 0.1360161, 0.3808593),
    (DDPM(num_steps=25), EPS, 0, 233.42218, 0.2963879, 0.1843671, 0.4478541),
    (DDPM(num_steps=10, variance_type="fixed_large"), EPS, 0, 306.44388, 0.3066684, 0.3765431, 0.4594243),
    (DDPM(num_steps=25, variance_type="fixed_large"), EPS, 0, 260.12866, 0.2870988, 0.2979167, 0.6625003),
    (DDIM(num_steps=10), EPS, None, 230.34213, 0.2999246, 0.1242568, 0.1250058),
    (DDIM(num_steps=25), EPS, None, 230.65173, 0.3003278, 0.1725547, 0.0574190),
    (DDIM(num_steps=10, timestep_spacing="trailing"), EPS, None, 230.66953, 0.3003509, 0.1186273, 0.1333569),
    (DDIM(num_steps=25, timestep_spacing="trailing"), EPS, None, 230.78528, 0.3005017, 0.1695551, 0.0618155),
    (DDIM(num_steps=10, eta=1.0), EPS, 0, 227.43039, 0.2938353, 0.1360161, 0.3808593),
    (DDIM(num_steps=25, eta=1.0), EPS, 0, 233.42209, 0.2963878, 0.1843670, 0.4478538),
    (DDIM(num_steps=10), V, None, 230.34213, 0.2999246, 0.1242568, 0.1250057),
    (DDIM(num_steps=25), V, None, 230.65172, 0.3003277, 0.1725548, 0.0574189),
]


@pytest.mark.filterwarnings("ignore:Ancestral sampling")
@pytest.mark.parametrize("row", range(len(GAUSSIAN_ROWS)))
def test_gaussian_equals_diffusers(row):
    sampler, schedule, seed, total, mean, std, value = GAUSSIAN_ROWS[row]
    x = run(sampler, schedule, model=gaussian(schedule), start=_gaussian_start(), seed=seed)
    np.testing.assert_allclose(np.abs(x).sum(dtype=np.float64), total, rtol=2e-5)  # float32 networks differ by 1e-6
    np.testing.assert_allclose(x.mean(dtype=np.float64), mean, rtol=2e-5)
    np.testing.assert_allclose(x.std(ddof=1, dtype=np.float64), std, rtol=5e-5)
    np.testing.assert_allclose(x[1, 2, 3, 4], value, atol=1e-5)


class TestBugsOfDiffusers:
    """Its numbers that encode a listed bug: ours must be something else, and right."""

    @pytest.mark.parametrize(
        "sampler, total",
        [
            (DDIM(num_steps=7, timestep_spacing="linspace"), 193.136108),
            (DDIM(num_steps=10, timestep_spacing="linspace"), 191.253967),
            (DDIM(num_steps=50, timestep_spacing="linspace"), 195.207458),
            (DDIM(num_steps=7, timestep_spacing="trailing"), 162.058929),
        ],
    )
    def test_ddim_off_its_grid(self, sampler, total):
        """It steps to t - T // N, which is not the next entry (issues 9261, 11347, 12633)."""
        assert abs(np.abs(run(sampler)).sum() - total) > 0.1
        clean = _gaussian_start() * 0 + 0.3  # data at its mean stays there for any grid
        start = np.sqrt(alphas_cumprod(EPS)[sampler.table(EPS).t[0].astype(int)]) * clean
        x = run(sampler, model=gaussian(EPS), start=start.astype(np.float32))
        np.testing.assert_allclose(x, clean, atol=2e-6)

    @pytest.mark.filterwarnings("ignore:Ancestral sampling")
    def test_trailing_fixed_large_leaves_noise(self):
        """It adds noise whenever t > 0, also in the last step, which ends at the clean image."""
        x = run(DDPM(num_steps=10, timestep_spacing="trailing", variance_type="fixed_large"), seed=0)
        assert abs(np.abs(x).sum() - 383.440796) > 1

    def test_fixed_large_log_is_nan(self):
        """It takes the square root of a logarithm (issue 14569)."""
        x = run(DDPM(variance_type="fixed_large_log"), seed=0)
        np.testing.assert_array_equal(x, run(DDPM(variance_type="fixed_large"), seed=0))

    def test_zero_snr_with_epsilon_is_nan(self):
        schedule = ScheduleConfig(rescale_betas_zero_snr=True)
        with pytest.raises(ValueError, match="zero terminal SNR"):
            DDPM(num_steps=10, timestep_spacing="trailing").table(schedule)

    @pytest.mark.parametrize("steps", [61, 103, 121, 122, 201, 206, 217])
    def test_trailing_has_a_step_too_many(self, steps):
        grid = timesteps(1000, steps, "trailing")
        assert len(grid) == steps and grid[0] == 999 and grid[-1] >= 0
        assert len(np.arange(1000, 0, -1000 / steps)) == steps + 1


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
        x_T = _gaussian_start()
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
