"""What is done before the loop changes no image: hoisted time projections, cast weights, Winograd's convolutions."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NCSNPP, PLAIN, random_state_dict

import ddpm_jax
from ddpm_jax import samplers
from ddpm_jax.checkpoint import from_state_dict
from ddpm_jax.checkpoint.tensors import named_leaves
from ddpm_jax.config import Config, UNetConfig
from ddpm_jax.models import cost, hoist, winograd
from ddpm_jax.params import run_network

KEY = jax.random.key(0)


def random_params(config):
    return from_state_dict(random_state_dict(config, seed=0), Config(config))


def plain_convolution(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("shape, features", [((1, 8, 8, 32), 64), ((3, 4, 12, 5), 7), ((2, 16, 6, 64), 32)])
def test_winograd_is_a_convolution(shape, features):
    """Against the same in float64: the error is a few times that of the plain convolution."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal(shape)
    kernel = generator.standard_normal((3, 3, shape[-1], features)) / np.sqrt(9 * shape[-1])
    with jax.enable_x64(True):
        exact = np.asarray(plain_convolution(jnp.asarray(x), jnp.asarray(kernel)))
        ours = winograd.convolve(jnp.asarray(x), winograd.transform_kernel(kernel))
        np.testing.assert_allclose(ours, exact, atol=1e-12)
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    ours = np.asarray(winograd.convolve(jnp.asarray(x), winograd.transform_kernel(kernel)))
    plain = np.asarray(plain_convolution(x, kernel))
    assert np.abs(ours - exact).max() < 8 * np.abs(plain - exact).max() + 1e-7


def transformed(weights):
    def find(layer, path):
        for name, inner in layer.items():
            if name == winograd.NAME:
                yield "/".join(path)
            elif isinstance(inner, dict):
                yield from find(inner, (*path, name))

    return list(find(weights, ()))


def test_which_convolutions_are_transformed():
    """Stride 1, kernel 3, enough channels and pixels, rows by fours."""
    config = UNetConfig(**(PLAIN | {"block_out_channels": (32, 64), "sample_size": 16}))
    params = random_params(config)
    prepare = lambda config, batch, steps=10**6: winograd.transform_weights(config, params.weights, batch, steps)
    names = transformed(prepare(config, 1))
    assert "down_blocks_0/resnets_0/conv1" in names and "up_blocks_1/resnets_0/conv2" in names
    assert not any("downsamplers" in name or "shortcut" in name or name in ("conv_in", "conv_out") for name in names)
    assert "mid_block/resnets_0/conv1" not in names  # 8 x 8 pixels of one image
    assert "mid_block/resnets_0/conv1" in transformed(prepare(config, 4))
    assert transformed(prepare(config, 1, 1)) == []  # over before it would pay
    assert transformed(prepare(dataclasses.replace(config, sample_size=18), 4)) == []
    assert "kernel" in params.weights["down_blocks_0"]["resnets_0"]["conv1"]  # the caller's are left alone


def test_a_convolution_pays_by_what_it_saves():
    """Seconds saved in all evaluations of all images against the seconds of compiling."""
    config = UNetConfig(**(PLAIN | {"block_out_channels": (32, 64), "sample_size": 16}))
    params, layer = random_params(config), "down_blocks_0/resnets_0/conv1"
    flops = 2 * 9 * 32 * 32 * 16 * 16
    even = cost.TRANSFORM_SECONDS / (flops * cost.SAVED_A_FLOP)
    for batch in (1, 7):
        for evaluations, pays in ((int(0.99 * even / batch), False), (int(1.01 * even / batch) + 1, True)):
            names = transformed(winograd.transform_weights(config, params.weights, batch, evaluations))
            assert (layer in names) == pays


NETS = {
    "plain": PLAIN | {"block_out_channels": (32, 64), "sample_size": 16},
    "scale shift, resnet samplers": PLAIN
    | {
        **{"block_out_channels": (32, 64), "sample_size": 16, "resnet_time_scale_shift": "scale_shift"},
        **{"downsample_type": "resnet", "upsample_type": "resnet", "act_fn": "gelu"},
    },
    "ncsnpp": NCSNPP | {"block_out_channels": (32, 64), "sample_size": 16},
    "classes": PLAIN | {"block_out_channels": (32, 64), "sample_size": 16, "num_class_embeds": 3},
    "learned times": PLAIN | {"sample_size": 16, "time_embedding_type": "learned", "num_train_timesteps": 1000},
    "remat": PLAIN | {"block_out_channels": (32, 64), "sample_size": 16, "remat": True},
}


@pytest.mark.parametrize("name", NETS)
def test_prepared_networks_are_the_same_networks(name):
    config = UNetConfig(**NETS[name])
    params = random_params(config)
    x = np.random.default_rng(0).standard_normal((2, 16, 16, config.in_channels)).astype(np.float32)
    t, labels = jnp.array([3.0, 700.0]), jnp.array([0, 2]) if name == "classes" else None
    weights = winograd.transform_weights(config, params.weights, 2, 10**6)
    projections = hoist.project_times(config, params.weights, t) if labels is None else None
    for i in range(2):
        row = None if projections is None else {path: array[i] for path, array in projections.items()}
        got = jax.jit(hoist.run, static_argnums=0)(config, weights, x, t[i], labels, row)
        expected = jax.jit(run_network, static_argnums=0)(config, params.weights, x, t[i], labels)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(got, expected, atol=1e-5 * scale)  # Winograd's rounding, twenty layers deep


