"""Open arrays of images and labels. An array that cannot be used is refused with the line that would mend it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.validation import check

CHANNELS = (1, 3, 4)
_BESIDE = ("labels", "class_names")


def open_arrays(path: Path, name: str, with_labels: bool) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Return the images [n, h, w, c] of an .npz or .npy file, its labels [n] or None, and the names of its classes.

    Args:
        path: the file.
        name: the file in messages.
        with_labels: read labels and names; they must be there.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    check(path.suffix.lower() in (".npz", ".npy"), f"{name} is neither a folder nor an .npz or .npy file.")
    file = _read(lambda: np.load(path, mmap_mode="r"), name)
    if isinstance(file, np.ndarray):
        check(not with_labels, f"{name}: an .npy has no classes; put `images` and `labels` in an .npz.")
        return checked_images(file, name), None, ()
    with file:
        images = [key for key in file.files if key not in _BESIDE]
        check(len(images) == 1 or "images" in images, f"{name} holds {images}: name one of them `images`.")
        pixels = checked_images(_read(lambda: file["images" if "images" in images else images[0]], name), name)
        if not with_labels:
            return pixels, None, ()
        check("labels" in file.files, f"{name} has no array `labels`.")
        names = _read(lambda: file["class_names"], name) if "class_names" in file.files else None
        return pixels, *checked_labels(_read(lambda: file["labels"], name), names, len(pixels), name)


def checked_images(images: np.ndarray, name: str) -> np.ndarray:
    """Return images as [n, h, w, c].

    Raises:
        ValueError: another dtype or shape; the message says how to convert it.
    """
    shape = list(images.shape)
    what_to_do = _of_dtype(images) or _of_shape(shape)
    check(
        what_to_do is None,
        f"{name} holds an array {images.dtype} {shape}; it must be uint8 [n, h, w, c] with 1, 3 or 4 channels, or "
        f"[n, h, w] of grey: {what_to_do}.",
    )
    return images[..., None] if images.ndim == 3 else images


def checked_labels(
    labels: np.ndarray, names: np.ndarray | None, count: int, name: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels [n] and the names of the classes: those given, or their numbers.

    Raises:
        ValueError: labels that are not integers from 0 up; too few names, or equal ones.
    """
    what_to_do = _of_labels(labels, count)
    check(
        what_to_do is None,
        f"{name}: `labels` {labels.dtype} {list(labels.shape)} must be {count} integers from 0 up: {what_to_do}.",
    )
    classes = tuple(str(number) for number in range(int(labels.max()) + 1))
    if names is not None:
        enough = names.ndim == 1 and names.dtype.kind == "U" and len({*names.tolist()}) == len(names) >= len(classes)
        check(
            enough,
            f"{name}: `class_names` {names.dtype} {list(names.shape)} must be at least {len(classes)} texts, all "
            f"different, one for each label: write them as `np.array([...])` of str.",
        )
        classes = tuple(names.tolist())
    return labels, classes


def _read(read: Callable[[], Any], name: str) -> Any:
    try:
        return read()
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        check(
            not any(text in str(error) for text in ("Object arrays", "Python objects")),
            f"{name} holds Python objects: save images as one array (`np.stack`), texts as an array of str.",
        )
        raise ValueError(f"{name} cannot be read, it is damaged or no array: {error}") from error


def _of_dtype(images: np.ndarray) -> str | None:
    """Return what converts an array to uint8, or None if it is uint8."""
    kind = images.dtype.kind
    if images.dtype == np.uint8:
        return None
    if kind == "f":
        return "bring 0 .. 1 to `(images * 255).round().astype(np.uint8)`, and -1 .. 1 there first"
    if kind == "b":
        return "write `images.astype(np.uint8) * 255`"
    if images.dtype == np.uint16:
        return "bring 0 .. 65535 to `(images / 257).round().astype(np.uint8)`"
    return "write `images.astype(np.uint8)` if they lie in 0 .. 255" if kind in "iu" else "images are numbers"


def _of_shape(shape: list[int]) -> str | None:
    """Return what brings an array of this shape to that of images, or None if it has it."""
    if 0 in shape:
        return "there is none in it"
    if len(shape) == 2:
        return "one grey image is `images[None]`"
    if len(shape) == 3:
        one_picture = shape[2] in CHANNELS and min(shape[:2]) > shape[2]
        many = "one picture is `images[None]`, many grey ones of this width are `images[..., None]`"
        return many if one_picture else None
    if len(shape) == 4 and shape[3] not in CHANNELS and shape[1] in CHANNELS:
        return "PyTorch has the channels first, `images.transpose(0, 2, 3, 1)` has them last"
    return None if len(shape) == 4 and shape[3] in CHANNELS else "no other shape is read"


def _of_labels(labels: np.ndarray, count: int) -> str | None:
    """Return what converts an array to labels, or None if it holds labels."""
    if labels.ndim == 2 and labels.shape == (count, 1):
        return "write `labels[:, 0]`"
    if labels.ndim == 2 and len(labels) == count:
        return "of one-hot rows, `labels.argmax(1)` makes them"
    if labels.shape != (count,):
        return "one for each image"
    if labels.dtype.kind in "US":
        return "of texts, `class_names, labels = np.unique(labels, return_inverse=True)` makes both arrays"
    if labels.dtype.kind in "fb":
        return "write `labels.astype(int)`"
    if labels.dtype.kind not in "iu":
        return "they are numbers of classes"
    return "the least is negative" if labels.min() < 0 else None
