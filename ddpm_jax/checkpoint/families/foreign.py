"""Other code bases' weights, which are recognised by their tensors' names and refused by name."""

import re
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from ddpm_jax.config import Config

_CODE_BASES = {
    "model.diffusion_model.input_blocks.0.0.weight": "Stable Diffusion's original",
    "input_blocks.0.0.weight": "OpenAI's guided-diffusion or improved-diffusion",
    "temb.dense.0.weight": "the PyTorch port of Ho et al.'s checkpoints (pesser, ermongroup/ddim)",
    "all_modules.0.W": "Song et al.'s score_sde",
    "model.map_layer0.weight": "NVIDIA's EDM",
    "downs.0.0.mlp.1.weight": "lucidrains' denoising-diffusion-pytorch",
}


def recognises(names: Collection[str]) -> bool:
    """Tell whether a name belongs to a code base, or a kind of model, that cannot be opened here."""
    return _refusal(names) is not None


def read(leaves: Mapping[str, Any], config: Config) -> NoReturn:
    """Refuse the weights.

    Raises:
        ValueError: always; names the code base, and says what to do.
    """
    raise ValueError(_refusal(leaves))


def _refusal(names: Collection[str]) -> str | None:
    for name in names:
        for mark, code_base in _CODE_BASES.items():
            if f".{name}".endswith(f".{mark}"):
                return (
                    f"These weights have the layout of {code_base} (they hold `{name}`), not diffusers' UNet2DModel. "
                    "Convert them with diffusers' scripts first."
                )
        if ".transformer_blocks." in name or name.startswith("add_embedding."):
            return (
                f"These weights are a text-conditional UNet2DConditionModel (they hold `{name}`); ddpm_jax opens "
                "unconditional and class-conditional pixel-space UNet2DModel checkpoints."
            )
        if re.match(r"^(.*\.)?(encoder|decoder)\.(down_blocks|up_blocks|conv_in)", name):
            return (
                f"These weights are an autoencoder (they hold `{name}`), the first stage of a latent model; ddpm_jax "
                "opens pixel-space UNet2DModel checkpoints. If there is a UNet beside it, pass only its tensors."
            )
    return None
