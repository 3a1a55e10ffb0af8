"""Checkpoints of the Hugging Face hub, through `huggingface_hub` and its cache."""

import re
from pathlib import Path
from typing import NamedTuple

from ddpm_jax.checkpoint.families.diffusers_files import Files, find_files
from ddpm_jax.checkpoint.folder import is_ours
from ddpm_jax.checkpoint.nearby import natural, opens
from ddpm_jax.files import CHECKPOINT_FILE

_REPO_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


class Snapshot(NamedTuple):
    """A commit of a repository in the cache.

    Attributes:
        folder: the root, or the `subfolder` of it.
        commit: its hash.
        files: the files of diffusers that were downloaded; None for our own format, and where the hub was not asked.
    """

    folder: Path
    commit: str
    files: Files | None = None


def looks_like_repo_id(source: str) -> bool:
    """Tell whether a string could be the id of a repository: `owner/name`.

    Example:
        >>> looks_like_repo_id("google/ddpm-cat-256"), looks_like_repo_id("./checkpoints/cat")
        (True, False)
    """
    return bool(_REPO_ID.match(source)) and ".." not in source


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    ema: bool | None = None,
) -> Snapshot:
    """Download what `load` needs of a repository into the cache: the configs and one set of weights.

    Without a connection, with `local_files_only` or with HF_HUB_OFFLINE=1, the cached snapshot is returned.

    Raises:
        FileNotFoundError: there is no such repository, revision or file; or the hub cannot be reached and the cache
            does not have it. The hub says of a private repository that there is none.
        PermissionError: the hub wants a token, or another one.
        ConnectionError: a download broke off.
    """
    import huggingface_hub
    from huggingface_hub import constants

    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    names, failure = None, None
    if not (local_files_only or constants.HF_HUB_OFFLINE):
        try:
            api, patience = huggingface_hub.HfApi(token=token), constants.HF_HUB_ETAG_TIMEOUT
            siblings = api.model_info(repo_id, revision=revision, timeout=patience).siblings
            names = [sibling.rfilename for sibling in siblings or []]
        except Exception as error:
            _raise_if_final(error, repo_id, revision)
            failure = error  # no connection, or a hub that is down: the cache may have it
    if names is None:
        root = _cached(repo_id, prefix, revision, cache_dir)
        if root is None:
            reason = f"The hub cannot be reached ({failure})" if failure else "Offline"
            place = f" at {cache_dir}" if cache_dir else ""
            raise FileNotFoundError(f"{reason}, and {repo_id} is not in the cache{place}.") from failure
        return Snapshot(root / prefix, root.name)
    below = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    files = None if is_ours(below) else _find_files(repo_id, below, prefix, variant, ema)
    wanted = [f"{prefix}{name}" for name in below if files is None and _is_part_of_ours(name)]
    if files is not None:
        wanted = [f"{prefix}{name}" for name in files.all]
        if files.scheduler is None and prefix:  # beside a bare unet/
            parent = prefix.rstrip("/").rpartition("/")[0]
            wanted.append(f"{parent}/scheduler/scheduler_config.json".lstrip("/"))
    try:
        root = huggingface_hub.snapshot_download(
            repo_id, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=wanted
        )
    except Exception as error:
        _raise_if_final(error, repo_id, revision)
        raise ConnectionError(
            f"The download of {repo_id} broke off: {error} Call again: complete files stay in the cache."
        ) from error
    return Snapshot(Path(root, prefix), Path(root).name, files)


def _raise_if_final(error: Exception, repo_id: str, revision: str | None) -> None:
    """Translate answers of the hub that asking again will not change."""
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        raise FileNotFoundError(f"{repo_id} has no revision {revision!r} on the hub.") from error
    if isinstance(error, errors.GatedRepoError):
        raise PermissionError(
            f"{repo_id} is gated: ask for access on its page, then log in with `hf auth login` or pass `token`."
        ) from error
    if isinstance(error, errors.RepositoryNotFoundError):  # the hub does not tell strangers what is private
        raise FileNotFoundError(
            f"There is no model {repo_id} on the hub, and no folder of that name here. If it is private, log in with "
            "`hf auth login` or pass `token`."
        ) from error
    if isinstance(error, errors.LocalTokenNotFoundError):
        raise PermissionError(f"`token=True` needs a login: {error}") from error
    if isinstance(error, errors.HFValidationError):
        raise ValueError(f"{repo_id!r} is no id of the hub: {error}") from error
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"The hub refuses access to {repo_id} ({status}): log in with `hf auth login`, or pass another `token`."
            ) from error


def _cached(repo_id: str, prefix: str, revision: str | None, cache_dir: str | Path | None) -> Path | None:
    """Return the root of a repository's cached snapshot, if it holds a config."""
    import huggingface_hub

    for name in (CHECKPOINT_FILE, "config.json", "unet/config.json", "unet_ema/config.json"):
        found = huggingface_hub.try_to_load_from_cache(
            repo_id, f"{prefix}{name}", cache_dir=cache_dir, revision=revision
        )
        if isinstance(found, str):
            return Path(found.removesuffix(f"{prefix}{name}"))
    return None


def _is_part_of_ours(name: str) -> bool:
    return name == CHECKPOINT_FILE or name.startswith("weights/")


def _find_files(repo_id: str, below: list[str], prefix: str, variant: str | None, ema: bool | None) -> Files:
    try:
        return find_files(below, variant=variant, ema=ema)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{repo_id} on the hub: {error}{_elsewhere(below, prefix)}") from error


def _elsewhere(names: list[str], prefix: str) -> str:
    """Name the folders that can be opened, for a message."""
    found = []
    for parts in (name.split("/") for name in names if name.endswith(("/config.json", f"/{CHECKPOINT_FILE}"))):
        for folder in ("/".join(parts[:-2]), "/".join(parts[:-1])):
            below = [name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")]
            if folder and folder not in found and opens(below):
                found.append(folder)
                break
    shown = " or ".join(prefix + folder for folder in sorted(found, key=natural))
    return f" Name a folder of it that can be opened: `subfolder` {shown}." if found else ""
