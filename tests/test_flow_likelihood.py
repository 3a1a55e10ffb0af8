"""The likelihood by the probability flow: against the densities of a Gaussian and of a mixture, and the bound."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_params
from known_models import NARROW, ExactMixture, Mixture, even_log_snr, on_levels
from scipy import stats

import ddpm_jax
from ddpm_jax import likelihood
from ddpm_jax.config import ScheduleConfig
from ddpm_jax.extras import MissingExtra
from ddpm_jax.images.source import centred, open_source
from ddpm_jax.models import hoist

pytest.importorskip("diffrax")
KEY = jax.random.key(4)
SCHEDULE = even_log_snr(50)


@pytest.fixture(autouse=True)
def optimised():
    """Compile as users do: without optimisations (conftest), XLA of jax 0.8 never ends diffrax's loop."""
    before = jax.config.values["jax_disable_most_optimizations"]
    if jax.__version_info__ < (0, 9):
        jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def log_density(model, x):
    """log p of x_t / signal at t = 0: the data with that much noise, in nats an image."""
    ratio = np.sqrt((1 - model.alpha_bar[0]) / model.alpha_bar[0])
    weights, means, stds = (np.asarray(numbers)[:, None, None, None, None] for numbers in model.mixture)
    density = (weights * stats.norm.pdf(np.asarray(x, np.float64), means, np.hypot(stds, ratio))).sum(0)
    return np.log(density).sum((1, 2, 3))


@pytest.mark.parametrize(
    "mixture, prediction_type, trace",
    [
        (Mixture(), "epsilon", "rademacher"),
        pytest.param(NARROW, "epsilon", "rademacher", marks=pytest.mark.slow),
        pytest.param(Mixture(), "sample", "exact", marks=pytest.mark.slow),
        pytest.param(Mixture(), "v_prediction", "exact", marks=pytest.mark.slow),
    ],
)
def test_is_the_density_of_the_data(known_network, mixture, prediction_type, trace):
    """The Jacobian is diagonal, so that Rademacher probes are exact. At timestep 0 the signal is 0.976."""
    model = ExactMixture(even_log_snr(50, start=3.0, prediction_type=prediction_type), mixture)
    params, x = known_network(model, model.schedule), model.draw((3, 8, 8, 1))
    found = likelihood.flow_likelihood(params, KEY, x, dequantisation="none", trace=trace, rtol=1e-4, atol=1e-5)
    expected = log_density(model, x)
    # 64 values: 1e-3 bits/dim of the solver's tolerance and of N(0, I) for x_T, of which 1e-4 is data
    np.testing.assert_allclose(found.log_likelihood, expected, atol=64 * 1e-3 * np.log(2))
    np.testing.assert_allclose(found.bits_per_dim, -expected / 64 / np.log(2) + np.log2(127.5), atol=1e-3)
    assert 30 < found.num_evals.min() and found.num_evals.max() < 2000


@pytest.mark.slow  # a compiled solver takes 3 seconds
def test_tighter_tolerances_cost_more_and_err_less(known_network):
    model = ExactMixture(SCHEDULE, Mixture())
    params, x = known_network(model, SCHEDULE), model.draw((2, 8, 8, 1))
    errors, evals = {}, {}
    for tolerance in (1e-1, 1e-4):
        found = likelihood.flow_likelihood(params, KEY, x, dequantisation="none", rtol=tolerance, atol=tolerance)
        errors[tolerance] = np.abs(np.asarray(found.log_likelihood) - log_density(model, x)).max()
        evals[tolerance] = found.num_evals.mean()
    assert errors[1e-4] < errors[1e-1] / 10
    assert evals[1e-4] > 1.5 * evals[1e-1]
    np.testing.assert_array_equal(
        ddpm_jax.log_likelihood(params, KEY, x, dequantisation="none", rtol=1e-4, atol=1e-4), found.log_likelihood
    )


@pytest.mark.slow  # a compiled solver takes 3 seconds
def test_uniform_noise_between_the_levels(known_network):
    """The mean of -log p over the noise is above the code length of the levels, and by less than 1e-3 bits here."""
    model = ExactMixture(SCHEDULE, Mixture())
    x = model.draw((64, 8, 8, 1))
    params = known_network(model, SCHEDULE)
    found = likelihood.flow_likelihood(params, KEY, x, rtol=1e-3, atol=1e-4)
    plain = likelihood.flow_likelihood(params, KEY, x, rtol=1e-3, atol=1e-4, dequantisation="none")
    assert np.abs(found.bits_per_dim - plain.bits_per_dim).max() > 1e-5  # it acts
    ratio = np.sqrt((1 - model.alpha_bar[0]) / model.alpha_bar[0])
    weights, means, stds = (np.asarray(numbers)[:, None, None, None, None] for numbers in model.mixture)
    cdf = lambda x: (weights * stats.norm.cdf(x, means, np.hypot(stds, ratio))).sum(0)
    bits = -np.log2(cdf(x + 1 / 255.0) - cdf(x - 1 / 255.0)).mean()
    # 4,096 values, whose densities change by no more than 1/255 / 0.15 = 3 % within a level: 3 % / sqrt(4,096)
    assert np.mean(found.bits_per_dim) == pytest.approx(bits, abs=2e-3)


