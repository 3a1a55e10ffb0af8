"""Find the pictures below a folder, and say what is left out and why."""

import dataclasses
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from ddpm_jax.files import CHECKPOINT_FILE, PIPELINE_FILE, RUN_FILE, SET_FILE
from ddpm_jax.images.picture import reason, suffixes

# Files that mark a folder written by this package or diffusers. Nothing in such a folder is data for another model.
OURS = {
    RUN_FILE: "of a training run",
    SET_FILE: "of a set of samples",
    CHECKPOINT_FILE: "of a checkpoint",
    PIPELINE_FILE: "of a checkpoint",
}
# Grids in a folder of ours, which are left out when that folder itself is named as the data.
_GRIDS = {SET_FILE: ("grid.png", "sampling.gif"), RUN_FILE: ("learning_curve.png", "samples")}
_OF_THE_SYSTEM = (
    *("$recycle.bin", "recycler", "system volume information", "lost+found", "__macosx", "__pycache__"),
    *("@eadir", "#recycle", "#snapshot", "@recently-snapshot", "thumbs.db", "ehthumbs.db", "desktop.ini"),
)
_SUFFIXES_OF_BEFORE = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What a walk found.

    Attributes:
        sizes: paths of the pictures, sorted, and their bytes; None for a path that is no readable file.
        unreadable: pictures and folders that cannot be opened, with the reason.
        left_out: names that are left out, by reason.
        folders: names of the folders right below, without those that are left out.
    """

    sizes: dict[Path, int | None]
    unreadable: dict[Path, str]
    left_out: dict[str, list[str]]
    folders: tuple[str, ...]


def walk(folder: Path, *, out: Path | None = None) -> Found:
    """Find the pictures in a folder and all folders below it. Links are followed; each real folder is visited once.

    Hidden files and folders, those of operating systems, folders that this package has written, and files that are no
    pictures are left out. The folder itself never is.

    Args:
        folder: where to begin.
        out: another folder to leave out: that of the run which begins, which has no mark yet.
    """
    known, left_out, unreadable = suffixes(), {}, {}
    own = os.path.realpath(out) if out else None
    marks = [mark for mark in _GRIDS if os.path.isfile(folder / mark)]
    grids = [name for mark in marks for name in _GRIDS[mark]]

    def keep(path: Path, why: str | None) -> bool:
        if why:
            left_out.setdefault(why, []).append(shown(path.relative_to(folder)))
        return not why

    paths, below = [], ()
    for parent, folders, files in _folders(folder, unreadable):
        own_grids = grids if parent == folder else []
        folders[:] = [name for name in folders if keep(parent / name, _why_not_folder(parent / name, own, own_grids))]
        paths += [parent / name for name in files if keep(parent / name, _why_not_file(name, known, own_grids))]
        below = tuple(folders) if parent == folder else below
    return Found({path: _size(path, unreadable) for path in sorted(paths)}, unreadable, left_out, below)


def walk_of_before(folder: Path) -> Found:
    """Find what earlier versions found, for their runs: fewer kinds of files, hidden folders and ours included."""
    unreadable: dict[Path, str] = {}
    paths = [
        parent / name
        for parent, _, files in _folders(folder, unreadable)
        for name in files
        if Path(name).suffix.lower() in _SUFFIXES_OF_BEFORE and not name.startswith(".")
    ]
    return Found({path: _size(path, unreadable) for path in sorted(paths)}, unreadable, {}, ())


def by_value(names: set[str]) -> list[str]:
    """Sort names of classes: by value if all are integers, else as text.

    Example:
        >>> by_value({"10", "2", "1"}), by_value({"10", "2", "b"})
        (['1', '2', '10'], ['10', '2', 'b'])
    """
    integers = all(re.fullmatch("-?[0-9]+", name) for name in names)
    return sorted(names, key=lambda name: (int(name), name) if integers else (0, name))


def shown(path: str | Path) -> str:
    """Return a name as printable text. Bytes that are no UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _folders(folder: Path, unreadable: dict[Path, str]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield every folder with the names of its folders, from which the caller may remove some, and of its files."""
    seen = set()

    def note(error: OSError) -> None:
        unreadable[Path(error.filename)] = reason(error)

    for parent, folders, files in os.walk(folder, followlinks=True, onerror=note):
        folders.sort()
        files.sort()
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield Path(parent), folders, files


def _why_not_folder(path: Path, own: str | None, grids: list[str]) -> str | None:
    if path.name.startswith("."):
        return "hidden"
    if path.name.lower() in _OF_THE_SYSTEM:
        return "of the system"
    if path.name in grids:
        return "of many samples"
    if own and os.path.realpath(path) == own:
        return "of this run"
    return next((what for mark, what in OURS.items() if os.path.isfile(path / mark)), None)


def _why_not_file(name: str, known: set[str], grids: list[str]) -> str | None:
    suffix = Path(name).suffix.lower()
    if name.startswith("."):
        return "hidden"
    if name.lower() in _OF_THE_SYSTEM:
        return "of the system"
    if name in grids:
        return "of many samples"
    return None if suffix in known else shown(suffix) if suffix else "without a suffix"


def _size(path: Path, unreadable: dict[Path, str]) -> int | None:
    try:
        status = path.stat()
    except OSError as error:
        unreadable[path] = "a link to nothing" if os.path.islink(path) else reason(error)
        return None
    if not stat.S_ISREG(status.st_mode):
        unreadable[path] = "no file of bytes"
        return None
    return status.st_size
