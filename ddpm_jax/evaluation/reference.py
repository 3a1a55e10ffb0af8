"""Features of a set of images with their statistics, written to an .npz and read from it, also from those of others.

The keys are those of pytorch-fid, clean-fid and EDM's tools: `mu` [d] and `sigma` [d, d], float64. `feats` [n, d] holds
kept features under the name of clean-fid's KID. How the file was made stands in `note`, a JSON text.
"""

import dataclasses
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.evaluation.moments import Statistics, check_features
from ddpm_jax.files import check_local, whole_file
from ddpm_jax.validation import check

FORMAT_VERSION = 1
_FEATURES = ("feats", "pool_3")  # clean-fid's KID files and ours; score_sde's
_ASYMMETRY = 1e-4  # of the largest entry: float32 sums of other programs differ by less


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSet:
    """The features of a set of images, and how they were made.

    Attributes:
        statistics: their mean and covariance.
        protocol: the `name` of the extractor. Only sets of equal protocols may be compared.
        features: np.float32 [n, d], or None where the statistics alone were kept.
        logits: np.float32 [n, classes], or None.
        note: how the set was made, as JSON holds it: "source" (what was opened), "fingerprint" (a hash of the names and
            sizes of its files), "num_images", "channels", "background" (colour below transparent pixels),
            "sizes" ([width, height] of the smallest and of the largest image, after the crop), "resolution",
            "versions". Empty for files of others.
    """

    statistics: Statistics
    protocol: str
    features: np.ndarray | None = None
    logits: np.ndarray | None = None
    note: dict[str, Any] = dataclasses.field(default_factory=dict)


def check_comparable(real: FeatureSet, fake: FeatureSet) -> None:
    """Refuse two sets whose features were made in different ways.

    Raises:
        ValueError: their protocols differ.

    Warns:
        UserWarning: their images have different sizes.

    Example:
        >>> standard = Statistics(mean=np.zeros(2), covariance=np.eye(2))
        >>> check_comparable(FeatureSet(standard, "pixels"), FeatureSet(standard, "mine"))
        Traceback (most recent call last):
        ValueError: `real` has features by 'pixels' and `fake` by 'mine': their distance would mean nothing. Make both by one extractor.
    """  # noqa: E501
    check(
        real.protocol == fake.protocol,
        f"`real` has features by {real.protocol!r} and `fake` by {fake.protocol!r}: their distance would mean nothing. "
        "Make both by one extractor.",
    )
    sizes = [features.note.get("sizes") for features in (real, fake)]
    if None not in sizes and sizes[0] != sizes[1]:
        warnings.warn(
            f"`real` has images of {_in_words(sizes[0])} pixels and `fake` of {_in_words(sizes[1])}: their sharpness "
            "alone sets them apart. Bring both to one `resolution` when features are taken.",
            stacklevel=2,
        )


def write_statistics(
    path: str | Path, features: FeatureSet, *, keep_features: bool = False, overwrite: bool = False
) -> Path:
    """Write statistics to an .npz that pytorch-fid, clean-fid and EDM's tools read too.

    The file appears when it is complete. Nothing remains of one whose writing was interrupted.

    Args:
        path: the file; its name ends in .npz.
        features: what is written.
        keep_features: also write features and logits, which KID, precision and recall need.
        overwrite: replace an existing file.

    Returns:
        The path.

    Raises:
        FileExistsError: the file exists.
        ValueError: another suffix; there are no features to keep.

    Example:
        >>> import tempfile
        >>> made = FeatureSet(Statistics.of(np.eye(3)), "pixels", note={"num_images": 3})
        >>> path = write_statistics(Path(tempfile.mkdtemp()) / "eye.npz", made)
        >>> np.load(path)["sigma"].shape, read_statistics(path).statistics.count
        ((3, 3), 3)
    """
    path = check_new_file(path, overwrite=overwrite)
    kept = {"feats": features.features, "logits": features.logits} if keep_features else {}
    check(
        not keep_features or features.features is not None,
        "`keep_features` is True, but the set holds statistics alone. Gather it with `keep`, or leave it out.",
    )
    statistics = features.statistics
    note = {**features.note, "protocol": features.protocol, "num_images": statistics.count}
    arrays = {
        "mu": statistics.mean,
        "sigma": statistics.covariance,
        "note": np.array(json.dumps({"format_version": FORMAT_VERSION, **note}, sort_keys=True)),
        **{name: array for name, array in kept.items() if array is not None},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]  no array is called allow_pickle
    return path


