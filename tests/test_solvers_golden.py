"""Solvers against diffusers' numbers: its own tests', and more that were measured with diffusers 0.42.1.

The head of `known_models` says how they come about. Where diffusers has a bug, its number is asserted to differ.
"""

import dataclasses

import numpy as np
import pytest
from known_models import (
    EPS,
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
from torch_random import TorchGenerator

from ddpm_jax.config import ScheduleConfig
from ddpm_jax.samplers import (
    DEIS,
    KDPM2,
    LMS,
    PNDM,
    DDIMInverse,
    DPMSolver,
    DPMSolverPP,
    Euler,
    EulerAncestral,
    Heun,
    KDPM2Ancestral,
    ScoreSdeVe,
    UniPC,
)
from ddpm_jax.samplers.grids import Process
from ddpm_jax.schedule import alphas_cumprod

TEN = {"num_steps": 10}
TO_SIGMA_MIN = {"num_steps": 10, "final_sigmas_type": "sigma_min"}
MULTI = {**TO_SIGMA_MIN, "lower_order_final": False}
THRESHOLD = {"thresholding": True, "dynamic_thresholding_ratio": 0.87, "sample_max_value": 0.5}
KARRAS = {"timestep_spacing": "karras"}
# what diffusers does to the timesteps of such grids, by scheduler
ROUNDED, CUT = np.round, np.trunc

# diffusers' own tests, on its dummy model: sampler, schedule, told, mean |x|
OWN_ROWS = [
    (DPMSolverPP(**MULTI), EPS, None, 0.3301),
    (DPMSolverPP(**MULTI, **THRESHOLD), EPS, None, 1.1364),
    (DPMSolverPP(**MULTI), V, None, 0.2251),
    (DPMSolverPP(**MULTI, **KARRAS), V, ROUNDED, 0.2096),
    (DPMSolverPP(**MULTI, timestep_spacing="logsnr"), V, ROUNDED, 0.1554),
    (DPMSolverPP(**MULTI, singlestep=True), EPS, None, 0.2791),
    (DPMSolverPP(**MULTI, singlestep=True, **KARRAS), EPS, ROUNDED, 0.2248),
    (DPMSolverPP(**MULTI, singlestep=True), V, None, 0.1453),
    (DPMSolverPP(**MULTI, singlestep=True, **KARRAS), V, ROUNDED, 0.0649),
    (UniPC(**TO_SIGMA_MIN), EPS, None, 0.2464),
    (UniPC(**TO_SIGMA_MIN, **KARRAS), EPS, ROUNDED, 0.2925),
    (UniPC(**TO_SIGMA_MIN), V, None, 0.1014),
    (UniPC(**TO_SIGMA_MIN, **KARRAS), V, ROUNDED, 0.1966),
    (DEIS(**TO_SIGMA_MIN), EPS, None, 0.23916),
    (DEIS(**TO_SIGMA_MIN), V, None, 0.091),
    (PNDM(**TEN), EPS, None, 0.2580),
    (PNDM(**TEN, set_alpha_to_one=True), ScheduleConfig(beta_start=0.01), None, 0.2995),
    (PNDM(**TEN), ScheduleConfig(beta_start=0.01), None, 0.2434),
    (DDIMInverse(**TEN, num_iterations=1), EPS, None, 0.8746),
    (DDIMInverse(**TEN, num_iterations=1), ScheduleConfig(beta_start=0.01), None, 0.7031),
    (DDIMInverse(**TEN, num_iterations=1, set_alpha_to_one=False), ScheduleConfig(beta_start=0.01), None, 0.7066),
]


@pytest.mark.parametrize("row", range(len(OWN_ROWS)))
def test_own_tests_of_diffusers(row):
    sampler, schedule, told, mean = OWN_ROWS[row]
    x = run(sampler, schedule, told=told)
    assert abs(np.abs(x).mean() - mean) < 1e-3  # diffusers' tolerance


@pytest.mark.parametrize(
    "sampler, start, total",
    [
        (DPMSolverPP(**MULTI), 5, 318.4111),
        (UniPC(**TO_SIGMA_MIN), 8, 315.5757),
        (DEIS(**TO_SIGMA_MIN), 8, 315.3016),
    ],
)
def test_own_tests_with_added_noise(sampler, start, total):
    """test_full_loop_with_noise: the rest of the grid, from a sample with noise added."""
    rest = tuple(sampler.table(EPS).t[start:])
    alpha_bar_t = np.float32(alphas_cumprod(EPS)[int(rest[0])])
    noised = np.sqrt(alpha_bar_t) * dummy_start() + np.sqrt(1 - alpha_bar_t) * known_noise()
    x = run(dataclasses.replace(sampler, num_steps=None, timesteps=rest), start=noised)
    assert abs(np.abs(x).sum() - total) < 1e-2  # diffusers' tolerance


@pytest.mark.parametrize("steps, first, noised, total", [(50, 3, False, 0.2574 * 768), (10, 5, True, 269.2187)])
def test_singlestep_from_the_middle(steps, first, noised, total):
    """diffusers' list of orders says 2 for the odd step that these runs begin with, which can only be of order 1."""
    sampler = DPMSolverPP(**{**MULTI, "num_steps": steps}, singlestep=True)
    rest = tuple(sampler.table(EPS).t[first:])
    alpha_bar_t = np.float32(alphas_cumprod(EPS)[int(rest[0])])
    start = dummy_start()
    if noised:
        start = np.sqrt(alpha_bar_t) * start + np.sqrt(1 - alpha_bar_t) * known_noise()
    one, others = (dataclasses.replace(sampler, num_steps=None, timesteps=part).table(EPS) for part in (rest, rest[1:]))
    arrays = [field.name for field in dataclasses.fields(one) if isinstance(getattr(one, field.name), np.ndarray)]
    joined = {name: np.concatenate([getattr(one, name)[:1], getattr(others, name)]) for name in arrays}
    x = run_table(dummy, dataclasses.replace(one, **joined), nhwc(start), noise=np.zeros((steps - first, 4, 8, 8, 3)))
    assert abs(np.abs(x).mean() - total / 768) < 1e-3  # diffusers' tolerance


def one_dimensional():
    """[4, 3, 8, 1]: UniPC's test on samples that are no images."""
    start = (np.arange(96, dtype=np.float32).reshape(3, 8, 4) / 96).transpose(2, 0, 1)[..., None]
    noise = (np.arange(96, dtype=np.float32)[::-1].reshape(3, 8, 4) / 96).transpose(2, 0, 1)[..., None]
    return start, noise


@pytest.mark.parametrize(
    "knobs, schedule, told, mean",
    [
        ({}, EPS, None, 0.2441),
        (KARRAS, EPS, ROUNDED, 0.2898),
        ({}, V, None, 0.1014),
        (KARRAS, V, ROUNDED, 0.1944),
    ],
)
def test_unipc_in_one_dimension(knobs, schedule, told, mean):
    x = run(UniPC(**TO_SIGMA_MIN, **knobs), schedule, start=one_dimensional()[0], told=told)
    assert abs(np.abs(x).mean() - mean) < 1e-3


def test_unipc_in_one_dimension_with_noise():
    sampler = UniPC(**TO_SIGMA_MIN)
    rest = tuple(sampler.table(EPS).t[8:])
    alpha_bar_t = np.float32(alphas_cumprod(EPS)[int(rest[0])])
    start, noise = one_dimensional()
    x = run(
        dataclasses.replace(sampler, num_steps=None, timesteps=rest),
        start=np.sqrt(alpha_bar_t) * start + np.sqrt(1 - alpha_bar_t) * noise,
    )
    assert abs(np.abs(x).sum() - 39.0870) < 1e-2


LONG = ScheduleConfig(num_train_timesteps=1100)
LONG_V = ScheduleConfig(num_train_timesteps=1100, prediction_type="v_prediction")


def run_scaled(sampler, schedule, seed=None, start_row=None):
    """Run as diffusers' tests of sigma-space schedulers do, which hand the scaled input to `step` for the sample."""
    if start_row is not None:
        sampler = dataclasses.replace(sampler, num_steps=None, timesteps=tuple(np.linspace(1099, 0, 10)[start_row:]))
    table = sampler.table(schedule)
    signal, sigma = table.levels[:, 0].T
    mix, x_0_coefs, eps_coefs = table.mix.copy(), table.x_0_coefs.copy(), table.eps_coefs.copy()
    mix[:, :, 0] *= signal[:, None]
    x_0_coefs[:, 0] *= signal
    eps_coefs[:, 0] *= signal
    table = dataclasses.replace(table, mix=mix, x_0_coefs=x_0_coefs, eps_coefs=eps_coefs)

    y = dummy_start() * np.float32(Process.of(schedule).at_time(1099).ratio)
    if start_row is not None:
        y = y + known_noise() * np.float32(sigma[0] / signal[0])
    x_T = nhwc(y * np.float32(signal[0]) / np.float32(table.init_scale))
    noise = np.zeros((table.num_evals, 4, 8, 8, 3), np.float32)
    if seed is not None:
        generator = TorchGenerator(seed)
        for index in np.flatnonzero(table.ends_step):
            noise[index] = nhwc(generator.randn(4, 3, 8, 8))
    return run_table(dummy, table, x_T, noise=noise)


@pytest.mark.parametrize(
    "sampler, schedule, seed, total",
    [
        (Euler(**TEN), LONG, None, 10.0807),
        (Euler(**TEN), LONG_V, None, 0.0002),
        (Euler(**TEN, **KARRAS), LONG, None, 124.52299499511719),
        (EulerAncestral(**TEN), LONG, 0, 152.3192),
        (EulerAncestral(**TEN), LONG_V, 0, 108.4439),
        (Heun(**TEN), LONG, None, 0.1233),
        (Heun(**TEN), LONG_V, None, 4.69e-07),
        (Heun(**TEN, **KARRAS), LONG, None, 0.00015),
        (KDPM2(**TEN), LONG, None, 20.4125),
        (KDPM2(**TEN), LONG_V, None, 4.6934e-07),
        (KDPM2Ancestral(**TEN), LONG, 0, 13979.9433),
        (KDPM2Ancestral(**TEN), LONG_V, 0, 331.8133),
        (LMS(**TEN), LONG, None, 1006.388),
        (LMS(**TEN), LONG_V, None, 0.0017),
        (LMS(**TEN, **KARRAS), LONG, None, 3812.9927),
    ],
)
def test_sigma_space_tests_of_diffusers(sampler, schedule, seed, total):
    x = run_scaled(sampler, schedule, seed)
    assert abs(np.abs(x).sum(dtype=np.float64) - total) < 1e-2  # diffusers' tolerance


@pytest.mark.parametrize(
    "sampler, seed, total",
    [
        (Euler(**TEN), None, 57062.9297),
        (EulerAncestral(**TEN), 0, 56163.0508),
        (Heun(**TEN), None, 75074.8906),
        (KDPM2(**TEN), None, 70408.4062),
        (KDPM2Ancestral(**TEN), 0, 93087.3437),
    ],
)
def test_sigma_space_tests_with_added_noise(sampler, seed, total):
    x = run_scaled(sampler, LONG, seed, start_row=8)
    np.testing.assert_allclose(np.abs(x).sum(dtype=np.float64), total, rtol=1e-6)  # what float32 sums of 1e5 hold


# sampler, seed, told, sum |x|, mean, x[1, 2, 3, 4:6], from 3 S - 1 and N = 10
NONLINEAR_ROWS = [
    (DPMSolverPP(**TEN), None, None, 100226.85938, 104.3635254, (312.67392, 323.242462)),
    (DPMSolverPP(**TEN, solver_order=1), None, None, 92170.75781, 103.9207230, (323.242401, 352.447083)),
    (DPMSolverPP(**TEN, solver_type="heun"), None, None, 101436.69531, 103.5737305, (309.963135, 312.351074)),
    (DPMSolver(**TO_SIGMA_MIN), None, None, 99009.25781, 105.2504501, (323.235229, 328.600433)),
    (DPMSolverPP(**TEN, **KARRAS), None, ROUNDED, 94396.46875, 94.0874252, (304.301422, 321.495026)),
    (DPMSolverPP(**TEN, singlestep=True), None, None, 98774.71875, 107.3266678, (328.196625, 323.243774)),
    (DPMSolverPP(**TEN, singlestep=True, solver_order=3), None, None, 99933.01562, 104.9486313, (300.5159, 321.041016)),
    (UniPC(**TEN), None, None, 100597.60938, 102.2341385, (307.733826, 308.771484)),
    (UniPC(**TEN, solver_order=3), None, None, 98365.39844, 102.5121231, (305.38446, 310.001282)),
    (DEIS(**TO_SIGMA_MIN), None, None, 98441.92188, 106.2880859, (328.641632, 323.235321)),
    (DEIS(**TO_SIGMA_MIN, solver_order=3), None, None, 97709.46875, 105.3101425, (315.046326, 331.106049)),
    (PNDM(**TEN), None, None, 33594.04688, 32.3623619, (90.656204, 96.282509)),
    (PNDM(**TEN, skip_prk_steps=True), None, None, 36568.18359, 30.9533939, (99.855385, 110.548599)),
    (Euler(**TEN), None, None, 94801.65625, 106.5792923, (362.891144, 356.241058)),
    (Euler(**TEN, **KARRAS), None, None, 90531.35938, 100.1356888, (348.479767, 351.402557)),
    (Heun(**TEN), None, None, 97200.30469, 95.5191879, (333.549957, 311.355072)),
    (KDPM2(**TEN), None, None, 103106.35156, 83.5257263, (218.188156, 218.156433)),
    (LMS(**TEN), None, None, 94578.53906, 105.2216415, (361.13797, 348.155884)),
    (EulerAncestral(**TEN), 0, None, 120529.82812, 110.0327988, (434.668732, 381.134766)),
    (
        DPMSolverPP(**TEN, algorithm_type="sde-dpmsolver++"),
        *(0, None, 133000.07812, 107.0760422, (301.311859, 429.270172)),
    ),
]


@pytest.mark.parametrize("row", range(len(NONLINEAR_ROWS)))
def test_nonlinear_model_equals_diffusers(row):
    sampler, seed, told, total, mean, values = NONLINEAR_ROWS[row]
    x = run(sampler, model=nonlinear, start=3 * dummy_start() - 1, seed=seed, told=told)
    # x_0 is x divided by 0.006 at first, and cos(x t / 100) amplifies its roundings: diffusers' own digits end here
    np.testing.assert_allclose(np.abs(x).sum(dtype=np.float64), total, rtol=1e-4)
    np.testing.assert_allclose(x.mean(dtype=np.float64), mean, rtol=1e-4)
    np.testing.assert_allclose(x[1, 2, 3, 4:6], values, rtol=1e-4, atol=1e-4)


# sampler without num_steps, seed, told; then sum |x|, mean, std (ddof 1), x[1, 2, 3, 4] for 10 and for 25 steps
LAST = {"final_sigmas_type": "sigma_min"}
GAUSSIAN_ROWS = [
    (PNDM, {}, None, None, (230.30765, 0.2998798, 0.1734983, 0.0556428), (230.69398, 0.3003828, 0.2094338, 0.0055585)),
    (
        *(PNDM, {"skip_prk_steps": True}, None, None),
        *((230.30762, 0.2998797, 0.1734813, 0.0556654), (230.69397, 0.3003828, 0.2094337, 0.0055587)),
    ),
    (
        *(DPMSolverPP, {"solver_order": 1}, None, None),
        *((230.66806, 0.3003490, 0.1179808, 0.1342650), (230.78384, 0.3004998, 0.1689426, 0.0626759)),
    ),
    (
        *(DPMSolverPP, {}, None, None),
        *((230.67822, 0.3003623, 0.1224427, 0.1279971), (230.81705, 0.3005430, 0.1835439, 0.0421645)),
    ),
    (
        *(DPMSolverPP, {"timestep_spacing": "leading"}, None, None),
        *((230.33907, 0.2999206, 0.1308338, 0.1157433), (230.62334, 0.3002908, 0.1858977, 0.0385988)),
    ),
    (
        *(DPMSolverPP, {"timestep_spacing": "trailing"}, None, None),
        *((230.67993, 0.3003645, 0.1231995, 0.1269341), (230.81958, 0.3005463, 0.1846463, 0.0406160)),
    ),
    (
        *(DPMSolverPP, LAST, None, None),
        *((230.68193, 0.3003671, 0.1291423, 0.1185708), (247.46884, 0.3007750, 0.2670287, -0.0751267)),
    ),
    (
        *(DPMSolverPP, {"solver_type": "heun"}, None, None),
        *((230.67940, 0.3003638, 0.1229649, 0.1272635), (230.82013, 0.3005470, 0.1849039, 0.0402539)),
    ),
    (
        *(DPMSolver, LAST, None, None),
        *((230.68066, 0.3003654, 0.1285868, 0.1193513), (237.94424, 0.3007016, 0.2422018, -0.0402509)),
    ),
    (
        *(DPMSolverPP, KARRAS, None, ROUNDED),
        *((232.59312, 0.3007557, 0.2230221, -0.0131970), (231.88469, 0.3006077, 0.2199688, -0.0090469)),
    ),
    (
        *(DPMSolverPP, {"timestep_spacing": "logsnr"}, None, ROUNDED),
        *((231.42934, 0.3006867, 0.2169788, -0.0047587), (231.04156, 0.3006708, 0.2139170, -0.0004645)),
    ),
    (
        *(DPMSolverPP, {"timestep_spacing": "exponential"}, None, CUT),
        *((231.70757, 0.3008710, 0.2179850, -0.0059908), (231.21187, 0.3008579, 0.2143260, -0.0008532)),
    ),
    (
        *(DPMSolverPP, {"singlestep": True}, None, None),
        *((230.67004, 0.3003516, 0.1188491, 0.1330453), (230.80783, 0.3005310, 0.1794921, 0.0478563)),
    ),
    (
        *(DPMSolverPP, {"singlestep": True, "solver_order": 3}, None, None),
        *((230.67960, 0.3003640, 0.1230341, 0.1271665), (230.81941, 0.3005461, 0.1845794, 0.0407099)),
    ),
    (UniPC, {}, None, None, (230.67963, 0.3003641, 0.1230641, 0.1271243), (230.81871, 0.3005452, 0.1842803, 0.0411301)),
    (
        *(UniPC, {"solver_order": 3}, None, None),
        *((230.67972, 0.3003642, 0.1231051, 0.1270667), (230.81958, 0.3005463, 0.1846577, 0.0405999)),
    ),
    (
        *(UniPC, {"solver_type": "bh1", **LAST}, None, None),
        *((230.68709, 0.3003738, 0.1314183, 0.1153736), (230.82478, 0.3005531, 0.1920055, 0.0302631)),
    ),
    (
        DEIS,
        LAST,
        None,
        None,
        (230.67967, 0.3003642, 0.1281422, 0.1199756),
        (231.69846, 0.3006325, 0.2188515, -0.0074492),
    ),
    (
        *(DEIS, {"solver_order": 3, **LAST}, None, None),
        *((230.68022, 0.3003649, 0.1283938, 0.1196223), (236.05922, 0.3006843, 0.2363233, -0.0319929)),
    ),
    (Euler, {}, None, None, (230.66585, 0.3003462, 0.1170049, 0.1356359), (230.78888, 0.3005064, 0.1710703, 0.0596872)),
    (
        *(Euler, {"timestep_spacing": "leading"}, None, None),
        *((230.34213, 0.2999246, 0.1242568, 0.1250058), (230.65173, 0.3003278, 0.1725547, 0.0574190)),
    ),
    (
        *(Euler, KARRAS, None, None),
        *((230.73273, 0.3004332, 0.1464058, 0.0943347), (230.81963, 0.3005464, 0.1847142, 0.0405204)),
    ),
    (
        Heun,
        {},
        None,
        None,
        (245.35512, 0.3007749, 0.2619190, -0.0679336),
        (231.80380, 0.3006493, 0.2193826, -0.0081801),
    ),
    (
        *(KDPM2, {}, None, None),
        *((280.01599, 0.3009885, 0.3340333, -0.1692371), (235.02682, 0.3006886, 0.2328145, -0.0270491)),
    ),
    (LMS, {}, None, None, (230.74861, 0.3004539, 0.1534360, 0.0844590), (230.87471, 0.3006181, 0.2088314, 0.0066419)),
    (
        *(EulerAncestral, {}, 0, None),
        *((227.36545, 0.2945215, 0.1283566, 0.3781279), (233.16211, 0.2964658, 0.1826960, 0.4534632)),
    ),
    (
        *(DPMSolverPP, {"algorithm_type": "sde-dpmsolver++"}, 0, None),
        *((233.29910, 0.3023135, 0.1381598, 0.3654598), (235.87224, 0.2912017, 0.2149552, 0.5803965)),
    ),
    (
        *(KDPM2Ancestral, {}, 0, None),
        *((343.70184, 0.2732407, 0.4831670, 0.5998430), (271.09293, 0.2951327, 0.3085290, 0.4642469)),
    ),
]


@pytest.mark.parametrize("steps", [10, 25])
@pytest.mark.parametrize("row", range(len(GAUSSIAN_ROWS)))
def test_gaussian_equals_diffusers(row, steps):
    sampler, knobs, seed, told, *expected = GAUSSIAN_ROWS[row]
    total, mean, std, value = expected[steps == 25]
    x = run(sampler(num_steps=steps, **knobs), model=gaussian(EPS), start=gaussian_start(), seed=seed, told=told)
    # float32 networks and coefficients: x_0 is the difference of numbers 160 times as large at first
    np.testing.assert_allclose(np.abs(x).sum(dtype=np.float64), total, rtol=1e-4)
    np.testing.assert_allclose(x.mean(dtype=np.float64), mean, rtol=1e-4)
    np.testing.assert_allclose(x.std(ddof=1, dtype=np.float64), std, rtol=2e-4)
    np.testing.assert_allclose(x[1, 2, 3, 4], value, atol=5e-5)


class TestBugsOfDiffusers:
    """Its numbers that encode a bug: ours must be something else, and right (test_samplers.py shows the orders)."""

    @pytest.mark.parametrize("model, start, total", [(nonlinear, 3 * dummy_start() - 1, 97791.53125)])
    def test_third_order_multistep(self, model, start, total):
        """It lacks a factor 2 in the second difference, and is of order 2. With it, UniPC's predictor is the same."""
        x = run(DPMSolverPP(**TEN, solver_order=3), model=model, start=start)
        assert abs(np.abs(x).sum() - total) > 1e-4 * total
        same = run(UniPC(**TEN, solver_order=3, corrector=False), model=model, start=start)
        # where numbers up to 150 cancel, ten steps of float32 leave some roundings of those: 150 * 6e-8 each
        np.testing.assert_allclose(x, same, rtol=1e-4, atol=3e-6 * np.abs(same).max())

    @pytest.mark.parametrize("steps, std", [(10, 0.1228467), (25, 0.1861101)])
    def test_third_order_multistep_on_a_gaussian(self, steps, std):
        x = run(DPMSolverPP(num_steps=steps, solver_order=3), model=gaussian(EPS), start=gaussian_start())
        assert abs(x.std(ddof=1) - std) > 5e-5  # the rows that agree do so within 2.4e-5

    def test_unipc_bh1_to_the_clean_image_is_nan(self):
        x = run(UniPC(**TEN, solver_type="bh1"), model=nonlinear, start=3 * dummy_start() - 1)
        assert np.all(np.isfinite(x))

    def test_pndm_averages_velocities_of_different_timesteps(self):
        """It averages v over timesteps and turns the mean with the coefficients of one; here eps is averaged."""
        x = run(PNDM(**TEN), V)
        assert abs(np.abs(x).mean() - 0.0878) > 1e-2

    def test_ddim_inversion_turns_velocities_with_another_timestep(self):
        x = run(DDIMInverse(**TEN, num_iterations=1), V)
        assert abs(np.abs(x).sum() - 1394.2185) > 1

    def test_lms_begun_in_the_middle(self):
        """It weights the one slope that it has with the fourth-order coefficient."""
        x = run_scaled(LMS(**TEN), LONG, start_row=8)
        assert abs(np.abs(x).sum() - 27663.6895) > 1

    def test_predictor_corrector_depends_on_the_batch(self):
        """It averages the norms over the batch; the sum is the one of its own test, of 4 images."""
        schedule = ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=1348.0, num_train_timesteps=2000)
        x = run(ScoreSdeVe(num_steps=3), schedule, start=dummy_start(), seed=0)
        assert abs(np.abs(x).sum() / 14372758528.0 - 1) > 1e-5
