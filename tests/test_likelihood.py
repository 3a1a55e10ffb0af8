"""The variational bound: against the paper's equations in float64, closed forms, and quadrature."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_params
from known_models import NARROW, ExactMixture, Mixture, even_log_snr, ho_tables, on_levels
from scipy import stats

import ddpm_jax
from ddpm_jax import likelihood, reverse
from ddpm_jax.config import SamplerConfig, ScheduleConfig
from ddpm_jax.images.source import centred, open_source
from ddpm_jax.likelihood import program
from ddpm_jax.models import hoist

KEY = jax.random.key(3)
SHORT = {"num_train_timesteps": 6, "beta_start": 0.01, "beta_end": 0.4}


def images(count=3, side=8, channels=1, seed=0):
    drawn = on_levels(np.random.default_rng(seed).uniform(-1, 1, (count, side, side, channels)))
    drawn[0, 0, :2, 0] = -1, 1  # the outer levels, whose bins are open
    return drawn


def wavy(x, t, labels=0.0):
    """A network without a meaning, whose second half, for learned variances, lies in 0.05 .. 0.95."""
    return jnp.sin(3 * x) + 0.3 * jnp.cos(x * t) + labels


def wavy_with_variance(x, t):
    return jnp.concatenate([wavy(x, t), 0.5 + 0.45 * jnp.sin(5 * x + t)], axis=-1)


def drawn(x_0, number, key=KEY, first_index=0):
    """The noise of each image, by the rule in the docstring: it depends on (key, image, number)."""
    keys = [jax.random.fold_in(jax.random.fold_in(key, first_index + i), number) for i in range(len(x_0))]
    return np.stack([np.asarray(jax.random.normal(key, x_0.shape[1:]), np.float64) for key in keys])


def ho_bound(schedule, variance_type, decoder, clip, x_0, noise, net_fn):
    """Transcribe equations 5, 7, 8, 11, 13 and 15 of Ho et al. 2020, one value after the other, in float64.

    noise [T, b, h, w, c]; net_fn(x_t, t) is the raw output. Returns L_T [b] and L_t, the mean square errors of x_0_hat
    and of eps_hat, [b, T], in bits/dim.
    """
    x_0 = np.asarray(x_0, np.float64)
    betas, alpha_bar, before, posterior = ho_tables(schedule)
    T, channels = len(betas), x_0.shape[-1]
    bits = lambda nats: nats.mean((1, 2, 3)) / np.log(2)
    a_T = alpha_bar[-1]
    prior = bits((-1 - np.log(1 - a_T) + (1 - a_T) + a_T * x_0**2) / 2)
    clipped_log = np.log(np.append(posterior[1], posterior[1:]))
    columns = []
    for t in range(T):
        signal, sigma = np.sqrt(alpha_bar[t]), np.sqrt(1 - alpha_bar[t])
        x_t = signal * x_0 + sigma * noise[t]
        out = np.asarray(net_fn(x_t.astype(np.float32), t), np.float64)
        out, extra = out[..., :channels], out[..., channels:]
        x_0_hat, eps_hat = ho_prediction(schedule.prediction_type, x_t, out, signal, sigma)
        if clip is not None:
            x_0_hat = np.clip(x_0_hat, -clip, clip)
        log_variance = {
            "fixed_small": clipped_log[t],
            "fixed_large": np.log(np.append(posterior[1], betas[1:]))[t],
        }.get(variance_type.removesuffix("_log"))
        if variance_type == "learned":
            log_variance = np.log(extra)
        if variance_type == "learned_range":
            log_variance = (extra + 1) / 2 * np.log(betas[t]) + (1 - extra) / 2 * clipped_log[t]
        of_x_0 = betas[t] * np.sqrt(before[t]) / (1 - alpha_bar[t])
        of_x_t = (1 - before[t]) * np.sqrt(1 - betas[t]) / (1 - alpha_bar[t])
        q_mean, p_mean = of_x_0 * x_0 + of_x_t * x_t, of_x_0 * x_0_hat + of_x_t * x_t
        if t == 0:
            nats = -ho_decoder(x_0, p_mean, log_variance, decoder)
        else:
            q_log = np.log(posterior[t])
            nats = (-1 + log_variance - q_log + np.exp(q_log - log_variance)) / 2
            nats = nats + (q_mean - p_mean) ** 2 * np.exp(-log_variance) / 2
        columns.append(
            (bits(nats), ((x_0 - x_0_hat) ** 2).mean((1, 2, 3)), ((noise[t] - eps_hat) ** 2).mean((1, 2, 3)))
        )
    return prior, *(np.stack(column, axis=1) for column in zip(*columns, strict=True))


def ho_prediction(prediction_type, x_t, out, signal, sigma):
    if prediction_type == "epsilon":
        return (x_t - sigma * out) / signal, out
    if prediction_type == "sample":
        return out, (x_t - signal * out) / sigma
    return signal * x_t - sigma * out, sigma * x_t + signal * out


def ho_decoder(x, mean, log_variance, decoder):
    std = np.exp(np.broadcast_to(log_variance, x.shape) / 2)
    if decoder == "tanh":
        cdf = lambda z: 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
        above, below = cdf((x - mean + 1 / 255) / std), cdf((x - mean - 1 / 255) / std)
        mass = np.where(x < -0.999, above, np.where(x > 0.999, 1 - below, above - below))
        return np.log(np.maximum(mass, 1e-12))
    upper, lower = (x - mean + 1 / 255) / std, (x - mean - 1 / 255) / std
    flip = upper + lower > 0
    upper, lower = np.where(flip, -lower, upper), np.where(flip, -upper, lower)
    inside = stats.norm.logcdf(upper) + np.log1p(-np.exp(stats.norm.logcdf(lower) - stats.norm.logcdf(upper)))
    outer = np.where(x < 0, stats.norm.logcdf((x - mean + 1 / 255) / std), stats.norm.logsf((x - mean - 1 / 255) / std))
    return np.where(np.abs(x) > 0.999, outer, inside)


def agrees(found, expected, rtol=2e-4):
    """Compare a Bound with what `ho_bound` returns.

    rtol: float32 noise in x_t / signal and in the decoder's argument, (x - mean) / std with std 0.05 and less.
    """
    prior, terms, mse, eps_mse = expected
    np.testing.assert_allclose(found.prior, prior, rtol=1e-5)
    np.testing.assert_allclose(found.terms, terms, rtol=rtol, atol=1e-7)
    np.testing.assert_allclose(found.mse, mse, rtol=rtol)
    np.testing.assert_allclose(found.eps_mse, eps_mse, rtol=rtol)
    np.testing.assert_allclose(found.total, prior + terms.sum(1), rtol=rtol)


@pytest.mark.parametrize(
    "variance_type, prediction_type, decoder, clip",
    [
        ("fixed_small", "epsilon", "tanh", 1.0),
        ("fixed_large", "v_prediction", "exact", 0.5),
        pytest.param("fixed_small_log", "v_prediction", "exact", None, marks=pytest.mark.slow),
        pytest.param("fixed_large_log", "sample", "exact", 1.0, marks=pytest.mark.slow),
        ("learned", "epsilon", "exact", 1.0),
        ("learned_range", "sample", "tanh", None),
    ],
)
def test_every_term_is_the_papers(known_network, variance_type, prediction_type, decoder, clip):
    learned = variance_type in reverse.LEARNED
    net_fn = wavy_with_variance if learned else wavy
    schedule, x_0 = ScheduleConfig(**SHORT, prediction_type=prediction_type), images(2)
    params = known_network(net_fn, schedule, out_channels=2 if learned else 1)
    knobs = {"variance_type": variance_type, "decoder": decoder, "clip": clip}
    found = likelihood.bound_terms(params, KEY, x_0, first_index=5, **knobs)
    noise = np.stack([drawn(x_0, t, first_index=5) for t in range(6)])
    agrees(found, ho_bound(schedule, noise=noise, x_0=x_0, net_fn=net_fn, **knobs))
    np.testing.assert_array_equal(ddpm_jax.bits_per_dim(params, KEY, x_0, first_index=5, **knobs), found.total)


def test_variances_that_nearly_agree():
    """(e^d - 1 - d) / 2 keeps its digits in float32 at every d: the true value is d^2 / 4 for small ones."""
    d = np.concatenate([-np.geomspace(1e-5, 5, 40), np.geomspace(1e-5, 5, 40)])
    expected = (np.expm1(d) - d) / 2  # float64: 1e-16 / d, 1e-6 of d^2 / 2 at 1e-5
    np.testing.assert_allclose(program._spread(jnp.asarray(d, jnp.float32)), expected, rtol=1e-5)


def test_a_real_network():
    params, x_0 = small_params(schedule=ScheduleConfig(**SHORT)), images(2)
    noise = np.stack([drawn(x_0, t) for t in range(6)])
    net_fn = lambda x, t: ddpm_jax.apply(params, x, t)
    expected = ho_bound(params.config.schedule, "fixed_small", "tanh", 1.0, x_0, noise, net_fn)
    agrees(likelihood.bound_terms(params, KEY, x_0), expected, rtol=1e-3)  # the network's own rounding


@pytest.mark.slow
def test_a_real_network_with_classes():
    schedule = ScheduleConfig(**SHORT)
    params, x_0, labels = small_params(schedule=schedule, num_class_embeds=3), images(3), np.array([2, 0, 1])
    noise = np.stack([drawn(x_0, t) for t in range(6)])
    net_fn = lambda x, t: ddpm_jax.apply(params, x, t, labels)
    expected = ho_bound(schedule, "fixed_small", "tanh", 1.0, x_0, noise, net_fn)
    agrees(likelihood.bound_terms(params, KEY, x_0, labels), expected, rtol=1e-3)  # the network's own rounding


def test_a_bound_belongs_to_its_image():
    """It depends on (key, number) alone, and nothing is compiled for other keys, weights and numbers."""
    params, x_0 = small_params(schedule=ScheduleConfig(**SHORT)), images(3)
    first = likelihood.bound_terms(params, KEY, x_0[:2])
    later = likelihood.bound_terms(params, KEY, x_0[1:], first_index=1)
    np.testing.assert_allclose(first.terms[1], later.terms[0], rtol=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hoist, "run", lambda *_: pytest.fail("traced again"))
        other = likelihood.bound_terms(
            params.replace(weights=jax.tree.map(lambda leaf: leaf + 1, params.weights)),
            *(jax.random.key(9), x_0[:2]),
            clip=0.9,
            first_index=7,
        )
        faster = params.replace(
            config=params.config.__class__(params.config.unet, ScheduleConfig(**SHORT | {"beta_end": 0.3}))
        )
        likelihood.bound_terms(faster, KEY, x_0[:2])
    assert not np.allclose(other.terms, first.terms)


@pytest.mark.slow
def test_inside_jit(known_network):
    params, x_0 = known_network(wavy, ScheduleConfig(**SHORT)), images(2)
    inside = jax.jit(lambda params, key, x: ddpm_jax.bits_per_dim(params, key, x))(params, KEY, jnp.asarray(x_0))
    np.testing.assert_allclose(inside, ddpm_jax.bits_per_dim(params, KEY, x_0), rtol=1e-5)


@pytest.mark.parametrize(
    "mixture, prediction_type",
    [
        (Mixture(), "v_prediction"),
        (NARROW, "epsilon"),
        (Mixture(), "sample"),
    ],
    ids=["mixture", "gaussian", "mixture by x_0"],
)
@pytest.mark.slow
def test_of_an_exact_network(known_network, mixture, prediction_type):
    """Every term is that of quadrature, and the bound lies above the entropy by no more than its discretisation."""
    model = ExactMixture(even_log_snr(100, prediction_type=prediction_type), mixture)
    params, x_0 = known_network(model, model.schedule, sample_size=64), model.draw((8, 64, 64, 1))
    found = likelihood.bound_terms(params, KEY, x_0, clip=None, decoder="exact")
    terms = np.asarray(found.terms, np.float64).mean(0)
    # 32,768 values: the mean of their square errors is known to sqrt(2 / 32,768) = 0.8 % a term for a Gaussian, and to
    # more for the mixture; the noise of every term is its own, the images are not
    np.testing.assert_allclose(terms[1:], model.terms(), rtol=0.05)
    assert terms[1:].sum() == pytest.approx(model.terms().sum(), rel=0.01)
    assert terms[0] == pytest.approx(model.decoder(), rel=0.02)
    # In the limit of small steps the rate is the information that x_t holds of x_0 at t = 0. A step h of the log-SNR
    # costs (e^h - 1) / 2 nats instead of h / 2, h^2 / 4 too many, while x_0_hat is off by all the noise: down to
    # log-SNR 3.8, where noise equals the narrowest component (0.15). Later steps lose less, and are fewer.
    h = 18 / 99
    excess = terms[1:].sum() - model.information()
    loss = h**2 / 4 / np.log(2) * (9 - 3.8) / h
    assert 0.5 * loss < excess < 1.5 * loss
    assert found.total.mean() > model.entropy()


class TestEstimate:
    def test_is_unbiased_and_knows_its_error(self, known_network):
        """Against quadrature, and against itself with other draws; the decoder is certain in this schedule."""
        model = ExactMixture(even_log_snr(100, start=15.0), Mixture())
        params, x_0 = known_network(model, model.schedule), model.draw((400, 8, 8, 1))
        one, two = (
            likelihood.estimate_bits_per_dim(params, jax.random.key(seed), x_0, num_draws=8, clip=None)
            for seed in (5, 6)
        )
        assert one.num_evals == 9
        error = one.total.std() / 20
        assert error < 0.01 * model.terms().sum()
        assert abs(one.total.mean() - model.terms().sum()) < 3 * error
        # 400 differences of two estimates of one bound: their size is known to 1 / sqrt(800) = 4 %, 3 sigma of which
        # are 11 %, and that of the errors, of 4 strata each, to as much
        said = np.sqrt((one.standard_error**2 + two.standard_error**2).mean())
        assert (one.total - two.total).std() == pytest.approx(said, rel=0.2)

    @pytest.mark.slow
    def test_a_good_proposal_helps(self, known_network):
        schedule = ScheduleConfig(num_train_timesteps=100, beta_start=0.001, beta_end=0.15)
        model = ExactMixture(schedule, Mixture())
        params, x_0 = known_network(model, schedule), model.draw((64, 8, 8, 1))
        best = likelihood.draw_probabilities(likelihood.bound_terms(params, KEY, x_0, clip=None).terms)
        errors = {
            name: likelihood.estimate_bits_per_dim(params, KEY, x_0, proposal=proposal, num_draws=8, clip=None)
            for name, proposal in (("best", best), ("none", None), ("uniform", np.ones(100)))
        }
        sizes = {name: np.sqrt((found.standard_error**2).mean()) for name, found in errors.items()}
        assert sizes["best"] < 0.8 * sizes["uniform"]
        assert sizes["none"] < 0.8 * sizes["uniform"]

    @pytest.mark.slow
    def test_an_estimate_belongs_to_its_image(self, known_network):
        params, x_0 = known_network(wavy, ScheduleConfig(**SHORT)), images(4)
        whole = likelihood.estimate_bits_per_dim(params, KEY, x_0, num_draws=4)
        part = likelihood.estimate_bits_per_dim(params, KEY, x_0[2:], num_draws=4, first_index=2)
        np.testing.assert_allclose(whole.total[2:], part.total, rtol=1e-5)
        np.testing.assert_allclose(whole.standard_error[2:], part.standard_error, rtol=1e-3)

    @pytest.mark.parametrize(
        "knobs, message",
        [
            ({"num_draws": 5}, "`num_draws` must be even and at least 2, not 5"),
            ({"proposal": np.ones(5)}, "`proposal` must be 6 finite numbers"),
            ({"proposal": np.zeros(6)}, "`proposal` must be 6 finite numbers"),
        ],
    )
    def test_bad_knobs(self, knobs, message):
        params = small_params(schedule=ScheduleConfig(**SHORT))
        with pytest.raises(ValueError, match=message):
            likelihood.estimate_bits_per_dim(params, KEY, images(), **knobs)

    def test_a_traced_key_is_refused(self):
        params = small_params(schedule=ScheduleConfig(**SHORT))
        with pytest.raises(TypeError, match="call this outside of jit"):
            jax.jit(lambda key: likelihood.estimate_bits_per_dim(params, key, images()).total)(KEY)


@pytest.mark.parametrize("timesteps", [(0, 3), (6, 0), (3, -1), (), (1.5, 0.5)])
def test_bad_timesteps(timesteps):
    params = small_params(schedule=ScheduleConfig(**SHORT))
    with pytest.raises(ValueError, match="`timesteps` must be falling integers in 0 .. 5"):
        likelihood.transmit(params, KEY, images(), timesteps=timesteps)


class TestVarianceType:
    def of(self, named=None, class_name="DDPMScheduler", **changes):
        items = () if named is None else (("variance_type", named),)
        config = small_params(**changes).config
        return likelihood.bound.variance_type_of(
            config.__class__(config.unet, config.schedule, SamplerConfig(class_name, items))
        )

    def test_is_the_checkpoints(self):
        assert self.of("fixed_large") == "fixed_large"
        assert self.of() == "fixed_small"
        assert self.of(class_name="UnCLIPScheduler") == "fixed_small_log"
        assert self.of("learned_range") == "fixed_small"  # of a network that learns none
        assert self.of(out_channels=2) == "learned_range"
        assert self.of("learned", out_channels=2) == "learned"
        assert self.of("fixed_large", out_channels=2) == "learned_range"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x_0": images() * 0.99}, "of a level away from the 256 levels"),
        ({"x_0": np.clip(images() * 3, -3, 3)}, "it must lie in -1 .. 1"),
        ({"x_0": images() * np.nan}, "not finite"),
        ({"x_0": images(channels=3)}, "this network takes"),
        ({"x_0": images()[:0]}, "at least one image"),
        ({"clip": 0}, "`clip` must be a number above 0 or None, not 0"),
        ({"decoder": "erf"}, "`decoder` must be one of"),
        ({"variance_type": "fixed_larg"}, "Did you mean `fixed_large`"),
        ({"variance_type": "learned"}, "needs a network that learns a variance, with 2 output channels"),
        ({"class_labels": 1}, "no classes"),
        ({"first_index": -1}, "`first_index` must be from 0"),
    ],
)
def test_bad_input(change, message, untyped):
    params = small_params(schedule=ScheduleConfig(**SHORT))
    with pytest.raises(ValueError, match=message):
        likelihood.bound_terms(params, KEY, **({"x_0": images()} | change))


def test_schedules_without_a_bound():
    without_signal = {"rescale_betas_zero_snr": True, **SHORT}
    with pytest.raises(ValueError, match="the bound is infinite"):
        ddpm_jax.bits_per_dim(small_params(schedule=ScheduleConfig(**without_signal)), KEY, images())
    with pytest.raises(ValueError, match="variance-preserving"):
        exploding = ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0)
        ddpm_jax.bits_per_dim(small_params(schedule=exploding), KEY, images())


def test_no_signal_at_the_end_is_fine_for_v():
    schedule = ScheduleConfig(rescale_betas_zero_snr=True, prediction_type="v_prediction", **SHORT)
    assert all(np.isfinite(column).all() for column in program.rows_of(schedule, "fixed_small"))
    np.testing.assert_array_equal(program.prior_of(schedule), 0)


EIGHT_DEVICES = """
import sys
sys.path[:0] = {path!r}
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from conftest import small_params
from ddpm_jax import likelihood
from ddpm_jax.config import ScheduleConfig

