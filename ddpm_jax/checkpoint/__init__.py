"""Checkpoints: `load` and `save`, state dicts, and PyTorch pickles without torch."""

from ddpm_jax.checkpoint.families import from_state_dict
from ddpm_jax.checkpoint.families.diffusers import to_state_dict
from ddpm_jax.checkpoint.source import load, save
from ddpm_jax.checkpoint.torch_pickle import read_torch_pickle

__all__ = ["from_state_dict", "load", "read_torch_pickle", "save", "to_state_dict"]
