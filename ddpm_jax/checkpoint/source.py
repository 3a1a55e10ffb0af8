"""`load`: a hub id, a folder or a bundled name to Params. `save`: Params to a folder."""

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ddpm_jax.checkpoint import hub, nearby
from ddpm_jax.checkpoint.families import from_state_dict
from ddpm_jax.checkpoint.families.diffusers import read_folder, write_folder
from ddpm_jax.checkpoint.families.diffusers_files import Files, find_files
from ddpm_jax.checkpoint.folder import is_ours, is_run, read_ours, read_run, write_ours
from ddpm_jax.checkpoint.tensors import raise_if_not_finite
from ddpm_jax.files import (
    CHECKPOINT_FILE,
    PIPELINE_FILE,
    check_new_folder,
    check_storage_dtype,
    new_folder,
    read_json,
    versions,
)
from ddpm_jax.params import Params, check_params
from ddpm_jax.validation import check

BUNDLED = Path(__file__).parent.parent / "demo"  # checkpoints that come with the package
DEMO = "produce-32"  # the one that `load()` opens
_FORMATS = ("ddpm_jax", "diffusers")
# `overwrite` replaces only a folder that holds one of these files.
_REPLACEABLE = (CHECKPOINT_FILE, PIPELINE_FILE)


class Located(NamedTuple):
    """A checkpoint that was found.

    Attributes:
        folder: where it is on this machine, perhaps in the hub's cache.
        source: its origin, as far as it is known; a folder in our own format records it.
        files: its files in diffusers' format; None for a folder in our own format.
        ema: which weights of a training run to read; see `load`.
    """

    folder: Path
    source: dict[str, Any]
    files: Files | None
    ema: bool | None


def load(
    source: str | Path | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    ema: bool | None = None,
    dtype: str = "float32",
) -> Params:
    """Open a checkpoint as one pytree: its weights and its config.

    Args:
        source: one of the following. An existing folder wins over other sources of the same name.
            A folder: of diffusers in any layout, in our own format, of a training run, or models--owner--name in the
            hub's cache. "produce-32" or "digits-16", which come with the package. An id of the Hugging Face hub, as
            "google/ddpm-cat-256". None for the demo, produce-32.
        revision: branch, tag or commit on the hub.
        variant: "fp16" opens diffusion_pytorch_model.fp16.safetensors.
        subfolder: a folder inside the folder or repository.
        token: the hub's token for private repositories; True for the one you are logged in with.
        cache_dir: where the hub's files are cached; None for the default of huggingface_hub.
        local_files_only: use the hub's cache without asking the hub.
        ema: True opens `unet_ema/`, False `unet/`, None `unet/` if it exists and `unet_ema/` otherwise. A training
            run opens with its averaged weights unless it is False.
        dtype: what convolutions and dense layers compute in, "float32" or "bfloat16"; weights are float32 in memory.

    Returns:
        Params that are not committed to a device.

    Raises:
        FileNotFoundError: there is nothing of that name, or no checkpoint in it; says where it looked, and what can be
            opened nearby.
        PermissionError, ConnectionError: the hub wants a token, or cannot be reached.
        ValueError: the config or the weights are broken, belong to another kind of model, hold NaN or do not fit each
            other; an option is not for this kind of source (`revision`, `token`, `cache_dir` and `local_files_only`
            are for the hub, `variant` and `ema` for diffusers' files).

    Example:
        >>> params = load()
        >>> params.config.sampler.class_name, params.config.schedule.beta_schedule
        ('DDPMScheduler', 'squaredcos_cap_v2')
    """
    check(dtype in ("float32", "bfloat16"), f'`dtype` must be "float32" or "bfloat16", not {dtype!r}.')
    where = locate(
        source,
        revision=revision,
        variant=variant,
        subfolder=subfolder,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        ema=ema,
    )
    return read(where, dtype=dtype)


def locate(
    source: str | Path | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    ema: bool | None = None,
) -> Located:
    """Find a checkpoint, and download it if it is on the hub; arguments and errors as in `load`."""
    of_the_hub: dict[str, Any] = dict(
        revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
    )
    name = DEMO if source is None else str(source)
    path, known = Path(name).expanduser(), None
    if source is None or (not path.exists() and name in bundled()):
        path, known = BUNDLED / name, {"model": f"{name} (comes with ddpm_jax)"}
    if path.is_dir():
        for option, value in of_the_hub.items():
            given = value not in (None, False)
            check(not given, f"`{option}` is for the hub, but {path} is a folder on this machine: leave it out.")
        if nearby.is_cached_repository(path):
            path, known = nearby.snapshot(path)
        folder = path / subfolder if subfolder else path
        if not folder.is_dir():
            raise FileNotFoundError(f"{path} has no folder {subfolder}.{nearby.hint(path)}")
        if (folder / CHECKPOINT_FILE).is_file():
            known = read_json(folder / CHECKPOINT_FILE).get("source")
        return _look_into(folder, known or {"model": str(path)}, variant, ema)
    if path.exists():
        hint = nearby.hint(path) or " Weights without a config.json open with `from_state_dict`."
        raise FileNotFoundError(f"{path} is a file. Name the folder that holds config.json and the weights.{hint}")
    if not hub.looks_like_repo_id(name):
        raise FileNotFoundError(
            f"There is no folder {path}. {name!r} is neither an id of the hub (owner/name) nor one of the checkpoints "
            f"that come with the package, {bundled()}.{_repo_id_in(name)}"
        )
    snapshot = hub.download(name, subfolder=subfolder, variant=variant, ema=ema, **of_the_hub)
    origin = {"model": name, "revision": snapshot.commit}
    return _look_into(snapshot.folder, origin, variant, ema, files=snapshot.files)


