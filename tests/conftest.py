"""What all tests share: strict JAX, the slow ones on demand, small networks with weights drawn in numpy."""

import atexit
import functools
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):  # of this run; its workers and the processes of tests share it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ddpm-jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.checkpoint import from_state_dict
from ddpm_jax.checkpoint.families.diffusers_names import torch_name
from ddpm_jax.checkpoint.tensors import named_leaves
from ddpm_jax.config import Config, ScheduleConfig, UNetConfig
from ddpm_jax.models import hoist
from ddpm_jax.models.layout import layout

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

# XLA compiles in half of the time with its former code for loops, in one piece. Not every XLA knows these flags.
QUICK_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

# Memory maps after which compiled programs are forgotten. Each program has some, Linux allows a process 65,530, and XLA
# aborts beyond them.
MOST_MAPS = 25_000

collect_ignore = ["oracles/make_oracles.py"]  # doctest would import it, and it wants torch
ROOT = Path(__file__).parent.parent
_numbers = itertools.count(1)  # of networks that `known_network` made
SHARED = ROOT.parent / "shared"

PLAIN = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
NCSNPP = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": None,
    "time_embedding_type": "fourier",
    "center_input_sample": True,
    "mid_block_scale_factor": 2**0.5,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
}


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config):
    """Compile quickly rather than well in the fast suite, which does little else; the slow one runs what users run."""
    if config.getoption("--slow"):
        import torch_peers

        torch_peers.load_torchvision()
        return
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # for the processes that tests start
    jax.config.update("jax_disable_most_optimizations", True)
    if not hasattr(config, "workerinput"):  # xdist's workers have the environment of their parent
        flags = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_FLAGS}".strip()
        environment = os.environ | {"XLA_FLAGS": flags}
        known = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"], env=environment, capture_output=True
        )
        if known.returncode == 0:  # else XLA has ended the process
            os.environ["XLA_FLAGS"] = flags


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@functools.cache
def _doctest_params() -> ddpm_jax.Params:
    """A network that compiles quickly, for examples of what takes any checkpoint."""
    return small_params(schedule=ScheduleConfig(num_train_timesteps=6, beta_start=0.01, beta_end=0.4))


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forget the programs of earlier modules before a process has too many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def doctest_names(doctest_namespace):
    """What the examples in docstrings may use without importing it."""
    doctest_namespace.update(jax=jax, jnp=jax.numpy, np=np, ddpm_jax=ddpm_jax, ScheduleConfig=ScheduleConfig)
    doctest_namespace.update(params=_doctest_params(), key=jax.random.key(0))


def torch_shapes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a network's state dict, in PyTorch's axes."""
    shapes = {}
    for path, leaf in named_leaves(layout(config).weights).items():
        shape = leaf.shape
        if path[-1] == "kernel":
            shape = shape[::-1] if len(shape) == 2 else (shape[3], shape[2], shape[0], shape[1])
        shapes[torch_name(path)] = shape
    return shapes


def formula_state_dict(config: UNetConfig) -> dict[str, np.ndarray]:
    """Weights by a formula of their names: diffusers' UNet2DModel was given them too, to record `test_unet.GOLDEN`.

    Tensor `name` in PyTorch's shape and row-major order, i counting its elements: the cosine of phase(name, i) below,
    scaled by what the tensor is for; in float64, then cast to float32.
    """
    state_dict = {}
    for name, shape in torch_shapes(config).items():
        count = int(np.prod(shape))
        i = np.arange(count, dtype=np.float64)
        phase = 0.37 * i + ((0.0001 * i * i) % 6.283185307179586) + (zlib.crc32(name.encode()) % 1000)
        c = np.cos(phase)
        if name == "time_proj.weight":
            value = 16 * c if len(shape) == 1 else c
        elif name == "class_embedding.weight":
            value = c
        elif name.endswith("bias"):
            value = 0.1 * c
        elif len(shape) >= 2:
            value = c * 1.7 / np.sqrt(count / shape[0])
        else:
            value = 1 + 0.3 * c
        state_dict[name] = value.astype(np.float32).reshape(shape)
    return state_dict


def random_state_dict(config: UNetConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal weights of the usual size in all tensors, norms and biases included."""
    generator = np.random.default_rng(seed)
    state_dict = {}
    for name, shape in torch_shapes(config).items():
        noise = generator.standard_normal(shape)
        if name == "time_proj.weight" and len(shape) == 1:
            value = 4 * noise
        elif len(shape) >= 2:
            value = noise * np.sqrt(shape[0] / noise.size)
        else:
            value = 0.2 * noise + name.endswith("weight")
        state_dict[name] = value.astype(np.float32)
    return state_dict


@functools.cache
def make_params(seed: int = 0, schedule: ScheduleConfig | None = None, **changes) -> ddpm_jax.Params:
    """A tiny network (8 x 8 pixels, one channel, two levels) with random weights."""
    tiny = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": None,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    config = UNetConfig(**(tiny | changes))
    return from_state_dict(random_state_dict(config, seed), Config(config, schedule or ScheduleConfig()))


def small_params(**changes) -> ddpm_jax.Params:
    """An even smaller network, of one level, that compiles in no time: for what is around a network."""
    small = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return make_params(**(small | {"mid_block_type": None} | changes))


@pytest.fixture
def untyped():
    """Switch the checking of annotations off, to see the messages that users without it see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def tiny():
    return make_params()


@pytest.fixture
def known_network(monkeypatch):
    """Return a maker of Params whose network is a function (x, t) -> output, or (x, t, labels) with classes.

    Each has an epsilon of its norms of its own: programs are cached by the config of the network.
    """

    def make(net_fn, schedule, **changes):
        params = small_params(schedule=schedule, norm_eps=1e-6 * (1 + next(_numbers)), **changes)

        def run(config, weights, x, t, labels=None, projections=None):
            t = jnp.broadcast_to(jnp.asarray(t), (len(x),))[:, None, None, None]
            return net_fn(x, t) if labels is None else net_fn(x, t, labels[:, None, None, None])

        monkeypatch.setattr(hoist, "run", run)
        monkeypatch.setattr(hoist, "project_times", lambda *_: None)
        return params

    return make
