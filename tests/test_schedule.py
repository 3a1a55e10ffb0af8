"""Beta schedules against diffusers' tables and the original code's rules; the algebra by identities."""

import numpy as np
import pytest

from ddpm_jax import schedule
from ddpm_jax.config import ScheduleConfig

# betas and alphas_cumprod at [0, 1, 500, 999]: diffusers 0.42.1, printed with 9 digits, which name a float32
TABLES = {
    "linear": (
        ("9.99999975e-05", "0.000119919918", "0.0100599593", "0.0199999996"),
        ("0.999899983", "0.999780059", "0.0777966529", "4.03583035e-05"),
    ),
    "scaled_linear": (
        ("9.99999975e-05", "0.000102648366", "0.00574207259", "0.0200000014"),
        ("0.999899983", "0.999797344", "0.331274629", "0.000733411987"),
    ),
    "squaredcos_cap_v2": (
        ("4.12842237e-05", "4.61417512e-05", "0.00315569155", "0.999000013"),
        ("0.999958694", "0.99991256", "0.492285043", "2.42873499e-09"),
    ),
    "sigmoid": (
        ("0.000149205196", "0.000149798318", "0.0100798784", "0.0199507959"),
        ("0.99985081", "0.999701023", "0.298887581", "3.96818214e-05"),
    ),
    "laplace": (
        ("0.0211537573", "0.00874781329", "0.000250031386", "0.847252607"),
        ("0.978846252", "0.970283508", "0.707283437", "0.0316227749"),
    ),
    "exp": (
        ("0.0119282873", "0.0119282873", "0.0119282873", "0.0119282873"),
        ("0.98807174", "0.97628576", "0.0024492182", "6.144379e-06"),
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_equal_diffusers_to_the_bit(name):
    config = ScheduleConfig(beta_schedule=name)
    for table, expected in zip((schedule.betas(config), schedule.alphas_cumprod(config)), TABLES[name], strict=True):
        np.testing.assert_array_equal(table[[0, 1, 500, 999]], np.array(expected, np.float32).astype(np.float64))


def test_zero_terminal_snr():
    config = ScheduleConfig(rescale_betas_zero_snr=True)
    index = [0, 1, 500, 998, 999]
    expected = np.array([0.000100016594, 0.000120639801, 0.0102925897, 0.75226593, 1])
    # torch's float32 square root is a unit in the last place off; the differences of neighbours enlarge that
    np.testing.assert_allclose(schedule.betas(config)[index], expected, rtol=2e-6)
    expected = [0.999899983, 0.999779344, 0.0752462, 4.21327329e-09, 0]
    np.testing.assert_allclose(schedule.alphas_cumprod(config)[index], expected, rtol=5e-6)
    assert schedule.alphas_cumprod(config)[-1] == 0


def test_original_schedules():
    """hojonathanho/diffusion, get_beta_schedule."""
    make = lambda name: schedule.betas(ScheduleConfig(beta_schedule=name, num_train_timesteps=100))
    np.testing.assert_allclose(np.sqrt(make("quad")), np.linspace(0.01, np.sqrt(0.02), 100), rtol=1e-12)
    np.testing.assert_array_equal(make("const"), np.full(100, 0.02))
    for name, rising in (("warmup10", 10), ("warmup50", 50)):
        np.testing.assert_allclose(make(name)[:rising], np.linspace(1e-4, 0.02, rising), rtol=1e-12)
        np.testing.assert_array_equal(make(name)[rising:], 0.02)
    np.testing.assert_allclose(make("jsd"), 1 / np.arange(100, 0, -1), rtol=1e-12)


def test_trained_betas_win():
    betas = tuple(np.linspace(0.1, 0.2, 7).tolist())
    config = ScheduleConfig(num_train_timesteps=7, trained_betas=betas)
    np.testing.assert_allclose(schedule.betas(config), betas, rtol=1e-7)  # float32
    np.testing.assert_allclose(schedule.alphas_cumprod(config), np.cumprod(1 - np.array(betas)), rtol=3e-7)


@pytest.mark.parametrize("name", ["sigmoid", "quad", "jsd"])
def test_beside_trained_betas_the_name_of_a_schedule_says_nothing(name):
    betas = tuple(np.linspace(0.1, 0.2, 7).tolist())
    tables = [
        schedule.alphas_cumprod(ScheduleConfig(num_train_timesteps=7, trained_betas=betas, beta_schedule=kind))
        for kind in ("linear", name)
    ]
    np.testing.assert_array_equal(*tables)


@pytest.mark.parametrize("name", [*TABLES, "quad", "const", "warmup10", "warmup50", "jsd"])
def test_every_schedule_falls_from_signal_to_noise(name):
    alphas_cumprod = schedule.alphas_cumprod(ScheduleConfig(beta_schedule=name))
    assert alphas_cumprod.dtype == np.float64
    assert np.all(np.diff(alphas_cumprod) < 0)
    assert 0 <= alphas_cumprod[-1] < alphas_cumprod[0] < 1


def test_a_single_timestep():
    assert schedule.betas(ScheduleConfig(num_train_timesteps=1)).tolist() == [np.float32(1e-4)]


def test_conversions_invert_each_other():
    generator = np.random.default_rng(0)
    x_0, eps = (generator.standard_normal((3, 4, 4, 2)).astype(np.float32) for _ in range(2))
    alpha_bar_t = np.array([0.9, 0.5, 0.1], np.float32)
    x_t = schedule.q_sample(x_0, alpha_bar_t, eps)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6)  # a few float32 roundings, enlarged by 1/sqrt(0.1)
    close(schedule.x_0_from_eps(x_t, alpha_bar_t, eps), x_0)
    close(schedule.eps_from_x_0(x_t, alpha_bar_t, x_0), eps)
    v = schedule.v_from_x_0_eps(x_0, alpha_bar_t, eps)
    for prediction_type, out in (("epsilon", eps), ("sample", x_0), ("v_prediction", v)):
        a, b, c, d = (
            schedule.broadcast(number) for number in schedule.prediction_coefficients(prediction_type, alpha_bar_t)
        )
        close(a * x_t + b * out, x_0)
        close(c * x_t + d * out, eps)


def test_the_output_of_a_variance_exploding_network_is_the_score():
    """x = x_0 + sigma eps, and out = -eps / sigma (Song et al. 2021)."""
    generator = np.random.default_rng(1)
    x_0, eps, sigma = generator.standard_normal(5), generator.standard_normal(5), 3.5
    ve = ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0)
    a, b, c, d = schedule.output_coefficients(ve, sigma)
    x, out = x_0 + sigma * eps, -eps / sigma
    np.testing.assert_allclose(a * x + b * out, x_0, rtol=1e-12)
    np.testing.assert_allclose(c * x + d * out, eps, rtol=1e-12)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_other_outputs_are_those_of_the_prediction_type(prediction_type):
    config = ScheduleConfig(prediction_type=prediction_type)
    expected = schedule.prediction_coefficients(prediction_type, np.float64(0.3))
    assert schedule.output_coefficients(config, np.float64(0.3)) == expected


def test_posterior_is_bayes_rule():
    """q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0): a product of two Gaussians in x_s."""
    alpha_bar_t, alpha_bar_s, x_0, x_t = 0.3, 0.7, 0.4, -1.1
    ratio = alpha_bar_t / alpha_bar_s
    precision = ratio / (1 - ratio) + 1 / (1 - alpha_bar_s)
    mean = (np.sqrt(ratio) * x_t / (1 - ratio) + np.sqrt(alpha_bar_s) * x_0 / (1 - alpha_bar_s)) / precision
    image = np.ones((1, 1, 1, 1), np.float32)
    got, variance = schedule.q_posterior(x_0 * image, x_t * image, alpha_bar_t, alpha_bar_s)
    np.testing.assert_allclose(got.item(), mean, rtol=1e-6)
    np.testing.assert_allclose(float(variance), 1 / precision, rtol=1e-6)


def test_log_snr():
    np.testing.assert_allclose(schedule.log_snr(np.array([0.8])), np.log(4), rtol=1e-14)


def test_variance_exploding_has_no_betas():
    with pytest.raises(ValueError, match="no betas"):
        schedule.betas(ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0))
