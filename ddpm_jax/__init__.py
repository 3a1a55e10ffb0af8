"""Pixel-space denoising diffusion in JAX: open a checkpoint, sample from it in one compiled program.

params = ddpm_jax.load("google/ddpm-cat-256")
images = ddpm_jax.sample(params, jax.random.key(0), 4)
"""

from ddpm_jax import checkpoint, losses, plotting, samplers, schedule, sharding
from ddpm_jax.checkpoint import load, save
from ddpm_jax.config import Config, SamplerConfig, ScheduleConfig, UNetConfig
from ddpm_jax.losses import Objective, loss
from ddpm_jax.models.unet import UNet
from ddpm_jax.params import Params, Prediction, apply, init, predict, trainable_mask
from ddpm_jax.pixels import to_pil, to_uint8
from ddpm_jax.sampling import Trajectory, invert, sample, sample_chunks, sample_path

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
    "checkpoint",
    "init",
    "invert",
    "load",
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
