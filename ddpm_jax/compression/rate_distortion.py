"""Progressive lossy compression (Ho et al. 2020, section 4.3): what each step of the reverse process costs and shows.

A sender who has sent x_T, ..., x_t has spent L_T + sum_{r > t} L_r bits, and the receiver's estimate is x_0_hat(x_t).
The last term, L_0, is what the exact image costs on top: the distortion in bits. No file is written; the bits are those
of an ideal code.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, cast

import numpy as np
from jax.sharding import Mesh

from ddpm_jax import likelihood, pixels, plotting
from ddpm_jax.compression.image_codecs import CodecPoint
from ddpm_jax.images.arrays import checked_images
from ddpm_jax.likelihood import Bound
from ddpm_jax.likelihood.bound import Decoder, VarianceType, bounds_of
from ddpm_jax.params import Params
from ddpm_jax.types import Array, Frames, Labels, Number, RandomKey
from ddpm_jax.validation import as_integer, as_positive, check

_TO_BYTES = 127.5  # from [-1, 1] to 0 .. 255


class Average(NamedTuple):
    """A mean over images, which another one of other images can be merged into.

    Attributes:
        count: images.
        mean: of any shape.
        squares: sum of the squared distances from it.
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, values: Array) -> "Average":
        """Return the mean over the first axis, in float64."""
        values = np.asarray(values, np.float64)
        mean = np.asarray(values.mean(0))
        return cls(len(values), mean, np.asarray(((values - mean) ** 2).sum(0)))

    @property
    def standard_error(self) -> np.ndarray:
        """The error of the mean; NaN for a single image."""
        if self.count < 2:
            return np.full_like(self.mean, np.nan)
        return np.asarray(np.sqrt(self.squares / (self.count - 1) / self.count))

    def merged(self, other: "Average") -> "Average":
        """Return the mean over the images of both (Chan et al. 1979).

        Example:
            >>> Average.of(np.array([1.0, 2.0])).merged(Average.of(np.array([6.0]))).mean.item()
            3.0
        """
        count = self.count + other.count
        away = other.mean - self.mean
        squares = self.squares + other.squares + away**2 * self.count * other.count / count
        return Average(count, np.asarray(self.mean + away * other.count / count), np.asarray(squares))


class RateDistortion(NamedTuple):
    """The rate-distortion curve of a model on a set of images.

    Attributes:
        t: [T] falling timesteps; after T - t steps the receiver holds x_t.
        rate: [T] bits/dim sent by then.
        rmse: [T] mean over images of the root mean square error of x_0_hat, on 0 .. 255.
        mse: [T] mean square error of x_0_hat, on 0 .. 255.
        distortion: bits/dim of L_0, which make the image exact.
        total: bits/dim of the bound: the last rate and `distortion`.
    """

    t: np.ndarray
    rate: Average
    rmse: Average
    mse: Average
    distortion: Average
    total: Average

    @property
    def steps(self) -> np.ndarray:
        """Steps of the reverse process that are done, 1 .. T."""
        return len(self.t) - self.t

    @property
    def psnr(self) -> np.ndarray:
        """The signal-to-noise ratio of `mse` in dB."""
        return 20 * np.log10(255 / np.sqrt(self.mse.mean))

    def at_steps(self, steps: Sequence[int] | None = None) -> list[dict[str, Number]]:
        """Return rows of Ho et al.'s table 4: steps, rate and RMSE with their standard errors, PSNR.

        Args:
            steps: numbers from 1 to T; None for ten of them, evenly spread, the last first.
        """
        count = len(self.t)
        chosen = np.linspace(count, 0, 10, endpoint=False).round().astype(int) if steps is None else np.asarray(steps)
        check(
            chosen.ndim == 1 and chosen.min() >= 1 and chosen.max() <= count,
            f"`steps` must be numbers from 1 to {count}, not {steps!r}.",
        )
        columns = {
            "steps": self.steps,
            "rate": self.rate.mean,
            "rate_error": self.rate.standard_error,
            "rmse": self.rmse.mean,
            "rmse_error": self.rmse.standard_error,
            "psnr": self.psnr,
        }
        return [{name: column[number - 1].item() for name, column in columns.items()} for number in chosen]

    def rmse_at(self, bits_per_dim: Number | Array) -> float:
        """Return the RMSE at a number of bits/dim, linear between steps; 0 from the bound on, which is lossless."""
        if bits_per_dim >= self.total.mean:
            return 0.0
        return float(np.interp(bits_per_dim, self.rate.mean, self.rmse.mean))

    def beside(self, points: Iterable[CodecPoint]) -> list[dict[str, Any]]:
        """Return the model's RMSE beside that of other codecs, at the bits/dim of their whole files and payloads."""
        return [
            {
                "codec": point.codec,
                "quality": point.quality,
                "bits_per_dim": point.bits_per_dim,
                "payload_bits_per_dim": point.payload_bits_per_dim,
                "rmse": point.rmse,
                "model_rmse": self.rmse_at(point.bits_per_dim),
                "model_rmse_at_payload": self.rmse_at(point.payload_bits_per_dim),
            }
            for point in points
        ]

    def merged(self, other: "RateDistortion") -> "RateDistortion":
        """Return the curve over the images of both, which must be different ones.

        Raises:
            ValueError: curves of different schedules.
        """
        check(
            np.array_equal(self.t, other.t),
            f"The curves have {len(self.t)} and {len(other.t)} timesteps. Merge those of one checkpoint.",
        )
        return RateDistortion(self.t, *(mine.merged(its) for mine, its in zip(self[1:], other[1:], strict=True)))

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        averages = {name: getattr(self, name) for name in self._fields[1:]}
        columns = {
            name: {"mean": average.mean.tolist(), "squares": average.squares.tolist()}
            for name, average in averages.items()
        }
        return {"num_images": self.total.count, "t": self.t.tolist(), **columns}

    @classmethod
    def from_json(cls, items: Mapping[str, Any]) -> "RateDistortion":
        """Return a curve that `as_json` wrote."""
        count = items["num_images"]
        averages = [
            Average(count, np.asarray(items[name]["mean"]), np.asarray(items[name]["squares"]))
            for name in cls._fields[1:]
        ]
        return cls(np.asarray(items["t"]), *averages)


