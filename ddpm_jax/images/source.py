"""Open a folder or an array of images: check every image, number the classes, describe what is there.

Every file is decoded once on opening, by the function that also decodes it later.
"""

import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ddpm_jax.images.arrays import checked_images, checked_labels, open_arrays
from ddpm_jax.images.picture import MODES, Ground, decode, ground_of, reason, resized
from ddpm_jax.images.walk import Found, by_value, shown, walk, walk_of_before
from ddpm_jax.pixels import picture
from ddpm_jax.validation import check, some

PAUSES = (0.2, 1.0, 3.0)  # seconds before a file that was readable is tried again: network drives come back
_CAP = 10  # files that a message lists
_CLASSES = 12  # classes that a line lists


class UnreadableImage(OSError):
    """An image that was readable can no longer be read."""


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Images that can be read one by one, in any order.

    Attributes:
        name: what was opened, for messages.
        items: paths of files, or an array [n, h, w, c].
        labels: class of each image [n], or None.
        classes: names of the classes.
        found: channels of the stored images. Files: 1 if all are grey, else 3.
        channels: channels of the images that `image` returns.
        ground: colour below transparent pixels; None for the colours that are stored under them.
        sizes: (width, height) of the smallest and of the largest image.
        broken: files that cannot be decoded and are left out, with the reason.
        left_out: other names that are left out, by reason.
        files: names below the folder, broken files included, and their bytes; empty for arrays.
        fingerprint: of the files' names and sizes, or of an array's shape and some of its images; a resumed run
            compares it.
        asked: whether the caller chose the channels; `fitting` then leaves them alone.
    """

    name: str
    items: Any
    labels: np.ndarray | None
    classes: tuple[str, ...]
    found: int
    channels: int
    ground: Ground | None
    sizes: tuple[tuple[int, int], tuple[int, int]]
    broken: Mapping[Path, str]
    left_out: Mapping[str, Sequence[str]]
    files: Mapping[str, int | None]
    fingerprint: str
    asked: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int, least: int) -> Image.Image:
        """Return an image.

        Args:
            index: number of the image.
            least: a JPEG is decoded at the smallest of its scales (1, 1/2, 1/4, 1/8) whose sides have at least this
                many pixels.

        Raises:
            UnreadableImage: the file can no longer be read, even after some seconds.
        """
        item = self.items[index]
        if isinstance(item, np.ndarray):
            image = picture(item)
            return image if self.channels == self.found else image.convert(MODES[self.channels])
        for pause in (*PAUSES, None):
            try:
                return decode(item, ground=self.ground, channels=self.channels, least=least)
            except Exception as error:  # Pillow's decoders raise many kinds
                if pause is None:
                    raise UnreadableImage(f"{shown(item)} can no longer be read: {reason(error)}.") from error
                time.sleep(pause)
        raise AssertionError("The last attempt returns or raises.")

    def fitting(self, channels: int | None) -> "Source":
        """Return the source for a network of some channels: grey files become colour for 3; all else stays as it is."""
        if channels == 3 and self.channels == 1 and self.files and not self.asked:
            return dataclasses.replace(self, channels=3)
        return self

    def describe(self) -> str:
        """Return one line: number of images, channels, sizes, classes, and what is left out and why.

        Example:
            >>> open_source("digits").describe()
            'digits: 1797 images, grey, 8 x 8 pixels.'
        """
        kinds = {1: "grey", 3: "RGB"}
        colours = kinds.get(self.found, f"{self.found} channels")
        if self.channels != self.found:
            colours += f" (brought to {kinds[self.channels]})"
        sizes = " to ".join(f"{width} x {height}" for width, height in dict.fromkeys(self.sizes))
        text = f"{self.name}: {len(self):d} images, {colours}, {sizes} pixels"
        if self.classes and self.labels is not None:
            counts = Counter(self.labels.tolist())
            named = [f"{number}: {name} ({counts[number]})" for number, name in enumerate(self.classes)]
            more = [f"... {len(named) - _CLASSES} more"] if len(named) > _CLASSES else []
            text += f"; {len(named)} classes: {', '.join(named[:_CLASSES] + more)}"
        left_out = [_in_words(self.left_out)] if self.left_out else []
        if self.broken:
            left_out.append(f"{len(self.broken)} that cannot be read ({_reasons(self.broken, 2)})")
        return f"{text}. Left out: {', '.join(left_out)}." if left_out else f"{text}."


def open_source(
    data: str,
    *,
    class_conditional: bool = False,
    skip_broken: bool = False,
    background: str | None = None,
    channels: int | None = None,
    workers: int = 8,
    out: Path | None = None,
    before: Mapping[str, Any] | None = None,
    like: Source | None = None,
) -> Source:
    """Open a folder of images, an array or "digits", and check every image once.

    Args:
        data: a folder of images, an .npz or .npy file of uint8 images [n, h, w, c], or "digits".
        class_conditional, skip_broken, background, workers: as in `training.DataConfig`.
        channels: 1 or 3 to convert all images, or None.
        out: a folder to leave out: that of the run which begins.
        before: the `data` of a resumed run's record. Classes keep their numbers and transparent pixels their ground;
            files that only earlier versions took are taken.
        like: the training data, whose classes, channels and ground held-out data must have.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: no images; broken images, which are named with the reason; an array that holds no images; missing
            classes; channels that the images cannot have.

    Example:
        >>> source = open_source("digits", class_conditional=True)
        >>> len(source), source.channels, source.classes[:3]
        (1797, 1, ('0', '1', '2'))
    """
    argument = "data" if like is None else "held_out"
    check(data, f"`{argument}` is missing: a folder of images, an .npz or .npy file, or `digits`.")
    path, name = Path(data).expanduser(), f"`{argument}` {shown(data)}"
    if data != "digits" and path.is_dir():
        if like is not None and like.files:
            ground = like.ground
        else:
            ground = ground_of(background or ("white" if before is None else before.get("background", "none")))
        source = _folder(path, name, class_conditional, skip_broken, ground, workers, out, before)
    else:
        idle = background is None or like is not None
        check(idle, f"{name} is an array: its channels are taken as they are, leave `background` out.")
        source = _array(data, path, name, class_conditional, before)
    source = dataclasses.replace(_converted(source, channels, name), name=shown(data))
    return source if like is None else _made_alike(source, like, name)


def array_source(
    images: np.ndarray, name: str, labels: np.ndarray | None = None, classes: tuple[str, ...] = ()
) -> Source:
    """Return an array in memory as a source.

    Args:
        images: np.uint8 [n, h, w, c], or [n, h, w] of grey.
        name: what it is called in messages.
        labels: class of each image [n], or None.
        classes: names of the classes.

    Raises:
        ValueError: another dtype or shape; the message says how to convert it.

    Example:
        >>> array_source(np.zeros((5, 8, 8, 3), np.uint8), "mine").describe()
        'mine: 5 images, RGB, 8 x 8 pixels.'
    """
    images = checked_images(images, name)
    _, height, width, channels = images.shape
    looked_at = np.ascontiguousarray(images[np.unique(np.linspace(0, len(images) - 1, 64).astype(int))])
    return Source(
        name=name,
        items=images,
        labels=labels,
        classes=classes,
        found=channels,
        channels=channels,
        ground=None,
        sizes=((width, height), (width, height)),
        broken={},
        left_out={},
        files={},
        fingerprint=_digest(str(images.shape).encode(), looked_at.tobytes()),
    )


def centred(source: Source, resolution: int, most: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return up to `most` images of a source, evenly spaced in its order, with a center crop and no flips.

    Returns:
        Images [n, h, w, c], uint8, and their classes [n], int32, or None.

    Example:
        >>> images, labels = centred(open_source("digits"), 16, 5)
        >>> images.shape, labels
        ((5, 16, 16, 1), None)
    """
    chosen = np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).astype(int))
    images = [np.asarray(resized(source.image(int(index), 2 * resolution), resolution)) for index in chosen]
    labels = None if source.labels is None else source.labels[chosen].astype(np.int32)
    return np.stack(images).reshape(len(chosen), resolution, resolution, -1), labels