params = small_params(schedule=ScheduleConfig(num_train_timesteps=6, beta_start=0.01, beta_end=0.4))
x_0, key = np.load({folder!r} + "/x_0.npy"), jax.random.key(3)
bound = likelihood.bound_terms(params, key, x_0)
quick = likelihood.estimate_bits_per_dim(params, key, x_0, num_draws=4)
flow = likelihood.flow_likelihood(params, key, x_0, rtol=1e-2, atol=1e-3)
eight = np.concatenate([x_0, x_0, x_0])[:8]
assert len(likelihood.bound_terms(params, key, eight).total.sharding.device_set) == 8
np.savez({folder!r} + "/found.npz", terms=bound.terms, quick=quick.total, flow=flow.bits_per_dim)
"""


@pytest.mark.slow
def test_on_eight_devices(tmp_path):
    """Three images, padded to eight and cut, are those of one device."""
    pytest.importorskip("diffrax")
    params, x_0 = small_params(schedule=ScheduleConfig(**SHORT)), images(3)
    np.save(tmp_path / "x_0.npy", x_0)
    text = EIGHT_DEVICES.format(path=[str(Path(__file__).parent)], folder=str(tmp_path))
    result = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    found = np.load(tmp_path / "found.npz")
    # another batch on each device sums convolutions in another order
    np.testing.assert_allclose(found["terms"], likelihood.bound_terms(params, KEY, x_0).terms, rtol=1e-3)
    quick = likelihood.estimate_bits_per_dim(params, KEY, x_0, num_draws=4)
    np.testing.assert_allclose(found["quick"], quick.total, rtol=1e-3)
    flow = likelihood.flow_likelihood(params, KEY, x_0, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(found["flow"], flow.bits_per_dim, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-16", None], ids=["digits-16", "demo"])
def test_checkpoints_against_the_paper(name):
    params = ddpm_jax.load(name)
    unet = params.config.unet
    source = open_source("digits") if name else None
    if source is not None:
        pictures, _ = centred(source, 16, 2)
    else:
        pictures = np.random.default_rng(0).integers(0, 256, (2, 1, 1, 3)) + np.zeros((2, 32, 32, 3), int)
    x_0 = (pictures / 127.5 - 1).astype(np.float32)
    assert x_0.shape[-1] == unet.in_channels
    schedule = params.config.schedule
    noise = np.stack([drawn(x_0, t) for t in range(schedule.num_train_timesteps)])
    expected = ho_bound(schedule, "fixed_small", "tanh", 1.0, x_0, noise, lambda x, t: ddpm_jax.apply(params, x, t))
    # float32 networks, and Winograd's convolutions against plain ones: 1e-5 of the output
    agrees(likelihood.bound_terms(params, KEY, x_0), expected, rtol=5e-3)
