"""Params, init, apply, predict and the mask: what they return, and what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NCSNPP, make_params, small_params

import ddpm_jax
from ddpm_jax import schedule
from ddpm_jax.checkpoint.families.diffusers_names import torch_name
from ddpm_jax.checkpoint.tensors import named_leaves
from ddpm_jax.config import Config, ScheduleConfig, UNetConfig
from ddpm_jax.models.layout import layout
from ddpm_jax.params import count as parameters

X = np.random.default_rng(0).standard_normal((2, 8, 8, 1)).astype(np.float32)

# The published networks: the config.json of google/ddpm-cifar10-32, -cat-256 and ncsnpp-*-256, and the parameters and
# tensors that diffusers' UNet2DModel has with them; the last row is a UNet2DModel() of its defaults
PLAIN_DOWN, ATTN_DOWN = "DownBlock2D", "AttnDownBlock2D"
GOOGLE = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
CIFAR = UNetConfig(
    sample_size=32,
    block_out_channels=(128, 256, 256, 256),
    down_block_types=(PLAIN_DOWN, ATTN_DOWN, PLAIN_DOWN, PLAIN_DOWN),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    **GOOGLE,
)
CAT = UNetConfig(
    sample_size=256,
    block_out_channels=(128, 128, 256, 256, 512, 512),
    down_block_types=(*[PLAIN_DOWN] * 4, ATTN_DOWN, PLAIN_DOWN),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
    **GOOGLE,
)
NCSNPP_256 = UNetConfig(
    **(
        NCSNPP
        | {
            "sample_size": 256,
            "layers_per_block": 2,
            "block_out_channels": (128, 128, *[256] * 5),
            "mid_block_scale_factor": 1.41421356237,
            "down_block_types": (*["SkipDownBlock2D"] * 4, "AttnSkipDownBlock2D", *["SkipDownBlock2D"] * 2),
            "up_block_types": (*["SkipUpBlock2D"] * 2, "AttnSkipUpBlock2D", *["SkipUpBlock2D"] * 4),
        }
    )
)


@pytest.mark.parametrize(
    "config, count, tensors",
    [
        (CIFAR, 35_746_307, 328),
        (CAT, 113_673_219, 450),
        (NCSNPP_256, 65_574_549, 645),
        (UNetConfig(), 274_056_163, None),
    ],
)
def test_published_sizes(config, count, tensors):
    leaves = jax.tree.leaves(layout(config).weights)
    assert parameters(layout(config).weights) == count
    assert sum(leaf.size for leaf in leaves) == count
    assert tensors in (None, len(leaves))


def test_leaves_are_exactly_the_weights(tiny):
    assert len(jax.tree.leaves(tiny)) == len(jax.tree.leaves(layout(tiny.config.unet).weights))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(tiny))


def test_config_is_part_of_the_type(tiny):
    other = make_params(schedule=ScheduleConfig(beta_end=0.01))
    with pytest.raises(ValueError):
        jax.tree.map(jnp.add, tiny, other)


@pytest.mark.parametrize("scheme", ["paper", "torch"])
def test_init(scheme, tiny):
    params = ddpm_jax.init(jax.random.key(0), tiny.config, scheme=scheme)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, tiny)
    leaves = {torch_name(path): np.asarray(leaf) for path, leaf in named_leaves(params.weights).items()}
    kernel, bias = leaves["down_blocks.1.resnets.0.conv2.weight"], leaves["down_blocks.1.resnets.0.conv2.bias"]
    first = leaves["down_blocks.1.resnets.0.conv1.weight"]  # [3, 3, 8, 16]
    assert np.all(leaves["conv_norm_out.weight"] == 1) and np.all(leaves["conv_norm_out.bias"] == 0)
    if scheme == "paper":  # variance 1 / fan_avg, and 1e-10 of it at the end of a branch; 1152 draws
        assert abs(first.var() / (1 / (9 * (8 + 16) / 2)) - 1) < 0.15
        assert 0 < np.abs(kernel).max() < 1e-5 and not bias.any()
    else:
        bound = 1 / np.sqrt(9 * 8)
        assert 0.95 * bound < np.abs(first).max() <= bound
        assert 0 < np.abs(bias).max() <= 1 / np.sqrt(9 * 16)
    again = ddpm_jax.init(jax.random.key(0), tiny.config, scheme=scheme)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    other = ddpm_jax.init(jax.random.key(1), tiny.config, scheme=scheme)
    assert np.any(np.asarray(other.weights["conv_in"]["kernel"]) != params.weights["conv_in"]["kernel"])


def test_the_ends_of_branches_begin_near_zero():
    """hojonathanho/diffusion: init_scale=0. becomes 1e-10 of the variance; all else has that of fan_avg."""
    config = make_params(mid_block_type="UNetMidBlock2D").config
    leaves = named_leaves(ddpm_jax.init(jax.random.key(0), config).weights)
    kernels = {"/".join(path): np.abs(leaf).max() for path, leaf in leaves.items() if path[-1] == "kernel"}
    ends = {name for name in kernels if name.split("/")[-2] in ("conv2", "to_out_0", "conv_out")}
    assert any("to_out_0" in name for name in ends) and any("conv2" in name for name in ends)
    assert all((kernels[name] < 1e-4) == (name in ends) for name in kernels)


def test_tables_and_frequencies():
    """Embeddings N(0, 1), Fourier frequencies N(0, 16^2), each drawn for itself."""
    fourier = small_params(time_embedding_type="fourier", block_out_channels=(64,)).config
    for scheme in ("paper", "torch"):
        drawn = [ddpm_jax.init(jax.random.key(seed), fourier, scheme=scheme).weights for seed in range(8)]
        frequencies = np.concatenate([weights["time_proj"]["weight"] for weights in drawn])
        assert len(frequencies) == 512 and abs(frequencies.std() / 16 - 1) < 0.15  # five standard errors
        tables = make_params(time_embedding_type="learned", num_train_timesteps=100, num_class_embeds=100).config
        weights = ddpm_jax.init(jax.random.key(0), tables, scheme=scheme).weights
        times, classes = (np.asarray(weights[name]["weight"]) for name in ("time_proj", "class_embedding"))
        assert abs(times.std() - 1) < 0.13 and abs(classes.std() - 1) < 0.07  # 800 and 3200 draws
        assert abs(np.corrcoef(times.ravel()[:800], classes.ravel()[:800])[0, 1]) < 0.18


def test_unknown_scheme(tiny, untyped):
    with pytest.raises(ValueError, match="`scheme` must be"):
        ddpm_jax.init(jax.random.key(0), tiny.config, scheme="kaiming")


def test_trainable_mask():
    plain = ddpm_jax.trainable_mask(make_params())
    assert all(jax.tree.leaves(plain))
    fourier = ddpm_jax.trainable_mask(make_params(time_embedding_type="fourier"))
    fixed = [path for path, trained in named_leaves(fourier.weights).items() if not trained]
    assert fixed == [("time_proj", "weight")]
    learned = ddpm_jax.trainable_mask(make_params(time_embedding_type="learned", num_train_timesteps=10))
    assert all(jax.tree.leaves(learned))


def test_predict_inverts_the_schedule():
    """For networks of all three prediction types: x_t is made of what was predicted."""
    alpha_bar = schedule.alphas_cumprod(ScheduleConfig())
    t = np.array([3, 800])
    for prediction_type in ("epsilon", "sample", "v_prediction"):
        params = make_params(schedule=ScheduleConfig(prediction_type=prediction_type))
        prediction = ddpm_jax.predict(params, X, t)
        rebuilt = schedule.q_sample(prediction.x_0_hat, alpha_bar[t].astype(np.float32), prediction.eps_hat)
        np.testing.assert_allclose(rebuilt, X, atol=2e-5)  # x_0_hat is up to 25 times x_t at t = 800
        out = ddpm_jax.apply(params, X, t)
        raw = {
            "epsilon": prediction.eps_hat,
            "sample": prediction.x_0_hat,
            "v_prediction": schedule.v_from_x_0_eps(
                prediction.x_0_hat, alpha_bar[t].astype(np.float32), prediction.eps_hat
            ),
        }[prediction_type]
        np.testing.assert_allclose(raw, out, atol=2e-5)


def test_predict_of_a_variance_exploding_network():
    ve = ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0)
    params = make_params(schedule=ve, time_embedding_type="fourier")
    prediction = ddpm_jax.predict(params, X, 2.0)
    np.testing.assert_allclose(prediction.x_0_hat + 2 * prediction.eps_hat, X, atol=1e-5)
    np.testing.assert_allclose(-prediction.eps_hat / 2, ddpm_jax.apply(params, X, 2.0), atol=1e-6)


def test_predict_leaves_a_learned_variance_out():
    prediction = ddpm_jax.predict(make_params(out_channels=2), X, 10)
    assert prediction.x_0_hat.shape == X.shape


def test_predict_refuses_what_is_no_prediction():
    with pytest.raises(ValueError, match="3 output channels are no prediction for the 1 of an image"):
        ddpm_jax.predict(make_params(out_channels=3), X, 10)
    other = make_params(schedule=ScheduleConfig(kind="other"))
    with pytest.raises(ValueError, match="predict is not known. `apply` returns their output"):
        ddpm_jax.predict(other, X, 10)
    assert ddpm_jax.apply(other, X, 10).shape == X.shape


@pytest.mark.parametrize("t", [2.5, 10, -1])
def test_learned_embeddings_have_rows_for_integers_only(t):
    params = make_params(time_embedding_type="learned", num_train_timesteps=10)
    with pytest.raises(ValueError, match="must be integers in 0 .. 9, the rows of the time embedding"):
        ddpm_jax.apply(params, X, t)


def test_numpy_and_jax_inputs_and_grad(tiny):
    from_numpy = ddpm_jax.apply(tiny, X, 5)
    np.testing.assert_array_equal(ddpm_jax.apply(tiny, jnp.asarray(X), jnp.int32(5)), from_numpy)
    gradient = jax.grad(lambda params: ddpm_jax.apply(params, X, 5).sum())(tiny)
    assert gradient.config == tiny.config
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_a_size_that_the_levels_cannot_halve_is_no_matter_to_the_network(tiny):
    """diffusers issue 3630: a config that says 28 shuts no network that takes 32."""
    stale = make_params(sample_size=(7, 9))
    assert jax.tree.map(jnp.shape, stale.weights) == jax.tree.map(jnp.shape, tiny.weights)
    np.testing.assert_array_equal(ddpm_jax.apply(stale, X, 5), ddpm_jax.apply(tiny, X, 5))
    np.testing.assert_array_equal(ddpm_jax.predict(stale, X, 5).x_0_hat, ddpm_jax.predict(tiny, X, 5).x_0_hat)
    key = jax.random.key(0)
    np.testing.assert_array_equal(ddpm_jax.loss(stale, key, X), ddpm_jax.loss(tiny, key, X))
    assert ddpm_jax.init(key, stale.config).weights.keys() == tiny.weights.keys()


@pytest.mark.parametrize("t", [1000, -1, 2.5])
def test_predict_refuses_timesteps_off_the_table(tiny, t):
    with pytest.raises(ValueError, match="`t` must be integers in 0 .. 999"):
        ddpm_jax.predict(tiny, X, t)


def test_apply_refuses_wrong_shapes(tiny, untyped):
    for x, t, message in (
        (X[..., [0, 0]], 5, r"takes \[batch, height, width, 1\]"),
        (X[0], 5, "`x` has shape"),
        (X[:, :7], 5, "multiples of 2"),
        (X, np.array([1, 2, 3]), "`t` has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            ddpm_jax.apply(tiny, x, t)


def test_a_plain_dict_is_refused(tiny, untyped):
    for function in (ddpm_jax.apply, ddpm_jax.predict):
        with pytest.raises(TypeError, match="must be ddpm_jax.Params, not dict"):
            function(tiny.weights, X, 5)


class TestClassLabels:
    def test_missing(self):
        with pytest.raises(ValueError, match="needs `class_labels`"):
            ddpm_jax.apply(make_params(num_class_embeds=3), X, 5)

    def test_superfluous(self, tiny):
        with pytest.raises(ValueError, match="has no classes"):
            ddpm_jax.apply(tiny, X, 5, 1)

    @pytest.mark.parametrize("labels", [3, -1, np.array([0, 3]), np.array([0.5, 1.0])])
    def test_out_of_range(self, labels):
        with pytest.raises(ValueError, match="must be integers in 0 .. 2"):
            ddpm_jax.apply(make_params(num_class_embeds=3), X, 5, labels)

    def test_shape(self):
        with pytest.raises(ValueError, match="`class_labels` has shape"):
            ddpm_jax.apply(make_params(num_class_embeds=3), X, 5, np.array([0, 1, 2]))
        with pytest.raises(ValueError, match="takes embeddings"):
            ddpm_jax.apply(make_params(class_embed_type="identity"), X, 5, np.array([0, 1]))

    def test_one_for_all(self):
        params = make_params(num_class_embeds=3)
        one, each = ddpm_jax.apply(params, X, 5, 2), ddpm_jax.apply(params, X, 5, np.array([2, 2]))
        np.testing.assert_array_equal(one, each)
        assert np.abs(one - ddpm_jax.apply(params, X, 5, 1)).max() > 1e-3


def test_dtype_is_part_of_the_config(tiny):
    assert dataclasses.replace(tiny.config.unet, dtype="bfloat16") != tiny.config.unet
    assert hash(Config(tiny.config.unet)) == hash(Config(tiny.config.unet))