def _folder(
    folder: Path,
    name: str,
    class_conditional: bool,
    skip_broken: bool,
    ground: Ground | None,
    workers: int,
    out: Path | None,
    before: Mapping[str, Any] | None,
) -> Source:
    found, files = _found(folder, out, before)
    nothing = not (found.sizes or found.unreadable)
    check(not nothing, f"{name} holds no images{'; left out: ' * bool(found.left_out)}{_in_words(found.left_out)}.")
    looks, broken = _looked_at(found, ground, workers)
    if broken and not skip_broken:
        raise ValueError(
            f"{name}: {len(broken)} of {len({*found.sizes, *broken})} images cannot be read: {_reasons(broken, _CAP)}. "
            "Mend or remove them, or leave them out with `skip_broken`."
        )
    check(looks, f"{name}: none of its images can be read: {_reasons(broken, _CAP)}.")
    labels, classes, left_out = None, (), found.left_out
    if class_conditional:
        stray = [shown(path.name) for path in found.sizes if path.parent == folder]
        check(not stray, f"{name}: with `class_conditional` every image lies in a sub-folder, not {stray[:3]}.")
        of = {path: shown(path.relative_to(folder).parts[0]) for path in found.sizes}
        classes = _numbered({*of.values()}, [of[path] for path in looks], before, name)
        numbers = {text: number for number, text in enumerate(classes)}
        labels = np.array([numbers[of[path]] for path in looks])
        empty = [shown(below) for below in found.folders if shown(below) not in numbers]
        left_out = left_out | ({"without images": empty} if empty else {})
    channels = 1 if all(look.mode == "L" for look in looks.values()) else 3
    sizes = sorted((look.size for look in looks.values()), key=lambda size: size[0] * size[1])
    return Source(
        name=name,
        items=list(looks),
        labels=labels,
        classes=classes,
        found=channels,
        channels=channels,
        ground=ground,
        sizes=(sizes[0], sizes[-1]),
        broken=broken,
        left_out=left_out,
        files=files,
        fingerprint=_digest_of(files),
    )