def _look_into(
    folder: Path, source: dict[str, Any], variant: str | None, ema: bool | None, *, files: Files | None = None
) -> Located:
    """Find out which format a folder has; refuse options that are not for it, and a folder without a checkpoint."""
    names = nearby.names_below(folder) if files is None else []
    if is_ours(names):
        run = is_run(folder)
        what = "is a training run" if run else "is in ddpm_jax's own format"
        check(variant is None, f"`variant` is for diffusers folders; {folder} {what}.")
        check(run or ema is None, f"`ema` is for diffusers folders; {folder} {what}.")
    elif files is None:
        try:
            files = find_files(names, variant=variant, ema=ema)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{folder}: {error}{nearby.hint(folder)}") from error
    return Located(folder, source, files, ema)


def _repo_id_in(name: str) -> str:
    """Return the hub id in the address of a web page, for a message."""
    address = re.search(r"huggingface\.co/([\w.-]+/[\w.-]+)", name)
    return f" The id in this address is {address[1]}." if address else ""


def bundled() -> list[str]:
    """Return the names of the checkpoints that come with the package.

    Example:
        >>> "digits-16" in bundled()
        True
    """
    return sorted(path.parent.name for path in BUNDLED.glob("*/model_index.json"))


def read(where: Located, *, dtype: str = "float32") -> Params:
    """Read a checkpoint that `locate` found, in any format."""
    folder, files = where.folder, where.files
    if files is None:
        return read_run(folder, ema=where.ema, dtype=dtype) if is_run(folder) else read_ours(folder, dtype=dtype)
    # unet/ and a trainer's checkpoint-500/ have the scheduler's folder beside them
    beside = folder.absolute().parent / "scheduler" / "scheduler_config.json"
    scheduler = beside if files.scheduler is None and beside.is_file() else None
    return from_state_dict(*read_folder(folder, files, dtype=dtype, scheduler=scheduler))


def save(
    params: Params,
    folder: str | Path,
    *,
    format: Literal["ddpm_jax", "diffusers"] = "ddpm_jax",
    storage_dtype: str = "float32",
    overwrite: bool = False,
    source: dict[str, Any] | None = None,
    card: str | None = None,
) -> Path:
    """Write a checkpoint, whole or not at all.

    Args:
        params: the weights and their config.
        folder: the folder to write; it must not exist, unless `overwrite` is True.
        format: "ddpm_jax", which opens fastest and on any number of devices, or "diffusers": a pipeline folder for
            `DDPMPipeline.from_pretrained`.
        storage_dtype: "float32", or "float16" or "bfloat16" for half the size.
        overwrite: replace an existing checkpoint. A folder that holds something else is never replaced.
        source: where the weights came from, for `format` "ddpm_jax", which records it.
        card: text of a README.md to write into the folder.

    Returns:
        The folder.

    Raises:
        TypeError: params is no `Params`.
        ValueError: another format or dtype, a `source` for diffusers' format, weights that hold NaN or values beyond
            float16's range.
        FileExistsError, NotADirectoryError, PermissionError: the folder exists, or cannot be written.

    Example:
        >>> import tempfile
        >>> folder = save(load(), Path(tempfile.mkdtemp()) / "copy", storage_dtype="float16")
        >>> load(folder).config == load().config
        True
    """
    check_params(params)
    check(format in _FORMATS, f"`format` must be one of {list(_FORMATS)}, not {format!r}.")
    check_storage_dtype(storage_dtype)
    check(
        source is None or format == "ddpm_jax",
        f'`source` is for `format` "ddpm_jax": a folder of diffusers has no place for {source!r}. Leave it out.',
    )
    raise_if_not_finite(params.weights)
    folder = Path(folder).expanduser()
    with new_folder(folder, overwrite=overwrite, marks=_REPLACEABLE) as partial:
        if format == "diffusers":
            write_folder(params, partial, storage_dtype)
        else:
            (writer,) = versions("ddpm-jax").items()
            source = {"written_by": " ".join(writer)} | (source or {})
            write_ours(params, partial, storage_dtype, source)
        if card is not None:
            (partial / "README.md").write_text(card)
    return folder


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that `save` would refuse, before the work that leads to it."""
    check_new_folder(folder, overwrite=overwrite, marks=_REPLACEABLE)
