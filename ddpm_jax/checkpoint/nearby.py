"""Hints for a path that cannot be opened: which folders near it can."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ddpm_jax.checkpoint.families.diffusers_files import find_files
from ddpm_jax.checkpoint.folder import is_ours

_MAX_LOOKED_AT = 200
_MAX_SHOWN = 5


def names_below(folder: Path) -> list[str]:
    """Name the files at a folder's root and one level below it; training output has thousands further down."""
    below = [path for path in folder.iterdir() if path.is_dir()]
    everything = [*folder.iterdir(), *(path for part in below for path in part.iterdir())]
    return [path.relative_to(folder).as_posix() for path in everything if path.is_file()]


def opens(names: Collection[str]) -> bool:
    """Tell whether files of these names make a checkpoint.

    Example:
        >>> opens(["unet/config.json"]), opens(["unet/config.json", "unet/diffusion_pytorch_model.bin"])
        (False, True)
    """
    try:
        return is_ours(names) or bool(find_files(names))
    except FileNotFoundError:
        return False


def is_cached_repository(folder: Path) -> bool:
    """Tell whether a folder is a repository in the hub's cache: models--owner--name, with refs and snapshots."""
    return folder.name.startswith("models--") and (folder / "snapshots").is_dir()


def snapshot(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the snapshot of `main`, or else the only one, of a repository in the hub's cache.

    Raises:
        FileNotFoundError: there is no snapshot, or there are several and none is `main`.
    """
    snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    main = folder / "refs" / "main"
    commit = main.read_text().strip() if main.is_file() else ""
    chosen = [path for path in snapshots if path.name == commit] or snapshots
    if len(chosen) != 1:
        there = ", ".join(path.name for path in snapshots) or "none"
        raise FileNotFoundError(
            f"{folder} has no snapshot of the commit in its refs/main. It has {there}: name one of them, or load the "
            "repository by its id, owner/name."
        )
    model = folder.name.removeprefix("models--").replace("--", "/")
    return chosen[0], {"model": model, "revision": chosen[0].name}


def natural(name: str | Path) -> list[Any]:
    """Return a key that sorts checkpoint-1000 after checkpoint-500.

    Example:
        >>> sorted(["checkpoint-1000", "checkpoint-500"], key=natural)
        ['checkpoint-500', 'checkpoint-1000']
    """
    parts = re.split(r"(\d+)", str(name))
    return [int(part) if part.isdigit() else part for part in parts]  # words and numbers in turn


def hint(path: Path) -> str:
    """Name the folders below or above a path that can be opened, for a message; "" if there is none.

    Example:
        >>> hint(Path("/nowhere"))
        ''
    """
    found = [folder for folder in _around(path) if _opens(folder)]
    if not found:
        return ""
    found.sort(key=natural)
    others = [f"{len(found) - _MAX_SHOWN} others"] if len(found) > _MAX_SHOWN else []
    shown = ", ".join([*others, *map(str, found[-_MAX_SHOWN:])])
    return f" These can be opened: {shown}; for example load({str(found[-1])!r})."


def _around(path: Path) -> Iterator[Path]:
    """Yield the folders of the first of two levels below where one can be opened, or else the nearest one above."""
    below: list[Path] = [path]
    for _ in range(2):
        below = [child for folder in below for child in _folders(folder)][:_MAX_LOOKED_AT]
        if any(map(_opens, below)):
            yield from below
            return
    yield from next(([folder] for folder in path.absolute().parents[:2] if _opens(folder)), [])


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []


def _opens(folder: Path) -> bool:
    try:
        return is_cached_repository(folder) or opens(names_below(folder))
    except OSError:  # it may not be looked at
        return False
