"""Families of checkpoints: code bases whose networks have tensor names of their own.

A family is a module with `recognises(names)`, which looks at the names of a state dict's tensors, and
`read(leaves, config)`, which returns Params. To add one, write its file and name it in FAMILIES.
"""

from collections.abc import Mapping
from typing import Any

from ddpm_jax.checkpoint.families import diffusers, foreign
from ddpm_jax.checkpoint.unwrap import flattened
from ddpm_jax.config import Config
from ddpm_jax.params import Params

# They are tried in this order; the last one takes what no other recognises.
FAMILIES = (foreign, diffusers)


def from_state_dict(state_dict: Mapping[str, Any], config: Config) -> Params:
    """Return Params with the weights of a PyTorch state dict of `UNet2DModel`, as float32.

    The names of old diffusers versions are brought up to date (`query`, `key`, `value`, `proj_attn` in attentions).
    What wrappers add to names (`_orig_mod.`, `module.`), a prefix of all and dicts around them are taken off.

    Args:
        state_dict: tensors of torch, arrays of numpy or JAX, or lists, by their names. They are copied.
        config: what they are the weights of.

    Raises:
        TypeError: no dict.
        ValueError: lists missing, unexpected and mis-shaped tensors; names what is no tensor, tensors that hold NaN or
            infinity, the family of a state dict that is not diffusers', the places of a network that is there twice.

    Example:
        >>> params = ddpm_jax.load("digits-16")
        >>> from_state_dict(ddpm_jax.checkpoint.to_state_dict(params), params.config).config == params.config
        True
    """
    leaves = flattened(state_dict)
    family = next(family for family in FAMILIES if family.recognises(leaves))
    return family.read(leaves, config)