def check_new_file(path: str | Path, *, overwrite: bool) -> Path:
    """Return the path of statistics that can be written.

    Raises:
        FileExistsError: the file exists.
        ValueError: its name does not end in .npz, or it is a URL.
    """
    check_local(path)
    path = Path(path).expanduser()
    check(path.suffix == ".npz", f"`path` {path} does not end in .npz, as statistics do. Name it {path.stem}.npz.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already. Choose another name, or overwrite it (`overwrite`).")
    return path


def read_statistics(path: str | Path, *, protocol: str | None = None) -> FeatureSet:
    """Read statistics from an .npz: ours, or those of pytorch-fid, clean-fid, EDM, guided-diffusion or score_sde.

    Others' files do not say how their features were made, and the FID of images that were resized in another way is
    another number. The caller must therefore say it.

    Args:
        path: the file, with `mu` and `sigma`, or with features `feats` or `pool_3`.
        protocol: the `name` of the extractor that made a file of others, such as "inception-2048/pytorch-fid". For
            files that note it, None will do; another one is refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds no statistics, or notes another protocol; nobody says its protocol.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "of_others.npz"
        >>> np.savez(path, mu=np.zeros(2), sigma=np.eye(2))
        >>> read_statistics(path, protocol="inception-64/pytorch-fid").statistics.dim
        2
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. `write_statistics` makes one.")
    wanted = ("note", "mu", "sigma", *_FEATURES, "logits")
    try:
        with np.load(path) as file:
            check(isinstance(file, np.lib.npyio.NpzFile), "one array")
            there = file.files
            arrays = {name: file[name] for name in wanted if name in there}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no .npz file of arrays, or damaged ({error}). Make it again.") from error
    note = _note_of(arrays, path)
    made_by = note.pop("protocol", None)
    check(
        made_by or protocol,
        f"{path} does not note how its features were made, so it comes from another program. Say so by `protocol`, the "
        "name of the extractor whose features they equal, such as 'inception-2048/pytorch-fid'.",
    )
    check(
        protocol is None or made_by in (None, protocol),
        f"{path} holds features by {made_by!r}, not by {protocol!r} as `protocol` says. Leave `protocol` out, or make "
        "the file again by that extractor.",
    )
    features = next((arrays[name] for name in _FEATURES if name in arrays), None)
    if features is not None:
        check_features(features, f"{path}: features")
    statistics = _statistics_of(arrays, features, note.get("num_images"), path, there)
    return FeatureSet(statistics, made_by or protocol or "", features, arrays.get("logits"), note)


def _note_of(arrays: dict[str, np.ndarray], path: Path) -> dict[str, Any]:
    """Return the note of our file without its version, or nothing."""
    if "note" not in arrays:
        return {}
    try:
        note = json.loads(str(arrays["note"]))
        version, _ = note.pop("format_version"), note["protocol"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} has a `note` that this package has not written ({error!r}); it must be a JSON object with "
            "`format_version` and `protocol`. Remove it, and say the `protocol` yourself."
        ) from error
    check(
        version == FORMAT_VERSION,
        f"{path} has the format {version}; this version reads {FORMAT_VERSION}. Install a newer ddpm_jax, or make the "
        "file again.",
    )
    return note


def _statistics_of(
    arrays: dict[str, np.ndarray], features: np.ndarray | None, count: int | None, path: Path, there: list[str]
) -> Statistics:
    if not {"mu", "sigma"} <= arrays.keys():
        if features is None:
            raise ValueError(
                f"{path} holds {', '.join(there) or 'nothing'}; statistics are `mu` and `sigma`, features `feats` or "
                "`pool_3`. Of images, make a file of statistics first."
            )
        return Statistics.of(features)
    mean, covariance = arrays["mu"], arrays["sigma"]
    numbers = mean.dtype.kind == covariance.dtype.kind == "f"
    check(numbers, f"{path}: `mu` is {mean.dtype} and `sigma` {covariance.dtype}; both must be floats. Make it again.")
    try:
        statistics = Statistics(mean, covariance, len(features) if features is not None else count)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    covariance = statistics.covariance
    apart, largest = np.abs(covariance - covariance.T).max(), np.abs(covariance).max()
    check(
        apart <= _ASYMMETRY * largest,
        f"{path}: `sigma` differs from its transpose by {apart:.3g}; a covariance is symmetric. It is damaged: make it "
        "again.",
    )
    dim = statistics.dim if features is None else features.shape[1]
    check(
        dim == statistics.dim,
        f"{path}: `mu` has {statistics.dim} features and `feats` {dim}; both must be of one extractor. Make it again.",
    )
    return statistics


def _in_words(sizes: list[list[int]] | None) -> str:
    """Write the smallest and the largest (width, height)."""
    texts = [f"{width} x {height}" for width, height in sizes or []]
    return " to ".join(dict.fromkeys(texts))
