"""Live against the installed diffusers: random weights through every option, published architectures, whole runs.

Needs torch and diffusers (the `parity` extra). Torch and JAX take turns here, which is slow and, for numbers, harmless.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import NCSNPP, PLAIN, SHARED, random_state_dict
from test_params import CAT, CIFAR, NCSNPP_256
from torch_random import TorchGenerator

import ddpm_jax
from ddpm_jax.checkpoint import from_state_dict, to_state_dict
from ddpm_jax.config import Config, ScheduleConfig, UNetConfig

pytestmark = pytest.mark.slow

# The default of diffusers' train_unconditional.py at 64 pixels.
TRAIN_UNCONDITIONAL = UNetConfig(
    sample_size=64,
    block_out_channels=(128, 128, 256, 256, 512, 512),
    down_block_types=(*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
)

# Between them these switch every option and block type, in combinations that the golden forwards do not have.
OPTIONS = {
    "everything plain": {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "act_fn": "gelu"},
    "resnet samplers, scale shift": {
        **{"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"},
        **{"down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")},
        **{"up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")},
        **{"block_out_channels": (32, 64, 64), "attn_norm_num_groups": 16, "num_class_embeds": 7},
    },
    "consistency-like": {
        **{"layers_per_block": 3, "attention_head_dim": 16, "resnet_time_scale_shift": "scale_shift"},
        **{"down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D")},
        **{"up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D")},
        **{"downsample_type": "resnet", "upsample_type": "resnet", "num_class_embeds": 10},
    },
    "one type for each": {"downsample_type": "resnet", "upsample_type": "conv", "act_fn": "mish"},
    "nulls fall back to conv": {"downsample_type": None, "upsample_type": None},
    "learned times, timestep classes": {
        **{"time_embedding_type": "learned", "num_train_timesteps": 1000, "class_embed_type": "timestep"},
    },
    "identity classes": {"class_embed_type": "identity", "time_embedding_dim": 48, "act_fn": "relu"},
    "odd widths and heads": {
        **{"block_out_channels": (24, 40), "norm_num_groups": 4, "attention_head_dim": 7},
        **{"sample_size": (12, 20), "in_channels": 2, "out_channels": 4},
    },
    "four levels, three layers": {
        **{"block_out_channels": (16, 32, 32, 48), "layers_per_block": 3, "attention_head_dim": None},
        **{"down_block_types": ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D")},
        **{"up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D", "AttnUpBlock2D")},
        "mid_block_scale_factor": 1.5,
    },
    "one level": {
        **{"block_out_channels": (32,), "down_block_types": ("AttnDownBlock2D",)},
        **{"up_block_types": ("AttnUpBlock2D",), "sample_size": 7},
    },
    "no mid, centred": {"mid_block_type": None, "center_input_sample": True, "norm_eps": 1e-3},
    "no mid attention": {"add_attention": False, "time_embedding_type": "fourier"},
}
SKIP_OPTIONS = {
    "ncsnpp": {},
    "ncsnpp, gelu, classes": {"act_fn": "gelu", "num_class_embeds": 3, "attention_head_dim": 16},
    "ncsnpp, scale shift": {"resnet_time_scale_shift": "scale_shift", "time_embedding_type": "positional"},
    "ncsnpp, three levels, odd widths": {
        **{"block_out_channels": (36, 64, 96), "layers_per_block": 2},
        **{"down_block_types": ("SkipDownBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D")},
        **{"up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D", "SkipUpBlock2D")},
    },
    "mixed": {
        **{"norm_num_groups": 8, "block_out_channels": (32, 64, 64), "sample_size": (16, 24)},
        **{"down_block_types": ("AttnSkipDownBlock2D", "DownBlock2D", "AttnDownBlock2D")},
        **{"up_block_types": ("AttnUpBlock2D", "UpBlock2D", "AttnSkipUpBlock2D"), "block_out_channels": (32, 64, 64)},
    },
    "mixed, skip in the middle": {
        **{"norm_num_groups": 8, "block_out_channels": (32, 64, 64), "time_embedding_type": "positional"},
        **{"down_block_types": ("SkipDownBlock2D", "SkipDownBlock2D", "ResnetDownsampleBlock2D")},
        **{"up_block_types": ("ResnetUpsampleBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D")},
    },
}
CONFIGS = (
    {name: UNetConfig(**(PLAIN | changes)) for name, changes in OPTIONS.items()}
    | {name: UNetConfig(**(NCSNPP | changes)) for name, changes in SKIP_OPTIONS.items()}
    | {"ddpm-cifar10-32": CIFAR, "train_unconditional": TRAIN_UNCONDITIONAL}
    | {"ddpm-cat-256": CAT, "ncsnpp-256": NCSNPP_256}
)


def torch_net(config, state_dict):
    import torch
    from diffusers import UNet2DModel

    net = UNet2DModel(**config.to_dict()).eval()
    net.load_state_dict({name: torch.from_numpy(value) for name, value in state_dict.items()}, strict=True)
    return net


def inputs(config):
    generator = np.random.default_rng(1)
    batch = 1 if config.sample_size == 256 else 2
    x = generator.standard_normal((batch, config.in_channels, *config.image_size)).astype(np.float32)
    fourier = config.time_embedding_type == "fourier"
    t = np.array([0.7, 9.3], np.float32)[:batch] if fourier else np.array([3, 721])[:batch]
    labels = None
    if config.class_embed_type == "identity":
        labels = generator.standard_normal((batch, config.time_embed_dim)).astype(np.float32)
    elif config.class_embed_type or config.num_class_embeds:
        labels = np.array([2, 0])[:batch]
    return x, t, labels


@pytest.mark.parametrize("name", CONFIGS)
def test_forward(name):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    config = CONFIGS[name]
    state_dict = random_state_dict(config, seed=3)
    x, t, labels = inputs(config)
    net = torch_net(config, state_dict)
    with torch.inference_mode():
        given = None if labels is None else torch.from_numpy(labels)
        expected = net(torch.from_numpy(x), torch.from_numpy(t), given).sample.numpy()
    params = from_state_dict(state_dict, Config(config))
    got = np.asarray(ddpm_jax.apply(params, x.transpose(0, 2, 3, 1), t, labels)).transpose(0, 3, 1, 2)
    error = np.abs(got - expected).max() / np.abs(expected).max()
    # sums of up to 9 x 1024 float32 products, some sixty layers deep in the large nets
    assert error <= (1e-4 if config.sample_size == 256 else 2e-5), error
    fast = ddpm_jax.Params(params.weights, Config(dataclasses.replace(config, dtype="bfloat16")))
    rough = np.asarray(ddpm_jax.apply(fast, x.transpose(0, 2, 3, 1), t, labels)).transpose(0, 3, 1, 2)
    error = np.abs(rough - expected).max() / np.abs(expected).max()
    assert error <= 3e-2, error  # 8 bits of mantissa


def test_gradients_equal_torchs():
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    config = CONFIGS["resnet samplers, scale shift"]
    state_dict = random_state_dict(config, seed=3)
    x, t, labels = inputs(config)
    net = torch_net(config, state_dict)
    net(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(labels)).sample.square().mean().backward()
    params = from_state_dict(state_dict, Config(config))
    loss = lambda params: (ddpm_jax.apply(params, x.transpose(0, 2, 3, 1), t, labels) ** 2).mean()
    gradients = to_state_dict(jax.jit(jax.grad(loss))(params))
    largest = max(float(parameter.grad.abs().max()) for parameter in net.parameters())
    for name, parameter in net.named_parameters():
        difference = np.abs(gradients[name] - parameter.grad.numpy()).max()
        assert difference <= 1e-4 * max(float(parameter.grad.abs().max()), 1e-3 * largest), name


def test_diffusers_opens_what_we_export(tmp_path):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    params = ddpm_jax.load("digits-16")
    ddpm_jax.save(params, tmp_path / "x", format="diffusers")
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "x")
    assert pipeline.scheduler.config.variance_type == "fixed_small"
    for name, tensor in pipeline.unet.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), to_state_dict(params)[name])
    images = pipeline(batch_size=1, num_inference_steps=3, output_type="np").images
    assert images.shape == (1, 16, 16, 1)
    pipeline.save_pretrained(tmp_path / "again")
    again = ddpm_jax.load(tmp_path / "again")
    assert again.config == params.config
    jax.tree.map(np.testing.assert_array_equal, again.weights, params.weights)
    pipeline.unet.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    pickled = ddpm_jax.load(tmp_path / "pickled")
    jax.tree.map(np.testing.assert_array_equal, pickled.weights, params.weights)
    pipeline.unet.save_pretrained(tmp_path / "sharded", max_shard_size="1MB", variant="fp16")
    sharded = ddpm_jax.load(tmp_path / "sharded", variant="fp16")
    jax.tree.map(np.testing.assert_array_equal, sharded.weights, params.weights)


def test_deprecated_names_are_upgraded_as_diffusers_does(tmp_path):
    """A file with the attention names of 2022, through diffusers and through us."""
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    params = ddpm_jax.load("digits-16")
    ddpm_jax.save(params, tmp_path / "x", format="diffusers")
    import safetensors.numpy

    old = {}
    for name, value in to_state_dict(params).items():
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{before}.")
        old[name] = value
    path = tmp_path / "x/unet/diffusion_pytorch_model.safetensors"
    safetensors.numpy.save_file(old, path, {"format": "pt"})
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "x/unet").state_dict()
    ours = to_state_dict(ddpm_jax.load(tmp_path / "x"))
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor.numpy())


def test_schedules_equal_diffusers():
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    for changes in (
        {"beta_schedule": "linear", "num_train_timesteps": 333},
        {"beta_schedule": "scaled_linear", "beta_start": 1e-3, "beta_end": 0.05, "num_train_timesteps": 1234},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "laplace"},
    ):
        table = diffusers.DDPMScheduler(**changes).alphas_cumprod.numpy().astype(np.float64)
        np.testing.assert_array_equal(ddpm_jax.schedule.alphas_cumprod(ScheduleConfig(**changes)), table)


def test_torch_random_is_torchs():
    torch = pytest.importorskip("torch")
    for shape in ((4, 3, 8, 8), (1, 3, 5, 7)):
        ours = TorchGenerator(7).randn(*shape)
        theirs = torch.randn(*shape, generator=torch.Generator().manual_seed(7)).numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-6)  # log, sin and cos of two libraries


# diffusers' scripts/generate_logits.py: x = randn of seed 0, t = 10, out[0, 0, 0, :30]
LOGITS = json.loads((Path(__file__).parent / "oracles/logits.json").read_text())


@pytest.mark.parametrize("name", LOGITS)
def test_logits_of_published_checkpoints(name):
    """Runs where the weights are at hand: in ../shared/checkpoints/NAME, or in the hub's cache."""
    folder = SHARED / "checkpoints" / name.partition("/")[2]
    try:
        params = ddpm_jax.load(folder) if folder.is_dir() else ddpm_jax.load(name, local_files_only=True)
    except FileNotFoundError as error:
        pytest.skip(f"the weights of {name} are not at hand: {error}")
    unet = params.config.unet
    x = TorchGenerator(0).randn(1, unet.in_channels, *unet.image_size)
    out = np.asarray(ddpm_jax.apply(params, x.transpose(0, 2, 3, 1), 10))
    np.testing.assert_allclose(out[0, 0, :30, 0], LOGITS[name], atol=1e-3)  # diffusers' own tolerance
