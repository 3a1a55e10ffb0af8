"""The grids of noise levels that samplers visit."""

import functools

import numpy as np
import pytest
from known_models import EPS

from ddpm_jax import samplers
from ddpm_jax.config import ScheduleConfig
from ddpm_jax.samplers import DDPM
from ddpm_jax.samplers.grids import RATIO_SPACINGS, Process, levels
from ddpm_jax.schedule import alphas_cumprod


@pytest.mark.parametrize(
    "spacing, offset, expected",
    [
        ("leading", 0, [800, 600, 400, 200, 0]),
        ("leading", 1, [801, 601, 401, 201, 1]),
        ("linspace", 0, [999, 749, 500, 250, 0]),
        ("trailing", 0, [999, 799, 599, 399, 199]),
        ("quadratic", 0, [999, 562, 250, 62, 0]),
    ],
)
def test_grids(spacing, offset, expected):
    assert [level.t for level in levels(Process.of(EPS), 5, spacing, steps_offset=offset)] == expected


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 32, 48, 61, 64, 80, 333, 999, 1000])
def test_ties_are_rounded_as_diffusers_does(count):
    grid = lambda spacing: [level.t for level in levels(Process.of(EPS), count, spacing)]
    assert grid("trailing") == (np.round(np.arange(1000, 0, -1000 / count))[:count] - 1).tolist()
    if count > 1:
        assert grid("linspace") == np.round(np.linspace(0, 999, count))[::-1].tolist()
    assert grid("linspace")[0] == grid("quadratic")[0] == 999


def test_grids_of_diffusers():
    """What `set_timesteps(10)` of diffusers 0.42.1's schedulers makes of T = 1000."""
    t = lambda sampler: sampler(num_steps=10).table(EPS).t
    assert t(samplers.DPMSolverPP).tolist() == [999, 899, 799, 699, 599, 500, 400, 300, 200, 100]
    assert t(samplers.Euler).tolist() == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert t(samplers.Heun).tolist()[:5] == [999, 888, 888, 777, 777]
    np.testing.assert_allclose(t(samplers.KDPM2)[:6], [999, 945.133, 888, 834.327, 777, 723.514], atol=1e-3)
    expected = [900, 850, 850, 800, 800, 750, 750, 700, 700, 650, 650, 600, 600, 500, 400, 300, 200, 100, 0]
    assert t(samplers.PNDM).tolist() == expected
    assert t(functools.partial(samplers.PNDM, steps_offset=1)).tolist() == [number + 1 for number in expected]
    ratios = [Process.of(EPS).at_time(int(t)).ratio for t in (999, 899, 799)]
    np.testing.assert_allclose(ratios, [157.40727, 60.27142, 25.52848], rtol=1e-6)


def test_ratio_grids():
    process = Process.of(EPS)
    ratios = {name: np.array([level.ratio for level in levels(process, 9, name)]) for name in RATIO_SPACINGS}
    for grid in ratios.values():
        np.testing.assert_allclose(grid[[0, -1]], [157.40727, 0.0100013], rtol=1e-5)
    assert np.ptp(np.diff(np.log(ratios["logsnr"]))) < 1e-12
    assert np.ptp(np.diff(ratios["karras"] ** (1 / 7))) < 1e-12
    middle = ratios["beta"][4]  # the distribution is symmetric
    np.testing.assert_allclose(middle, (157.40727 + 0.0100013) / 2, rtol=1e-5)


def test_levels_go_there_and_back():
    process = Process.of(EPS)
    for t in (0, 17, 500, 999):
        level = process.at_time(t)
        assert process.at_ratio(level.ratio).t == pytest.approx(t, abs=1e-9)
        np.testing.assert_allclose(process.at_ratio(level.ratio)[1:], level[1:], rtol=1e-12)


def test_cosine_schedules_can_be_clipped():
    schedule = ScheduleConfig(beta_schedule="squaredcos_cap_v2")
    table = samplers.DPMSolverPP(lambda_min_clipped=-5.1).table(schedule)
    assert table.t[0] < 999
    alpha_bar = alphas_cumprod(schedule)[int(table.t[0]) : int(table.t[0]) + 2]
    lambdas = 0.5 * np.log(alpha_bar / (1 - alpha_bar))
    assert lambdas[0] >= -5.1 > lambdas[1]


@pytest.mark.parametrize(
    "custom, message",
    [
        ((100, 87, 50, 51, 0), "must fall strictly"),
        ((1000,), "must lie in 0 .. 999"),
        ((5, -1), "must lie in 0 .. 999"),
        ((), "must be a list of numbers"),
        (5, "must be a list of numbers"),
        ((900, "0"), "must be a list of numbers"),
    ],
)
def test_bad_custom_timesteps(custom, message, untyped):
    with pytest.raises(ValueError, match=message):
        DDPM(timesteps=custom).table(EPS)


def test_more_steps_than_the_grid_has():
    with pytest.raises(ValueError, match="has at most 999 steps, not 1000"):
        samplers.DPMSolverPP(num_steps=1000, timestep_spacing="leading").table(EPS)
    assert samplers.DPMSolverPP(num_steps=1000).table(EPS).num_evals == 1000  # fractions between the timesteps


def test_offset_beyond_the_schedule():  # diffusers issue 10003: an IndexError in the middle of the run
    message = "`steps_offset` 1 with 1000 steps visits 1000, beyond 0 .. 999. With so many steps it is at most 0"
    with pytest.raises(ValueError, match=message):
        DDPM(steps_offset=1, num_steps=1000).table(EPS)
    with pytest.raises(ValueError, match="`steps_offset` 25 with 50 steps visits 1005, .* at most 19"):
        samplers.DDIM(steps_offset=25).table(EPS)
    assert DDPM(steps_offset=1).table(EPS).t.tolist() == list(range(999, 0, -1))
    assert samplers.DDIM(steps_offset=19).table(EPS).t[0] == 999


def test_the_quadratic_grid_of_one_timestep():
    assert [level.t for level in levels(Process.of(ScheduleConfig(num_train_timesteps=1)), 1, "quadratic")] == [0]
