"""The record of an evaluation, report.json: numbers, protocol, hashes of what they were made from, versions, hardware.

settings      all arguments, of which `verify` makes the same evaluation
inputs        hashes of weights, images, statistics: whether these are still there
protocol      the same in words, for readers
results       metrics, likelihood, warnings: what a repetition must give again
environment   versions and hardware, on which the last digits depend
seconds       of each stage, without work that was interrupted
"""

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.files import read_json, versions, write_json
from ddpm_jax.images.source import Source
from ddpm_jax.validation import check

REPORT = "report.json"
FORMAT_VERSION = 1
PARTS = ("settings", "inputs", "protocol", "results", "environment", "seconds")
_ROWS = 1024  # of an array that are hashed at a time


def write_report(path: Path, report: Mapping[str, Any]) -> Path:
    """Write a report, whole or not at all.

    Args:
        path: the file.
        report: its parts.

    Returns:
        The path.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "report.json"
        >>> parts = dict.fromkeys(PARTS, {})
        >>> read_report(write_report(path, parts)) == parts
        True
    """
    write_json(path, {"format_version": FORMAT_VERSION, **report})
    return path


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a report that `evaluate` has written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, no report, or one of another version of the format.
    """
    path = Path(path).expanduser()
    path = path / REPORT if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. `evaluate` writes {REPORT} into its folder when it ends.")
    report = read_json(path)
    version = report.pop("format_version", None)
    check(
        version == FORMAT_VERSION,
        f"{path} has the format {version!r}; this version reads {FORMAT_VERSION}. Name the {REPORT} of an evaluation, "
        "or install the version of ddpm_jax that wrote it.",
    )
    lacking = [part for part in PARTS if not isinstance(report.get(part), dict)]
    check(
        not lacking,
        f"{path} lacks {', '.join(lacking)}, which every report has. It was changed by hand: evaluate again.",
    )
    return report


def content_of(images: Source) -> str:
    """Return a hash of the bytes of all images: of their files, or of the array.

    Example:
        >>> from ddpm_jax.images.source import array_source
        >>> of = lambda value: content_of(array_source(np.full((2, 4, 4, 1), value, np.uint8), "mine"))
        >>> of(1) == of(1), of(1) == of(2)
        (True, False)
    """
    if isinstance(images.items, np.ndarray):
        return content_of_array(images.items)
    hashed = hashlib.blake2b(digest_size=16)
    for path in images.items:
        hashed.update(bytes.fromhex(content_of_file(path)))
    return hashed.hexdigest()


def content_of_file(path: str | Path) -> str:
    """Return a hash of a file's bytes.

    Example:
        >>> content_of_file(os.devnull) == hashlib.blake2b(digest_size=16).hexdigest()
        True
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()  # pyright: ignore[reportArgumentType]


def content_of_array(array: np.ndarray) -> str:
    """Return a hash of an array's shape and bytes, of which a part is in memory at a time.

    Example:
        >>> content_of_array(np.zeros((2, 3))) == content_of_array(np.zeros((3, 2)))
        False
    """
    hashed = hashlib.blake2b(f"{array.dtype.str} {list(array.shape)}".encode(), digest_size=16)
    for start in range(0, len(array), _ROWS):
        hashed.update(np.ascontiguousarray(array[start : start + _ROWS]).data)
    return hashed.hexdigest()


def environment() -> dict[str, Any]:
    """Return versions and hardware, on which the last digits of results depend.

    Example:
        >>> sorted(environment())
        ['hardware', 'versions']
    """
    devices = jax.devices()
    return {
        "versions": {
            "python": platform.python_version(),
            **versions("ddpm-jax", "jax", "jaxlib", "flax", "numpy", "pillow"),
        },
        "hardware": {
            "system": platform.platform(),
            "processor": _processor(),
            "cpu_count": os.cpu_count(),
            "backend": jax.default_backend(),
            "device": devices[0].device_kind,
            "num_devices": len(devices),
            "num_processes": jax.process_count(),
        },
    }


def _processor() -> str:
    """Return the name of the processor; Linux says it in a file only."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
