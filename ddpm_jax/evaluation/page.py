"""The report as one self-contained web page: tables, pictures inside it, nothing from a network."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ddpm_jax import pixels, plotting
from ddpm_jax.images.picture import resized
from ddpm_jax.images.source import Source

_SHOWN = 36  # images of a set
_SIDE = 96  # pixels that an image of a set has at most on the page
_METRICS = {
    "fid": ("FID", "lower is better"),
    "kid": ("KID", "lower is better"),
    "inception_score": ("Inception score", "higher is better"),
    "precision": ("Precision", "higher is better"),
    "recall": ("Recall", "higher is better"),
    "density": ("Density", "higher is better"),
    "coverage": ("Coverage", "higher is better"),
    "energy_distance": ("Energy distance", "lower is better"),
    "precision_recall": ("Precision and recall", ""),
    "density_coverage": ("Density and coverage", ""),
}
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #5b6470; --line: #d8dde3; --page: #fff; --card: #f5f7f9;
  --accent: #0b62c4; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --faint: #9aa4b0; --line: #333a43; --page: #14171b;
  --card: #1c2026; --accent: #6db1ff; --warn: #e8b64c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
p { margin: .5rem 0; }
.faint, figcaption { color: var(--faint); font-size: .875rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
table.pairs { table-layout: fixed; }
table.pairs th { width: 35%; font-weight: 400; color: var(--faint); }
table.numbers { overflow-wrap: normal; }
table.numbers td { text-align: right; padding-right: 0; padding-left: .75rem; }
table.numbers thead th + th { text-align: right; padding-right: 0; padding-left: .75rem; }
table.numbers small { display: block; color: var(--faint); font-weight: 400; font-size: .8rem; }
.value { font-weight: 600; color: var(--accent); }
ul { padding-left: 1.2rem; }
ul.warnings { list-style: none; padding: .75rem 1rem; background: var(--card); border-left: 4px solid var(--warn); }
ul.warnings li + li { margin-top: .5rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; }
figure img { width: 100%; height: auto; image-rendering: pixelated; border-radius: 4px; display: block; }
svg { display: block; width: 100%; max-width: 40rem; height: auto; margin-top: 1rem; }
"""


def pictures(images: Source, reference: Source | None, resolution: int | None) -> dict[str, bytes]:
    """Return grids of both sets as PNGs: of each some images, evenly spaced in its order.

    Args:
        images: the set.
        reference: the real images; None where there are statistics alone.
        resolution: side of the images; None brings them to that of the smallest one.

    Example:
        >>> from ddpm_jax.images.source import array_source
        >>> made = pictures(array_source(np.zeros((3, 8, 8, 1), np.uint8), "mine"), None, None)
        >>> {name: png[1:4] for name, png in made.items()}
        {'images': b'PNG'}
    """
    sides = {"images": images, "reference": reference}
    return {name: _png(_grid(source, resolution)) for name, source in sides.items() if source is not None}


