"""Trees of arrays on disk, written and read by orbax. No other module imports it.

orbax is imported on first use: `import ddpm_jax` must stay quick.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_jax.checkpoint.tensors import named_leaves
from ddpm_jax.files import plain_path
from ddpm_jax.types import PyTree

if TYPE_CHECKING:
    import orbax.checkpoint as ocp


def write_tree(path: Path, tree: PyTree) -> None:
    """Write a tree into a new folder."""
    import orbax.checkpoint as ocp

    with plain_path(path.parent) as parent, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(parent / path.name, tree)


def shapes_in(path: Path) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return the shapes of the arrays in a folder, by their paths in the tree."""
    import orbax.checkpoint as ocp

    with plain_path(path) as place, ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(place).item_metadata.tree
        return {name: leaf.shape for name, leaf in named_leaves(found).items()}


def read_tree(path: Path, like: PyTree) -> PyTree:
    """Read a whole tree, as arrays of the kind and dtype of those in `like`."""
    import orbax.checkpoint as ocp

    with plain_path(path) as place, ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(place, like)


def read_branch(path: Path, name: str, like: PyTree) -> PyTree:
    """Read one branch of a tree, as numpy arrays wherever they were written, without reading the rest."""
    import orbax.checkpoint as ocp

    with plain_path(path) as place, ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        as_numpy = ocp.checkpoint_utils.construct_restore_args({name: like})
        restore = ocp.args.PyTreeRestore({name: like}, restore_args=as_numpy, partial_restore=True)
        return checkpointer.restore(place, args=restore)[name]


def open_series(folder: Path, *, keep_last: int | None, keep_every: int) -> "ocp.CheckpointManager":
    """Open a folder of trees by step, which are written in the background.

    Args:
        folder: an existing folder with a name that orbax does not take for a pattern (`files.plain_path`).
        keep_last: number of newest trees that are kept; None keeps all.
        keep_every: trees of steps divisible by it are kept for good; 0 keeps none for good.
    """
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=keep_last, keep_period=keep_every or None)
    return ocp.CheckpointManager(folder, options=options)


def save_step(series: "ocp.CheckpointManager", step: int, tree: Any) -> None:
    """Begin to write a tree; the one before is waited for first."""
    import orbax.checkpoint as ocp

    series.save(step, args=ocp.args.StandardSave(tree), force=True)


def restore_step(series: "ocp.CheckpointManager", step: int, like: Any) -> Any:
    """Read the tree of a step, placed as `like` says."""
    import orbax.checkpoint as ocp

    return series.restore(step, args=ocp.args.StandardRestore(like))
