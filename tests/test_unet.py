"""The network against diffusers': golden forwards with formula weights, and what the options must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NCSNPP, PLAIN, formula_state_dict, make_params, random_state_dict, small_params

import ddpm_jax
from ddpm_jax.checkpoint import from_state_dict
from ddpm_jax.config import Config, UNetConfig
from ddpm_jax.config.unet import ACTIVATIONS
from ddpm_jax.models import layers
from ddpm_jax.models.layout import layout
from ddpm_jax.models.unet import UNet

_SKIP3 = {
    "layers_per_block": 2,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
}
_WIDE = {"block_out_channels": (160, 192), "norm_num_groups": 32, "time_embedding_type": "positional"}
_GOOGLE = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
_THREE = {
    "layers_per_block": 2,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
_RESNET_ATTN = {
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
}
_RESNET = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
_MIXED = {
    "down_block_types": ("SkipDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "SkipUpBlock2D"),
}
_SCALE_SHIFT = {"resnet_time_scale_shift": "scale_shift"}

# (base, changes), tensors, parameters, sum |y|, mean y, y[1, 0, 5, 6:9] in NCHW: diffusers 0.42.1, float32.
GOLDEN = [
    (PLAIN, {}, 144, 702499, 879.9449, 0.0117517, (-0.528521, -0.255956, 0.302862)),
    (PLAIN, _GOOGLE, 144, 702499, 988.2260, -0.0017343, (-0.023130, 0.493969, 1.005451)),
    (PLAIN, {"downsample_padding": 0}, 144, 702499, 906.8445, 0.0369543, (-0.312479, 0.277347, 0.885979)),
    (PLAIN, {"flip_sin_to_cos": False}, 144, 702499, 917.4271, -0.0431887, (0.100765, -0.172104, -0.025071)),
    (PLAIN, {"freq_shift": 1}, 144, 702499, 936.0532, -0.0154716, (-0.216735, 0.099350, 0.540774)),
    (PLAIN, {"attention_head_dim": None}, 144, 702499, 923.8760, 0.0246518, (-0.376894, -0.157180, 0.413975)),
    (PLAIN, {"attention_head_dim": 7}, 144, 701463, 1053.9546, 0.0203981, (-0.371354, -0.351521, -0.474826)),
    (PLAIN, _SCALE_SHIFT, 142, 756035, 942.6922, 0.0279827, (0.084718, 0.244047, -0.158323)),
    (
        *(PLAIN, _SCALE_SHIFT | {"attn_norm_num_groups": 16}),
        *(144, 756163, 935.0511, -0.0352774, (-0.939671, -0.507494, 0.635172)),
    ),
    (PLAIN, _RESNET_ATTN, 190, 774307, 1204.2576, -0.0608989, (-1.055246, -0.159042, 0.356249)),
    (PLAIN, _RESNET, 152, 716003, 1315.0435, 0.0055733, (-1.207581, -1.323117, -0.478153)),
    (PLAIN, {"add_attention": False}, 134, 685731, 969.8370, -0.0472189, (-0.897344, -1.058431, -0.981527)),
    (PLAIN, {"mid_block_type": None}, 114, 520995, 1060.5940, -0.1566850, (-1.548023, -1.398351, -0.820166)),
    (PLAIN, {"mid_block_scale_factor": 2}, 144, 702499, 1030.7245, -0.0034623, (-0.039815, 0.068078, 0.120485)),
    (PLAIN, {"act_fn": "gelu"}, 144, 702499, 858.4924, 0.0194112, (-0.587385, -0.344136, 0.230829)),
    (PLAIN, {"act_fn": "mish"}, 144, 702499, 861.6630, 0.0252126, (-0.348469, -0.150702, 0.295668)),
    (PLAIN, {"act_fn": "relu"}, 144, 702499, 836.8672, 0.0088531, (-0.343648, -0.376604, -0.043262)),
    (PLAIN, {"time_embedding_type": "fourier"}, 145, 706627, 1057.0144, -0.0797102, (-0.036118, -0.016909, 0.041717)),
    (
        *(PLAIN, {"time_embedding_type": "learned", "num_train_timesteps": 1000}),
        *(145, 734499, 959.1260, -0.0589076, (0.266211, 0.416967, 0.551965)),
    ),
    (PLAIN, {"time_embedding_dim": 48}, 144, 652419, 921.7538, -0.0739954, (-0.203643, -0.340369, 0.056779)),
    (PLAIN, {"center_input_sample": True}, 144, 702499, 1024.1536, -0.0948926, (-1.020458, -1.085558, -0.423262)),
    (PLAIN, {"num_class_embeds": 5}, 145, 703139, 904.4517, -0.0254968, (-0.716100, -0.523688, 0.106753)),
    (PLAIN, {"class_embed_type": "timestep"}, 148, 723235, 874.7314, 0.0169769, (-0.394842, -0.225896, 0.196061)),
    (PLAIN, _THREE, 268, 1624323, 935.6937, 0.0636208, (1.309589, 1.297147, 1.234734)),
    (PLAIN, {"in_channels": 1, "out_channels": 1}, 144, 701345, 237.2534, 0.1554557, (0.959550, 0.310300, -0.231075)),
    (PLAIN, {"sample_size": (16, 24)}, 144, 702499, 1838.0093, -0.0227525, (-1.670732, -0.896509, 0.748652)),
    (PLAIN, {"out_channels": 6}, 144, 703366, 2026.7365, -0.0385046, (-0.528521, -0.255956, 0.302862)),
    (NCSNPP, {}, 161, 756006, 1855.4125, -0.5860826, (-0.313392, -0.200375, -0.113550)),
    (
        *(NCSNPP, {"time_embedding_type": "positional", "center_input_sample": False}),
        *(160, 751878, 1425.3955, 0.0576583, (-1.807717, -1.881972, -1.416438)),
    ),
    (NCSNPP, _SKIP3, 301, 1762377, 1728.3181, -0.1435253, (-0.254959, -0.219500, -0.145638)),
    (NCSNPP, _WIDE, 160, 9362822, 1033.6018, -0.1632514, (-1.332126, -0.868902, -0.505094)),
    (PLAIN, _MIXED, 126, 666883, 1057.0132, 0.0690693, (-0.982285, -0.223918, 0.384644)),
]


def test_every_activation_of_the_config_is_there():
    assert layers.ACTIVATIONS.keys() == set(ACTIVATIONS)


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=[pytest.mark.slow] * (row % 3 > 0)) for row in range(len(GOLDEN))]
)
def test_golden_forward(row):
    base, changes, tensors, count, total, mean, values = GOLDEN[row]
    config = UNetConfig(**(base | changes))
    state_dict = formula_state_dict(config)
    assert len(state_dict) == tensors
    assert sum(value.size for value in state_dict.values()) == count
    params = from_state_dict(state_dict, Config(config))
    shape = (2, config.in_channels, *config.image_size)
    x = np.sin(0.7 * np.arange(np.prod(shape))).astype(np.float32).reshape(shape).transpose(0, 2, 3, 1)
    fourier = config.time_embedding_type == "fourier"
    t = np.array([0.5, 7.25], np.float32) if fourier else np.array([3, 500])
    classes = config.num_class_embeds or config.class_embed_type
    out = ddpm_jax.apply(params, x, t, np.array([1, 4]) if classes else None)
    y = np.asarray(out).transpose(0, 3, 1, 2)
    # float32 sums of a thousand terms in another order: 1e-5 relative is ten times what was seen
    np.testing.assert_allclose(np.abs(y).sum(dtype=np.float64), total, rtol=1e-5)
    np.testing.assert_allclose(y.mean(dtype=np.float64), mean, atol=1e-5)
    np.testing.assert_allclose(y[1, 0, 5, 6:9], values, rtol=1e-4, atol=2e-5)


def test_k_blocks_are_refused():  # the only blocks of UNet2DModel that are not built
    changes = {"down_block_types": ("KDownBlock2D",) * 2, "up_block_types": ("KUpBlock2D",) * 2}
    with pytest.raises(ValueError, match="K-blocks"):
        UNetConfig(**(PLAIN | changes))


@pytest.mark.parametrize(
    "freq_shift, flip, expected",
    [
        (1, False, [0.9646, 0.9804, 0.9892, 0.9615, 0.9787, 0.9882, 0.9582, 0.9769, 0.9872]),
        (0, True, [0.3019, 0.2280, 0.1716, 0.3146, 0.2377, 0.1790, 0.3272, 0.2474, 0.1864]),
    ],
)
def test_sinusoidal_embedding_equals_diffusers_tests(freq_shift, flip, expected):
    embedding = layers.sinusoidal_embedding(jnp.arange(128), 64, flip, freq_shift)
    np.testing.assert_allclose(np.asarray(embedding)[23:26, 47:50].ravel(), expected, atol=1e-4)  # 4 digits given


def test_odd_embedding_is_padded_with_zero():
    embedding = layers.sinusoidal_embedding(jnp.arange(3), 7, False, 0)
    assert embedding.shape == (3, 7)
    assert not np.any(np.asarray(embedding)[:, -1])


def test_identity_class_embedding_adds_to_the_time_embedding():
    params = make_params(class_embed_type="identity")
    x = np.ones((2, 8, 8, 1), np.float32)
    zero = np.zeros((2, 32), np.float32)
    plain = ddpm_jax.Params(params.weights, make_params().config)
    np.testing.assert_allclose(ddpm_jax.apply(params, x, 5, zero), ddpm_jax.apply(plain, x, 5), atol=1e-6)
    assert np.abs(ddpm_jax.apply(params, x, 5, zero + 1) - ddpm_jax.apply(params, x, 5, zero)).max() > 1e-3


def test_fractional_timesteps_are_not_cut(tiny):
    x = np.ones((1, 8, 8, 1), np.float32)
    whole, half, next_ = (np.asarray(ddpm_jax.apply(tiny, x, t)) for t in (3, 3.5, 4))
    assert np.abs(whole - half).max() > 1e-4 < np.abs(half - next_).max()
    np.testing.assert_array_equal(ddpm_jax.apply(tiny, x, np.array([3.5])), half)


def test_bfloat16_is_near_float32():
    config = UNetConfig(**(PLAIN | {"dtype": "bfloat16"}))
    state_dict = random_state_dict(config)
    x = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    fast = ddpm_jax.apply(from_state_dict(state_dict, Config(config)), x, 100)
    exact = ddpm_jax.apply(from_state_dict(state_dict, Config(UNetConfig(**PLAIN))), x, 100)
    assert fast.dtype == jnp.float32
    difference = np.abs(fast - exact).max() / np.abs(exact).max()
    assert 1e-4 < difference < 3e-2  # 8 bits of mantissa through some twenty layers; and bf16 did act


def test_remat_changes_memory_only():
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 1)).astype(np.float32)
    loss = lambda params, key: jnp.sum(ddpm_jax.apply(params, x, 7, dropout_key=key) ** 2)
    key = jax.random.key(0)
    gradients, programs = [], []
    for remat in (False, True):
        params = small_params(dropout=0.1, remat=remat)
        traced = jax.jit(jax.grad(loss)).trace(params, key)
        programs.append(str(traced.jaxpr))
        gradients.append(jax.tree.leaves(traced.lower().compile()(params, key)))
    assert "remat" in programs[1] and "remat" not in programs[0]
    for plain, saved in zip(*gradients, strict=True):
        # the same sums in another order; some gradients are near cancellation
        np.testing.assert_allclose(plain, saved, rtol=1e-3, atol=1e-3 * float(np.abs(plain).max()) + 1e-5)


def test_dropout_is_on_exactly_when_a_key_is_given():
    params = make_params(dropout=0.5)
    x = np.ones((1, 8, 8, 1), np.float32)
    first, second = (ddpm_jax.apply(params, x, 7, dropout_key=jax.random.key(i)) for i in range(2))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(ddpm_jax.apply(params, x, 7), ddpm_jax.apply(make_params(), x, 7))


def test_fir_resampling_keeps_a_constant_image_inside():
    image = jnp.ones((1, 8, 8, 2))
    np.testing.assert_allclose(layers.fir_downsample(image)[:, 1:-1, 1:-1], 1, atol=1e-6)  # rounding of 16 taps
    np.testing.assert_allclose(layers.fir_upsample(image)[:, 2:-2, 2:-2], 1, atol=1e-6)


@pytest.mark.parametrize("options", [PLAIN, NCSNPP, PLAIN | _SCALE_SHIFT | {"num_class_embeds": 3}])
def test_layout_has_the_shapes_of_the_network(options):
    """The trace that leaves arithmetic out against linen's own."""
    config = UNetConfig(**options)
    x = jnp.zeros((1, *config.image_size, config.in_channels))
    labels = jnp.zeros(1, jnp.int32) if config.has_classes else None
    whole = jax.eval_shape(UNet(config).init, jax.random.key(0), x, jnp.zeros(1, jnp.int32), labels)["params"]
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert shapes(layout(config).weights) == shapes(whole)
