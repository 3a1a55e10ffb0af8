"""What a run's folder says of its data, so that a run which goes on finds the same, or says what is other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_jax.files import read_json, write_json
from ddpm_jax.images.source import Source
from ddpm_jax.images.walk import shown
from ddpm_jax.validation import check, some

FILES = "data.json"
_CAP = 10  # names of each kind that a message holds


def facts(source: Source) -> dict[str, Any]:
    """Return what train.json says of the data: facts that must stay, and the line that describes it."""
    return {
        "images": len(source),
        "channels": source.channels,
        "classes": list(source.classes),
        "background": "none" if source.ground is None else "#{:02x}{:02x}{:02x}".format(*source.ground),
        "fingerprint": source.fingerprint,
        "description": source.describe(),
    }


def write_files(source: Source, folder: Path) -> None:
    """Write the names below the data's folder, and the bytes of each, beside train.json."""
    write_json(folder / FILES, {"files": dict(source.files)})


def changes(source: Source, before: Mapping[str, Any], folder: Path, *, accepted: bool) -> str | None:
    """Say how the data differs from what a run was trained on, or return None.

    Args:
        source: the data.
        before: what the run's train.json says of it.
        folder: the run's.
        accepted: whether other images will do.

    Raises:
        ValueError: they will not do; other channels or classes never do.
    """
    now = facts(source)
    fixed = _unlike(before, now, ("channels", "classes"))
    check(not fixed, f"The data is not what {folder} was trained on: {'; '.join(fixed)}.")
    if not _unlike(before, now, ("images", "fingerprint")):
        return None
    lines = _unlike(before, now, ("images",)) + _files_that_differ(source, folder)
    text = f"The data is not what {folder} was trained on: {'; '.join(lines) or 'the pixels of the array differ'}."
    check(accepted, f"{text} Bring back what was there, or go on with what is there now by `accept_changed_data`.")
    return text


def _unlike(before: Mapping[str, Any], now: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    return [f"{name} {before.get(name)!r} there, {now[name]!r} here" for name in names if before.get(name) != now[name]]


def _files_that_differ(source: Source, folder: Path) -> list[str]:
    if not source.files:
        return []
    if not (folder / FILES).exists():
        return ["names or bytes of files, of which that older run kept no list"]
    before, now = read_json(folder / FILES).get("files", {}), source.files
    both = [name for name in now if name in before]
    kinds = {
        "new": [shown(name) for name in now if name not in before],
        "gone": [shown(name) for name in before if name not in now],
        "changed": [
            f"{shown(name)} ({before[name]} bytes there, {now[name]} here)"
            for name in both
            if before[name] != now[name]
        ],
    }
    return [f"{len(names)} {kind}: {some(names, _CAP)}" for kind, names in kinds.items() if names]