def html(report: Mapping[str, Any], pngs: Mapping[str, bytes]) -> str:
    """Return the page of a report.

    Args:
        report: its parts.
        pngs: of `pictures`.

    Example:
        >>> from ddpm_jax.evaluation.evaluating import evaluate
        >>> import tempfile
        >>> html(evaluate("digits", "digits", tempfile.mkdtemp(), num_resamples=0), {})[:15]
        '<!doctype html>'
    """
    protocol, results = report["protocol"], report["results"]
    subject = protocol["drawn"]["model"] if protocol["drawn"] else protocol["images"]
    sections = [
        f"<h1>{_text(subject)}</h1>",
        f'<p class="faint">{_text(protocol["num_images"])} images against {_text(_count(protocol["num_reference"]))} '
        f"of {_text(protocol['reference'])}, by {_text(protocol['features'])}</p>",
        _warnings(results["warnings"]),
        "<h2>Metrics</h2>",
        _metrics(results["metrics"], report["settings"]["level"]),
        _not_computed(results["not_computed"]),
        _likelihood(results["likelihood"]),
        _images(pngs),
        "<h2>Protocol</h2>",
        _pairs(_protocol(protocol)),
        "<h2>Inputs and results</h2>",
        _pairs({**report["inputs"], **_hashes(results)}),
        "<h2>Versions and hardware</h2>",
        _pairs(report["environment"]["versions"] | report["environment"]["hardware"]),
        "<h2>Time</h2>",
        _pairs({stage: f"{seconds:.1f} s" for stage, seconds in report["seconds"].items()}),
        '<p class="faint">Repeat it: ddpm-jax evaluate --verify report.json</p>',
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Evaluation of {_text(subject)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body>\n</html>\n"
    )


def _metrics(found: Mapping[str, Mapping[str, Any]], level: float) -> str:
    rows = []
    for name, (title, better) in _METRICS.items():
        if name not in found:
            continue
        score = found[name]
        ends = [_number(score[end]) for end in ("low", "high") if score[end] is not None]
        of_real = "none" if score["real"] is None else _number(score["real"])
        rows.append(
            f"<tr><th scope='row'>{_text(title)}{_small(better)}</th>"
            f'<td class="value">{_number(score["value"])}{_small(" to ".join(ends))}</td>'
            f"<td>{of_real}{_small(_counts_of_real(score))}</td></tr>"
        )
    intervals = any(score["low"] is not None for score in found.values())
    between = f"{100 * level:g}% interval" if intervals else ""
    return (
        "<table class='numbers'><thead><tr><th scope='col'>Metric</th>"
        f"<th scope='col'>Value{_small(between)}</th><th scope='col'>Real images</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
        '<p class="faint">Real images: what they have themselves, and a perfect model would: as many as are evaluated, '
        "or half of the reference, against its other images; of the inception score, that of the whole reference. "
        "Values depend on the number of images: compare only those of equally many.</p>"
    )


def _likelihood(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    names = {
        "bits_per_dim": "Variational bound",
        "rate": "Rate, its L_1 and up",
        "distortion": "Distortion, its L_0",
        "prior": "Prior, its L_T",
        "flow": "Probability flow",
    }
    rows = []
    for name, title in names.items():
        if name in found:
            mean, error = found[name]["value"], found[name]["standard_error"]
            around = "" if error is None else f" &plusmn; {error:.2g}"
            rows.append(f"<tr><th scope='row'>{_text(title)}</th><td>{_number(mean)}{around}</td></tr>")
    return (
        f"<h2>Likelihood of {_text(found['count'])} real images</h2><table class='numbers'><thead>"
        f"<tr><th scope='col'>Bits/dim</th><th scope='col'>Mean{_small('and its standard error')}</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>{_curve(found['terms'][1:])}"
    )


def _curve(terms: Sequence[float]) -> str:
    """Draw the terms of the bound above 0 over their timesteps, in a logarithmic scale, as SVG."""
    values = np.log10(np.maximum(np.asarray(terms), 1e-12))
    if len(values) < 2:
        return ""
    low, high = np.floor(values.min()), np.ceil(values.max() + 1e-9)
    left, right, top, bottom = 44, 410, 10, 180
    x = np.linspace(left, right, len(values))
    y = bottom - (values - low) / max(high - low, 1) * (bottom - top)
    points = " ".join(f"{one:.1f},{other:.1f}" for one, other in zip(x, y, strict=True))
    lines = []
    for power in range(int(low), int(high) + 1):
        height = bottom - (power - low) / max(high - low, 1) * (bottom - top)
        lines.append(
            f'<line x1="{left}" x2="{right}" y1="{height:.1f}" y2="{height:.1f}" stroke="var(--line)"/>'
            f'<text x="{left - 8}" y="{height + 4:.1f}" text-anchor="end">1e{power}</text>'
        )
    return (
        '<figure><svg viewBox="0 0 420 205" role="img" aria-label="Terms of the bound over timesteps" font-size="12" '
        f'fill="var(--faint)">{"".join(lines)}<polyline points="{points}" fill="none" stroke="var(--accent)" '
        f'stroke-width="1.5"/><text x="{left}" y="{bottom + 18}">t = 1</text>'
        f'<text x="{right}" y="{bottom + 18}" text-anchor="end">t = {len(terms)}</text></svg>'
        "<figcaption>Terms L_t of the bound in bits/dim, mean over the images; t = 0 is the least noise.</figcaption>"
        "</figure>"
    )


def _not_computed(reasons: Mapping[str, str]) -> str:
    items = [f"<li>{_text(_METRICS[name][0])}: {_text(reason)}.</li>" for name, reason in reasons.items()]
    return f"<p>Not computed:</p><ul>{''.join(items)}</ul>" if items else ""


def _warnings(words: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(warning)}</li>" for warning in words)
    return f'<ul class="warnings">{items}</ul>' if items else ""


def _images(pngs: Mapping[str, bytes]) -> str:
    titles = {"images": "Evaluated images", "reference": "Real images"}
    figures = [
        f'<figure><img alt="{_text(titles[name])}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{_text(titles[name])}, evenly spaced in their order</figcaption></figure>"
        for name, png in pngs.items()
    ]
    return f'<h2>Images</h2><div class="pictures">{"".join(figures)}</div>' if figures else ""


def _protocol(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return the protocol flat, with the words of a reader."""
    drawn = protocol["drawn"] or {}
    rest = {name: value for name, value in protocol.items() if name != "drawn"}
    for name in ("sizes", "sizes_of_reference"):
        sizes = [f"{width} x {height}" for width, height in rest[name] or []]
        rest[name] = " to ".join(dict.fromkeys(sizes)) or None
    return {**drawn, **rest}


def _hashes(results: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name} of {side}": results[side].get(name) for side in ("images", "reference") for name in ("features",)}


def _pairs(items: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><th scope='row'>{_text(name.replace('_', ' '))}</th><td>{_text(value)}</td></tr>"
        for name, value in items.items()
        if value is not None
    ]
    return f'<table class="pairs"><tbody>{"".join(rows)}</tbody></table>'


def _counts_of_real(score: Mapping[str, Any]) -> str:
    against = f" against {score['num_against']}" if score["num_against"] else ""
    return f"{score['num_real']} images{against}" if score["num_real"] else ""


def _number(value: float | None) -> str:
    """Write a number with the digits that a reader can use; report.json has them all."""
    return "" if value is None else f"{value:.5g}"


def _small(text: Any) -> str:
    return f"<small>{_text(text)}</small>" if text else ""


def _count(count: int | None) -> str:
    return "statistics" if count is None else str(count)


def _text(value: Any) -> str:
    return escape(str(value))


def _grid(source: Source, resolution: int | None) -> np.ndarray:
    """Return some images of a source in rows, each as large as the page shows it."""
    side = resolution or min(min(size) for size in source.sizes)
    chosen = np.unique(np.linspace(0, len(source) - 1, min(_SHOWN, len(source))).astype(int))
    tiles = [pixels.pixels_of(resized(source.image(int(index), side), min(side, _SIDE))) for index in chosen]
    return plotting.grid(np.stack(tiles) / np.float32(255))


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    pixels.picture(picture).save(file, "PNG", optimize=True)
    return file.getvalue()
