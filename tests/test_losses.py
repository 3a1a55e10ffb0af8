"""The losses against closed forms and each other; and that draws depend on (key, image number) alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_params
from scipy import stats

import ddpm_jax
from ddpm_jax import losses, reverse, schedule
from ddpm_jax.config import ScheduleConfig
from ddpm_jax.losses import Objective, bound_term, draw_timesteps

KEY = jax.random.key(0)
TABLE = schedule.alphas_cumprod(ScheduleConfig())


def images(count=4, channels=1, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 8, 8, channels)).astype(np.float32)


def silent(params):
    """Return the network with an output of zeros."""
    weights = {**params.weights, "conv_out": jax.tree.map(jnp.zeros_like, params.weights["conv_out"])}
    return params.replace(weights=weights)


def drawn_eps(x_0):
    """Return the noise that the loss of each image draws, by the rule in its docstring."""
    keys = [jax.random.fold_in(jax.random.fold_in(KEY, i), 1) for i in range(len(x_0))]
    return np.stack([jax.random.normal(key, x_0.shape[1:]) for key in keys])


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_simple_is_the_square_error_of_what_is_predicted(prediction_type):
    """With an output of zeros, the loss is the mean square of the target."""
    params = silent(small_params(schedule=ScheduleConfig(prediction_type=prediction_type)))
    x_0 = images()
    eps = drawn_eps(x_0)
    value, t = losses.per_image(params, KEY, x_0)
    signal, sigma = (np.sqrt(table[t])[:, None, None, None] for table in (TABLE, 1 - TABLE))
    target = {"epsilon": eps, "sample": x_0, "v_prediction": signal * eps - sigma * x_0}[prediction_type]
    np.testing.assert_allclose(value, (target**2).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(ddpm_jax.loss(params, KEY, x_0), value.mean(), rtol=1e-6)


def test_the_network_sees_x_t():
    """The loss is the square error of the network at q_sample(x_0, drawn noise)."""
    params, x_0 = small_params(), images()
    value, t = losses.per_image(params, KEY, x_0)
    eps = drawn_eps(x_0)
    x_t = schedule.q_sample(x_0, TABLE[t].astype(np.float32), eps)
    expected = ((ddpm_jax.apply(params, x_t, t) - eps) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "knobs",
    [
        {"weighting": "snr"},
        {"weighting": "min_snr"},
        {"weighting": "min_snr", "min_snr_gamma": 0.5},
        {"weighting": "p2"},
        {"weighting": "p2", "p2_gamma": 0.5, "p2_k": 3.0},
    ],
    ids=lambda knobs: " ".join(map(str, knobs.values())),
)
def test_weights_are_those_of_the_error_of_eps(knobs):
    """Expressed in the error of eps, the weight is the same for every prediction type."""
    x_0, t = images(), np.array([0, 100, 500, 900])
    alpha_bar = TABLE[t]
    snr = alpha_bar / (1 - alpha_bar)
    expected = {
        "snr": np.ones(4),
        "min_snr": np.minimum(snr, knobs.get("min_snr_gamma", 5)) / snr,
        "p2": 1 / (knobs.get("p2_k", 1) + snr) ** knobs.get("p2_gamma", 1),
    }[knobs["weighting"]]
    of_eps = {"epsilon": 1, "sample": snr, "v_prediction": snr / (snr + 1)}
    for prediction_type, factor in of_eps.items():
        params = silent(small_params(schedule=ScheduleConfig(prediction_type=prediction_type)))
        plain, _ = losses.per_image(params, KEY, x_0, t=t)
        weighted, _ = losses.per_image(params, KEY, x_0, t=t, objective=Objective(**knobs))
        np.testing.assert_allclose(weighted / plain, factor * expected, rtol=1e-4)  # float32's 1 - alpha_bar at t = 0


def test_a_loss_belongs_to_its_image():
    """The loss of an image is the same in another batch."""
    params, x_0 = small_params(), images(4)
    whole, t = losses.per_image(params, KEY, x_0)
    part, t_part = losses.per_image(params, KEY, x_0[2:], indices=np.array([2, 3]))
    np.testing.assert_array_equal(t[2:], t_part)
    np.testing.assert_allclose(whole[2:], part, rtol=1e-5)  # the rounding of another batch size


def test_timesteps_are_uniform():
    t = np.asarray(draw_timesteps(KEY, jnp.arange(20_000), 1000, antithetic=False))
    assert t.min() == 0 and t.max() == 999
    counts = np.bincount(t // 100, minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-3  # 20,000 draws of a fixed key
    mirrored = np.asarray(draw_timesteps(KEY, jnp.arange(20_000), 1000, antithetic=True))
    np.testing.assert_array_equal(mirrored[::2], t[::2])
    np.testing.assert_array_equal(mirrored[1::2], 999 - mirrored[::2])


class TestBound:
    """T L_t in bits/dim."""

    def term(self, variance_type, t, prediction=0.3, fraction=None):
        schedule_config = ScheduleConfig(prediction_type="sample")
        x_0, x_t = images(1), images(1, seed=1)
        out = jnp.full_like(x_0, prediction)
        value = bound_term(schedule_config, variance_type, x_0, x_t, jnp.array([t]), out, fraction)
        return float(value[0]), x_0, x_t, np.asarray(out)

    @pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
    @pytest.mark.parametrize("t", [1, 300, 999])
    def test_is_the_divergence_of_two_gaussians(self, variance_type, t):
        """Compared with scipy's quadrature of q log(q / p) for the true and the predicted posterior."""
        value, x_0, x_t, out = self.term(variance_type, t)
        beta = 1 - TABLE[t] / TABLE[t - 1]
        variance = (1 - TABLE[t - 1]) / (1 - TABLE[t]) * beta
        difference = np.sqrt(TABLE[t - 1]) * beta / (1 - TABLE[t]) * (x_0 - out)
        p_variance = beta if variance_type == "fixed_large" else variance
        q = stats.norm(0, np.sqrt(variance))
        p = [stats.norm(shift, np.sqrt(p_variance)) for shift in difference.ravel()[:8]]
        expected = [q.expect(lambda x, p=p: q.logpdf(x) - p.logpdf(x)) for p in p]
        closed = np.log(p_variance / variance) / 2 + (variance + difference**2) / (2 * p_variance) - 0.5
        np.testing.assert_allclose(closed.ravel()[:8], expected, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(value, 1000 * closed.mean() / np.log(2), rtol=2e-3)  # float32 differences of tables

    def test_the_last_step_is_a_density_over_256_levels(self):
        """The probabilities of the 256 levels sum to one, and the largest is at the predicted mean."""
        levels = (np.arange(256, dtype=np.float32) / 127.5 - 1).reshape(256, 1, 1, 1)
        image = np.zeros((256, 1, 1, 1), np.float32)
        t = jnp.zeros(256, int)
        config = ScheduleConfig(prediction_type="sample")
        value = bound_term(config, "fixed_small", jnp.asarray(levels), image, t, image + 0.31)
        probabilities = 2.0 ** (-np.asarray(value) / 1000)
        assert abs(probabilities.sum() - 1) < 1e-4  # the floor of 1e-12 under each
        assert abs(levels[probabilities.argmax()].item() - 0.31) < 1 / 255

    def test_learned_range_lies_between(self):
        """-1 gives the posterior's variance, 1 gives beta."""
        for t in (1, 500):
            small, x_0, *_ = self.term("fixed_small", t)
            large, *_ = self.term("fixed_large", t)
            low, *_ = self.term("learned_range", t, fraction=jnp.full_like(x_0, -1.0))
            high, *_ = self.term("learned_range", t, fraction=jnp.full_like(x_0, 1.0))
            np.testing.assert_allclose([low, high], [small, large], rtol=1e-5)


def test_hybrid_trains_the_variance_by_the_bound_and_the_mean_by_simple():
    params = small_params(out_channels=2)
    x_0 = images()
    gradient = {}
    for changes in ({"loss_type": "hybrid", "vlb_weight": 0.25}, {"loss_type": "vlb"}):
        objective = Objective(variance_type="learned_range", **changes)
        loss_type = objective.loss_type
        gradient[loss_type] = jax.grad(ddpm_jax.loss)(params, KEY, x_0, objective=objective).weights["conv_out"]
    halved = {
        "conv_out": {name: array[..., :1] for name, array in params.weights["conv_out"].items()},
    }
    simple = jax.grad(ddpm_jax.loss)(small_params().replace(weights={**params.weights, **halved}), KEY, x_0).weights[
        "conv_out"
    ]
    for name in ("kernel", "bias"):
        mean, variance = (gradient["hybrid"][name][..., i] for i in range(2))
        np.testing.assert_allclose(mean, simple[name][..., 0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(variance, 0.25 * gradient["vlb"][name][..., 1], rtol=1e-4, atol=1e-6)
        assert np.abs(variance).max() > 0


def test_label_dropout_gives_the_last_class():
    params = small_params(num_class_embeds=3)
    x_0, labels = np.repeat(images(1), 64, axis=0), np.zeros(64, int)
    dropped, _ = losses.per_image(params, KEY, x_0, labels, objective=Objective(label_dropout=0.25))
    kept, _ = losses.per_image(params, KEY, x_0, labels)
    null, _ = losses.per_image(params, KEY, x_0, np.full(64, 2))
    is_null = np.asarray(jnp.isclose(dropped, null, rtol=1e-5))
    np.testing.assert_allclose(dropped, np.where(is_null, null, kept), rtol=1e-5)
    assert 6 <= is_null.sum() <= 28  # 16 expected, of deviation 3.5


def test_dropout_is_on_exactly_when_its_key_is_given():
    params, x_0 = small_params(dropout=0.5), images()
    one, other = (ddpm_jax.loss(params, KEY, x_0, dropout_key=jax.random.key(i)) for i in (1, 2))
    assert one != other and ddpm_jax.loss(params, KEY, x_0) == ddpm_jax.loss(params, KEY, x_0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"loss_type": "l1"}, "`loss_type` must be one of"),
        ({"weighting": "snr5"}, "`weighting` must be one of"),
        ({"vlb_weight": 0}, "`vlb_weight` must be a number above 0"),
        ({"label_dropout": 1}, "`label_dropout` must be a number from 0 to below 1"),
    ],
)
def test_bad_objectives(changes, message, untyped):
    with pytest.raises(ValueError, match=message):
        Objective(**changes)


