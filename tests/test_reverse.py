"""p(x_s | x_t): against Bayes' rule, the algebra of alpha_bar, and what the samplers and the losses make of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_models import VE, X0, run_table

from ddpm_jax import reverse
from ddpm_jax.config import ScheduleConfig
from ddpm_jax.samplers import DDPM
from ddpm_jax.schedule import alphas_cumprod, posterior_coefficients

SCHEDULES = [ScheduleConfig(), ScheduleConfig(beta_schedule="squaredcos_cap_v2"), ScheduleConfig(num_train_timesteps=7)]


@pytest.mark.parametrize(
    "signal_t, sigma_t, signal_s, sigma_s",
    [(0.6, 0.8, 0.8, 0.6), (0.01, 0.99995, 0.3, 0.953939), (1.0, 5.0, 1.0, 2.0), (0.7, 3.0, 0.9, 0.4)],
)
def test_transition_is_bayes_rule(signal_t, sigma_t, signal_s, sigma_s):
    """q(x_s | x_t, x_0) is q(x_t | x_s) q(x_s | x_0), by its precision; for processes of any kind."""
    step = reverse.transition(signal_t, sigma_t, signal_s, sigma_s)
    shrink = signal_t / signal_s
    fresh = sigma_t**2 - (shrink * sigma_s) ** 2  # the variance of q(x_t | x_s)
    precision = shrink**2 / fresh + 1 / sigma_s**2
    np.testing.assert_allclose(step.largest, fresh, rtol=1e-12)
    np.testing.assert_allclose(step.smallest, 1 / precision, rtol=1e-12)
    np.testing.assert_allclose(step.from_x_t, shrink / fresh / precision, rtol=1e-12)
    np.testing.assert_allclose(step.from_x_0, signal_s / sigma_s**2 / precision, rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_chain_is_that_of_alpha_bar(schedule):
    table = alphas_cumprod(schedule)
    before = np.append(1.0, table[:-1])
    from_x_0, from_x_t, variance = posterior_coefficients(table, before)
    chain = reverse.chain(schedule)
    np.testing.assert_allclose(chain.from_x_0, from_x_0, rtol=1e-9)
    np.testing.assert_allclose(chain.from_x_t, from_x_t, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(chain.largest, 1 - table / before, rtol=1e-9)
    np.testing.assert_allclose(chain.smallest[1:], variance[1:], rtol=1e-9)
    assert chain.smallest[0] == chain.smallest[1]  # Ho et al.'s code, for the step that has no width


def test_a_chain_of_one_step():
    schedule = ScheduleConfig(num_train_timesteps=1)
    assert reverse.chain(schedule).smallest == pytest.approx(1 - alphas_cumprod(schedule))


class TestVariances:
    SMALL, LARGE = np.float32(np.log(0.02)), np.float32(np.log(0.05))

    @pytest.mark.parametrize("variance_type", reverse.FIXED)
    def test_fixed(self, variance_type):
        expected = self.LARGE if "large" in variance_type else self.SMALL
        assert reverse.log_variance(variance_type, self.SMALL, self.LARGE) == expected

    @pytest.mark.parametrize("share, expected", [(-1, 0.02), (1, 0.05), (0, np.sqrt(0.02 * 0.05))])
    def test_learned_range_is_geometric(self, share, expected):
        extra = np.full((1, 2, 2, 1), share, np.float32)
        log_variance = reverse.log_variance("learned_range", self.SMALL, self.LARGE, extra)
        np.testing.assert_allclose(np.exp(log_variance), expected, rtol=1e-5)
        np.testing.assert_allclose(
            reverse.learned_std("learned_range", self.SMALL, self.LARGE, extra), np.sqrt(expected), rtol=1e-5
        )

    def test_learned(self):
        extra = np.array([0.25, -0.25], np.float32).reshape(2, 1, 1, 1)
        np.testing.assert_allclose(reverse.learned_std("learned", 0, 0, extra).ravel(), [0.5, 0.0])
        log_variance = reverse.log_variance("learned", 0, 0, extra).ravel()
        np.testing.assert_allclose(log_variance[0], np.log(0.25), rtol=1e-6)
        assert log_variance[1] == -np.inf


@pytest.mark.filterwarnings("ignore:Ancestral sampling")
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned", "learned_range"])
@pytest.mark.parametrize("t", [999, 500, 1])
def test_a_step_of_ddpm_draws_from_p_step(variance_type, t):
    """mean + std noise, with the network's x_0_hat and second half: one row of the sampler."""
    generator = np.random.default_rng(0)
    x_t, x_0_hat, noise = generator.standard_normal((3, 2, 4, 4, 1)).astype(np.float32)
    extra = np.abs(np.tanh(generator.standard_normal(x_t.shape))).astype(np.float32)
    learned = variance_type.startswith("learned")
    net_fn = lambda x, t: jnp.concatenate([x_0_hat, extra], axis=-1) if learned else jnp.asarray(x_0_hat)
    table = DDPM(variance_type=variance_type, timesteps=(t, t - 1), clip=None).table(X0).part(0, 1)
    drawn = run_table(net_fn, table, x_t, jax.random.key(0), noise=noise[None])
    mean, log_variance = reverse.p_step(X0, variance_type, x_t, np.full(2, t), x_0_hat, extra if learned else None)
    assert log_variance.shape == ((2, 4, 4, 1) if learned else (2, 1, 1, 1))
    np.testing.assert_allclose(drawn, mean + jnp.exp(0.5 * log_variance) * noise, rtol=1e-5, atol=1e-6)


def test_the_last_step_of_the_chain():
    """Fixed variances are those of timestep 1 (Ho et al.'s code); a learned range ends at beta_0."""
    image, t = np.zeros((1, 1, 1, 1), np.float32), np.array([0])
    variance = lambda kind, extra=None: float(np.exp(reverse.p_step(X0, kind, image, t, image + 0.5, extra)[1]).item())
    table = alphas_cumprod(X0)
    small = (1 - table[0]) / (1 - table[1]) * (1 - table[1] / table[0])
    assert variance("fixed_small") == pytest.approx(small, rel=1e-4)
    assert variance("fixed_large") == pytest.approx(small, rel=1e-4)
    assert variance("learned_range", image - 1) == pytest.approx(small, rel=1e-4)
    assert variance("learned_range", image + 1) == pytest.approx(1 - table[0], rel=1e-4)
    assert reverse.p_step(X0, "fixed_small", image, t, image + 0.5)[0].item() == 0.5  # the clean image itself


def test_variance_exploding_chains_have_transitions_too():
    """Song et al. 2021, appendix F: the ancestral step of a variance-exploding process."""
    table = DDPM(num_steps=5, timestep_spacing="logsnr", clip=None).table(VE)
    sigma_t, sigma_s = table.levels[2, :, 1]
    kept = (sigma_s / sigma_t) ** 2
    std = sigma_s * np.sqrt(1 - kept)
    np.testing.assert_allclose(table.mix[2, 0], [kept, 1 - kept, 0, std], rtol=1e-9, atol=1e-12)
