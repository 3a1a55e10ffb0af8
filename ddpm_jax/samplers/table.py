"""A sampler's table: the numbers of a run, one row an evaluation of the network.

The state S of a run is a stack of k images. A row evaluates the network once, at in_scale S[0], and sets

    S'[i] = sum over j of mix[i, j] [S[0], .., S[k-1], x_0_hat, eps_hat, noise][j]

where x_0_hat = a S[0] + b out and eps_hat = c S[0] + d out, so that networks of any prediction type enter alike. All
numbers are data: another eta, grid or clip range runs the same compiled program. What is not linear is a `Switches`:
the transform of x_0_hat, noise scaled by the network's output, and Langevin steps whose length depends on norms.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from ddpm_jax.reverse import LEARNED
from ddpm_jax.types import Array, Number
from ddpm_jax.validation import as_integer, check


class Switches(NamedTuple):
    """What is static about a run: each combination is a program of its own.

    Attributes:
        num_images: k, the images in the state.
        transform: what x_0_hat goes through: "none", "clip" or "threshold".
        variance: the noise's scale: "fixed" by the table; "learned" (the second half of the output's channels is the
            variance) or "learned_range" (it interpolates the row's two log-variances).
        langevin: whether rows may be Langevin steps.
        scales_input: whether rows have an `in_scale`; otherwise it is 1.
        skips: whether rows may skip the network.
        draws: whether rows may draw noise.
    """

    num_images: int = 1
    transform: str = "none"
    variance: str = "fixed"
    langevin: bool = False
    scales_input: bool = False
    skips: bool = False
    draws: bool = True


class Rows(NamedTuple):
    """The numbers of a run as arrays of n rows; inside the loop, and in a hook, those of one row (without n)."""

    index: Array  # [n], numbers the noise draws
    t: Array  # [n], what the network is told: a timestep, or a noise level
    x_0_coefs: Array  # [n, 2], a and b
    eps_coefs: Array  # [n, 2], c and d
    mix: Array  # [n, k, k + 3]
    levels: Array  # [n, 2, 2], (signal, sigma) of S[0], which the row sees, and of S'[0], which it leads to
    ends_step: Array  # [n], whether the row ends a step of the grid
    evaluates: Array  # [n], whether the row evaluates the network
    in_scale: Array  # [n], what S[0] is multiplied with before the network sees it
    log_variance: Array  # [n, 2], the least and the greatest, for learned variances
    limits: Array  # [n, 2], (clip range, -) or (quantile, greatest limit)
    langevin: Array  # [n, 2], (signal-to-noise ratio of a Langevin step, or 0; sigma)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Table:
    """The float64 numbers of a sampler on a grid; see this module's head for what a row does.

    A pytree: a jitted function that takes a table as an argument runs others of the same shape without compiling.

    Attributes:
        t: [n] what the network is told in each row (c_noise of preconditioned networks).
        x_0_coefs, eps_coefs: [n, 2] coefficients of the state and of the network's output. (The first are c_skip and
            c_out.)
        mix: [n, k, k + 3] what the next state is made of.
        ends_step: [n] whether a row ends a step of the grid; samplers may evaluate several times a step.
        levels: [n, 2, 2] (signal, sigma) of the image S[0] = signal x_0 + sigma eps that the row sees, and of the one
            that it leads to.
        init_scale: what unit noise x_T is multiplied with to begin.
        clip: x_0_hat is clipped to [-clip, clip]; None leaves it alone.
        threshold: (quantile, greatest limit) of dynamic thresholding, per image; or None.
        variance: see `Switches`.
        log_variance: [n, 2] bounds for `variance="learned_range"`.
        langevin: [n, 2] (snr, sigma) of rows that are Langevin steps, snr being 0 in the others; or None.
        in_scale: [n] what the image is multiplied with before the network sees it (c_in); None is 1.
        evaluates: [n] whether a row evaluates the network. In one that does not, x_0_hat and eps_hat are 0: it mixes
            images and noise. None is every row.
        index: [n] the number of each row, by which it draws noise; None is 0 .. n-1.
        draws: whether rows may draw noise. Without, a program compiles faster; a table whose rows have no weight for
            noise need not say so.

    Raises:
        ValueError: arrays of shapes that do not go together, numbers that are not finite, or noise in a table that
            draws none.

    Example:
        >>> table = ddpm_jax.samplers.DDIM(num_steps=50).table(ScheduleConfig())
        >>> table.num_evals, table.mix.shape
        (50, (50, 1, 4))
    """

    t: np.ndarray
    x_0_coefs: np.ndarray
    eps_coefs: np.ndarray
    mix: np.ndarray
    ends_step: np.ndarray
    levels: np.ndarray
    init_scale: Number = 1.0
    clip: Number | None = None
    threshold: tuple[float, float] | None = None
    variance: str = "fixed"
    log_variance: np.ndarray | None = None
    langevin: np.ndarray | None = None
    in_scale: np.ndarray | None = None
    evaluates: np.ndarray | None = None
    index: np.ndarray | None = None
    draws: bool = True

    def __post_init__(self):
        shapes = self._shapes()
        if self.index is None:
            object.__setattr__(self, "index", np.arange(np.size(self.t)))
        for name, shape in shapes.items():
            if getattr(self, name) is not None:
                array = np.asarray(getattr(self, name))
                good = array.shape == shape
                check(
                    good, f"`{name}` has shape {array.shape}; beside `t` and `mix` it must be {shape}, one entry a row."
                )
                object.__setattr__(self, name, array)
        check(
            self.variance != "learned_range" or self.log_variance is not None,
            "`variance` 'learned_range' needs `log_variance`, the two bounds of each row.",
        )
        known = ("fixed", *LEARNED)
        check(self.variance in known, f"`variance` must be one of {list(known)}, not {self.variance!r}.")
        numbers = (self.x_0_coefs, self.eps_coefs, self.mix)
        if not all(np.all(np.isfinite(array)) for array in numbers):
            raise ValueError(
                "This grid visits a timestep at which the network's prediction says nothing about x_0 or eps (an "
                "epsilon network at zero terminal SNR), or is a grid of noise ratios that begins at an infinite one. "
                "Choose another `timestep_spacing` or `timesteps`; a v_prediction network can begin at zero SNR on "
                "leading, linspace, trailing and quadratic grids."
            )
        noise = self.variance != "fixed" or self.langevin is not None or np.any(np.asarray(self.mix)[..., -1])
        check(self.draws or not noise, "`draws` is False, but rows have weights for noise, or a learned variance.")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape that each array must have."""
        n, mix = np.size(self.t), np.shape(self.mix)
        check(
            len(mix) == 3 and mix[1] >= 1 and mix[2] == mix[1] + 3,
            f"`mix` has shape {mix}; it must be [n, k, k + 3]: for each of the k images of the next state the weights "
            "of the k images, x_0_hat, eps_hat and noise.",
        )
        numbers = dict.fromkeys(("t", "ends_step", "in_scale", "evaluates", "index"), (n,))
        pairs = dict.fromkeys(("x_0_coefs", "eps_coefs", "log_variance", "langevin"), (n, 2))
        return numbers | pairs | {"mix": (n, *mix[1:]), "levels": (n, 2, 2)}

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return np.size(self.t)

    @property
    def num_evals(self) -> int:
        """Evaluations of the network."""
        return self.num_rows if self.evaluates is None else int(np.sum(self.evaluates))

    @property
    def switches(self) -> Switches:
        """What is static about a run of this table."""
        transform = "none" if self.clip is None else "clip"
        transform = "threshold" if self.threshold is not None else transform
        return Switches(
            num_images=self.mix.shape[1],
            transform=transform,
            variance=self.variance,
            langevin=self.langevin is not None,
            scales_input=self.in_scale is not None,
            skips=self.evaluates is not None,
            draws=self.draws,
        )

    def part(self, start: int = 0, stop: int | None = None) -> "Table":
        """Return the rows from `start` up to `stop`; they keep their numbers, and so their noise.

        A part that begins later than the table takes the noisy image at `levels[0, 0]` itself, not unit noise: its
        `init_scale` is 1. `run` refuses parts that begin inside a multistep method, which looks back at images of rows
        before; `Sampler.table` with `timesteps` makes a table that begins there.

        Args:
            start: the first row.
            stop: the row after the last; None is the end.

        Raises:
            ValueError: no row is left.

        Example:
            >>> table = ddpm_jax.samplers.DDIM(num_steps=50).table(ScheduleConfig())
            >>> table.part(40).t[:2].tolist(), table.part(40).index[:2].tolist()
            ([180.0, 160.0], [40, 41])
        """
        begin, end, _ = slice(as_integer("start", start), stop).indices(self.num_rows)
        check(
            begin < end,
            f"Rows {start} up to {stop} of this table are none; it has the rows 0 .. {self.num_rows - 1}.",
        )
        arrays = {name: array[begin:end] for name, array in self._arrays().items()}
        return dataclasses.replace(self, init_scale=self.init_scale if begin == 0 else 1.0, **arrays)

    def padded(self, num_rows: int) -> "Table":
        """Return the table with rows added that change nothing and do not evaluate the network.

        Tables of one length share one compiled program.

        Args:
            num_rows: the length; at least this table's.

        Raises:
            ValueError: the table is longer.

        Example:
            >>> table = ddpm_jax.samplers.DDIM(num_steps=50).table(ScheduleConfig()).padded(64)
            >>> table.num_rows, table.num_evals
            (64, 50)
        """
        extra = as_integer("num_rows", num_rows) - self.num_rows
        check(extra >= 0, f"`num_rows` is {num_rows}; this table has {self.num_rows} rows already, and is not cut.")
        k = self.mix.shape[1]
        idle = {
            "mix": np.eye(k, k + 3),
            "ends_step": False,
            "levels": np.tile(self.levels[-1, 1], (2, 1)),
            "langevin": (0.0, 1.0),  # a step of length 0, at a sigma that can be divided by
            "in_scale": 1.0,
            "evaluates": False,
        }
        arrays = {"evaluates": np.ones(self.num_rows, bool)} | self._arrays()
        index = arrays["index"]
        for name, array in arrays.items():
            rows = np.tile(idle.get(name, array[-1]), (extra, *[1] * (array.ndim - 1)))
            arrays[name] = np.concatenate([array, rows.astype(array.dtype)])
        arrays["index"] = np.append(index, index[-1] + 1 + np.arange(extra)).astype(np.int32)
        return dataclasses.replace(self, **arrays)

    def _arrays(self) -> dict[str, np.ndarray]:
        """Return the fields that have one entry a row."""
        return {name: getattr(self, name) for name in self._shapes() if getattr(self, name) is not None}

    def looks_back(self) -> bool:
        """Tell whether a row uses an image of the state that no row of this table has made.

        Example:
            >>> table = ddpm_jax.samplers.LMS(num_steps=50).table(ScheduleConfig())
            >>> table.looks_back(), table.part(10).looks_back()
            (False, True)
        """
        k = self.mix.shape[1]
        if isinstance(self.mix, jax.core.Tracer):  # nobody knows
            return False
        used = np.eye(k, dtype=bool)[0]  # of the state after the last row: the result
        for weights in self.mix[::-1]:
            used = np.any(weights[used, :k] != 0, axis=0)
            used[0] = True  # the network sees it
        return bool(np.any(used[1:]))

    def rows(self, dtype: Any = np.float32) -> Rows:
        """Return the numbers in the dtype of the state."""
        count = self.num_rows
        limits = (0.0 if self.clip is None else self.clip, 0.0) if self.threshold is None else self.threshold
        no_numbers = np.zeros((count, 2))
        default = lambda value, other: other if value is None else value
        cast = lambda array: _as_array(array, dtype)
        return Rows(
            index=_as_array(self.index, np.int32),
            t=_as_array(self.t, jnp.promote_types(dtype, np.float32)),  # half precision has no room for 999
            x_0_coefs=cast(self.x_0_coefs),
            eps_coefs=cast(self.eps_coefs),
            mix=cast(self.mix),
            levels=cast(self.levels),
            ends_step=_as_array(self.ends_step, bool),
            evaluates=_as_array(default(self.evaluates, np.ones(count, bool)), bool),
            in_scale=cast(default(self.in_scale, np.ones(count))),
            log_variance=cast(default(self.log_variance, no_numbers)),
            limits=_tiled([cast(limit) for limit in limits], count),
            langevin=cast(default(self.langevin, no_numbers)),
        )

    def tree_flatten(self) -> tuple[list[Any], tuple[Any, ...]]:
        """Return the numbers, and what is static beside the shapes; for JAX."""
        return [getattr(self, name) for name in _NUMBERS], tuple(getattr(self, name) for name in _STATIC)

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], numbers: Sequence[Any]) -> "Table":
        """Return a table of anything in the place of its numbers, unchecked; for JAX."""
        table = object.__new__(cls)
        for name, value in zip((*_NUMBERS, *_STATIC), (*numbers, *static), strict=True):
            object.__setattr__(table, name, value)
        return table


_STATIC = ("variance", "draws")
_NUMBERS = tuple(field.name for field in dataclasses.fields(Table) if field.name not in _STATIC)


def _as_array(value: Any, dtype: Any) -> Array:
    """Return an array: of numpy, unless it is traced."""
    return value.astype(dtype) if isinstance(value, jax.core.Tracer) else np.asarray(value, dtype)


def _tiled(numbers: list[Array], count: int) -> Array:
    stack = jnp.stack if any(isinstance(number, jax.core.Tracer) for number in numbers) else np.stack
    row = stack(numbers)[None]
    return row.repeat(count, axis=0)
