"""The names and axes of PyTorch state dicts, to and from those of our parameter trees.

down_blocks.0.resnets.1.conv1.weight  [O, I, h, w]  <->  down_blocks_0/resnets_1/conv1/kernel  [h, w, I, O]
time_embedding.linear_1.weight        [O, I]        <->  time_embedding/linear_1/kernel        [I, O]
conv_norm_out.weight                  [C]           <->  conv_norm_out/scale                   [C]
"""

import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from ddpm_jax.checkpoint.unwrap import as_array, flattened, network_in
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
# What data parallelism, `torch.compile` and checkpointing put before the names within what they wrap.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Second names under which diffusers 0.0.x saved some tensors once more.
_TWINS = {r"^time_proj\.W$": "time_proj.weight", r"\.(op|Conv2d_0)\.(weight|bias)$": r".conv.\2"}
_MAX_LISTED = 8  # of a kind, in a message
_FAMILIES = {
    "model.diffusion_model.input_blocks.0.0.weight": "Stable Diffusion's original",
    "input_blocks.0.0.weight": "OpenAI's guided-diffusion or improved-diffusion",
    "temb.dense.0.weight": "the PyTorch port of Ho et al.'s checkpoints (pesser, ermongroup/ddim)",
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
        >>> from_state_dict(to_state_dict(params), params.config).config == params.config
        True
    """
    shapes = named_leaves(layout(config.unet).weights)
    expected = {torch_name(path): path for path in shapes}
    state_dict = _network_tensors(state_dict, expected)
    wanted = {name: _to_torch(path, _hollow(shapes[path])).shape for name, path in expected.items()}
    raise_if_misfits({name: value.shape for name, value in state_dict.items()}, wanted)
    raise_if_not_finite(state_dict)
    weights: dict = {}
    for name, path in expected.items():
        node = weights
        for module in path[:-1]:
            node = node.setdefault(module, {})
        value = _from_torch(path, state_dict.pop(name))  # so that the file's copy shrinks as ours grows
        # a copy in any case: JAX may share the memory of what it is given
        node[path[-1]] = jax.device_put(np.array(value, np.float32, order="C"))
    return Params(weights=weights, config=config)


def _network_tensors(state_dict: Mapping[str, Any], expected: Collection[str]) -> dict[str, np.ndarray]:
    """Return the network's tensors as arrays, by the names of today."""
    leaves = flattened(state_dict)
    refuse_other_families(leaves)
    roots = {name.partition(".")[0] for name in expected} | _OLD_ROOTS.keys()
    known = lambda name: name.partition(".")[0] in roots and _new_name(name) in expected
    own, others = network_in(leaves, known)
    groups = Counter(name.partition(".")[0] for name in others if getattr(leaves[name], "shape", ()))
    if groups:
        listed = ", ".join(f"`{group}` ({count})" for group, count in groups.items())
        warnings.warn(f"The network's tensors are read; left out are those of {listed}.", stacklevel=4)
    return _upgraded({name: as_array(name, value) for name, value in own.items()})


def _hollow(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """An array of that shape without memory of its own."""
    return np.broadcast_to(np.float32(0), leaf.shape)


def raise_if_misfits(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the shapes of tensors by name.

    Raises:
        ValueError: lists missing, unexpected and mis-shaped tensors at once, and counts those it does not list.
    """
    lines = {
        "missing": [f"{name} {list(wanted[name])}" for name in sorted(wanted.keys() - found.keys())],
        "mis-shaped": [
            f"{name}: {list(found[name])} in the file, {list(wanted[name])} by the config"
            for name in sorted(wanted.keys() & found.keys())
            if tuple(found[name]) != tuple(wanted[name])
        ],
        "unexpected": [f"{name} {list(found[name])}" for name in sorted(found.keys() - wanted.keys())],
    }
    count = sum(map(len, lines.values()))
    if count:
        listed = [f"{kind:10}  {line}" for kind, names in lines.items() for line in _some(names)]
        none = "None of the names is this network's. " if not wanted.keys() & found.keys() else ""
        raise ValueError(
            f"The weights do not fit the config: {count} tensors are wrong, of {len(wanted)} it has.\n  "
            + "\n  ".join(listed)
            + f"\n{none}Is this the config of these weights?"
        )


def _some(lines: list[str]) -> list[str]:
    """The first lines of a list, and how many more there are."""
    return lines if len(lines) <= _MAX_LISTED else [*lines[:_MAX_LISTED], f"and {len(lines) - _MAX_LISTED} more"]


def raise_if_not_finite(weights: PyTree) -> None:
    """Refuse weights, a state dict or a tree, that hold anything but numbers: whatever such a network draws is black.

    Raises:
        ValueError: a tensor holds NaN or infinity, or more than float32 can.
    """
    leaves, bad = named_leaves(weights), []
    for path, value in leaves.items():
        value = np.asarray(value)
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.isfinite(np.sum(value, dtype=np.float32)):  # which is quick, and wrong for huge numbers alone
                count = np.count_nonzero(~np.isfinite(value.astype(np.float32)))
                bad += [f"{'/'.join(path)} ({count} of {value.size})"] if count else []
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(leaves)} tensors hold NaN or infinity: {', '.join(_some(bad))}. Such a network draws "
            "nothing but black images. Its training had diverged, or its dtype was too narrow: take an earlier "
            "checkpoint, or one in float32."
        )


def refuse_other_families(state_dict: Mapping[str, Any]) -> None:
    """Raise a ValueError for a state dict whose names are known to be of another code base."""
    for name in state_dict:
        for mark, family in _FAMILIES.items():
            if f".{name}".endswith(f".{mark}"):
                raise ValueError(
                    f"These weights have the layout of {family} (they hold `{name}`), not diffusers' UNet2DModel. "
                    "Convert them with diffusers' scripts first."
                )
        if ".transformer_blocks." in name or name.startswith("add_embedding."):
            raise ValueError(
                f"These weights are a text-conditional UNet2DConditionModel (they hold `{name}`); ddpm_jax opens "
                "unconditional and class-conditional pixel-space UNet2DModel checkpoints."
            )
        if re.match(r"^(.*\.)?(encoder|decoder)\.(down_blocks|up_blocks|conv_in)", name):
            raise ValueError(
                f"These weights are an autoencoder (they hold `{name}`), the first stage of a latent model; ddpm_jax "
                "opens pixel-space UNet2DModel checkpoints. Of a UNet beside it, pass the tensors alone."
            )


def _upgraded(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bring the names of old diffusers versions up to date, free them of wrappers, and drop what was saved twice.

    Raises:
        ValueError: two tensors of the same new name that differ.
    """
    result: dict[str, np.ndarray] = {}
    for name, value in state_dict.items():
        new = _new_name(name)
        if new in result and not np.array_equal(result[new], value, equal_nan=True):
            raise ValueError(f"The weights hold `{new}` twice, once as `{name}`, with different values.")
        result[new] = value
    return result


def _new_name(name: str) -> str:
    name = ".".join(word for word in name.split(".") if word not in _WRAPPERS)
    for old, new in _TWINS.items():
        name = re.sub(old, new, name)
    root, _, rest = name.partition(".")
    name = f"{_OLD_ROOTS.get(root, root)}.{rest}" if rest else name
    match = re.match(r"^(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)$", name)
    return f"{match[1]}.{_OLD_ATTENTION[match[2]]}.{match[3]}" if match else name