def test_projections_are_used():
    """With other projections the network puts out something else."""
    config = UNetConfig(**NETS["plain"])
    params = random_params(config)
    projections = hoist.project_times(config, params.weights, jnp.array([3.0]))
    paths = {"/".join(path[:-1]) for path in named_leaves(params.weights)}
    assert set(projections) == {path for path in paths if path.endswith("time_emb_proj")}
    x, t = jnp.ones((1, 16, 16, config.in_channels)), jnp.float32(3)
    run = jax.jit(lambda rows: hoist.run(config, params.weights, x, t, None, rows))
    one, other = (run({path: sign * array[0] for path, array in projections.items()}) for sign in (1, -1))
    assert np.abs(one - other).max() > 1e-3


def test_low_precision_weights_are_cast_once():
    config = UNetConfig(**(NETS["plain"] | {"dtype": "bfloat16"}))
    params = random_params(config)
    weights = hoist.cast_weights(config, params.weights)
    assert weights["conv_in"]["kernel"].dtype == jnp.bfloat16
    assert weights["conv_norm_out"]["scale"].dtype == jnp.float32
    assert weights["time_embedding"]["linear_1"]["kernel"].dtype == jnp.float32
    x = np.random.default_rng(0).standard_normal((2, 16, 16, config.in_channels)).astype(np.float32)
    got = jax.jit(hoist.run, static_argnums=0)(config, weights, x, 3.0)
    np.testing.assert_array_equal(got, jax.jit(run_network, static_argnums=0)(config, params.weights, x, 3.0))


def test_expected_calls_count_as_evaluations(monkeypatch):
    """Whoever draws often says so, and gets the convolutions that pay in all calls together."""
    params = random_params(UNetConfig(**NETS["plain"]))
    told = []
    real = winograd.transform_weights
    monkeypatch.setattr(winograd, "transform_weights", lambda *args: told.append(args[2:]) or real(*args))
    draw = lambda **more: ddpm_jax.sample(params, KEY, 2, sampler=samplers.DDIM(num_steps=3), **more)
    once, often = draw(), draw(expected_calls=10**6)
    chunks = ddpm_jax.sample_chunks(params, KEY, 2, sampler=samplers.DDIM(num_steps=3), expected_calls=5)
    chunks.close()
    assert told == [(2, 3), (2, 3 * 10**6), (2, 15)]
    np.testing.assert_allclose(once, often, atol=3e-5)  # three evaluations with Winograd's rounding, 1e-5 each as above
    with pytest.raises(ValueError, match="`expected_calls` must be at least 1, not 0"):
        draw(expected_calls=0)


def test_kernels_are_transformed_once_a_model(monkeypatch):
    """And kept for as long as its weights live; those of numpy arrays, which may change, are not."""
    params = random_params(UNetConfig(**NETS["plain"]))
    calls = []
    real = winograd.transform_kernel
    monkeypatch.setattr(winograd, "transform_kernel", lambda kernel: calls.append(kernel.shape) or real(kernel))
    unet = params.config.unet
    transform = lambda weights: winograd.transform_weights(unet, weights, 2, 10**6)
    one, other = transform(params.weights), transform(params.weights)
    count = len(transformed(one))
    assert count > 3 and len(calls) == count
    jax.tree.map(np.testing.assert_array_equal, one, other)
    moved = transform(jax.tree.map(lambda leaf: leaf + 1, params.weights))
    assert len(calls) == 2 * count
    layer = lambda weights: weights["down_blocks_0"]["resnets_0"]["conv1"][winograd.NAME][0]
    assert np.abs(layer(moved) - layer(one)).max() > 0.1
    plain = jax.tree.map(np.array, params.weights)  # copies: views would keep the weights alive
    for _ in range(2):
        transform(plain)
    assert len(calls) == 4 * count
    kept = weakref.ref(layer(one))
    del one, other
    gc.collect()
    assert kept() is not None
    del params
    gc.collect()
    assert kept() is None


@pytest.mark.slow
def test_a_thousand_steps_with_trained_weights(monkeypatch):
    """Winograd's roundings do not grow: the same digits to half a grey level."""
    params, sampler = ddpm_jax.load("digits-16"), samplers.DDPM()
    fast = ddpm_jax.sample(params, KEY, 4, sampler=sampler, expected_calls=1000)
    assert len(transformed(winograd.transform_weights(params.config.unet, params.weights, 4, 10**6))) > 10
    monkeypatch.setattr(jax, "default_backend", lambda: "elsewhere")
    plain = ddpm_jax.sample(params, KEY, 4, sampler=sampler)
    monkeypatch.undo()
    np.testing.assert_allclose(fast, plain, atol=1 / 255 / 2)