@pytest.mark.parametrize(
    "params, objective, message",
    [
        ({}, {"variance_type": "learned_range"}, "does not go with 1 output channels"),
        ({"out_channels": 2}, {}, "does not go with 2 output channels"),
        ({"out_channels": 2}, {"variance_type": "learned_range"}, "never trains a learned variance"),
        ({}, {"label_dropout": 0.1}, "`label_dropout` needs a table of classes"),
        ({}, {"timestep_sampling": "importance"}, "needs the losses so far"),
    ],
)
def test_objectives_that_do_not_fit(params, objective, message):
    with pytest.raises(ValueError, match=message):
        ddpm_jax.loss(small_params(**params), KEY, images(), objective=Objective(**objective))


def test_images_that_do_not_fit(untyped):
    with pytest.raises(ValueError, match="`x_0` has shape"):
        ddpm_jax.loss(small_params(), KEY, images(channels=3))
    ve = ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0)
    with pytest.raises(ValueError, match="variance-preserving"):
        ddpm_jax.loss(small_params(schedule=ve), KEY, images())


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_the_loss_of_an_image_is_its_own_with_keys_of_any_generator(impl, untyped):
    """vmap over such keys would draw from the first alone (JAX issue 19085)."""
    params, key, x_0 = small_params(), jax.random.key(3, impl=impl), images()
    whole, t = losses.per_image(params, key, x_0)
    part, t_part = losses.per_image(params, key, x_0[2:], indices=np.array([2, 3]))
    np.testing.assert_array_equal(t[2:], t_part)
    np.testing.assert_allclose(whole[2:], part, rtol=1e-5)
    np.testing.assert_allclose(ddpm_jax.loss(params, key, x_0), whole.mean(), rtol=1e-6)
    with pytest.raises(TypeError, match="`key` must be one key"):
        losses.per_image(params, jax.random.split(key, 2), x_0)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_a_learned_variance_wants_the_networks_channels(variance_type):
    with pytest.raises(ValueError, match=f"`extra` is None, but a '{variance_type}' variance is the second half"):
        reverse.log_variance(variance_type, -4.0, -2.0)