def _found(folder: Path, out: Path | None, before: Mapping[str, Any] | None) -> tuple[Found, dict[str, int | None]]:
    """Walk a folder. If only the walk of earlier versions finds the files of a resumed run, return that one's."""
    found = walk(folder, out=out)
    files = _names_and_bytes(found, folder)
    if before is None or _digest_of(files) == before["fingerprint"]:
        return found, files
    as_before = walk_of_before(folder)
    files_before = _names_and_bytes(as_before, folder)
    return (as_before, files_before) if _digest_of(files_before) == before["fingerprint"] else (found, files)


def _looked_at(found: Found, ground: Ground | None, workers: int) -> tuple[dict[Path, "_Look"], dict[Path, str]]:
    """Decode every file as batches will. Return mode and size of each, and why others cannot be decoded."""

    def look(path: Path) -> _Look | str:
        try:
            image = decode(path, ground=ground)
        except Exception as error:  # Pillow's decoders raise many kinds
            return "the file is empty" if found.sizes[path] == 0 else reason(error)
        return _Look(image.mode, image.size)

    paths = [path for path in found.sizes if path not in found.unreadable]
    with ThreadPoolExecutor(workers) as pool:
        seen = dict(zip(paths, pool.map(look, paths), strict=True))
    broken = found.unreadable | {path: why for path, why in seen.items() if isinstance(why, str)}
    return {path: look for path, look in seen.items() if isinstance(look, _Look)}, broken


class _Look(NamedTuple):
    mode: str
    size: tuple[int, int]


def _numbered(names: set[str], readable: Iterable[str], before: Mapping[str, Any] | None, name: str) -> tuple[str, ...]:
    """Return the names of the classes in the order of their numbers. A resumed run keeps its numbers."""
    if before is None:
        return tuple(by_value(names))
    new = by_value({*readable} - {*before["classes"]})
    check(not new, f"{name} has classes that the run has not: {some(new, _CAP)}. Move their folders elsewhere.")
    return tuple(before["classes"])


def _array(data: str, path: Path, name: str, class_conditional: bool, before: Mapping[str, Any] | None) -> Source:
    if data == "digits":
        from sklearn.datasets import load_digits

        digits: Any = load_digits()  # a Bunch, as return_X_y is False
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        labels, classes = checked_labels(digits.target, None, len(images), name) if class_conditional else (None, ())
    elif not path.is_file():
        raise FileNotFoundError(f"{name}: there is no such folder or file (and it is not `digits`).")
    else:
        images, labels, classes = open_arrays(path, name, class_conditional)
    if before is not None and len(before["classes"]) == len(classes):
        classes = tuple(before["classes"])  # the numbers are the labels' own
    return array_source(images, name, labels, classes)


def _converted(source: Source, channels: int | None, name: str) -> Source:
    if channels is None:
        return source
    check(source.found in MODES, f"{name} has {source.found} channels, not grey nor RGB: leave `image_channels` out.")
    return dataclasses.replace(source, channels=channels, asked=True)


def _made_alike(source: Source, like: Source, name: str) -> Source:
    """Give held-out data the training data's numbers of classes, and its channels."""
    unknown = sorted({*source.classes} - {*like.classes})
    check(not unknown, f"{name} has classes that `data` has not: {unknown}. Their names must be the same.")
    alike = source.channels == like.channels or source.files
    counts = f"{source.channels} channels, `data` {like.channels}"
    check(alike, f"{name} has {counts}: bring both to 1 or 3 by `image_channels`.")
    labels = source.labels
    if labels is not None:
        labels = np.array([like.classes.index(name) for name in source.classes])[labels]
    return dataclasses.replace(source, labels=labels, classes=like.classes, channels=like.channels)


def _names_and_bytes(found: Found, folder: Path) -> dict[str, int | None]:
    return {path.relative_to(folder).as_posix(): size for path, size in found.sizes.items()}


def _digest_of(files: Mapping[str, int | None]) -> str:
    lines = "\n".join(f"{name} {size}" for name, size in files.items())
    return _digest(lines.encode("utf-8", "surrogateescape"))


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def _reasons(broken: Mapping[Path, str], most: int) -> str:
    return some([f"{shown(path)} ({why})" for path, why in broken.items()], most)


def _in_words(left_out: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{len(names)} {why} ({some(names, 2)})" for why, names in left_out.items())
