"""Names and axes of the tensors of diffusers' UNet2DModel, and those of our parameter trees.

down_blocks.0.resnets.1.conv1.weight  [O, I, h, w]  <->  down_blocks_0/resnets_1/conv1/kernel  [h, w, I, O]
time_embedding.linear_1.weight        [O, I]        <->  time_embedding/linear_1/kernel        [I, O]
conv_norm_out.weight                  [C]           <->  conv_norm_out/scale                   [C]
"""

import re
from collections.abc import Iterable

import numpy as np

_LISTS = "down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|to_out"
# Names inside attentions before diffusers 0.12, as in google's files.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# First words of names in diffusers 0.0.x.
_OLD_ROOTS = {
    "time_steps": "time_proj",
    "mid": "mid_block",
    "downsample_blocks": "down_blocks",
    "upsample_blocks": "up_blocks",
}
# Words that data parallelism, `torch.compile` and checkpointing insert into the names of what they wrap.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# diffusers 0.0.x saved some tensors twice, the second time under these names.
_TWINS = {r"^time_proj\.W$": "time_proj.weight", r"\.(op|Conv2d_0)\.(weight|bias)$": r".conv.\2"}


def torch_name(path: tuple[str, ...]) -> str:
    """Return the state-dict name of a parameter.

    Example:
        >>> torch_name(("down_blocks_0", "resnets_1", "conv1", "kernel"))
        'down_blocks.0.resnets.1.conv1.weight'
    """
    *modules, leaf = path
    modules = [re.sub(rf"^({_LISTS})_(\d+)$", r"\1.\2", module) for module in modules]
    return ".".join([*modules, "bias" if leaf == "bias" else "weight"])


def to_torch(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """Return a parameter with PyTorch's axes.

    Example:
        >>> to_torch(("conv_in", "kernel"), np.zeros((3, 5, 1, 8))).shape
        (8, 1, 3, 5)
    """
    if path[-1] != "kernel":
        return value
    return value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)


def from_torch(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """Return a tensor of PyTorch with the axes of our parameter; the inverse of `to_torch`."""
    if path[-1] != "kernel":
        return value
    return value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)


def roots_of(names: Iterable[str]) -> set[str]:
    """Return the first words of the names, and those that diffusers 0.0.x used."""
    return {name.partition(".")[0] for name in names} | _OLD_ROOTS.keys()


def new_name(name: str) -> str:
    """Return today's name of a tensor that an old version of diffusers, or a wrapper around a module, named.

    Example:
        >>> new_name("mid.attentions.0._orig_mod.query.weight")
        'mid_block.attentions.0.to_q.weight'
    """
    name = ".".join(word for word in name.split(".") if word not in _WRAPPERS)
    for old, new in _TWINS.items():
        name = re.sub(old, new, name)
    root, _, rest = name.partition(".")
    name = f"{_OLD_ROOTS.get(root, root)}.{rest}" if rest else name
    match = re.match(r"^(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)$", name)
    return f"{match[1]}.{_OLD_ATTENTION[match[2]]}.{match[3]}" if match else name
