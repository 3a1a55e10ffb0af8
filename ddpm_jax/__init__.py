"""Pixel-space denoising diffusion in JAX: open a checkpoint, sample from it in one compiled program.

params = ddpm_jax.load("google/ddpm-cat-256")
images = ddpm_jax.sample(params, jax.random.key(0), 4)
"""

import importlib
from typing import TYPE_CHECKING, Any

from ddpm_jax import checkpoint, likelihood, losses, plotting, samplers, schedule, sharding
from ddpm_jax.checkpoint import load, save
from ddpm_jax.config import Config, SamplerConfig, ScheduleConfig, UNetConfig
from ddpm_jax.likelihood import bits_per_dim, log_likelihood
from ddpm_jax.losses import Objective, loss
from ddpm_jax.models.unet import UNet
from ddpm_jax.params import Params, Prediction, apply, init, predict, trainable_mask
from ddpm_jax.pixels import to_pil, to_uint8
from ddpm_jax.sampling import Trajectory, invert, sample, sample_chunks, sample_path

if TYPE_CHECKING:
    from ddpm_jax import compression as compression
    from ddpm_jax import evaluation as evaluation
    from ddpm_jax import training as training

__version__ = "0.2.0"  # the only place: pyproject.toml reads it here
_ON_FIRST_USE = ("compression", "evaluation", "training")  # sub-packages that import more than sampling needs

__all__ = [
    "Config",
    "Objective",
    "Params",
    "Trajectory",
    "Prediction",
    "SamplerConfig",
    "ScheduleConfig",
    "UNet",
    "UNetConfig",
    "apply",
    "bits_per_dim",
    "checkpoint",
    "init",
    "invert",
    "likelihood",
    "load",
    "log_likelihood",
    "loss",
    "losses",
    "plotting",
    "predict",
    "sample",
    "sample_chunks",
    "sample_path",
    "samplers",
    "save",
    "schedule",
    "sharding",
    "to_pil",
    "to_uint8",
    "trainable_mask",
]


def __getattr__(name: str) -> Any:
    """Import a heavy sub-package when it is first used (PEP 562)."""
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the sub-packages too that are imported on first use."""
    return sorted({*globals(), *_ON_FIRST_USE})
