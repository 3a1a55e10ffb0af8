"""The names and axes of PyTorch state dicts, to and from those of our parameter trees.

down_blocks.0.resnets.1.conv1.weight  [O, I, h, w]  <->  down_blocks_0/resnets_1/conv1/kernel  [h, w, I, O]
time_embedding.linear_1.weight        [O, I]        <->  time_embedding/linear_1/kernel        [I, O]
conv_norm_out.weight                  [C]           <->  conv_norm_out/scale                   [C]
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ddpm_jax.config import Config
from ddpm_jax.models.layout import layout
from ddpm_jax.params import Params
from ddpm_jax.types import PyTree

_LISTS = "down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|to_out"
# diffusers before 0.12, inside attentions: google's files are that old.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# diffusers 0.0.x, at the root
_OLD_ROOTS = {
    "time_steps": "time_proj",
    "mid": "mid_block",
    "downsample_blocks": "down_blocks",
    "upsample_blocks": "up_blocks",
}
# Second names under which diffusers 0.0.x saved some tensors once more.
_TWINS = {r"^time_proj\.W$": "time_proj.weight", r"\.(op|Conv2d_0)\.(weight|bias)$": r".conv.\2"}
_FAMILIES = {
    "input_blocks.0.0.weight": "OpenAI's guided-diffusion or improved-diffusion",
    "temb.dense.0.weight": "the PyTorch port of Ho et al.'s checkpoints (pesser, ermongroup/ddim)",
    "model.diffusion_model.input_blocks.0.0.weight": "Stable Diffusion's original",
    "all_modules.0.W": "Song et al.'s score_sde",
    "model.map_layer0.weight": "NVIDIA's EDM",
    "downs.0.0.mlp.1.weight": "lucidrains' denoising-diffusion-pytorch",
}


def torch_name(path: tuple[str, ...]) -> str:
    """Return the state-dict name of a parameter.

    Example:
        >>> torch_name(("down_blocks_0", "resnets_1", "conv1", "kernel"))
        'down_blocks.0.resnets.1.conv1.weight'
    """
    *modules, leaf = path
    modules = [re.sub(rf"^({_LISTS})_(\d+)$", r"\1.\2", module) for module in modules]
    return ".".join([*modules, "bias" if leaf == "bias" else "weight"])


def _to_torch(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return value
    return value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)


def _from_torch(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return value
    return value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)


def named_leaves(tree: PyTree) -> dict[tuple[str, ...], Any]:
    """Return the leaves of a tree of nested dicts by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(entry.key for entry in path): leaf for path, leaf in leaves}


def to_state_dict(params: Params) -> dict[str, np.ndarray]:
    """Return the weights under the names and axes of diffusers' `UNet2DModel`, as contiguous numpy arrays.

    Example:
        >>> to_state_dict(ddpm_jax.load("digits-16"))["conv_in.weight"].shape
        (32, 1, 3, 3)
    """
    return {
        torch_name(path): np.ascontiguousarray(_to_torch(path, np.asarray(leaf)))
        for path, leaf in named_leaves(params.weights).items()
    }


def from_state_dict(state_dict: Mapping[str, np.ndarray], config: Config) -> Params:
    """Return Params with the weights of a PyTorch state dict of `UNet2DModel`, as float32.

    The names of old diffusers versions are brought up to date (`query`, `key`, `value`, `proj_attn` in attentions).

    Raises:
        ValueError: lists every missing, unexpected and mis-shaped tensor; or names the family of a state dict that
            is not diffusers'.

    Example:
        >>> params = ddpm_jax.load("digits-16")
        >>> from_state_dict(to_state_dict(params), params.config).config == params.config
        True
    """
    refuse_other_families(state_dict)
    state_dict = _upgraded(state_dict)
    shapes = named_leaves(layout(config.unet).weights)
    expected = {torch_name(path): path for path in shapes}
    wanted = {name: _to_torch(path, _hollow(shapes[path])).shape for name, path in expected.items()}
    raise_if_misfits({name: value.shape for name, value in state_dict.items()}, wanted)
    weights: dict = {}
    for name, path in expected.items():
        node = weights
        for module in path[:-1]:
            node = node.setdefault(module, {})
        value = _from_torch(path, np.asarray(state_dict.pop(name)))  # so that the file's copy shrinks as ours grows
        node[path[-1]] = jax.device_put(np.ascontiguousarray(value, np.float32))
    return Params(weights=weights, config=config)


def _hollow(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """An array of that shape without memory of its own."""
    return np.broadcast_to(np.float32(0), leaf.shape)


def raise_if_misfits(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the shapes of tensors by name.

    Raises:
        ValueError: lists every missing, unexpected and mis-shaped tensor at once.
    """
    lines = [f"missing     {name} {list(wanted[name])}" for name in wanted.keys() - found.keys()]
    lines += [f"unexpected  {name} {list(found[name])}" for name in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        if tuple(found[name]) != tuple(wanted[name]):
            shapes = f"{list(found[name])} in the file, {list(wanted[name])} by the config"
            lines.append(f"mis-shaped  {name}: {shapes}")
    if lines:
        listed = "\n  ".join(sorted(lines))
        raise ValueError(
            f"The weights do not fit the config: {len(lines)} tensors are wrong, of {len(wanted)} it has.\n  {listed}\n"
            "Is this the config of these weights?"
        )


def refuse_other_families(state_dict: Mapping[str, np.ndarray]) -> None:
    """Raise a ValueError for a state dict whose names are known to be of another code base."""
    for name in state_dict:
        plain = name.removeprefix("module.")
        for mark, family in _FAMILIES.items():
            if plain == mark:
                raise ValueError(
                    f"These weights have the layout of {family} (they hold `{name}`), not diffusers' UNet2DModel. "
                    "Convert them with diffusers' scripts first."
                )
        if ".transformer_blocks." in name or name.startswith("add_embedding."):
            raise ValueError(
                f"These weights are a text-conditional UNet2DConditionModel (they hold `{name}`); ddpm_jax opens "
                "unconditional and class-conditional pixel-space UNet2DModel checkpoints."
            )
        if re.match(r"^(encoder|decoder)\.(down_blocks|up_blocks|conv_in)", name):
            raise ValueError(
                f"These weights are an autoencoder (they hold `{name}`), the first stage of a latent model; ddpm_jax "
                "opens pixel-space UNet2DModel checkpoints."
            )


def _upgraded(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bring the names of old diffusers versions up to date, and drop what those saved twice.

    Raises:
        ValueError: two tensors of the same new name that differ.
    """
    result: dict[str, np.ndarray] = {}
    for name, value in state_dict.items():
        new = _new_name(name)
        if new in result and not np.array_equal(result[new], value):
            raise ValueError(f"The weights hold `{new}` twice, once as `{name}`, with different values.")
        result[new] = value
    return result


def _new_name(name: str) -> str:
    for old, new in _TWINS.items():
        name = re.sub(old, new, name)
    root, _, rest = name.partition(".")
    name = f"{_OLD_ROOTS.get(root, root)}.{rest}" if rest else name
    match = re.match(r"^(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)$", name)
    return f"{match[1]}.{_OLD_ATTENTION[match[2]]}.{match[3]}" if match else name
