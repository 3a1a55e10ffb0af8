"""Repeat an evaluation from its record alone, and say what differs."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_jax.evaluation.evaluating import Watch, run, unwatched
from ddpm_jax.evaluation.features import Extractor
from ddpm_jax.evaluation.job import Job
from ddpm_jax.evaluation.report import environment, read_report
from ddpm_jax.evaluation.subjects import drawn_from
from ddpm_jax.validation import check


@dataclasses.dataclass(frozen=True)
class Verification:
    """What a repetition found.

    Attributes:
        differences: of inputs and results, empty where all is equal to the last digit: "fid value 3.1 there, 3.2 here".
        environment: of versions and hardware, which explain small differences of results.
        repeated: whether the evaluation was repeated: it is not where the inputs differ.
        num_results: numbers, hashes and texts that were compared.
    """

    differences: tuple[str, ...]
    environment: tuple[str, ...]
    repeated: bool
    num_results: int


def verify(path: str | Path, *, extractor: Extractor | None = None, watch: Watch = unwatched) -> Verification:
    """Repeat an evaluation from its report, in a folder beside it that is removed again.

    Weights, images and statistics are opened where the report says, and their hashes compared first. On the machine and
    the versions of the report its results are reproduced to the last digit.

    Args:
        path: report.json, or its folder.
        extractor: the one of the evaluation, if it was given as a function: a report holds only its name.
        watch: as in `evaluate`.

    Raises:
        FileNotFoundError: there is no such report, or what it was made from is gone.
        ValueError: it is no report; it was made from weights in memory, by a sampler of another package, or by an
            extractor without a name of this package.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> from ddpm_jax.evaluation.evaluating import evaluate
        >>> report = evaluate("digits", "digits", folder, num_resamples=0)
        >>> verify(folder).differences
        ()
    """
    path = Path(path).expanduser()
    report = read_report(path)
    job = _job(report["settings"], extractor)
    surroundings = _differences(report["environment"], environment())
    changed = _differences(report["inputs"], job.inputs())
    if changed:
        return Verification(tuple(changed), tuple(surroundings), False, len(report["inputs"]))
    beside = path if path.is_dir() else path.absolute().parent
    with tempfile.TemporaryDirectory(prefix=".verify-", dir=beside) as folder:
        again = run(job, Path(folder) / "again", watch=watch)
    results = {} if again is None else again["results"]
    changed = _differences(report["results"], results)
    changed += _differences({"protocol": report["protocol"]}, {"protocol": (again or {}).get("protocol")})
    return Verification(tuple(changed), tuple(surroundings), True, len(_flat(results)))


def _job(settings: Mapping[str, Any], extractor: Extractor | None) -> Job:
    """Open what the arguments name that a report holds."""
    features = settings.get("features")
    check(
        features is not None or extractor is not None,
        "The features of this report were made by a function, of which it holds only the name. Give it as `extractor`.",
    )
    check(
        features is None or extractor is None,
        f"`extractor` is given, but the report names its own, {features!r}. Leave it out.",
    )
    try:
        images = settings["images"]
        images = images if isinstance(images, str) else drawn_from(images)
        arguments: dict[str, Any] = {**settings, "images": images, "features": extractor or features}
        return Job(**arguments)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"`settings` of the report are not those that `evaluate` writes ({error}): it was changed by hand. "
            "Evaluate again."
        ) from error


def _differences(there: Any, here: Any) -> list[str]:
    """Name every leaf of two JSON values that differs."""
    one, other = _flat(there), _flat(here)
    return [
        f"{name} {one.get(name)!r} there, {other.get(name)!r} here"
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of a JSON value by their place: "metrics fid value"."""
    if isinstance(value, Mapping) and value:
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and value:
        items = [(str(place), item) for place, item in enumerate(value)]
    else:
        return {name: value if not isinstance(value, tuple) else list(value)}
    return {leaf: found for key, item in items for leaf, found in _flat(item, f"{name} {key}".strip()).items()}
