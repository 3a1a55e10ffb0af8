"""Export a sampler as a StableHLO artefact that runs without this package, on CPU, GPU and TPU.

The artefact is lowered plainly (no Winograd, no compiler options). Its batch size is symbolic, and the weights are
arguments.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.extras import need
from ddpm_jax.files import check_new_folder, new_folder, versions, write_json
from ddpm_jax.params import Params
from ddpm_jax.samplers import Sampler
from ddpm_jax.sampling import as_function
from ddpm_jax.types import Array

PLATFORMS = ("cpu", "cuda", "tpu")
ARTEFACT_FILE = "sampler.json"
SCRIPT = '''"""Draw images with the artefact beside this file. Needs jax and flatbuffers, and nothing else."""

import jax, jax.export, numpy as np, pathlib

here = pathlib.Path(__file__).parent
sampler = jax.export.deserialize(bytearray((here / "sampler.bin").read_bytes()))
weights, key = dict(np.load(here / "weights.npz")), jax.random.key_data(jax.random.key(0, impl="threefry2x32"))
images = jax.jit(sampler.call)(weights, key, np.arange(4, dtype=np.int32){labels})  # images 0 to 3, in [0, 1]
np.save("images.npy", images)
'''


def check_artefact(folder: Path, *, overwrite: bool) -> None:
    """Refuse what `write_artefact` would refuse, before any work is done."""
    need("flatbuffers", "compile", "Compiling ahead")  # jax.export serialises with it
    check_new_folder(folder, overwrite=overwrite, marks=(ARTEFACT_FILE,))


def write_artefact(
    params: Params,
    sampler: Sampler | str | None,
    folder: Path,
    *,
    platforms: Sequence[str] = PLATFORMS,
    overwrite: bool = False,
) -> None:
    """Write a folder with a sampler that `jax.export` can run: sampler.bin, weights.npz, run.py, sampler.json.

    The function in sampler.bin takes the arrays of weights.npz by their names, `jax.random.key_data(key)` of a threefry
    key, the numbers of the images (int32 [b]) and, for class-conditional networks, class labels (int32 [b]). It returns
    float32 images [b, h, w, c] in [0, 1]; they equal those of `sample` to float rounding.

    Args:
        params: weights and their config.
        sampler: as in `sample`.
        folder: the folder to write.
        platforms: one or more of "cpu", "cuda" and "tpu"; one artefact runs on all of them.
        overwrite: replace an existing artefact.

    Raises:
        ValueError: a platform is unknown.
        ModuleNotFoundError: flatbuffers is not installed (the `compile` extra).
        FileExistsError: the folder exists.
    """
    check_artefact(folder, overwrite=overwrite)
    unknown = sorted(set(platforms) - set(PLATFORMS))
    if unknown or not platforms:
        raise ValueError(f"`platforms` must be some of {', '.join(PLATFORMS)}, not {', '.join(unknown) or 'none'}.")
    from jax import export

    names = {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params.weights)[0]}
    structure = jax.tree.structure(params.weights)
    order = list(names)
    draw = as_function(params.config, sampler)

    def program(weights: dict[str, jax.Array], key_data: jax.Array, indices: jax.Array, labels=None) -> Array:
        tree = jax.tree.unflatten(structure, [weights[name] for name in order])
        return draw(tree, key_data, indices, labels)

    (batch,) = export.symbolic_shape("b")
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in names.items()}
    one_an_image = jax.ShapeDtypeStruct((batch,), jnp.int32)
    arguments = [shapes, jax.ShapeDtypeStruct((2,), jnp.uint32), one_an_image]
    classes = params.config.unet.has_classes
    if classes:
        arguments.append(one_an_image)
    exported = export.export(jax.jit(program), platforms=list(platforms))(*arguments)

    with new_folder(folder, overwrite=overwrite, marks=(ARTEFACT_FILE,)) as partial:
        (partial / "sampler.bin").write_bytes(exported.serialize())
        arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in names.items()}
        np.savez(partial / "weights.npz", **arrays)
        (partial / "run.py").write_text(SCRIPT.format(labels=", np.zeros(4, np.int32)" if classes else ""))
        record = {"platforms": list(platforms), "sampler": repr(sampler), "classes": classes}
        write_json(partial / ARTEFACT_FILE, record | {"versions": versions("ddpm-jax", "jax")})


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(entry.key for entry in path)