class Decoding(NamedTuple):
    """Images as a receiver sees them appear.

    Attributes:
        x_0_hat: [frames, b, h, w, c] in [0, 1]; for `plotting.strip` and `plotting.gif`.
        t: [frames] falling timesteps.
        rate: [frames, b] bits/dim received.
        rmse: [frames, b] on 0 .. 255.
    """

    x_0_hat: Frames
    t: np.ndarray
    rate: np.ndarray
    rmse: np.ndarray

    def strip(self) -> np.ndarray:
        """Return a picture of one row for each image, the frames from left to right, with their bits/dim below."""
        frames = np.asarray(self.x_0_hat)
        count, batch = frames.shape[:2]
        tiles = frames.swapaxes(0, 1).reshape(batch * count, *frames.shape[2:])
        captions = [f"{rate:.2f}" if rate >= 0.1 else f"{rate:.3f}" for rate in self.rate.T.ravel()]
        return plotting.grid(tiles, columns=count, captions=captions)


def rate_distortion(
    params: Params,
    key: RandomKey,
    images: np.ndarray,
    class_labels: Labels = None,
    *,
    batch_size: SupportsIndex = 32,
    variance_type: VarianceType | None = None,
    clip: Number | None = 1.0,
    decoder: Decoder = "tanh",
    first_index: SupportsIndex = 0,
    mesh: Mesh | None = None,
    on_batch: Callable[[int, "RateDistortion"], None] | None = None,
) -> RateDistortion:
    """Return the rate-distortion curve of images under a model.

    Image i uses the noise of (key, first_index + i) alone, so a set may be split: the curves of its parts, `merged`,
    are that of the set.

    Args:
        params, key, class_labels, variance_type, clip, decoder, first_index, mesh: as in `bits_per_dim`.
        images: uint8 [n, h, w, c], of the network's size.
        batch_size: images that go through the network together.
        on_batch: called after each batch with (images done, the curve so far).

    Raises:
        TypeError, ValueError: as `bits_per_dim`; images that are no bytes.

    Example:
        >>> curve = rate_distortion(params, key, np.zeros((3, 8, 8, 1), np.uint8), batch_size=2)
        >>> bool(np.isclose(curve.rate.mean[-1] + curve.distortion.mean, curve.total.mean))
        True
    """
    batch_size, first_index = as_positive("batch_size", batch_size), as_integer("first_index", first_index)
    images = checked_images(images, "`images`")
    check(len(images) > 0, "`images` is empty. Give at least one image.")
    curve: RateDistortion | None = None
    bounds = bounds_of(
        *(params, key, images, class_labels),
        batch_size=batch_size,
        first_index=first_index,
        variance_type=variance_type,
        clip=clip,
        decoder=decoder,
        mesh=mesh,
    )
    for bound in bounds:
        found = _curve(bound)
        curve = found if curve is None else curve.merged(found)
        if on_batch is not None:
            on_batch(curve.total.count, curve)
    return cast(RateDistortion, curve)  # there is a first batch


