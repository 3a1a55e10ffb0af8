"""Atomic writes of files and folders, locks, and the dtypes that weights are stored in."""

import contextlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import ml_dtypes
import numpy as np

from ddpm_jax.validation import check

log = logging.getLogger(__name__)

# A folder is recognised by one of these files.
CHECKPOINT_FILE = "ddpm_jax.json"
PIPELINE_FILE = "model_index.json"  # of diffusers
RUN_FILE = "train.json"
SET_FILE = "samples.json"
LOCK = ".lock"
STORAGE_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def versions(*names: str) -> dict[str, str]:
    """Return the versions of installed packages, for a record.

    Example:
        >>> list(versions("ddpm-jax", "jax"))
        ['ddpm-jax', 'jax']
    """
    return {name: importlib.metadata.version(name) for name in names}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ValueError: it holds no JSON, or no object; names the file.
    """
    try:
        items = json.loads(path.read_bytes())
    except ValueError as error:  # covers bytes that are no UTF-8
        raise ValueError(f"{path} is no JSON file: {error}.") from error
    if not isinstance(items, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(items).__name__}.")
    return items


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; it is renamed to `path` when the block ends without an error."""
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    partial.replace(path)


def write_json(path: Path, items: dict[str, Any]) -> None:
    """Write a JSON object with indented, sorted keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_text(json.dumps(items, indent=2, sort_keys=True) + "\n")


def check_local(path: str | Path) -> None:
    """Refuse a URL (gs://, s3://, https:// ...) in the place of a local path.

    Args:
        path: the path; a `Path` has turned the two slashes into one.

    Raises:
        ValueError: it is a URL; says what to do.

    Example:
        >>> check_local(Path("gs://bucket/run"))
        Traceback (most recent call last):
        ValueError: gs://bucket/run is no local path: mount it, or copy it here and back, and name that path.
    """
    url = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(path))  # two letters: C:/ is a drive
    if url:
        raise ValueError(
            f"{url[1]}://{url[2]} is no local path: mount it, or copy it here and back, and name that path."
        )


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Give a path to a folder whose characters no library takes for a pattern, a URL or an escape.

    orbax searches with patterns that begin with the folder's own path. With `[v2]`, `*` or `?` in that path it finds
    nothing, or the files of another folder. Such a folder is reached by a link in the temporary folder, which is
    removed at the end.

    Raises:
        ValueError: the temporary folder has such characters too.
    """
    folder = folder.absolute()
    if _is_plain(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="ddpm-jax-") as place:
        link = Path(place) / "folder"
        check(
            _is_plain(link),
            f"The temporary folder {place} and {folder} both have characters that orbax takes for a pattern: set "
            "TMPDIR to a folder with a plain name.",
        )
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _is_plain(path: Path) -> bool:
    return re.fullmatch(r"[\w /.,+=@~-]*", path.as_posix().removeprefix(path.drive)) is not None


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Lock a folder for this job, and make it if it does not exist. A folder that is left empty is removed again.

    The operating system holds the lock, so it ends with the job, also if the job is killed. On a file system without
    locks the folder is used without one, and a warning is logged.

    Args:
        folder: the folder; it is made with its parents if it does not exist.
        what: what the folder is, for the messages: "run".

    Raises:
        BlockingIOError: another job holds it; names the process.
        NotADirectoryError, OSError: it is a file, or cannot be made or written.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, but a {what} is a folder: choose another name.")
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _lock(folder, what) as file:
            _sign(file, folder, what)
            try:
                yield
            finally:
                (folder / LOCK).unlink(missing_ok=True)  # while the lock is held: the next job makes a new file
    finally:
        for place in made:
            with contextlib.suppress(OSError):  # it is not empty
                place.rmdir()


@contextlib.contextmanager
def _lock(folder: Path, what: str) -> Iterator[TextIO]:
    while True:
        with open(folder / LOCK, "a+") as file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise BlockingIOError(
                    f"The {what} {folder} is in use by another job (process {file.read().strip() or 'unknown'}): wait "
                    "until it ends, stop it, or choose another folder."
                ) from None
            except (ImportError, OSError) as error:
                log.warning("%s cannot be locked (%s): do not start a second job in it.", folder, error)
            if _is_still_there(file, folder / LOCK):
                yield file
                return


def _is_still_there(file: TextIO, path: Path) -> bool:
    """Tell whether an open file still has its name: the job before may have removed it in between."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sign(file: TextIO, folder: Path, what: str) -> None:
    """Write this process into the lock file; warn if a job on another machine has not removed its name."""
    file.seek(0)
    before, here = file.read().strip(), socket.gethostname()
    if before and not before.endswith(f" on {here}"):
        log.warning("The %s %s was left by process %s. If that still runs, stop one of the two.", what, folder, before)
    file.truncate(0)
    file.write(f"{os.getpid()} on {here}\n")
    file.flush()


def check_new_folder(folder: Path, *, overwrite: bool, marks: tuple[str, ...]) -> None:
    """Refuse a folder that cannot be written, or exists and may not be replaced.

    Args:
        folder: the folder to write.
        overwrite: whether an existing folder may be replaced.
        marks: file names; a folder that is not empty is replaced only if it holds one of them.

    Raises:
        FileExistsError, PermissionError, NotADirectoryError: says what to do.
        ValueError: it is a URL.
    """
    check_local(folder)
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists already. Choose another name, or overwrite it (`overwrite`).")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, but a folder is to be written. Choose another name.")
    if folder.exists() and any(folder.iterdir()):
        if not any((folder / mark).exists() for mark in marks):
            raise FileExistsError(
                f"{folder} exists and may not be overwritten: it is not empty and has no {' or '.join(marks)}. "
                "Choose another name."
            )
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(f"{parent} is a file, so the folder {folder} cannot be made. Choose another name.")
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"{folder} cannot be made, since {parent} is not writable. Choose another place.")


@contextlib.contextmanager
def new_folder(folder: Path, *, overwrite: bool, marks: tuple[str, ...]) -> Iterator[Path]:
    """Give an empty folder to write into; it gets its name when the block ends without an error.

    After an exception or a kill there is nothing under that name, or still the old folder.

    Raises:
        FileExistsError, PermissionError, NotADirectoryError: as in `check_new_folder`, before anything is written.
    """
    check_local(folder)
    folder = folder.absolute()
    _tidy(folder)
    check_new_folder(folder, overwrite=overwrite, marks=marks)
    folder.parent.mkdir(parents=True, exist_ok=True)
    writer = f"{socket.gethostname()}-{os.getpid()}"
    partial = folder.with_name(f".{folder.name}.partial-{writer}")
    replaced = folder.with_name(f".{folder.name}.replaced-{writer}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        check_new_folder(folder, overwrite=overwrite, marks=marks)  # once more: writing takes minutes
        if folder.exists():
            folder.rename(replaced)
        try:
            partial.rename(folder)
        except OSError:
            if replaced.exists():
                replaced.rename(folder)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def _tidy(folder: Path) -> None:
    """Remove what killed writers of this machine have left beside a folder, and restore what they had moved aside."""
    if not folder.parent.is_dir():
        return
    name, host = re.escape(folder.name), re.escape(socket.gethostname())
    for path in folder.parent.iterdir():
        left = re.fullmatch(rf"\.{name}\.(partial|replaced)-{host}-(\d+)", path.name)
        if not left or _is_running(int(left[2])):
            continue
        if left[1] == "replaced" and not folder.exists():
            path.rename(folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    """Tell whether another process of this machine has that number."""
    if os.name == "nt":  # os.kill would end it there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return process != os.getpid()


def check_storage_dtype(storage_dtype: str) -> None:
    """Refuse an unknown storage dtype."""
    check(
        storage_dtype in STORAGE_DTYPES,
        f"`storage_dtype` must be one of {list(STORAGE_DTYPES)}, not {storage_dtype!r}.",
    )


def stored(tensors: Mapping[Any, np.ndarray], storage_dtype: str) -> dict[Any, np.ndarray]:
    """Return tensors in the dtype in which they are stored.

    Raises:
        ValueError: the dtype is none of float32, float16 and bfloat16, or float16 cannot hold a value.
    """
    check_storage_dtype(storage_dtype)
    result = {}
    for name, value in tensors.items():
        with np.errstate(over="ignore"):
            result[name] = np.asarray(value).astype(STORAGE_DTYPES[storage_dtype])
        check(
            np.all(np.isfinite(result[name]) == np.isfinite(value)),
            f"{name} holds values beyond the range of {storage_dtype}: store it as bfloat16 or float32.",
        )
    return result
