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

    Names of old diffusers versions are replaced by those of today (`query`, `key`, `value`, `proj_attn` in attentions).
    Words that wrappers insert (`_orig_mod.`, `module.`), a common prefix, and dicts around the network are removed.

    Args:
        state_dict: torch tensors, numpy or JAX arrays, or lists, by their names. They are copied.
        config: the config of the network whose weights they are.

    Raises:
        TypeError: `state_dict` is no dict.
        ValueError: tensors are missing, unexpected or mis-shaped (the message lists all of them), are no tensors, or
            hold NaN or infinity; the weights belong to another code base; the network is there twice.

    Example:
        >>> params = ddpm_jax.load("digits-16")
        >>> from_state_dict(ddpm_jax.checkpoint.to_state_dict(params), params.config).config == params.config
        True
    """
    leaves = flattened(state_dict)
    family = next(family for family in FAMILIES if family.recognises(leaves))
    return family.read(leaves, config)