def mixing(x, t):
    """A network whose Jacobian is not diagonal: two pixels see each other."""
    return 0.5 * x + 0.4 * jnp.sin(x[:, ::-1] + t / 50)


@pytest.mark.slow  # a compiled solver takes 3 seconds
class TestTrace:
    def test_probes_agree_with_the_trace(self, known_network):
        params = known_network(mixing, SCHEDULE)
        x = on_levels(np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 1)))
        knobs = {"dequantisation": "none", "rtol": 1e-3, "atol": 1e-4}
        exact = likelihood.flow_likelihood(params, KEY, x, trace="exact", **knobs)
        assert exact.standard_error == 0
        for trace in ("rademacher", "gaussian"):
            found = likelihood.flow_likelihood(params, KEY, x, trace=trace, num_probes=64, **knobs)
            error = float(found.standard_error[0])
            assert 0 < error < 0.5
            assert abs(float(found.bits_per_dim[0] - exact.bits_per_dim[0])) < 3 * error
            one = likelihood.flow_likelihood(params, KEY, x, trace=trace, **knobs)
            assert np.isnan(one.standard_error).all()
            assert 0 < abs(float(one.bits_per_dim[0] - exact.bits_per_dim[0])) < 8 * 4 * error  # of 64 probes: 8 times


@pytest.mark.slow  # a compiled solver takes 3 seconds
def test_a_likelihood_belongs_to_its_image(known_network):
    params = known_network(mixing, SCHEDULE)
    x = on_levels(np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)))
    whole = likelihood.flow_likelihood(params, KEY, x, rtol=1e-2, atol=1e-3)
    part = likelihood.flow_likelihood(params, KEY, x[1:], first_index=1, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(whole.log_likelihood[1:], part.log_likelihood, rtol=1e-4)  # float rounding
    np.testing.assert_array_equal(whole.num_evals[1:], part.num_evals)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hoist, "run", lambda *_: pytest.fail("traced again"))
        other = likelihood.flow_likelihood(params, jax.random.key(8), x, rtol=2e-2, atol=1e-3)
    assert not np.allclose(whole.log_likelihood, other.log_likelihood)


@pytest.mark.slow  # a compiled solver takes 3 seconds
def test_counts_its_evaluations(known_network):
    """The network is called as often as `num_evals` says; a traced callback counts."""
    calls = []

    def counted(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return mixing(x, t)

    params = known_network(counted, SCHEDULE)
    x = on_levels(np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 1)))
    found = likelihood.flow_likelihood(params, KEY, x, rtol=1e-2, atol=1e-3)
    jax.effects_barrier()
    assert len(calls) == found.num_evals[0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dequantisation": "gaussian"}, "`dequantisation` must be one of"),
        ({"trace": "hutchinson"}, "`trace` must be one of"),
        ({"trace": "exact", "num_probes": 2}, "an exact trace has no probes"),
        ({"num_probes": 0}, "`num_probes` must be at least 1"),
        ({"rtol": 0}, "`rtol` must be a number between 0 and 1, not 0"),
        ({"atol": 1.5}, "`atol` must be a number between 0 and 1"),
        ({"max_steps": 0}, "`max_steps` must be at least 1"),
        ({"x_0": np.full((1, 8, 8, 1), 0.5011, np.float32)}, "of a level away"),
    ],
)
def test_bad_input(change, message, untyped):
    params = small_params()
    with pytest.raises(ValueError, match=message):
        likelihood.flow_likelihood(params, KEY, **({"x_0": np.zeros((1, 8, 8, 1), np.float32) - 1} | change))


def test_variance_exploding_networks_are_refused_by_name():
    params = small_params(schedule=ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0))
    with pytest.raises(ValueError, match="variance-preserving"):
        ddpm_jax.log_likelihood(params, KEY, np.zeros((1, 8, 8, 1), np.float32) - 1)


@pytest.mark.slow  # a compiled solver takes 3 seconds
def test_too_few_steps(known_network):
    params = known_network(mixing, SCHEDULE)
    x = np.zeros((2, 8, 8, 1), np.float32) - 1
    with pytest.raises(RuntimeError, match="2 of 2 images .* did not reach its end in 2 steps"):
        likelihood.flow_likelihood(params, KEY, x, max_steps=2)


def test_without_diffrax(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "diffrax" else object())
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(MissingExtra, match=r"needs diffrax: pip install 'ddpm-jax\[eval\]'"):
        ddpm_jax.log_likelihood(small_params(), KEY, np.zeros((1, 8, 8, 1), np.float32) - 1)


@pytest.mark.slow
def test_lies_below_the_bound():
    """On photographs' like: the flow's bits/dim of digits-16 are below the bound's, image by image."""
    params = ddpm_jax.load("digits-16")
    pictures, _ = centred(open_source("digits"), 16, 8)
    x_0 = (pictures / 127.5 - 1).astype(np.float32)
    bound = np.asarray(ddpm_jax.bits_per_dim(params, KEY, x_0))
    flow = np.asarray(likelihood.flow_likelihood(params, KEY, x_0).bits_per_dim)
    assert (flow < bound).all()
