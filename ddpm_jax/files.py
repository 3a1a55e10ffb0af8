"""Reading and writing that cannot leave half a thing behind: JSON files, whole folders, stored dtypes."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ddpm_jax.validation import check

STORAGE_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: not JSON, or not an object; names the file.
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
    """Give a path to write to, which becomes `path` only when all is written."""
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    partial.replace(path)


def write_json(path: Path, items: dict[str, Any]) -> None:
    """Write a JSON object, readable by people."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_text(json.dumps(items, indent=2, sort_keys=True) + "\n")


def check_new_folder(folder: Path, *, overwrite: bool, marks: tuple[str, ...]) -> None:
    """Refuse a folder that exists (unless it may be overwritten and is one of ours to overwrite) or cannot be written.

    Args:
        folder: what is to be written.
        overwrite: whether an existing one may be replaced.
        marks: files of which an existing folder must hold one, to be replaced: never somebody's home.

    Raises:
        FileExistsError, PermissionError, NotADirectoryError: with what to do.
    """
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists already. Choose another name, or overwrite it explicitly.")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, where a folder is to be written.")
    if folder.exists() and any(folder.iterdir()):
        if not any((folder / mark).exists() for mark in marks):
            raise FileExistsError(
                f"{folder} exists and holds something else than was to be overwritten (no {' or '.join(marks)}). "
                "Choose another name."
            )
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(f"{parent} is a file; no folder {folder} can be made in it.")
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"{parent} is not writable: choose another place than {folder}.")


@contextlib.contextmanager
def new_folder(folder: Path, *, overwrite: bool, marks: tuple[str, ...]) -> Iterator[Path]:
    """Give an empty folder to write into, which gets its name only when all is written.

    An exception, or a kill, leaves nothing under the name, and what is to be overwritten stays until then.

    Raises:
        FileExistsError, PermissionError, NotADirectoryError: as `check_new_folder`, before anything is written.
    """
    check_new_folder(folder, overwrite=overwrite, marks=marks)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
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


def check_storage_dtype(storage_dtype: str) -> None:
    """Refuse a storage dtype that is none."""
    check(
        storage_dtype in STORAGE_DTYPES,
        f"`storage_dtype` must be one of {list(STORAGE_DTYPES)}, not {storage_dtype!r}.",
    )


def stored(tensors: Mapping[Any, np.ndarray], storage_dtype: str) -> dict[Any, np.ndarray]:
    """Return tensors in the dtype they are to be stored in.

    Raises:
        ValueError: another dtype than float32, float16, bfloat16; a value that float16 cannot hold.
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
