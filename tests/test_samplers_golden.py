"""Samplers against diffusers' numbers: its own tests', and more that were measured with diffusers 0.42.1.

The head of `known_models` says how they come about. Where diffusers has a bug, its number is asserted to differ.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from known_models import (
    EPS,
    X0,
    V,
    dummy,
    dummy_start,
    gaussian,
    gaussian_start,
    known_noise,
    nhwc,
    nonlinear,
    run,
    run_table,
)

from ddpm_jax.config import ScheduleConfig
from ddpm_jax.samplers import DDIM, DDPM, from_config
from ddpm_jax.samplers.grids import Process, levels
from ddpm_jax.schedule import alphas_cumprod

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
        return np.sqrt(alpha_bar_t) * dummy_start() + np.sqrt(1 - alpha_bar_t) * known_noise()

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
    starts = (dummy_start(), dummy_start() + np.float32(0.1), dummy_start() - np.float32(0.1))
    ended = 0.0
    for t, start in enumerate(starts):
        one = make(t).table(EPS).part(0, 1)
        noise = np.zeros((1, 4, 8, 8, 3), np.float32)
        x = run_table(dummy, one, nhwc(start), noise=noise)
        ended += np.abs(x).sum(dtype=np.float64)
    assert abs(ended - total) < 1e-2  # diffusers' own tolerance


def test_variances_equal_diffusers():
    """`_get_variance` of test_scheduler_ddpm.py and test_scheduler_ddim.py, with their tolerance."""
    std = DDPM().table(EPS).mix[::-1, 0, 3]
    np.testing.assert_allclose(std[[0, 487, 999]] ** 2, [0.0, 0.00979, 0.02], atol=1e-5)
    for t, s, variance in ((420, 400, 0.14771), (980, 960, 0.32460), (487, 486, 0.00979), (999, 998, 0.02)):
        std = DDIM(timesteps=(t, s), eta=1.0).table(EPS).mix[0, 0, 3]
        np.testing.assert_allclose(std**2, variance, atol=1e-5)
    assert DDIM(timesteps=(0,), eta=1.0).table(EPS).mix[0, 0, 3] == 0


def test_unclip_equals_diffusers():
    """test_scheduler_unclip.py: variances, and both loops."""
    config = {"_class_name": "UnCLIPScheduler"}
    cosine = ScheduleConfig(beta_schedule="squaredcos_cap_v2")
    std = from_config(config).table(cosine).mix[::-1, 0, 3]
    np.testing.assert_allclose(std[[487, 999]], [0.0549625, 0.9994987], atol=1e-5)  # a standard deviation
    for steps, total, mean in ((None, 252.2682495, 0.3284743), (25, 258.2044983, 0.3362038)):
        x = run(from_config(config, num_steps=steps), cosine, seed=0)
        # its last step divides betas[0] = 4.1284e-5 by 1 - alphas_cumprod[0], in float32 4.1306e-5, and scales
        np.testing.assert_allclose([np.abs(x).sum(), np.abs(x).mean()], [total, mean], rtol=1e-3)


def test_learned_range_equals_diffusers():
    model = lambda x, t: jnp.concatenate([dummy(x, t), jnp.tanh(dummy(x, t))], axis=-1)
    x = run(DDPM(num_steps=10, variance_type="learned_range"), model=model, seed=0)
    np.testing.assert_allclose(np.abs(x).sum(), 273.001221, rtol=1e-5)
    np.testing.assert_allclose(x[0, 0, 0, :3], (-0.543808, -0.030918, -0.019115), atol=2e-5)
    ignoring = run(DDPM(num_steps=10), model=model, seed=0)  # a sampler of fixed variance may leave it
    np.testing.assert_allclose(np.abs(ignoring).sum(), 234.849121, rtol=1e-5)


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
    x = run(sampler, schedule, model=nonlinear, start=3 * dummy_start() - 1, seed=seed)
    # cos(x t / 100) amplifies roundings of x by up to t / 100 = 9 a step
    np.testing.assert_allclose(np.abs(x).sum(dtype=np.float64), total, rtol=1e-4)
    np.testing.assert_allclose(x.mean(dtype=np.float64), mean, rtol=1e-4)
    np.testing.assert_allclose(x[1, 2, 3, 4:6], values, rtol=1e-4, atol=1e-4)


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
    x = run(sampler, schedule, model=gaussian(schedule), start=gaussian_start(), seed=seed)
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
        clean = gaussian_start() * 0 + 0.3  # data at its mean stays there for any grid
        start = np.sqrt(alphas_cumprod(EPS)[sampler.table(EPS).t[0].astype(int)]) * clean
        x = run(sampler, model=gaussian(EPS), start=start.astype(np.float32))
        np.testing.assert_allclose(x, clean, atol=2e-6)

    @pytest.mark.parametrize("steps, total", [(10, 224.97327), (25, 228.19606)])
    def test_ddim_off_its_grid_on_a_gaussian(self, steps, total):
        x = run(DDIM(num_steps=steps, timestep_spacing="linspace"), model=gaussian(EPS), start=gaussian_start())
        assert abs(np.abs(x).sum() - total) > 1

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
        grid = [level.t for level in levels(Process.of(EPS), steps, "trailing")]
        assert len(grid) == steps and grid[0] == 999 and grid[-1] >= 0
        assert len(np.arange(1000, 0, -1000 / steps)) == steps + 1