def decode_progressively(
    params: Params,
    key: RandomKey,
    images: np.ndarray,
    class_labels: Labels = None,
    *,
    timesteps: Sequence[int] | None = None,
    variance_type: VarianceType | None = None,
    clip: Number | None = 1.0,
    first_index: SupportsIndex = 0,
    mesh: Mesh | None = None,
) -> Decoding:
    """Send images along one path of the reverse process, and keep what the receiver sees (Ho et al. 2020, algorithm 4).

    Args:
        params, key, class_labels, variance_type, clip, first_index, mesh: as in `bits_per_dim`.
        images: uint8 [b, h, w, c], of the network's size.
        timesteps: falling integers at which x_0_hat is kept; None for ten, denser towards 0, where most bits are sent.

    Raises:
        TypeError, ValueError: as `bits_per_dim`; timesteps that do not fall.

    Example:
        >>> images = np.zeros((2, 8, 8, 1), np.uint8)
        >>> seen = decode_progressively(params, key, images, timesteps=(5, 3, 0))  # doctest: +SKIP
        >>> path = plotting.gif(seen.x_0_hat, "decoding.gif")  # doctest: +SKIP
        >>> seen.rate.shape  # doctest: +SKIP
        (3, 2)
    """
    x_0 = pixels.data_from_bytes(checked_images(images, "`images`"), (-1, 1))
    sent = likelihood.transmit(
        *(params, key, x_0, class_labels),
        timesteps=timesteps,
        variance_type=variance_type,
        clip=clip,
        first_index=first_index,
        mesh=mesh,
    )
    rates = _rates(sent.bound)[:, ::-1]  # from timestep 0 up
    rmse = _TO_BYTES * np.sqrt(np.asarray(sent.bound.mse, np.float64))
    return Decoding(sent.x_0_hat, sent.t, rates[:, sent.t].T, rmse[:, sent.t].T)


def draw_curves(curve: RateDistortion, path: str | Path, points: Iterable[CodecPoint] = ()) -> Path:
    """Draw figure 5 of Ho et al. 2020: distortion and rate over the steps, and distortion over rate; needs matplotlib.

    Args:
        curve: of `rate_distortion`.
        path: the PNG to write.
        points: of `codec_curve`; each codec is two lines in the third panel, with its headers and without.

    Example:
        >>> draw_curves(curve, "curve.png", codec_curve(images, "webp"))  # doctest: +SKIP
    """
    steps, rate, rmse = curve.steps.tolist(), curve.rate.mean.tolist(), curve.rmse.mean.tolist()
    over_rate = {"the model": list(zip(rate, rmse, strict=True))}
    points = [point for point in points if point.rmse > 0]
    for codec in dict.fromkeys(point.codec for point in points):
        mine = [point for point in points if point.codec == codec]
        over_rate[codec] = [(point.bits_per_dim, point.rmse) for point in mine]
        over_rate[f"{codec}, without headers"] = [(point.payload_bits_per_dim, point.rmse) for point in mine]
    error, bits = "RMSE, 0 to 255", "rate, bits/dim"
    return plotting.panels(
        [
            plotting.Panel({"the model": list(zip(steps, rmse, strict=True))}, "steps of the reverse process", error),
            plotting.Panel({"the model": list(zip(steps, rate, strict=True))}, "steps of the reverse process", bits),
            plotting.Panel(over_rate, bits, error),
        ],
        Path(path),
    )


def _rates(bound: Bound) -> np.ndarray:
    """Return the bits/dim sent when the receiver holds x_t, [b, T], from t = T - 1 down to 0."""
    sent = np.asarray(bound.terms, np.float64)[:, :0:-1]  # L_t of t = T - 1 down to 1
    prior = np.asarray(bound.prior, np.float64)[:, None]
    return np.cumsum(np.concatenate([prior, sent], axis=1), axis=1)


def _curve(bound: Bound) -> RateDistortion:
    count = bound.terms.shape[1]
    mse = _TO_BYTES**2 * np.asarray(bound.mse, np.float64)[:, ::-1]
    columns = (_rates(bound), np.sqrt(mse), mse, bound.terms[:, 0], bound.total)
    return RateDistortion(np.arange(count)[::-1], *map(Average.of, columns))
