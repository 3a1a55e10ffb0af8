"""The gradients of training on a CPU are the plain ones, to rounding, and are chosen where they pay."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NCSNPP, PLAIN, random_state_dict
from flax import linen as nn

from ddpm_jax.checkpoint import from_state_dict
from ddpm_jax.checkpoint.tensors import named_leaves
from ddpm_jax.config import Config, UNetConfig
from ddpm_jax.models import cost, cpu_gradients, pixel_sums
from ddpm_jax.models.cpu_gradients import Choice
from ddpm_jax.models.layers import ResnetBlock2D
from ddpm_jax.models.layout import layout
from ddpm_jax.params import run_network

SMALL = PLAIN | {"block_out_channels": (16, 32), "layers_per_block": 1, "sample_size": 8}
NETS = {
    "attention, classes, dropout, remat": SMALL
    | {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    | {"num_class_embeds": 3, "dropout": 0.3, "remat": True},
    "scale shift": SMALL | {"resnet_time_scale_shift": "scale_shift", "act_fn": "gelu"},
    "ncsnpp": NCSNPP | {"sample_size": 8},
}


def every(config):
    """All that there is, wherever it can be done."""
    paths = (each.path for each in layout(config).convolutions if cpu_gradients.winograd.can_transform(each, 4, 16))
    return Choice(True, frozenset(paths))


@pytest.mark.parametrize("shape, groups", [((2, 8, 8, 12), 3), ((1, 4, 6, 8), 8), ((3, 5, 5, 6), 1)])
def test_group_norm_and_its_gradients(shape, groups):
    """Against linen's, in float64; in float32 within a few roundings of it."""
    generator = np.random.default_rng(0)
    x, towards = 3 + generator.standard_normal(shape), generator.standard_normal(shape)
    scale, bias = generator.standard_normal((2, shape[-1]))
    norm = nn.GroupNorm(groups, epsilon=1e-3, use_fast_variance=False)
    theirs = lambda x, scale, bias: norm.apply({"params": {"scale": scale, "bias": bias}}, x)
    ours = lambda x, scale, bias: pixel_sums.group_norm(x, scale, bias, groups, 1e-3)

    @functools.partial(jax.jit, static_argnums=0)
    def with_gradients(function, *arguments):
        value, pull = jax.vjp(function, *arguments)
        return value, *pull(jnp.asarray(towards, value.dtype))

    with jax.enable_x64(True):
        arrays = [jnp.asarray(each) for each in (x, scale, bias)]
        exact = [np.asarray(each) for each in with_gradients(theirs, *arrays)]
        got = with_gradients(ours, *arrays)
        for ours_64, expected in zip(got, exact, strict=True):
            np.testing.assert_allclose(ours_64, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    arrays = [jnp.asarray(each, jnp.float32) for each in (x, scale, bias)]
    got = with_gradients(ours, *arrays)
    for ours_32, expected in zip(got, exact, strict=True):  # sums of some hundred float32 numbers, about a mean of 3
        np.testing.assert_allclose(ours_32, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_convolution_and_its_gradients():
    """Against XLA's, in float64."""
    generator = np.random.default_rng(0)
    x, kernel = generator.standard_normal((2, 8, 6, 5)), generator.standard_normal((3, 3, 5, 7))
    towards = generator.standard_normal((2, 8, 6, 7))
    plain = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    with jax.enable_x64(True):
        x, kernel, towards = map(jnp.asarray, (x, kernel, towards))
        expected, pull = jax.vjp(plain, x, kernel)
        got, pull_ours = jax.vjp(cpu_gradients.convolve, x, kernel)
        for ours, theirs in zip((got, *pull_ours(towards)), (expected, *pull(towards)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_gradients_of_networks(name):
    """Every leaf of the gradient, with everything switched on, against the plain path."""
    config = UNetConfig(**NETS[name])
    weights = from_state_dict(random_state_dict(config, seed=0), Config(config)).weights
    generator = np.random.default_rng(1)
    x, towards = jnp.asarray(generator.standard_normal((2, 4, 8, 8, config.in_channels)), jnp.float32)
    t, labels = jnp.array([3, 700, 9, 50]), jnp.array([0, 2, 1, 1]) if config.has_classes else None
    dropout_key = jax.random.key(1) if config.dropout else None

    def loss(weights):
        out = run_network(config, weights, x, t, labels, dropout_key)
        return ((out[..., : config.in_channels] - towards) ** 2).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(weights)
    with cpu_gradients.using(every(config)):
        lowered = jax.jit(jax.value_and_grad(lambda weights: loss(weights))).lower(weights)
    assert lowered.as_text().count("dot_general") > 4 * len(named_leaves(weights)) // 10  # it acts
    got_value, got = lowered.compile()(weights)
    np.testing.assert_allclose(got_value, value, rtol=1e-6)
    expected, got = named_leaves(gradient), named_leaves(got)
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    for path, leaf in expected.items():
        # of the leaf's own size; a gradient that is zero but for rounding (a bias before a norm) of the largest one's
        bound = 1e-5 * np.abs(leaf).max() + 1e-7 * largest
        np.testing.assert_allclose(got[path], leaf, rtol=0, atol=bound, err_msg=path)


def test_they_are_chosen_where_they_pay():
    config = UNetConfig(**(PLAIN | {"block_out_channels": (32, 128), "sample_size": 16}))
    convolutions = layout(config).convolutions
    assert cpu_gradients.choose(config, 16, 1) == Choice()
    much = cpu_gradients.choose(config, 16, 10**6)
    assert much.products
    widths = {each.path: min(each.in_shape[-1], each.features) for each in convolutions}
    assert much.transformed and all(widths[path] >= cpu_gradients.LEAST_CHANNELS for path in much.transformed)
    numbers = sum(each.in_shape[0] * each.in_shape[1] * each.features for each in convolutions)
    even = len(convolutions) * cost.PRODUCTS_SECONDS / (numbers * cost.PRODUCTS_SAVED)
    assert not cpu_gradients.choose(config, 1, int(0.99 * even)).products
    assert cpu_gradients.choose(config, 1, int(1.01 * even) + 1).products
    low = dataclasses.replace(config, dtype="bfloat16")
    assert cpu_gradients.choose(low, 16, 10**6) == Choice()


def test_forward_mode_and_second_derivatives_of_users_are_plain():
    """Outside of a training step nothing is switched on: custom gradients have no forward mode."""
    block = ResnetBlock2D(UNetConfig(**SMALL), 16, 8, 8)
    x, emb = jax.random.normal(jax.random.key(1), (2, 4, 4, 16)), jnp.ones((2, 64))
    weights = block.init(jax.random.key(0), x, emb, True)
    energy = lambda x: (block.apply(weights, x, emb, True) ** 2).sum()
    slope, curvature = jax.jit(lambda x: jax.jvp(jax.grad(energy), (x,), (jnp.ones_like(x),)))(x)
    assert slope.shape == curvature.shape == x.shape and np.isfinite(curvature).all()
    with cpu_gradients.using(Choice(products=True)), pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(energy, (x,), (jnp.ones_like(x),))  # so that the lines above can fail
